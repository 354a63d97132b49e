"""Logits that are computed once, whoever asks."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import ssmquant
from ssmquant.data import builtin_model
from ssmquant.model import Model
from ssmquant.report import remembered
from ssmquant.report.remembered import Remembered, remembered_logits

IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def model() -> Model:
    return ssmquant.load(builtin_model())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the model was asked to read."""
    asked: list[Tensor] = []
    original = Model.logits

    def logits(self: Model, ids: Tensor) -> Tensor:
        asked.append(ids)
        return original(self, ids)

    monkeypatch.setattr(Model, "logits", logits)
    return asked


def test_the_model_reads_a_text_once(model: Model, calls: list[Tensor]) -> None:
    with remembered_logits(model, {"en": IDS}) as reference:
        expected = model.logits(IDS)
        del calls[:]
        for asked in (IDS, IDS, IDS.flip(0), IDS):
            assert torch.equal(reference.logits(asked), expected if asked is IDS else expected.flip(0))
        assert len(calls) == 2  # each text once
        assert (folder := reference.folder) is not None and folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("room", [0, 10**15], ids=["no room", "another machine"])
def test_without_a_place_it_is_the_model(
    model: Model, calls: list[Tensor], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(remembered.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    with remembered_logits(model, {"en": IDS}) as reference:
        elsewhere = Remembered(reference.model, Path("/nowhere") if reference.folder else None)
        elsewhere.logits(IDS), elsewhere.logits(IDS)
    assert len(calls) == 2
    assert shutil is remembered.shutil
