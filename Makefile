# Two commands matter: `make up` serves the bundled model, `make test` checks everything.
#
#   make up ARGS="--port 9000 --policy sarathi"    options of `accelgen up`
#   make up TORCH_INDEX=https://...                where to find another build of torch (CPU only, another CUDA)
#   make test JOBS=4                               tests in so many processes (2)
#   make chaos MINUTES=60                          break it in every way for an hour; make reliability writes it up
#   make up PYTHON=python3.12                      which Python makes the environment (3.11 or newer)

PYTHON ?= python3
ARGS ?=
MINUTES ?= 60
JOBS ?= 2
RESULTS := $(sort $(wildcard benchmarks/results/*.jsonl))
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# On a terminal (seen by stderr: stdout is a pipe in here) pip shows what it fetches; in a log it keeps quiet.
QUIET := $$(test -t 2 || echo -qq)
PIP := $(BIN)/python -m pip --disable-pip-version-check $(QUIET)
LOCK_PIP := $(VENV)/lock/bin/python -m pip --disable-pip-version-check $(QUIET)
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

.PHONY: up test test-slow check bench chaos reliability lock install install-dev clean
.DEFAULT_GOAL := up

up: install
	@$(BIN)/accelgen up $(ARGS)

# As many processes as the smallest machine has cores; a file stays in one, since its tests share a server.
test: check
	@$(BIN)/pytest -n $(JOBS) --dist loadfile

# What takes long for what it shows beyond the others.
test-slow: install-dev
	@$(BIN)/pytest -m slow

# import-linter follows neither links nor setuptools' mapping: it gets the packages as one real folder
# and runs there, because it looks in the current folder first.
check: install-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@rm -rf $(VENV)/imports && mkdir $(VENV)/imports && cp -rL typings/accelgen $(VENV)/imports/
	@cd $(VENV)/imports && ../bin/lint-imports --config ../../pyproject.toml --no-cache --no-logo

bench: install-dev
	@$(BIN)/pytest benchmarks
	@$(BIN)/python benchmarks/decisions.py

# The long lane of fault injection; nothing else should run meanwhile. ARGS="--seed 7" repeats a schedule.
chaos: install-dev
	@$(BIN)/accelgen chaos --minutes $(MINUTES) --rows benchmarks/results/chaos-$$(date -I).jsonl $(ARGS)

reliability: install-dev
	@$(BIN)/python -m accelgen.faults.report $(RESULTS) > $(VENV)/reliability.md
	@mv $(VENV)/reliability.md docs/reliability.md

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "AccelGen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one with: make PYTHON=..." >&2; exit 1; }
	@echo "Making the environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# torch first and by itself: an index given for it must not serve anything else.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): about 2 to 5 minutes the first time, longer on a slow network."
	@echo "1 of 2: $(TORCH), the largest part ..."
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@echo "2 of 2: AccelGen and the other packages it needs ..."
	@$(PIP) install -c constraints.txt -e .
	@echo "Installed."
	@touch $@

# The dev group is read by Python itself: `pip install --group` came with pip 25.1.
$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests into $(VENV), about a minute ..."
	@$(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > $(VENV)/dev.txt
	@$(PIP) install -c constraints.txt -r $(VENV)/dev.txt
	@touch $@

# Resolves anew beside the pinned torch and writes what came out; torch itself is moved by hand. Left out: what
# comes with one build of torch only (CUDA libraries), and the build's name ("+cpu").
lock: $(VENV)/.installed-dev
	@rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	@$(LOCK_PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(LOCK_PIP) install $(TORCH) -e '.[gpu]' -r $(VENV)/dev.txt
	@$(LOCK_PIP) freeze --exclude-editable > $(VENV)/frozen.txt
	@{ sed -n '/^#/p' constraints.txt; \
	  sed -E '/^(nvidia-|cuda-|triton|setuptools|pip|wheel)/d; s/\+[a-z0-9.]+$$//' $(VENV)/frozen.txt; \
	  } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt && rm -rf $(VENV)/lock
	@touch $(VENV)/.installed $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) build dist *.egg-info
