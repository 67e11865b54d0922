# `make demo` and `make test` set up everything they need in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UI_STORE ?= # empty: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db
DEMO := runs/demo
TEST_JOBS ?= 2 # processes that share the test files

.DEFAULT_GOAL := help
.PHONY: help install demo campaign test lint types docs ui wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# pip, not uv or poetry: pip takes the CPU build of torch where one is offered.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## create .venv with the pinned versions

demo: install ## compare strategies on generated CT phantoms (5 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m alseg.train -m experiment=demo \
	    hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=$(DEMO)/sweep sweep.resume=true
	$(BIN)/python -m alseg.compare $(DEMO)/sweep --output $(DEMO)/comparison
	@echo "see the runs in the MLflow UI: make ui"

campaign: install ## an annotation campaign on phantoms, with a program that annotates (3 minutes on 2 cores)
	OMP_NUM_THREADS=2 $(BIN)/python scripts/campaign.py --folder $(DEMO)_campaign

# Bytecode is kept whatever the environment says: the processes of tests need not compile alseg.
test: install ## run the tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

lint: install ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check types
	$(BIN)/mypy

docs: install ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

ui: install ## open the MLflow charts of the newest runs made here
	$(BIN)/python -m alseg.ui $(UI_STORE)

wheel: install ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove .venv and build outputs; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
