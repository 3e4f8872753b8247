"""docs/training.md runs as it stands, on a small CamemBERT in the place of the published one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import fastbert

sys.path.append(str(Path(__file__).parents[1]))

import small_models

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="run from a checkout")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = (tmp_path_factory.mktemp(name) for name in ("camembert-base", "vocabularies"))
    return small_models.camembert(*folders)


def test_the_page_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    for block in code:
        block = block.replace('"camembert-base"', repr(str(checkpoint)))
        # Otherwise Trainer would ask for an accelerator, where there is one.
        block = block.replace("report_to=", "use_cpu=True, report_to=")
        exec(compile(block, str(PAGE), "exec"), names)
    trainer, classify, merged = names["trainer"], names["classify"], names["merged"]
    assert trainer.state.best_model_checkpoint  # type: ignore[attr-defined]
    assert {"accuracy", "loss"} <= {
        key.removeprefix("eval_")
        for entry in trainer.state.log_history  # type: ignore[attr-defined]
        for key in entry
    }
    assert classify("Quel ennui !")[0]["label"] in ("LABEL_0", "LABEL_1")  # type: ignore[operator]
    assert isinstance(merged, fastbert.CamembertForSequenceClassification)
