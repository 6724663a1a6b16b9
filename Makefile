PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOWS := tests/flows tests/runtime tests/config
KERNELS := $(wildcard sentisynth/models/*.h sentisynth/models/*.cpp)

.PHONY: install demo check test test-flows test-parts test-slow test-chaos test-gpu chaos audit clean

install: $(STAMP)

# of a version that pyproject.toml asks for, with pip: what is left of a venv that failed has none
USABLE = 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'

# pip compiles one file after another, longer than all else takes; some files are no Python
$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	$(BIN)/python -c $(USABLE) 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -c $(USABLE) || { echo "$(PYTHON) is no Python 3.11 to 3.13: name one, PYTHON=python3.12 make"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

demo: install
	$(BIN)/sentisynth run quickstart

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/pytest tests/test_layers.py

# two halves at once: most of the first wait for processes of Ray's to start
test: install
	@echo "both halves of the tests at once, some ten minutes on two cores; each tells when it is done"
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-flows test-parts

test-flows: install
	$(BIN)/pytest $(FLOWS)

test-parts: install
	$(BIN)/pytest $(FLOWS:%=--ignore=%) tests

test-slow: install
	$(BIN)/pytest -m slow

test-chaos: install
	$(BIN)/pytest -m chaos

test-gpu: install
	$(BIN)/pytest -m gpu

chaos: install
	$(BIN)/python benchmarks/chaos.py --kills 200

# advisories on the pinned versions; needs the index
audit: install
	$(BIN)/python -m venv .audit
	.audit/bin/pip install --quiet pip-audit
	.audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) .audit build dist *.egg-info sentisynth_kernels.*.so
