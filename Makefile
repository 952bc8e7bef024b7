# Each target makes the environments it needs; `make help` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test unit integration mutation-test chaos planted torture bench bench-check check lint format policy pictures local local-down shell build deploy lock clean
MAKEFLAGS += --no-print-directory

# Nothing is written outside this folder, except packages into their caches.
export SAM_CLI_TELEMETRY := 0
export __SAM_CLI_APP_DIR := $(CURDIR)/.local/sam
export UV_PYTHON_DOWNLOADS := never
# Some shells have it; without compiled modules, the tests start some seconds later.
unexport PYTHONDONTWRITEBYTECODE

# The interpreter itself: a version manager's python3.13 (pyenv, asdf) depends on the folder it is called in.
FOUND := $(shell python3.13 -E -c 'import sys; print(sys.executable)' 2>/dev/null)
PYTHON = $(or $(FOUND),$(error Python 3.13 is needed, and no python3.13 runs here: install it, then try again))
SAM = PATH="$$(dirname "$(PYTHON)"):$$PATH" .venv-sam/bin/sam
UV = .venv/bin/uv
RUN = .venv/bin/python -m

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

demo:  ## Deploy on this machine, send and receive messages, say where to look
	@+$(MAKE) --silent $(PARALLEL) $(LOCAL)
	@$(RUN) local demo

local:  ## Leave the stack running on this machine
	@+$(MAKE) --silent $(PARALLEL) $(LOCAL)
	@$(RUN) local up

shell: .venv-aws/synced  ## Open a shell in which the documentation's commands speak to the stack on this machine
	@[ -e .local/env ] || { echo "No stack runs here: start one with 'make local'." >&2; exit 1; }
	@bash --rcfile local/bashrc -i; true

local-down: .venv/synced  ## End the stack on this machine
	@$(RUN) local down

test:  ## Run all tests, with coverage
	@+$(MAKE) --silent $(PARALLEL) $(TESTS)
	@$(RUN) $(QUICK) --cov --cov-report=term
	@$(RUN) $(PYTEST) 4 -m "exhaustive or integration" tests

unit:  ## Run the tests that need no stack, but the exhaustive ones
	@+$(MAKE) --silent $(PARALLEL) $(LINT)
	@$(RUN) $(QUICK)

integration:  ## Run the tests on the stack on this machine
	@+$(MAKE) --silent $(PARALLEL) $(TESTS)
	@$(RUN) $(PYTEST) 4 tests/integration

mutation-test: .venv/synced  ## Plant bugs in a copy, and check that the test that each names fails
	@$(RUN) tests.mutation

chaos:  ## Send thousands of messages while everything fails, and check the results (SHORT=1: hundreds; SEED=7: repeat one)
	@+$(MAKE) --silent $(PARALLEL) $(LOCAL)
	@$(RUN) tests.chaos $(if $(SHORT),--short) $(if $(SEED),--seed $(SEED))

# The old names of two targets, for one release.
planted: mutation-test
torture: chaos

bench:  ## Measure everything, beside what users would write instead: a table, plots, bench/results (ONLY=cold: one group)
	@+$(MAKE) --silent $(PARALLEL) $(BENCH) .venv-bench/synced
	@$(RUN) bench $(or $(ONLY),all)

bench-check:  ## Measure what the budgets need, and fail beyond them
	@+$(MAKE) --silent $(PARALLEL) $(BENCH)
	@$(RUN) bench check

check:  ## Run all that must pass before a change lands: lint, test, mutation-test, chaos, bench-check
	@.ci/run

lint:  ## Check code, types, template, lock files
	@+$(MAKE) --silent $(PARALLEL) $(LINT)
	@.venv/bin/python .ci/lint.py

format: .venv/synced  ## Format the code, fix what can be fixed
	@.venv/bin/ruff check --fix-only --quiet
	@.venv/bin/ruff format

policy:  ## Write examples/deployer-policy.json anew, from the template
	@+$(MAKE) --silent $(PARALLEL) $(LINT)
	@$(RUN) local.rights

build: .venv-sam/synced  ## Build the functions and the layer
	@$(SAM) build

deploy: build  ## Deploy to AWS, asking once whether the changes may be made
	@$(SAM) deploy

pictures:  ## Draw the documentation's pictures anew, the terminal's from a run of the demo
	@+$(MAKE) --silent $(PARALLEL) $(LOCAL)
	@.venv/bin/python .ci/pictures.py
	@.venv/bin/python .ci/terminal.py

lock: .venv/synced  ## Write the lock files anew (UPGRADE=1: with the newest versions)
	@mkdir -p .local
	@for file in $(LOCKS); do \
		cp "$$file" .local/lock.txt 2>/dev/null || rm -f .local/lock.txt; \
		$(COMPILE) --output-file .local/lock.txt "$${file%.txt}.in" || exit; \
		cmp -s .local/lock.txt "$$file" || { cp .local/lock.txt "$$file" && echo "$$file changed"; }; \
		rm .local/lock.txt; \
	done

clean:  ## End the stack, delete everything that these targets made
	@[ ! -e .local/stack.json ] || $(MAKE) local-down
	@rm -rf .venv .venv-* .local .aws-sam bench/results .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

# ---------------------------------------------------------------- environments
# One for each set of packages whose pins clash with another's, filled when its lock file changes. pip installs only
# uv, which fills them in seconds.

LINT = .venv/synced .venv-sam/synced .venv-lint/synced
LOCAL = .venv/synced .venv-sam/synced .venv-ministack/synced .venv-lambda/synced
TESTS = $(LOCAL) .venv-aws/synced .venv-lint/synced .venv-oldest/synced
BENCH = $(LOCAL)
# More processes than two cores need, since tests wait for servers. Each that runs integration tests has a stack.
# Not among pytest's own options: to start processes takes longer than one test.
PYTEST = pytest --no-header --numprocesses
QUICK = $(PYTEST) 3 -m "not exhaustive" tests/unit tests/template
PARALLEL = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j4)
# In this order: dev is bound to the versions of uv and of the layer.
LOCKS = requirements/uv.txt layers/twilio/requirements.txt \
	$(patsubst %.in,%.txt,$(filter-out requirements/uv.in,$(wildcard requirements/*.in) $(wildcard bench/baselines/*/*.in)))
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header $(if $(UPGRADE),--upgrade)

# An environment whose interpreter is gone is made anew.
$(shell for env in .venv*; do [ -x "$$env/bin/python" ] || rm -f "$$env/synced" "$$env/bin/uv"; done)

.venv/bin/uv: requirements/uv.txt
	@echo "Making .venv"
	@"$(PYTHON)" -E -c 'import pip' 2>/dev/null || { echo "pip is needed: run 'python3.13 -m ensurepip', then try again." >&2; exit 1; }
	@"$(PYTHON)" -E -m venv --clear --without-pip .venv
	@PIP_REQUIRE_VIRTUALENV=0 PIP_USER=0 "$(PYTHON)" -E -m pip --python .venv/bin/python install --quiet --quiet \
		--require-hashes --only-binary :all: --requirement requirements/uv.txt
	@touch $@

# The packages that each run of the tests loads, and Lambda's runtime, are compiled; the others' compile themselves as
# they are used, unless PYTHONDONTWRITEBYTECODE is set.
.venv/synced: .venv/bin/uv requirements/dev.txt layers/twilio/requirements.txt
	@echo "Filling .venv"
	@$(UV) pip sync --quiet --python .venv --require-hashes --compile-bytecode requirements/dev.txt layers/twilio/requirements.txt
	@touch $@

.venv-%/synced: requirements/%.txt .venv/bin/uv
	@echo "Making .venv-$*"
	@$(UV) venv --quiet --allow-existing --relocatable --python "$(PYTHON)" .venv-$*
	@$(UV) pip sync --quiet --python .venv-$* --require-hashes $(if $(filter lambda,$*),--compile-bytecode) $<
	@touch $@
