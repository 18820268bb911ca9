# Everything runs in a virtual environment of its own; python3 with venv is enough.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
CLIENTS := .venv-clients
BIN := $(VENV)/bin

.PHONY: demo test test-oldest test-clients lint format docs bench clean

# The theme has news of its own, which is no news of this project.
export NO_MKDOCS_2_WARNING := 1

demo: $(VENV)/installed-demo
	$(BIN)/gradprune demo --force

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile gradprune_jax tests docs README.md

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -o addopts="" tests

# With the real packages of docs/clients.md; uv makes an environment for each.
test-clients: $(CLIENTS)/installed
	$(CLIENTS)/bin/python -m tests.clients

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-test
	$(BIN)/mkdocs serve

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) $(OLDEST) $(CLIENTS) build dist

$(VENV)/installed-demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[cli]"
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test,lint,docs]"
	touch $@

$(OLDEST)/installed: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable . --constraint tests/oldest.txt --requirement tests/oldest.txt
	touch $@

$(CLIENTS)/installed:
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet uv
	touch $@
