"""What pruning costs on this machine: time, memory, and the step around it."""
