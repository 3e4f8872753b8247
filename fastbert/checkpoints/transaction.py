"""A save of several files as one transaction: readers and crashes meet the old ones or the new.

POSIX renames one file at a time, so a save goes in three steps:

1. All new files are written and synced in a folder beside the old ones (`.fastbert-save-...`). What
   goes wrong until here leaves the old checkpoint as it was.
2. The folder is renamed to `.fastbert-committed`. That is the moment at which the new checkpoint
   becomes the one that is read: `find` looks there first.
3. Its files are moved to their places and the folder is removed. Where that is cut short, `find`
   goes on reading the new checkpoint, and the next save or load of the folder does the rest.

Programs that know nothing of step 2 look for config.json first. Where more than one file of theirs
changes, config.json goes first and comes last, so that they find no checkpoint rather than halves
of two. Where only the weights change, as in a training loop, they are replaced at once.

The manifest, `fastbert_checkpoint.json`, is moved last and stays. It names the files of the save,
those in folders inside it too, with their sizes and the hashes of the small ones; files of tensors
carry the name of their save in themselves. A folder without a manifest is read as it is, and so is
a file that others have written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fastbert.checkpoints.storage import json_text, keep_mode, read_json, sync

CONFIG_NAME = "config.json"
MANIFEST = "fastbert_checkpoint.json"
COMMITTED = ".fastbert-committed"

Read = TypeVar("Read")

_STAGED = ".fastbert-save-"
_FORMAT = 1
# What a checkpoint consists of, for those who ask whether it has changed.
_PARTS = re.compile(
    rf"(pytorch_)?model[-.].*|(generation_)?config\.json|{re.escape(MANIFEST)}|"
    rf"{re.escape(COMMITTED)}"
)
_SCRAP = re.compile(r"\..+\.[0-9a-f]{8}\.part")
# Seconds after which a file of a writer without a lock counts as left behind.
_FORGOTTEN = 3600.0
# A writer switches its files within some milliseconds, and a reader waits at most a few seconds.
_ATTEMPTS = 60
_LONGEST_PAUSE = 0.05
_PATIENCE = 5.0


@dataclass
class Staging:
    """The files of a save that is being written.

    Attributes:
        folder: where they are written, under the names that they will have.
        removes: names of files of the former checkpoint that the new one has no use for.
        save: what the files of tensors of this save carry, None where they carry nothing.
    """

    folder: Path
    removes: set[str] = field(default_factory=set)
    save: str | None = None

    def names(self) -> list[str]:
        """Return the names of the files that are written, those in inner folders with these."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)


@dataclass(frozen=True)
class Manifest:
    """What a save wrote.

    Attributes:
        save: what its files of tensors carry, None where they carry nothing.
        files: the names of its files, with the SHA-256 of the small ones.
        removes: the names that it removed.
    """

    save: str | None
    files: dict[str, str | None]
    removes: frozenset[str]


@contextmanager
def transaction(folder: Path) -> Iterator[Staging]:
    """Replace the files of a checkpoint together, or none of them.

    Savers of one folder take turns. What killed savers left in the folder is finished or removed.

    Args:
        folder: an existing folder.

    Yields:
        Where the block writes the files. Where the block raises, nothing has changed.

    Raises:
        OSError: when a file cannot be written; the former checkpoint is then whole.
    """
    with _locked(folder) as held:
        _finish(folder)
        _clear(folder, held)
        staging = Staging(folder / f"{_STAGED}{uuid.uuid4().hex[:8]}")
        staging.folder.mkdir(mode=0o700)
        try:
            yield staging
            _seal(staging, folder)
            staging.folder.rename(folder / COMMITTED)
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)
        sync(folder)
        _finish(folder)


def find(folder: Path, name: str, subfolder: str = "") -> Path | None:
    """Find a file of a folder's checkpoint, None where it has none of that name.

    Args:
        folder: the folder.
        name: the file's name.
        subfolder: where it stands in the folder. A save of either of the two may be pending.
    """
    inside = str(PurePosixPath(subfolder, name))
    places = [(folder, inside)] + ([(folder / subfolder, name)] if subfolder else [])
    # A second look, since a file may be moved between the two places while they are looked at.
    for _ in range(2):
        for place, there in places:
            pending = _pending(place)
            if pending is not None:
                if (place / COMMITTED / there).is_file():
                    return place / COMMITTED / there
                if there in pending.removes:
                    return None
        if (folder / inside).is_file():
            return folder / inside
    return None


def settled(folder: Path) -> bool:
    """Wait until all files of the latest save are in their places; return whether they are.

    A saver that is at work is waited for; where one was killed, its work is done here, if that is
    allowed.
    """
    end = time.monotonic() + _PATIENCE
    while _pending(folder) is not None:
        recover(folder)
        if time.monotonic() > end:
            return _pending(folder) is None
        time.sleep(_LONGEST_PAUSE / 10)
    return True


def manifest_of(folder: Path) -> Manifest | None:
    """Return the manifest of a folder's latest save; None where there is none."""
    return _pending(folder) or _read_manifest(folder / MANIFEST)


def is_plain_name(name: object) -> bool:
    """Return whether a name that a file gives leads nowhere but into the folder of that file."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def _is_inside(name: object) -> bool:
    """Return whether a path that a file gives leads into the folder of that file."""
    return isinstance(name, str) and all(is_plain_name(part) for part in name.split("/"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def steady(folder: Path, read: Callable[[], Read]) -> Read:
    """Read several files of one checkpoint, again where somebody saved another one meanwhile.

    Args:
        folder: where the checkpoint is.
        read: opens all the files; what it opened stays readable whatever is renamed.

    Raises:
        ValueError: when the folder never holds still.
    """
    pause = 0.001
    for _ in range(_ATTEMPTS):
        before = _stamp(folder)
        try:
            found = read()
        except (OSError, ValueError):
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return found
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise ValueError(
        f"{folder} is being written: each time it was read, files of two checkpoints were found "
        "in it. Read it again when the writer is done."
    )


def recover(folder: Path) -> None:
    """Finish a save whose writer was killed behind its second step, where that is allowed here."""
    if not (folder / COMMITTED).is_dir():
        return
    # Without rights to write, `find` reads what is there all the same.
    with suppress(OSError), _locked(folder, wait=False) as held:
        if held:
            _finish(folder)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Keep other savers out of a folder; yield whether that is so.

    Some network filesystems have no locks for folders. There savers must not meet.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    held = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            held = False
        yield held
    finally:
        if held:
            # A child that was forked meanwhile holds the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _seal(staging: Staging, folder: Path) -> None:
    """Write the manifest and have everything on the disk."""
    files: dict[str, dict[str, Any]] = {}
    for name in staging.names():
        path = staging.folder / name
        _refuse_blocked(folder, name)
        files[name] = {"bytes": path.stat().st_size}
        if path.suffix == ".json":
            files[name]["sha256"] = digest(path)
    content: dict[str, Any] = {"format": _FORMAT, "save": staging.save, "files": files}
    if staging.removes:
        content["removes"] = sorted(staging.removes)
    (staging.folder / MANIFEST).write_text(json_text(content), encoding="utf-8")
    for path in staging.folder.rglob("*"):
        if path.is_file():
            keep_mode(path, folder / path.relative_to(staging.folder))
        sync(path)
    staging.folder.chmod(stat.S_IMODE(folder.stat().st_mode) & 0o777)
    sync(staging.folder)


def _refuse_blocked(folder: Path, name: str) -> None:
    """Refuse a place that no file can be moved to, while the former checkpoint is whole.

    Raises:
        FileExistsError: for a folder in the place of a file, or a file in that of a folder.
    """
    parents = [folder / parent for parent in PurePosixPath(name).parents[:-1]]
    for path, kind in ((folder / name, "folder"), *((parent, "file") for parent in parents)):
        if path.is_dir() if kind == "folder" else path.exists() and not path.is_dir():
            raise FileExistsError(
                f"{path} is a {kind}, so {name} cannot be saved there; remove it, or save into "
                "another folder."
            )


def _finish(folder: Path) -> None:
    """Move the files of a committed save to their places."""
    committed = folder / COMMITTED
    pending = _pending(folder)
    if pending is None:
        with suppress(FileNotFoundError):
            committed.rmdir()
        return
    waiting = [name for name in pending.files if (committed / name).is_file()]
    obsolete = [folder / name for name in pending.removes if (folder / name).exists()]
    if obsolete or not _at_once(folder, waiting):
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        sync(folder)
    for name in waiting:
        if name != CONFIG_NAME:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (committed / name).replace(folder / name)
    for path in obsolete:
        path.unlink(missing_ok=True)
    for place in {(folder / name).parent for name in (*pending.files, CONFIG_NAME)}:
        if place.is_dir():
            sync(place)
    if CONFIG_NAME in waiting:
        (committed / CONFIG_NAME).replace(folder / CONFIG_NAME)
        sync(folder)
    # Emptied folders go first: without its manifest, only an empty folder is known as a scrap.
    for emptied in sorted((path for path in committed.rglob("*") if path.is_dir()), reverse=True):
        emptied.rmdir()
    (committed / MANIFEST).replace(folder / MANIFEST)
    committed.rmdir()
    sync(folder)


def _at_once(folder: Path, waiting: list[str]) -> bool:
    """Whether at most one file changes, so that one rename changes the checkpoint."""
    changing = [name for name in waiting if not _same(folder / COMMITTED / name, folder / name)]
    return len(changing) <= 1


def _same(one: Path, other: Path) -> bool:
    """Whether two files are known to be the same; large ones are taken for different."""
    if one.suffix != ".json" or not other.is_file():
        return False
    return one.read_bytes() == other.read_bytes()


def _clear(folder: Path, held: bool) -> None:
    """Remove what killed writers left; without a lock only what is old, for others may write."""
    for entry in folder.iterdir():
        staged, scrap = entry.name.startswith(_STAGED), _SCRAP.fullmatch(entry.name)
        with suppress(FileNotFoundError):
            old = (staged or scrap) and time.time() - entry.stat().st_mtime > _FORGOTTEN
            if staged and (held or old):
                shutil.rmtree(entry, ignore_errors=True)
            elif scrap and old:
                entry.unlink()


def _pending(folder: Path) -> Manifest | None:
    """Return the manifest of a save that is committed and not finished."""
    return _read_manifest(folder / COMMITTED / MANIFEST)


def _read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None where there is none, or one of a later form.

    Raises:
        ValueError: when it is damaged.
    """
    try:
        content = read_json(path, dict)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if content.get("format") != _FORMAT:
        return None
    files, removes = content.get("files"), content.get("removes", [])
    names = [*files, *removes] if isinstance(files, dict) and isinstance(removes, list) else [None]
    if not isinstance(files, dict) or not all(_is_inside(name) for name in names):
        raise ValueError(
            f"'{path}' is not a manifest of a checkpoint; remove it, or save the checkpoint again."
        )
    hashes = {name: entry.get("sha256") for name, entry in files.items() if isinstance(entry, dict)}
    return Manifest(content.get("save"), hashes, frozenset(removes))


def _stamp(folder: Path) -> list[tuple[object, ...]]:
    """Describe the files of a checkpoint, so that every change to them gives another value."""
    found: list[tuple[object, ...]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _PARTS.fullmatch(entry.name):
                try:
                    now = entry.stat()
                except FileNotFoundError:
                    found.append((entry.name,))
                    continue
                times = (now.st_mtime_ns, now.st_ctime_ns)
                found.append((entry.name, now.st_ino, now.st_size, *times))
    return sorted(found, key=str)
