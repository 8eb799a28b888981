# `make` lists the targets. Each but `lock` sets up .venv first, from requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
# stages, MLflow and DVC call `python` and each other by name
export PATH := $(CURDIR)/$(BIN):$(PATH)

# two test processes with one thread each: a third makes two cores slower. One process runs a whole file, whose tests share
# fixtures; tests/conftest.py has the longest files start first
PYTEST := OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# columns of `make experiments`: the classifier's main settings and metrics, of hundreds; --md does not cut them off
SHOWN := ^(Experiment|Created|seed|loss|(.*:)?convnext\.(architecture|size|epochs|lr|accuracy|roc_auc|ece))$$

# number of seeds for each row of `make table1` and `make architectures`
SEEDS ?= 1

.PHONY: help setup repro data report table1 architectures check test stress stress-short stress-kill lint bench experiments ui serve demo lock

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: .venv/ready  ## install everything into .venv: some minutes, 7 GB
	@echo "Next: source .venv/bin/activate"

repro: .venv/ready  ## run the whole workflow: data, training, evaluation, figures, promotion, page
	python -m stages.check
	dvc repro
	@echo
	@echo "The results: open reports/index.html in a browser. The runs: make ui. The model as a service: make serve."

data: .venv/ready  ## put your own images in the place of the sample: make data FROM=/path/to/images, with folders named real and fake in it
	@python -m dfganext.data.own "$(FROM)"

# forced, because the page also shows other experiments, which are not among the stage's dependencies
report: .venv/ready  ## bring reports/index.html up to date
	python -m stages.check
	dvc repro audit evaluate baseline robustness external gradcam density
	dvc repro --single-item --force report
	@echo "open reports/index.html"

table1: .venv/ready  ## the paper's Table I with SEEDS=5 seeds per row, then the page
	python -m dfganext.tracking.experiments --seeds $(SEEDS)
	$(MAKE) report

architectures: .venv/ready  ## train other classifiers on the same images, SEEDS=3 each, then the page
	python -m dfganext.tracking.experiments --architectures --seeds $(SEEDS)
	$(MAKE) report

# about two minutes on two cores
check: lint  ## lint, types and the fast tests
	$(PYTEST) -m "not slow"

test: .venv/ready  ## all tests but those marked stress
	$(PYTEST) -m "not stress"

stress-short: .venv/ready  ## reliability: the tests marked stress (kills, full disks, load), in some minutes
	$(PYTEST) -m stress

# an hour or two on two cores
stress: .venv/ready  ## reliability: the tests marked stress, in full length
	python -m pytest -m stress --stress

# about fifteen minutes on two cores
stress-kill: .venv/ready  ## reliability: stages, trainings, promotions and the queue are killed, in full length
	python -m pytest --stress tests/end_to_end/test_kill.py

lint: .venv/ready  ## ruff and mypy
	ruff check
	ruff format --check
	mypy

# about forty minutes on two cores
bench: .venv/ready  ## speed beside other implementations, on an idle machine
	for subject in density resize train_cpu train_gpu engines serve predict score explain decisions repro scale; do python -m benchmarks.$$subject || exit 1; done
	python -m benchmarks.summary

experiments: .venv/ready  ## the experiments as a table, with the classifier's main settings and metrics
	@dvc exp show --md --precision 4 --drop '.*' --keep '$(SHOWN)'

ui: .venv/ready  ## the MLflow UI, at http://127.0.0.1:5000
	@python -m dfganext.tracking.store
	mlflow ui --host 127.0.0.1 --port 5000

serve: .venv/ready  ## the best registered model, at http://127.0.0.1:5001/invocations
	@python -m dfganext.tracking.registry
	MALLOC_ARENA_MAX=$${MALLOC_ARENA_MAX:-1} mlflow models serve -m models:/df-ganext@champion --env-manager local --host 127.0.0.1 --port 5001

demo: .venv/ready  ## a page to drop images on, at http://127.0.0.1:7860
	dfganext demo

# uv installs in under a minute, pip takes over two; with compiled modules every stage starts seconds sooner. DVC's pages of
# plots get the chart libraries, so that they open without a network
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "DF-GANeXt needs Python 3.11.4 or newer, not " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.12 ...")'
	@echo "Installing packages into .venv: some minutes, 7 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@$(BIN)/python -m dfganext.tracking.plots .dvc/plots.html
	@$(BIN)/dvc config --local plots.html_template plots.html
	@touch $@

# after a change of pyproject.toml; versions and hashes, no URLs
lock:  ## write requirements.lock anew, after a change of pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --all-extras --upgrade --quiet pyproject.toml -o requirements.lock
