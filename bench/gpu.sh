#!/usr/bin/env bash
# Builds, tests and measures the GPU kernels on a machine that has a GPU, unattended and with no
# network. Parts, each inside ten minutes, in this order when none is named:
#   build      the extensions, in place, CUDA included
#   test       every test that needs a device, and those of the compilers
#   sanitize   memcheck, racecheck, initcheck and synccheck over a small selection
#   measure    ceilings and kernels, to bench/results/<gpu>-<date>.json
# Usage: bench/gpu.sh [part ...]
#        PYTHON=python3 is the interpreter that has torch, triton, pybind11, cmake and ninja.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

build() {
    local build=build/gpu
    cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTBERT_CUDA=on \
        -DPython_EXECUTABLE="$(command -v "$PYTHON")" -DFASTBERT_OUTPUT_DIR="$PWD/$build/out"
    cmake --build $build
    cp $build/out/*.so fastbert/
    ln -sfn ../triton_kernels fastbert/triton_kernels
}

test_gpu() {
    "$PYTHON" -m pytest -q tests/cuda tests/triton/test_compile.py
}

sanitize() {
    # One small case of every kernel: the tools slow a kernel down a hundredfold.
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool"
        compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m pytest -q -p no:cacheprovider \
            tests/cuda/test_on_device.py -k "test_parity and float16 and (ragged or 3x17 or 13x63x65)"
    done
}

measure() {
    "$PYTHON" -m bench.gpu
}

if [ $# -eq 0 ]; then set -- build test sanitize measure; fi
for part in "$@"; do
    echo "=== $part"
    case $part in
        build) build ;;
        test) test_gpu ;;
        sanitize) sanitize ;;
        measure) measure ;;
        *) echo "bench/gpu.sh: there is no part \"$part\"; name build, test, sanitize or measure" >&2
           exit 2 ;;
    esac
done
