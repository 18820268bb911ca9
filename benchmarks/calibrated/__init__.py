"""One-shot pruning of a language model: magnitude, Wanda and SparseGPT.

`transformer` is the network and its task, `experiment` trains it once, prunes it in
every way and measures; `peer` compares masks with those of llm-compressor; `tables`
writes what was found.
"""
