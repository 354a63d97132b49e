"""Quantise linear layers one after the other, each on what the quantised layers before it give it.

GPTQ's codes make up for errors of the layer's own weight under the inputs of its Hessian. Gathered on the float model,
as for all other quantizers, those inputs are exact, and the layer knows nothing of the errors that reach it. Here the
model is quantised while the text runs through it (as in the authors' code, which calls it true-sequential): a Hessian
is gathered when all layers before it have their codes, and of inputs as they are multiplied, quantised if they are.

The price is a pass through a block for every weight of it, and that the statistics serve no other recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssmquant import numerics
from ssmquant.calibrate import Progress
from ssmquant.errors import DataError, SsmquantError
from ssmquant.families import Shell
from ssmquant.formats import Codes
from ssmquant.formats.dense import Dense
from ssmquant.modules.weights import Linear
from ssmquant.observers import Hessian
from ssmquant.planning import PlanRow
from ssmquant.quantizers import QUANTIZERS
from ssmquant.scheme import TensorScheme

__all__ = ["Passage", "quantise_in_sequence"]


class _Recorder(Dense):
    """The format of a float weight, whose layer shows its inputs to an observer.

    Attributes:
        moment: second moment of what the layer has multiplied.
    """

    def __init__(self) -> None:
        self.moment = Hessian()

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the float product."""
        self.moment.update(numerics.dequantize(x, x_scale).flatten(0, -2))
        return super().linear(stored, x, x_scale, bias, scale_out)


class Passage:
    """Text on its way through a model: every window has come as far as the same block.

    Args:
        shell: the model; blocks that the text has passed may not change any more.
        windows: int64 ``[n, L]``, or a shard of them: second moments of shards add up.
    """

    def __init__(self, shell: Shell, windows: Tensor) -> None:
        if not len(windows):
            raise DataError("calibration needs at least one sequence; none was given")
        self._shell = shell
        self._done = 0
        self._residuals = [shell.embedding(window[None]) for window in windows.to(shell.device)]

    def hessian(self, block: int, linear: Linear) -> Hessian:
        """Return the second moment of what a float linear layer multiplies.

        Args:
            block: number of the block that holds the layer; the number of blocks for the head. Blocks come in order.
            linear: the layer.
        """
        if block < self._done:
            raise SsmquantError(f"the text has passed block {block} already; ask for blocks in order")
        while self._done < block:
            self._residuals = [self._through(residual) for residual in self._residuals]
            self._done += 1
        usual, linear.format = linear.format, _Recorder()
        try:
            for residual in self._residuals:
                if block < len(self._shell.blocks):
                    self._through(residual)
                else:
                    self._shell.head(self._shell.final_norm(residual))
            return linear.format.moment
        finally:
            linear.format = usual

    def _through(self, residual: Tensor) -> Tensor:
        block = self._shell.blocks[self._done]
        return residual + block.mixer.mix(block.norm(residual))


@torch.no_grad()
def quantise_in_sequence(
    shell: Shell, rows: Sequence[PlanRow], windows: Tensor, progress: Progress | None = None
) -> None:
    """Give linear layers of a model that is quantised but for them their codes, in place, first to last.

    Args:
        shell: the model: these layers are float, everything else as planned.
        rows: their rows of the plan, in the order of the data flow; quantizers that need a Hessian.
        windows: calibration text, int64 ``[n, L]``.
        progress: called after each layer.
    """
    text = Passage(shell, windows)
    linears = dict(shell.weights())
    for done, row in enumerate(rows, start=1):
        linear = linears[row.site.name]
        assert isinstance(linear, Linear)
        first, *rest = row.site.name.split(".")
        block = int(rest[0]) if first == "layers" else len(shell.blocks)
        try:
            moment = text.hessian(block, linear).value
            codes = QUANTIZERS[row.quantizer].choose(linear.dequantize(), row.scheme, moment)
        except SsmquantError as error:
            raise type(error)(f"{row.site.name}: {error}") from error
        holder: nn.Module = shell.head if block == len(shell.blocks) else shell.blocks[block].mixer
        name = next(name for name, module in holder.named_children() if module is linear)
        setattr(holder, name, _coded(linear, row.scheme, codes))
        if progress:
            progress("quantise weights in sequence", done, len(rows))


def _coded(linear: Linear, scheme: TensorScheme, codes: Codes) -> Linear:
    """Return a linear layer with these codes and the bias of a float one."""
    out, columns = linear.shape
    with torch.device("meta"):
        coded = Linear(columns, out, bias=linear.bias is not None, scheme=scheme)
    tensors = {name: tensor.contiguous() for name, tensor in coded.format.pack(codes).items()}
    if linear.bias is not None:
        tensors["bias"] = linear.bias.detach()
    coded.load_state_dict(tensors, strict=True, assign=True)
    return coded.eval()
