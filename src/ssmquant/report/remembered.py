"""`Remembered`: a model whose logits are computed once and kept in files, for all the tasks of a comparison.

with remembered_logits(model, domains) as reference:
    evaluate(reference, [quantised], domains)  # in any process of this machine
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import torch
from torch import Tensor

from ssmquant.files import digest
from ssmquant.model import Model

__all__ = ["Remembered", "remembered_logits"]

_FREE_SHARE = 0.5
"""Most of the free room for temporary files that the logits may take."""


@dataclass(frozen=True)
class Remembered:
    """A model that reads the same text once.

    Attributes:
        model: the model.
        folder: where its logits are kept; where there is none (another machine, or no room), they are computed anew.
    """

    model: Model
    folder: Path | None

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def logits(self, ids: Tensor) -> Tensor:
        """Return the model's float32 logits ``[B, L, vocab]`` of int64 ``[B, L]``; not to be written to."""
        if self.folder is None or not self.folder.is_dir():
            return self.model.logits(ids)
        file = self.folder / digest(ids)
        if not file.is_file():
            logits = self.model.logits(ids).cpu()
            partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
            logits.numpy().tofile(partial)
            os.replace(partial, file)
        shape = (*ids.shape, self.model.vocab_size)
        kept = torch.from_file(str(file), size=ids.numel() * shape[-1], dtype=torch.float32)
        return kept.view(shape).to(ids.device)


@contextmanager
def remembered_logits(model: Model, domains: Mapping[str, Tensor]) -> Iterator[Remembered]:
    """Give a model's logits of some text a place, for as long as the block runs, if there is room for them.

    Args:
        model: the model.
        domains: name -> tokens, int64 ``[documents, L]``.
    """
    size = 4 * model.vocab_size * sum(ids.numel() for ids in domains.values())
    if size > _FREE_SHARE * shutil.disk_usage(gettempdir()).free:
        yield Remembered(model, None)
        return
    with TemporaryDirectory(prefix="ssmquant-logits-") as folder:
        yield Remembered(model, Path(folder))
