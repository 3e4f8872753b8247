"""Checkpoints: which files they consist of, reading their tensors, writing all of them together.

A checkpoint is a folder (or a hub id) with model.safetensors, its sharded form with an index, or
pytorch_model.bin likewise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, Unpack, overload

import torch
from torch import Tensor

from fastbert.checkpoints import hub, transaction
from fastbert.checkpoints.storage import read_json
from fastbert.checkpoints.tensor_files import (
    SAVE,
    SafetensorsFile,
    StateDictFile,
    TensorFile,
    TorchFile,
)

CONFIG_NAME = transaction.CONFIG_NAME
SAFE_WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
ADAPTER_CONFIG = "adapter_config.json"
# Weights of other programs, which a folder may hold in place of ours, and the way out.
_OTHERS = {
    "tf_model.h5": "weights of TensorFlow: load them in transformers 4 with from_tf=True and "
    "save_pretrained",
    "model.ckpt.index": "weights of TensorFlow: load them in transformers 4 with from_tf=True and "
    "save_pretrained",
    "flax_model.msgpack": "weights of Flax: load them in transformers 4 with from_flax=True and "
    "save_pretrained",
    "adapter_model.safetensors": "an adapter: load its base model and use "
    "peft.PeftModel.from_pretrained",
    "adapter_model.bin": "an adapter: load its base model and use peft.PeftModel.from_pretrained",
    "model.onnx": "an exported graph: take the checkpoint that it was made from",
    "openvino_model.xml": "an exported graph: take the checkpoint that it was made from",
    "rust_model.ot": "weights of rust-bert: take the checkpoint that they were made from",
}


class FileOptions(hub.HubOptions, total=False):
    """Where the files of a checkpoint are looked for: a folder inside it, and the hub's options."""

    subfolder: str | None


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
    subfolder: str | None = "",
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
        ValueError: for an empty name, which would be the current folder.
    """
    if name_or_path == "":
        raise ValueError(
            f"The model's name is empty; give the folder that holds {CONFIG_NAME} and the weights."
        )
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        path = transaction.find(folder, filename, subfolder or "")
        if path is not None or optional:
            return path
        inner = folder / (subfolder or "")
        listing = ", ".join(_names_in(inner)[:12]) or "nothing"
        raise FileNotFoundError(
            f"{inner} has no {filename}; it holds {listing}.{_of_others(_names_in(inner))}"
        )
    text = str(name_or_path)
    if folder.exists() or text.count("/") > 1 or text.startswith((".", "/", "~")):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"{text} {what}; give the folder that holds {CONFIG_NAME} and the weights."
        )
    inside = f"{subfolder}/{filename}" if subfolder else filename
    return hub.file(text, inside, optional=optional, **options)


def variant_name(name: str, variant: str | None) -> str:
    """Return the name of a variant's file, such as model.fp16.safetensors.

    Raises:
        ValueError: for a variant that is no part of a file's name.
    """
    if variant is None:
        return name
    if not transaction.is_plain_name(variant):
        raise ValueError(f"variant is a part of a file's name, such as 'fp16', not {variant!r}.")
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def local_folder(name_or_path: object, subfolder: str | None = "") -> Path | None:
    """Return the folder of a checkpoint on this machine; None for a hub id."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        return None
    folder = Path(name_or_path).expanduser() / (subfolder or "")
    return folder if folder.is_dir() else None


def _names_in(folder: Path) -> list[str]:
    """List what a folder holds, without what saves leave there for themselves."""
    if not folder.is_dir():
        return []
    hidden = transaction.COMMITTED.partition("-")[0]
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(hidden))


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

    def check_unchanged(self) -> None:
        """Raise ValueError where somebody has written into a file since it was opened."""
        for file in dict.fromkeys(self.files.values()):
            file.check_unchanged()

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

        Safetensors are preferred to .bin, a single file to shards. Each file is opened once; in a
        folder they all are of one checkpoint, however often others are saved into it meanwhile.

        Args:
            name_or_path: a folder, or a hub id when huggingface_hub is installed.
            use_safetensors: True reads only safetensors, False only .bin.
            variant: the part of the file's name before its ending, such as "fp16" for
                model.fp16.safetensors.
            **options: those of resolve_file.

        Raises:
            FileNotFoundError: when there are no weights, or a shard of the index is missing.
            ValueError: when a file is damaged, shards are of different checkpoints, or an adapter
                stands beside the weights, which transformers would add to them.
        """
        folder = local_folder(name_or_path, options.get("subfolder", ""))
        if folder is None:
            return cls._open(name_or_path, use_safetensors, variant, options)

        checkpoint, doubt = transaction.steady(
            folder,
            lambda: (
                found := cls._open(name_or_path, use_safetensors, variant, options),
                _doubt(folder, found),
            ),
        )
        if doubt is not None:
            warnings.warn(doubt, stacklevel=6)
        if (folder / ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"{folder} holds an adapter of PEFT ({ADAPTER_CONFIG}) beside the weights, which "
                "would be read without it; move the adapter's files into a folder of their own, "
                "and use peft.PeftModel.from_pretrained(model, that folder)."
            )
        return checkpoint

    @classmethod
    def _open(
        cls,
        name_or_path: str | os.PathLike[str],
        use_safetensors: bool | None,
        variant: str | None,
        options: FileOptions,
    ) -> Self:
        choices: list[tuple[str, Callable[[Path], TensorFile]]] = []
        if use_safetensors is not False:
            choices.append((SAFE_WEIGHTS, SafetensorsFile))
        if not use_safetensors:
            choices.append((TORCH_WEIGHTS, TorchFile))
        tried = []
        for plain, reader in choices:
            name = variant_name(plain, variant)
            index_name = variant_name(plain + INDEX_SUFFIX, variant)
            tried += [name, index_name]
            path = resolve_file(name_or_path, name, optional=True, **options)
            if path is not None:
                file = reader(path)
                return cls(dict.fromkeys(file.names(), file), str(name_or_path))
            index = resolve_file(name_or_path, index_name, optional=True, **options)
            if index is not None:
                return cls._sharded(name_or_path, index, reader, options)
        because = None
        if not Path(name_or_path).is_dir():
            because = hub.cache_only_because(bool(options.get("local_files_only")))
        raise FileNotFoundError(
            f"{name_or_path} holds no weights: looked for {', '.join(tried)}"
            + (f" in the hub's cache only, since {because}." if because else ".")
            + _other_weights(name_or_path, options)
        )

    @classmethod
    def _sharded(
        cls,
        name_or_path: str | os.PathLike[str],
        index: Path,
        reader: Callable[[Path], TensorFile],
        options: FileOptions,
    ) -> Self:
        weight_map, save = _weight_map(index)
        shards: dict[str, TensorFile] = {}
        for name in sorted(set(weight_map.values())):
            shards[name] = reader(resolve_file(name_or_path, name, **options))
        _check_one_save(index, save, shards)
        files: dict[str, TensorFile] = {}
        for shard in shards.values():
            files.update((key, shard) for key in shard.names())
        held = {name: set(shard.names()) for name, shard in shards.items()}
        absent = sorted(key for key, name in weight_map.items() if key not in held[name])
        if absent:
            raise ValueError(
                f"{index} promises tensors that its shards do not hold: {', '.join(absent)}."
            )
        files.update((key, shards[name]) for key, name in weight_map.items())
        return cls(files, str(name_or_path))


def _weight_map(index: Path) -> tuple[dict[str, str], str | None]:
    """Read which shard holds which tensor, and which save wrote the index.

    Raises:
        ValueError: for an index of another form, or one that leads out of its folder.
    """
    content = read_json(index, dict)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(weight_map, dict):
        raise ValueError(
            f"{index} is not a valid index of shards: it has no weight_map; download or save "
            "the checkpoint again."
        )
    for name in weight_map.values():
        if not transaction.is_plain_name(name):
            raise ValueError(
                f"{index} names {name!r} as a shard, but shards are files beside their index, "
                "named without a folder; download or save the checkpoint again."
            )
    return weight_map, metadata.get(SAVE) if isinstance(metadata, dict) else None


def _check_one_save(index: Path, save: str | None, shards: Mapping[str, TensorFile]) -> None:
    """Refuse shards of different saves.

    Raises:
        ValueError: where a shard, or the index, is of another save than the others.
    """
    saves = {name: shard.save for name, shard in shards.items()}
    first = next(iter(saves), "")
    other = next((name for name in saves if saves[name] != saves[first]), None)
    if other is None and first and save is not None and save != saves[first]:
        first, other = index.name, first
    if other is not None:
        raise ValueError(
            f"{index.parent} holds parts of two checkpoints: {first} and {other} were not written "
            "by the same save. Save or download the checkpoint again as a whole."
        )


def _doubt(folder: Path, checkpoint: Checkpoint) -> str | None:
    """Return what is to be said of a folder that was overwritten by half; None of all others.

    Its weights are of another save than its configuration. An edited configuration and weights of
    another program are somebody's own doing, and no news.
    """
    file = next(iter(checkpoint.files.values()), None)
    if file is None or file.save is None:
        return None
    try:
        manifest = transaction.manifest_of(folder)
    except ValueError:
        return None
    config = transaction.find(folder, CONFIG_NAME)
    if manifest is None or config is None or manifest.save == file.save:
        return None
    if file.path.name not in manifest.files:
        return None
    if transaction.digest(config) != manifest.files.get(CONFIG_NAME):
        return None
    return (
        f"{file.path} was not written together with the {CONFIG_NAME} beside it: they may belong "
        f"to two checkpoints. If you put it there on purpose, remove {transaction.MANIFEST}; if "
        "not, save or copy the checkpoint again as a whole."
    )


def _of_others(names: Sequence[str]) -> str:
    """Return a sentence about a file of another program among these, or nothing."""
    return next((f" {name} is {what}." for name, what in _OTHERS.items() if name in names), "")


def _other_weights(source: str | os.PathLike[str], options: FileOptions) -> str:
    """Return a sentence about weights that a folder holds for other programs, or nothing."""
    folder = local_folder(source, options.get("subfolder", ""))
    present = [] if folder is None else _names_in(folder)
    if told := _of_others(present):
        return told
    gguf = next((name for name in present if name.endswith(".gguf")), None)
    if gguf is not None:
        return f" {gguf} is of a format that is not read here: take the original checkpoint."
    ours = [name for name in present if name.endswith((".safetensors", ".bin"))]
    unread = [name for name in ours if folder is not None and not (folder / name).is_file()]
    if unread:
        return f" {unread[0]} is a folder, or a link to nothing; download the checkpoint again."
    if ours:
        return f" It holds {', '.join(ours[:5])}; see use_safetensors and variant, or rename it."
    return ""
