"""Errors that callers may want to tell apart."""

from __future__ import annotations


class Unavailable(RuntimeError):
    """Raised where a backend or kernel was asked for that cannot run here; the message says why."""


class Changing(RuntimeError):
    """Raised where a model changes again and again while a pass runs; the message says how."""
