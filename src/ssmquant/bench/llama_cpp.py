"""llama.cpp as a peer: its own `llama-bench`, run once a repetition."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ssmquant.bench.contestant import Facts
from ssmquant.bench.memory import peak_bytes
from ssmquant.bench.workload import Times, Workload
from ssmquant.errors import InputError, SsmquantError

__all__ = ["LlamaCpp"]

_SECONDS_BETWEEN_LOOKS = 0.05
# Our count leaves out vectors, and a converter may pad the vocabulary otherwise.
_PARAMETERS_MAY_DIFFER = 0.02


class LlamaCpp:
    """Runs a GGUF file with llama-bench, as its users get it: nothing set but lengths and threads.

    llama-bench warms up by itself, and draws random tokens, as we do. Each run opens the file anew; that is not timed.

    Args:
        program: llama-bench.
        gguf: the model.
        threads: of its computation.
        parameters: of the model that it is compared with.

    Raises:
        InputError: one of the files is missing.
    """

    device = "cpu"

    def __init__(self, program: Path, gguf: Path, threads: int, parameters: int) -> None:
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise InputError(
                f"--llama-bench {program} is no program; build llama.cpp and give the path of llama-bench"
            )
        if not gguf.is_file():
            raise InputError(
                f"--gguf {gguf}: there is no such file; convert the model with llama.cpp's tools"
            )
        self.threads = threads
        self._program, self._gguf, self._parameters = program, gguf, parameters
        self._peak = 0

    def start(self) -> Facts:
        """Read the file's facts; this also brings it into the page cache.

        Raises:
            InputError: the file holds a model of another size.
            SsmquantError: llama-bench failed.
        """
        entry = self._bench("-p", "1", "-n", "0", "-r", "1", "--no-warmup")[0]
        found = int(entry["model_n_params"])
        if abs(found / self._parameters - 1) > _PARAMETERS_MAY_DIFFER:
            raise InputError(
                f"--gguf {self._gguf} holds a model of {found:,} parameters, ours has {self._parameters:,}; "
                "compare the same model"
            )
        return Facts(
            name=f"llama.cpp {entry['build_commit']}",
            recipe=str(entry["model_type"]).rpartition(" ")[2],
            engine="llama-bench",
            parameters=found,
            weight_bytes=int(entry["model_size"]),
        )

    def run(self, workload: Workload) -> Times:
        """Run llama-bench with one repetition."""
        entries = self._bench("-p", str(workload.prompt_len), "-n", str(workload.gen_len), "-r", "1")
        prefill, decode = (
            next(entry for entry in entries if bool(entry["n_gen"]) is generates)
            for generates in (False, True)
        )
        return Times(prefill["samples_ns"][0] / 1e9, decode["samples_ns"][0] / 1e9)

    def peak_bytes(self) -> int:
        """Return the largest resident memory of any run; mapped pages of the file count, as they do for us."""
        return self._peak

    def close(self) -> None:
        """Do nothing: each run is a process that has ended."""

    def _bench(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the entries that llama-bench reports."""
        command = [
            str(self._program),
            "-m",
            str(self._gguf),
            "-t",
            str(self.threads),
            "-o",
            "json",
            *arguments,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                output, errors = self._wait(process)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said = errors.strip().splitlines()[-1:] or ["it said nothing"]
            raise SsmquantError(
                f"bench: {' '.join(command)} ended with status {process.returncode}: {said[0]}; "
                "run it by hand to see more"
            )
        entries: list[dict[str, Any]] = json.loads(output)
        return entries

    def _wait(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """Return what a run printed, looking at its memory until it ends.

        What the system keeps of an ended process counts this one, too, from which it was started.
        """
        while True:
            try:
                return process.communicate(timeout=_SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                self._peak = max(self._peak, peak_bytes(process.pid))
