"""What is kept of sequences on the GPU: slots of one pool, counted by who holds them.

Kernels under a CUDA graph write to fixed places, so a sequence keeps its slot from prompt to end and a step writes into
it. Forks share slots; before a step writes to a shared one, it is copied to a slot of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssmquant.errors import InputError

__all__ = ["Slots"]


class Slots:
    """A pool that grows as sequences come.

    Args:
        memory: from (slots, device) to the tensors of the pool, ``[layers, slots, …]`` each.
        device: where the pool is.
        moved: called when the pool has moved to other addresses.
    """

    def __init__(
        self,
        memory: Callable[[int, torch.device], dict[str, Tensor]],
        device: torch.device,
        moved: Callable[[], None],
    ) -> None:
        self._memory, self._device, self._moved = memory, device, moved
        self.tensors = memory(0, device)
        self.positions = torch.zeros(0, dtype=torch.int32, device=device)
        self._holders: list[int] = []
        self._spare: int | None = None
        sizes = memory(1, torch.device("meta"))
        self.slot_bytes = sum(t.nbytes for t in sizes.values())

    def __len__(self) -> int:
        return len(self._holders)

    def take(self, count: int) -> list[int]:
        """Return so many free slots, now held once; the pool grows if it has too few.

        Raises:
            InputError: the GPU has not the memory for a larger pool.
        """
        free = [slot for slot, holders in enumerate(self._holders) if not holders]
        if len(free) < count:
            self._grow(len(self) + count - len(free))
            free = [slot for slot, holders in enumerate(self._holders) if not holders]
        taken = free[:count]
        for slot in taken:
            self._holders[slot] = 1
        return taken

    @property
    def spare(self) -> int:
        """The slot of rows that fill up a bucket: written, never read for a result; taken when it is first asked for.

        Raises:
            InputError: the GPU has not the memory for it.
        """
        if self._spare is None:
            (self._spare,) = self.take(1)
        return self._spare

    def hold(self, slots: Sequence[int]) -> None:
        """Let slots be held once more."""
        for slot in slots:
            self._holders[slot] += 1

    def release(self, slots: Sequence[int]) -> None:
        """Give back one hold of each slot; a slot that nobody holds is free."""
        for slot in slots:
            self._holders[slot] -= 1

    def alone(self, slots: Sequence[int]) -> list[int]:
        """Return slots with the same contents that nobody else holds; holds of copied ones go over to the copies."""
        shared = [slot for slot in slots if self._holders[slot] > 1]
        if not shared:
            return list(slots)
        copies = dict(zip(shared, self.take(len(shared)), strict=True))
        source = torch.tensor(shared, device=self._device)
        target = torch.tensor([copies[slot] for slot in shared], device=self._device)
        for tensor in self.tensors.values():
            tensor[:, target] = tensor[:, source]
        self.positions[target] = self.positions[source]
        self.release(shared)
        return [copies.get(slot, slot) for slot in slots]

    def _grow(self, count: int) -> None:
        needed = count * self.slot_bytes
        if self._device.type == "cuda":
            free = free_bytes(self._device)
            if needed > free:
                raise InputError(
                    f"the states of {count} sequences need {needed / 1e9:.2f} GB on the GPU, and {free / 1e9:.2f} GB "
                    "are free; run fewer sequences at once, or a recipe with a smaller state (ssm_state=int8)"
                )
        tensors = self._memory(count, self._device)
        for name, tensor in tensors.items():
            tensor[:, : len(self)] = self.tensors[name]
        positions = torch.zeros(count, dtype=torch.int32, device=self._device)
        positions[: len(self)] = self.positions
        self.tensors, self.positions = tensors, positions
        self._holders += [0] * (count - len(self._holders))
        self._moved()


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a GPU: the driver's, and those that PyTorch holds unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
