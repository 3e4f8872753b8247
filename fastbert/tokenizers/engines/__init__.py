"""Engines that split texts into pieces: one in Python, one over the `tokenizers` library."""
