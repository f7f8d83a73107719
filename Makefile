# make validate [DEVICE=gpu] [ARGS='--dataset cifar10']   check the published table
# make test [ARGS='-k weights']                           run the tests, at each instruction set of the processor
# make lint                                               check style and format
# make docs                                               the API's pages, build/docs/index.html
# Each makes .venv and installs what this machine needs first; a second run installs nothing again.

DEVICE ?= cpu
# MXNet 1.9.1 runs on Python 3.9 to 3.11.
PYTHON ?= $(shell for python in python3.11 python3 python3.10 python3.9; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] < (3, 12))' 2>/dev/null \
	&& echo $$python && break; done)
ARGS ?=
BIN := .venv/bin
EXTRAS := $(DEVICE),wrn,digits,tensorboard,onnx,notebook,docs,test
INSTALLED := .venv/.installed-$(DEVICE)

ifeq ($(filter $(DEVICE),cpu gpu),)
$(error DEVICE is '$(DEVICE)' (allowed: cpu, gpu))
endif

.PHONY: validate test lint docs clean

validate: $(INSTALLED)
	$(BIN)/python run_validation.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python tests/run.py --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(INSTALLED)
	$(BIN)/python docs/make.py

# The CPU and the GPU build of MXNet are one package under two names: the one must go before the other comes.
$(INSTALLED): setup.py $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	rm -f .venv/.installed-*
	$(BIN)/python -m pip uninstall -qq --yes $(if $(filter gpu,$(DEVICE)),mxnet,mxnet-cu112)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

$(BIN)/python:
	$(if $(PYTHON),,$(error Python 3.9, 3.10 or 3.11 is needed and was not found; name it: make PYTHON=/path/to/python))
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info
