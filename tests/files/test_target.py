from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from ssmquant.errors import CheckpointError, SsmquantError
from ssmquant.files import refuse_existing, write_tensors, writing


def model_folder(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones included, and its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A model folder that is there already."""
    return model_folder(tmp_path / "out", "old")


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with writing(target, force=False) as partial:
        assert partial.parent == target.parent  # the same file system, so that a rename suffices
        assert partial.name.startswith(".out.partial-")
        (partial / "config.json").write_text("new")
        assert not target.exists()
    assert tree(tmp_path) == {"deep/out/config.json": "new"}
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


def test_the_folder_has_the_user_s_usual_permissions(tmp_path: Path) -> None:
    with writing(tmp_path / "out", force=False):
        pass
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(handle: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".partial")[0])
        fsync(handle)

    def note_rename(path: Path, to: Path) -> Path:
        done.append(f"rename to {to.name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    with writing(tmp_path / "out", force=False) as partial:
        (partial / "config.json").write_text("new")
    assert done == ["sync config.json", "sync .out", "rename to out", f"sync {tmp_path.name}"]


def test_an_existing_folder_is_refused_before_the_work(tmp_path: Path, old: Path) -> None:
    with pytest.raises(CheckpointError, match=r"already exists \(holds config\.json\); pass --force"):
        refuse_existing(old, force=False)
    with pytest.raises(CheckpointError, match="already exists"), writing(old, force=False):
        pytest.fail("the work was started")
    assert tree(tmp_path) == {"out/config.json": "old"}


def test_force_replaces_a_model_folder(tmp_path: Path, old: Path) -> None:
    (old / "model.safetensors").write_text("old")
    refuse_existing(old, force=True)
    with writing(old, force=True) as partial:
        (partial / "config.json").write_text("new")
        assert (old / "config.json").read_text() == "old"
    assert tree(tmp_path) == {"out/config.json": "new"}


def test_force_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        refuse_existing(tmp_path / "out", force=False)
    with writing(tmp_path / "out", force=True) as partial:
        (partial / "config.json").write_text("new")
    assert tree(tmp_path) == {"out/config.json": "new"}


def test_a_link_keeps_pointing_to_the_folder(tmp_path: Path, old: Path) -> None:
    link = tmp_path / "elsewhere" / "latest"
    link.parent.mkdir()
    link.symlink_to(old)
    with writing(link, force=True) as partial:
        (partial / "config.json").write_text("new")
    assert link.is_symlink()
    assert tree(tmp_path / "out") == {"config.json": "new"}
    assert [entry.name for entry in link.parent.iterdir()] == ["latest"]


def file_there(path: Path) -> None:
    path.write_text("precious")


def project_there(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def project_with_config_there(path: Path) -> None:
    model_folder(path / "src")
    (path / "config.json").write_text("precious")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (file_there, "found a file there"),
        (project_there, r"it is no model folder: no config\.json \(found thesis\.tex\)"),
        (project_with_config_there, "it holds folders, which a model folder does not: src"),
    ],
)
def test_what_is_no_model_folder_is_kept_even_with_force(
    tmp_path: Path, prepare: Callable[[Path], None], said: str
) -> None:
    target = tmp_path / "out"
    prepare(target)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=said), writing(target, force=True):
        pytest.fail("the work was started")
    assert tree(tmp_path) == before


def test_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file; choose another folder"):
        refuse_existing(tmp_path / "file" / "out", force=False)


def test_a_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "access", lambda *_: False
    )  # for root, permissions of a test folder would not count
    with pytest.raises(CheckpointError, match=f"cannot write .*: no permission in {tmp_path}"):
        refuse_existing(tmp_path / "deep" / "out", force=False)


def test_a_name_too_long_for_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used: File name too long"):
        refuse_existing(tmp_path / ("x" * 300), force=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
@pytest.mark.parametrize("force", [False, True])
def test_after_any_exception_all_is_as_before(
    tmp_path: Path, error: type[BaseException], force: bool
) -> None:
    target = model_folder(tmp_path / "out", "old") if force else tmp_path / "out"
    before = tree(tmp_path)
    with pytest.raises(error), writing(target, force=force) as partial:
        (partial / "config.json").write_text("half")
        (partial / "deep").mkdir()
        raise error
    assert tree(tmp_path) == before
    assert {entry.name for entry in tmp_path.iterdir()} == ({"out"} if force else set())


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
def test_a_failure_during_the_exchange_brings_the_old_folder_back(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: Any
) -> None:
    """`failing`: 1 moves the old folder aside, 2 moves the new one to its place."""
    rename, calls = Path.rename, []

    def interrupted(path: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == failing:
            raise error
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)), writing(old, force=True) as partial:
        (partial / "config.json").write_text("new")
    assert tree(tmp_path) == {"out/config.json": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_appears_during_the_work_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(CheckpointError, match="already exists"), writing(target, force=False) as partial:
        (partial / "config.json").write_text("new")
        model_folder(target, "someone else's")
    assert tree(tmp_path) == {"out/config.json": "someone else's"}


def test_an_old_folder_that_cannot_be_removed_is_told(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with writing(old, force=True) as partial:
        (partial / "config.json").write_text("new")
    assert (old / "config.json").read_text() == "new"
    assert "what it replaces could not be removed and is now" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, old: Path, number: int) -> None:
    with (
        pytest.raises(
            CheckpointError, match=r"no space left while writing out in .*, [\d,]+ are free; free some"
        ),
        writing(old, force=True) as partial,
    ):
        (partial / "tokenizer.json").write_text("half")
        raise OSError(number, os.strerror(number))
    assert tree(tmp_path) == {"out/config.json": "old"}


def test_a_full_disk_while_tensors_are_written(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_text("half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ssmquant.files.saving.save_file", full)
    with (
        pytest.raises(
            CheckpointError, match=r"no space left while writing model\.safetensors in .*: 4,000 bytes"
        ),
        writing(old, force=True) as partial,
    ):
        write_tensors(partial, {"w": torch.ones(1000)}, {})
    assert tree(tmp_path) == {"out/config.json": "old"}


def test_other_operating_system_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught, writing(tmp_path / "out", force=False):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(caught.value, SsmquantError)
    assert not list(tmp_path.iterdir())
