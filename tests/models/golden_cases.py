"""The cases that transformers 4.56.2 is asked about: no import of either library."""

from __future__ import annotations

import zlib
from typing import Any

import torch

_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "vocab_size": 31,
}
_FLAUBERT = {
    "emb_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 12,
    "vocab_size": 31,
}
_HEADS = {"head_mask": [[1.0, 0.5], [0.0, 1.0]]}
_PADDED = {"attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]}
_TRIANGLE = {"attention_mask": torch.ones(3, 5, 5).tril().tolist()}


def _case(family: str, model: str, settings: dict[str, Any], inputs: dict[str, Any]) -> Any:
    return {
        "config": f"{family}Config",
        "model": f"{family}{model}",
        "settings": settings,
        "inputs": inputs,
    }


CASES: dict[str, Any] = {
    f"{family} {kind} {name}": _case(family, "Model", {"position_embedding_type": kind}, inputs)
    for family in ("Bert", "Camembert")
    for kind in ("relative_key", "relative_key_query")
    for name, inputs in (("plain", {}), ("padded", _PADDED))
}
CASES |= {
    f"{family} heads {name}": _case(family, "Model", {}, {**_HEADS, **inputs})
    for family in ("Bert", "Camembert", "RemBert", "Flaubert")
    for name, inputs in (("plain", {}), ("padded", _PADDED))
}
CASES |= {
    f"{family} three dimensions": _case(family, "Model", {}, _TRIANGLE)
    for family in ("Bert", "Camembert", "RemBert")
}
CASES |= {
    f"Flaubert pre-norm {name}": _case("Flaubert", model, {"pre_norm": True}, inputs)
    for model in ("Model", "WithLMHeadModel")
    for name, inputs in (("plain " + model, {}), ("padded " + model, _PADDED))
}
CASES["Bert decoder relative_key"] = _case(
    "Bert",
    "LMHeadModel",
    {"position_embedding_type": "relative_key", "is_decoder": True},
    {"use_cache": False},
)


def settings(case: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the configuration."""
    values = dict(_FLAUBERT if case["config"].startswith("Flaubert") else _BERT)
    if case["config"].startswith("RemBert"):
        values |= {"input_embedding_size": 6, "output_embedding_size": 10}
    return values | case["settings"]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the forward."""
    ids = torch.randint(4, 31, (3, 5), generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {"input_ids": ids}
    for name, value in case["inputs"].items():
        values[name] = value if isinstance(value, bool) else torch.tensor(value)
    return values


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights that follow from their names alone."""
    for name, parameter in model.named_parameters():
        if parameter.shape and not name.endswith(("decoder.weight", "decoder.bias", "proj.weight")):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values * 0.25)
