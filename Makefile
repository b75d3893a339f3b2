# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
RUNTIME := .venv-runtime
BIN := $(VENV)/bin

.PHONY: test demo clean

test: $(VENV)/.test $(RUNTIME)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	ONNXQAT_RUNTIME_PYTHON=$(CURDIR)/$(RUNTIME)/bin/python $(BIN)/pytest -n 2

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
