"""The paper's studies, on real data: large-sparse networks against small-dense ones.

Zhu & Gupta 2017 compare, at an equal number of non-zero parameters, a large network
that was pruned while it trained with a small one that was not. `studies` lists what is
trained (a `study` of configurations of a `task`), `images`, `language` and `sequences`
have the networks with their tasks, `training` trains one network, `runs` all of a
study, `tradeoff` compares, and `tables`, `figure` and `overview` show it. `throughput`
says how fast the trainings are.
"""
