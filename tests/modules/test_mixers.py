"""Both mixers under every kind of scheme: one body for prefill and decode, states that are independent and small.

What "prefill(n) + steps ≡ prefill(n + k)" means. Float results: the same sums in another order, so an error ratio of
1e-5 at most (the sums of a whole mixer; some 80 float32 eps). Where all sites are static the claim is sharper, because
everything before the scan is integer sums and functions of one element: the codes that enter the scan are equal bit for
bit. The scan's float32 sums depend on how the sequence is cut, so the codes of y are requantised outputs: within 1 code
on at most 1e-3 of the elements. And out_proj is an integer sum of those: a token whose codes are equal has an output
that is equal bit for bit. With dynamic sites the scale of a token moves with its float32 sums too, and what is left is
the class of float results on the tokens whose codes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant.modules import mamba1, mamba2
from ssmquant.modules.activation import Activation, QTensor
from ssmquant.modules.mixer import Mixer
from ssmquant.modules.state import MixerState
from ssmquant.tolerance import (
    assert_equal_codes,
    assert_float32,
    assert_half,
    assert_requantised,
    error_ratio,
)

from .build import ALL_DIMS, INTERVAL, STATIC, float_mixer, hidden_states, layer, names, quantised

MIXER = 1e-5
BATCH, LENGTH = 3, 45
EVERY = [pytest.param(d, name, id=f"{d}, {name}") for d, dims in ALL_DIMS.items() for name in names(dims)]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@dataclass
class Run:
    """What a mixer did with a sequence that came in pieces.

    Attributes:
        output: ``[B, L, d_model]``.
        scanned: the inputs of the scan, codes or floats, by piece.
        y: the input of out_proj, by piece.
        state: after the last piece.
    """

    output: Tensor
    scanned: list[Tensor]
    y: QTensor
    state: MixerState


@dataclass
class Recorder:
    """Sees what enters the scan and out_proj of a mixer."""

    mixer: Mixer
    scanned: list[Sequence[QTensor]] = field(default_factory=list)
    y: list[QTensor] = field(default_factory=list)

    def run(self, pieces: Sequence[Tensor], state: MixerState | None = None) -> Run:
        state = state or self.mixer.initial_state(pieces[0].shape[0], torch.float32)
        scan = self.mixer.run_scan

        def recorded(run: Callable[..., Any], inputs: Sequence[QTensor], state: MixerState) -> Tensor:
            self.scanned.append(inputs)
            return scan(run, inputs, state)

        handle = self.mixer.out_proj.register_forward_pre_hook(lambda module, args: self.y.append(args[0]))
        self.mixer.run_scan = recorded  # type: ignore[method-assign]
        try:
            output = torch.cat([self.mixer(piece, state) for piece in pieces], dim=1)
        finally:
            handle.remove()
            del self.mixer.run_scan
        return Run(
            output,
            [torch.cat([t.data for t in parts], dim=1) for parts in zip(*self.scanned, strict=True)],
            joined(self.y),
            state,
        )


def joined(parts: Sequence[QTensor]) -> QTensor:
    scales = [part.scale for part in parts]
    first = scales[0]
    per_token = first is not None and first.dim() > 1
    return QTensor(
        torch.cat([part.data for part in parts], dim=1),
        torch.cat([s for s in scales if s is not None], dim=1) if per_token else first,
    )


def assert_same(got: Run, expected: Run, *, static: bool, tokens: slice = slice(None)) -> None:
    """Assert the claim at the top of this file, for all tokens or some."""
    if static:
        for here, there in zip(got.scanned, expected.scanned, strict=True):
            assert_equal_codes(here, there[:, tokens], "inputs of the scan")
    y, y_expected = got.y.data, expected.y.data[:, tokens]
    output = expected.output[:, tokens]
    if y.dtype == torch.int8:
        assert_requantised(y, y_expected, "y")
        agree = (y == y_expected).all(dim=-1)
        assert agree.float().mean() > 0.9
        if static:
            assert torch.equal(got.output[agree], output[agree])
            return
    else:
        agree = torch.ones(output.shape[:2], dtype=torch.bool)
    assert error_ratio(got.output[agree], output[agree]) <= MIXER


def assert_same_state(got: MixerState, expected: MixerState) -> None:
    assert torch.equal(got.conv, expected.conv) or error_ratio(got.conv, expected.conv) <= MIXER
    match got.ssm.dtype:
        case torch.int8:
            assert_requantised(got.ssm, expected.ssm, "ssm_state")
        case torch.float16:
            assert_half(got.ssm, expected.ssm, "ssm_state")
        case _:
            assert error_ratio(got.ssm, expected.ssm) <= MIXER
    assert [p.data.shape for p in got.pending] == [p.data.shape for p in expected.pending]


@cache
def mixer_of(dims: str, name: str) -> tuple[Mixer, Tensor]:
    hidden = hidden_states(ALL_DIMS[dims], BATCH, LENGTH)
    return quantised(ALL_DIMS[dims], name, hidden), hidden


@pytest.mark.parametrize(("dims", "name"), EVERY)
@pytest.mark.parametrize("prefill", [1, 18])
def test_prefill_and_steps_are_one_prefill(dims: str, name: str, prefill: int) -> None:
    mixer, hidden = mixer_of(dims, name)
    whole = Recorder(mixer).run([hidden])
    pieces = [hidden[:, :prefill], *hidden[:, prefill:].split(1, dim=1)]
    stepped = Recorder(mixer).run(pieces)
    assert_same(stepped, whole, static=name in STATIC)
    assert_same_state(stepped.state, whole.state)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_pieces_of_any_length_are_one_prefill(dims: str, name: str) -> None:
    mixer, hidden = mixer_of(dims, name)
    whole = Recorder(mixer).run([hidden])
    for cuts in ([3, 4, 20], [INTERVAL, 2 * INTERVAL], [44]):
        pieces = hidden.tensor_split(cuts, dim=1)
        assert_same(Recorder(mixer).run(pieces), whole, static=name in STATIC)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_without_a_state_the_sequence_starts_here(dims: str, name: str) -> None:
    mixer, hidden = mixer_of(dims, name)
    state = mixer.initial_state(BATCH, torch.float32)
    assert torch.equal(mixer(hidden), mixer(hidden, state))
    assert not torch.equal(mixer(hidden, state), mixer(hidden))


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_rows_are_independent(dims: str, name: str) -> None:
    """Each row of a batch gives what it gives alone, from the first token and from a state taken out of a batch."""
    mixer, hidden = mixer_of(dims, name)
    start, rest = hidden[:, :30], hidden[:, 30:]
    state = Recorder(mixer).run([start]).state
    together = Recorder(mixer).run([rest], state.fork())
    for row in range(BATCH):
        alone = Recorder(mixer).run([rest[row : row + 1]], state.rows(torch.tensor([row])))
        assert_same(alone, rows(together, [row]), static=name in STATIC)
    swapped = Recorder(mixer).run([rest[[2, 0]]], state.rows(torch.tensor([2, 0])))
    assert_same(swapped, rows(together, [2, 0]), static=name in STATIC)


def rows(run: Run, index: list[int]) -> Run:
    scale = run.y.scale
    y = QTensor(run.y.data[index], scale if scale is None or scale.dim() == 1 else scale[index])
    return Run(run.output[index], [t[index] for t in run.scanned], y, run.state.rows(torch.tensor(index)))


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_a_fork_goes_on_alone(dims: str, name: str) -> None:
    mixer, hidden = mixer_of(dims, name)
    state = Recorder(mixer).run([hidden[:, :14]]).state
    fork = state.fork()
    expected = mixer(hidden[:, 14:20], state.fork())
    other = mixer(-hidden[:, 14:20], fork)  # the fork meets other tokens first
    assert torch.equal(mixer(hidden[:, 14:20], state), expected)
    assert not torch.equal(other, expected)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_the_tensors_of_a_state_are_never_written_to(dims: str, name: str) -> None:
    mixer, hidden = mixer_of(dims, name)
    state = Recorder(mixer).run([hidden[:, :14]]).state
    tensors = [state.conv, state.ssm, *(p.data for p in state.pending)]
    before = [t.clone() for t in tensors]
    for token in hidden[:, 14:20].split(1, dim=1):
        mixer(token, state)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_nbytes_is_what_the_state_holds_and_no_more(dims: str, name: str) -> None:
    """Counted from the dimensions; and no tensor is a view that keeps a longer one in memory."""
    mixer, hidden = mixer_of(dims, name)
    d = ALL_DIMS[dims]
    schemes = layer(d, name)
    for length in (1, INTERVAL - 1, INTERVAL, 13, LENGTH):
        state = Recorder(mixer).run([hidden[:, :length]]).state
        inputs = [mixer.site(site) for site in ("x_in", "B_in", "C_in") if site in mixer.act]
        codes = all(site.scheme.is_static_int for site in inputs)
        conv = sum(site.channels for site in inputs) * d.d_conv * (1 if codes else 4)
        ssm = d.d_inner * d.d_state * (4 if not mixer.state.interval else schemes["state"].bits // 8)
        pending = 0
        if mixer.state.interval:
            pending = length % INTERVAL * sum(bytes_of(mixer.site(site)) for site in ("x", "B", "C", "dt"))
        assert state.nbytes == BATCH * (conv + ssm + pending)
        tensors = [state.conv, state.ssm, *(p.data for p in state.pending)]
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)


def bytes_of(site: Activation) -> int:
    if site.scheme.is_float:
        return 4 * site.channels
    return site.channels + (4 if site.scheme.dynamic else 0)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_a_stage_that_emits_codes_equals_quantisation_after_it(
    dims: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, hidden = mixer_of(dims, name)
    fused = Recorder(mixer).run([hidden])

    def unfused(sites: Sequence[Activation], stage: Callable[[Tensor | None], Tensor]) -> list[QTensor]:
        parts = stage(None).split([site.channels for site in sites], dim=-1)
        return [site(part) for site, part in zip(sites, parts, strict=True)]

    for module in (mamba1, mamba2):
        monkeypatch.setattr(module, "emit", unfused)
    apart = Recorder(mixer).run([hidden])
    assert all(torch.equal(a, b) for a, b in zip(apart.scanned, fused.scanned, strict=True))
    assert torch.equal(apart.y.data, fused.y.data)
    assert torch.equal(apart.output, fused.output)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_quantised_is_near_float(dims: str, name: str) -> None:
    """Eight bits cost some percent of these random mixers' output; a scale left out costs all of it."""
    mixer, hidden = mixer_of(dims, name)
    source = float_mixer(ALL_DIMS[dims], hadamard=mixer.hadamard)
    ratio = error_ratio(mixer(hidden), source(hidden))
    assert ratio == 0 if name == "float" else 0 < ratio < 0.15


@pytest.mark.parametrize("dims", ALL_DIMS)
def test_every_int8_site_matters(dims: str) -> None:
    """Doubling the scale of any static site, or of the state, changes what the mixer answers."""
    name = "piecewise, int8 state" if "piecewise, int8 state" in names(ALL_DIMS[dims]) else STATIC[1]
    mixer, hidden = mixer_of(dims, name)
    expected = mixer(hidden)
    for path, buffer in mixer.named_buffers():
        if path.endswith("scale"):
            buffer.mul_(2.0)
            assert not torch.equal(mixer(hidden), expected), path
            buffer.mul_(0.5)
    assert torch.equal(mixer(hidden), expected)


@pytest.mark.parametrize("dims", ALL_DIMS)
def test_observing_the_state_changes_no_output(dims: str) -> None:
    mixer, hidden = mixer_of(dims, "float")
    expected = mixer(hidden)
    seen: list[Tensor] = []
    handle = mixer.state.register_forward_hook(lambda module, args, output: seen.append(output))
    assert_float32(mixer(hidden), expected, LENGTH * ALL_DIMS[dims].d_state)
    handle.remove()
    assert len(seen) == 1
    assert seen[0].shape[0] == BATCH
