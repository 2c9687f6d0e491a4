# What a user of a clone runs. The environment is made once, by tools/setup_environment.sh, and reused.
VENV ?= .venv
PYTHON ?= python3
EXTRAS ?= policy,ros,ros-interfaces,sim,dev
export LIGHTVLA_TORCH

.PHONY: help setup demo test test-kilted lint clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.complete ## Make the environment (a virtual environment and all dependencies)

$(VENV)/.complete: setup.py tools/setup_environment.sh
	@tools/setup_environment.sh "$(PYTHON)" "$(VENV)" "$(EXTRAS)"

demo: setup ## A policy moves the simulated ALOHA over ROS 2; makes demo.mp4
	@$(VENV)/bin/lightvla demo $(ARGS)

test: setup ## The whole test suite
	@tools/with_driver_messages.sh $(VENV)/bin/python $(VENV)/driver_messages $(VENV)/bin/python -m pytest $(ARGS)

test-kilted: ## The whole test suite on the Kilted wheels, in an environment of its own
	@$(MAKE) --no-print-directory test VENV=.venv-kilted EXTRAS=policy,ros-kilted,ros-kilted-interfaces,sim,dev

lint: setup ## Format, lint and type checks
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

clean: ## Remove the environments and build outputs
	rm -rf .venv .venv-kilted build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache
