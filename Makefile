# make demo    train a Transformer on real text, trace it, draw Figures 1 and 3, print L0 and L1 per layer
# make test    the test suite (make test-slow: the long tests)
# make test-oldest  the test suite with the oldest versions that pyproject.toml admits, in .venv-oldest; needs Python 3.11
#              (PYTHON=python3.11), and gets a PyTorch of about 3 GB
# make fuzz    attack what lsmooth reads (traces by structure, bytes and pages; checkpoints; options) for SECONDS seconds
#              (3600), each case in a process of its own, and say which went wrong
# make lint    ruff and mypy
# make docs    build docs/ into build/site, strictly
# make gallery draw figures/gallery/ anew
# make bench   measure everything that docs/performance.md says, and rewrite its table
# make bench-gpu  measure what it says of GPUs, on a machine with one
# make bench-check  measure small sizes, and fail where a ratio is 25 % worse than the committed one
# Each makes .venv when missing and installs what it needs.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
# Most of what comes with PyTorch is never imported: bytecode is written when it is, which halves an installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS)

.PHONY: demo test test-slow test-oldest fuzz lint types docs gallery bench bench-gpu bench-check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lsmooth demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# Freed memory goes back at once: under the profiler of PyTorch 2.4, the tests of memory took 13 GB without.
test-oldest:
	MALLOC_MMAP_THRESHOLD_=65536 $(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

SECONDS ?= 3600
fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS)

lint: $(VENV)/.installed-dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# cli/ and figures/ are installed as lsmooth.cli and lsmooth.figures; mypy and mkdocs read them laid out that way.
build/types: FORCE
	rm -rf build/types && mkdir -p build/types
	cp -r lsmooth build/types/lsmooth
	cp -r cli build/types/lsmooth/cli
	cp -r figures build/types/lsmooth/figures

types: $(VENV)/.installed-dev build/types
	$(BIN)/mypy --config-file pyproject.toml build/types/lsmooth

docs: $(VENV)/.installed-docs build/types
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict > build/docs.log 2>&1 || { grep -v INFO build/docs.log; exit 1; }
	@echo "Wrote build/site/index.html"

gallery: $(VENV)/.installed
	$(BIN)/python figures/gallery/make.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --only gpu

bench-check: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --short --check

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info

FORCE:
