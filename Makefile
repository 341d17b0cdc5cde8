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
THREADS ?= 0
UV_VERSION := 0.13.8

ENVIRONMENT ?= .venv/.complete
PY  ?= .venv/bin/python
LIB := $(shell find lib -path lib/onebit/site -prune -false -o -name '*.py' -o -name '*.mplstyle' -o -name '*.toml' \
    -o -path '*/demo/*.js' -o -path '*/demo/*.wasm' -o -path '*/demo/page.*') requirements.lock
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb)
OUT := build/$(DATASET)/$(PROFILE)
# as report.folder_of has it
FIGURES := $(if $(ONEBIT_HOME),$(ONEBIT_HOME)/)$(if $(filter laptop,$(PROFILE)),figures$(filter-out /mnist,/$(DATASET)),$(OUT)/figures)
# what the computation chose, "<data set> <profile>": make -n, which computes nothing, reads what the last one chose
CHOICE := build/.choice-$(DATASET)-$(PROFILE)
CHOSEN = { read -r dataset profile < $(CHOICE); } 2>/dev/null || read -r dataset profile <<< "$(DATASET) $(PROFILE)"
# two notebooks run at a time, each on half of the cores: threads that wait for each other's cores cost minutes
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HALF = $(shell $(PYTHON) -c 'import os; print(max(1, ($(CORES)) // 2))')
# written once, at its end or at its error, not after every cell
PAPERMILL = $(PY) -m papermill --log-level WARNING --no-progress-bar --no-request-save-on-cell-execute
export FROM_SCRATCH ?=
# a copied checkout computes with its own library: its copied .venv names that of the original
export PYTHONPATH := $(CURDIR)/lib$(if $(PYTHONPATH),:$(PYTHONPATH))
# bytecode is kept, as containers often forbid: else a process takes 17 s to import torch and seaborn, and not 6
unexport PYTHONDONTWRITEBYTECODE
# glibc's malloc hands large tensors back and takes fresh pages for the next ones: 5 to 13 % of a training step
KEEP_PAGES = MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1000000000
# in a log file progress bars are drawn rarely
COMPUTE = $(shell test -t 2 || echo TQDM_MININTERVAL=60) $(KEEP_PAGES) $(PY) -m onebit.study prepare \
    --dataset $(DATASET) --profile $(PROFILE) --jobs $(JOBS) --threads $(THREADS)

.PHONY: help paper smoke series train plan test lint lab bench site demo publish solutions verify release lock clean FORCE

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo; echo "  PROFILE=smoke|laptop|paper  DATASET=mnist|fashion_mnist|kmnist|digits  FROM_SCRATCH=1"
	@echo "  ENGINE=serial|local|dask  JOBS=processes  THREADS=of each  DASK_SCHEDULER=address"

paper: $(ENVIRONMENT)  ## every figure and table: compute what is missing, execute the notebooks
	@mkdir -p $(dir $(CHOICE))
	@$(COMPUTE) --engine $(or $(ENGINE),local) > $(CHOICE)
	@$(CHOSEN) && $(MAKE) --no-print-directory -j 2 series DATASET=$$dataset PROFILE=$$profile

smoke: $(ENVIRONMENT)  ## the same at toy size, in minutes: every line runs, no number means anything
	@$(MAKE) --no-print-directory paper PROFILE=smoke

series: $(OUT)/.manifest
	@echo "done: $(OUT)/"

# what the figures and tables are made of, and their checksums; a copy stays here, to know them by
$(OUT)/.manifest: $(NOTEBOOKS:notebooks/%=$(OUT)/%)
	@$(PY) -m onebit.manifest --dataset $(DATASET) --profile $(PROFILE)
	@cp "$(FIGURES)/MANIFEST.json" $@

# a failed notebook stays beside its target under a dotted name, with its traceback
$(OUT)/%.ipynb: notebooks/%.ipynb $(LIB) $(if $(filter-out 0,$(FROM_SCRATCH)),FORCE)
	@mkdir -p $(@D)
	OMP_NUM_THREADS=$(HALF) $(PAPERMILL) -p PROFILE $(PROFILE) -p DATASET $(DATASET) $< $(@D)/.$*.ipynb
	@mv $(@D)/.$*.ipynb $@

# notebooks of which a figure or table was removed since, or replaced by another branch's, are executed again
ALTERED = import hashlib, json; from pathlib import Path; \
    told = json.loads(Path("$(OUT)/.manifest").read_text() or "{}").get("items", {}); \
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path("$(FIGURES)").glob("*.*")}; \
    print(*{item["notebook"] for name, item in told.items() \
        if not (item["files"].items() <= sums.items() and f"{name}.json" in sums)})
$(if $(wildcard $(OUT)/.manifest),$(addprefix $(OUT)/,$(shell $(PYTHON) -c '$(ALTERED)'))): FORCE

# the verdicts are read from the tables that the other notebooks write
$(OUT)/09_verdicts.ipynb: $(filter-out %/09_verdicts.ipynb,$(NOTEBOOKS:notebooks/%=$(OUT)/%))

train: $(ENVIRONMENT)  ## the grid of runs only, resumable: make train ENGINE=dask DASK_SCHEDULER=tcp://host:8786
	@$(COMPUTE) --engine $(or $(ENGINE),serial) > /dev/null

plan: $(ENVIRONMENT)  ## what is missing, how long it takes on this machine and on many, what disk it needs
	@$(PY) -m onebit.study plan --dataset $(DATASET) --profile $(PROFILE) --threads $(THREADS)

test: $(ENVIRONMENT)  ## every check: equations, interrupted runs, and the whole series at the smallest size
	$(PY) -m ruff check lib tests notebooks
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lab: $(ENVIRONMENT)  ## JupyterLab in the project's environment
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

bench: $(ENVIRONMENT)  ## measure speed on this machine and write figures/bench.csv
	$(KEEP_PAGES) $(PY) -m onebit.bench

site: $(ENVIRONMENT)  ## the study as a static site to read, without a network too, in build/site
	@mkdir -p $(dir $(CHOICE))
	@$(COMPUTE) --engine $(or $(ENGINE),local) > $(CHOICE)
	@$(CHOSEN) && $(MAKE) --no-print-directory -j 2 series DATASET=$$dataset PROFILE=$$profile
	@$(CHOSEN) && $(PY) -m onebit.site build/$$dataset/$$profile build/site

demo: $(ENVIRONMENT)  ## compile the kernels of the live demo in notebook 08 (npm installs the pinned compiler)
	@$(PY) -m onebit.demo.build

publish: $(ENVIRONMENT)  ## executed notebooks of the reference study, and its claims, into notebooks/ and README.md
	$(PY) -m onebit.publish back build/mnist/laptop notebooks
	$(PY) -m onebit.publish readme figures/claims.csv README.md

solutions: $(ENVIRONMENT)  ## execute the solutions of the exercises for the reference study, in place
	@mkdir -p build/mnist/laptop/solutions
	@for path in notebooks/solutions/[0-9]*.ipynb; do \
	    $(PAPERMILL) -p PROFILE laptop -p DATASET mnist \
	        $$path build/mnist/laptop/solutions/$${path##*/} || exit 1; done
	$(PY) -m onebit.publish back build/mnist/laptop/solutions notebooks/solutions

verify: $(ENVIRONMENT)  ## every committed table again from released results, one training and some metrics; a verdict each
	@$(PY) -m onebit.verify

release: $(ENVIRONMENT)  ## copy the profile's results into data/released/, to be committed
	$(PY) -m onebit.study release --dataset $(DATASET) --profile $(PROFILE)

lock: .tools/bin/uv  ## resolve the pins anew from pyproject.toml
	.tools/bin/uv pip compile -q pyproject.toml --extra dev --extra cluster --extra site --universal --generate-hashes --python-version 3.11 \
	    --no-header -o requirements.lock

clean:  ## remove build/ (data/, with its downloads and runs, stays)
	rm -rf build

VERSIONS := Python 3.11 to 3.14 is needed: make PYTHON=python3.13
.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "$(VERSIONS)")'
	@$(PYTHON) -m venv --clear .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# the stamp is written last, after torch and torchvision have proved to fit each other; without its interpreter, which
# goes when the system's is upgraded, it counts for nothing
$(ENVIRONMENT): requirements.lock pyproject.toml $(shell test -x $(PY) || echo FORCE) | .tools/bin/uv
	@echo "building the environment in .venv (6 GB, once)" >&2
	@$(PY) -c '' 2>/dev/null || .tools/bin/uv venv --quiet --clear --force --python "$$(command -v $(PYTHON))" .venv
	@.tools/bin/uv pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@.tools/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@$(PY) -c 'import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)'
	@touch $@
