"""docs/integrations.md runs as it stands, on a tiny model in the place of the published ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sentence_folders
import torch

from fastbert.integrations.accelerate import accelerated_in

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="run from a checkout")


class HuggingFaceEmbeddings:
    """As langchain_huggingface has it: the model is a private name of a class of pydantic."""

    def __init__(self, model_name: str) -> None:
        import sentence_transformers

        self.__pydantic_private__ = {
            "_client": sentence_transformers.SentenceTransformer(model_name, device="cpu")
        }

    def embed_query(self, text: str) -> Any:
        return self.__pydantic_private__["_client"].encode([text])[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sentence_folders.tiny(tmp_path / "tiny")
    rows = [
        {"input_ids": [2, 5 + n, 6, 3], "attention_mask": [1, 1, 1, 1], "labels": n % 2}
        for n in range(8)
    ]
    lightning = type("lightning", (), {"LightningModule": torch.nn.Module})
    names: dict[str, Any] = {"path": str(path), "folder": str(tmp_path), "rows": rows}
    names |= {"torch": torch, "lightning": lightning}
    names["HuggingFaceEmbeddings"] = HuggingFaceEmbeddings
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "transformers, accelerated" in capsys.readouterr().out
    for name in ("model", "embedder", "reranker", "merged", "module", "embeddings"):
        assert accelerated_in(names[name]), name
    assert names["vectors"].shape == (2, sentence_folders.HIDDEN) and len(names["scores"]) == 2
    batch = {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([1])}
    names["module"].training_step(batch, 0).backward()
