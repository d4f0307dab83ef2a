# Every command a person or CI needs. A target installs what it needs first, once; `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= python3 python3.13 python3.12 python3.11
CONSTRAINTS ?= constraints.txt
PROFILE ?= pocket
RUN ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup.stamp
TRAIN = $(BIN)/flowrl train configs/$(PROFILE)/$(1).yaml $(if $(RUN),run.name=$(RUN)) $(ARGS)
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.PHONY: help setup rl-ditreward rl-hpsv3 compare report tensorboard pocket reward-table
.PHONY: test test-all test-gpu lint format check-configs clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@printf '%s\n' \
		'' \
		'Variables, with an example:' \
		'  PROFILE=pocket           the folder under configs/ of the rl targets' \
		'  RUN=my-run               name of the run; the config and the time by default' \
		'  ARGS="run.steps=5"       further arguments for the command behind the target' \
		'  VENV=.venv               the virtual environment; made if it is not there' \
		'  PYTHON=python3.12        what to make it with' \
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

compare: $(STAMP) ## Put the latest two runs of different rewards on one page
	$(BIN)/flowrl report --compare $(ARGS)

report: $(STAMP) ## Write the report of RUN, by default the latest run
	$(BIN)/flowrl report $(RUN) $(ARGS)

tensorboard: $(STAMP) ## Watch the runs under runs/ in a browser
	$(BIN)/tensorboard --logdir runs $(ARGS)

pocket: $(STAMP) ## Rebuild the pocket checkpoints from nothing (hours; resumes when interrupted)
	$(BIN)/flowrl pocket build $(ARGS)

reward-table: $(STAMP) ## Train every reward of the pocket table and measure them side by side (over an hour; resumes)
	FLOWRL=$(BIN)/flowrl PYTHON=$(BIN)/python experiments/0002-pocket-rewards/run.sh

test: $(STAMP) ## Run the tests: CPU, no network, under five minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadgroup $(ARGS)

test-all: $(STAMP) ## Run the slow tests as well
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(STAMP) check-configs ## Check style, types, layers, spelling, shell scripts and configs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/shellcheck .ci/run $(wildcard launch/*.sh launch/*.sbatch experiments/*/*.sh)

format: $(STAMP) ## Format the code, and mend what can be mended without thought
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-configs: $(STAMP) ## Validate every YAML under configs/
	$(BIN)/flowrl check configs

clean: ## Remove caches and build products; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find flowrl rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and unfinished pocket builds as well; runs/ stays
	rm -rf .venv .pocket-build
