"""What commands share: printing, progress, files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmquant.cli import progress as progress_module
from ssmquant.cli.console import printable, size
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.progress import Progress
from ssmquant.errors import InputError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (15_342_280, "15.3 MB"),
        (5.4e9, "5.4 GB"),
        (2e15, "2e+03 TB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_printable_takes_out_what_steers_a_terminal() -> None:
    assert printable("a\tb\n\x1b[2J\x07语é\x9b") == "a\tb\n\ufffd[2J\ufffd语é\ufffd"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress_module, "perf_counter", clock)
    yield clock


def _report(progress: Progress, clock: Clock, what: str, steps: int, seconds: float) -> None:
    for done in range(1, steps + 1):
        clock.now += seconds
        progress(what, done, steps)


def test_seconds_belong_to_the_step_that_ends(clock: Clock) -> None:
    with Progress() as progress:
        clock.now += 0.25
        progress.finished("load")
        _report(progress, clock, "calibrate", 4, 0.125)
        _report(progress, clock, "quantise", 2, 0.5)
        clock.now += 0.5
        progress.finished("quantise")
    assert progress.seconds == {"load": 0.25, "calibrate": 0.5, "quantise": 1.5}


def test_work_below_two_seconds_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        _report(progress, clock, "calibrate", 15, 0.125)
    assert capsys.readouterr() == ("", "")


def test_longer_work_writes_a_line_now_and_then_to_stderr(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        _report(progress, clock, "calibrate", 30, 1.0)
    assert capsys.readouterr() == ("", "calibrate: 2 of 30\ncalibrate: 12 of 30\ncalibrate: 22 of 30\n")


def test_a_terminal_gets_bars(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress() as progress:
        _report(progress, clock, "calibrate", 30, 1.0)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "calibrate" in printed.err
    assert "30/30" in printed.err


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"模型": 1})
    assert json.loads(file.read_text(encoding="utf-8")) == {"模型": 1}
    with pytest.raises(TypeError):
        write_json(file, {"a": 2, "b": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"模型": 1}
    assert list(tmp_path.iterdir()) == [file]
    with file.open(encoding="utf-8") as reader:
        write_json(file, {"b": 2})
        assert json.load(reader) == {"模型": 1}  # who reads meanwhile has the file of before, whole
    assert json.loads(file.read_text(encoding="utf-8")) == {"b": 2}


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    require_place(None)
    require_place(tmp_path / "new.json")
    with pytest.raises(InputError, match="is a folder"):
        require_place(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*missing; make it first"):
        require_place(tmp_path / "missing" / "new.json")
