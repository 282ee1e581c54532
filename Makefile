# Every target makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
# Most of a test's time is compilation, on one core: two workers, a file to a worker.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow test-nightly lint format clean

demo: $(BIN)/.installed
	$(BIN)/jaxunlearn demo --out $(OUT)

test: $(BIN)/.installed-dev
	$(PYTEST) -m "not slow and not nightly"

test-slow: $(BIN)/.installed-dev
	$(PYTEST) -m slow

test-nightly: $(BIN)/.installed-dev
	$(PYTEST) -m nightly

lint: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(BIN)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(BIN)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,oracle]"
	touch $@ $(BIN)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
