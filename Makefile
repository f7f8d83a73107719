# make validate [DEVICE=gpu] [ARGS='--dataset cifar10']   check the published table
# make test [ARGS='-k weights']                           run the tests, at each instruction set of the processor
# make test-fast                                          leave out those that take processes of their own
# make fuzz                                               run those left out: random cases, whole tables
# make lint                                               check style, format, types, and what imports what
# make docs                                               README, docs/ and the API as a site, build/docs/index.html
# Each makes .venv and installs what this machine needs first; a second run installs nothing again. PyTorch, which is large,
# comes with all but the first.

DEVICE ?= cpu
# The best one for all of the project first: MXNet 1.9.1 runs on Python 3.9 to 3.11, everything else on any from 3.9 on.
PYTHON ?= $(shell for python in python3.11 python3.10 python3.9 python3 python3.13 python3.12; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null \
	&& echo $$python && break; done)
ARGS ?=
BIN := .venv/bin
EXTRAS := tensorboard,notebook,docs,test
INSTALLED := .venv/.installed-$(DEVICE)
PYTORCH := .venv/.pytorch-$(DEVICE)
ORT_WEB := .venv/.onnxruntime-web

ifeq ($(filter $(DEVICE),cpu gpu),)
$(error DEVICE is '$(DEVICE)' (allowed: cpu, gpu))
endif

# What is asked for has to be what is used.
ifneq ($(filter command line environment,$(origin PYTHON)),)
ifneq ($(wildcard $(BIN)/python),)
VERSION = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifneq ($(call VERSION,$(PYTHON)),$(call VERSION,$(BIN)/python))
ifneq ($(MAKECMDGOALS),clean)
$(error .venv has Python $(call VERSION,$(BIN)/python), PYTHON is $(call VERSION,$(PYTHON)): make clean first)
endif
endif
endif
endif

.PHONY: validate test test-fast fuzz lint docs clean

validate: $(INSTALLED)
	$(BIN)/python run_validation.py $(ARGS)

SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(PYTORCH) $(ORT_WEB)
	$(BIN)/python tests/run.py $(SIDE_BY_SIDE) $(ARGS)

test-fast: $(PYTORCH) $(ORT_WEB)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow and not fuzz' $(ARGS)

fuzz: $(PYTORCH)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m fuzz $(ARGS)

lint: $(PYTORCH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if [ -x $(BIN)/mypy ]; then echo mypy; $(BIN)/mypy; else echo 'left out: mypy, which needs Python 3.10'; fi

docs: $(PYTORCH)
	$(BIN)/python docs/make.py $(ARGS)

# The CPU and the GPU build of MXNet are one package under two names: the one must go before the other comes.
$(INSTALLED): setup.py $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	rm -f .venv/.installed-*
	$(BIN)/python -m pip uninstall -qq --yes $(if $(filter gpu,$(DEVICE)),mxnet,mxnet-cu112)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(DEVICE),$(EXTRAS)]'
	@$(BIN)/python -c 'from importlib.util import find_spec; find_spec("mxnet") or \
		print("left out: MXNet, which has no build for this machine and this Python; ONNX Runtime is there")'
	touch $@

# On a CPU the build without CUDA, where pip finds it: PyPI has none for Linux.
$(PYTORCH): tests/constraints.txt $(INSTALLED)
	rm -f .venv/.pytorch-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(filter cpu,$(DEVICE)),--constraint tests/constraints.txt) torch timm \
		|| echo 'left out: PyTorch. PIP_EXTRA_INDEX_URL=URL make $(MAKECMDGOALS) looks for its CPU build elsewhere'
	touch $@

# For the tests of the page of `export --format web`, of the version that it loads.
$(ORT_WEB): pydmobilenet/web/__init__.py $(BIN)/python
	npm install --silent --no-save --ignore-scripts --prefix .venv \
		onnxruntime-web@$(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' pydmobilenet/web/__init__.py) \
		|| echo 'left out: onnxruntime-web, which npm brings'
	touch $@

$(BIN)/python:
	$(if $(PYTHON),,$(error Python 3.9 or newer is needed and was not found; name it: make PYTHON=/path/to/python))
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 9) and sys.exit("$(PYTHON) is older than Python 3.9: name another")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info
