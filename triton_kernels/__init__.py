"""Triton forms of the ops, installed as ``fastbert.triton_kernels``: one file an op.

Each module holds the kernel, its launcher (the op, with the signature every backend shares) and
``supports(traits)``, which returns None or the reason why the kernel cannot serve those traits.
Importing this package does not import triton; importing one of its modules does.
"""
