"""Models before and after accelerate(), timed: what is printed, and what is not.

Guards: an engine whose numbers are wrong, or NaN, gets no time and turns the exit status; the
others are compared with the first of their precision.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench import drop_in

pytestmark = pytest.mark.filterwarnings("ignore")


def _run(monkeypatch: pytest.MonkeyPatch, second: Callable[[Tensor], Tensor]) -> int:
    def engines(precision: str) -> drop_in.Engines:
        exact = torch.arange(1.0, 9.0)
        return {"theirs": lambda: exact, "ours": lambda: second(exact)}

    monkeypatch.setattr(drop_in, "PARTS", {"made-up": engines})
    return drop_in.main(["--parts", "made-up", "--precisions", "fp32", "--budget", "0.01"])


def test_right_engines_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, lambda exact: exact * (1 + 1e-6)) == 0
    theirs, ours = capsys.readouterr().out.splitlines()[1:3]
    assert theirs.split()[-1] == "1.00" and "theirs" in theirs
    assert "ours" in ours and "gate" not in ours and float(ours.split()[-1]) > 0


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_engine_has_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    assert _run(monkeypatch, lambda exact: exact * factor) == 1
    ours = capsys.readouterr().out.splitlines()[2]
    assert ours.split()[-3:] == ["gate", "-", "-"]
