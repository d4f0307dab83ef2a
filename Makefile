# Every command a person or CI needs. A target installs what it needs first, once; `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= python3 python3.13 python3.12 python3.11
CONSTRAINTS ?= constraints.txt
PROFILE ?= pocket
EXPERIMENT ?= experiments/matched/rewards.yaml
SITE ?= launch/slurm/site.yaml
RUN ?=
ARGS ?=
WHEELS ?=
WHEELS_PYTHON ?= 3.12

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup.stamp
TRAIN = $(BIN)/flowrl train configs/$(PROFILE)/$(1).yaml $(if $(RUN),run.name=$(RUN)) $(ARGS)
GPU_PACKAGES := $(CURDIR)/build/gpu-packages
GPU_STAMP := $(GPU_PACKAGES)/.stamp
# With WHEELS a machine's own Python and torch, and beside them what the folder holds; no network, and no environment.
GPU_READY = $(if $(WHEELS),$(GPU_STAMP),$(STAMP))
WHEELS_PATH = PYTHONPATH="$(GPU_PACKAGES)$${PYTHONPATH:+:$$PYTHONPATH}"
GPU_PYTHON = $(if $(WHEELS),$(WHEELS_PATH) $(firstword $(PYTHON)),$(BIN)/python)
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.PHONY: help setup rl-ditreward rl-hpsv3 matched slurm-matched compare report tensorboard pocket reward-table
.PHONY: test test-all test-gpu bench-gpu bench-gpu-wheels lint format check-configs clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@printf '%s\n' \
		'' \
		'Variables, with an example:' \
		'  PROFILE=pocket           the folder under configs/ of the rl and matched targets' \
		'  EXPERIMENT=my.yaml       the experiment of the matched targets; by default that of experiments/matched' \
		'  SITE=my-site.yaml        its SLURM settings; by default those of launch/slurm/site.yaml' \
		'  RUN=my-run               name of the run; the config and the time by default' \
		'  ARGS="run.steps=5"       further arguments for the command behind the target' \
		'  VENV=.venv               the virtual environment; made if it is not there' \
		'  PYTHON=python3.12        what to make it with' \
		'  WHEELS=folder            wheels for a GPU machine without network, beside its own torch' \
		'  CONSTRAINTS=             install by the ranges of pyproject.toml, and keep your own torch' \
		'' \
		'On Linux without a GPU this fetches a torch of 0.2 GB in place of 3 GB, the first time:' \
		'  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup'

setup: $(STAMP) ## Make the virtual environment and install flowrl into it (every target does, when needed)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@if [ ! -x "$(BIN)/python" ]; then \
		for python in $(PYTHON); do \
			if "$$python" $(IS_NEW_ENOUGH) 2>/dev/null; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: flowrl needs Python 3.11 or newer; tried: $(PYTHON)." \
				"Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }; \
	fi
	@"$(BIN)/python" $(IS_NEW_ENOUGH) || { \
		echo "error: flowrl needs Python 3.11 or newer; $(VENV) has $$("$(BIN)/python" --version)." \
			"Remove it, or name another: make VENV=other" >&2; \
		exit 1; \
	}
	@echo "Installing flowrl and what it needs (torch, diffusers, ray, deepspeed, ...) into $(VENV):" \
		"3 to 10 minutes, once"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	@touch $@

rl-ditreward: $(STAMP) ## Train on DiT-Reward, in latent space (pocket profile: minutes on two CPU cores)
	$(call TRAIN,ditreward)

rl-hpsv3: $(STAMP) ## The same run but for the reward: train on HPSv3, in pixel space
	$(call TRAIN,hpsv3)

matched: $(STAMP) ## Train every arm of EXPERIMENT with every seed, and write the report on which is better; resumes
	$(BIN)/flowrl matrix $(EXPERIMENT) --profile $(PROFILE) --run $(ARGS)

slurm-matched: $(STAMP) ## Submit the runs of EXPERIMENT to SLURM, and a report after them; ARGS=--dry-run shows how
	$(BIN)/flowrl matrix $(EXPERIMENT) --profile $(PROFILE) --slurm --site $(SITE) $(ARGS)

compare: $(STAMP) ## Put the latest two runs of different rewards on one page
	$(BIN)/flowrl report --compare $(ARGS)

report: $(STAMP) ## Write the report of RUN, a run or an experiment; by default of the latest run
	$(BIN)/flowrl report $(RUN) $(ARGS)

tensorboard: $(STAMP) ## Watch the runs under runs/ in a browser
	$(BIN)/tensorboard --logdir runs $(ARGS)

pocket: $(STAMP) ## Rebuild the pocket checkpoints from nothing (hours; resumes when interrupted)
	$(BIN)/flowrl pocket build $(ARGS)

reward-table: $(STAMP) ## Train every reward of the pocket table and measure them side by side (over an hour; resumes)
	FLOWRL=$(BIN)/flowrl PYTHON=$(BIN)/python experiments/0002-pocket-rewards/run.sh

test: $(STAMP) ## Run the tests: CPU, no network, five to ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadgroup $(ARGS)

test-all: $(STAMP) ## Run the slow tests as well
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-gpu: $(GPU_READY) ## Run the tests that need a CUDA device
	$(GPU_PYTHON) -m pytest -m gpu $(ARGS)

bench-gpu: $(GPU_READY) ## Measure SD3.5-Large on one GPU, with random weights, in under ten minutes
	$(GPU_PYTHON) -m experiments.benchmarks.gpu $(ARGS)

bench-gpu-wheels: $(STAMP) ## Fill the folder WHEELS for bench-gpu and test-gpu on a machine without network
	@test -n "$(WHEELS)" || { echo "error: say which folder: make $@ WHEELS=wheels" >&2; exit 1; }
	$(BIN)/python -m pip download --no-deps --only-binary=:all: --dest "$(WHEELS)" \
		--implementation cp --python-version $(WHEELS_PYTHON) \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --requirement experiments/benchmarks/gpu/wheels.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir "$(WHEELS)" \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) deepspeed

$(GPU_STAMP): $(wildcard $(WHEELS)/*.whl)
	@test -n "$^" || { echo "error: no wheels in WHEELS=$(WHEELS); make bench-gpu-wheels fills it" >&2; exit 1; }
	rm -rf "$(GPU_PACKAGES)"
	$(firstword $(PYTHON)) -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
		--target "$(GPU_PACKAGES)" $^
	@touch $@

lint: $(STAMP) check-configs ## Check style, types, layers, spelling, shell scripts and configs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/shellcheck .ci/run $(wildcard launch/*.sh launch/*.sbatch launch/ray/*.sh launch/slurm/*.sh experiments/*/*.sh)

format: $(STAMP) ## Format the code, and mend what can be mended without thought
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-configs: $(STAMP) ## Validate every YAML under configs/
	$(BIN)/flowrl check configs experiments/matched

clean: ## Remove caches and build products; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find flowrl rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and unfinished pocket builds as well; runs/ stays
	rm -rf .venv .pocket-build
