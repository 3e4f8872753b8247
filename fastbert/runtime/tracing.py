"""Functions that torch.compile calls between graphs, without loading the compiler for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def untraced(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Keep torch.compile out of a function: a compiled model calls it between two graphs.

    This is `torch.compiler.disable`, which imports torch._dynamo (1.4 s and 140 MB) where it
    decorates; the function returned here imports it where it is first called. A caller therefore
    asks `torch.compiler.is_compiling()` and calls it only then, by which time torch._dynamo is
    loaded. Everyone else calls the undecorated function.
    """
    # torch's own lazy form; dynamo skips its frame. A wrapper of ours would be a frame to trace,
    # with guards on the arguments, and would be compiled again for every shape.
    return _disable_dynamo(function)


def refuse_export() -> None:
    """Refuse torch.export and what builds on it, torch.onnx.export among others.

    Forwards call this while `torch.compiler._is_exporting_flag`, before anything that torch._dynamo
    cannot trace. That is what torch.compiler.is_exporting() returns, which in torch 2.11 is True in
    everything that torch._dynamo traces, torch.compile included.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "torch.export and ONNX would record which tokens of this one input are padding, "
        "and native code besides; use the model itself or torch.compile, or export the "
        "transformers model that loads the same checkpoint."
    )


# torch._dynamo calls what is marked so, and lets its error out, rather than to trace it and report
# an error of its own. This is torch.compiler.assume_constant_result, which would import it here.
refuse_export._dynamo_marked_constant = True  # type: ignore[attr-defined]
