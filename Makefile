# One word for any chore. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
IN_PARALLEL := -n 2 --dist loadfile
LOCKS := requirements-dev.lock $(wildcard examples/*/requirements.lock)

.PHONY: help setup servers demo test test-fast lint simulate chaos chaos-matrix bench published-clients docs lock clean

help: ## list the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

# The environment is as new as the lock files, or is brought up to date; a second run costs nothing.
.venv/.installed: $(LOCKS) pyproject.toml scripts/setup.sh
	@scripts/setup.sh

setup: .venv/.installed ## build .venv from the lock files (every chore does this first)
	@:

demo: setup ## run the example: documents in, a checked briefing out, one service killed on the way
	@echo "==> running examples/briefing"
	@$(BIN)/python -m compileall -q src
	@exec $(BIN)/python examples/briefing/run.py

servers: ## install the databases and brokers that the tests start (Debian, as root; what is there is left alone)
	@scripts/servers.sh

test: setup servers lint ## lint, then every test
	@echo "==> running every test"
	@exec $(BIN)/python -m pytest -q $(IN_PARALLEL)

test-fast: setup servers ## the tests that are not slow: under a minute
	@echo "==> running the fast tests"
	@exec $(BIN)/python -m pytest -q -m "not slow" $(IN_PARALLEL)

lint: setup ## style, format, types, layers
	@echo "==> checking style (ruff)"
	@$(BIN)/ruff check --quiet --output-format concise .
	@echo "==> checking format (ruff)"
	@$(BIN)/ruff format --check --quiet .
	@echo "==> checking types (mypy)"
	@$(BIN)/mypy --no-error-summary
	@echo "==> checking layers (import-linter)"
	@$(BIN)/lint-imports --no-logo --no-cache

chaos: setup ## kill everything for minutes, then check every task: DURATION_S=60 TASKS=10000 SEED=1
	@echo "==> running chaos for $(or $(DURATION_S),60) s (seed $(or $(SEED),1))"
	@exec $(BIN)/python -m tests.chaos --duration-s $(or $(DURATION_S),60) --tasks $(or $(TASKS),10000) --seed $(or $(SEED),1)

chaos-matrix: setup servers ## chaos on every store and carrier, with servers stopped and networks cut: DURATION_S=60 TASKS=1000 SEED=1
	@echo "==> running chaos for $(or $(DURATION_S),60) s in each cell of the matrix (seed $(or $(SEED),1))"
	@exec $(BIN)/python -m tests.chaos.matrix --duration-s $(or $(DURATION_S),60) --tasks $(or $(TASKS),1000) --seed $(or $(SEED),1)

simulate: setup ## run N further seeds of the simulation (N=100000 FROM=10000 JOBS=1)
	@exec $(BIN)/python -m llama_deploy.testing.simulation --seeds $(or $(N),100000) --from $(or $(FROM),10000) --jobs $(or $(JOBS),1)

published-clients: setup ## install the published clients for the tests that run them (minutes)
	@for version in 0.2.3 0.8.1; do \
	  echo "==> installing llama-deploy $$version"; \
	  $(BIN)/python -m venv .bench/published/$$version; \
	  .bench/published/$$version/bin/pip install -q llama-deploy==$$version; \
	done
	@exec $(BIN)/python -m pytest -q tests/control_plane/http/published

bench: setup ## measure speed, cost and memory; writes benchmarks/results
	@echo "==> running the benchmarks"
	@$(BIN)/python -m compileall -q src
	@exec $(BIN)/python -m benchmarks

docs: setup ## bring the docs' generated pages up to date; run the docs' snippets, follow their links
	@echo "==> writing docs/errors.md, docs/settings.md, docs/openapi.json and docs/deployment.schema.json"
	@$(BIN)/python scripts/errors_page.py
	@$(BIN)/python scripts/settings_page.py
	@$(BIN)/python scripts/openapi_document.py
	@$(BIN)/python scripts/deployment_schema.py
	@echo "==> checking the docs"
	@exec $(BIN)/python -m pytest -q tests/docs

lock: setup ## write the lock files again (UPGRADE=1: with the newest versions allowed)
	@$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

clean: ## remove the environment and everything that the chores make
	rm -rf .venv .tools .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
