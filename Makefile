# `make demo` and `make test` set up what they need in .venv: minutes the first time, nothing afterwards.
#
# constraints.txt pins what this was tested with. Without a GPU, pip's default torch may bring CUDA libraries along; to get
# the small build, name the package index that PyTorch keeps for CPUs:   PIP_EXTRA_INDEX_URL=<index> make demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := setup.cfg pyproject.toml constraints.txt

SHARED := -n 2 --dist loadgroup

.PHONY: demo test test-fast check docs newest oldest dist-check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/fl run experiments/quickstart.yaml

test: check
	$(BIN)/python -m pytest $(SHARED)

test-fast: check
	$(BIN)/python -m pytest $(SHARED) -m "not slow"

# formatter, linter, types: under a minute
check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy fl strategies clients partitions

# the documentation site in build/site, strictly: a link to nothing stops it; seconds
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/site.py

# quick tests with the newest or the oldest versions that setup.cfg allows, in build/: gigabytes, half an hour each
newest oldest: $(VENV)/.installed-dev
	$(BIN)/python -m tests.stacks $@

# wheel and sdist, each in an empty environment with all dependencies, and the quick start there: minutes, gigabytes
dist-check: $(VENV)/.installed-dev
	$(BIN)/python -m tests.dist

bench: $(VENV)/.installed
	$(BIN)/fl bench

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	  { echo "fl needs Python 3.11 or later, and '$(PYTHON)' is `$(PYTHON) --version 2>&1 | head -n 1`: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes, once"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes, once"
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@
