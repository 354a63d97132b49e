"""The pages that are generated from measured files are up to date, and `--check` notices one that is not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pages
import pytest

SCRIPTS = ("claims", "edge", "render", "render_gpu", "render_speed")


@pytest.mark.parametrize("name", SCRIPTS)
def test_pages_are_those_of_the_measured_files(name: str) -> None:
    texts = importlib.import_module(name).pages()
    assert texts
    assert pages.stale(texts) == []


@pytest.mark.parametrize("arguments", [["--check"], []], ids=["checked", "written"])
def test_a_page_that_differs_is_noticed_and_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same, other, missing = (tmp_path / name for name in ("same.md", "other.md", "missing.md"))
    same.write_text("text", encoding="utf-8")
    other.write_text("old", encoding="utf-8")
    texts = {same: "text", other: "text", missing: "text"}
    assert pages.stale(texts) == [other, missing]
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    with pytest.raises(SystemExit) as exit:
        pages.keep(lambda: texts)
    if arguments:
        assert exit.value.code == 1
        assert "not up to date: other.md, missing.md" in capsys.readouterr().err
        assert other.read_text(encoding="utf-8") == "old" and not missing.exists()
    else:
        assert exit.value.code == 0
        assert pages.stale(texts) == []
