# `make demo` and `make test` do all the set-up that they need; a second run starts in seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A machine without a GPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu  (plain pip may bring gigabytes of CUDA)
TORCH_INDEX ?=

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1
# The big tensors of a CPU training would otherwise be returned to the system and faulted in anew at every step.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
export MALLOC_ARENA_MAX ?= 4

.DEFAULT_GOAL := help
.PHONY: help setup demo test clusters soak lint format bench head submit env clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(BIN)/.installed  ## virtual environment, pinned packages, face models and head meshes
	@aupipe assets > /dev/null

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("aupipe needs Python 3.11 or newer: make demo PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## render a corpus, train on it, evaluate, register the model; the table at the end
	dvc repro
	@cat reports/*/report.md
	@cat data/registered/*/*/*.json
	@echo "Next: aupipe predict VIDEO -o out.csv   (after: source $(BIN)/activate)"

test: setup  ## the tests, the whole pipeline on a small corpus included; but for those of make clusters
	python -m pytest

clusters: setup  ## what make test leaves out: killed workers, drivers and nodes, jobs, the commands of infra/; needs quiet cores
	AUPIPE_CLUSTERS=1 python -m pytest tests/test_chaos.py tests/test_nodes.py tests/test_jobs.py tests/test_infra_commands.py

soak: setup  ## 10,000 fuzzed label files, 12,500 damaged trees, 20 kills on a cluster; make test and make clusters try a share
	AUPIPE_SOAK=1 AUPIPE_CLUSTERS=1 python -m pytest tests/test_fuzz.py tests/test_random_trees.py tests/test_chaos.py

lint: setup  ## style and types
	ruff check . && ruff format --check . && mypy

format: setup  ## rewrite the code in the house's style
	ruff check --fix . ; ruff format .

bench: setup  ## the benchmarks that need no run or video of yours; results go to docs/log.md by hand
	for b in render truth rates ingest layers learnability; do python benchmarks/$$b.py || exit 1; done

head submit: export RAY_AUTH_MODE ?= token
head: setup  ## a Ray head on this machine, whose jobs run in AUPIPE_HOME, by default here; Ctrl-C ends it (FLAGS= for ray start)
	@ray get-auth-token --generate > /dev/null
	AUPIPE_HOME="$${AUPIPE_HOME:-$(CURDIR)}" ray start --head --block --disable-usage-stats $(FLAGS)

submit: $(BIN)/.installed  ## CMD="dvc repro" as a job of the cluster at RAY_API_SERVER_ADDRESS (FLAGS= for ray job submit)
	@test -n "$$CMD" || { echo 'aupipe: say what to run, as in: make submit CMD="dvc repro"' >&2; exit 2; }
	@RAY_API_SERVER_ADDRESS="$${RAY_API_SERVER_ADDRESS:-$${RAY_ADDRESS:-http://127.0.0.1:8265}}" \
	  RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES= \
	  ray job submit --working-dir . --metadata-json "{\"code\": \"$$(git describe --always --dirty 2> /dev/null)\"}" $(FLAGS) \
	  -- python infra/job.py "$$CMD"

env: $(BIN)/.installed  ## infra/.env for infra/compose.yaml, with secrets made up here; one that is there stays
	@test -e infra/.env || (umask 077 && export RAY_AUTH_TOKEN="$$(ray get-auth-token --generate 2> /dev/null)" && \
	  while IFS= read -r line; do case "$$line" in \
	    RAY_AUTH_TOKEN=) echo "$$line$$RAY_AUTH_TOKEN";; \
	    [A-Z]*=) echo "$$line$$(python -c 'import secrets; print(secrets.token_hex(24))')";; \
	    *) echo "$$line";; esac; done < infra/env.example > infra/.env)
	@echo "infra/.env: next, docker compose -f infra/compose.yaml up -d --build"

clean:  ## forget all results; keeps the environment, the assets and data/raw
	rm -rf data/recipes data/cards data/inventory data/manifest data/shards data/folds data/registered runs results reports
