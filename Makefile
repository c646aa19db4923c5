# DeltaSpace. `make repro` rebuilds everything, `make test` checks everything; both install what they need first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := $(CURDIR)/.venv

export PATH := $(VENV)/bin:$(PATH)# DVC stages call `python`, torch calls `ninja`: both must be the venv's
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export OMP_WAIT_POLICY ?= passive
unexport PYTHONDONTWRITEBYTECODE # or every process here compiles what it imports, 5 s of torch and open_clip

LINTED := benchmarks deltaspace kernels pipeline pretrain setup.py stages tests

.PHONY: install repro test test-quick lint format ui bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: .venv/.ok ## make .venv from the hashed lock (does nothing when it is up to date)

.venv/.ok: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	.venv/bin/python -m compileall -q $(LINTED) # these three lines compile, so that no command has to
	.venv/bin/python -c 'import diffusers, dvc.cli, mlflow, open_clip, sqlalchemy, deltaspace.cli.app'
	.venv/bin/python -c 'from kernels import dispatch; dispatch.describe()'
	touch $@

repro: install ## run every stage whose inputs changed: pictures, metrics and pages in reports/
	@python -m stages._repro

test: install ## the whole test suite, in two processes
	python -m pytest -q -n 2 --dist loadfile

test-quick: install ## the tests that run no workflow and no training
	python -m pytest -q -n 2 --dist loadfile -m 'not slow and not long'

lint: install ## style, formatting, types
	ruff check $(LINTED)
	ruff format --check $(LINTED)
	pyright

format: install ## rewrite the code in the agreed style
	ruff check --fix $(LINTED)
	ruff format $(LINTED)

ui: install ## the runs side by side in MLflow, http://127.0.0.1:5000
	mlflow ui --workers 1 --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

bench: install ## what published code, plain PyTorch and this repository cost here, side by side: reports/bench.json
	python -m benchmarks

clean: ## remove what can be rebuilt: unfinished work, caches, the venv (data/, reports/ and mlflow.db stay)
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find $(LINTED) -name __pycache__ -type d -prune -exec rm -rf {} +
