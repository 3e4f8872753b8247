"""Who reads what an encoder answers, and whether they look at masked tokens.

transformers computes hidden states for masked tokens too. Computing them costs what the padding
costs, so it is left out where the caller is known to read none of them: heads that read the first
token, and what sentence-transformers pools by the mask. Everyone else gets them.
"""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import nn

from fastbert.integrations.families import FAMILIES
from fastbert.layers.hooks import hooked

# Code that hands arguments and answers on.
_BETWEEN = ("torch.nn.modules.module", "torch.nn.parallel.", "torch._dynamo.", "torch._compile",
            "torch.utils._contextlib", "peft.", "accelerate.", "contextlib", "transformers.utils.",
            "torch.amp.", "fastbert.integrations.")  # fmt: skip
_ST = "sentence_transformers"
# Modules of sentence-transformers that read token embeddings by the mask, or not at all.
_BY_MASK = ("Pooling", "SpladePooling")
_BEHIND = ("Normalize", "Dropout", "LayerNorm")


def ignores_padding(depth: int = 1) -> bool:
    """Return whether the one who called an encoder reads no hidden state of a masked token.

    Args:
        depth: frames between the caller of this function and the encoder's forward.
    """
    frame = _outer(sys._getframe(depth))
    if frame is None:
        return False
    head = _heads().get(frame.f_code)
    if head is not None and head.first:
        return not head.parts or _is_original(frame.f_locals.get("self"), head.parts)
    if head is not None:
        # It hands every token on, and the one behind it decides.
        frame = _outer(frame.f_back)
    return frame is not None and _is_pooled(frame)


def _outer(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
        frame = frame.f_back
    return frame


@dataclass(frozen=True)
class _Head:
    """A head of transformers: whether it reads the first token alone, and through which classes."""

    first: bool
    parts: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1)
def _heads() -> dict[CodeType, _Head]:
    """Know the heads by the code of their forwards, which classes derived from them share."""
    import transformers

    found: dict[CodeType, _Head] = {}
    for family in FAMILIES.values():
        heads = {name: _Head(True) for name in family.pooled_heads}
        heads |= {name: _Head(True, family.first_token_parts) for name in family.first_token_heads}
        heads |= {name: _Head(False) for name in family.token_heads}
        for name, head in heads.items():
            kind: Any = getattr(transformers, name, None)
            if kind is not None:
                found[inspect.unwrap(kind.forward).__code__] = head
    return found


def _is_original(head: Any, parts: tuple[str, ...]) -> bool:
    """Return whether what reads the hidden states in a head is what its class puts there."""
    part = getattr(head, "classifier", None)
    if not isinstance(part, nn.Module) or hooked(part):
        return False
    kind = type(part)
    return kind.__name__ in parts and kind.__module__.startswith("transformers.")


def _is_pooled(frame: FrameType) -> bool:
    """Return whether a frame is of sentence-transformers' module before a pooling by the mask."""
    if not frame.f_globals.get("__name__", "").startswith(f"{_ST}."):
        return False
    module, holder = frame.f_locals.get("self"), _outer(frame.f_back)
    model = None if holder is None else holder.f_locals.get("self")
    if holder is None or not holder.f_globals.get("__name__", "").startswith(f"{_ST}."):
        return False
    if not isinstance(module, nn.Module) or not isinstance(model, nn.Module):
        return False
    if not _reads_pooled(_outer(holder.f_back)):
        return False
    parts = list(model.children())
    if module not in parts:
        return False
    behind = parts[parts.index(module) + 1 :]
    return bool(behind) and _is(behind[0], _BY_MASK) and all(map(_leaves_tokens, behind[1:]))


def _reads_pooled(frame: FrameType | None) -> bool:
    """Return whether who called a model of sentence-transformers reads no states of its tokens.

    Its own methods and losses do not, unless encode() was asked for all features.
    """
    if frame is None or not frame.f_globals.get("__name__", "").startswith(f"{_ST}."):
        return False
    return frame.f_locals.get("output_value", "") is not None


def _is(module: nn.Module, names: tuple[str, ...]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith(f"{_ST}.") and not hooked(module)


def _leaves_tokens(module: nn.Module) -> bool:
    if _is(module, ("Dense",)):
        return getattr(module, "module_input_name", "sentence_embedding") == "sentence_embedding"
    return _is(module, _BEHIND)
