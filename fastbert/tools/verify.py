"""``fastbert verify``: every backend that can run here against the reference path.

The exact result is the stored model computed in float64 on the reference path. A backend passes
where its error stays under an absolute bound and under twice the error that the reference path
makes in the same precision; layer by layer, and at the output, which a prepared encoder computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels import native
from fastbert.models.auto import AutoModel, AutoTokenizer
from fastbert.ops import Tolerance
from fastbert.testing.parity import Errors, judge, measure
from fastbert.tools.samples import sentences
from fastbert.tools.tables import table

# Errors of a whole model's hidden states. int8 and 16-bit errors depend on the weights, so there
# the comparison with the reference path is what judges; the bound only catches nonsense.
TOLERANCES = {
    torch.float32: Tolerance(1e-5),
    torch.bfloat16: Tolerance(5e-2),
    torch.float16: Tolerance(5e-3),
}
INT8_TOLERANCE = Tolerance(1.5e-1)
_TEXTS = 12
_IMAGES = 2
# Large images show nothing that smaller ones do not, and take their time.
_PIXELS = 160
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Line:
    """One comparison with the exact result.

    Attributes:
        backend: what computed, with its instruction set.
        where: the layer, "embeddings", "output" or "pooler", behind the tower where there are two.
        ours: errors of the backend, relative to the exact result.
        reference: errors of the reference path in the same precision.
        cosine: least cosine of a token to the exact one.
        reason: why it did not pass; empty when it did.
    """

    backend: str
    where: str
    ours: Errors
    reference: Errors
    cosine: float
    reason: str


@dataclass(frozen=True)
class Report:
    """All comparisons of a model.

    Attributes:
        title: model, precision and inputs.
        lines: the comparisons.
        absent: backends that cannot run here, each with its reason.
    """

    title: str
    lines: tuple[Line, ...]
    absent: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison passed; False when there was none to make."""
        return bool(self.lines) and not any(line.reason for line in self.lines)

    def __str__(self) -> str:
        rows = [["backend", "", "error", "reference", "least cosine"]]
        for line in self.lines:
            errors = [f"{line.ours.rms:.1e}", f"{line.reference.rms:.1e}", f"{line.cosine:.8f}"]
            rows.append([line.backend, line.where, *errors, line.reason or "ok"])
        texts = [self.title, table(rows, left=(0, 1, 5))]
        texts += [f"{name}: not here: {reason}" for name, reason in self.absent]
        misses = sum(bool(line.reason) for line in self.lines)
        if not self.lines:
            texts.append("FAILED: no backend but the reference can run here")
        else:
            texts.append(f"FAILED: {misses} of {len(self.lines)}" if misses else "passed")
        return "\n".join(texts)


def verify(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    quantization: Any = None,
    device: torch.device | str = "cpu",
) -> Report:
    """Compare every available backend, and every instruction set of it, with the reference path.

    Args:
        path: a checkpoint.
        dtype: precision to verify; None for that of the file.
        quantization: None or "int8".
        device: where to compute.

    Raises:
        FileNotFoundError: when there is no such checkpoint.
        ValueError: for a checkpoint that cannot be loaded.
    """
    device = torch.device(device)
    model, loaded = AutoModel.from_pretrained(
        path,
        dtype=dtype,
        quantization=quantization,
        backend="reference",
        output_loading_info=True,
    )
    model = model.to(device)
    # A pooler that the checkpoint lacks is random, and another one in each model.
    pooled = not any("pooler" in name for name in loaded["missing_keys"])
    exact_model = AutoModel.from_pretrained(path, dtype=torch.float64, backend="reference")
    inputs, given = sample_inputs(path, model)
    # Results stay on the CPU, where float64 always is.
    exact = _results(exact_model, inputs)
    del exact_model
    inputs = {name: value.to(device) for name, value in inputs.items()}
    reference = _results(model, inputs)
    tolerance = INT8_TOLERANCE if quantization else TOLERANCES[model.dtype]
    lines: list[Line] = []
    absent: list[tuple[str, str]] = []
    for name in kernels.NAMES:
        reason = kernels.missing(name, device)
        if reason is not None:
            absent.append((name, reason))
            continue
        for label in _variants(name):
            model.set_backend(name)
            results = _results(model, inputs)
            if not pooled:
                for where in ("pooler", "text pooler"):
                    results.pop(where, None)
            for where, value in results.items():
                lines.append(
                    _compare(label, where, value, exact[where], reference[where], tolerance)
                )
    precision = str(model.dtype).removeprefix("torch.") + (", int8 layers" if quantization else "")
    title = f"{type(model).__name__} from {path}, {precision}, {given}; errors against float64"
    return Report(title, tuple(lines), tuple(absent))


def sample_inputs(path: str | os.PathLike[str], model: Any) -> tuple[Inputs, str]:
    """Make inputs of different lengths, padded.

    A checkpoint without a usable tokenizer gets random ids.

    Args:
        path: the checkpoint, for its tokenizer.
        model: decides how long a text can be.

    Returns:
        What the tokenizer made of sample sentences, and a word about what they are.
    """
    towers = _towers(model)
    if towers is not None:
        images = _sample_images(towers[1])
        if towers[0] is None:
            return images, f"{_IMAGES} random images"
        inputs, given = sample_inputs(path, towers[0])
        return inputs | images, f"{given} and {_IMAGES} random images"
    longest = model.base_model.longest()
    texts = [sample.text for sample in sentences()][: 4 * _TEXTS : 4]
    texts[0] = " ".join(texts)
    tokenizers: Any = AutoTokenizer
    try:
        tokenizer = tokenizers.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        return _random_inputs(model, longest), f"random ids ({error})"
    encoded = tokenizer(
        texts, padding=True, truncation=True, max_length=min(longest, 128), return_tensors="pt"
    )
    return dict(encoded), f"{len(texts)} sample sentences"


def _towers(model: Any) -> tuple[Any, Any] | None:
    """Return the text tower, None where there is none, and the image tower of a model with one."""
    if model.main_input_name == "pixel_values":
        return None, model
    vision = getattr(model, "vision_model", None)
    return None if vision is None else (model.text_model, vision)


def _sample_images(tower: Any) -> Inputs:
    settings = tower.config
    generator = torch.Generator().manual_seed(0)
    # Nothing but a sample reads image_size, which may name two sides, or suit no tower at all.
    wanted = settings.image_size if isinstance(settings.image_size, int) else _PIXELS
    size = settings.largest_image(min(wanted, _PIXELS))
    shape = (_IMAGES, settings.num_channels, size, size)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def _random_inputs(model: Any, longest: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    width = min(longest, 64)
    lengths = torch.linspace(width, 1, _TEXTS).round().long()
    ids = torch.randint(5, model.vocab_size, (_TEXTS, width), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    pad = model.config.pad_token_id or 0
    return {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}


def _variants(backend: str) -> Iterator[str]:
    """Yield a label for each instruction set of a backend, which is active until the next one."""
    if backend != "cpu":
        yield backend
        return
    active = native.isa()
    try:
        for isa in native.usable_isas():
            native.set_isa(isa)
            yield f"cpu {isa}"
    finally:
        native.set_isa(active)


def _results(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Return what the parts of a model compute, on the CPU."""
    towers = _towers(model)
    if towers is None:
        return _text_results(model, inputs)
    texts = dict(inputs)
    images = texts.pop("pixel_values")
    found = {} if towers[0] is None else _text_results(towers[0], texts)
    found = {f"text {name}": value for name, value in found.items()}
    with torch.inference_mode():
        output = towers[1](images.to(towers[1].dtype))
    # Channels come last, so that a row is one place of the map.
    found["image output"] = output.last_hidden_state.permute(0, 2, 3, 1).flatten(0, 2).cpu()
    found["image pooler"] = output.pooler_output.cpu()
    return found


def _text_results(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Return the real tokens' hidden states after every layer and at the output, on the CPU."""
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states
        output = model(**inputs)
    found = {"embeddings": states[0]}
    found |= {f"layer {index}": state for index, state in enumerate(states[1:], 1)}
    found["output"] = output.last_hidden_state
    found = {name: value[real] for name, value in found.items()}
    if getattr(output, "pooler_output", None) is not None:
        found["pooler"] = output.pooler_output
    return {name: value.cpu() for name, value in found.items()}


def _compare(
    backend: str, where: str, value: Tensor, exact: Tensor, reference: Tensor, tolerance: Tolerance
) -> Line:
    ours, theirs = measure(value, exact), measure(reference, exact)
    reason = judge(ours, theirs, value.dtype, tolerance)
    cosine = torch.nn.functional.cosine_similarity(value.double(), exact.double(), dim=-1)
    return Line(backend, where, ours, theirs, float(cosine.min()), reason)
