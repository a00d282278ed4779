# `make demo` and `make test` do everything on a fresh machine: environment, dependencies, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch>=2.11,<2.14
WORKERS ?= 2

.PHONY: demo test lint types tests clean

demo: $(VENV)/.ready
	$(BIN)/charengine demo

test: lint types tests

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

tests: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch first and alone: so pip takes a CPU build where one is on offer
$(VENV)/.ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
