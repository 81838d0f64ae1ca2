# The commands that a newcomer, CI and a GPU node need. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
QUIET := --quiet --disable-pip-version-check
OUTPUTS ?= $(CURDIR)/outputs
PRESET ?= demo
CORPUS ?= synthetic
STUDY = $(PRESET)$(if $(filter synthetic,$(CORPUS)),,-$(patsubst %.csv,%,$(notdir $(patsubst %/,%,$(CORPUS)))))
DONE = $(OUTPUTS)/$(STUDY)/notebooks

.PHONY: help install demo study paper test lab lint clean


help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[test]'
	touch $@

install: $(STAMP)  ## make .venv and install everything, pinned, into it

# one notebook, headless: $(call run,NOTEBOOK,NAME OF ITS COPY,MORE PARAMETERS); what it says goes
# to a log beside the copy, and is shown if it fails
define run
	@echo "$(2)"
	@cd notebooks && PATH="$(BIN):$$PATH" papermill --no-progress-bar $(1).ipynb "$(DONE)/$(2).ipynb" \
	  -p preset $(PRESET) -p corpus "$(if $(filter synthetic,$(CORPUS)),synthetic,$(abspath $(CORPUS)))" -p outputs "$(OUTPUTS)" $(3) > "$(DONE)/$(2).log" 2>&1 \
	  || { cat "$(DONE)/$(2).log"; exit 1; }
endef

study: $(STAMP)  ## notebooks 01 to 05: make study PRESET=demo CORPUS=folder
	@mkdir -p "$(DONE)"
	$(call run,01_data,01_data)
	$(call run,02_fl_advtrain,02_fl_advtrain_none,-p attack none)
	$(call run,02_fl_advtrain,02_fl_advtrain_fgsm,-p attack fgsm)
	$(call run,02_fl_advtrain,02_fl_advtrain_pgd,-p attack pgd)
	$(call run,02_fl_advtrain,02_fl_advtrain_deepfool,-p attack deepfool)
	$(call run,03_attacks,03_attacks)
	$(call run,04_randomisation,04_randomisation)
	$(call run,05_analysis,05_analysis)
	@echo "tables and figures: $(OUTPUTS)/$(STUDY)"

demo:  ## install, then run 01 to 05 on the embedded corpus (CPU, under 10 minutes)
	@$(MAKE) --no-print-directory study PRESET=demo

paper:  ## the paper's experiment on a GPU node: make paper CORPUS=/path/to/DEMoS
	@$(MAKE) --no-print-directory study PRESET=paper

test: $(STAMP)  ## install, then run the tests (under 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lab: $(STAMP)  ## open the notebooks in JupyterLab
	cd notebooks && PATH="$(BIN):$$PATH" jupyter lab

lint: $(STAMP)  ## check the style of the package, the tests and the notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:  ## remove the environment and caches, but no results
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './outputs/*' -exec rm -rf {} +
