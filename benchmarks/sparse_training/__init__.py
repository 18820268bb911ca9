"""Methods side by side: pruned by other scores, and trained sparse from the start.

`methods` lists what is trained, by the machinery of the paper's studies, `tables` shows
it, and `cost` times the steps and the mask updates.
"""
