"""The benchmark of training steps: what it trains on, and the ratios that it prints."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy")

from bench import training


def test_texts_are_ragged_and_the_same_for_a_seed() -> None:
    one, again, other = training.texts(16, 0), training.texts(16, 0), training.texts(16, 1)
    lengths = one["attention_mask"].sum(1)
    assert one["input_ids"].shape == (16, lengths.max()) and lengths.min() < lengths.max() / 2
    assert lengths.max() <= training.LONGEST
    assert all((one[name] == again[name]).all() for name in one)
    assert one["input_ids"].shape != other["input_ids"].shape


def test_ratios_are_to_transformers() -> None:
    rows = [
        {"size": "tiny", "precision": "fp32", "engine": engine, "samples_per_second": speed,
         "peak_bytes": peak}
        for engine, speed, peak in (("fastbert", 30.0, 1e9), ("transformers", 10.0, 2e9))
    ]  # fmt: skip
    lines = training.table(rows).splitlines()
    assert "30.00 | 1.00 GB | 3.00x, memory 0.50x" in lines[2]
    assert "10.00 | 2.00 GB | 1.00x, memory 1.00x" in lines[3]


def test_a_loss_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, job: training.Job) -> None:
            self.loss = 1.0 if job.engine == "fastbert" else 1.1

        def step(self, seed: int) -> dict[str, float]:
            return {"loss": self.loss}

        def close(self) -> None:
            pass

    monkeypatch.setattr(training, "Process", Wrong)
    with pytest.raises(SystemExit, match="nothing is timed"):
        training.gate("tiny", "fp32", 4, 1)
