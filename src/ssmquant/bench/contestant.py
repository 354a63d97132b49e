"""`Contestant`: whatever runs a workload and can be measured beside others."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ssmquant.bench.workload import Times, Workload

__all__ = ["Contestant", "Facts"]


class Facts(NamedTuple):
    """What is known of a contestant once it is loaded; None where it does not tell.

    Attributes:
        name: of the model or of the program that runs it.
        recipe: how the model is represented.
        engine: what runs it.
        engine_reason: why no engine for its device runs it; empty if one does, or if it is none of ours.
        parameters: weights, whatever their width.
        weight_bytes: all stored tensors.
        state_bytes: of one sequence, right after a rounding of its state.
        read_bytes: of weights that a step reads: all but an embedding table of which it needs one row.
        token_operations: int8 operations of the linear layers for a token, the head's left out.
        head_operations: int8 operations of the head, for the last token of a prompt.
        load_seconds: until it could run.
        base_bytes: resident memory of its process before loading: Python and PyTorch.
    """

    name: str
    recipe: str
    engine: str
    parameters: int
    weight_bytes: int
    engine_reason: str = ""
    state_bytes: int | None = None
    read_bytes: int | None = None
    token_operations: int | None = None
    head_operations: int | None = None
    load_seconds: float | None = None
    base_bytes: int | None = None

    def step_bytes(self, batch: int) -> int | None:
        """Return the bytes that a step must read: weights once, and each sequence's state."""
        if self.read_bytes is None or self.state_bytes is None:
            return None
        return self.read_bytes + batch * self.state_bytes

    def prefill_operations(self, workload: Workload) -> int | None:
        """Return the int8 operations of a workload's prefill; None where the linear layers have none."""
        if not self.token_operations or self.head_operations is None:
            return None
        return workload.batch * (workload.prompt_len * self.token_operations + self.head_operations)


class Contestant(Protocol):
    """Runs workloads, in a process of its own."""

    device: str
    threads: int

    def start(self) -> Facts:
        """Load the model."""

    def run(self, workload: Workload) -> Times:
        """Run and time a workload once."""

    def peak_bytes(self) -> int:
        """Return the most memory so far: resident on the CPU, allocated on a CUDA device."""

    def close(self) -> None:
        """End the process."""
