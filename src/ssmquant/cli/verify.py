"""`ssmquant verify`: does a quantised folder still hold what was written, and compute what it computed?"""

from __future__ import annotations

from ssmquant.cli.console import printable, stdout
from ssmquant.cli.options import QuantisedFolder
from ssmquant.errors import CheckFailed

__all__ = ["verify"]


def verify(folder: QuantisedFolder) -> None:
    """Check a quantised folder: its tensors against their digests, its logits against those at saving."""
    import ssmquant

    verification = ssmquant.verify(folder)
    console = stdout()
    for line in verification.lines:
        console.print(printable(line), markup=False, soft_wrap=True)
    if not verification.ok:
        raise CheckFailed(
            f"{folder} did not pass; quantise again, or copy the folder again from where it was good"
        )
