# Every target sets up what it needs: a virtual environment in .venv with the package and its development tools.
VENV := .venv
PYTHON := python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-all faults quality lint style docs cluster bench bench-search golden env

help:
	@echo "make demo     evolve merges of two tiny specialists that ship with the package (a few minutes)"
	@echo "make test     run the tests (minutes)"
	@echo "make test-all run the slow ones too (half an hour): every case, every type of model, transformers' own tests, lm_eval, kills"
	@echo "make faults   kill what works at random moments, for hours, and write benchmarks/pages/reliability.md"
	@echo "make quality  check formatting, lints and types"
	@echo "make style    rewrite the code as the checks want it"
	@echo "make docs     execute the notebooks, build the site of the documentation in build/site, and check every link"
	@echo "make bench    measure time and memory beside mergekit, as pairs (an hour), and write benchmarks/pages/performance.md"
	@echo "make golden   hash all that is computed (a few minutes), to compare it before and after a refactoring"
	@echo "make bench-search  compare the searches with other methods (an hour), and print the table"
	@echo "make cluster  compare searches on Ray clusters with those of one process, while machines die (half an hour)"

env: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: env
	PYTHONPATH=tests/support $(BIN)/python -m local_hub --root evomerge-demo/hub --port 0 --user demo -- $(BIN)/hf-evomerge demo --out evomerge-demo --push-to demo/evolved

test: env
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist worksteal # with byte code, for the processes that tests start

test-all: env
	$(BIN)/pip install --quiet parameterized # for transformers' tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist worksteal -m "" -o norecursedirs=".* build dist"

faults: env
	$(BIN)/python benchmarks/reliability.py --write

quality: lint
	$(BIN)/pytest tests/test_imports.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd space_app && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache *.py

style: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/python website/notebooks.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	$(BIN)/pytest tests/website/test_site_search.py

bench: env
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/performance.py --write

golden: env
	$(BIN)/python benchmarks/golden run --out golden.json

bench-search: env
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/search run
	$(BIN)/python benchmarks/search table

cluster: env
	$(BIN)/python benchmarks/ray_cluster.py
	$(BIN)/python benchmarks/simulated_cluster.py --plot benchmarks/pages/images/cluster.png
