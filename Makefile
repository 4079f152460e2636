# Everything a person or CI runs. `make demo` and `make test` need python3 >= 3.11 with its venv module, and nothing else.
# Another interpreter: `make test PYTHON=python3.12`. Arguments for the command: `make demo ARGS="--style neon"`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
ARGS   ?=

.PHONY: help demo test test-interop check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install the tested versions into $(VENV) and run the main job on the embedded base"
	@echo "make test    the same with the dev extra, then the tests"
	@echo "make test-interop  llama.cpp itself (built from PyPI, minutes) reads what was exported"
	@echo "make check   ruff, formatting, types"
	@echo "make bench   every script in benchmarks/, one after the other"
	@echo "make clean   remove $(VENV), build results and caches (runs/ stays)"

demo: $(VENV)/.installed
	$(BIN)/stylora demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-interop: $(VENV)/.installed-dev
	$(PIP) -e '.[interop]'
	STYLORA_INTEROP=1 $(BIN)/python -m pytest tests/test_interop_gguf.py $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || missed="$$missed $$script"; done; \
		test -z "$$missed" || { echo "these could not be run:$$missed" >&2; exit 1; }

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache

# Made once; the stamps are newer than what they were made from, and an interrupted install leaves none.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "stylora needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Next: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module. Next: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $(VENV)/.installed $@
