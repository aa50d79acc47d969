# Everything works from a fresh clone: each target sets up what it needs.
PYTHON ?= python3
PYTHON310 ?= python3.10
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo recipe-cnvsrc-mini test test-slow test-espnet test-k2 lint format bench clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## make .venv with speechattn and what its development needs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "speechattn needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## train and evaluate audio, video and audio-visual models on a synthetic corpus
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/grid/demo.sh

recipe-cnvsrc-mini: $(READY) ## the CNVSRC recipe in small, under half an hour on two cores
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/cnvsrc/mini.sh

test: $(READY) ## the tests, without those that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-espnet: $(READY) ## the comparisons with ESPnet, in an environment that has it
	.ci/oracle.sh build/espnet $(VENV)

test-k2: $(READY) ## the comparisons with k2, which needs Python 3.10 (PYTHON310=python3.10)
	PYTHON310=$(PYTHON310) .ci/k2.sh build/k2 $(VENV)

lint: $(READY) ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## all benchmarks, and docs/benchmarks.md; against ESPnet after make test-espnet
	$(firstword $(wildcard build/espnet/bin/python) $(BIN)/python) benchmarks/run.py

clean: ## remove .venv, experiments and builds
	rm -rf $(VENV) exp build *.egg-info
