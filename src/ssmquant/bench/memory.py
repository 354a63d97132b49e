"""Memory that a process takes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

__all__ = ["peak_bytes", "resident_bytes"]


def peak_bytes(pid: int | None = None) -> int:
    """Return the most resident memory that a process has had since it began its program.

    Args:
        pid: the process; None for this one. Another one's is known on Linux only, and 0 once it has ended.
    """
    status = _status(os.getpid() if pid is None else pid)
    if "VmHWM" in status:
        return status["VmHWM"]
    if pid is not None:
        return 0
    # On Linux this would count the process from which this one was started, too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return the resident memory of this process now; its peak where the system does not tell."""
    return _status(os.getpid()).get("VmRSS") or peak_bytes()


def _status(pid: int) -> dict[str, int]:
    """Return the sizes in /proc/PID/status in bytes; nothing where there is no such file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, _, value in fields if value.endswith(" kB")}
