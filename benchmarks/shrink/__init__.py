"""What cutting dead channels out of a network brings: time, size, and accuracy.

- `networks` has the networks, with random weights or to be trained.
- `speed` cuts a share of every group of channels, and times both networks in turns.
- `peer` prunes the same network by Torch-Pruning, in an environment of its own.
- `accuracy` trains: coupled channels against narrow networks and single kernels.
"""
