"""Beginning a recording without torch's default random generator, from which other threads draw.

Until torch 2.12, `CUDAGraph.capture_begin` registers the state of the device's default generator
with the graph. While the recording lasts, whoever draws from that state on another stream (dropout
of a training thread, say) gets "Offset increment outside graph capture encountered unexpectedly".
Our passes draw nothing, so another state may stand there for as long as it takes to begin. Later
versions register a generator when the recording itself draws from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

DRAWS_FOR_ALL = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def drawing_apart(
    begin: Callable[..., None], default: torch.Generator, other: torch.Generator
) -> Callable[..., None]:
    """Return a function that begins a recording while another state is the default one.

    Args:
        begin: the method capture_begin of a graph.
        default: the default generator of the device that records.
        other: a generator of that device, from which nobody draws.
    """

    @functools.wraps(begin)
    def call(*args: Any, **kwargs: Any) -> None:
        usual = default.graphsafe_get_state()
        default.graphsafe_set_state(other)
        try:
            begin(*args, **kwargs)
        finally:
            default.graphsafe_set_state(usual)

    return call
