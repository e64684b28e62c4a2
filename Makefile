# `make` lists what there is. Everything is installed in .venv, once, and again when
# pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INSTALLED := $(VENV)/installed
SEEDS ?= 1000
FIRST ?= 0
SECONDS ?= 1800
INSTALLED_DEV := $(VENV)/installed-dev
INSTALLED_DOCS := $(VENV)/installed-docs
INSTALLED_BENCH := $(VENV)/installed-bench
BENCH_PEERS := .venv-bench-hivemind/installed .venv-bench-torchft/installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos chaos-loopback soak check lint types bench bench-peers bench-exchange bench-losses bench-churn bench-utilisation bench-plan fmt docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## install atoll and what it needs in .venv

demo: $(INSTALLED)  ## train a small model with a host and three peers, in about three minutes
	$(BIN)/atoll demo

test: $(INSTALLED)  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chaos: $(INSTALLED)  ## random faults in virtual time: SEEDS=1000, from FIRST=0 on
	$(BIN)/python benchmarks/chaos.py --seeds $(SEEDS) --first $(FIRST)

chaos-loopback: $(INSTALLED)  ## every fault in every mode with every codec, on real processes (long)
	$(BIN)/python -m pytest -n 2 -m chaos tests/loopback

soak: $(INSTALLED)  ## 16 peers, one of them killed or frozen every 30 s, for SECONDS=1800; writes a report
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS)

check: lint types  ## format, lint, layers, spelling, deploy/, types

lint: $(INSTALLED_DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/shellcheck deploy/slurm.sh .ci/run
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

types: $(INSTALLED_DEV)
	$(BIN)/mypy

bench: $(INSTALLED)  ## time the phases of a round, one line of JSON for each
	$(BIN)/python benchmarks/round.py

bench-peers: $(BENCH_PEERS)  ## install the systems that the exchange is compared with, each alone

bench-exchange: $(INSTALLED_BENCH) bench-peers  ## time one exchange over links of all kinds (as root)
	$(BIN)/python benchmarks/exchange_table.py
	$(BIN)/python benchmarks/planner.py

bench-losses: $(INSTALLED_BENCH)  ## loss at equal tokens for each codec and mode (long)
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/losses_report.py

bench-churn: $(INSTALLED_BENCH)  ## loss when peers come, go, are late, or differ in speed (two hours)
	$(BIN)/python benchmarks/churn.py
	$(BIN)/python benchmarks/churn_report.py

bench-utilisation: $(INSTALLED_BENCH)  ## share of the time that peers behind shaped links train (as root)
	$(BIN)/python benchmarks/utilisation.py
	$(BIN)/python benchmarks/planner.py

bench-plan: $(INSTALLED)  ## hold what `atoll plan` predicts against what was measured
	$(BIN)/python benchmarks/planner.py

fmt: $(INSTALLED_DEV)  ## format, and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(INSTALLED_DOCS)  ## build the documentation as HTML, in docs/_build, and run its examples
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build
	$(BIN)/sphinx-build --fail-on-warning --quiet -b doctest docs docs/_build/doctest

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) .venv-bench-* build dist docs/_build docs/reference demo-run src/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing in $(VENV) (once; takes a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[train,demo,postgres,test]'
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[dev]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) -e '.[docs]'
	@touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	$(PIP) -e '.[bench]'
	@touch $@

# Without constraints.txt: hivemind needs an older numpy than atoll has.
.venv-bench-%/installed: benchmarks/systems/%.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@
