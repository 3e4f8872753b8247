"""The GPU kernels and models, measured beside their baselines: parts of `bench/gpu.sh`.

`python -m bench.gpu ops|models|report|merge`; without a GPU, `--dry-run` runs the same code with
tiny sizes on the CPU, and marks what it writes.
"""
