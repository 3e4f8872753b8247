"""Text generation for models that predict the next token."""

from __future__ import annotations


class GenerationMixin:
    """What a model that predicts the next token inherits besides."""
