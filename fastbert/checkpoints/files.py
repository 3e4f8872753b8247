"""Checkpoints: which files they consist of, reading their tensors, writing their weights.

A checkpoint is a folder (or a hub id) with model.safetensors, its sharded form with an index, or
pytorch_model.bin likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, Unpack, overload

import torch
from torch import Tensor

from fastbert.checkpoints import hub
from fastbert.checkpoints.storage import read_json, replaced, write_json
from fastbert.checkpoints.tensor_files import (
    SafetensorsFile,
    StateDictFile,
    TensorFile,
    TorchFile,
    save_safetensors,
)

CONFIG_NAME = "config.json"
SAFE_WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"


class FileOptions(hub.HubOptions, total=False):
    """Where the files of a checkpoint are looked for: a folder inside it, and the hub's options."""

    subfolder: str


HUB_OPTIONS = tuple(FileOptions.__annotations__)


@overload
def resolve_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    optional: Literal[False] = False,
    **options: Unpack[FileOptions],
) -> Path: ...


@overload
def resolve_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    optional: bool,
    **options: Unpack[FileOptions],
) -> Path | None: ...


def resolve_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    subfolder: str = "",
    optional: bool = False,
    **options: Unpack[hub.HubOptions],
) -> Path | None:
    """Find one file of a checkpoint; from the hub it is downloaded.

    Args:
        name_or_path: a folder, or a hub id ("owner/name") when huggingface_hub is installed.
        filename: name of the file, such as "config.json".
        subfolder: folder inside the checkpoint.
        optional: return None rather than raise where the checkpoint has no such file.
        **options: revision, cache_dir, token, local_files_only, force_download.

    Returns:
        The local path of the file.

    Raises:
        FileNotFoundError: when the path does not exist or lacks the file.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        path = folder / subfolder / filename
        if path.is_file():
            return path
        if optional:
            return None
        present = (
            sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        )
        listing = ", ".join(present[:12]) or "nothing"
        raise FileNotFoundError(f"{path.parent} has no {filename}; it holds {listing}.")
    text = str(name_or_path)
    if folder.exists() or text.count("/") > 1 or text.startswith((".", "/", "~")):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"{text} {what}; give the folder that holds {CONFIG_NAME} and the weights."
        )
    inside = f"{subfolder}/{filename}" if subfolder else filename
    return hub.file(text, inside, optional=optional, **options)


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a checkpoint, whichever files they stand in.

    Attributes:
        files: the file that holds each tensor, by the tensor's name.
        source: the name of the checkpoint in error messages.
    """

    files: Mapping[str, TensorFile]
    source: str

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return self.files[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored dtype without reading the tensor."""
        return self.files[name].dtype(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor, in the dtype it was stored in, into memory of its own."""
        return self.files[name].read(name)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """Make a checkpoint of tensors that are in memory already."""
        file = StateDictFile(state)
        return cls(dict.fromkeys(file.names(), file), "the given state_dict")

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Find and open the weights of a folder or hub id.

        Safetensors are preferred to .bin, a single file to shards.

        Args:
            name_or_path: a folder, or a hub id when huggingface_hub is installed.
            use_safetensors: True reads only safetensors, False only .bin.
            variant: the part of the file's name before its ending, such as "fp16" for
                model.fp16.safetensors.
            **options: those of resolve_file.

        Raises:
            FileNotFoundError: when there are no weights, or a shard of the index is missing.
            ValueError: when a file is damaged.
        """
        choices: list[tuple[str, Callable[[Path], TensorFile]]] = []
        if use_safetensors is not False:
            choices.append((SAFE_WEIGHTS, SafetensorsFile))
        if not use_safetensors:
            choices.append((TORCH_WEIGHTS, TorchFile))
        tried = []
        for plain, reader in choices:
            stem, _, ending = plain.partition(".")
            name = f"{stem}.{variant}.{ending}" if variant else plain
            tried += [name, name + INDEX_SUFFIX]
            path = resolve_file(name_or_path, name, optional=True, **options)
            if path is not None:
                file = reader(path)
                return cls(dict.fromkeys(file.names(), file), str(name_or_path))
            index = resolve_file(name_or_path, name + INDEX_SUFFIX, optional=True, **options)
            if index is not None:
                return cls._sharded(name_or_path, index, reader, options)
        because = None
        if not Path(name_or_path).is_dir():
            because = hub.cache_only_because(bool(options.get("local_files_only")))
        raise FileNotFoundError(
            f"{name_or_path} holds no weights: looked for {', '.join(tried)}"
            + (f" in the hub's cache only, since {because}." if because else ".")
        )

    @classmethod
    def _sharded(
        cls,
        name_or_path: str | os.PathLike[str],
        index: Path,
        reader: Callable[[Path], TensorFile],
        options: FileOptions,
    ) -> Self:
        weight_map = read_json(index, dict).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(
                f"{index} is not a valid index of shards: it has no weight_map; download or save "
                "the checkpoint again."
            )
        files: dict[str, TensorFile] = {}
        for name in sorted(set(weight_map.values())):
            shard = reader(resolve_file(name_or_path, name, **options))
            files.update((key, shard) for key in shard.names())
        absent = sorted(set(weight_map) - set(files))
        if absent:
            raise ValueError(
                f"{index} promises tensors that its shards do not hold: {', '.join(absent)}."
            )
        return cls(files, str(name_or_path))


def save_weights(
    state: Mapping[str, Tensor], folder: Path, max_shard_size: int | str
) -> list[Path]:
    """Write model.safetensors, or shards and their index where it would exceed max_shard_size.

    Safetensors that an earlier save left in the folder and this one does not replace are removed
    last; other files stay.

    Args:
        state: tensors by name.
        folder: an existing folder.
        max_shard_size: bytes, or a text such as "5GB" or "500MB".

    Returns:
        The files written, the index included.
    """
    limit = _parse_size(max_shard_size)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    earlier = _safetensors_of(folder)
    written = []
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SAFE_WEIGHTS
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_safetensors(shard, folder / name)
        written.append(folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = folder / (SAFE_WEIGHTS + INDEX_SUFFIX)
        write_json(path, index)
        written.append(path)
    for path in earlier - set(written):
        path.unlink(missing_ok=True)
    return written


def save_torch_weights(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write pytorch_model.bin and return its path.

    Safetensors of an earlier save are removed last, since they would be read in its place.
    """
    path = folder / TORCH_WEIGHTS
    with replaced(path) as temporary:
        torch.save(dict(state), temporary)
    for earlier in _safetensors_of(folder):
        earlier.unlink(missing_ok=True)
    return path


def _safetensors_of(folder: Path) -> set[Path]:
    """Return the paths that save_weights may have written in a folder."""
    shards = set(folder.glob("model-[0-9]*-of-[0-9]*.safetensors"))
    return shards | {folder / SAFE_WEIGHTS, folder / (SAFE_WEIGHTS + INDEX_SUFFIX)}


def _parse_size(size: int | str) -> int:
    if isinstance(size, int):
        return size
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    text = size.strip().upper()
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit) and text[: -len(unit)].strip().replace(".", "", 1).isdigit():
            return int(float(text[: -len(unit)]) * units[unit])
    raise ValueError(f"max_shard_size is a number of bytes or a text like '5GB', not {size!r}.")
