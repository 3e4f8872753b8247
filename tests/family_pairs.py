"""The same random model twice, of transformers and of fastbert, and the comparison of both."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fastbert

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 40}
XLM: dict[str, Any] = {"n_words": 60, "vocab_size": 60, "emb_dim": 24, "n_layers": 3, "n_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", {**SIZES, "pad_token_id": 1}),
    "camembert": ("Camembert", {**SIZES, "pad_token_id": 1}),
    "rembert": (
        "RemBert",
        {**SIZES, "input_embedding_size": 12, "output_embedding_size": 20,
         "bos_token_id": 3, "eos_token_id": 4},
    ),
    "align": ("AlignText", SIZES),
    "electra": ("Electra", {**SIZES, "embedding_size": 12}),
    "distilbert": ("DistilBert", {"vocab_size": 60, "dim": 24, "n_layers": 3, "n_heads": 2,
                                  "hidden_dim": 40}),
    "mpnet": ("MPNet", SIZES),
    "flaubert": ("Flaubert", XLM),
    "pre_norm": ("Flaubert", {**XLM, "pre_norm": False, "gelu_activation": False}),
}  # fmt: skip
IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(7) < torch.tensor([[7], [1], [4]])).long()


def pair(family: str, task: str = "Model", **changes: Any) -> tuple[Any, Any]:
    """The same random model of transformers and of fastbert."""
    prefix, sizes = FAMILIES[family]
    sizes = sizes | changes
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**sizes, attn_implementation="eager")
    theirs = getattr(transformers, f"{prefix}{task}")(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    ours = getattr(fastbert, f"{prefix}{task}")(getattr(fastbert, f"{prefix}Config")(**sizes))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def outputs(model: Any, **options: Any) -> list[Tensor]:
    """What a model answers, without the padding that fastbert leaves out."""
    answer = model(IDS, attention_mask=MASK, **options)
    values = [v for v in answer.to_tuple() if isinstance(v, Tensor)]
    return [v[MASK.bool()] if v.shape[:2] == IDS.shape else v for v in values]


def same(theirs: Any, ours: Any, tolerance: float = 1e-5, **options: Any) -> None:
    expected, found = outputs(theirs, **options), outputs(ours, **options)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        scale = max(1.0, float(one.abs().max()))
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance * scale)
