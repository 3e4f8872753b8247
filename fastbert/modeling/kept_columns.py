"""What `logits_to_keep` selects: the columns, or single tokens, that a vocabulary is scored for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FORMS = (
    "logits_to_keep is 0 for all columns, n for the last n, a slice, a list or integer tensor of "
    "columns, an integer tensor (batch, n), or a bool tensor (length,) or (batch, length)"
)


def kept(grid: Tensor, keep: Any) -> Tensor:
    """Select from the tokens of a batch.

    Args:
        grid: (batch, length, ...).
        keep: 0 for all columns and n for the last n; a slice, a list or a tensor (n,) of columns,
            or one column alone; integers (batch, n), columns of each text; bool (length,) for
            columns, or (batch, length) for tokens.

    Returns:
        (batch, columns, ...); (batch, ...) for one column alone; (tokens, ...) for tokens.

    Raises:
        TypeError: for anything else.
        ValueError: for a tensor of another shape.
        IndexError: for a column that is not there.
    """
    if isinstance(keep, int):
        return grid[:, -keep:] if keep else grid
    if isinstance(keep, slice):
        return grid[:, keep]
    if isinstance(keep, list | tuple | range):
        dtype = None if len(keep) else torch.int64
        keep = torch.tensor(list(keep), dtype=dtype, device="cpu")
    if not isinstance(keep, Tensor) or keep.is_floating_point() or keep.is_complex():
        found = keep.dtype if isinstance(keep, Tensor) else type(keep).__name__
        raise TypeError(f"{_FORMS}; {found} was given.")
    batch, length = grid.shape[:2]
    if keep.dtype == torch.bool:
        if keep.shape == (batch, length):
            return grid[keep.to(grid.device)]
        if keep.shape != (length,):
            raise ValueError(f"{_FORMS}; bool {tuple(keep.shape)} was given for {(batch, length)}.")
        return grid[:, keep.to(grid.device)]
    if keep.dim() > 2 or (keep.dim() == 2 and keep.shape[0] != batch):
        raise ValueError(f"{_FORMS}; {tuple(keep.shape)} was given for a batch of {batch}.")
    _check_columns(keep, length)
    columns = keep.to(grid.device, torch.int64)
    if columns.dim() < 2:
        return grid[:, columns]
    return grid[torch.arange(batch, device=grid.device)[:, None], columns]


def _check_columns(columns: Tensor, length: int) -> None:
    if torch.compiler.is_compiling() or columns.device.type != "cpu" or not columns.numel():
        return
    least, most = int(columns.min()), int(columns.max())
    if least < -length or most >= length:
        raise IndexError(
            f"logits_to_keep names columns from {least} to {most}, but there are {length}, counted "
            "from 0."
        )
