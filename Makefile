# Each of demo, test and bench sets itself up: a virtual environment in .venv, at the versions of constraints.txt.
#
#     make demo                        train, prune, export and time a network on real digits
#     make test                        lint, types, doctests, tests, notebooks
#     make bench                       the measured claims of the README
#     make test PYTHON=python3.12      with another interpreter (3.11 to 3.13); takes a fresh .venv

PYTHON ?= python3
VENV   ?= .venv
# Test processes: one more than two cores, since many tests wait for a child process. Worksteal keeps neighbouring
# tests, and so their fixtures, in one process until one of them runs dry.
JOBS   ?= 3
# More arguments for pytest: make test PYTEST_ARGS="-x -k schedules"
PYTEST_ARGS ?=

BIN    := $(VENV)/bin
PYTEST  = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --nbmake-timeout=300 $(PYTEST_ARGS)

.PHONY: demo test bench lint types doctest notebooks format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/keras-prune demo --out build/demo

# One run of pytest for all that it can run, so that its closing line counts everything; what takes longest comes first,
# so that no process is left alone with it. Where npm is there, LiteRT.js is fetched once, and files are run in
# WebAssembly too; without it those tests are skipped, with the reason.
test: lint types
	@if command -v npm >/dev/null; then $(BIN)/tflite-export install web || echo "nothing is run in WebAssembly"; else echo "no npm: nothing is run in WebAssembly"; fi
	$(PYTEST) --doctest-modules --nbmake $(wildcard notebooks) keras_prune tflite_export tests

bench: $(VENV)/.installed-tfmot $(VENV)/.installed-search
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.mask_update
	$(BIN)/python -m benchmarks.lenet_mnist
	$(BIN)/python -m benchmarks.dense_blocks
	$(BIN)/python -m benchmarks.never_slower
	$(BIN)/python -m benchmarks.export_large
	$(BIN)/python -m benchmarks.structured_zoo
	$(BIN)/python -m benchmarks.model_counts
	$(BIN)/python -m benchmarks.learned_importance
	$(BIN)/python -m benchmarks.lenet_small
	$(BIN)/python -m benchmarks.resnet56
	$(BIN)/tflite-export install web
	$(BIN)/python -m benchmarks.web_models
	$(BIN)/python -m benchmarks.target_defaults
	$(BIN)/python -m benchmarks.strategy_search

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

doctest: $(VENV)/.installed-dev
	$(PYTEST) --doctest-modules keras_prune tflite_export

notebooks: $(VENV)/.installed-dev
	$(PYTEST) --nbmake notebooks

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "keras-prune needs Python 3.11 to 3.13. Received: $$($(PYTHON) --version 2>&1). Say make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# .installed-demo, .installed-dev, ...: that extra is in the environment.
$(VENV)/.installed-%: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	@touch $@
