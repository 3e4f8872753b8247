"""What loading the package and running a model bring in beside torch.

Modules are counted and not seconds, which depend on the machine. torch._dynamo alone costs as much
time and memory as torch itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "transformers",
    "triton",
    "sympy",
    "sentencepiece",
    "huggingface_hub",
    "sacremoses",
    "matplotlib",
)

IMPORT_ALL = "import fastbert; [getattr(fastbert, name) for name in fastbert.__all__]"
RUN_A_MODEL = """
import torch, fastbert
config = fastbert.BertConfig(
    vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
model = fastbert.BertForSequenceClassification(config)
batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "labels": torch.tensor([0, 1])}
batch["attention_mask"] = batch["input_ids"] != 0
model.train()(**batch).loss.backward()
with torch.no_grad():
    model.eval()(**batch)
"""


def loaded_by(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after a program."""
    report = "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program + report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def torch_alone() -> set[str]:
    return loaded_by("import torch")


@pytest.mark.parametrize(
    "program",
    ["from fastbert import SentenceEncoder", IMPORT_ALL, RUN_A_MODEL],
    ids=["sentence encoder", "every public name", "a forward and a backward"],
)
def test_nothing_heavy_is_loaded(program: str, torch_alone: set[str]) -> None:
    extra = (loaded_by(program) - torch_alone) & set(HEAVY)
    assert not extra, f"loaded: {', '.join(sorted(extra))}; import it where it is used"


def test_the_package_itself_loads_nothing() -> None:
    """`import fastbert` and `fastbert env` answer in milliseconds, with or without torch."""
    loaded = loaded_by("import fastbert")
    assert not loaded & {"torch", "numpy", "tokenizers", *HEAVY}
