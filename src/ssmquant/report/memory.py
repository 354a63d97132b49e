"""Peak memory of a model at work: in a process of its own, which loads its checkpoint as a user would and runs it.

    peak_bytes(model, workload, threads=2)

Python and PyTorch alone, which every model needs, are taken off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ssmquant.bench.memory import peak_bytes as process_peak
from ssmquant.bench.memory import resident_bytes
from ssmquant.errors import SsmquantError
from ssmquant.loading import load
from ssmquant.model import Model
from ssmquant.report.timing import Workload, run

__all__ = ["peak_bytes"]


def peak_bytes(model: Model, workload: Workload, *, threads: int) -> int:
    """Return the most resident memory of loading and running a model, in bytes, less what Python and PyTorch take.

    Args:
        model: a quantised model; it is saved to a folder that is removed afterwards.
        workload: its prompt and steps are run once.
        threads: of the process.

    Raises:
        SsmquantError: the process ended without an answer.
    """
    with TemporaryDirectory(prefix="ssmquant-") as folder:
        place = Path(folder) / "model"
        model.save(place)
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(place), str(workload.prompt), str(workload.steps)],
            env=os.environ | {"SSMQUANT_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SsmquantError(
            f"{model.name}: measuring its peak memory, the process that ran it ended with status {done.returncode} "
            f"(-9: the system ended it, usually for want of memory):\n{done.stderr.strip()}"
        )
    return int(done.stdout)


def _main(arguments: Sequence[str]) -> None:
    """Load and run the model of a folder, and print the bytes."""
    place, prompt, steps = arguments
    torch.set_num_threads(int(os.environ["SSMQUANT_THREADS"]))
    before = resident_bytes()
    run(load(place).engine(keep_weights=False), Workload(int(prompt), int(steps), 1))
    sys.stdout.write(f"{process_peak() - before}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
