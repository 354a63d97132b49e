"""A folder that appears whole or not at all.

The work goes to a hidden folder beside the target, is flushed to the disk, and takes the target's name by a
rename. A folder that is replaced stays until the new one has its name, and comes back when anything fails.
Only a flat model folder is ever replaced, so that a mistyped path cannot delete a project.

    with writing(Path("out"), force=False) as partial:
        write_json(partial / "config.json", config)
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssmquant.errors import CheckpointError
from ssmquant.files.layout import CONFIG, contents
from ssmquant.files.space import bytes_free, is_full, out_of_space

__all__ = ["refuse_existing", "writing"]

_log = logging.getLogger(__name__)

_FLUSHABLE = os.O_RDWR if os.name == "nt" else os.O_RDONLY  # Windows flushes only what is open for writing


def refuse_existing(path: Path, force: bool) -> None:
    """Raise now what `writing` would raise at its start: for use before long work.

    Args:
        path: where a model folder is to be written.
        force: whether a model folder there may be replaced.

    Raises:
        CheckpointError: something is in the way, or the place cannot be written to.
    """
    try:
        _refuse(path, force)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be used: {error.strerror}; choose another folder") from error


def _refuse(path: Path, force: bool) -> None:
    target = _absolute(path)
    if not target.exists():
        _require_writable(target)
        return
    if not target.is_dir():
        raise CheckpointError(f"asked to write a folder at {path}, found a file there; choose another name")
    if not force:
        raise CheckpointError(
            f"{path} already exists (holds {contents(target)}); pass --force (force=True) to replace it, or "
            "choose another folder"
        )
    inside = list(target.iterdir())
    if inside and not (target / CONFIG).is_file():
        raise CheckpointError(
            f"asked to replace {path}, but it is no model folder: no {CONFIG} (found {contents(target)}); "
            "choose another folder, or delete it yourself"
        )
    folders = sorted(entry.name for entry in inside if entry.is_dir())
    if folders:
        raise CheckpointError(
            f"asked to replace {path}, but it holds folders, which a model folder does not: "
            f"{', '.join(folders[:8])}; choose another folder, or delete it yourself"
        )
    _require_writable(target)


@contextmanager
def writing(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a fresh folder to write to, which becomes `path` when the block ends without an exception.

    Args:
        path: the folder to be; its parents are made where missing. A link is followed.
        force: replace a model folder that is there.

    Yields:
        An empty folder on the same file system.

    Raises:
        CheckpointError: something is in the way (before the block runs), or the disk is full. After this or
            any other exception the partial folder is gone, and what was at `path` is there as before.
    """
    target = _absolute(path)
    refuse_existing(path, force)
    partial = _beside(target, "partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        refuse_existing(path, force)  # again: it may have appeared, or been filled, during the work
        _take_place(partial, target)
    except OSError as error:
        if is_full(error):
            message = out_of_space(path.name, target.parent, needed=None, free=bytes_free(target.parent))
            raise CheckpointError(message) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _beside(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{secrets.token_hex(4)}")


def _require_writable(target: Path) -> None:
    nearest = next(parent for parent in target.parents if parent.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"cannot write {target}: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write {target}: no permission in {nearest}; choose another folder")


def _take_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what was there is removed last, and put back on any failure."""
    aside = _beside(target, "old")
    try:
        if target.exists():
            target.rename(aside)
        partial.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _flush_names(target.parent)  # the new name is safe before the old content goes
    if aside.exists():
        shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            _log.warning("%s is written; what it replaces could not be removed and is now %s", target, aside)


def _flush(folder: Path) -> None:
    """Put all below `folder` on the disk itself, so that a crash after the rename loses nothing."""
    for place, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(place, name), _FLUSHABLE)
        _flush_names(Path(place))


def _flush_names(folder: Path) -> None:
    # Windows and a few network file systems know no fsync of folders: a rename is then as safe as it gets.
    with contextlib.suppress(OSError):
        _fsync(folder, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
