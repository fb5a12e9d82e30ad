# make quickstart   set up .venv, distil scikit-learn's digits into ten images (minutes on two CPU cores)
# make test         set up .venv, run the whole test suite, offline
# make test-fast    the tests that start no processes and take no seconds
# make hub          serve a Hub on this machine, to try a push without an account
# make lint         ruff, and mypy over the package

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8765
# Two workers, each with whole files, in the order of tests/conftest.py: long ones first.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast hub lint clean

quickstart: $(BIN)/.installed
	$(BIN)/hf-distill tesla

test: $(BIN)/.installed
	$(PYTEST)

test-fast: $(BIN)/.installed
	$(PYTEST) -m "not slow"

hub: $(BIN)/.installed
	$(BIN)/python -m tests.helpers.hub_server --folder outputs/hub --port $(PORT)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv installs in seconds what takes pip minutes; where it is not to be had, pip does.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]' \
		|| $(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs build dist *.egg-info
