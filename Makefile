# Every target sets up .venv by itself, once; after that it installs again only when
# pyproject.toml has changed. All it needs is make and Python 3.11 or newer:
# `make demo PYTHON=python3.12` if python3 is older.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# A worker takes up to 2.5 GB of memory.
CORES := --numprocesses=auto --maxprocesses=4 --dist=worksteal
# The tests' processes share their compiled modules.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test coverage check bench docs site cards clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(READY) ## summarize three stories into three languages, offline
	$(BIN)/lcm summarize examples/lost_dog.txt examples/das_alte_buch.txt examples/two_brothers.txt \
	  --to French --to Spanish --to German --offline

test: $(READY) ## run the tests, on up to four cores
	$(BIN)/python -m pytest $(CORES)

coverage: $(READY) ## run the tests and report which lines and branches they reach
	$(BIN)/python -m pytest $(CORES) --cov --cov-report=term:skip-covered --cov-report=xml

check: $(READY) ## lint, format, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure the space against sonar-space
	$(BIN)/python benchmarks/space.py

docs: $(READY) ## write the commands' --help into the documentation
	$(BIN)/python docs/update_help.py

site: $(READY) ## build the documentation site into site/
	$(BIN)/mkdocs build --strict

cards: ## write size and sha256 of the bundled files into their cards
	$(PYTHON) checkpoints/update_cards.py

clean: ## remove caches and build products (.venv stays)
	rm -rf build dist site *.egg-info .coverage coverage.xml .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lcm needs Python 3.11 or newer, and this is: $$($(PYTHON) --version 2>&1)"; \
	  echo "if you have a newer one: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Setting up .venv: several GB for PyTorch, some minutes, this once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
