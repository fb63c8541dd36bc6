# Kajiya. `make help` lists what there is to make.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: screenshots help up test test-fast test-browser lint format docs bench clean

VENV := .venv
PY := $(VENV)/bin/python
# Bytecode makes every start three to four times as fast; whoever switched it off did not mean this.
unexport PYTHONDONTWRITEBYTECODE
# The interpreter to set up with; any Python 3.11 or newer.
PYTHON ?= python3
ARGS ?=
TESTS ?=

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.ready: pyproject.toml tools/setup.sh tools/overrides.txt
	@PYTHON="$(PYTHON)" bash tools/setup.sh "$(VENV)" run

$(VENV)/.ready-dev: $(VENV)/.ready pyproject.toml
	@PYTHON="$(PYTHON)" bash tools/setup.sh "$(VENV)" dev

up: $(VENV)/.ready  ## set up if needed, then start everything and print a sign-in link (ARGS="--port 9000")
	@exec $(VENV)/bin/kajiya-hub up $(ARGS)

test: $(VENV)/.ready-dev  ## run all tests, the fast ones first (TESTS="tests/unit" for some)
	@$(PY) -m pytest $(or $(TESTS),tests/unit tests/contract tests/docs tests/integration tests/browser)

test-fast: $(VENV)/.ready-dev  ## run the tests that start no processes
	@$(PY) -m pytest tests/unit tests/contract tests/docs

test-browser: $(VENV)/.ready-dev  ## run the tests that drive Chromium
	@$(PY) -m pytest tests/browser

lint: $(VENV)/.ready-dev  ## check style, types, import arrows and the pre-commit configuration
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/pre-commit validate-config
	$(PY) -m pytest -q tests/unit/test_house.py

format: $(VENV)/.ready-dev  ## mend style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.ready-dev  ## write the generated reference pages, then check all documents
	$(PY) -m kajiya_hub.reference
	$(PY) -m kajiya_hub.api.docs
	$(PY) -m pytest -q tests/docs

screenshots: $(VENV)/.ready-dev  ## make the pictures of the README anew, by doing its tutorial
	@$(PY) -m pytest -q tests/browser/test_tutorial.py
	cp build/screenshots/picker.png build/screenshots/progress.png build/screenshots/job-widget.png docs/images/

bench: $(VENV)/.ready-dev  ## measure, each figure as a ratio against what one would use instead
	@$(PY) bench/run.py $(ARGS)

clean:  ## remove what these targets made; data directories stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
