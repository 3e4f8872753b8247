"""The examples run, learn something on kernels, and leave folders that the other libraries read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_folders
import sentence_transformers as st
import torch
import transformers

from fastbert.integrations.accelerate import accelerated_in

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="run from a checkout"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(sentence_folders.tiny(tmp_path_factory.mktemp("examples") / "tiny"))


def on_kernels(model: Any) -> bool:
    found = accelerated_in(model)
    return bool(found) and not any(server.reasons for _, _, server in found)


def test_trainer(tiny: str, tmp_path: Path) -> None:
    trainer = example("trainer").main(tiny, str(tmp_path), steps=40, rate=3e-3)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < 0.6 and on_kernels(trainer.model)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor.cpu(), again.state_dict()[name]), name


def test_lora(tiny: str, tmp_path: Path) -> None:
    merged = example("lora").main(tiny, str(tmp_path))
    assert on_kernels(merged)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, again(ids).logits, atol=2e-5, rtol=0)


def test_sentence_trainer(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    before = st.SentenceTransformer(tiny, device="cpu")
    model = example("sentence_trainer").main(tiny, str(tmp_path))
    assert on_kernels(model)
    again = st.SentenceTransformer(str(tmp_path), device="cpu")
    texts = sentence_folders.TEXTS
    np.testing.assert_allclose(again.encode(texts), model.cpu().encode(texts), atol=2e-5)
    assert np.abs(again.encode(texts) - before.encode(texts)).max() > 1e-4
