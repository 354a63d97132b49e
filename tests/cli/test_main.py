"""The entry point: import hygiene, versions, errors to messages and exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ssmquant import loading
from ssmquant._version import __version__
from ssmquant.errors import CheckFailed, ModelError, SsmquantError

PLAN = ("plan", "some/model", "--recipe", "w8a8-naive")
COMMANDS = [
    "demo",
    "recipes",
    "plan",
    "quantize",
    "eval",
    "compare",
    "generate",
    "chat",
    "bench",
    "inspect",
    "verify",
    "tune",
]


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from ssmquant.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)\n"
        "    print('imported:', sorted(heavy), file=sys.stderr)\n"
    )
    done = _python(code, *arguments)
    assert done.returncode == 0
    assert done.stderr == "imported: []\n"


def test_help_lists_the_commands(run: Any) -> None:
    outcome = run("--help")
    listed = [
        line.split()[1] for line in outcome.stdout.splitlines() if line.startswith("│ ") and line[2] != "-"
    ]
    assert [word for word in listed if word in COMMANDS] == COMMANDS


def test_version(run: Any) -> None:
    assert run("--version").stdout == f"ssmquant {__version__}\n"


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def plan(*_: object) -> None:
        raise error

    monkeypatch.setattr(loading, "plan", plan)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModelError("no model [at] some/model"), 2, "error: no model [at] some/model\n"),
        (CheckFailed("it differs"), 1, "error: it differs\n"),
        (SsmquantError("sampling: NaN"), 1, "error: sampling: NaN\n"),
        (
            OSError(28, "No space left on device", "out"),
            2,
            "error: [Errno 28] No space left on device: 'out'\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; nothing was left half written\n"),
    ],
)
def test_errors_become_messages(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    _failing(monkeypatch, error)
    outcome = run(*PLAN)
    assert (outcome.status, outcome.stderr, outcome.stdout) == (status, message, "")


def test_faults_of_our_own_are_named_as_such(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyError("layers.0"))
    outcome = run(*PLAN)
    assert outcome.status == 3
    assert outcome.stderr.startswith("internal error: KeyError: 'layers.0'\n")
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("arguments", [("--debug", *PLAN), (*PLAN, "--debug")], ids=["before", "after"])
def test_debug_shows_the_traceback_and_keeps_the_status(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    _failing(monkeypatch, ModelError("no such model"))
    outcome = run(*arguments)
    assert outcome.status == 2
    assert "Traceback (most recent call last)" in outcome.stderr
    assert outcome.stderr.endswith("error: no such model\n")


def test_wrong_usage_is_bad_input(run: Any) -> None:
    assert run("plan", "model").status == 2
    outcome = run("quantise", "model")
    assert outcome.status == 2
    assert "quantize" in outcome.stderr  # the command that was meant


def _missing_folder(folder: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command that is refused before anything heavy is imported."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from ssmquant.cli.main import main; main()",
            *PLAN,
            "--json",
            f"{folder}/x.json",
        ],
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )


def test_main_exits_with_the_status() -> None:
    done = _missing_folder("missing")
    assert done.returncode == 2
    assert done.stderr == b"error: --json missing/x.json: there is no folder missing; make it first\n"


def test_text_that_the_terminal_cannot_show_does_not_end_the_work() -> None:
    done = _missing_folder("语言", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr == b"error: --json ??/x.json: there is no folder ??; make it first\n"
