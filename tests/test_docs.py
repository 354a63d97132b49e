"""What the documents say is run: the README's Python and its commands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssmquant.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(
    tmp_path: Path, embedded_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python")
    small = first.replace("state-spaces/mamba2-130m", str(embedded_model)).replace(
        'calibration="builtin', 'samples=4, seqlen=64, calibration="builtin'
    )
    assert small.count(str(embedded_model)) == 1 and "samples=4" in small
    for text in (small.replace("max_new_tokens=64", "max_new_tokens=4"), second):
        Path("snippet.py").write_text(text, encoding="utf-8")
        runpy.run_path("snippet.py")
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "mamba2-130m-w8a8" / "model.safetensors").is_file()


def test_the_readmes_commands_exist() -> None:
    commands = re.findall(r"^ssmquant (\w+)", README, flags=re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_every_shipped_recipe_is_in_the_readme() -> None:
    from ssmquant import shipped_recipes

    assert [name for name in shipped_recipes() if f"`{name}`" not in README] == []
