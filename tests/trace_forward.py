"""Print how a forward pass travels from Python to the kernels.

    python tests/trace_forward.py [--list]

A BertForSequenceClassification of two layers classifies one padded batch on the CPU kernels, warm.
Counted are calls of functions that stand in the package, the files these functions stand in, and
calls of functions of the native library. `tests/test_house_rules.py` holds the bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

import fastbert
from fastbert.kernels import native

PACKAGE = str(Path(fastbert.__file__).resolve().parent)


@dataclass
class Trace:
    """Record the calls of one pass.

    Attributes:
        calls: (file, function) of every call of a Python function of the package, in order.
        crossings: name of every function of the native library that was called, in order.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    crossings: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """Files that the called functions stand in."""
        return sorted({file for file, _ in self.calls} - {"<string>"})

    def report(self) -> str:
        """Summarise in one line each: calls, functions, files, changes of file, crossings."""
        changes = sum(a[0] != b[0] for a, b in zip(self.calls, self.calls[1:], strict=False))
        return "\n".join(
            (
                f"Python calls        {len(self.calls)}",
                f"functions           {len(set(self.calls))}",
                f"files               {len(self.files)}: {', '.join(self.files)}",
                f"changes of file     {changes}",
                f"crossings into C++  {len(self.crossings)}: {', '.join(self.crossings)}",
            )
        )


def native_functions() -> set[str]:
    """Names of the functions and methods of the native library."""
    extension = native.extension()
    names = {name for name in dir(extension) if not name.startswith("_")}
    for value in [getattr(extension, name) for name in names]:
        if isinstance(value, type):
            names |= {name for name in dir(value) if not name.startswith("_")}
    return names


def is_generated(frame: FrameType) -> bool:
    """Whether the function was generated for a class of the package."""
    module = frame.f_globals.get("__name__", "")
    return frame.f_code.co_filename == "<string>" and str(module).startswith("fastbert")


def traced(run: Callable[[], object]) -> Trace:
    """Call `run` once and record what it calls."""
    known, trace = native_functions(), Trace()

    def profile(frame: FrameType, event: str, function: object) -> None:
        if event == "call":
            file = frame.f_code.co_filename
            # Constructors that dataclasses generate stand in no file, but are calls too.
            if file.startswith(PACKAGE) or is_generated(frame):
                name = frame.f_code.co_qualname
                trace.calls.append((file.removeprefix(PACKAGE + "/"), name))
        elif event == "c_call":
            module = getattr(function, "__module__", None) or ""
            name = getattr(function, "__name__", "")
            if name in known and not module.startswith("torch"):
                trace.crossings.append(name)

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return trace


class CountedEncoder:
    """Stand in the place of a native encoder and record what is called of it.

    Its methods are bound objects, for which Python's profiler reports no call.
    """

    def __init__(self, encoder: object, crossings: list[str]) -> None:
        self._encoder, self._crossings = encoder, crossings

    def __getattr__(self, name: str) -> object:
        self._crossings.append(f"Encoder.{name}")
        return getattr(self._encoder, name)


def classification() -> Trace:
    """Trace one warm pass of a small classifier over a padded batch."""
    config = fastbert.BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
    )
    model = fastbert.BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 60, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [1], [4]])).long()
    with torch.no_grad():
        for _ in range(3):
            model(ids, attention_mask=mask)
        base = model.base_model
        snapshot = base.encoder_cache.view(base)
        encoder = base.encoder_cache.encoder(snapshot, model.plan())
        crossings: list[str] = []
        encoder._encoder = CountedEncoder(encoder._encoder, crossings)
        trace = traced(lambda: model(ids, attention_mask=mask))
    trace.crossings[:0] = crossings
    return trace


def main() -> None:
    """Print the report, and with --list every call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print every call too")
    options = parser.parse_args()
    trace = classification()
    if options.list:
        for file, function in trace.calls:
            print(f"{file:<36} {function}")
        print(*trace.crossings, sep="\n")
    print(trace.report())


if __name__ == "__main__":
    main()
