"""Pipelines: from text to answers, with transformers' task names and results."""

from __future__ import annotations

from fastbert.pipelines.base import Pipeline
from fastbert.pipelines.build import TASKS, pipeline

__all__ = ["TASKS", "Pipeline", "pipeline"]
