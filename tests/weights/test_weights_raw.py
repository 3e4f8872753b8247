"""Raw writes, which no version tells of, are followed once they are told or looked for.

`model.refresh()` tells of them; FASTBERT_CHECK_WEIGHTS=1 finds those that were not told.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from following import answer, check, made
from torch import Tensor

import fastbert
from fastbert.kernels import native
from fastbert.runtime import versions

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

RAW: dict[str, Callable[[Tensor], object]] = {
    "data": lambda w: w.data[1, 2].add_(1.0),
    "numpy": lambda w: w.detach().numpy().__setitem__((1, 2), 5.0),
    "dlpack": lambda w: torch.from_dlpack(w.detach())[1, 2].add_(1.0),
    "storage": lambda w: w.untyped_storage().__setitem__(4 * w.shape[1] + 3, 66),
    "peft": lambda w: setattr(w, "data", w.data.add_(0.1)),
}
RAW_WEIGHTS = ("bert.encoder.layer.1.attention.self.query.weight", "classifier.weight")


@pytest.mark.parametrize("name", RAW_WEIGHTS)
@pytest.mark.parametrize("write", RAW)
def test_raw_writes_are_followed_after_refresh(write: str, name: str, engine: str) -> None:
    model = made()
    before = answer(model)
    RAW[write](model.get_parameter(name))
    model.refresh()
    check(model, before)


@pytest.mark.parametrize("name", RAW_WEIGHTS)
@pytest.mark.parametrize("write", RAW)
def test_raw_writes_are_found_where_everything_is_compared(
    write: str,
    name: str,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(versions, "CHECK_ALWAYS", True)
    monkeypatch.setattr(versions, "_warned", set())
    model = made()
    assert "FASTBERT_CHECK_WEIGHTS" in fastbert.explain(model)
    with caplog.at_level(logging.WARNING, logger="fastbert"):
        for _ in range(2):
            before = answer(model)
            RAW[write](model.get_parameter(name))
            check(model, None if write in ("numpy", "storage") else before)
    told = [record.getMessage() for record in caplog.records if "not count" in record.getMessage()]
    expected = "encoder.layer.1.attention.self.query.weight" if "bert" in name else "(7, 48)"
    if engine == "gpu" and "bert" in name:
        assert not told  # read in place, so that there is nothing to forget
        return
    assert len(told) == 1 and expected in told[0] and "model.refresh()" in told[0]


def test_the_environment_turns_comparing_on() -> None:
    code = "from fastbert.runtime import versions; print(versions.CHECK_ALWAYS)"
    for value, expected in (("1", "True"), ("0", "False"), ("", "False")):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"FASTBERT_CHECK_WEIGHTS": value},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert out.stdout.strip() == expected
