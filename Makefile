# Everything works from a fresh clone: each target sets up what it needs.
PYTHON ?= python3
PYTHON310 ?= python3.10
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo recipe-cnvsrc-mini test test-slow test-espnet test-k2 lint format bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "speechattn needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/grid/demo.sh

# The CNVSRC recipe in small, from raw videos to fused transcripts: under half an hour on two cores.
recipe-cnvsrc-mini: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/cnvsrc/mini.sh

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# What is compared with ESPnet, in an environment that has it.
test-espnet: $(READY)
	.ci/oracle.sh build/espnet $(VENV)

# What is compared with k2, which wants a Python 3.10 of its own: make test-k2 PYTHON310=python3.10
test-k2: $(READY)
	PYTHON310=$(PYTHON310) .ci/k2.sh build/k2 $(VENV)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# With ESPnet as the peer once `make test-espnet` has made its environment.
bench: $(READY)
	$(firstword $(wildcard build/espnet/bin/python) $(BIN)/python) benchmarks/run.py

clean:
	rm -rf $(VENV) exp build *.egg-info
