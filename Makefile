# Two commands: `make run` and `make test`. The rest is in their service.
# `make help` shows what follows a target's ##.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TABLES := --into=docs/criteo.md $(addprefix --into=,$(wildcard docs/results/*.md))
# Compiled programs are kept between runs and tests.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help run test figures benchmark chaos lint format venv clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

run: $(VENV)/installed ## two networks codistil on digits, beside the baseline
	$(BIN)/python -m experiments.run --config=imagenet_sync:laptop
	$(BIN)/python -m experiments.run --config=imagenet_codistill:laptop
	$(BIN)/python -m scripts.compare runs/imagenet_sync-laptop \
	  runs/imagenet_codistill-laptop --out=runs/laptop.png

# Processes that tests start import what has been compiled.
test: export PYTHONDONTWRITEBYTECODE =
test: lint ## lint, import contracts, all tests
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

figures: $(VENV)/installed ## redraw figures and tables from committed rows
	$(BIN)/python -m scripts.figures $(TABLES)
	$(BIN)/python -m scripts.figures.diagram
	$(BIN)/python -m scripts.api
	$(BIN)/python -m scripts.scaling --into=docs/scaling.md
	$(BIN)/python -m scripts.benchmark.report --into docs/performance.md \
	  docs/scaling.md docs/criteo.md

# Without names `scripts.benchmark` measures more, in half an hour.
benchmark: $(VENV)/installed ## what training costs here: eight minutes
	$(BIN)/python -m scripts.benchmark step model input exchange memory --rounds=2

chaos: $(VENV)/installed ## faults done to real runs: five to ten minutes
	$(BIN)/python -m scripts.chaos

lint: $(VENV)/installed ## ruff and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(VENV)/installed ## write the code as make lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/installed ## install into .venv; make PYTHON=python3.13 venv

$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=python3.11 …'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --requirement requirements.txt
	@touch $@

clean: ## remove .venv and what is cached
	rm -rf $(VENV) .cache
