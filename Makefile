# Everything that people and CI run. `make` alone lists it.
#
# The first target that needs it builds .venv from a lock file in requirements/, hashes checked;
# a stamp in .venv remembers that, so that the second run starts at once. To use tools that are
# installed elsewhere: make check SETUP= BIN=/path/to/bin

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/dev.stamp
SOAK_SETUP = $(SETUP:dev.stamp=soak.stamp)
UV_VERSION := 0.13.9
FOREMAN := models/foreman/out
# The file that training goes on from: the one that shipped first, as git keeps it.
FOREMAN_START := d817a3cda0fe70d19c4e37febc6ec8098a02f58d
FOREMAN_START_SHA256 := b91171b925b0a6f0a5277b3b528e93aa93ba50e5343e92933ca4841d01f6e3d9
SOAK_S := 3600
SOAK_STREAMS := 64
SOAK_LEDGER_STEPS := 1000000
# Five minutes in all: each of the five fuzzers, and the requests made from the OpenAPI document.
FUZZ_S := 40
OPENAPI_S := 100
SWARM_SEEDS := 10000

# The first Python on the PATH that is new enough; make PYTHON=/path/to/python overrules it.
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Hundreds of processes start here: none has to compile what another has compiled.
export PYTHONDONTWRITEBYTECODE :=
# The tools read the source beside this file, also when the package is installed from elsewhere.
export PYTHONPATH := $(CURDIR)/src:$(CURDIR)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up test check rules types collected compile pure calibrate swarm bench bench-ledger bench-gateway soak bars foreman foreman-more ship lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/up.stamp ## Start a factory on this machine, and print a key and how to use it
	$(BIN)/tokenworks up

test: check pure ## Run make check and every test, and hold each room to its coverage floor
	$(BIN)/python -m pytest -q --numprocesses=auto --dist=worksteal \
		--cov --cov-report=json:.coverage.json
	$(BIN)/python tests/coverage_floor.py .coverage.json

# The quickest and most telling first: the house rules, then the arrows between rooms. With --jobs=2
# the types, which take as long as all the rest, are checked beside it.
check: rules types ## Check house rules, imports between rooms, lint, format and types

rules: $(SETUP)
	$(BIN)/python tests/tidy_rules.py .
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP)
	$(BIN)/mypy

# Compiles tests beside the checks, once for all the processes that then run them. What is wrong
# with one, those say.
collected: $(SETUP)
	@$(BIN)/python -m pytest -qq --collect-only >/dev/null || true

# Coverage does not see into extensions, and tests must meet the sources: make test undoes this.
compile: $(SETUP) ## Compile the brain, the twin and a request's whole way with mypyc
	$(BIN)/python requirements/compiled.py

pure: $(SETUP) ## Undo make compile
	$(BIN)/python requirements/compiled.py --clean

calibrate: $(SETUP) ## Fit the performance model anew to the measured rows in bench/data (minutes)
	$(BIN)/python -m tokenworks.cli.main perf calibrate bench/data/silicon_rows.csv \
		--source "ai-dynamo/aiconfigurator, silicon sample, Apache-2.0" \
		--out src/tokenworks/perf/data/calibration.json.gz

swarm: $(SETUP) ## Run 10,000 small factories (SWARM_SEEDS) in which everything goes wrong
	$(BIN)/python -m tokenworks.cli.main twin swarm --seeds $(SWARM_SEEDS)

bench: $(SETUP) ## Measure a decision, a chunk at the gateway, a ledger event, a twin run; JSON last
	$(BIN)/python bench/decision.py
	$(BIN)/python bench/gateway_stream.py
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.twin

bench-ledger: $(SETUP) ## Measure a ledger of ten million entries: start, invoice, reports, proof
	$(BIN)/python -m bench.ledger_10m

bench-gateway: $(SETUP) ## Measure the gateway's cost and delay against nginx (nginx-light of Debian)
	$(BIN)/python -m bench.gateway

soak: $(SOAK_SETUP) ## Fuzz for 5 minutes, load a factory for an hour (SOAK_S), a million ledger steps
	$(BIN)/python -m bars.fuzz --seconds $(FUZZ_S)
	$(BIN)/python -m bars.openapi --seconds $(OPENAPI_S)
	$(BIN)/python -m bars.load --streams $(SOAK_STREAMS) --seconds $(SOAK_S)
	TOKENWORKS_LEDGER_STEPS=$(SOAK_LEDGER_STEPS) $(BIN)/python -m pytest -q \
		tests/ledger/test_ledger_machine.py tests/live/test_shared_machine.py \
		tests/live/test_lease_world.py

bars: $(SETUP) ## What a release must clear: a loaded factory, and one that is killed again and again
	$(BIN)/python -m bars.load
	$(BIN)/python -m bars.load --streams 256 --twin 10 --output-tokens 2000
	$(BIN)/python -m bars.kill
	$(BIN)/python -m bars.hangup
	$(BIN)/python -m bars.ledger_kill
	$(BIN)/python -m bars.ledger_kill --store postgres
	$(BIN)/python -m bars.ledger_quota
	$(BIN)/python -m bars.ledger_quota --processes 4
	$(BIN)/python -m bars.ledger_quota --store postgres
	$(BIN)/python -m bars.ledger_quota --store postgres --processes 4

foreman: $(VENV)/train.stamp ## Train a model for the package from nothing (hours on two cores)
	mkdir -p $(FOREMAN)
	$(BIN)/python models/foreman/tokenizer.py --out $(FOREMAN)/tokenizer.json
	$(BIN)/python models/foreman/train.py --resume \
		--tokenizer $(FOREMAN)/tokenizer.json --out $(FOREMAN)/foreman.pt
	$(BIN)/python models/foreman/to_gguf.py --checkpoint $(FOREMAN)/foreman.pt \
		--tokenizer $(FOREMAN)/tokenizer.json --out $(FOREMAN)/foreman-q8_0.gguf
	@echo "Ship it, with its scores and its card, by make ship"

more = $(BIN)/python models/foreman/train.py --resume --start $(FOREMAN)/start.gguf \
	--tokenizer $(FOREMAN)/tokenizer.json --out $(FOREMAN)/foreman-more.pt \
	--muon-lr 0.008 --adam-lr 6e-4 --precision float32

foreman-more: $(VENV)/train.stamp ## Train the first shipped model further: how today's came about
	mkdir -p $(FOREMAN)
	git cat-file blob $(FOREMAN_START) > $(FOREMAN)/start.gguf
	$(BIN)/python models/foreman/from_gguf.py --model $(FOREMAN)/start.gguf \
		--sha256 $(FOREMAN_START_SHA256) --tokenizer-out $(FOREMAN)/tokenizer.json
	$(more) --steps 2300 --decay 0.7 --stop 1200
	$(more) --steps 3000 --decay 0.88
	$(BIN)/python models/foreman/to_gguf.py --weights average \
		--checkpoint $(FOREMAN)/foreman-more.pt \
		--tokenizer $(FOREMAN)/tokenizer.json --out $(FOREMAN)/foreman-q8_0.gguf
	@echo "Ship it, with its scores and its card, by make ship"

ship: $(VENV)/train.stamp ## Put the trained model into the package, score it, write its card
	$(BIN)/python models/foreman/ship.py --model $(FOREMAN)/foreman-q8_0.gguf

lock: $(VENV)/bin/python ## Pin the newest versions that pyproject.toml allows, with their hashes
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv==$(UV_VERSION)
	UV=$(VENV)/lock/bin/uv $(BIN)/python requirements/lock.py

clean: ## Remove everything that make has built, .venv too
	rm -rf $(VENV) $(FOREMAN) build dist .fuzz .coverage .coverage.* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Tokenworks needs Python 3.11 or newer: install it," \
		"or name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# install LOCK: what the lock names, then this package in place; neither fetches anything else.
install = $(BIN)/python -m pip install --quiet --require-hashes -r $(1) && \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .

$(VENV)/up.stamp: requirements/up.txt pyproject.toml | $(VENV)/bin/python
	$(call install,requirements/up.txt)
	touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	$(call install,requirements/dev.txt)
	touch $(VENV)/up.stamp $@

$(VENV)/soak.stamp: requirements/soak.txt pyproject.toml | $(VENV)/bin/python
	$(call install,requirements/soak.txt)
	touch $(VENV)/up.stamp $(VENV)/dev.stamp $@

# Not locked: torch differs by accelerator, so its wheel is the machine's choice.
$(VENV)/train.stamp: pyproject.toml | $(VENV)/up.stamp
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[train]'
	touch $@
