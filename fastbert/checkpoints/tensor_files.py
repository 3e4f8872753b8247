"""Files of tensors: opened once, with strict checks, and read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastbert.checkpoints.storage import refuse_pointer, replaced

# The types of the format that models here are made of, by the format's names.
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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Where a file of tensors says which save wrote it, among its metadata.
SAVE = "fastbert_save"
_HASHING_THREADS = 4


class TensorFile(Protocol):
    """One file of tensors: their names, shapes, and the means to read one."""

    path: Path
    save: str | None

    def names(self) -> Iterator[str]:
        """Iterate over the names of the tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading the tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own, on the CPU."""
        ...

    def check_unchanged(self) -> None:
        """Raise ValueError where somebody has written into the file since it was opened."""
        ...


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, checked when it is opened.

    The file is opened once, so that all tensors are of one file, whatever is renamed to its path
    meanwhile. The library checks the header: types, shapes, and that the tensors fill the file
    without overlaps or holes. The bytes of a tensor are read here, since the library maps the file:
    a copy out of the map takes three times as long (240 MB in the page cache: 0.95 s, 0.3 s here),
    mapped pages count as the process's memory, and tensors that stay in the map change or fault
    when somebody overwrites the file.

    Args:
        path: an existing file.

    Attributes:
        path: the file.
        save: which save of fastbert wrote it, None where another program did.

    Raises:
        ValueError: when the file is damaged, or holds a tensor of a type that models here lack.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._written = _written(self._descriptor)
        self._entries, metadata = _read_header(self._descriptor, path)
        self.save: str | None = metadata.get(SAVE)

    def names(self) -> Iterator[str]:
        """Iterate over the names of the tensors, in the order of the header."""
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading the tensor."""
        return self._entries[name].dtype

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own, on the CPU.

        Raises:
            ValueError: when the file has become shorter since it was opened.
        """
        entry = self._entries[name]
        raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
        view, done = memoryview(raw.numpy()), 0  # type: ignore[arg-type]
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], entry.begin + done)
            if not count:
                raise ValueError(
                    f"{self.path} ended inside the tensor {name!r}; it is damaged: download "
                    "or save it again."
                )
            done += count
        return raw.view(entry.dtype).reshape(entry.shape)

    def check_unchanged(self) -> None:
        """Raise ValueError where somebody has written into the file since it was opened."""
        if _written(self._descriptor) != self._written:
            raise ValueError(
                f"{self.path} was written to while it was read, so that old and new tensors may be "
                "mixed; load it again when the writer is done."
            )


def _written(descriptor: int) -> tuple[int, int]:
    """Describe the contents of an open file; every write to it gives another value."""
    now = os.fstat(descriptor)
    return now.st_size, now.st_mtime_ns


def _read_header(descriptor: int, path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Let the library check a file, then read where each tensor stands, and the metadata."""
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 64, 0)
    refuse_pointer(path, start)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= size - 8:
        raise ValueError(
            f"{path} ({size} bytes) is not a safetensors file or is truncated inside its "
            "header; download or save it again."
        )
    try:
        # By the descriptor: at the path another file may stand by now.
        with safe_open(f"/proc/self/fd/{descriptor}", framework="pt"):
            pass
        # The format forbids a name to occur twice, and the library takes the last one.
        header = json.loads(os.pread(descriptor, length, 8), object_pairs_hook=_unique)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} ({size} bytes) is not valid safetensors or is truncated ({error}); "
            "download or save it again."
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    foreign = sorted({item["dtype"] for item in header.values()} - set(_DTYPES))
    if foreign:
        raise ValueError(
            f"{path} holds tensors of type {', '.join(foreign)}{_quantised_by_others(foreign)}; "
            f"models here are made of {', '.join(_DTYPES)}: convert it to one of these."
        )
    entries = {
        name: _Entry(
            _DTYPES[item["dtype"]],
            tuple(item["shape"]),
            8 + length + item["data_offsets"][0],
            8 + length + item["data_offsets"][1],
        )
        for name, item in header.items()
    }
    return entries, metadata


def _quantised_by_others(types: Sequence[str]) -> str:
    """Say what the small floating types are there for, where a file has some."""
    if any(name.startswith(("F8", "F6", "F4", "float8", "float4")) for name in types):
        return ", which are weights that another library has quantised and only it can read"
    return ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of the pairs of a JSON object, and refuse a key that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"its header names {twice!r} twice")
    return found


class TorchFile:
    """A pytorch_model.bin, read with weights_only=True so that no code in it can run.

    All of it is read at once: a mapped file would end the process where somebody cuts it short.

    Args:
        path: an existing file.

    Attributes:
        path: the file.
        save: always None: the format has no room for it.

    Raises:
        ValueError: when torch cannot read it, or it holds anything but tensors of a type that
            models here are made of.
    """

    save: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
            file.seek(0)
            before = _written(file.fileno())
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except MemoryError:
                raise
            except Exception as error:
                # Of many kinds: its readers assert, index, seek and unpack as they go.
                told = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise ValueError(
                    f"torch cannot read {path} as weights ({told}); it is truncated or holds more "
                    "than tensors. Download it again or convert it to safetensors."
                ) from error
            if _written(file.fileno()) != before:
                raise ValueError(
                    f"{path} was written to while it was read; load it again when the writer is "
                    "done."
                )
        if not isinstance(state, Mapping):
            raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors.")
        self._state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if state and not self._state:
            keys = ", ".join(str(key) for key in list(state)[:5])
            raise ValueError(
                f"{path} holds no tensors but {keys}; it seems to be a program's own checkpoint. "
                "Take the weights out of it and pass them as state_dict=."
            )
        _check_plain(self._state, str(path))
        # Where a tensor is alone in its memory, that memory is handed over rather than copied.
        storages = Counter(_storage(value) for value in self._state.values())
        self._alone = {
            name
            for name, value in self._state.items()
            if storages[_storage(value)] == 1 and value.untyped_storage().nbytes() == value.nbytes
        }

    def names(self) -> Iterator[str]:
        """Iterate over the names of the tensors."""
        return iter(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading the tensor."""
        return self._state[name].dtype

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own."""
        tensor = self._state[name].detach()
        if name in self._alone:
            self._alone.remove(name)  # The next reader gets a copy.
            return tensor
        return tensor.clone()

    def check_unchanged(self) -> None:
        """Do nothing: everything was read when the file was opened."""


class StateDictFile(TorchFile):
    """A state dict that the caller already holds, in the form of a file.

    Raises:
        ValueError: for a tensor of a type that models here are not made of, or without values.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.path = Path("state_dict")
        self._state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if state and not self._state:
            kind = type(next(iter(state.values()))).__name__
            raise ValueError(f"The given state_dict holds values of type {kind}, not tensors.")
        _check_plain(self._state, "The given state_dict")
        # Whoever gives tensors gives their memory too, of which a model takes each piece once.
        memory: dict[int, str] = {}
        for name, tensor in self._state.items():
            if _shareable(tensor):
                memory.setdefault(_storage(tensor), name)
        self._alone = set(memory.values())


def _shareable(tensor: Tensor) -> bool:
    """Return whether a parameter can stand in the memory of a tensor."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_inference()
    return plain and tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _check_plain(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that have no values of their own, or of a type that models here lack."""
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            what = "without values" if tensor.is_meta else "sparse or quantised"
            raise ValueError(
                f"{source} holds {name!r} as a tensor that is {what}; models here are made of "
                "plain tensors: convert it first."
            )
    foreign = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.dtype not in _NAMES}
    if foreign:
        names = sorted(foreign)
        raise ValueError(
            f"{source} holds tensors of type {', '.join(names)}{_quantised_by_others(names)}; "
            "models here are made of floating, integer and boolean tensors that safetensors has: "
            "convert it to one of these."
        )


def name_of_save(state: Mapping[str, Tensor]) -> str:
    """Return a name for a state dict that only an equal one has: the same save, the same name.

    It is the SHA-256 of all names, types, shapes and bytes, cut to 32 digits (1.2 GB/s a thread).

    Args:
        state: contiguous tensors on the CPU.
    """
    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(_digest, state.values()))
    whole = hashlib.sha256()
    for (name, tensor), digest in zip(state.items(), digests, strict=True):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole.update(digest)
    return whole.hexdigest()[:32]


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(_bytes_of(tensor)).digest()


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU of which no two share memory, as files need them.

    Args:
        state: tensors by name, on any device. Those that share memory are copied.

    Raises:
        ValueError: for a dtype that a model here is not made of, or a tensor without values.
    """
    for name, tensor in state.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"safetensors cannot hold {name!r} of type {tensor.dtype}.")
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values to save; load it first."
            )
    taken: set[int] = set()
    found = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = _storage(tensor)
        found[name] = tensor.clone() if storage in taken else tensor
        taken.add(storage)
    return found


def save_safetensors(state: Mapping[str, Tensor], path: Path, save: str | None = None) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    The library would copy every tensor before it writes, give the file to its owner alone, and put
    the metadata in another order each time; so the bytes of the format are written here.

    Args:
        state: tensors by name, on any device. Those that share memory are written one by one.
        path: the file; its folder must exist.
        save: the name of the save that the file belongs to.

    Raises:
        ValueError: for a dtype that a model here is not made of, or a tensor without values.
        OSError: when the file cannot be written.
    """
    tensors = plain_tensors(state)
    # Wide types first, so that every tensor is aligned; the header is filled up for the same end.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    metadata = {"format": "pt"} | ({} if save is None else {SAVE: save})
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor = tensors[name]
        offsets = [end, end := end + tensor.nbytes]
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        with replaced(path) as temporary, temporary.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                file.write(_bytes_of(tensors[name]))
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written ({error.strerror})") from error


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
