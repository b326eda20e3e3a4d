# Two commands: `make run` and `make test`. The rest is in their service.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TABLES := --into=docs/criteo.md $(addprefix --into=,$(wildcard docs/results/*.md))
# Compiled programs are kept between runs and tests.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: run test figures benchmark chaos lint venv clean

# Two networks codistil on handwritten digits, next to the baseline.
run: $(VENV)/installed
	$(BIN)/python -m experiments.run --config=imagenet_sync:laptop
	$(BIN)/python -m experiments.run --config=imagenet_codistill:laptop
	$(BIN)/python -m scripts.compare runs/imagenet_sync-laptop \
	  runs/imagenet_codistill-laptop --out=runs/laptop.png

# Processes that tests start import what has been compiled.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

# The paper's figures beside ours, and the tables, from committed rows.
figures: $(VENV)/installed
	for variant in gpu reduced sample narrow laptop; do \
	  $(BIN)/python -m scripts.figures all --variant=$$variant $(TABLES) || \
	    exit 1; done
	$(BIN)/python -m scripts.figures.diagram
	$(BIN)/python -m scripts.scaling --into=docs/scaling.md
	$(BIN)/python -m scripts.benchmark.report --into docs/performance.md \
	  docs/scaling.md docs/criteo.md

# What training costs on this machine, small shapes: eight minutes on two idle
# cores. Without names `scripts.benchmark` measures more, in half an hour.
benchmark: $(VENV)/installed
	$(BIN)/python -m scripts.benchmark step model input exchange memory --rounds=2

# Faults done to real runs, and what came of each: five to ten minutes.
chaos: $(VENV)/installed
	$(BIN)/python -m scripts.chaos

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

venv: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=python3.11 …'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --requirement requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) .cache
