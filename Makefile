# The two commands of the README: `make suites` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
# Threads of OpenMP spin while they wait, so two test processes on two cores take turns at wasting them.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: suites test lint types docs wheel clean

suites: .venv/installed
	$(BIN)/python -m pytest suites/ --llm-profile balanced

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m 'not alone'
	$(BIN)/python -m pytest -m alone

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q docs docs/_build/html

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

wheel: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build docs/_build docs/method docs/evaluation docs/reference llm-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
