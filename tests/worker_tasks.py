"""Tasks for the tests of executors: workers import them by name, as they could not import a test module."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from ssmquant.calibrate import Progress
from ssmquant.errors import RecipeError


def squared(number: int, progress: Progress | None) -> int:
    if progress:
        progress(f"square {number}", 1, 1)
    return number**2


def refused(name: str, progress: Progress | None) -> str:
    raise RecipeError(f"no recipe {name}")


def killed_at_first(folder: Path, number: int, progress: Progress | None) -> tuple[int, int]:
    """The number, and the worker's threads; the worker that is the first to take the number 2 is killed."""
    with (folder / str(number)).open("a") as file:
        file.write("begun\n")
    if number == 2 and (folder / "2").read_text().count("begun") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, torch.get_num_threads()


def always_killed(number: int, progress: Progress | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
