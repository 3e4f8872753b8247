#!/usr/bin/env bash
# Builds, tests and measures the GPU kernels on a machine that has a GPU, unattended, with no network.
# Parts, each inside ten minutes, all of them in this order when none is named:
#   build      the extensions, in place, CUDA included
#   test       every test that needs a device
#   sanitize   memcheck, racecheck, initcheck and synccheck over every kernel on small shapes
#   ops        ceilings and kernels beside torch's
#   choice     every op in the sizes of the Plan's table of measurements
#   models     encoders beside transformers; accuracy; bit-identity
#   compile    encoders beside torch.compile max-autotune
#   suite      the rest of the test suite, and every configuration of Triton compiled
#   report     table, goals and plot of what there is; the Plan's table of measurements
#   tiles      every form of the CUDA GEMMs, for the costs in csrc/cuda/gemm (on request)
#   first      of all of these what a GPU shows in its first ten minutes: the build, every kernel once
#              in a process of its own, ceilings, products, attention, rows, a short choice, the Plan's
#              table, models with it, tests on the device, the report (on request, and alone)
# Usage: bench/gpu.sh [--dry-run] [part ...]
# A step that fails or runs out of its time is named at the end and stops no other; the exit status is
# then 1. Results are whole after every case, in $FASTBERT_RESULTS (default: bench/results).
#   PYTHON=python3        the interpreter that has torch and triton
#   FASTBERT_SECONDS=N    end all parts together within so long, where a command's time is limited
#   FASTBERT_WHEELS=DIR   wheels of what that one lacks (pybind11, cmake, ninja, pytest, ...)
#   FASTBERT_MINILM=DIR   all-MiniLM-L6-v2, for the accuracy of int8
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
RESULTS=${FASTBERT_RESULTS:-bench/results}
SITE=$PWD/build/gpu/site
export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1
# cmake and ninja may be programs of the interpreter's environment.
PATH=$SITE/bin:$(dirname "$(command -v "$PYTHON" || echo "$PYTHON")"):$PATH:/usr/local/cuda/bin
BENCH=(-m bench.gpu --results "$RESULTS")
DRY_RUN=
# Of one part; a program that does not end by itself gets ten seconds more.
PART_SECONDS=580
ALL_SECONDS=${FASTBERT_SECONDS:-1000000}
deadline=$PART_SECONDS
failures=()
steps=()

# step SECONDS NAME COMMAND...: runs it under a time limit and remembers how it went.
step() {
    local seconds=$1 name=$2 begin=$SECONDS status=0 left=$((deadline - SECONDS))
    shift 2
    echo "--- $name"
    if [ $left -lt $seconds ]; then seconds=$left; fi
    if [ $seconds -lt 1 ]; then
        failures+=("$name: no time was left for it")
        steps+=("$(printf '%-28s %5d s  not begun' "$name" 0)")
        return 1
    fi
    timeout --kill-after=10 "$seconds" "$@" || status=$?
    local took=$((SECONDS - begin)) told="ok"
    if [ $status -ne 0 ]; then
        told="exit status $status"
        [ $status -eq 124 ] && told="stopped after its $seconds s"
        failures+=("$name: $told")
    fi
    steps+=("$(printf '%-28s %5d s  %s' "$name" "$took" "$told")")
    return $status
}

has() { "$PYTHON" -c "import $1" 2>/dev/null || { [ "$1" != pybind11 ] && command -v "$1" >/dev/null; }; }

# Whether the interpreter has a package as it is wanted: csrc/python needs pybind11 3.
fits() {
    has "$1" && { [ "$1" != pybind11 ] \
        || "$PYTHON" -c "import pybind11; assert pybind11.version_info[0] >= 3" 2>/dev/null; }
}

# The packages a part needs, from FASTBERT_WHEELS where the interpreter lacks them or has old ones.
need() {
    local package missing=()
    for package in "$@"; do fits "$package" || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ -n "${FASTBERT_WHEELS:-}" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade \
            --target "$SITE" "$FASTBERT_WHEELS"/*.whl || return 1
    fi
    local lacking=()
    for package in "${missing[@]}"; do has "$package" || lacking+=("$package"); done
    if [ ${#lacking[@]} -eq 0 ]; then
        fits pybind11 || echo "bench/gpu.sh: this pybind11 is older than 3, so _C may not compile;" \
            "put a newer one's wheel into a folder and name it in FASTBERT_WHEELS" >&2
        return 0
    fi
    echo "bench/gpu.sh: $PYTHON lacks ${lacking[*]}; put their wheels into a folder and name it in" \
         "FASTBERT_WHEELS" >&2
    return 1
}

# The report's share of the time when all of it is limited.
REPORT_SECONDS=20

part_first() {
    local end=$((SECONDS + PART_SECONDS))
    if [ $ALL_SECONDS -lt $end ]; then end=$ALL_SECONDS; fi
    deadline=$((end - REPORT_SECONDS))
    if [ -z "$DRY_RUN" ]; then part_build 90; fi
    step 100 "first: every kernel once" "$PYTHON" -m bench.gpu.once "$RESULTS/kernels.txt" \
        ${DRY_RUN:+--dry-run}
    measure ops ceilings 15
    measure ops gemm 40
    measure ops attention 40
    measure ops rows 30
    measure ops choice-bf16 60
    # Before the models: they are to run with the kernels that were found to be the fastest.
    write_table
    measure models base 60
    measure models large 50
    measure models accuracy 40
    if [ -z "$DRY_RUN" ]; then on_the_device 120; fi
    deadline=$end
    step $REPORT_SECONDS "first: report" "$PYTHON" "${BENCH[@]}" report
}

# The Plan's table is committed: only a run that was asked to leave its results here writes it.
write_table() {
    if [ -z "$DRY_RUN" ]; then step 30 "the Plan's table" "$PYTHON" "${BENCH[@]}" table; fi
}

# What only a GPU shows, in the order of tests/cuda/conftest.py. -v: a run that is stopped has named
# what it did. A test that hangs, or spoils the context, costs its own line: it is ended after a
# minute, and its process with it (tests/cuda/conftest.py).
on_the_device() {
    local limits=()
    if has pytest_timeout; then limits=(--timeout=60 --timeout-method=thread); fi
    step "$1" "test: on the device" "$PYTHON" -m pytest -v -p no:cacheprovider -m gpu \
        "${limits[@]}" $(workers 12) tests/cuda
}

# build [SECONDS]: for each library. The GPU's comes first, and what is there when one fails or runs
# out of its time is put in place: each serves without the other, if slowly.
part_build() {
    need pybind11 cmake ninja || { failures+=("build: packages are missing"); return 1; }
    step 120 "build: configure" cmake -S . -B build/gpu/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DFASTBERT_CUDA=on -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
        -DFASTBERT_OUTPUT_DIR="$PWD/build/gpu/out" || return
    step "${1:-280}" "build: CUDA" cmake --build build/gpu/cmake --target _cuda
    step "${1:-280}" "build: the rest" cmake --build build/gpu/cmake
    cp build/gpu/out/*.so fastbert/ && ln -sfn ../triton_kernels fastbert/triton_kernels \
        || failures+=("build: the extensions could not be put in place")
}

part_test() {
    need pytest || { failures+=("test: packages are missing"); return 1; }
    on_the_device 400
    step 300 "test: machine code" "$PYTHON" -m pytest -q -p no:cacheprovider -m "not gpu" \
        $(workers 4) tests/cuda tests/triton/test_compile.py
}

part_suite() {
    need pytest || { failures+=("suite: packages are missing"); return 1; }
    OMP_NUM_THREADS=2 step 480 "suite: the rest" "$PYTHON" -m pytest -q -p no:cacheprovider \
        -m "not slow and not gpu" $(workers 8) --ignore=tests/cuda \
        --ignore=tests/triton/test_compile.py
    step 300 "suite: Triton's tiles" "$PYTHON" -m pytest -q -p no:cacheprovider -m slow \
        $(workers 8) tests/triton/test_compile.py
}

# Options for pytest: that many processes where it can have several.
workers() { if has xdist; then echo "-n $1"; fi; }

part_sanitize() {
    local tool backend
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    # The wrong results of a broken kernel show even where no tool does.
    for backend in cuda triton; do
        step 60 "sanitize: $backend, no tool" "$PYTHON" -m bench.gpu.drive $backend
    done
    for tool in memcheck racecheck initcheck synccheck; do
        step 90 "sanitize: cuda, $tool" compute-sanitizer --tool $tool --error-exitcode 9 \
            "$PYTHON" -m bench.gpu.drive cuda
    done
    step 90 "sanitize: triton, memcheck" compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$PYTHON" -m bench.gpu.drive triton
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

# A process for every group: an illegal access ends the CUDA context, and only that group with it.
measure() {
    local part=$1 group=$2 seconds=$3
    step $((seconds + 10)) "$part: $group" "$PYTHON" "${BENCH[@]}" "$part" "$group" \
        --seconds "$seconds"
}

part_ops() {
    measure ops ceilings 40
    measure ops attention 80
    measure ops rows 80
    measure ops gemm 120
}

part_choice() {
    measure ops choice 530
    write_table
}

part_models() {
    measure models base 250
    measure models large 150
    measure models accuracy 120
}

part_compile() {
    measure models compile 350
    measure ops compiled 200
}

part_tiles() { step 580 "tiles" "$PYTHON" -m bench.gpu.tiles; }

part_report() {
    step 120 "report" "$PYTHON" "${BENCH[@]}" report
}

main() {
    if [ "${1:-}" = --dry-run ]; then
        shift
        DRY_RUN=1
        if [ -z "${FASTBERT_RESULTS:-}" ]; then
            echo "bench/gpu.sh: a dry run has no results; name a folder in FASTBERT_RESULTS" >&2
            exit 2
        fi
        BENCH+=(--dry-run)
        [ $# -gt 0 ] || set -- ops choice models report
    fi
    [ $# -gt 0 ] || set -- build test sanitize ops choice models compile suite report
    local part
    for part in "$@"; do
        case $part in
            build | test | sanitize | ops | choice | models | compile | suite | report | tiles | first) ;;
            *) echo "bench/gpu.sh: there is no part \"$part\"; name build, test, sanitize, ops," \
                    "choice, models, compile, suite, report, tiles or first" >&2
               exit 2 ;;
        esac
    done
    if [ -z "$DRY_RUN" ] && command -v nvidia-smi >/dev/null; then
        # Clocks and other programs on the GPU explain figures that surprise.
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv
        nvidia-smi --query-compute-apps=pid,used_memory --format=csv
    fi
    for part in "$@"; do
        echo "=== $part"
        deadline=$((SECONDS + PART_SECONDS))
        if [ $ALL_SECONDS -lt $deadline ]; then deadline=$ALL_SECONDS; fi
        "part_$part"
    done
    echo "=== summary"
    printf '%s\n' "${steps[@]}"
    if [ ${#failures[@]} -gt 0 ]; then
        echo "failed:"
        printf '  %s\n' "${failures[@]}"
        exit 1
    fi
}

main "$@"
