"""What only transformers 4 computes, against its recorded answers (make_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path

import golden_cases
import pytest
import torch

import fastbert

RECORDED = json.loads((Path(__file__).parent / "golden" / "transformers4.json").read_text())


@pytest.mark.parametrize("label", list(golden_cases.CASES))
def test_recorded(label: str) -> None:
    case = golden_cases.CASES[label]
    config = getattr(fastbert, case["config"])(**golden_cases.settings(case))
    model = getattr(fastbert, case["model"])(config).double().eval()
    golden_cases.fill(model)
    model.tie_weights()
    model.set_backend("reference")
    inputs = golden_cases.inputs(case)
    with torch.no_grad():
        got = model(**inputs)[0]
    expected = torch.tensor(RECORDED[label], dtype=torch.float64).reshape(got.shape)
    mask = inputs.get("attention_mask", torch.ones(3, 5))
    mask = mask if mask.dim() == 2 else torch.ones(3, 5)
    error = float(((got - expected).abs() * mask[..., None]).max())
    bound = 2e-6 if case["config"].startswith("Flaubert") else 1e-9
    assert error <= bound, f"{label}: {error:.2e}"


def test_every_case_is_recorded() -> None:
    assert set(RECORDED) == set(golden_cases.CASES)
