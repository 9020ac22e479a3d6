# `make` alone lists the targets.
PY := .venv/bin/python
PYTHON ?= python3
export PYTHON
export PYTHONDONTWRITEBYTECODE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types rules bench bench-compare docs clean lock test-exhaustive mutants \
        test-postgres test-guest smi-plugin fuzz soak chaos

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'

setup: ## make .venv from the lock files
	@./scripts/setup.sh

demo: setup ## set-up, then the whole story in ten steps
	@$(PY) -m cvars demo $(DEMO)

test: setup ## set-up, then the tests (under 5 minutes on 2 cores)
	@$(PY) -m pytest -q -n 2 --dist loadfile $(TESTS)

lint: setup ## ruff and the import layers
	@$(PY) -m ruff check .
	@.venv/bin/lint-imports --no-cache

types: setup ## mypy --strict
	@$(PY) -m mypy

rules: setup ## rule -> tests; fails for a rule without one
	@$(PY) tests/tools/rules.py

bench: setup ## benchmarks as ratios to a floor of the same run; writes bench.json
	@$(PY) -m benchmarks $(BENCH)

test-exhaustive: setup ## the complete versions of sampled tests
	@$(PY) -m pytest -q -n 2 --exhaustive -m exhaustive $(TESTS)

clean: ## remove what set-up and demo made
	@rm -rf .venv cvars-demo cvars-demo-* build dist bench.json artefacts .pytest_cache .mypy_cache .ruff_cache

LATER := bench-compare docs mutants test-postgres test-guest smi-plugin fuzz soak chaos
bench-compare: ## compare two bench.json: not yet
docs: ## build the documentation: not yet
mutants: ## remove checks one at a time, see tests fail: not yet
test-postgres: ## the tests that need PostgreSQL: not yet
test-guest: ## a real OVMF and Linux as the guest: not yet
smi-plugin: ## build the QEMU plugin: not yet
fuzz: ## coverage-guided fuzzing: not yet
soak: ## hours of load: not yet
chaos: ## failures under load: not yet
$(LATER):
	@echo "make $@: not yet"; exit 2
