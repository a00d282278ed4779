# `make demo` and `make test` do everything on a fresh machine: environment, dependencies, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch>=2.11,<2.14
WORKERS ?= 2
# The versions that CI tested; torch stays outside, since its build differs by machine. Of 25,000 modules a fifth is ever
# imported: Python compiles those when it first does, which takes a minute less than pip compiling all of them.
INSTALL := -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: demo test lint types tests test-long browser mutants docs constraints clean

demo: $(VENV)/.ready
	$(BIN)/charengine demo

# mypy needs one core for a minute, so it runs beside the tests; both are waited for
test: lint
	$(MAKE) --no-print-directory --jobs 2 types tests

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

tests: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --minutes -m "not slow and not long"

# what takes more than half a minute a test, and every code block of the manual: before a release
test-long: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --minutes -m "slow or long"

# the pages in a headless Chromium, ten minutes; AGAIN="--last-failed" repeats what failed
browser: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --minutes -m "slow or long" $(AGAIN) tests/browser

# what pip chooses today within pyproject's bounds; run `make test` afterwards and commit both answers together
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade pip
	build/constraints/bin/python -m pip install --quiet "$(TORCH)"
	build/constraints/bin/python -m pip install --quiet -e ".[dev,gpu]"
	sed -n '/^[^#]/q;p' constraints.txt > build/constraints.txt
	build/constraints/bin/python -m pip freeze --exclude-editable \
	  | grep -viE '^(torch|torchvision|triton)==|^(cuda|nvidia)-([^m]|m[^l])|^-|@' >> build/constraints.txt
	mv build/constraints.txt constraints.txt

# the manual as a site: docs/_build/html/index.html
docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

# wrong edits, each of which a test must notice
mutants: $(VENV)/.ready-dev
	$(BIN)/python tests/mutants.py --jobs $(WORKERS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch first and alone: so pip takes a CPU build where one is on offer
$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) "$(TORCH)"
	$(BIN)/python $(INSTALL) -e .
	touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) "$(TORCH)"
	$(BIN)/python $(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.ready

$(VENV)/.ready-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) "$(TORCH)"
	$(BIN)/python $(INSTALL) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build docs/_build .pytest_cache .ruff_cache .mypy_cache
