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
PORT ?= 8866
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
STUDY = $(BIN)/python -m fedser_utils.workbook.study.run_study --corpus "$(CORPUS)" --outputs "$(OUTPUTS)"

.PHONY: help install demo study paper adaptive heterogeneity test test-all \
	test-notebooks test-runtimes test-benchmarks test-rest test-browser lab dashboard pictures docs lint clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[notebooks,test]'
	touch $@

install: $(STAMP)  ## make .venv and install everything, pinned, into it

demo: $(STAMP)  ## install, then run 01 to 05 on the embedded corpus (CPU, under 10 minutes)
	@$(STUDY) --preset demo --no-estimate --jobs 2

study: $(STAMP)  ## what is left of notebooks 01 to 05: make study PRESET=demo CORPUS=folder
	@$(STUDY) --preset "$(PRESET)"

adaptive: $(STAMP)  ## notebook 06 alone, for a study that has been trained
	@$(STUDY) --preset "$(PRESET)" --steps adaptive --no-estimate

heterogeneity: $(STAMP)  ## notebook 07, clients that are not alike: make heterogeneity CORPUS=folder,folder
	@$(STUDY) --preset "$(PRESET)" --steps heterogeneity --no-estimate

paper: $(STAMP)  ## all notebooks as in the paper, on a GPU node: make paper CORPUS=/path/to/DEMoS
	@$(STUDY) --preset paper --steps all

test: $(STAMP)  ## install, then run the tests (under 6 minutes on two cores, installation apart)
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder

# what takes longer, in parts; each is a separate target
test-all: test-notebooks test-runtimes test-benchmarks test-rest test-browser  ## the rest (under 40 minutes), in parts

test-notebooks: $(STAMP)  ## all notebooks through papermill
	$(PYTEST) -m "long and not runtimes" tests/test_notebooks.py

test-runtimes: $(STAMP)  ## Flower's real processes on loopback, and kills
	$(PYTEST) -m runtimes tests

test-benchmarks: $(STAMP)  ## every benchmark at its smallest
	$(PYTEST) -m long tests/test_benchmarks.py

test-rest: $(STAMP)  ## long trainings, kills, several processes
	$(PYTEST) -n 3 --dist load -m "long and not runtimes" tests \
	--ignore tests/test_notebooks.py --ignore tests/test_benchmarks.py --ignore tests/browser

lab: $(STAMP)  ## open the notebooks in JupyterLab
	cd notebooks && PATH="$(BIN):$$PATH" jupyter lab

dashboard: $(STAMP)  ## one page over all runs, on this machine alone: make dashboard PORT=8866
	outputs="$$(realpath -m "$(OUTPUTS)")" && cd deploy/voila && \
	PATH="$(BIN):$$PATH" JUPYTER_PATH="$(CURDIR)/deploy/voila" FEDSER_OUTPUTS="$$outputs" \
	voila "$(CURDIR)/notebooks/08_dashboard.ipynb" --token --port "$(PORT)"

test-browser: $(STAMP)  ## install Chromium where there is none (Debian, Ubuntu), then test in it
	command -v chromium chromium-browser > /dev/null || (apt-get update && apt-get install -y chromium) \
	|| echo "no Chromium, and it cannot be installed here: these tests are skipped"
	$(PYTEST) -m long tests/browser

pictures: $(STAMP)  ## draw the pictures of README and docs/ from what is in OUTPUTS (widgets: Chromium)
	$(BIN)/python docs/pictures.py "$(OUTPUTS)"

docs: $(STAMP)  ## write the generated pages of docs/: settings, performance
	$(BIN)/python -m fedser_utils.core.presets > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md
	$(BIN)/python benchmarks/report.py

lint: $(STAMP)  ## check the style of the package, the tests and the notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:  ## remove the environment and caches, but no results
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './outputs/*' -exec rm -rf {} +
