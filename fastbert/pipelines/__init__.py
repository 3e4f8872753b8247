"""Pipelines: from text to answers, with transformers' task names and results."""

from __future__ import annotations

from .base import Pipeline
from .build import TASKS, pipeline

__all__ = ["TASKS", "Pipeline", "pipeline"]
