PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup demo test check fix

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# DUSt3R's own classes for the tests, without the packages that only its demo needs.
$(BIN)/.dust3r: $(BIN)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps mini-dust3r roma einops
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

check: setup $(BIN)/.dust3r
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder

test: check

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
