# Every target first makes .venv and installs the pinned packages when they are missing or out of date.
# make PYTHON=python3.12 chooses another interpreter; JOBS=8 runs more tests at once;
# ARGS="SECTION.KEY=value ..." reaches the command.

PYTHON ?= python3
CONFIG ?= configs/digits.yaml
SWEEP  ?= sweeps/pred_types.yaml
REPORT ?= training_outputs/sweeps/$(basename $(notdir $(SWEEP)))
JOBS   ?= 2
RESULTS ?= hidden_plane loss_space truncated_snr few_steps schedule_shift moved_density terminal_snr
ARGS   ?=

BIN   := .venv/bin
STAMP := .venv/.installed
PLAIN := not gpu and not slurm and not oracle and not campaign

.DEFAULT_GOAL := help
.PHONY: help install sweep train report results test test-fast test-long test-all test-oracle test-oldest test-v3 test-wandb test-kills test-coverage test-statistics test-gpu test-slurm test-slurm-full bench check docs site clean

help:              ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 17

install: $(STAMP)  ## .venv with every pinned package

sweep: $(STAMP)    ## the main job: the grid of SWEEP, then its table and report; run again to continue
	$(BIN)/python launch/sweep.py $(SWEEP) $(ARGS)

train: $(STAMP)    ## one training of CONFIG; run again to resume
	$(BIN)/python launch/train.py $(CONFIG) $(ARGS)

report: $(STAMP)   ## report.html, report.md and tables of REPORT, a sweep or a run
	$(BIN)/python launch/report.py $(REPORT) $(ARGS)

results: $(STAMP)  ## published results, made again: RESULTS="few_steps ..."; ARGS=--short for less
	for name in $(RESULTS); do $(BIN)/python -m experiments $$name $(ARGS) || exit; done

test: $(STAMP)     ## the tests of every guarantee but the longest
	$(BIN)/python -m pytest -q -m "$(PLAIN) and not long" -n $(JOBS) --durations=15 $(ARGS)

test-fast: $(STAMP) ## those of about half a second at most each, within a minute
	$(BIN)/python -m pytest -q -m "$(PLAIN) and not slow and not long and not ray" -n $(JOBS) --durations=15 $(ARGS)

test-long: $(STAMP) ## the longest: kills, restarts, searches on a real Ray
	$(BIN)/python -m pytest -q -m "$(PLAIN) and long" -n $(JOBS) --durations=15 $(ARGS)

test-all: test test-long ## every test that needs no GPU and no SLURM

test-oracle: $(STAMP) ## samplers and exports against diffusers, statistics against statsmodels, installed beside the pinned packages
	$(BIN)/python -m pip install --constraint constraints.txt --quiet "diffusers>=0.32" "statsmodels>=0.15"
	$(BIN)/python -m pytest -q -m oracle -n 0 --no-skips $(ARGS) tests/sampling/test_diffusers_oracle.py tests/cli/test_export.py tests/report/test_statistics_oracle.py

test-oldest:       ## test-fast with the oldest packages that pyproject.toml allows, in a folder of its own
	$(PYTHON) -m venv .venv/oldest
	.venv/oldest/bin/python -m pip install --quiet uv
	.venv/oldest/bin/uv pip install --quiet --python .venv/oldest/bin/python --resolution lowest-direct --editable ".[v3,lmdb,search,pictures,test]"
	.venv/oldest/bin/python -m pytest -q -m "$(PLAIN) and not slow and not long and not ray" -n $(JOBS) $(ARGS)

test-v3: $(STAMP)  ## imported weights against Keras, on torch, installed in a folder of its own
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/openkeras keras==3.15.1 absl-py namex optree ml-dtypes
	$(BIN)/python -m pytest -q -m oracle -n 0 --no-skips -o pythonpath=.venv/openkeras $(ARGS) tests/diffusion/test_keras_oracle.py

test-wandb: $(STAMP) ## runs on a server of W&B's protocol on loopback, installed in a folder of its own
	$(BIN)/python -m venv .venv/openwandb
	.venv/openwandb/bin/python -m pip install --quiet openwandb==0.5.25
	OPENWANDB=.venv/openwandb/bin/openwandb $(BIN)/python -m pytest -q -m oracle -n 0 --no-skips $(ARGS) tests/tracking/test_wandb_protocol.py

test-kills: $(STAMP) ## 10,000 images by 8 jobs that lose 50 processes to kill -9; minutes
	$(BIN)/python -m pytest -q -m campaign -n 0 -s $(ARGS) tests/cluster/test_bulk_kills.py

test-coverage: $(STAMP) ## how often 95 % intervals of FID, KID and the others hold the truth: a table, half an hour
	$(BIN)/python -m pytest -q -m campaign -n 0 -s $(ARGS) tests/metrics/test_interval_coverage.py

test-statistics: $(STAMP) ## coverage of every interval over 1,000 simulated sweeps of each kind, A/A over 500; an hour
	$(BIN)/python -m pytest -q -m campaign -n 0 -s $(ARGS) tests/report/test_statistics.py

test-gpu: $(STAMP) ## what a CUDA device must do as a CPU does, and what it tells; two minutes
	$(BIN)/python -m pytest -q -m gpu -n 0 --no-skips $(ARGS)

test-slurm: $(STAMP) ## on a real SLURM of three nodes on this machine: Debian, as root, minutes
	$(BIN)/python -m pytest -q -m "slurm and not slow" -n 0 --durations=15 $(ARGS)

test-slurm-full: $(STAMP) ## the same with every fault and every way to run a sweep
	$(BIN)/python -m pytest -q -m slurm -n 0 --durations=40 $(ARGS)

bench: $(STAMP)    ## images/s through Ray Train beside the same loop without it
	$(BIN)/python benchmarks/overhead.py $(ARGS)

check: $(STAMP)    ## format, lint, types, no unresolved merge
	@! git grep -nE '^(<<<<<<<|\|\|\|\|\|\|\||=======|>>>>>>>)( |$$)' || { echo 'unresolved merges in the files above' >&2; exit 1; }
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)     ## docs/configuration.md and the file map of docs/architecture.md, from the code
	$(BIN)/python docs/build.py

site: $(STAMP)     ## the documents as pages, with the report of REPORT in them if it is there
	$(BIN)/python -m venv .venv/site
	.venv/site/bin/python -m pip install --quiet mkdocs-material==9.8.2
	REPORT="$(REPORT)" NO_MKDOCS_2_WARNING=1 .venv/site/bin/mkdocs build --quiet --strict
	@echo "site: build/site/index.html"

clean:             ## remove .venv and every cache; trained runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@echo "installing the pinned packages into .venv: minutes and some GB the first time"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)
