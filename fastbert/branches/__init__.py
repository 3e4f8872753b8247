"""The branches of module trees, as modules that can be called, hooked and replaced.

They compute in plain torch on the padded grid what kernels compute without it. A pass takes them
only where something in them is not as it was built; see `fastbert.modeling.module_table`.
"""
