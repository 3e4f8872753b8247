# A linked git worktree uses the environment of the main checkout.
VENV ?= $(firstword $(wildcard .venv $(dir $(realpath $(shell git rev-parse --git-common-dir 2>/dev/null))).venv) .venv)
PYTHON ?= $(VENV)/bin/python
FASTBERT_CUDA ?= off

export PATH := $(abspath $(VENV)/bin):$(PATH)

.PHONY: native
native:  ## build the extension in place, for work on the source tree
	@mkdir -p build fastbert
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(PYTHON)) \
	    -DFASTBERT_CUDA=$(FASTBERT_CUDA) -DFASTBERT_OUTPUT_DIR=$(abspath build/native/out) >build/native.log 2>&1 \
	    || { cat build/native.log; exit 1; }
	ninja -C build/native
	cp build/native/out/*.so fastbert/
	ln -sfn ../triton_kernels fastbert/triton_kernels
