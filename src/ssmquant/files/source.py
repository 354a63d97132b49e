"""From what the user typed to a model folder on this machine: a local folder, or a download from the Hub.

Only configuration, tokenizer and tensors are downloaded, pickles only where a model has nothing else, and
never code. The download draws huggingface_hub's own progress bars (HF_HUB_DISABLE_PROGRESS_BARS=1: none).

    folder = resolve("./mamba2-130m")
    folder = resolve("state-spaces/mamba2-130m", revision="main")
"""

from __future__ import annotations

import re
from pathlib import Path

from ssmquant.errors import ModelError
from ssmquant.files.layout import CONFIG, contents
from ssmquant.files.space import bytes_free, is_full, out_of_space

__all__ = ["resolve"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

# Configuration, index, every kind of tokenizer file, tensors.
_WANTED = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.safetensors"]
_PICKLES = ["pytorch_model*.bin"]
# Sub-folders hold exports to other tools, and consolidated files a second copy of the same tensors.
_IGNORED = ["*/*", "consolidated*"]


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Find a model folder, downloading it when it is a Hub id and no local folder has that name.

    Args:
        path_or_id: a folder with config.json, or `organisation/name` on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub; None is the default branch.

    Returns:
        The folder, with a config.json in it.

    Raises:
        ModelError: there is no such folder or model, it holds no config.json, or the Hub cannot be reached.
    """
    try:
        folder = _find(path_or_id, revision)
        _require_config(str(path_or_id), folder)
    except OSError as error:
        raise ModelError(f"{path_or_id} cannot be read: {error.strerror}; check its permissions") from error
    return folder


def _find(path_or_id: str | Path, revision: str | None) -> Path:
    asked = str(path_or_id)
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{asked} is a local folder, so revision {revision!r} has no meaning; leave it out, or "
                "rename the folder to have the Hub's model of that name"
            )
        return folder
    if folder.exists():
        raise ModelError(f"{asked} is a file; pass the folder that holds {CONFIG} and the tensors")
    if isinstance(path_or_id, str) and _HUB_ID.fullmatch(asked):
        return _download(asked, revision)
    raise ModelError(
        f"no local folder {asked!r} (looked from {Path.cwd()}), and it is no Hub id of the form "
        "organisation/name; pass one of the two"
    )


def _require_config(asked: str, folder: Path) -> None:
    if (folder / CONFIG).is_file():
        return
    if not any(folder.iterdir()):
        raise ModelError(f"the folder {asked} is empty; pass a folder with {CONFIG} and the tensors")
    # A level too high is the usual slip: the folder of several models, or the Hub cache's folder of one.
    inside = sorted(folder.glob(f"*/{CONFIG}")) + sorted(folder.glob(f"snapshots/*/{CONFIG}"))
    advice = f"did you mean {inside[0].parent}?" if inside else "pass the folder that save_pretrained wrote"
    raise ModelError(f"{asked} is no model folder: no {CONFIG} (found {contents(folder)}); {advice}")


def _download(model_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # here, since a local folder needs no network library

    try:
        folder = snapshot_download(
            model_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_IGNORED
        )
        if not any(Path(folder).glob("*.safetensors")):
            # The snapshot's folder is named by its commit: the pickles must be of the same one.
            folder = snapshot_download(
                model_id,
                revision=Path(folder).name,
                allow_patterns=_WANTED + _PICKLES,
                ignore_patterns=_IGNORED,
            )
    except Exception as error:  # of several network libraries, without a common base
        raise ModelError(_why(model_id, revision, error)) from error
    return Path(folder)


def _why(model_id: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if is_full(error):
        cache = Path(constants.HF_HUB_CACHE)
        return out_of_space(f"the download of {model_id}", cache, needed=None, free=bytes_free(cache))
    # In this order: a gated model is also one that is not found.
    named: dict[type[Exception], str] = {
        GatedRepoError: "the Hub wants access rights; ask for them on the model's page, then `hf auth login`",
        RepositoryNotFoundError: "the Hub has no such model, or a private one; check the name, or log in",
        RevisionNotFoundError: f"the Hub's model has no revision {revision!r}; its page lists the branches",
    }
    for kind, text in named.items():
        if isinstance(error, kind):
            return f"no local folder {model_id}, and {text}"
    said = next(iter(str(error).splitlines()), type(error).__name__)
    return f"no local folder {model_id} and the Hub could not be reached: {said}; pass a local folder"
