# Every target makes its own environment first: .venv, as requirements-dev.lock says, with this folder installed in it.
# It is made once, and brought up to date when the lock file, settings.ini or setup.py changes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lab export outputs lock clean

VENV := .venv
BIN := $(VENV)/bin
# Python keeps what it compiles of each module, also where an image turns that off: without, each process that imports
# pandas, Dask, numba and XGBoost takes 12 s of CPU time in place of 4
export PYTHONDONTWRITEBYTECODE :=
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# what goes to the command behind a target: make demo ARGS="--config config/cards.toml --input FILE"
ARGS ?=
# tests that run side by side, 0 = one after another in one process: one more than there are processors, since tests wait
# for the servers that they start; 8 at most, since a worker takes up to 1.1 GB
WORKERS ?= $(shell processors=$$(getconf _NPROCESSORS_ONLN); echo $$((processors < 7 ? processors + 1 : 8)))
# a file of versions that `make lock` shall keep to, where it names a package
PINS ?=
# the interpreter that .venv is made from
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: $(VENV)/.ready ## from generated orders to live decisions; a second time in seconds, ARGS=--fresh anew
	$(IN_VENV) fraud-poc demo $(ARGS)

test: $(VENV)/.ready ## everything: house rules, notebooks, unit and property tests
	$(IN_VENV) python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lab: $(VENV)/.ready ## JupyterLab on the notebooks
	$(IN_VENV) jupyter lab --notebook-dir=nbs $(ARGS)

export: $(VENV)/.ready ## write fraud_poc/ from the notebooks, and clean the notebooks for git
	$(IN_VENV) nbdev_export
	$(IN_VENV) nbdev_clean

outputs: export ## run the notebooks and save what they show: make outputs ARGS=nbs/010_events.ipynb
	$(IN_VENV) jupyter execute --inplace $(or $(ARGS),nbs/*.ipynb)
	$(IN_VENV) nbdev_clean

# One resolution for both files: the runtime lock is the part of the other one that a running pipeline needs
# (uv keeps the metadata of a folder and does not see that settings.ini changed, hence --refresh)
COMPILE := uv pip compile setup.py --quiet --refresh --universal --python-version 3.11 --no-header --no-annotate
lock: $(VENV)/.made ## write both lock files from settings.ini: make lock ARGS=--upgrade PINS=FILE
	$(IN_VENV) $(COMPILE) --extra dev $(if $(PINS),--constraint $(PINS)) $(ARGS) --output-file requirements-dev.lock >/dev/null
	$(IN_VENV) $(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock >/dev/null
	@for file in requirements requirements-dev; do \
		{ echo "# made by \`make lock\` from settings.ini; do not edit"; cat $$file.lock; } > $$file.lock.new; mv $$file.lock.new $$file.lock; done

clean: ## remove the environment and caches; data/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	$(if $(PYTHON),,$(error Python 3.11 or newer was not found: install it, or name it with PYTHON=/path/to/python3))
	@echo "making $(VENV) from $(PYTHON) ..."
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -m1 '^uv==' requirements-dev.lock || echo uv)" \
		|| echo "uv could not be installed: plain pip does the same, in minutes instead of seconds"
	@touch $@

$(VENV)/.ready: requirements-dev.lock settings.ini setup.py | $(VENV)/.made
	@echo "installing requirements-dev.lock and this folder into $(VENV) ..."
	@export VIRTUAL_ENV="$(CURDIR)/$(VENV)"; \
	{ $(BIN)/uv pip sync --quiet requirements-dev.lock && $(BIN)/uv pip install --quiet --refresh-package fraud-poc --editable . --no-deps --no-build-isolation; } || \
	{ echo "uv did not manage: using pip" && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --no-deps --no-build-isolation; }
	@touch $@
