"""What a recipe costs, read off its plan and its model: bits, bytes at rest, bytes of state, share of float work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ssmquant.model import Model
from ssmquant.planning import Plan, PlanRow, input_site
from ssmquant.scheme import TensorScheme
from ssmquant.sites import SiteKind

__all__ = [
    "bits_activation",
    "bits_weight",
    "bytes_at_rest",
    "float_share",
    "integer_products",
    "state_bytes",
]


def bits_weight(plan: Plan) -> float:
    """Return the bits at rest of the quantisable weights, scales included, over the number of these weights."""
    weights = plan.float_bytes() // 2
    return 8 * plan.weight_bytes() / weights


def bits_activation(plan: Plan) -> int | str:
    """Return the bits of what the linear layers multiply; 16 and 32 are floats.

    Where layers, or channels of one, differ it is a word: ``mixed 8/32``.
    """
    bits = sorted({bits for row, read in _linears(plan) for bits in _operand_bits(row.scheme, read)})
    return bits[0] if len(bits) == 1 else f"mixed {'/'.join(map(str, bits))}"


def float_share(plan: Plan, outliers: Mapping[str, float] | None = None) -> float:
    """Return the share of the linear layers' multiplications, 0 … 1, that is done on floats.

    A multiplication is an integer one when both operands have integer codes; any other weight is dequantised
    first, so weight-only recipes have a share of 1. Embedding, convolution and scan do not count.

    Args:
        plan: of the quantised model.
        outliers: of layers that find outlier columns at run time, the share of columns that are, by the weight's name;
            see `ssmquant.report.outliers`.
    """
    found = outliers or {}
    work = [
        (row.site.numel, found.get(row.site.name, 0.0) if _is_integer(row.scheme, read) else 1.0)
        for row, read in _linears(plan)
    ]
    return sum(count * share for count, share in work) / sum(count for count, _ in work)


def integer_products(plan: Plan) -> dict[str, int]:
    """Return how many products of integers each linear layer makes for one token, by its weight's name."""
    return {row.site.name: row.site.numel for row, read in _linears(plan) if _is_integer(row.scheme, read)}


def bytes_at_rest(model: Model) -> int:
    """Return the bytes of all tensors that a checkpoint of the model stores."""
    return sum(tensor.nbytes for tensor in model.shell.model.state_dict().values())


def state_bytes(model: Model) -> int:
    """Return the bytes that one sequence's state takes right after a rounding of it, whatever the sequence's length.

    Between two roundings the inputs of the tokens since the last one are kept besides.
    """
    schemes = model.plan.activation_schemes.values() if model.plan is not None else ()
    tokens = max((scheme.interval or 1 for scheme in schemes), default=1)
    _, state = model.engine().prefill([[0] * tokens])
    return state.nbytes


def _linears(plan: Plan) -> Iterator[tuple[PlanRow, TensorScheme]]:
    """Yield the weight of each linear layer, and the scheme of what the layer reads."""
    schemes = {row.site.name: row.scheme for row in plan.rows}
    for row in plan.rows:
        if row.site.kind is SiteKind.WEIGHT and (source := input_site(row.site)) is not None:
            yield row, schemes[source]


def _operand_bits(weight: TensorScheme, read: TensorScheme) -> tuple[int, ...]:
    """Return the widths of the activations that a weight meets: most channels', and the outlier channels'."""
    if weight.outlier_threshold is not None:
        return (8, 16)
    return (read.bits,) if weight.mixed is None else (weight.mixed.activation_bits, 8)


def _is_integer(weight: TensorScheme, read: TensorScheme) -> bool:
    """Return whether the layer's sums are of integers; one with outliers finds codes for its input itself."""
    return weight.kind == "int" and (weight.quantises_input or read.kind == "int")
