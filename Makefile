# `make help` lists what there is. Everything runs in .venv, which the first target makes.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
STORE ?= .
PORT ?= 5000
READY := .venv/ready

.PHONY: help setup demo run test faults track ui plots bench lint constraints

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(READY) ## make .venv with the pinned dependencies

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "retrace: $(PYTHON) is $$($(PYTHON) --version); Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole pipeline offline, on scikit-learn's digits, in demo/
	@python -m stages.demo

run: $(READY) ## the real thing: dvc repro, on the dataset that params.yaml names
	@python -m stages.mend
	dvc repro

test: $(READY) ## the tests
	python -m pytest --numprocesses 2 --dist loadgroup

faults: $(READY) ## every fault of tests/faults: kills, full disks, hostile files (an hour)
	RETRACE_FAULTS=full python -m pytest -rA tests/faults

track: $(READY) ## publish to MLflow what dvc.lock says (MLFLOW_TRACKING_URI, or the file here)
	python -m stages.track

ui: $(READY) ## the MLflow UI on localhost (STORE=demo for the demo's runs, PORT=5000)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port $(PORT) \
		--workers 1 --backend-store-uri sqlite:///$(STORE)/mlflow.db

plots: $(READY) ## dvc plots as one page that works offline: dvc_plots/index.html
	dvc plots show

report: $(READY) ## tables and pictures: metrics/report/
	dvc repro report

bench: $(READY) ## every benchmark, beside what a user would do instead: docs/benchmarks.md
	@for benchmark in benchmarks/bench_*.py; do \
		python -m benchmarks.$$(basename $$benchmark .py) || exit; done
	@python -m benchmarks.table

lint: $(READY) ## ruff and mypy; bandit where it is installed
	ruff check .
	ruff format --check .
	mypy
	@if command -v bandit >/dev/null; then bandit --quiet --recursive --configfile pyproject.toml stages; fi

constraints: $(READY) ## pin everything that is installed now
	.venv/bin/pip freeze --exclude-editable | sed -E 's/^torch @.*|^torch==.*/torch==2.13.0/' > constraints.txt
