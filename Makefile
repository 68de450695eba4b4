# make demo, make test: each makes .venv on first use. DISTRO=kilted takes the other wheels.
PYTHON ?= python3
DISTRO ?= jazzy
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(DISTRO)

.PHONY: demo test lint soak bench clean

demo: $(READY)
	$(BIN)/mmfuse demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(READY)
	$(BIN)/python -m pytest -m soak

bench: $(READY)
	$(BIN)/mmfuse bench

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(DISTRO),test]'
	touch $@

clean:
	rm -rf $(VENV) build install log
