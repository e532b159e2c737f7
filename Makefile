# Everything runs in .venv, whatever environment is active; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# constraints.txt holds torch where it is: without it pip would take a newer torch with gigabytes of CUDA libraries.
PIP_INSTALL := $(PY) -m pip install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
# Else every process that the tests start would compile the package anew, where the environment forbids bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check format-check lint types contracts format sample-models test-slow test-exhaustive bench bench-adjoint bench-memory bench-store bench-scale bench-startup clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.jacli ## Compute and summarize the Jacobians of the first sample model
	$(VENV)/bin/jacli compute sample_models/digits_cnn.pt sample_models/digits.npy -o demo.h5 --overwrite
	$(VENV)/bin/jacli summarize demo.h5

# One thread a worker: two workers that each take all cores only get in each other's way.  With worksteal, each
# begins with a half of the tests in order, so that what the tests of a module share is made once.
test: $(VENV)/.test ## Run the tests, but not the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --durations 20 -m "not slow and not exhaustive"

test-slow: $(VENV)/.test ## Run the slow tests: memory on files of 2 GB, an array on a real Slurm
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --durations 20 -m slow --timeout 900

test-exhaustive: $(VENV)/.test ## The linear program over every torchvision family, and its rules below autograd (ten minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --durations 20 -m exhaustive --timeout 900

check: format-check lint types contracts test ## Format, lint, types, import contracts, tests

format-check: $(VENV)/.lint
	$(PY) -m ruff format --check .

lint: $(VENV)/.lint
	$(PY) -m ruff check .

types: $(VENV)/.lint
	$(PY) -m mypy

contracts: $(VENV)/.lint
	$(VENV)/bin/lint-imports

format: $(VENV)/.lint ## Format the code and sort its imports
	$(PY) -m ruff check --fix --select I .
	$(PY) -m ruff format .

sample-models: $(VENV)/.test ## Train the sample models again
	$(PY) sample_models/train.py

bench: $(VENV)/.test ## Time jacli against what a PyTorch user could write; refresh benchmarks/RESULTS.md (an hour)
	$(PY) -m benchmarks.compare --markdown benchmarks/RESULTS.md

bench-adjoint: $(VENV)/.test ## Profile the linear program, map by map; refresh benchmarks/RESULTS.md
	$(PY) -m benchmarks.adjoint --markdown benchmarks/RESULTS.md

bench-memory: $(VENV)/.jacli ## Peak memory of one ResNet-18 sample under --memory 1GiB
	$(PY) -m benchmarks.memory

bench-scale: $(VENV)/.jacli ## A thousand shards: seconds and memory of merge, status and summarize; refresh docs/scale.md
	$(PY) -m benchmarks.scale --markdown benchmarks/RESULTS.md --markdown docs/scale.md
	$(PY) -m benchmarks.planning --markdown docs/scale.md

bench-store: $(VENV)/.jacli ## Writing and reading results beside np.save and raw writes
	$(PY) -m benchmarks.store --markdown benchmarks/RESULTS.md

bench-startup: $(VENV)/.jacli ## Time `jacli --help`, and a small run beside a plain script
	$(PY) benchmarks/startup.py

clean: ## Remove what was built, .venv too
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo.h5 demo.h5.part
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files .jacli, .test and .lint stamp what is installed: a second call installs nothing.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'jacli needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo '$(PYTHON) cannot create environments; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.jacli: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1' # the first pip with --group
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.jacli
	$(PIP_INSTALL) --editable . --group $*
	@touch $@
