# make demo    install into .venv, then write four videos and a contact sheet to demo/
# make test    install, then run the tests (the slow ones are left out; all of them: make test PYTEST_ARGS="-m ''")
# make floors  install the oldest versions that are allowed beside it, and run the tests that load, save and train with them
# make test-ray  install ray beside it, and run the tests that need it
# make lint    ruff, ruff format, mypy
# make docs    build the documentation into site/, strictly
# make clean   remove what these targets made
#
# VENV=DIR              another virtual environment (made if it is not there)
# PYTHON=python3.12     another interpreter to make it with
# TORCH_INDEX=URL       another index for torch alone. A machine without a GPU needs only the small CPU build:
#                       make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 2>/dev/null || command -v python3)
TORCH_INDEX ?=
PYTEST_ARGS ?=

RAY := $(VENV)-ray
FLOORS := $(VENV)-floors
FLOORS_TESTS := tests/integration/test_default_model.py tests/pipelines/test_loading.py tests/training/test_lora.py
BIN := $(VENV)/bin
STAMP := $(VENV)/.cmd-video-installed
DOCS_STAMP := $(VENV)/.cmd-video-docs-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ray floors lint docs clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# torch goes first and alone, so that TORCH_INDEX decides its build and nothing else's.
$(STAMP): pyproject.toml constraints.txt packages/cmd-video-sprites/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)" -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) -c constraints.txt -e packages/cmd-video-sprites -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/cmd-video generate --prompts-file examples/demo_prompts.txt -o demo --contact-sheet --scale 4

test: $(STAMP)
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 $(PYTEST_ARGS)

# A second environment finds in the first one what it lacks itself.
define second_environment
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')/others.pth"
endef

test-ray: $(STAMP)
	$(call second_environment,$(RAY))
	$(RAY)/bin/python -m pip install --disable-pip-version-check "$$(grep -o 'ray>=[0-9.]*' pyproject.toml)"
	$(RAY)/bin/python -m pytest -q -p no:cacheprovider tests/training/test_ray_encoding.py

floors: $(STAMP)
	$(call second_environment,$(FLOORS))
	$(FLOORS)/bin/python -m pip install --disable-pip-version-check --no-deps -r floors.txt
	$(FLOORS)/bin/python -m pytest -q -p no:cacheprovider $(FLOORS_TESTS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(DOCS_STAMP): $(STAMP)
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

docs: $(DOCS_STAMP)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-floors .venv-ray demo site build dist src/*.egg-info packages/*/build packages/*/src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
