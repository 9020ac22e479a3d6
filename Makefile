# `make` alone lists the targets.
PY := .venv/bin/python
PYTHON ?= python3
export PYTHON
# bytecode is kept, but not between the sources
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.venv/pycache

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
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

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

mutants: setup ## remove or change checks one at a time; a test must fail for each (long)
	@$(PY) -m tests.mutants.store
	@$(PY) tests/mutants/variables.py

fuzz: setup ## coverage-guided fuzzing, FUZZ_SECONDS (60) for each target
	@for target in fuzz/fuzz_*.py; do \
	    case $$target in *_common.py) continue;; esac; \
	    echo "$$target"; $(PY) $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	done

test-postgres: setup ## the tests that need PostgreSQL (Debian's package), on a server of their own
	@./scripts/with-postgres.sh $(PY) -m pytest -q -m postgres tests/broker

FUZZ_SECONDS ?= 60
LATER := bench-compare docs test-guest smi-plugin soak chaos
bench-compare: ## compare two bench.json: not yet
docs: ## build the documentation: not yet
test-guest: ## a real OVMF and Linux as the guest: not yet
smi-plugin: ## build the QEMU plugin: not yet
soak: ## hours of load: not yet
chaos: ## failures under load: not yet
$(LATER):
	@echo "make $@: not yet"; exit 2
