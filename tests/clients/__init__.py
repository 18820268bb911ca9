"""Tests with the real packages that people train with.

`make test-clients` runs every `*_client.py` here. The comment at the head of such a
file names the packages it needs; uv makes an environment of them, because no
environment holds them all. What cannot be installed is skipped, with the reason. Each
test trains a small model with the loop, the optimizer factory or the trainer of its
package, and the rows that the tests record become the table of `docs/clients.md`.
"""
