"""The demonstration behind `gradprune demo`: one network, trained dense and pruned.

`data` reads the images, `models` has the network in both Flax APIs, `learners` its
training step in each, `training` the loop, `results` what was measured, `figure` the
picture, `command` the command line.
"""
