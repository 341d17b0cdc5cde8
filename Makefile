# make paper    every figure and table        make test    every check
# Each works as the very first command after git clone: the environment is built on first use, and never twice.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PROFILE ?= auto
DATASET ?= auto
PYTHON  ?= python3
JOBS    ?= 0
UV_VERSION := 0.13.8

ENVIRONMENT ?= .venv/.complete
PY  ?= .venv/bin/python
LIB := $(shell find lib -name '*.py' -o -name '*.mplstyle' -o -name '*.toml') requirements.lock
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb)
OUT := build/$(DATASET)/$(PROFILE)
export FROM_SCRATCH ?=

.PHONY: help paper smoke series train test lint lab bench site publish release lock clean FORCE

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo; echo "  PROFILE=smoke|laptop|paper  DATASET=mnist|fashion_mnist|kmnist|digits  FROM_SCRATCH=1  JOBS=processes"

paper: $(ENVIRONMENT)  ## every figure and table: compute what is missing, execute the notebooks
	@choice=$$($(PY) -m onebit.study prepare --dataset $(DATASET) --profile $(PROFILE) --jobs $(JOBS)); set -- $$choice; \
	$(MAKE) --no-print-directory -j 2 series DATASET=$$1 PROFILE=$$2

smoke: $(ENVIRONMENT)  ## the same at toy size, in minutes: every line runs, no number means anything
	@$(MAKE) --no-print-directory paper PROFILE=smoke

series: $(NOTEBOOKS:notebooks/%=$(OUT)/%)
	@echo "done: $(OUT)/"

# a failed notebook stays beside its target under a dotted name, with its traceback
$(OUT)/%.ipynb: notebooks/%.ipynb $(LIB) $(if $(FROM_SCRATCH),FORCE)
	@mkdir -p $(@D)
	$(PY) -m papermill --log-level WARNING --no-progress-bar -p PROFILE $(PROFILE) -p DATASET $(DATASET) $< $(@D)/.$*.ipynb
	@mv $(@D)/.$*.ipynb $@

# the verdicts are read from the tables that the other notebooks write
$(OUT)/09_verdicts.ipynb: $(filter-out %/09_verdicts.ipynb,$(NOTEBOOKS:notebooks/%=$(OUT)/%))

train: $(ENVIRONMENT)  ## the grid of runs only, resumable: make train PROFILE=laptop DATASET=mnist
	@$(PY) -m onebit.study prepare --dataset $(DATASET) --profile $(PROFILE) --jobs $(JOBS) > /dev/null

test: $(ENVIRONMENT)  ## every check: equations, interrupted runs, and the whole series at the smallest size
	$(PY) -m ruff check lib tests notebooks
	$(PY) -m pytest

lab: $(ENVIRONMENT)  ## JupyterLab in the project's environment
	$(PY) -m jupyterlab notebooks

bench: $(ENVIRONMENT)  ## measure speed on this machine and write figures/bench.csv
	$(PY) -m onebit.bench

site: $(ENVIRONMENT)  ## the executed notebooks as linked HTML pages, in build/site
	@choice=$$($(PY) -m onebit.study prepare --dataset $(DATASET) --profile $(PROFILE) --jobs $(JOBS)); set -- $$choice; \
	$(MAKE) --no-print-directory -j 2 series DATASET=$$1 PROFILE=$$2; \
	$(PY) -m onebit.publish site build/$$1/$$2 build/site

publish: $(ENVIRONMENT)  ## executed notebooks of the reference study, and its claims, into notebooks/ and README.md
	$(PY) -m onebit.publish back build/mnist/laptop notebooks
	$(PY) -m onebit.publish readme figures/claims.csv README.md
	@touch build/mnist/laptop/*.ipynb

release: $(ENVIRONMENT)  ## copy the profile's results into data/released/, to be committed
	$(PY) -m onebit.study release --dataset $(DATASET) --profile $(PROFILE)

lock: .tools/bin/uv  ## resolve the pins anew from pyproject.toml
	.tools/bin/uv pip compile -q pyproject.toml --extra dev --extra cluster --extra site --universal --generate-hashes --python-version 3.11 \
	    --no-header -o requirements.lock

clean:  ## remove build/ (data/, with its downloads and runs, stays)
	rm -rf build

.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# the stamp is written last, after torch and torchvision have proved to fit each other
$(ENVIRONMENT): requirements.lock pyproject.toml | .tools/bin/uv
	@echo "building the environment in .venv (6 GB, once)" >&2
	@test -x $(PY) || .tools/bin/uv venv --quiet --python "$$(command -v $(PYTHON))" .venv
	@.tools/bin/uv pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@.tools/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@$(PY) -c 'import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)'
	@touch $@
