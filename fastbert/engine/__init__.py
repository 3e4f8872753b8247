"""Prepared encoders: a whole pass as one call, on a CPU or a GPU, and the cache that keeps them."""
