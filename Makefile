# `make demo` and `make test` set up everything they need in .venv; a second run does not install again.
# PYTHON=python3.12 make … chooses another interpreter (3.11 or newer); TORCH=cpu or TORCH=cuda the build of PyTorch.

PYTHON ?= python3
TORCH ?= auto
VENV := .venv
BIN := $(VENV)/bin
DEMO_EXTRAS := quantize,gguf
EXTRAS := $(DEMO_EXTRAS),lens,docs,dev
READY := $(VENV)/.ready-$(TORCH)
DEMO_READY := $(VENV)/.ready-demo-$(TORCH)
DEMO := runs/demo
INSTALL = @sh scripts/install.sh $(PYTHON) $(VENV)
# uv does not compile what it installs: without bytecode every command would compile PyTorch anew, for 7 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-all real test test-real legacy fuzz lint types docs setup lock clean

demo: $(DEMO_READY)  ## of two tiny chat models, find the cell that lost its refusals, explain it, repair it
	$(BIN)/python -m probes.demo --out $(DEMO)

demo-all: $(DEMO_READY)  ## the same for all four architectures
	$(BIN)/python -m probes.demo --architecture all --out runs/demo-all

real: $(DEMO_READY)  ## a real chat model: SmolLM2-135M, its cells, all probes that take minutes, a report
	$(BIN)/python -m probes.real --out runs/real

test-real: $(READY)  ## the tests of the real model, which `make test` skips (and counts) where it is not in the cache
	$(BIN)/python -c 'from interp.real_model import real_checkpoint; print(real_checkpoint())'
	$(BIN)/python -m pytest -m real

test: lint types  ## lint, types and all tests
	@echo "== tests"
	$(BIN)/python -m pytest

legacy: .venv-legacy/.ready  ## AutoAWQ and AutoGPTQ, which the study used, in an environment of their own

fuzz: $(READY)  ## damage every reader's input ten thousand times
	$(BIN)/python -m tests.fuzz

lint: $(READY)
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	@echo "== types"
	$(BIN)/mypy

docs: $(READY)  ## the documentation as a site, in site/index.html; a warning is an error
	@echo "== docs"
	$(BIN)/python -m zensical build --clean --strict

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (once): PyTorch, and llama.cpp, which is compiled (six minutes on two cores)"
	$(INSTALL) '$(EXTRAS)' $(TORCH)
	@touch $@ $(DEMO_READY)

$(DEMO_READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) for the demo (once): PyTorch, and llama.cpp, which is compiled (six minutes on two cores)"
	$(INSTALL) '$(DEMO_EXTRAS)' $(TORCH)
	@touch $@

.venv-legacy/.ready: constraints-legacy.txt scripts/install_legacy.sh
	@echo "== setting up .venv-legacy (once): PyTorch, transformers 4, AutoAWQ and AutoGPTQ"
	@sh scripts/install_legacy.sh $(PYTHON) .venv-legacy
	@touch $@

lock: $(READY)  ## resolve the newest allowed versions into constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --no-header --no-annotate --python-version 3.11 --all-extras \
		pyproject.toml --output-file constraints.txt
	echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" >> constraints.txt

clean:
	rm -rf $(VENV) .venv-legacy runs site .cache
