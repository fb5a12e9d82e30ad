# make quickstart   set up .venv, distil scikit-learn's digits into ten images (minutes on two CPU cores)
# make test         set up .venv, run the whole test suite, offline
# make test-fast    the tests that start no processes and take no seconds
# make demo-test    the page of `hf-distill demo` in a browser, in an environment of its own, with gradio
# make test-lowest  those of them that touch other packages, with the oldest versions that pyproject.toml allows
# make hub          serve a Hub on this machine, to try a push without an account
# make lint         ruff, and mypy over the package
# make docs         the site, in site/; fails on a broken link, and on what the reference lacks
# make artifacts    build and push what artifacts/project.yaml lists: ORG=me, and ONLY="digits-*" or PLAN=1
# make notebooks    run the notebooks as they are, and keep what they show (minutes)
# make screenshot   docs/images/board.png of the sets in outputs/ (or SETS=...), by chromium

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8765
SETS ?= outputs
# What reads, stores, fetches or builds by other packages.
OTHERS := $(addprefix tests/,data distilled hub importing networks runs training test_api.py test_properties.py)
# Two workers, each with whole files, in the order of tests/conftest.py: long ones first.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-lowest demo-test hub lint docs artifacts notebooks screenshot clean

quickstart: $(BIN)/.installed
	$(BIN)/hf-distill tesla

test: $(BIN)/.installed
	$(PYTEST)

test-fast: $(BIN)/.installed
	$(PYTEST) -m "not slow"

test-lowest: .venv-lowest/bin/.installed
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu" $(OTHERS)

demo-test: .venv-demo/bin/.installed
	HF_HUB_OFFLINE=1 .venv-demo/bin/python -m pytest -q tests/demo

hub: $(BIN)/.installed
	$(BIN)/python -m tests.helpers.hub_server --folder outputs/hub --port $(PORT)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

artifacts: $(if $(ORG),$(BIN)/.installed)
	$(if $(ORG),,$(error whose are they? make artifacts ORG=me, with your name on the Hub))
	$(BIN)/python artifacts/build.py --org $(ORG) $(if $(ONLY),--only $(ONLY:%='%')) $(if $(filter-out 0,$(PLAN)),--plan)

notebooks: $(BIN)/.installed
	$(BIN)/python -m tests.helpers.notebooks $(NOTEBOOKS)

screenshot: $(BIN)/.installed
	$(BIN)/hf-distill board $(SETS) --output_dir outputs/board
	$(BIN)/python -m tests.helpers.browser outputs/board/index.html docs/images/board.png

# uv installs in seconds what takes pip minutes; where it is not to be had, pip does.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
		&& $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]' \
		|| $(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

# The site reads the package's source and imports none of it.
$(BIN)/.docs: $(BIN)/.installed
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[docs]' \
		|| $(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

# Other people's packages in their oldest versions, but for those that only test.
.venv-lowest/bin/.installed: pyproject.toml $(BIN)/.installed
	$(PYTHON) -m venv .venv-lowest
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-lowest/bin/python --resolution lowest-direct -e '.[plots,tensorboard]'
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-lowest/bin/python pytest pytest-xdist hypothesis markdown-it-py jsonschema
	touch $@

.venv-demo/bin/.installed: pyproject.toml $(BIN)/.installed
	$(PYTHON) -m venv .venv-demo
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-demo/bin/python -e '.[demo]' pytest selenium
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-demo outputs site build dist *.egg-info
