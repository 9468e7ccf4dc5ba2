# Each target sets up .venv by itself; the stamp makes that happen once per change of pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= demo
DEMO_ARGS ?=
BENCH_ARGS ?=

.PHONY: setup demo test test-long check builtin bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "batchproj needs Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/batchproj demo $(DEMO_DIR) $(DEMO_ARGS)

# two files at a time: much of it is waiting for processes to start
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# not part of `test`: the whole demo, runs stopped and killed, outages, 10,000 objects counted, training by several workers
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# trains the projectors that come with the package again
builtin: $(STAMP)
	$(BIN)/python jobs/train_builtin.py $(DEMO_DIR)/builtin

# hours, and nothing else should run: Ray Data, Daft and others beside this and two loops by hand
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/batchproj bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV)
