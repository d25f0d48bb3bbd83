# These do everything on a fresh machine: `make demo`, `make demo-style`, `make test` and `make test-long`. All set up .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHAO ?= torchao==0.18.0
BIN := .venv/bin
READY := .venv/.ready
# Files are compiled afterwards, on all cores; pip does it on one.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# One more than there are cores, as some tests wait; four at most, as each takes a gigabyte and more.
PROCESSES = $(shell $(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')

# Every process has one core, and files are compiled once.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations 8

.PHONY: demo demo-style test pytest test-long test-memory lint setup bench clean

demo: setup
	@$(BIN)/mapo demo --out demo

demo-style: setup
	@test -d demo-style/pictures || $(BIN)/mapo mini draw --style cartoon --pictures 50 --out demo-style/pictures
	@$(BIN)/mapo style demo-style/pictures --model mini --eval-prompts mini:test-one --goal cartoon \
		--scorer mini-learned,mini-search --yes --out demo-style/style

test: setup
	@$(MAKE) --no-print-directory -j 2 lint pytest

pytest: setup
	@$(PYTEST) -m "not long"

# Whole roads, several processes, every objective with every family, and the figures of the built-in models.
test-long: setup
	@$(PYTEST) -m long

# Those of 8-bit optimizers too, whose package all other tests do without: it lies in a folder of its own.
test-memory: setup
	@test -d .venv/memory || $(INSTALL) --no-deps --target .venv/memory "$(TORCHAO)"
	@PYTHONPATH=$(CURDIR)/.venv/memory OMP_NUM_THREADS=1 $(BIN)/pytest $$(grep -l torchao tests/train/*.py)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup
	@$(BIN)/python bench/step.py --out bench/results

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mapo needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=…") if sys.version_info < (3, 11) else None'
	@echo "Installing into .venv: $(TORCH), diffusers, transformers and the development tools (once, a few minutes)."
	@$(PYTHON) -m venv .venv
	@$(INSTALL) "$(TORCH)"
	@$(INSTALL) -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null 2>&1 || true
	@touch $(READY)

clean:
	rm -rf .venv demo demo-style work
