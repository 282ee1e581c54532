# Every target makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
# Most of a test's time is compilation, on one core: two workers, a file to a worker.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 12

.PHONY: demo test test-slow test-nightly lint format clean compilers tunix

demo: $(BIN)/.installed
	$(BIN)/jaxunlearn demo --out $(OUT)

test: $(BIN)/.installed-dev
	$(PYTEST) -m "not slow and not nightly"

test-slow: $(BIN)/.installed-dev $(VENV)/compilers $(VENV)/tunix
	$(PYTEST) -m slow

test-nightly: $(BIN)/.installed-dev $(VENV)/compilers
	$(PYTEST) -m nightly

lint: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(BIN)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[evaluate,report]"
	touch $@

$(BIN)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,oracle]"
	touch $@ $(BIN)/.installed

compilers: $(VENV)/compilers

tunix: $(VENV)/tunix

# The compiler of CUDA cards, which needs no card: for tests of what fits them. Not on Python's path.
$(VENV)/compilers: | $(BIN)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		$$($(BIN)/python -c "from jax import __version__ as v; \
		print(f'jax-cuda12-plugin=={v} jax-cuda12-pjrt=={v}')")

# Tunix with what its models import, for the test of its example. Not on Python's path and without
# its other requirements, which would bring older versions of transformers and safetensors.
$(VENV)/tunix: | $(BIN)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		google-tunix google-metrax clu wrapt sentencepiece perfetto

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
