"""``fastbert bench``: times of one model on this machine, kernels beside the reference path."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fastbert.models.auto import AutoModel
from fastbert.runtime.plan import use_backend
from fastbert.tools import env
from fastbert.tools.explain import explain
from fastbert.tools.tables import table
from fastbert.tools.timing import Run, Summary, interleave

_RAGGED = (8, 12, 17, 21, 24, 30, 33, 39, 44, 48, 55, 60, 68, 79, 95, 160)
# Lengths of the texts of a batch, by name.
CASES: dict[str, tuple[int, ...]] = {
    "1 x 16": (16,),
    "1 x 128": (128,),
    "8 x 128": (128,) * 8,
    "16 ragged": _RAGGED,
}


def inputs_of(model: Any, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Make random token ids and their mask, padded on the right.

    Args:
        model: decides the vocabulary, and the longest text that it takes.
        lengths: tokens of every text; longer ones than the model takes are cut.

    Returns:
        input_ids and attention_mask, int64 (texts, longest) each.

    Raises:
        ValueError: for a model that reads images.
    """
    if not hasattr(model.base_model, "longest"):
        raise ValueError(
            f"Texts are timed, but {type(model).__name__} reads images; take a model of texts "
            "alone, such as the folder of its text tower."
        )
    longest = model.base_model.longest()
    sizes = torch.tensor([min(length, longest) for length in lengths])
    width = int(sizes.max())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.vocab_size, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < sizes[:, None]).long()
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": mask}


def setting() -> str:
    """Return the processor and the number of threads, as the heading of a table names them."""
    return f"{env.cpu_model()}, {torch.get_num_threads()} threads"


def bench(path: str | os.PathLike[str], repetitions: int = 7, **loading: Any) -> str:
    """Time the cases, with the kernels and on the reference path in turn.

    Args:
        path: a checkpoint.
        repetitions: how often each is timed; a short call is timed three times in each.
        **loading: for from_pretrained: dtype, quantization.

    Returns:
        A table of medians and spreads.
    """
    model = AutoModel.from_pretrained(path, **loading)
    rows = [["case", "kernels", "", "reference", "", "ratio", "tokens/s"]]
    for name, lengths in CASES.items():
        inputs = inputs_of(model, lengths)
        samples = interleave(_runs(model, inputs), repetitions)
        kernels, reference = (Summary.of(samples[key]) for key in ("kernels", "reference"))
        tokens = int(inputs["attention_mask"].sum())
        rows.append(
            [
                name,
                *_cells(kernels),
                *_cells(reference),
                f"{reference.median / kernels.median:.2f}x",
                f"{tokens / kernels.median * 1e3:,.0f}",
            ]
        )
    heading = f"{setting()}, {repetitions} repetitions; median in ms, spread between quartiles"
    return "\n".join([explain(model), "", heading, table(rows)])


def _runs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Run]:
    def kernels() -> None:
        with torch.inference_mode():
            model(**inputs)

    def reference() -> None:
        with torch.inference_mode(), use_backend("reference"):
            model(**inputs)

    return {"kernels": kernels, "reference": reference}


def _cells(summary: Summary) -> list[str]:
    spread = f"±{summary.spread:.0%}" if summary.count > 1 else ""
    return [f"{summary.median:.2f}", spread]
