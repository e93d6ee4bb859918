# Commands for a fresh checkout; `make help` lists them.
#
# Without PYTHON they build .venv from requirements-pinned.txt, once, and use that. With PYTHON, an
# interpreter of your own is used as it is and nothing is installed into it.

VENV := .venv
BASE_PYTHON ?= python3
STAMP := $(VENV)/.complete

ifdef PYTHON
PY := $(PYTHON)
ENV := check-python
# Nothing is installed into an environment of yours, so Python is told where the package lies.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
# Tests run in several processes of one thread each; a process that has none left takes over some of another's.
PYTEST_FLAGS := --numprocesses logical --maxprocesses 4 --dist worksteal
PY := $(VENV)/bin/python
ENV := $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint gpu clean env check-python

help:
	@echo "make demo    take our teacher, train a student without and with MGD, print their AP"
	@echo "make test    run the test suite"
	@echo "make lint    check format, style and types"
	@echo "make gpu     check and measure on a GPU, and write what it finds into docs"
	@echo "make clean   remove caches and build products"
	@echo
	@echo "PYTHON=FILE       use this interpreter, which has Detectron2, and install nothing"
	@echo "BASE_PYTHON=FILE  build $(VENV) with this interpreter instead of python3"

demo: env
	$(PY) tools/demo.py

test: env
	$(PY) -m pytest $(PYTEST_FLAGS)

lint: env
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy

gpu: env
	$(PY) tools/gpu_check.py

env: $(ENV)

check-python:
	@$(PY) tools/install_detectron2.py --check

$(STAMP): requirements-pinned.txt tools/install_detectron2.py
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "make: $(BASE_PYTHON) is missing or older than Python 3.11, which the pinned versions need:" \
	         "pass BASE_PYTHON, or PYTHON with an environment of your own (3.9 or newer)" >&2; exit 1; }
	@$(BASE_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(BASE_PYTHON) lacks the venv module: install it (python3-venv on Debian and Ubuntu)" >&2; \
	    exit 1; }
	@echo "building $(VENV): some minutes and about 6 GB"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(BASE_PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements-pinned.txt
	$(PY) tools/install_detectron2.py
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	@echo "kept: $(VENV) (rm -r $(VENV)), demo data (rm -r datasets/demo), trained models (rm -r output)"
