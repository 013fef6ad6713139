# `make demo` and `make test` do all their own set-up, in .venv, with nothing but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Distributions of their own; tests/plugins is for tests only.
LOCAL := sites/synthetic sites/heart tests/plugins
INSTALLED := $(VENV)/.installed
WITH_RAY := $(VENV)/.installed-ray
ARGS ?=

# One thread for a worker's tensor library is the product's default too; results do not depend on the machine.
export OMP_NUM_THREADS ?= 1

.DELETE_ON_ERROR:
.PHONY: demo test lint types unit bench clean docs ray

demo: $(INSTALLED)  ## three hospitals on this machine, five rounds, a report for each (ARGS="--study heart")
	$(BIN)/fedhealth demo $(ARGS)

test: lint types unit  ## everything that must hold before a change is merged

lint: $(INSTALLED)  ## style, formatting, and the rule that imports go down only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

# Two cores: a file goes to whichever of two pytests is free, in the order of the folders. Files of tests/processes come
# before those of tests/unit, so that short ones are left for the end. A federation mostly waits for its processes.
unit: $(INSTALLED)  ## the whole default test suite, or a part (ARGS="tests/unit/gate")
ifeq ($(strip $(ARGS)),)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
else
	$(BIN)/pytest $(ARGS)
endif

bench: $(INSTALLED)  ## every benchmark in its quick form
	set -e; for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" --quick $(ARGS); done

ray: $(WITH_RAY)  ## install Ray (74 MB, on no other target's list), and run the tests that need it
	$(BIN)/pytest tests/processes/test_ray_simulation.py tests/flower_contract/test_ray.py

docs: $(INSTALLED)  ## write the generated pages of docs/reference
	$(BIN)/python docs/generate_reference.py docs/reference

clean:  ## caches and build products; the environment stays (rm -r .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find fedhealth strategies sites tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or say make PYTHON=/its/path" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(WITH_RAY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray]"
	@touch $@

# Editable, so that a change in the tree needs no new installation; a change of a pyproject.toml does.
$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt $(LOCAL:%=%/pyproject.toml)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[dev]" $(LOCAL:%=-e ./%)
	$(BIN)/python -m compileall -q fedhealth strategies $(LOCAL)
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib/python3.11/site-packages || true
	@touch $@
