# make demo   trains a sparse autoencoder on the language model that ships with the package, interprets it, steers with it, judges it
# make test   all checks: ruff, mypy, import-linter, the guide's links and references, pytest
# make docs   the guide and the reference as a site, in site/
# make bench  the speed of training beside other libraries, in turn, and beside the last table of this machine (an hour)
# make bench-formats   our files read by other libraries and theirs by ours, in an environment of their own (CPU)

PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
# An advertisement of mkdocs-material.
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo test docs bench bench-formats clean
.DELETE_ON_ERROR:

demo: .venv/.ready
	$(BIN)/lightsae fit --config configs/quickstart.yaml
	@run=$$(ls -dt lightning_logs/version_* | head -n 1); \
	$(BIN)/lightsae interpret --sae $$run/sae --out $$run/dictionary --ablation_windows 1 && \
	$(BIN)/lightsae panel --sae $$run/sae --panel configs/panels/builtin.yaml --out $$run/panel && \
	$(BIN)/lightsae evaluate --sae $$run/sae --out $$run/evaluation.json

test: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: .venv/.ready
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: .venv/.ready
	@$(MAKE) .venv-peers/.ready || echo "make bench: the other libraries could not be installed; their rows stay empty"
	PYTHONPATH=benchmarks $(BIN)/python -m speed

bench-formats: .venv-peers/.ready
	@for script in scripts/layout_fixtures/[a-z]*.py; do \
		echo "$$script"; PYTHONPATH=src:scripts $(PEERS)/python -P $$script --check || exit 1; \
	done

# -P, since a script has the name of the library that it is about.
.venv-peers/.ready: scripts/layout_fixtures/requirements.txt scripts/layout_fixtures/without_dependencies.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check -r scripts/layout_fixtures/requirements.txt
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r scripts/layout_fixtures/without_dependencies.txt
	touch $@

# The versions that were tested; a plain `pip install .` takes the newest that the bounds in pyproject.toml admit.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lightsae needs Python 3.11 or newer: make PYTHON=python3.11 demo")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,umap]'
	touch $@

clean:
	rm -rf .venv .venv-peers build dist site lightning_logs .mypy_cache .ruff_cache .import_linter_cache
