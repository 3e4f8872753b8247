"""Checkpoint files: finding them, reading one tensor at a time, writing them whole or not at all.

A checkpoint is a folder (or a hub id) with model.safetensors, its sharded form with an index, or
pytorch_model.bin likewise. Tensors are read with plain file reads rather than a memory map: mapped
pages count as the process's memory, and a mapping dies with the file under it.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastbert.checkpoints import hub

CONFIG_NAME = "config.json"
SAFE_WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
HUB_OPTIONS = (
    "subfolder",
    "revision",
    "cache_dir",
    "token",
    "local_files_only",
    "force_download",
)

# No real header comes near this; a length beyond it means that the file is something else.
_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def resolve_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    subfolder: str = "",
    optional: bool = False,
    **options: Any,
) -> Any:
    """The local path of one file of a checkpoint.

    Args:
        name_or_path: a folder, or a hub id ("owner/name") when huggingface_hub is installed.
        filename: name of the file, such as "config.json".
        subfolder: folder inside the checkpoint.
        optional: return None rather than raise where the checkpoint has no such file.
        **options: revision, cache_dir, token, local_files_only, force_download.

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


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then rename it: readers see the old or the new one."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class TensorFile(Protocol):
    """One file of tensors: their names, shapes, and the means to read one."""

    path: Path

    def names(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, checked against its own header when it is opened.

    Raises:
        ValueError: when the file is not safetensors, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read_header(path)

    def names(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entries[name].dtype

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own."""
        entry = self._entries[name]
        raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.begin)
            view, done = memoryview(raw.numpy()), 0  # type: ignore[arg-type]
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise ValueError(
                        f"{self.path} ended inside the tensor {name!r}; it is damaged."
                    )
                done += count
        return raw.view(entry.dtype).reshape(entry.shape)


def _read_header(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(
                f"{path} ({size} bytes) is not a safetensors file or is truncated inside its "
                "header; download or save it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {
            name: _Entry(
                _DTYPES[item["dtype"]],
                tuple(int(extent) for extent in item["shape"]),
                8 + length + int(item["data_offsets"][0]),
                8 + length + int(item["data_offsets"][1]),
            )
            for name, item in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"The header of {path} is not valid safetensors ({type(error).__name__}: {error}); "
            "download or save it again."
        ) from error
    for name, entry in entries.items():
        count = entry.dtype.itemsize
        for extent in entry.shape:
            count *= extent
        if (
            entry.end - entry.begin != count
            or entry.begin < 8 + length
            or min(entry.shape, default=0) < 0
        ):
            raise ValueError(
                f"The header of {path} gives {name!r} {entry.end - entry.begin} bytes, but its "
                f"shape {entry.shape} needs {count}; the file is damaged."
            )
    needed = max((entry.end for entry in entries.values()), default=0)
    if needed > size:
        raise ValueError(
            f"{path} is truncated: it holds {size} bytes and its header promises {needed}; "
            "download or save it again."
        )
    return entries


class TorchFile:
    """A pytorch_model.bin, read with weights_only=True so that no code in it can run.

    Raises:
        ValueError: when torch cannot read it, or it holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files older than torch 1.6 are no zip archives and cannot be mapped.
                state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"torch cannot read {path} as weights ({str(error).splitlines()[0][:200]}); it is "
                "truncated or holds more than tensors. Download it again or convert it to "
                "safetensors."
            ) from error
        if not isinstance(state, Mapping):
            raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors.")
        self._state = {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def names(self) -> Iterator[str]:
        return iter(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own."""
        return self._state[name].clone()


class StateDictFile(TorchFile):
    """A state dict that the caller already holds, in the form of a file."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.path = Path("state_dict")
        self._state = dict(state)


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a checkpoint, whichever files they stand in.

    Attributes:
        files: name of each tensor -> the file that holds it.
        source: what error messages call the checkpoint.
    """

    files: Mapping[str, TensorFile]
    source: str

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.files[name].dtype(name)

    def read(self, name: str) -> Tensor:
        """One tensor, as it was stored."""
        return self.files[name].read(name)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Checkpoint:
        file = StateDictFile(state)
        return cls(dict.fromkeys(file.names(), file), "the given state_dict")

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Checkpoint:
        """Find and open the weights of a folder or hub id.

        Safetensors are preferred to .bin, a single file to shards.

        Args:
            options: those of resolve_file, and `use_safetensors` (False: only .bin, True: only
                safetensors) and `variant` ("fp16" for model.fp16.safetensors).

        Raises:
            FileNotFoundError: when there are no weights, or a shard of the index is missing.
            ValueError: when a file is damaged.
        """
        use_safetensors = options.pop("use_safetensors", None)
        variant = options.pop("variant", None)
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
            because = hub.offline_because(bool(options.get("local_files_only")))
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
        options: Mapping[str, Any],
    ) -> Checkpoint:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is not a valid index of shards ({error!r}).") from error
        shards = {}
        for name in sorted(set(weight_map.values())):
            shards[name] = reader(resolve_file(name_or_path, name, **options))
        files: dict[str, TensorFile] = {}
        absent = []
        for shard in shards.values():
            files.update((key, shard) for key in shard.names())
        absent = sorted(set(weight_map) - set(files))
        if absent:
            raise ValueError(
                f"{index} promises tensors that its shards do not hold: {', '.join(absent)}."
            )
        return cls(files, str(name_or_path))


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, one at a time, beside the target and then in its place.

    Raises:
        ValueError: for a dtype that the format has no name for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The format asks for wider types first, so that every tensor is aligned.
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    offset = 0
    for name in names:
        tensor = state[name]
        if tensor.dtype not in _CODES:
            raise ValueError(f"safetensors cannot hold {name!r} of type {tensor.dtype}.")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if sys.byteorder != "little":
        raise ValueError("safetensors files are little-endian, and this machine is not.")

    def write(target: Path) -> None:
        with target.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                data = state[name].detach().cpu().contiguous().reshape(-1)
                file.write(data.view(torch.uint8).numpy().data)

    write_beside(path, write)


def save_weights(
    state: Mapping[str, Tensor], folder: Path, max_shard_size: int | str
) -> list[Path]:
    """Write model.safetensors, or shards and their index where it would exceed max_shard_size.

    Safetensors that an earlier save left in the folder and this one does not replace are removed
    last; other files stay.

    Args:
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
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        path = folder / (SAFE_WEIGHTS + INDEX_SUFFIX)
        write_beside(path, lambda target: target.write_text(text, encoding="utf-8"))
        written.append(path)
    for path in earlier - set(written):
        path.unlink(missing_ok=True)
    return written


def save_torch_weights(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write pytorch_model.bin and return its path. Safetensors of an earlier save are removed last,
    since they would be read in its place."""
    path = folder / TORCH_WEIGHTS
    write_beside(path, lambda target: torch.save(dict(state), target))
    for earlier in _safetensors_of(folder):
        earlier.unlink(missing_ok=True)
    return path


def _safetensors_of(folder: Path) -> set[Path]:
    """The names under which save_weights may have written there."""
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
