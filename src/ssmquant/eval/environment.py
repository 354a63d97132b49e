"""The machine and the versions behind a measurement, without names of hosts or paths."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ssmquant._version import __version__

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Describe where a result was measured.

    Returns:
        Plain data: machine (system and architecture), cpu and gpu (model names; gpu None where there is
        none), cores (logical, open to this process), threads (of torch), python, torch, transformers and
        ssmquant (versions), date (UTC, ISO 8601, seconds).
    """
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "ssmquant": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    """Return the marketing name of the processor, else its architecture."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    # The affinity counts what a container or a job was given; not every system has it.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
