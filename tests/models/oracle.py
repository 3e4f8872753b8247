"""The same model twice, ours and transformers', and the inputs both are asked about."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

import fastbert
from fastbert.modeling.encoding import TokenizerExtras

# transformers 5 indexes this cache by layer for pre-norm FlauBERT, which it does not allow; with
# this it computes what 4.56.2 computes.
EncoderDecoderCache.__getitem__ = lambda self, _: self

BATCH, LENGTH, CHOICES, VOCABULARY, HIDDEN, LAYERS, HEADS = 4, 7, 3, 61, 32, 2, 4
FLAUBERT_PAD = 2
_BERT_LIKE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
    "max_position_embeddings": 24,
    "vocab_size": VOCABULARY,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": _BERT_LIKE,
    "XLMRoberta": _BERT_LIKE,
    "Roberta": _BERT_LIKE,
    "Camembert": _BERT_LIKE,
    "RemBert": {**_BERT_LIKE, "input_embedding_size": 18, "output_embedding_size": 43},
    "AlignText": _BERT_LIKE,
    "DistilBert": {
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": 37,
        "max_position_embeddings": 24,
        "vocab_size": VOCABULARY,
    },
    "Electra": {**_BERT_LIKE, "embedding_size": 18},
    "MPNet": _BERT_LIKE,
    "Flaubert": {
        "emb_dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "max_position_embeddings": 24,
        "vocab_size": VOCABULARY,
        "start_n_top": 3,
        "end_n_top": 2,
    },
}
TASKS = {
    "Bert": (
        "Model ForPreTraining LMHeadModel ForMaskedLM ForNextSentencePrediction "
        "ForSequenceClassification ForMultipleChoice ForTokenClassification ForQuestionAnswering"
    ),
    "Roberta": (
        "Model ForCausalLM ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "Camembert": (
        "Model ForCausalLM ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "Flaubert": (
        "Model WithLMHeadModel ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnsweringSimple ForQuestionAnswering"
    ),
    "RemBert": (
        "Model ForCausalLM ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "AlignText": "Model",
    "XLMRoberta": (
        "Model ForCausalLM ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "DistilBert": (
        "Model ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "Electra": (
        "Model ForPreTraining ForCausalLM ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
    "MPNet": (
        "Model ForMaskedLM ForSequenceClassification ForMultipleChoice "
        "ForTokenClassification ForQuestionAnswering"
    ),
}
# What has heads of all kinds.
TEXT_FAMILIES = [family for family in TASKS if family != "AlignText"]
CLASSES = [family + task for family, tasks in TASKS.items() for task in tasks.split()]


# Who has an argument that needs a decoder, a cache or transformers 4, and where all of them are
# compared; test_no_argument_is_left_out holds every class against these lists.
_CROSS_FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "RemBert")
DECODERS = [
    "BertLMHeadModel",
    "RobertaForCausalLM",
    "XLMRobertaForCausalLM",
    "CamembertForCausalLM",
    "RemBertForCausalLM",
    "ElectraForCausalLM",
]
# Families without token types; what their forwards take of them changes nothing.
UNTYPED = ("DistilBert", "MPNet")
CROSS_ATTENDED = [
    *DECODERS,
    "ElectraModel",
    *(f"{family}{task}" for family in _CROSS_FAMILIES for task in ("Model", "ForMaskedLM")),
]
CACHED = [*DECODERS, "ElectraModel", *(f"{family}Model" for family in _CROSS_FAMILIES)]
FLAUBERT_CLASSES = [name for name in CLASSES if name.startswith("Flaubert")]
ELSEWHERE = {
    "encoder_hidden_states": CROSS_ATTENDED,
    "encoder_attention_mask": CROSS_ATTENDED,
    "past_key_values": CACHED,
    "use_cache": CACHED,
    "cache": FLAUBERT_CLASSES,
    "shift_labels": DECODERS,
    # tests/integrations and test_model_contract.py.
    "num_items_in_batch": CLASSES,
    **dict.fromkeys(TokenizerExtras.__annotations__, CLASSES),
    "head_mask": CLASSES,
    "cache_position": CLASSES,
    # Ours alone: test_model_features.py.
    "logits_to_keep": [
        *(f"{family}ForMaskedLM" for family in (*_CROSS_FAMILIES, *UNTYPED, "Electra")),
        "FlaubertWithLMHeadModel",
    ],
}


def family_of(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


def is_causal(name: str) -> bool:
    return name.endswith(("LMHeadModel", "ForCausalLM")) and not name.startswith("Flaubert")


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights that follow from their names alone: normal, std 0.25; norms around one."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.25
        is_norm = name.endswith("weight") and ("orm" in name.split(".")[-2] or "layer_norm" in name)
        parameter.copy_(values + (1.0 if is_norm else 0.0))


def pair(name: str, **overrides: Any) -> tuple[Any, Any]:
    """(transformers' model, ours), float64, in evaluation mode, with the same weights."""
    family = family_of(name)
    values = {**FAMILIES[family], "num_labels": 2, **overrides}
    if is_causal(name):
        values.setdefault("is_decoder", True)
    config_name = f"{family}Config"
    theirs = getattr(transformers, name)(
        getattr(transformers, config_name)(attn_implementation="eager", **values)
    )
    ours = getattr(fastbert, name)(getattr(fastbert, config_name)(**values))
    theirs, ours = theirs.double().eval(), ours.double().eval()
    fill(theirs)
    theirs.tie_weights()
    missing = ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    ours.set_backend("reference")
    return theirs, ours


@cache
def shared_pair(name: str) -> tuple[Any, Any]:
    """pair(name) made once, for tests that leave the models as they are."""
    return pair(name)


def tolerance(name: str) -> float:
    """FlauBERT and ALIGN compute their softmax in float32, even on float64 models."""
    return 2e-6 if name.startswith(("Flaubert", "AlignText")) else 1e-9


def random_ids(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (BATCH, LENGTH), generator=generator)


def random_labels(count: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


def padded_mask() -> Tensor:
    """Full, padded on the right, on the left, and with a hole."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, :3] = 0
    mask[3, 2:4] = 0
    return mask


def inputs_of(name: str) -> dict[str, dict[str, Any]]:
    """Cases by name: keyword arguments, to which input_ids is added unless it is there."""
    family = family_of(name)
    generator = torch.Generator().manual_seed(5)
    width = 18 if family in ("RemBert", "Electra") else HIDDEN
    embeds = torch.randn(BATCH, LENGTH, width, generator=generator, dtype=torch.float64)
    kinds = random_labels(2, (BATCH, LENGTH), 3)
    positions = random_labels(20, (BATCH, LENGTH), 4)
    mask = padded_mask()
    ids = random_ids()
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "mask": {"attention_mask": mask},
        "token types": {"token_type_ids": kinds},
        "positions": {"position_ids": positions, "attention_mask": mask},
        "embeddings": {"input_ids": None, "inputs_embeds": embeds, "attention_mask": mask},
        "everything returned": {
            "attention_mask": mask,
            "output_hidden_states": True,
            "output_attentions": True,
        },
        "tuple": {"return_dict": False, "attention_mask": mask},
    }
    if family != "Flaubert":
        causal = is_causal(name)
        grid = torch.ones(BATCH, 1, LENGTH, LENGTH).tril() if causal else torch.ones(1)
        wide = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=generator) > 0.3
        wide = (wide & (grid > 0)) | torch.eye(LENGTH, dtype=torch.bool)
        bias = torch.zeros(wide.shape, dtype=torch.float64).masked_fill(~wide, -1e30)
        cases["four dimensions"] = {"attention_mask": bias}
    else:
        pads = ids.clone()
        pads[1, 5:] = FLAUBERT_PAD
        cases["padding ids"] = {"input_ids": pads}
        cases["lengths"] = {"lengths": torch.tensor([7, 4, 5, 6])}
        cases["languages"] = {"langs": kinds * 0}
    cases.update(_labelled(name, mask, ids))
    for case in cases.values():
        case.setdefault("input_ids", ids)
        if name.endswith("ForMultipleChoice"):
            for key, value in case.items():
                if isinstance(value, Tensor) and key not in ("labels", "lengths"):
                    case[key] = torch.stack([value.roll(i, 0) for i in range(CHOICES)], dim=1)
    if name == "DistilBertForMultipleChoice":
        # transformers takes these as the encoder does.
        cases["positions"]["position_ids"] = cases["positions"]["position_ids"].flatten(0, 1)
    if name.endswith("ForMultipleChoice"):
        # A flattened mask of four dimensions means nothing to transformers.
        cases.pop("four dimensions", None)
        cases.pop("lengths", None)
    return {k: {n: v for n, v in case.items() if v is not None} for k, case in cases.items()}


def _labelled(name: str, mask: Tensor, ids: Tensor) -> dict[str, dict[str, Any]]:
    labels = random_labels(VOCABULARY, (BATCH, LENGTH))
    some = labels.masked_fill(mask == 0, -100)
    ends = {
        "start_positions": torch.tensor([0, 3, 6, 20]),
        "end_positions": torch.tensor([1, 4, 6, 5]),
    }
    if name == "ElectraForPreTraining":
        return {
            "labels": {"labels": labels % 2, "attention_mask": mask},
            "labels everywhere": {"labels": labels % 2},
        }
    if name.endswith("ForPreTraining"):
        follows = torch.tensor([0, 1, 1, 0])
        return {
            "labels": {"labels": some, "next_sentence_label": follows, "attention_mask": mask},
            "one label": {"labels": some},
        }
    if name.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM")):
        cases = {
            "labels": {"labels": some, "attention_mask": mask},
            "labels at padding": {"labels": labels, "attention_mask": mask},
        }
        if is_causal(name):
            # A token before all visible ones sees nothing; there transformers' own attentions
            # differ from one another, so no label may rest on it.
            some[2, 3] = -100
            right = mask.clone()
            right[2:] = 1
            cases["labels at padding"] = {"labels": labels, "attention_mask": right}
            cases["last logits"] = {"logits_to_keep": 2}
            cases["chosen logits"] = {"logits_to_keep": torch.tensor([1, 3, 4])}
        return cases
    if name.endswith("ForNextSentencePrediction") or name.endswith("ForSequenceClassification"):
        return {"labels": {"labels": torch.tensor([0, 1, 1, 0]), "attention_mask": mask}}
    if name.endswith("ForMultipleChoice"):
        return {"labels": {"labels": torch.tensor([0, 2, 1, 0]), "attention_mask": mask}}
    if name.endswith("ForTokenClassification"):
        return {
            "labels": {"labels": (some % 2).masked_fill(mask == 0, -100), "attention_mask": mask},
            "labels at padding": {"labels": labels % 2, "attention_mask": mask},
        }
    if name == "FlaubertForQuestionAnswering":
        inside = {k: v.clamp(max=LENGTH - 1) for k, v in ends.items()}
        chosen = torch.tensor([0, 1, 2, 3])
        impossible = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
        p_mask = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
        p_mask[:, :2] = 1.0
        return {
            "labels": {**inside, "attention_mask": mask},
            "impossible": {**inside, "cls_index": chosen, "is_impossible": impossible},
            "p_mask": {"p_mask": p_mask, "cls_index": chosen},
        }
    if "ForQuestionAnswering" in name:
        return {
            "labels": {**ends, "attention_mask": mask},
            "labels in columns": {k: v[:, None] for k, v in ends.items()},
        }
    return {}


def compared(theirs: Any, ours: Any, mask: Tensor, bound: float, where: str) -> None:
    """Every field of two outputs, attended rows only; raises AssertionError."""
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs), where
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(theirs, ours, strict=True))]
    else:
        names = [key for key, value in theirs.items() if value != ()]
        assert list(ours.keys()) == names, f"{where}: {list(ours.keys())} is not {names}"
        pairs = [(key, theirs[key], ours[key]) for key in names]
    for key, a, b in pairs:
        if isinstance(a, Tensor):
            close(a, b, mask, bound, f"{where}: {key}")
        elif isinstance(a, tuple) and a and isinstance(a[0], Tensor):
            assert len(a) == len(b), f"{where}: {key}"
            for layer, (x, y) in enumerate(zip(a, b, strict=True)):
                close(x, y, mask, bound, f"{where}: {key}[{layer}]")


def close(a: Tensor, b: Tensor, mask: Tensor, bound: float, where: str) -> None:
    assert a.shape == b.shape, f"{where}: {tuple(b.shape)} is not {tuple(a.shape)}"
    mask = mask.reshape(-1, mask.shape[-1]) if mask.dim() == 3 else mask
    keep = torch.ones((), dtype=torch.bool)
    if mask.dim() == 2 and a.shape[:2] == mask.shape and a.dim() >= 2:
        keep = (mask != 0).reshape(*mask.shape, *[1] * (a.dim() - 2))
    elif mask.dim() == 2 and a.dim() == 4 and a.shape[2:3] == mask.shape[1:]:
        keep = (mask != 0)[:, None, :, None]
    if not a.is_floating_point():
        assert torch.equal(a, b), where
        return
    if a.dtype is torch.float32:
        bound = max(bound, 1e-6)  # transformers' causal loss, whatever the model's precision
    assert bool(torch.isfinite(b).all()), f"{where} is not finite"
    error = ((a.double() - b.double()).abs() * keep).max() if a.numel() else torch.tensor(0.0)
    scale = max(float((a.double().abs() * keep).max()), 1.0) if a.numel() else 1.0
    assert float(error) <= bound * scale, f"{where}: error {float(error):.2e} of {scale:.2e}"
