"""docs/speed-gpu.md: up to date with the measured file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("render_gpu", ROOT / "benchmarks" / "render_gpu.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(check=True)

    (tmp_path / "speed-gpu.md").write_text("other\n", encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", tmp_path / "speed-gpu.md")
    with pytest.raises(script.typer.Exit):
        script.main(check=True)
