# Everything runs from .venv, made here and pinned by requirements.lock.
#   make test PYTHON=python3.13     another Python (make clean first)
#   make test ARGS="-k raft -x"     more arguments for pytest
#   make test WORKERS=0             one test after the other, in one process (test-long, too)
#   make lab LAB_ARGS=--no-browser  more arguments for JupyterLab

PYTHON ?= python3
ARGS ?=
LAB_ARGS ?=
LOCK_ARGS ?=
SEEDS ?= 0:1000
SITE ?= _site
CLASS ?= class
WORKERS ?= 5

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NOTEBOOK := notebooks/01-three-replicas.ipynb
# The usual user in a container, and JupyterLab would refuse it.
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
OVERRIDES := $(VENV)/share/jupyter/lab/settings/overrides.json

# One word about $(PYTHON): ok, old (before 3.11), bare (cannot make a venv), or nothing at all.
python_is = $(shell $(PYTHON) -c 'import sys; print("old" if sys.version_info < (3, 11) else "ok" if __import__("importlib.util").util.find_spec("ensurepip") else "bare")' 2>/dev/null)

# Under LC_ALL=C Python 3.11 cannot read the path of an editable installation that is not ASCII.
ifneq ($(filter C POSIX,$(LC_ALL)),)
export LC_ALL := C.UTF-8
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab class test test-long soak mutation lint format bench site recordings release-check lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(VENV)/.lab $(OVERRIDES) ## Open the notebooks in JupyterLab (LAB_ARGS=...)
	$(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/$(NOTEBOOK) \
		$(ALLOW_ROOT) $(LAB_ARGS)

class: $(VENV)/.lab ## Make the notebooks of a class, for nbgrader and otter (CLASS=folder)
	$(PY) -m ondisk.lab.classroom make $(CLASS)

test: $(VENV)/.test $(OVERRIDES) ## Run the tests, in some minutes (ARGS=... for pytest)
	$(PY) -m pytest tests/ -n $(WORKERS) $(ARGS)

test-long: $(VENV)/.test $(OVERRIDES) ## Run what repeats: more seeds, rounds and time, faults made on purpose
	$(PY) -m pytest tests/ -n $(WORKERS) --long $(ARGS)

soak: $(VENV)/.test ## Simulate a thousand seeds (SEEDS=...)
	$(PY) -m ondisk.simulation --seeds $(SEEDS)

mutation: $(VENV)/.test ## Try faults that a machine makes (ARGS="--seed 8 --count 100 replica/reads.py")
	$(PY) -m tests.mutation $(ARGS)

lint: $(VENV)/.test ## Check style, types and imports: ruff, mypy, import-linter
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.test ## Format the code and sort the imports
	$(PY) -m ruff check --select I --fix .
	$(PY) -m ruff format .

bench: $(VENV)/.lab ## Run the benchmarks (ARGS=...)
	$(PY) -m benchmarks $(ARGS)

recordings: $(VENV)/.lab ## Record the pages of docs/recordings anew (ARGS=--pages: only the page around them)
	$(PY) docs/recordings/make.py $(ARGS)

release-check: $(VENV)/.release ## Build a release twice, install and try it (ARGS=--quick)
	$(PY) -m tests.release $(ARGS)

site: $(VENV)-site/.made ## Make the site in _site: the book, the notebooks, the API (SITE=folder)
	$(VENV)-site/bin/python -m sphinx -b html -c docs/site -W --keep-going --quiet . $(SITE)

lock: $(VENV)/.uv ## Pin again what pyproject.toml asks (LOCK_ARGS=--upgrade for newer)
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra test \
		--no-annotate --custom-compile-command "make lock" $(LOCK_ARGS) \
		pyproject.toml --output-file requirements.lock

clean: ## Remove the venv, the caches, the builds and the example data
	rm -rf $(VENV) .venv-class .venv-site _site build dist *.egg-info example-data notebooks/example-data
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# The stamps: a step runs again only if what it is made from changed.

$(VENV)/.made:
	$(if $(python_is),,$(error ondisk needs Python 3.11 or newer, and "$(PYTHON)" does not run: say where it is with PYTHON=...))
	$(if $(filter old,$(python_is)),$(error ondisk needs Python 3.11 or newer, and "$(PYTHON)" is older: say where a newer one is with PYTHON=...))
	$(if $(filter bare,$(python_is)),$(error "$(PYTHON)" cannot make a venv, its ensurepip is missing: on Debian or Ubuntu, apt install python3-venv))
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.lab: $(VENV)/.made pyproject.toml requirements.lock
	@echo "Installing ondisk and JupyterLab into $(VENV): a minute or two the first time."
	$(PIP) install --quiet -c requirements.lock -e '.[lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml requirements.lock
	@echo "Installing ondisk, JupyterLab and the test tools into $(VENV): a minute or two the first time."
	$(PIP) install --quiet -c requirements.lock -e '.[test]'
	@touch $(VENV)/.lab $@

$(VENV)/.release: $(VENV)/.test
	$(PIP) install --quiet build twine
	@touch $@

# An environment of its own: what Sphinx needs nobody else does.
$(VENV)-site/.made: $(VENV)/.made pyproject.toml site.lock
	@echo "Installing Sphinx into $(VENV)-site: a minute the first time."
	$(PYTHON) -m venv --clear $(VENV)-site
	$(VENV)-site/bin/python -m pip --disable-pip-version-check install --quiet -c site.lock -e . \
		sphinx myst-nb furo sphinxcontrib-mermaid
	@touch $@

$(VENV)/.uv: $(VENV)/.made
	$(PIP) install --quiet uv
	@touch $@

$(OVERRIDES): binder/overrides.json $(VENV)/.made
	@mkdir -p $(@D)
	@cp binder/overrides.json $@
