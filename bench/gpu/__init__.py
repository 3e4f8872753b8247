"""The GPU kernels and models, measured beside their rivals: parts of `bench/gpu.sh`.

`python -m bench.gpu ops|models|report|merge`; without a GPU, `--dry-run` goes the same ways with
tiny sizes on the CPU, and marks what it writes.
"""
