# The two commands of the README, each from a bare machine with Python 3.11+ and a C++17 compiler:
#   make demo    embed sample sentences with a real model, checked against the reference path
#   make test    the whole test suite
# For work on the source: test-fast, native, sanitize, lint, format (see `make help`).

.DEFAULT_GOAL := help
SHELL := /bin/bash
comma := ,
space := $(subst ,, )

VENV := .venv
BIN := $(VENV)/bin
FIND_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))

# `make native` in a linked git worktree uses the main checkout's environment.
MAIN_CHECKOUT := $(dir $(realpath $(shell git rev-parse --git-common-dir 2>/dev/null)))
DEV_PYTHON ?= $(firstword $(wildcard $(BIN)/python $(MAIN_CHECKOUT)$(BIN)/python) python3)
DEV_PATH = $(dir $(abspath $(DEV_PYTHON))):$(PATH)

.PHONY: help demo test test-fast test-slow lint format native sanitize clean oracle-v4

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST)

# --- The environment -------------------------------------------------------------------------------

$(BIN)/python:
	@for python in python3.12 python3.11 python3.13 python3; do \
	    if $$python -c '$(FIND_PYTHON)' 2>/dev/null; then exec $$python -m venv $(VENV); fi; \
	done; \
	echo "fastbert needs Python 3.11 or newer, and none of python3.12, python3.11, python3.13, python3" \
	     "is that." >&2; exit 1

$(VENV)/.requirements-%: requirements/%.txt requirements/run.txt requirements/build.txt | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check -r $<
	@touch $@

# Installed in editable form: the package imported by tests and by the processes they start is then
# the same whatever directory they run in (a plain install would be shadowed by ./fastbert, which
# lacks the native library), and only a change of what is compiled or declared asks for a new install.
# The name of the stamp holds that content's hash; time stamps would not survive a fresh clone.
INSTALL_INPUTS := $(sort fastbert/__init__.py $(shell find csrc cmake CMakeLists.txt setup.py pyproject.toml -type f))
INSTALL_HASH := $(shell cat $(INSTALL_INPUTS) | cksum | tr ' ' '-')
INSTALLED := $(VENV)/.fastbert-$(INSTALL_HASH)

$(INSTALLED): | $(VENV)/.requirements-run
	@rm -f $(VENV)/.fastbert-*
	FASTBERT_CUDA=$(or $(FASTBERT_CUDA),auto) \
	    $(BIN)/pip install --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# --- The two commands ------------------------------------------------------------------------------

demo: $(INSTALLED)  ## embed sample sentences with a real model and show the numbers
	$(BIN)/python -m fastbert.tools.demo

# Two tests at a time; the threads of one do not spin while those of the other compute.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal

# The sanitizers compile while packages are fetched and installed, and test while others compile.
test: $(VENV)/.requirements-build  ## everything that must hold
	$(MAKE) -j 2 --output-sync=target environment sanitize-address sanitize-thread
	$(PYTEST) -m "not slow"

# One after the other: pip must not change an environment twice at a time.
environment:
	@$(MAKE) -j 1 $(VENV)/.requirements-test $(INSTALLED)

# The next edit's most probable mistakes: no sanitizers, GPU emulation, Triton, torch.compile, packaging,
# benchmarks, real or full-size models, nor float16 again, which kernels compute as float32. `make test`
# runs all of that as well.
FAST_SKIPS := bench cuda integrations triton models/test_model_transaction.py models/test_model_registered.py \
    ops/test_registration.py tokenizers/test_tok_cost.py tokenizers/test_tok_v4.py test_cli.py \
    test_cli_streams.py test_cli_rank.py test_compile.py test_forks.py test_fuzz.py \
    test_hub.py test_import_cost.py test_int8_accuracy.py test_packaging.py test_readme.py \
    test_sharing.py test_tolerance_bites.py test_unbuilt.py weights/test_weights_changes.py \
    weights/test_weights_optimizers.py weights/test_weights_raw.py
FAST_NAMES := float16 full_size loading_holds place_in_memory not_finite finite_differences compiled \
    any_batch

test-fast: $(VENV)/.requirements-test $(INSTALLED)  ## the short tests, in about three minutes
	$(PYTEST) -q -m "not slow" $(FAST_SKIPS:%=--ignore=tests/%) \
	    -k "not ($(subst $(space),$(space)or$(space),$(FAST_NAMES)))"

# Full-size models, a wheel installed into an environment of its own, every tile of every Triton
# kernel: too long for each change.
test-slow: $(VENV)/.requirements-test $(INSTALLED)  ## the tests that make test leaves out for time
	$(BIN)/python -m pytest -m slow

# The tests check recorded answers of transformers 4.56.2; with this environment in place the
# tokenizer tests also record them afresh, and that release loads what fastbert saves.
oracle-v4:
	$(BIN)/python -m venv .venv-v4
	.venv-v4/bin/pip install --disable-pip-version-check transformers==4.56.2 sentencepiece==0.2.3 \
	    protobuf sacremoses==0.2.0 torch==2.13.0
	$(BIN)/python -m pytest tests/tokenizers/test_tok_v4.py tests/models/test_model_v4_files.py

C_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

# --- Work on the source ----------------------------------------------------------------------------

lint: $(VENV)/.requirements-test  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format:  ## rewrite the sources in the house style
	PATH=$(DEV_PATH) ruff format .
	PATH=$(DEV_PATH) ruff check --fix .
	PATH=$(DEV_PATH) clang-format -i $(C_SOURCES)

# ISA: instruction sets separated by commas, for short rebuilds; the build then holds no others.
native:  ## build the extension in place, incrementally (ISA=avx2,... for some sets, FASTBERT_CUDA=on)
	@mkdir -p build
	@PATH=$(DEV_PATH) cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$(abspath $(DEV_PYTHON)) \
	    -DFASTBERT_CUDA=$(or $(FASTBERT_CUDA),off) -DFASTBERT_TESTS=ON -DFASTBERT_OUTPUT_DIR=$(CURDIR)/build/native/out \
	    -DFASTBERT_ONLY_ISAS="$(ISA)" \
	    >build/native.log 2>&1 || { cat build/native.log; exit 1; }
	@PATH=$(DEV_PATH) cmake --build build/native
	cp --remove-destination build/native/out/*.so fastbert/  # a process that runs keeps the old one
	ln -sfn ../triton_kernels fastbert/triton_kernels
	@$(if $(ISA),rm -f $(VENV)/.fastbert-*)  # `make test` then installs all of them again
	@$(if $(ISA),echo "This build holds $(ISA) only; \`make native\` compiles every instruction set.")

# AddressSanitizer with UndefinedBehaviorSanitizer on every instruction set, then ThreadSanitizer on
# two (threads meet in the drivers, which are the same for all). -O1 and line tables only: the kernels
# take minutes to compile otherwise. No Python is involved.
SANITIZER_BUILD = cmake -S . -B $(1) -G Ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1" \
    -DFASTBERT_PYTHON=OFF -DFASTBERT_TESTS=ON -DFASTBERT_CUDA=off $(2) >/dev/null \
    && cmake --build $(1) && $(1)/fastbert_tests

sanitize:  ## native tests under the address, undefined-behaviour and thread sanitizers
	@$(MAKE) -j 2 --output-sync=target sanitize-address sanitize-thread  # one compiles, one tests

.PHONY: environment sanitize-address sanitize-thread
sanitize-address sanitize-thread: export PATH := $(dir $(abspath $(DEV_PYTHON))):$(PATH)
sanitize-address:
	$(call SANITIZER_BUILD,build/sanitize-address,-DFASTBERT_SANITIZE=address$(comma)undefined)
sanitize-thread:
	$(call SANITIZER_BUILD,build/sanitize-thread,-DFASTBERT_SANITIZE=thread -DFASTBERT_ONLY_ISAS=scalar$(comma)avx2)

clean:  ## remove what was built
	rm -rf build dist *.egg-info fastbert/*.so
