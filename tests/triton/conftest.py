"""Compiling every configuration takes minutes: the slow ones run when -m names them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="one of many configurations; run pytest -m slow tests/triton")
    for item in items:
        if item.get_closest_marker("slow") and "test_compile" in item.nodeid:
            item.add_marker(skip)
