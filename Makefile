# Every command makes its own virtual environment from requirements.lock when it is not there yet.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
READY  := $(VENV)/.ready
FRAMEWORKS := $(VENV)/.frameworks
SWEEP := $(VENV)/.sweep
DOCS := $(VENV)/.docs
TRACKERS := $(VENV)/.trackers
SYSTEM := $(VENV)/.system
PYRIGHT := $(VENV)/.pyright
TOOLS := $(VENV)-dist

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-full test-slow test-distributed test-gpu test-system test-frameworks test-sweep test-docs test-trackers test-versions dist lint types types-pyright format bench docs docs-serve clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train ALI-G beside its rivals on real data; prints the table, writes runs/demo/report.html
	@$(BIN)/polyak run recipes/demo.toml --out runs/demo --report

test: $(READY) lint types ## everything that must hold; minutes on two cores
	@$(BIN)/pytest -n auto

coverage: $(READY) ## the same tests with the lines and branches they reach: 97 % at least
	@$(BIN)/pytest -n auto --cov --cov-report=term

test-full: $(READY) ## every method crossed with every backend, type and momentum: `make test` draws from these
	@$(BIN)/pytest -n auto --full

test-slow: $(READY) ## the longer checks: kills at 20 moments, the fault campaign
	@$(BIN)/pytest -m slow

test-distributed: $(READY) ## every method on 2 and 4 processes: DDP, FSDP2, tensor parallelism, checkpoints
	@$(BIN)/pytest -m distributed

test-gpu: $(READY) ## what only a CUDA device can prove
	@$(BIN)/pytest -m gpu

test-frameworks: $(FRAMEWORKS) ## the integrations with the real Lightning, transformers and Accelerate (installs them)
	@$(BIN)/pytest tests/frameworks -m "frameworks and not gpu"

test-sweep: $(SWEEP) ## the search, here and on a two-node Ray cluster (installs Optuna and Ray)
	@$(BIN)/pytest -m sweep

test-docs: $(DOCS) ## the documentation site: it builds without a warning, and holds every name, option and link (installs Sphinx)
	@$(BIN)/pytest -m docs

test-trackers: $(TRACKERS) ## what TensorBoard and MLflow read back (installs them)
	@$(BIN)/pytest -m trackers

test-system: $(SYSTEM) $(DOCS) ## Debian's data sets, and the report and the site in Chromium (installs them, Playwright and Sphinx)
	@scripts/system-packages dataset-fashion-mnist chromium
	@$(BIN)/pytest -m system

test-versions: $(TOOLS)/.ready ## the suite on the oldest and the newest Python and torch; those not installed are skipped
	@PATH="$$(printf '%s:' $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin)$$PATH" $(TOOLS)/bin/nox

dist: $(READY) $(TOOLS)/.ready ## build and check sdist and wheel, and run the wheel with torch alone
	@scripts/dist $(TOOLS) $(VENV)

lint: $(READY) ## ruff
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .

types: $(READY) ## mypy --strict on both packages and on right and wrong calls of the public interface
	@$(BIN)/mypy

types-pyright: $(PYRIGHT) ## the same calls checked by pyright (installs basedpyright, 75 MB)
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(READY) ## let ruff rewrite what it can
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

bench: $(READY) ## the paired benchmarks; prints ratios
	@for script in benchmarks/*_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(DOCS) ## build the documentation site, docs/_build/html/index.html (installs Sphinx)
	@$(BIN)/python docs/site/assemble.py docs/_build/source
	@$(BIN)/sphinx-build -q -W --keep-going docs/_build/source docs/_build/html
	@echo docs/_build/html/index.html

docs-serve: docs ## build it, and serve it at http://localhost:8000
	@$(BIN)/python -m http.server --bind localhost --directory docs/_build/html 8000

clean: ## remove the environment and every cache, never runs/ or results/
	rm -rf $(VENV) $(TOOLS) .nox dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/_build

$(READY): requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) scripts/make-venv $(VENV)
	@touch $@

$(TOOLS)/.ready: requirements-dist.lock
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check -r requirements-dist.lock
	@touch $@

$(FRAMEWORKS): $(READY) requirements-frameworks.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-frameworks.lock
	@touch $@

$(SWEEP): $(READY) requirements-sweep.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-sweep.lock
	@touch $@

$(DOCS): $(READY) requirements-docs.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

$(TRACKERS): $(READY) requirements-trackers.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-trackers.lock
	@touch $@

$(SYSTEM): $(READY) requirements-system.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-system.lock
	@touch $@

$(PYRIGHT): $(READY) requirements-types.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-types.lock
	@touch $@
