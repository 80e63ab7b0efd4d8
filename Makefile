# `make help` lists what there is. Everything runs in .venv, which the first target makes.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# What no quoting mends: PATH is cut at colons, and DVC takes braces in a path for its own.
$(foreach character,: { },$(if $(findstring $(character),$(CURDIR)),$(error retrace: \
	the path $(CURDIR) holds "$(character)", which $(if $(filter :,$(character)),PATH,DVC) cannot \
	take; rename it)))
export PATH := $(CURDIR)/.venv/bin:$(value PATH)
export MLFLOW_DISABLE_TELEMETRY := true
STORE ?= .
export STORE
PORT ?= 5000
READY := .venv/ready

.PHONY: help setup demo run test portability servers cluster sweep faults track ui plots report compare bench screenshots notebook lint constraints

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(READY) ## make .venv with the pinned dependencies

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "retrace: $(PYTHON) is $$($(PYTHON) --version); Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole pipeline offline, on scikit-learn's digits, in demo/
	@python -m retrace demo

run: $(READY) ## the real thing: the pipeline and its report, on the dataset that params.yaml names
	@python -m retrace run

test: $(READY) ## the tests
	python -m pytest --numprocesses 2 --dist loadgroup

servers: $(READY) ## the tests that start PostgreSQL, MLflow's server and a storage (minutes)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,servers]'
	RETRACE_SERVERS=1 python -m pytest tests/tracking/test_servers.py

cluster: $(READY) ## the tests of a Ray cluster on this machine (minutes; needs pip install '.[cluster]')
	RETRACE_CLUSTER=1 python -m pytest tests/execution/test_cluster.py

sweep: $(READY) ## a sweep of params.yaml, by its NAME; RETRACE_WORKERS and RETRACE_ENGINE say where
	@python -m retrace sweep $(NAME)

portability: $(READY) ## the numerical tests and a small pipeline as on other processors (half an hour)
	RETRACE_PORTABILITY=full python -m pytest --numprocesses 2 tests/test_portability.py

faults: $(READY) ## every fault: kills, full disks, hostile files, mutated parameters (an hour)
	RETRACE_FAULTS=full python -m pytest -rA tests/faults tests/pipeline/test_params.py

track: $(READY) ## publish to MLflow what dvc.lock says (STORE=demo for the demo's)
	@cd -- "$$STORE" && python -m retrace mend && python -m stages.track

ui: $(READY) ## the MLflow UI on localhost (STORE=demo for the demo's runs, PORT=5000)
	@python -m retrace ui --store "$$STORE" --port $(PORT)

plots: $(READY) ## dvc plots as one page that works offline: dvc_plots/index.html
	python -m dvc plots show

report: $(READY) ## the report, one page that works offline: metrics/report.html
	@python -m retrace mend
	python -m dvc repro report
	@python -m retrace report

compare: $(READY) ## two Git revisions side by side (A=..., B=...): metrics/compare.html
	@python -m retrace compare $(A) $(B)

bench: $(READY) ## every benchmark, beside what a user would do instead: docs/benchmarks.md
	@for benchmark in benchmarks/bench_*.py; do \
		python -m benchmarks.$$(basename $$benchmark .py) || exit; done
	@python -m benchmarks.table

screenshots: $(READY) ## the README's pictures of pages, by a browser: docs/pictures/
	@python -m docs.screenshots --store "$$STORE"

notebook: $(READY) ## run docs/library.ipynb again
	@python -m docs.notebook

lint: $(READY) ## ruff and mypy; bandit where it is installed
	ruff check .
	ruff format --check .
	mypy
	@if [ -x .venv/bin/bandit ]; then bandit --quiet --recursive --configfile pyproject.toml retrace stages; fi

constraints: $(READY) ## pin everything that is installed now
	.venv/bin/python -m pip freeze --exclude-editable | sed -E 's/^torch @.*|^torch==.*/torch==2.13.0/' > constraints.txt
