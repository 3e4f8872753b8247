"""accelerate() and restore(): live models of transformers on our kernels, in place."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch

import fastbert
from fastbert.integrations.behind import swap_back_behind, swap_behind
from fastbert.integrations.families import FAMILIES, family_of, origin_of, own_methods
from fastbert.integrations.holders import modules_of
from fastbert.integrations.serving import Choices, Server, server_of, swap, swap_back
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.quantization import METHOD, as_quantization
from fastbert.runtime.plan import BACKENDS

Model = TypeVar("Model")


def accelerate(
    model: Model,
    *,
    backend: str = "auto",
    strict: bool = False,
    batch_invariant: bool = False,
    quantization: Any = None,
    training: Literal["fastbert", "original"] = "fastbert",
) -> Model:
    """Let every encoder of transformers in a model compute on fastbert's kernels.

    The model is changed in place and stays what it is: its class, parameters, heads, files,
    adapters and training loops are transformers' own, and its parameters are the only copy beside
    what kernels pack. What they cannot serve goes to the original forward, and
    `fastbert.explain(model)` says what and why. `restore` undoes it all. Called again, it forgets
    what was packed, as is needed after raw writes, which torch does not count:
    `weight.data[0] = x`, NumPy, DLPack, a storage.

    Args:
        model: a model of transformers, or whatever holds one: a pipeline, a SentenceTransformer, a
            CrossEncoder, a PeftModel, a module or an object of one's own.
        backend: "auto", "reference", "cpu", "cuda" or "triton".
        strict: whether to raise where a pass would go to the original forward, or an op to the
            reference.
        batch_invariant: as in `from_pretrained`.
        quantization: "int8" lets passes without gradients compute with an int8 copy of the layers'
            projections, which follows the weights; the parameters stay as they are.
        training: "original" leaves passes in training mode, or with gradients, to the original
            forward.

    Returns:
        The same model.

    Raises:
        TypeError: where there is no encoder of a known class in it.
        ValueError: for weights that another library quantised, or that have no values (device
            meta), and for an unknown option.
        Unavailable: where the backend cannot run here, or strict=True and an encoder is not served.
    """
    if training not in ("fastbert", "original"):
        raise ValueError(f"training must be 'fastbert' or 'original', not {training!r}.")
    if backend not in BACKENDS:
        raise ValueError(f"There is no backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    choices = Choices(backend, strict, batch_invariant, as_quantization(quantization), training)
    found = [module for _, module in encoders_of(model)]
    if not found:
        raise TypeError(_no_encoder(model))
    for module in found:
        _check(module)
    # All of them are built before the first is changed.
    made = []
    for module in found:
        present = server_of(module)
        fits = present is not None and present.choices == choices
        server = present if present is not None and fits else Server(choices)
        server.repack()
        server.prepare(module)
        made.append((module, server))
    for module, server in made:
        swap(module, server)
    swap_behind(model)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: every encoder in a model computes as transformers does.

    Args:
        model: as accelerate() takes it; one that was never accelerated stays as it is.

    Returns:
        The same model.
    """
    for _, module in list(modules_of(model)):
        if server_of(module) is not None:
            swap_back(module)
    swap_back_behind(model)
    return model


def encoders_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the encoders of transformers that have a twin here, by path."""
    for path, module in modules_of(model):
        if family_of(type(module)) is not None:
            yield path, module


def accelerated_in(model: Any) -> list[tuple[str, Any, Server]]:
    """Return the accelerated encoders of a model: path, encoder, and what it computes with."""
    found = ((path, module, server_of(module)) for path, module in encoders_of(model))
    return [(path, module, server) for path, module, server in found if server is not None]


def _check(module: Any) -> None:
    """Refuse weights that cannot be read as they are. Raises ValueError."""
    kind = type(module).__name__
    if any(tensor.is_meta for tensor in module.parameters()):
        raise ValueError(
            f"The weights of this {kind} have no values (device meta, as offloading or a model "
            "built without memory leaves them); load it onto a device before accelerating it."
        )
    settings = getattr(module.config, "quantization_config", None)
    method = _method(settings)
    quantised = method is not None or getattr(module, "is_quantized", False)
    if quantised and method != METHOD:
        by = "" if method is None else f" ({method})"
        raise ValueError(
            f"The weights of this {kind} were quantised by another library{by}, and only that one "
            "reads them; load the model without it and pass quantization='int8' here."
        )


def _method(settings: Any) -> str | None:
    if settings is None:
        return None
    read = settings.get if isinstance(settings, dict) else functools.partial(getattr, settings)
    found = read("quant_method", None)
    return None if found is None else str(getattr(found, "value", found))


def _no_encoder(model: Any) -> str:
    known = ", ".join(FAMILIES)
    ours = any(isinstance(module, PreTrainedModel) for _, module in modules_of(model))
    if ours or hasattr(model, "encoder_cache"):
        return (
            f"This {type(model).__name__} holds a model of fastbert, which runs on its kernels "
            f"already; accelerate() takes models of transformers ({known})."
        )
    return (
        f"There is no encoder in this {type(model).__name__} that fastbert has kernels for; "
        f"{_advice(model)}; accelerate() takes models of transformers, and objects that hold one "
        f"of {known}."
    )


def _advice(model: Any) -> str:
    """Say, as a clause, what to do with what is no model that accelerate() serves."""
    if isinstance(model, type):
        return f"{model.__name__} is a class: load a model with it first"
    if isinstance(model, (str, os.PathLike)):
        return f"load the model that {str(model)!r} names first"
    if inspect.isroutine(model):
        return "give the model that it calls"
    held = [type(module) for _, module in modules_of(model)]
    recorded = (torch.jit.ScriptModule, torch.fx.GraphModule, torch.export.ExportedProgram)
    if isinstance(model, recorded) or any(issubclass(kind, recorded) for kind in held):
        return "torch recorded its operations: accelerate the model itself, and compile that"
    derived = next((kind for kind in held if origin_of(kind) is not None), None)
    if derived is not None:
        return (
            f"{derived.__name__} is a {origin_of(derived).__name__} with "
            f"{', '.join(own_methods(derived))} of its own"
        )
    theirs = [kind for kind in held if kind.__module__.startswith("transformers.models.")]
    if not theirs:
        return "give the model itself, once it is loaded"
    same = [kind.__name__ for kind in theirs if hasattr(fastbert, kind.__name__)]
    if same:
        return f"use fastbert.{same[0]} in the place of transformers' class"
    if not any(getattr(kind, "_supports_sdpa", False) for kind in theirs):
        return f"the family of {theirs[0].__name__} is none of its own"
    return (
        f"of {theirs[0].__name__}, attention alone can run on kernels (register_attention() of "
        "fastbert.integrations.transformers, and attn_implementation='fastbert')"
    )
