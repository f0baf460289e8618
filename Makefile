# `make run` starts the gateway, `make test` runs every test. Both need only python3 (3.11 or later)
# with venv, and install into .venv. `make test-clients` needs node and npm, too.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter from Python 3.11.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# One resolution for every Python from 3.11 and every platform, with the hash of each file. Extras
# are kept: for a package that is required as `gunicorn[gevent]` and pinned as `gunicorn`, pip looks for
# the newest release and refuses to install it once it is newer than the pinned one.
EXPORT := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-strip-extras --upgrade
LOCK := $(EXPORT) pyproject.toml
ARGS ?=
# Most tests wait for sockets most of the time: two processes for each processor.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 2)
TESTS := pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder --durations=10
# Client libraries want different versions of the same packages: an environment for each lock file.
CLIENT_LOCKS := $(wildcard tests/clients/requirements/*.txt)
CLIENTS := $(CLIENT_LOCKS:tests/clients/requirements/%.txt=.venv-clients/%/.installed) \
	tests/clients/node_modules/.installed

# The same for the gateways of others that `make bench` measures beside this one.
PEER_LOCKS := $(wildcard benchmarks/peers/*.txt)
PEERS := $(PEER_LOCKS:benchmarks/peers/%.txt=.venv-peers/%/.installed) benchmarks/peers/node_modules/.installed

.PHONY: help install run test test-clients clients coverage check format bench bench-check bench-peers prices lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.runtime ## install what the gateway needs, for `.venv/bin/python -m wrapper serve`

run: $(VENV)/.runtime ## install and start the gateway on HOST:PORT (127.0.0.1:8080)
	@exec env WRAPPER_DEMO=1 $(BIN)/python -m wrapper demo-key --check-port \
		--then $(BIN)/gunicorn -c config/gunicorn.py wsgi:app

test: $(VENV)/.dev ## every test; ARGS="-k name" for some
	$(BIN)/python -m $(TESTS) $(ARGS)

test-clients: $(VENV)/.dev ## client libraries and programs talk through the gateway; ARGS="-k name"
	@$(MAKE) --no-print-directory --jobs=4 clients
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --durations=5 tests/clients $(ARGS)

clients: $(CLIENTS)

coverage: $(VENV)/.dev ## what the tests execute, in gunicorn's workers too
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(TESTS) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.dev ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m $(TESTS) $(ARGS)

format: $(VENV)/.dev ## format the code and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## cost and delay beside other relays; ARGS="--quick", ARGS="--against COMMIT"
	PYTHONPATH=tests $(BIN)/python -m benchmarks $(ARGS)

bench-check: $(VENV)/.dev ## whether a short run is worse than benchmarks/results.json
	PYTHONPATH=tests $(BIN)/python -m benchmarks --check $(ARGS)

bench-peers: $(PEERS) ## install LiteLLM and Portkey for make bench; needs node and npm

prices: $(VENV)/.dev ## update config/prices.toml from genai-prices
	$(BIN)/python -m wrapper.cli.prices config/prices.toml

lock: $(VENV)/.dev ## upgrade and export the dependencies in pyproject.toml to requirements*.txt
	$(LOCK) -o requirements.txt
	$(LOCK) --extra fast --excludes requirements.txt -o requirements-fast.txt
	$(LOCK) --extra dev -c requirements.txt -o requirements-dev.txt
	for lock in $(CLIENT_LOCKS) $(PEER_LOCKS); do $(EXPORT) $${lock%.txt}.in -o $$lock || exit; done

clean: ## remove the installed packages and the tools' caches (not data/ and keys)
	rm -rf $(VENV) .venv-clients .venv-peers tests/clients/node_modules benchmarks/peers/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later found; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(VENV) cannot be made; in a directory that is not writable name another one with make VENV=/path/of/a/venv, and files for WRAPPER_KEYS and WRAPPER_STORE" >&2; exit 1; }

# The parser in C is built from source; it is optional.
FAST = $(PIP) install --require-hashes --no-deps -r requirements-fast.txt >/dev/null 2>&1 \
	|| echo "no C compiler or no Python headers: gunicorn's parser in Python is used (works the same, costs more)"

# A stamp is older than a lock file if and only if there is something to install.
$(VENV)/.runtime: requirements.txt requirements-fast.txt | $(BIN)/python
	@echo "installing requirements.txt"
	@$(PIP) install --require-hashes -r requirements.txt
	@$(FAST)
	@touch $@

# The development lock has the runtime packages too, in the same versions.
$(VENV)/.dev: requirements-dev.txt requirements.txt requirements-fast.txt | $(BIN)/python
	@echo "installing requirements-dev.txt"
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@$(FAST)
	@touch $(VENV)/.runtime $@

define INSTALL_APART
@echo "installing $<"
@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
@touch $@
endef

.venv-clients/%/.installed: tests/clients/requirements/%.txt | $(VENV)/.dev
	$(INSTALL_APART)

.venv-peers/%/.installed: benchmarks/peers/%.txt | $(VENV)/.dev
	$(INSTALL_APART)

%/node_modules/.installed: %/package-lock.json
	@echo "installing $<"
	@cd $(<D) && npm ci --silent --no-progress
	@touch $@
