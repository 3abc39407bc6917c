# The one list of commands. Everything is installed into .venv/ and nowhere else.
PYTHON ?= python3
ADDR ?= 127.0.0.1:8000
TORCH_INDEX ?=
SHARD ?= 1/1
DEVICE ?= cpu
BACKEND ?= local
MINUTES ?= inf
REFRESH ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
export NO_MKDOCS_2_WARNING := 1
export ALTGRAD_REFRESH := $(REFRESH)
export ALTGRAD_PAGE := $(P)

.PHONY: help serve site page version install test check demo campaign campaign-quick pack repeat ladder-fit wheel guides loops reports fixtures bench bench-training bench-runs bench-site bench-large bench-processes bench-keystrokes gpu-check same-numbers processes cluster exhaustive clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

serve: .venv/site.stamp ## build the site and serve it (elsewhere: ADDR=127.0.0.1:8001; one page only, faster: P=method)
	@echo "Building the site, then serving it at http://$(ADDR) (stop with Ctrl-C)"
	@$(BIN)/mkdocs serve --quiet --dev-addr $(ADDR)

site: .venv/site.stamp ## build the same site, strictly, into site/ (without the cache: REFRESH=1)
	@$(BIN)/mkdocs build --strict

page: .venv/site.stamp ## build one page into build/page/: P=reports/format_comparison
	@$(if $(P),,echo "error: name the page, for example: make page P=reports/format_comparison" >&2; exit 2)
	@$(BIN)/mkdocs build --site-dir build/page

version: .venv/site.stamp ## put the site on the branch gh-pages as a version: V=0.2 (V=dev: the newest state; PUSH=1: publish)
	@$(if $(V),,echo "error: name the version, for example: make version V=0.2" >&2; exit 2)
	@$(BIN)/python -m altgrad.site.versions "$(V)" $(if $(PUSH),--push)

install: .venv/dev.stamp ## install everything, torch included (a processor-only torch: see README)

test: .venv/dev.stamp ## run all tests (some of them: ARGS="tests/test_formats.py -x")
	@$(BIN)/python -m pytest $(or $(ARGS),-n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder)

check: .venv/dev.stamp ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

demo: .venv/dev.stamp ## train a small matrix of formats (at most 3 minutes), then build the site with it
	@$(BIN)/python experiments/campaign.py demo
	@$(BIN)/mkdocs build --strict
	@echo "The new runs are beside the recorded ones: make serve"

campaign: .venv/dev.stamp ## run the recorded studies, 2 to 4 hours; may be stopped (one: STUDY=formats; a share: SHARD=1/4; a part: MINUTES=9; a cluster: BACKEND=ray)
	@$(BIN)/python experiments/campaign.py $(STUDY) --shard $(SHARD) --device $(DEVICE) --minutes $(MINUTES) --backend $(BACKEND) $(ARGS)

campaign-quick: .venv/dev.stamp ## a taste of every study in three minutes
	@$(BIN)/python experiments/campaign.py quick

pack: .venv/dev.stamp ## pack what is newly recorded as a part of its study, to commit it (one: STUDY=formats)
	@$(BIN)/python experiments/campaign.py pack $(STUDY) $(ARGS)

repeat: .venv/dev.stamp ## train a recorded run of each study anew: has it the same numbers? (one: STUDY=head)
	@$(BIN)/python experiments/campaign.py repeat $(STUDY)

ladder-fit: .venv/site.stamp ## fit the ladder's law and write its predictions, to commit before larger sizes run
	@$(BIN)/python experiments/ladder_fit.py $(ARGS)

wheel: .venv/bin/python ## make the wheel that others install, in dist/; TRY=1: try it in an empty environment
	@rm -rf dist build/lib && $(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .
	@ls dist/*.whl
	@$(if $(TRY),$(BIN)/python tests/try_wheel.py dist/*.whl)

guides: .venv/dev.stamp ## run the guides' code blocks that need torch; their output is committed for the site
	@$(BIN)/python -m altgrad.site.executed docs

loops: .venv/dev.stamp ## run the programs of the guide on training loops (installs accelerate and lightning)
	@$(PIP) -e '.[loops]'
	@$(BIN)/python -m pytest tests/test_loops.py

reports: .venv/site.stamp ## write the three reports as plain markdown into reports/
	@$(BIN)/python scripts/generate_reports.py --output-dir reports --offline --runs experiments/recorded --readme README.md

fixtures: .venv/dev.stamp ## write tests/fixtures anew with the tools themselves, each in an environment of its own (one: ARGS=mlflow-3)
	@$(BIN)/python tests/write_fixtures.py $(ARGS)

bench: .venv/bench.stamp ## measure the quantizer against a copy and other tools, on a quiet machine; recorded for the site
	@$(BIN)/python benchmarks/quantize.py $(ARGS)

bench-training: .venv/dev.stamp ## measure what a quantized training step costs against fp32, and record it
	@$(BIN)/python benchmarks/training.py $(ARGS)

bench-runs: .venv/dev.stamp ## measure what recording a run and reading thousands of them costs, and record it
	@$(BIN)/python benchmarks/runs.py $(ARGS)

bench-site: .venv/dev.stamp ## measure building and serving the site against as many empty pages, and record it
	@$(BIN)/python benchmarks/site.py $(ARGS)

bench-large: .venv/dev.stamp ## measure how records and pages cost more with more runs, up to 10,000, and record it
	@$(BIN)/python benchmarks/large.py $(ARGS)

bench-processes: .venv/dev.stamp ## measure a step on two processes against one, on a quiet machine, and record it
	@$(BIN)/python benchmarks/processes.py $(ARGS)

gpu-check: .venv/dev.stamp ## check a GPU in three parts of some minutes, and record it (one: PART=rounding, training, pair)
	@$(BIN)/python benchmarks/gpu_check.py $(PART) $(ARGS)

bench-keystrokes: site .venv/dev.stamp ## measure what a reader waits for after a keystroke, and record it
	@$(BIN)/python benchmarks/keystrokes.py $(ARGS)

same-numbers: .venv/site.stamp ## whether every number of a site built BEFORE is in the one built AFTER
	@$(BIN)/python tests/site/same_numbers.py $(BEFORE) $(or $(AFTER),site)

processes: .venv/dev.stamp ## check a run that four processes share against one process (with eight: N=8)
	@ALTGRAD_PROCESSES=$(or $(N),4) $(BIN)/python -m pytest tests/test_distributed.py

cluster: .venv/dev.stamp ## check campaigns on a Ray cluster of this machine, with lost nodes and processes
	@ALTGRAD_CLUSTER=1 $(BIN)/python -m pytest tests/test_cluster.py

exhaustive: .venv/dev.stamp ## compare the quantizer on all bfloat16 and all 2^32 float32 inputs; may be stopped, goes on from there
	@ALTGRAD_EXHAUSTIVE=1 $(BIN)/python -m pytest tests/test_rounding.py tests/test_rounding_compiled.py -k "bfloat16_numbers or every_rounding or block_formats"
	@$(BIN)/python benchmarks/exhaustive.py $(ARGS)

clean: ## remove the environment, the built site and caches (recorded and local runs stay)
	rm -rf .venv .cache site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find altgrad gen scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "error: $(PYTHON) is missing or older than 3.11; choose another with PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) cannot create environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "Creating .venv/"
	@$(PYTHON) -m venv .venv

.venv/site.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing what the site needs"
	@$(PIP) -e '.[site]'
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing everything (torch takes a while)"
	@$(if $(TORCH_INDEX),$(PIP) torch --index-url $(TORCH_INDEX))
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/site.stamp

.venv/bench.stamp: .venv/dev.stamp
	@echo "Installing the tools to compare with"
	@$(PIP) -e '.[bench]'
	@touch $@
