"""Time other libraries' models before and after ``accelerate``: ``python -m bench.drop_in --help``.

Parts: `sentences`, 512 texts through sentence-transformers with the real MiniLM, its OpenVINO
backend too where optimum-intel is installed; `pairs`, one query and 100 passages through its
CrossEncoder, MiniLM with a random head; `encoder`, BertModel at 8 x 128; `attention`,
`attn_implementation="fastbert"` beside "sdpa" in a family that has no kernels of ours. All engines
of a part and a precision take turns in one process. No speed is printed of one whose numbers are
wrong.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fastbert
from bench import models
from bench.build import missing_kernels
from bench.gate import TOLERANCES
from bench.texts import english
from fastbert.tools.tables import table
from fastbert.tools.threads import thread_count
from fastbert.tools.timing import Summary, interleave

Engines = dict[str, Callable[[], Tensor]]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
_HEADER = ["", "precision", "error", "median ms", "spread", "times as fast"]
_TEXTS, _PASSAGES = 512, 100
_MAX_TOKENS = 256


def sentences(precision: str) -> Engines:
    """Return engines that embed texts; the first is sentence-transformers' own."""
    from sentence_transformers import SentenceTransformer

    path, texts = str(models.minilm_path()), english(_TEXTS)

    def load() -> Any:
        model = SentenceTransformer(path, device="cpu").to(_DTYPES[precision])
        model.max_seq_length = _MAX_TOKENS
        return model

    ours = fastbert.SentenceEncoder.from_pretrained(
        path, dtype=_DTYPES[precision], quantization=_quantization(precision)
    )
    ours.max_seq_length = _MAX_TOKENS
    theirs, fast = load(), _accelerated(load(), precision)
    engines: Engines = {
        "sentence-transformers": lambda: _floats(theirs.encode(texts)),
        "the same, accelerated": lambda: _floats(fast.encode(texts)),
        "fastbert.SentenceEncoder": lambda: _floats(ours.encode(texts)),
    }
    if precision == "fp32" and _installed("optimum.intel"):
        # Its own choice is bfloat16, where the processor has it.
        exact = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
        other = SentenceTransformer(path, device="cpu", backend="openvino", model_kwargs=exact)
        other.max_seq_length = _MAX_TOKENS
        engines["its OpenVINO backend"] = lambda: _floats(other.encode(texts))
    return engines


def pairs(precision: str) -> Engines:
    """Return engines that score passages; the first is sentence-transformers' own."""
    from sentence_transformers import CrossEncoder

    query, *passages = english(_PASSAGES + 1, seed=1)
    asked = [(query, passage) for passage in passages]
    raw = torch.nn.Identity()
    with _scoring_model() as path:
        theirs, fast = (CrossEncoder(path, device="cpu", max_length=_MAX_TOKENS) for _ in range(2))
        ours = fastbert.CrossEncoder.from_pretrained(
            path,
            dtype=_DTYPES[precision],
            quantization=_quantization(precision),
            max_length=_MAX_TOKENS,
        )
    theirs.to(_DTYPES[precision])
    fast = _accelerated(fast.to(_DTYPES[precision]), precision)
    return {
        "CrossEncoder": lambda: _floats(theirs.predict(asked, activation_fn=raw)),
        "the same, accelerated": lambda: _floats(fast.predict(asked, activation_fn=raw)),
        "fastbert.CrossEncoder": lambda: _floats(ours.predict(asked, activation_fn=raw)),
    }


def encoder(precision: str) -> Engines:
    """Return engines of BERT-base; the first is transformers' own."""
    import transformers

    path, dtype = models.checkpoint("bert-base"), _DTYPES[precision]
    ids = torch.randint(1000, 30000, (8, 128), generator=torch.Generator().manual_seed(0))
    theirs = transformers.BertModel.from_pretrained(path, dtype=dtype).eval()
    fast = _accelerated(copy.deepcopy(theirs), precision)
    ours = fastbert.BertModel.from_pretrained(
        path, dtype=dtype, quantization=_quantization(precision)
    ).eval()
    return {
        "transformers": _states(theirs, input_ids=ids),
        "the same, accelerated": _states(fast, input_ids=ids),
        "fastbert.BertModel": _states(ours, input_ids=ids),
    }


def attention(precision: str) -> Engines:
    """Return engines of a family without kernels, on ragged texts; the first runs sdpa."""
    import transformers

    from fastbert.integrations.transformers import register_attention

    register_attention()
    torch.manual_seed(0)
    config = transformers.ErnieConfig()
    model = transformers.ErnieModel(config).to(_DTYPES[precision]).eval()
    lengths = torch.tensor([512, 300, 170, 96, 55, 31, 17, 8])
    mask = (torch.arange(512) < lengths[:, None]).long()
    ids = torch.randint(1000, 18000, mask.shape, generator=torch.Generator().manual_seed(0))
    engines: Engines = {}
    for name in ("sdpa", "fastbert"):
        twin = copy.deepcopy(model)
        twin.set_attn_implementation(name)
        run = _states(twin, input_ids=ids, attention_mask=mask)
        engines[f"attn_implementation={name!r}"] = _masked(run, mask)
    return engines


PARTS: Mapping[str, Callable[[str], Engines]] = {
    "sentences": sentences,
    "pairs": pairs,
    "encoder": encoder,
    "attention": attention,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 where an engine of ours did not pass the gate, 2 where nothing can be
        measured.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.drop_in", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--precisions", nargs="+", choices=_DTYPES, default=[*_DTYPES])
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per engine")
    options = parser.parse_args(arguments)
    refusal = missing_kernels()
    if refusal is not None:
        print(f"bench: {refusal}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    passed = True
    for part in options.parts:
        rows = [[part, *_HEADER[1:]]]
        exact: Tensor | None = None
        for precision in _DTYPES:  # float32 comes first: the others are compared with it
            if precision != "fp32" and precision not in options.precisions:
                continue
            if part == "attention" and precision == "int8":
                continue
            engines = PARTS[part](precision)
            exact = next(iter(engines.values()))() if exact is None else exact
            if precision in options.precisions:
                told, right = _measure(engines, precision, exact, options)
                rows += told
                passed &= right
        print(table(rows), end="\n\n", flush=True)
    return 0 if passed else 1


def _measure(
    engines: Engines, precision: str, exact: Tensor, options: argparse.Namespace
) -> tuple[list[list[str]], bool]:
    """Return rows of the table, and whether all engines passed the gate."""
    errors = {name: _error(run(), exact) for name, run in engines.items()}
    right = {name: run for name, run in engines.items() if errors[name] <= TOLERANCES[precision]}
    samples = interleave(right, options.repetitions, options.budget)
    times = {name: Summary.of(seconds) for name, seconds in samples.items()}
    first = next(iter(engines))
    rows = []
    for name in engines:
        told = [f"  {name}", precision, f"{errors[name]:.1e}"]
        if name in times:
            told += [f"{times[name].median:.1f}", f"{times[name].spread:.0%}"]
            told.append(
                f"{times[first].median / times[name].median:.2f}" if first in times else "-"
            )
        else:
            told += ["gate", "-", "-"]
        rows.append(told)
    return rows, len(right) == len(engines)


def _installed(module: str) -> bool:
    """Return whether a module can be imported; its package itself is imported for that."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _quantization(precision: str) -> str | None:
    return "int8" if precision == "int8" else None


def _accelerated(model: Any, precision: str) -> Any:
    return fastbert.accelerate(model, strict=True, quantization=_quantization(precision))


@contextmanager
def _scoring_model() -> Iterator[str]:
    """Give the folder of MiniLM with a random head that scores pairs."""
    import transformers

    torch.manual_seed(0)
    path = models.minilm_path()
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertForSequenceClassification.from_pretrained(
            path, num_labels=1
        ).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(path).save_pretrained(folder)
        yield folder


def _states(model: Any, **inputs: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(**inputs).last_hidden_state
        return found

    return run


def _masked(run: Callable[[], Tensor], mask: Tensor) -> Callable[[], Tensor]:
    """Return the same with zeros where the mask has none: what stands there means nothing."""
    return lambda: run() * mask[..., None]


def _floats(found: Any) -> Tensor:
    return torch.as_tensor(found).float()


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


if __name__ == "__main__":
    sys.exit(main())
