# Everything a developer types. Each target makes the environment it needs first, and installs again only when
# pyproject.toml or constraints.txt changed. Works with GNU make 3.81, the one that macOS ships.
#
#   make test ARGS="-k quota -x"        more arguments for the command behind a target
#   make test PYTHON=python3.12         another interpreter, for a new environment
#   make test VENV=/elsewhere           another place for the environment

VENV ?= .venv
ARGS ?=
BENCH_DATA ?= ../shared/data

# Absent in a checkout of one's own that follows the newest releases: then nothing is pinned.
CONSTRAINTS := $(wildcard constraints.txt)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))
DEV := $(VENV)/.headgate-dev-installed
BENCH := $(VENV)/.headgate-bench-installed
# A stamp says nothing once the Python under it was upgraded away, as Homebrew does.
AGAIN := $(shell test -x "$(VENV)/bin/python" || echo FORCE)

.DEFAULT_GOAL := help
.PHONY: help run test lint types bench clients fuzz clean FORCE

help:
	@echo "make run      a fleet of agents works through the gateway under limits, and ends with a report"
	@echo "make test     the test suite"
	@echo "make lint     style and format"
	@echo "make types    strict type check"
	@echo "make bench    Headgate beside its rivals, with figures"
	@echo "make clients  real agents and client libraries, for tests that are skipped without them"
	@echo "make fuzz     bytes that nobody meant, against all that reads some, for minutes"
	@echo "make clean    removes the environment and all caches; recorded runs stay"

run: $(DEV)
	$(VENV)/bin/headgate run --demo $(ARGS)

test: $(DEV)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(DEV)
	$(VENV)/bin/python -m ruff check $(ARGS) .
	$(VENV)/bin/python -m ruff format --check .

types: $(DEV)
	$(VENV)/bin/python -m mypy $(ARGS)

# Real agents and client libraries, pinned, for the tests that are skipped without them.
clients: $(DEV)
	$(VENV)/bin/python -m venv .clients/py
	.clients/py/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	npm install --no-fund --no-audit --prefix .clients $$($(VENV)/bin/python tests/clients/pinned.py)

# What it installs is of no use to anybody else: an environment of its own. What does not install here is skipped, loudly.
FUZZ_INPUTS ?= 100000
fuzz: $(DEV)
	$(VENV)/bin/python -m venv .fuzz
	.fuzz/bin/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) --editable .
	-.fuzz/bin/python -m pip install --quiet --requirement fuzz/requirements.txt
	nice .fuzz/bin/python -m fuzz --inputs $(FUZZ_INPUTS) $(ARGS)
	for target in events meter decoder body headers parameters; do \
	  nice .fuzz/bin/python -m fuzz $$target --atheris --inputs $(FUZZ_INPUTS) || exit 1; done
	nice .fuzz/bin/python -m fuzz.control_api

bench: $(BENCH)
	$(VENV)/bin/python -m benchmarks all --data $(BENCH_DATA) $(ARGS)

# Only an environment that make itself could have made is removed, whatever VENV says.
clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate counts only when it runs, is new enough and can make an environment: version managers leave commands on
# the path that do none of it, and Debian splits venv from Python. An environment that works is kept; one whose Python
# has gone, or whose making was interrupted, is made afresh; a folder that is no environment is never cleared.
$(DEV): pyproject.toml $(CONSTRAINTS) $(AGAIN)
	@if "$(VENV)/bin/python" -c 'import pip' 2>/dev/null; then exit 0; fi; \
	too_bare=; \
	for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' \
	    2>/dev/null) || continue; \
	  if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "Making $(VENV) with $$candidate ($$version)"; \
	    clear=; if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; fi; \
	    exec "$$candidate" -m venv $$clear "$(VENV)"; \
	  fi; \
	  too_bare="$$too_bare $$version"; \
	done; \
	if [ -n "$$too_bare" ]; then \
	  set -- $$too_bare; \
	  echo "Python $$1 is here, but its venv module is not. Install it and try again:" >&2; \
	  echo "  Debian, Ubuntu:  sudo apt-get install python$$1-venv" >&2; \
	  echo "  Fedora:          sudo dnf install python3-pip" >&2; \
	else \
	  echo "Headgate needs Python 3.11 or newer, and none was found. Install it and try again:" >&2; \
	  echo "  Debian, Ubuntu:  sudo apt-get install python3 python3-venv" >&2; \
	  echo "  macOS:           brew install python@3.13" >&2; \
	  echo "  anywhere:        https://www.python.org/downloads/" >&2; \
	  echo "or name one:       make PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1
	@echo "Installing Headgate and its tools into $(VENV)"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	@echo "Installing the rivals of the benchmarks into $(VENV)"
	@$(INSTALL) --editable '.[bench]'
	@touch $@
