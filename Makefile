# `make help` lists the targets. Every target runs the set-up it needs.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash

PYTHON ?= python3
RECIPE ?= recipes/smollm2.yaml
# A folder of a run; by default that of the recipe.
RUN ?= $(RECIPE)
HUB_USER ?=
# Further options of `slm-judge push`, e.g. PUSH="--private --dry-run".
PUSH ?=
# A machine of the Hub that does it all, e.g. JOB=a10g-large (`slm-judge job`), and its options.
JOB ?=
JOB_OPTIONS ?=
ifneq ($(JOB),)
ifneq ($(filter-out --private,$(PUSH)),)
$(error A job takes PUSH="--private" alone, not $(filter-out --private,$(PUSH)); leave it out, or JOB)
endif
ifneq ($(RUN),$(RECIPE))
$(error A job makes its own run from RECIPE; leave out RUN=$(RUN), or JOB)
endif
endif
# Further options for pip, e.g. the index of PyTorch's CPU builds.
PIP_OPTIONS ?=

# PyTorch comes first, so that no other package chooses its build: with a GPU the newest, without
# one a release whose CPU build is installed where the package index or PIP_OPTIONS offers it.
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.8,torch==2.13.0)

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo train export verify push lint format test test-gpu wheel bench bench-gpu clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## Create .venv with everything in it (compiles llama.cpp the first time, 5 to 10 minutes)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or later is needed: make setup PYTHON=python3.12"; exit 2; }
	@command -v c++ > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null \
	  || { echo "error: llama.cpp needs a C++ compiler (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install $(PIP_OPTIONS) "$(TORCH)"
	@echo "Next come slm-judge and what it needs; llama.cpp is compiled the first time: 5 to 10 minutes."
	$(BIN)/pip install $(PIP_OPTIONS) --editable '.[dev]'
	@touch $@
	@echo "Ready: .venv/bin/slm-judge. Try make demo, make test."

demo: $(READY) ## The whole job on the shipped sample: train, export, verify, annotate, compare
	$(BIN)/slm-judge train recipes/smollm2.yaml --resume
	$(BIN)/slm-judge export runs/demo
	$(BIN)/slm-judge annotate samples/new-messages.csv --model runs/demo/gguf \
	  --output runs/demo/annotations.csv --overwrite
	$(BIN)/slm-judge verify runs/demo
	$(BIN)/slm-judge baselines recipes/smollm2.yaml --zero-shot smollm2

train: $(READY) ## Fine-tune a judge: make train RECIPE=recipes/mine.yaml (goes on where it stopped)
	$(BIN)/slm-judge $(if $(JOB),job $(RECIPE) --flavor $(JOB) $(if $(HUB_USER),--user $(HUB_USER)) $(PUSH) $(JOB_OPTIONS),train $(RECIPE) --resume)

export: $(READY) ## Merge, bitsandbytes 4-bit and GGUF files of a run
	$(BIN)/slm-judge export $(RUN)

verify: export ## Run the exported files on held-out items
	$(BIN)/slm-judge verify $(RUN)

push: $(if $(JOB),train,verify) ## Push a run to the Hub: make train push RECIPE=recipes/mine.yaml HUB_USER=me (JOB=a10g-large: on the Hub)
	$(if $(JOB),@echo "The job above has pushed the judge.",$(BIN)/slm-judge push $(RUN) $(if $(HUB_USER),--user $(HUB_USER)) $(PUSH))

lint: $(READY) ## Check style, types, and which room of the house imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/house .
	PYTHONPATH=build/house $(BIN)/lint-imports --no-cache

format: $(READY) ## Mend what the style checker can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) ## The whole suite, 15 to 35 minutes on 2 cores (all but what is marked slow, gpu or network)
	$(BIN)/pytest --numprocesses $(or $(WORKERS),2) --dist loadfile

test-gpu: $(READY) ## What needs a CUDA device
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
	  || { echo "error: PyTorch finds no CUDA device here: make test runs everything else"; exit 2; }
	$(BIN)/pytest -m gpu

wheel: $(READY) ## The package as a file that pip installs anywhere: dist/slm_judge-*.whl
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

bench: $(READY) ## Figures: real annotations (TABLES="popquorn convabuse ...", docs/results.md), speed
	$(BIN)/python -m benchmarks.study $(or $(TABLES),popquorn)
	$(BIN)/python benchmarks/throughput.py --data goemotions answer-quality

bench-gpu: $(READY) ## Figures of a GPU, as much as fits: speed and memory of both stages, determinism
	$(BIN)/python benchmarks/gpu.py runs/gpu --minutes $(or $(MINUTES),60)

clean: ## Remove what the tools left, but no runs and no environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
