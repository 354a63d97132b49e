"""A stored row comes back as it was, under its identity alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.report.conftest import MakeRow

from ssmquant.report.store import RowStore

IDENTITY = {"model": "m", "recipe": "r", "plan": {"sites": {"a": 1}}}


def test_a_row_comes_back_with_every_document(tmp_path: Path, make_row: MakeRow) -> None:
    row = make_row("r", 0.1)
    store = RowStore(tmp_path / "rows")
    store.put(IDENTITY, row)
    found = RowStore(tmp_path / "rows").get(dict(reversed(IDENTITY.items())))
    assert found is not None
    assert found.to_json() == row.to_json()
    np.testing.assert_array_equal(found.kl_documents, row.kl_documents)
    assert found.to_record() == row.to_record()
    assert [file.suffix for file in store.folder.iterdir()] == [".json"]  # nothing half written is left


@pytest.mark.parametrize("other", [{"model": "n"}, {"plan": {"sites": {"a": 2}}}, {"more": 1}])
def test_another_identity_has_no_row(tmp_path: Path, make_row: MakeRow, other: dict[str, object]) -> None:
    store = RowStore(tmp_path)
    store.put(IDENTITY, make_row("r", 0.1))
    assert store.get(IDENTITY | other) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"row": {}}', '{"row": {"recipe": 1, "scores": 2}}'])
def test_a_damaged_row_counts_as_missing(tmp_path: Path, make_row: MakeRow, damage: str) -> None:
    store = RowStore(tmp_path)
    store.put(IDENTITY, make_row("r", 0.1))
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert store.get(IDENTITY) is None


def test_a_row_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="no"):
        RowStore(tmp_path).put(IDENTITY, make_row("r", 0.1))
    assert list(tmp_path.iterdir()) == []
