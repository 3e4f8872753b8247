"""Measure whole encoders beside transformers: throughput, latency, accuracy, bit-identity.

Weights are random, of the published shapes: times do not depend on them. Accuracy of int8 needs
real ones: a folder with all-MiniLM-L6-v2 in FASTBERT_MINILM.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastbert
from bench.cases import RAGGED_SEED, ragged_lengths
from bench.gpu.ops import first_line, row_of
from bench.gpu.record import Row
from bench.gpu.timing import Stopwatch
from fastbert.tools.samples import sentences

GROUPS = ("base", "large", "compile", "accuracy")
# layers, hidden, heads, intermediate
SHAPES = {"bert-base": (12, 768, 12, 3072), "bert-large": (24, 1024, 16, 4096)}
TINY = (2, 64, 2, 128)
VOCABULARY = 30522
_BF16 = torch.bfloat16


def squad_lengths(count: int, mean: float = 177.0, longest: int = 384, seed: int = 0) -> list[int]:
    """Draw lengths like those of SQuAD features: lognormal, clipped, with this mean."""
    drawn = np.random.default_rng(seed).lognormal(5.1, 0.38, size=count)
    for _ in range(20):  # clipping moves the mean; a few rounds bring it back
        clipped = np.clip(drawn, 32, longest)
        drawn = drawn * mean / clipped.mean()
    return [int(n) for n in np.clip(drawn, 32, longest)]


@dataclass(frozen=True)
class Batch:
    """One batch as a tokenizer gives it, on the device.

    Attributes:
        name: of the case.
        lengths: tokens of every text.
        ids: int64 (texts, longest).
        mask: int64 of the same shape, 1 at real tokens.
    """

    name: str
    lengths: tuple[int, ...]
    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, name: str, lengths: list[int], device: torch.device) -> Batch:
        """Make random ids, padded on the right to the longest."""
        generator = torch.Generator().manual_seed(0)
        longest = max(lengths)
        ids = torch.randint(1000, VOCABULARY, (len(lengths), longest), generator=generator)
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return cls(name, tuple(lengths), (ids * mask).to(device), mask.long().to(device))

    @property
    def padded(self) -> bool:
        """Whether texts differ in length."""
        return len(set(self.lengths)) > 1


@dataclass(frozen=True)
class Models:
    """Where models run, and how large they are.

    Attributes:
        device: where.
        watch: times their passes.
        dry_run: whether models and batches are tiny.
        drawn: the random weights of each shape.
    """

    device: torch.device
    watch: Stopwatch
    dry_run: bool
    drawn: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, int, int, int]:
        """Return layers, hidden, heads and intermediate of a model."""
        return TINY if self.dry_run else SHAPES[name]

    def lengths(self, lengths: list[int]) -> list[int]:
        """Return the lengths of a batch, or those of a tiny one in a dry run."""
        return [max(2, n // 16) for n in lengths[:4]] if self.dry_run else lengths

    def config(self, name: str) -> dict[str, Any]:
        """Return the configuration of a model."""
        layers, hidden, heads, intermediate = self.shape(name)
        return {
            "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "intermediate_size": intermediate, "vocab_size": VOCABULARY,
            # Large enough that the layers, not the embeddings, decide the result.
            "initializer_range": hidden**-0.5,
        }  # fmt: skip

    def ours(self, name: str, quantization: str | None = None, **options: Any) -> Any:
        """Make a random fastbert model, always the same one for a shape."""
        made = fastbert.BertModel.from_pretrained(
            None, config=fastbert.BertConfig(**self.config(name)), state_dict=self._weights(name),
            dtype=_BF16, quantization=quantization, device=self.device, add_pooling_layer=False,
        )  # fmt: skip
        made.requires_grad_(False).set_backend(**options)
        return made

    def theirs(self, name: str) -> Any:
        """Make transformers' model with the same weights, with sdpa and in bfloat16."""
        import transformers

        config = transformers.BertConfig(**self.config(name), attn_implementation="sdpa")
        made = transformers.BertModel(config, add_pooling_layer=False)
        made.load_state_dict(self._weights(name))
        return made.to(self.device, _BF16).eval().requires_grad_(False)

    def _weights(self, name: str) -> dict[str, Tensor]:
        if name not in self.drawn:
            torch.manual_seed(0)
            config = fastbert.BertConfig(**self.config(name))
            self.drawn[name] = fastbert.BertModel(config, add_pooling_layer=False).state_dict()
        return dict(self.drawn[name])


Run = Callable[[Batch], Callable[[], Tensor]]


def _engine(model: Any) -> Run:
    def of(batch: Batch) -> Callable[[], Tensor]:
        mask = batch.mask if batch.padded else None

        def call() -> Tensor:
            with torch.inference_mode():
                return model(input_ids=batch.ids, attention_mask=mask).last_hidden_state

        return call

    return of


def run(group: str, models: Models) -> Iterator[list[Row]]:
    """Measure a group, and yield the rows of a case at a time."""
    if group == "base":
        yield from _throughput("bert-base", _base_batches(models), models)
    elif group == "large":
        lengths = models.lengths(squad_lengths(256))
        batch = Batch.of("bert-large, SQuAD lengths", lengths, models.device)
        yield from _throughput("bert-large", [batch], models)
    elif group == "compile":
        yield from _compiled("bert-base", _base_batches(models)[:2], models)
    elif group == "accuracy":
        yield _error_of_16_bits(models)
        yield from _minilm(models)
    else:
        raise ValueError(f"There is no group {group!r}; choose from {', '.join(GROUPS)}.")


def _base_batches(models: Models) -> list[Batch]:
    named = (
        ("bert-base 1x128", [128]),
        ("bert-base 64x512", [512] * 64),
        ("bert-base 64x128", [128] * 64),
        ("bert-base ragged 32", ragged_lengths(32, RAGGED_SEED)),
        ("bert-base ragged 256", ragged_lengths(256, RAGGED_SEED)),
    )
    return [Batch.of(name, models.lengths(n), models.device) for name, n in named]


def _throughput(shape: str, batches: list[Batch], models: Models) -> Iterator[list[Row]]:
    makers: dict[str, Callable[[], Any]] = {
        "fastbert bf16": lambda: models.ours(shape),
        "fastbert bf16 batch_invariant": lambda: models.ours(shape, batch_invariant=True),
        "fastbert int8": lambda: models.ours(shape, "int8"),
        "transformers sdpa bf16": lambda: models.theirs(shape),
    }
    if models.device.type == "cuda":
        makers["fastbert bf16 triton"] = lambda: models.ours(shape, backend="triton")
        makers["fastbert bf16 cuda"] = lambda: models.ours(shape, backend="cuda")
    engines: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for name, make in makers.items():
        try:
            engines[name] = _engine(make())
        except Exception as error:  # one engine that cannot run must not cost the others
            refused[name] = first_line(error)
    for batch in batches:
        yield _interleaved(batch, engines, refused, models, shape)


def _interleaved(
    batch: Batch, engines: dict[str, Run], refused: dict[str, str], models: Models, shape: str
) -> list[Row]:
    work = operations(models.shape(shape), batch.lengths)
    rows = [Row("models", batch.name, name, "TFLOP/s", note=why) for name, why in refused.items()]
    calls = {}
    for name, engine in engines.items():
        call = engine(batch)
        try:
            for _ in range(3):  # kernels compile, graphs are recorded
                call()
        except Exception as error:  # as above
            rows.append(Row("models", batch.name, name, "TFLOP/s", note=first_line(error)))
        else:
            calls[name] = call
    for name, times in (models.watch.passes(calls) if calls else {}).items():
        row = row_of("models", batch.name, name, "TFLOP/s", times, work)
        row.note = f"{len(batch.lengths) / times.median * 1e3:.0f} sequences/s"
        rows.append(row)
    return rows


def operations(shape: tuple[int, int, int, int], lengths: tuple[int, ...]) -> float:
    """Count multiplications and additions of a pass over real tokens."""
    layers, hidden, _, intermediate = shape
    weights = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    return 2.0 * weights * sum(lengths) + 4.0 * layers * hidden * sum(n * n for n in lengths)


def _compiled(shape: str, batches: list[Batch], models: Models) -> Iterator[list[Row]]:
    for batch in batches:
        torch.compiler.reset()
        mode = None if models.dry_run else "max-autotune"
        try:
            model = torch.compile(models.theirs(shape), mode=mode, dynamic=False)
            engines = {"torch.compile max-autotune bf16": _engine(model)}
            refused = {}
        except ImportError as error:
            engines, refused = {}, {"torch.compile max-autotune bf16": first_line(error)}
        yield _interleaved(batch, engines, refused, models, shape)


def _error_of_16_bits(models: Models) -> list[Row]:
    """Measure the error of the last hidden states against float64, and look for bit-identity."""
    case = "bert-base accuracy"
    lengths = models.lengths([5, 128, 77, 1, 300, 512, 31, 64])
    batch = Batch.of(case, lengths, models.device)
    exact_model = models.ours("bert-base", backend="reference").to(torch.float64)
    exact = _real_tokens(_engine(exact_model)(batch)(), batch)
    rows = []
    for name, options in (
        ("reference bf16", {"backend": "reference"}),
        ("fastbert bf16", {}),
        ("fastbert bf16 batch_invariant", {"batch_invariant": True}),
        ("fastbert int8", {"quantization": "int8"}),
    ):
        model = models.ours("bert-base", **options)
        together = _real_tokens(_engine(model)(batch)(), batch)
        error = float((together.double() - exact).norm() / exact.norm())
        row = Row("models", case, name, "", error=error)
        row.note = "same bits alone and in the batch"
        start = 0
        for index, length in enumerate(batch.lengths):
            with torch.inference_mode():
                alone = model(input_ids=batch.ids[index : index + 1, :length]).last_hidden_state[0]
            if not torch.equal(alone, together[start : start + length]):
                row.note = f"other bits alone than in the batch, at length {length}"
            start += length
        rows.append(row)
    return rows


def _real_tokens(grid: Tensor, batch: Batch) -> Tensor:
    return grid[batch.mask.bool()]


def _minilm(models: Models) -> Iterator[list[Row]]:
    case, folder = "all-MiniLM-L6-v2 int8", os.environ.get("FASTBERT_MINILM", "")
    row = Row("models", case, "fastbert int8", "cosine to float32")
    if not folder or not Path(folder).is_dir():
        row.note = "not measured: FASTBERT_MINILM names no folder with the model's weights"
        yield [row]
        return

    texts = [sample.text for sample in sentences()]
    vectors = {}
    # The folder may hold float16, half of what has to be carried to a machine.
    kinds = {"fp32": {"dtype": torch.float32}, "int8": {"quantization": "int8", "dtype": _BF16}}
    for name, options in kinds.items():
        encoder = fastbert.SentenceEncoder.from_pretrained(folder, **options).to(models.device)
        vectors[name] = torch.as_tensor(encoder.encode(texts)).double()
    cosine = torch.nn.functional.cosine_similarity(vectors["fp32"], vectors["int8"])
    row.rate = float(cosine.mean())
    row.note = f"mean; least {float(cosine.min()):.5f}, {len(texts)} texts"
    yield [row]


__all__ = ["GROUPS", "Models", "operations", "run", "squad_lengths"]
