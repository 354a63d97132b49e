from __future__ import annotations

import errno
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ssmquant.errors import ModelError
from ssmquant.files import resolve

ID = "some-org/some-model"


def http_error(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    response: Any = SimpleNamespace(
        headers={}, request=None
    )  # the client's class differs between its versions
    return kind("refused", response=response)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., str]], None]:
    """Replace the download by a function of the test."""
    return lambda download: monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def raising(error: Exception) -> Callable[..., str]:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


class Snapshot:
    """A Hub with one repository; like the real one it gives only files that a pattern allows."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.calls = folder, names, list[dict[str, Any]]()

    def __call__(self, model_id: str, **options: Any) -> str:
        self.calls.append({"model_id": model_id, **options})
        self.folder.mkdir(exist_ok=True)
        for name in self.names:
            allowed, ignored = (
                any(fnmatch(name, pattern) for pattern in options[kind])
                for kind in ("allow_patterns", "ignore_patterns")
            )
            if not allowed or ignored:
                continue
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text("{}")
        return str(self.folder)

    @property
    def got(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "org" / "name"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve(model) == model
    assert resolve(str(model)) == model
    assert resolve("org/name") == Path("org/name")  # the folder wins over the Hub's model of that name


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a local folder, so revision 'v2' has no meaning"):
        resolve(tmp_path, revision="v2")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no local folder .*nowhere.* no Hub id of the form organisation/name"
    ):
        resolve(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no local folder 'gpt2'"):
        resolve("gpt2")


def test_a_path_object_is_never_looked_for_on_the_hub(hub: Any) -> None:
    hub(raising(AssertionError("the Hub was asked")))
    with pytest.raises(ModelError, match="no local folder 'org/name'"):
        resolve(Path("org/name"))


def test_a_name_too_long_for_the_file_system() -> None:
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        resolve("x" * 5000)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is empty; pass a folder with config\.json"):
        resolve(tmp_path)


def test_a_folder_without_config_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(ModelError, match=r"no config\.json \(found a\.txt, b\.txt\)"):
        resolve(tmp_path)


@pytest.mark.parametrize("inner", ["model", "snapshots/0123abcd"])
def test_the_folder_above_a_model_names_the_model(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(parents=True)
    (tmp_path / inner / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"did you mean {tmp_path / inner}"):
        resolve(tmp_path)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("")
    with pytest.raises(ModelError, match="is a file; pass the folder"):
        resolve(path)


def test_safetensors_are_downloaded_without_pickles_code_or_other_formats(tmp_path: Path, hub: Any) -> None:
    names = ["config.json", "tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]
    tensors = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "onnx/config.json", "a.gguf"]
    snapshot = Snapshot(tmp_path / "abc", names + tensors + others)
    hub(snapshot)
    assert resolve(ID, revision="v1") == tmp_path / "abc"
    assert snapshot.got == sorted(names + tensors)
    assert [(call["model_id"], call["revision"]) for call in snapshot.calls] == [(ID, "v1")]


def test_pickles_are_downloaded_where_there_is_nothing_else(tmp_path: Path, hub: Any) -> None:
    snapshot = Snapshot(tmp_path / "abc", ["config.json", "pytorch_model.bin", "training_args.bin", "run.py"])
    hub(snapshot)
    resolve(ID)
    assert snapshot.got == ["config.json", "pytorch_model.bin"]
    assert [call["revision"] for call in snapshot.calls] == [None, "abc"]  # both from the same commit


def test_a_download_without_config(tmp_path: Path, hub: Any) -> None:
    hub(Snapshot(tmp_path / "abc", ["model.safetensors"]))
    with pytest.raises(ModelError, match=rf"{ID} is no model folder: no config\.json"):
        resolve(ID)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http_error(RepositoryNotFoundError), "the Hub has no such model"),
        (http_error(GatedRepoError), "the Hub wants access rights"),
        (http_error(RevisionNotFoundError), "no revision 'v9'"),
        (OSError("the line is cut"), "the Hub could not be reached: the line is cut; pass a local folder"),
        (OSError(errno.ENOSPC, "No space left on device"), r"no space left while writing the download of"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_download_errors_say_what_to_do(hub: Any, error: Exception, said: str) -> None:
    hub(raising(error))
    with pytest.raises(ModelError, match=said):
        resolve(ID, revision="v9")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, told that it is offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=f"no local folder {ID} and the Hub could not be reached: .*pass a local"
    ):
        resolve(ID)
