"""Writing a checkpoint: configuration and weights in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastbert.checkpoints import transaction
from fastbert.checkpoints.files import INDEX_SUFFIX, SAFE_WEIGHTS, TORCH_WEIGHTS, variant_name
from fastbert.checkpoints.storage import json_text
from fastbert.checkpoints.tensor_files import (
    SAVE,
    name_of_save,
    plain_tensors,
    save_safetensors,
)


@dataclass(frozen=True)
class SaveOptions:
    """How weights are written.

    Attributes:
        max_shard_size: bytes, or a text such as "5GB" or "500MB"; larger ones are cut into shards.
        safetensors: whether safetensors are written rather than pytorch_model.bin.
        variant: what stands in the files' names before their ending, as in model.fp16.safetensors.
    """

    max_shard_size: int | str = "50GB"
    safetensors: bool = True
    variant: str | None = None


def save_checkpoint(
    folder: Path,
    texts: Mapping[str, str],
    state: Mapping[str, Tensor],
    options: SaveOptions,
    beside: Callable[[transaction.Staging], None] | None = None,
) -> None:
    """Write a checkpoint in one transaction: all of it takes the place of the former one, or none.

    Safetensors of the former one that the new one does not replace are removed, since they would be
    read in its place; other files stay.

    Args:
        folder: an existing folder.
        texts: contents of config.json and other files by name.
        state: tensors by name.
        options: how they are written.
        beside: writes what else belongs to the checkpoint, in the same transaction.

    Raises:
        ValueError: for a malformed size or variant, or a tensor that files cannot hold.
        OSError: when a file cannot be written.
    """
    limit = _parse_size(options.max_shard_size)
    safe, torch_file = (variant_name(n, options.variant) for n in (SAFE_WEIGHTS, TORCH_WEIGHTS))
    index = variant_name(SAFE_WEIGHTS + INDEX_SUFFIX, options.variant)
    tensors = plain_tensors(state)
    with transaction.transaction(folder) as staging:
        for name, text in texts.items():
            (staging.folder / name).write_bytes(text.encode("utf-8"))
        if options.safetensors:
            _write_shards(staging, tensors, safe, index, limit)
        else:
            _write_torch(tensors, staging.folder / torch_file)
        if beside is not None:
            beside(staging)
        staging.removes |= _safetensors_of(folder, safe, index)
        staging.removes -= {*staging.names()}


def _write_shards(
    staging: transaction.Staging, state: Mapping[str, Tensor], whole: str, index: str, limit: int
) -> None:
    """Write one safetensors file, or shards and their index where it would exceed the limit."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if filled and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    staging.save = save = name_of_save(state)
    if len(shards) == 1:
        save_safetensors(state, staging.folder / whole, save)
        return
    weight_map: dict[str, str] = {}
    stem = whole.removesuffix(".safetensors")
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_safetensors(shard, staging.folder / name, save)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in state.values())
    content = {"metadata": {"total_size": total, SAVE: save}, "weight_map": weight_map}
    (staging.folder / index).write_text(json_text(content), encoding="utf-8")


def _write_torch(state: Mapping[str, Tensor], path: Path) -> None:
    try:
        torch.save(dict(state), path)
    except RuntimeError as error:
        # So torch says that the disk is full.
        told = str(error).splitlines()[0]
        raise OSError(f"{path.name} could not be written to {path.parent} ({told}).") from error


def _safetensors_of(folder: Path, whole: str, index: str) -> set[str]:
    """Return the names of safetensors that a save may have written in a folder."""
    stem = whole.removesuffix(".safetensors")
    shards = {path.name for path in folder.glob(f"{stem}-[0-9]*-of-[0-9]*.safetensors")}
    return shards | {name for name in (whole, index) if (folder / name).is_file()}


def _parse_size(size: int | str) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    text = size.strip().upper() if isinstance(size, str) else ""
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit) and text[: -len(unit)].strip().replace(".", "", 1).isdigit():
            return int(float(text[: -len(unit)]) * units[unit])
    raise ValueError(f"max_shard_size is a number of bytes or a text like '5GB', not {size!r}.")
