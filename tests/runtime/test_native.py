"""The CPU engine against the stages on reference ops: the same codes, so the same logits up to float sums."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.tiny_models import CONFIGS, PARITY, VOCAB, float_model, quantised, random_ids, texts
from torch import Tensor

import ssmquant
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import InputError
from ssmquant.eval.evaluate import evaluate
from ssmquant.modules.weights import Linear
from ssmquant.ops.int4_progressive_linear.reference import expand
from ssmquant.ops.registry import use_backend
from ssmquant.runtime.engine import Engine
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.tolerance import error_ratio

native = pytest.importorskip("ssmquant._native", reason="the compiled extension is not built")

from ssmquant.runtime.native import NativeEngine, unsupported  # noqa: E402  # needs the extension
from ssmquant.runtime.native.pages import FilePages  # noqa: E402

#: Every recipe that the engine runs, every family, every kind of recurrent state.
CASES = [
    *(("mamba", f"quamba-w8a8+ssm_state={state}") for state in ("float32", "float16", "int8")),
    ("mamba", "w8a8-naive"),
    ("mamba-untied-biased", "quamba-w8a8+embedding=float16"),
    ("mamba-no-conv-bias", "quamba-w8a8"),
    ("mamba-wide", "quamba-w4a8"),
    ("falcon_mamba", "quamba-w8a8"),
    ("falcon_mamba-untied-biased", "quamba-w8a8+ssm_state=int8"),
    ("mamba2", "quamba-w8a8"),
    *(("mamba2-two-groups", f"quamba2-w8a8+ssm_state={state}") for state in ("float32", "float16", "int8")),
    ("mamba2-two-groups", "w8a8-naive"),
    ("mamba2-untied-biased", "quamba2-w8a8-gptq"),
    ("mamba2-no-conv-bias", "quamba-w8a8+ssm_state=int8"),
    ("mamba2-wide", "quamba2-w4a8"),
    ("mamba2-wide", "quamba-w4a8+ssm_state=float32"),
]


def without_codes(recipe: str, *sites: str) -> str:
    """Return a recipe that leaves activation sites of every layer in float."""
    return recipe + "".join(f"+keep=layers.*.{site}" for site in sites)


W8A16 = without_codes("quamba2-w8a8", "hidden", "z", "x_in", "B_in", "C_in", "dt", "x", "B", "C", "y")
#: Models whose sites are all floats: every family, every kind of weight and of head, and states that wait as floats.
FLOATS = [
    *((name, None) for name in sorted(CONFIGS)),
    ("mamba2-two-groups", "fp16"),
    ("mamba2-untied-biased", "fp16"),
    ("mamba-no-conv-bias", "fp16"),
    *(
        (name, recipe)
        for name in ("mamba-wide", "mamba2-wide")
        for recipe in ("ssmquant-w4a16", "gptq-w4a16", "awq")
    ),
    ("mamba2-wide", "quamba2-w4a16+embedding=int4+head=int4"),
    ("mamba-wide", "quamba-w4a16+embedding=float16"),
    ("mamba2-two-groups", W8A16 + "+head=float16+ssm_state=float32"),
]
#: Models with sites of both kinds: side by side with others, in front of a weight, behind the convolution, in a state.
MIXED = [
    ("mamba2-two-groups", "quamba2-w8a8+head=float16"),
    ("mamba2-two-groups", W8A16),
    ("mamba2-two-groups", W8A16 + "+ssm_state=float16"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.1.x"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.z"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.x_in"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.1.conv1d.weight"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.0.in_proj.weight"),
    ("mamba2", "quamba-w8a8+keep=layers.*.dt"),
    ("mamba2-wide", "quamba2-w4a8+embedding=int4+head=int4"),
    ("mamba", "quamba-w8a8+ssm_state=int8+keep=layers.*.x"),
    ("mamba", without_codes("quamba-w8a8+ssm_state=int8", "x", "dt_in", "B", "C", "dt")),
    ("mamba", "quamba-w8a8+keep=layers.*.B"),
    ("mamba", "quamba-w8a8+keep=layers.1.dt"),
    ("falcon_mamba", "quamba-w8a8+keep=layers.*.dt_in"),
]
#: Sequences beyond the ends of the scans' chunks and of the state's intervals (64 at most).
SEQUENCES, LENGTH, READ = 6, 100, 61


def model_of(name: str, recipe: str | None) -> ssmquant.Model:
    return float_model(name) if recipe is None else quantised(name, recipe)


def engine_of(name: str, recipe: str | None, threads: int = 2) -> NativeEngine:
    return NativeEngine(model_of(name, recipe).shell, threads=threads)


def decoded(engine: NativeEngine, ids: Tensor, read: int) -> Tensor:
    """Return the logits from position ``read - 1`` on, read at once so far and then token by token."""
    logits, state = engine.prefill(ids[:, :read].tolist())
    steps = [logits]
    for position in range(read, ids.shape[1]):
        logits, state = engine.step(ids[:, position], state)
        steps.append(logits)
    return torch.stack(steps, dim=1)


def assert_same_codes(found: Tensor, expected: Tensor, rounding: float) -> None:
    """Hold logits ``[B, L, V]`` to those of the same codes.

    A float sum on the other side of a rounding changes one code, and that sequence from there on a little: by less than
    rounding every tensor to codes did (``rounding``). It happens seldom enough that most sequences stay free of it.
    """
    ratios = (found - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    free = (ratios <= PARITY).all(dim=1)
    assert free.double().mean() >= 0.5, f"{int((~free).sum())} of {len(free)} sequences differ"
    assert ratios.max() <= rounding


@pytest.mark.parametrize(("name", "recipe"), [*CASES, *MIXED])
def test_the_engine_computes_the_codes_of_the_reference(name: str, recipe: str) -> None:
    model, ids = quantised(name, recipe), random_ids(SEQUENCES, LENGTH)
    with use_backend("reference"):
        expected = Engine(model.shell).logits(ids)
        rounding = error_ratio(expected, float_model(name).logits(ids))
    engine = engine_of(name, recipe)
    assert_same_codes(engine.logits(ids), expected, rounding)
    assert_same_codes(decoded(engine, ids, READ), expected[:, READ - 1 :], rounding)
    assert_same_codes(decoded(engine, ids[:, :5], 1), expected[:, :5], rounding)


@pytest.mark.parametrize(("name", "recipe"), FLOATS)
def test_the_engine_computes_the_floats_of_the_reference(name: str, recipe: str | None) -> None:
    model, ids = model_of(name, recipe), random_ids(SEQUENCES, LENGTH)
    with use_backend("reference"):
        expected = Engine(model.shell).logits(ids)
    engine = engine_of(name, recipe)
    assert error_ratio(engine.logits(ids), expected) <= PARITY
    assert error_ratio(decoded(engine, ids, READ), expected[:, READ - 1 :]) <= PARITY
    assert error_ratio(decoded(engine, ids[:, :5], 1), expected[:, :5]) <= PARITY
    assert torch.equal(engine.logits(ids).argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_takes_the_bytes_that_its_numbers_need(dtype: torch.dtype) -> None:
    """A checkpoint in half precision is float32 once it is loaded; the engine has it in half precision again."""
    name, ids = "mamba2-untied-biased", random_ids(2, 30)
    shell = copy.deepcopy(float_model(name).shell)
    for _, weight in shell.weights():
        weight.weight.data = weight.weight.data.to(dtype).float()
    engine, widest = NativeEngine(shell, threads=2), NativeEngine(float_model(name).shell, threads=2)
    share = engine.weight_bytes / widest.weight_bytes
    assert share == 1.0 if dtype is torch.float32 else 0.5 < share < 0.55  # norms and the convolution stay
    with use_backend("reference"):
        expected = Engine(shell).logits(ids)
    assert error_ratio(engine.logits(ids), expected) <= PARITY


@pytest.mark.parametrize("name", ["mamba-wide", "mamba2-wide"])
def test_int4_weights_with_integer_steps_are_int8_ones_in_fewer_bytes(name: str) -> None:
    shell, ids = quantised(name, "ssmquant-w4a8+quantizer=rtn").shell, random_ids(SEQUENCES, READ)
    int8 = copy.deepcopy(shell)
    for block in int8.blocks:
        for stage in ("in_proj", "out_proj"):
            setattr(block.mixer, stage, expanded(getattr(block.mixer, stage)))
    engine, other = NativeEngine(shell, threads=2), NativeEngine(int8, threads=2)
    assert engine.weight_bytes < other.weight_bytes
    assert torch.equal(engine.logits(ids), other.logits(ids))
    assert torch.equal(decoded(engine, ids[:2, :5], 1), decoded(other, ids[:2, :5], 1))
    assert torch.equal(decoded(engine, ids[:, :5], 3), decoded(other, ids[:, :5], 3))


def expanded(linear: Linear) -> Linear:
    rows, columns = linear.shape
    scheme = TensorScheme(bits=8, granularity=Granularity.PER_CHANNEL)
    int8 = Linear(columns, rows, bias=linear.bias is not None, scheme=scheme)
    int8.codes.copy_(expand(linear.packed, linear.grid))
    int8.scale.copy_(linear.scale)
    int8.bias = linear.bias
    return int8


def test_another_models_logits_would_not_pass() -> None:
    name, recipe = "mamba2-two-groups", "quamba2-w8a8"
    model, ids = quantised(name, recipe), random_ids(SEQUENCES, LENGTH)
    with use_backend("reference"):
        expected = Engine(model.shell).logits(ids)
    with pytest.raises(AssertionError):
        assert_same_codes(engine_of(name, "quamba-w8a8").logits(ids), expected, rounding=1.0)


def test_evaluation_gives_the_table_of_the_reference(embedded_model: Path) -> None:
    """A trained model is as far from the float model as the reference has it.

    Not to the last digit: one code in a million falls on the other side of a rounding when a float sum is added up in
    another order, and from there on two runs of a quantised model differ by a tenth of what rounding does to it. The
    mean over some hundred tokens sees a few percent of that.
    """
    original = ssmquant.load(embedded_model)
    model = ssmquant.quantize(original, "quamba2-w8a8", samples=4, seqlen=128, cache=False)
    assert isinstance(model.engine(), NativeEngine)
    assert original.tokenizer is not None
    documents = evaluation_documents(None)
    domains = {
        d.name: windows(d.texts, original.tokenizer, seqlen=160, samples=3, source=d.name) for d in documents
    }
    with use_backend("reference"):
        expected = evaluate(original, [model], domains)
    found = evaluate(original, [model], domains)
    for name, scores in expected.models[0].domains.items():
        other = found.models[0].domains[name]
        assert scores.divergence is not None
        assert other.divergence is not None
        assert other.divergence.kl.mean() == pytest.approx(scores.divergence.kl.mean(), rel=0.1)
        assert other.nll.mean() == pytest.approx(scores.nll.mean(), rel=0.01)


STATES = [
    ("mamba2-two-groups", "quamba2-w8a8"),
    ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float32"),
    ("mamba", "quamba-w8a8+ssm_state=int8"),
    ("mamba", "quamba-w8a8"),
    ("mamba2-two-groups", None),
    ("mamba-wide", "ssmquant-w4a16"),
    ("mamba2-two-groups", W8A16),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.x"),
]
#: Distinct; with some steps more they pass the ends of intervals.
LENGTHS = (1, 17, 70, 130, 63)


def unequal() -> tuple[list[list[int]], Tensor]:
    return [random_ids(1, n, seed=n)[0].tolist() for n in LENGTHS], random_ids(len(LENGTHS), 6, seed=99)


@pytest.mark.parametrize(("name", "recipe"), STATES)
def test_a_sequence_in_a_batch_is_as_if_alone(name: str, recipe: str | None) -> None:
    engine = engine_of(name, recipe)
    prompts, continuation = unequal()
    logits, state = engine.prefill(prompts)
    together = [logits]
    for tokens in continuation.T:
        logits, state = engine.step(tokens, state)
        together.append(logits)
    assert state.tokens == [length + 6 for length in LENGTHS]
    for row, prompt in enumerate(prompts):
        logits, alone = engine.prefill([prompt])
        assert torch.equal(together[0][row], logits[0])
        for position, token in enumerate(continuation[row], start=1):
            logits, alone = engine.step(token[None], alone)
            assert torch.equal(together[position][row], logits[0])


@pytest.mark.parametrize(("name", "recipe"), STATES)
def test_threads_change_no_bit(name: str, recipe: str | None) -> None:
    ids = random_ids(3, 90)
    one, three = (engine_of(name, recipe, threads) for threads in (1, 3))
    assert torch.equal(one.logits(ids), three.logits(ids))
    assert torch.equal(decoded(one, ids, 60), decoded(three, ids, 60))


@pytest.mark.parametrize(("name", "recipe"), STATES)
def test_a_prompt_can_be_read_in_pieces(name: str, recipe: str | None) -> None:
    engine, ids = engine_of(name, recipe), random_ids(SEQUENCES, 150, seed=3)
    whole, _ = engine.prefill(ids.tolist())
    state = None
    for start, end in ((0, 1), (1, 71), (71, 72), (72, 150)):
        logits, state = engine.prefill(ids[:, start:end].tolist(), state)
    ratios = (logits - whole).double().norm(dim=-1) / whole.double().norm(dim=-1)
    assert (ratios <= PARITY).double().mean() >= 0.5


@pytest.mark.parametrize(("name", "recipe"), STATES)
def test_a_batch_of_one_to_thirty_two(name: str, recipe: str | None) -> None:
    engine, ids = engine_of(name, recipe), random_ids(32, 70)
    expected = decoded(engine, ids, 66)
    for rows in (1, 2, 7):
        assert torch.equal(decoded(engine, ids[:rows], 66), expected[:rows])


def test_prompts_longer_than_a_block_are_read_as_one() -> None:
    """Blocks hold 512 tokens; what they are filled up with must not change a prompt's result."""
    engine = engine_of("mamba2-two-groups", "quamba2-w8a8")
    long, other = random_ids(1, 1200, seed=1)[0].tolist(), random_ids(1, 100, seed=2)[0].tolist()
    alone, _ = engine.prefill([long])
    behind, state = engine.prefill([other, long, other[:50]])
    assert torch.equal(behind[1], alone[0])
    assert torch.equal(engine.logits(torch.tensor([long]))[0, -1], alone[0])
    assert state.tokens == [100, 1200, 50]


@pytest.mark.parametrize(("name", "recipe"), STATES)
def test_states_are_values(name: str, recipe: str | None) -> None:
    """Stepping a state leaves it as it was, however often, and forks and selections go on by themselves."""
    engine = engine_of(name, recipe)
    prompts, continuation = unequal()
    _, state = engine.prefill(prompts)
    first, after = engine.step(continuation[:, 0], state)
    second, _ = engine.step(continuation[:, 1], after)
    other, _ = engine.step(continuation[:, 2], state.fork())  # takes no room from the first step's token
    assert torch.equal(engine.step(continuation[:, 0], state)[0], first)
    assert torch.equal(engine.step(continuation[:, 1], after)[0], second)
    assert not torch.equal(other, first)
    rows = torch.tensor([4, 0, 2])
    selected, _ = engine.step(continuation[rows, 1], after.select(rows))
    assert torch.equal(selected, second[rows])


def test_a_model_chooses_the_engine() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    engine = model.engine()
    assert isinstance(engine, NativeEngine)
    assert engine.reason == ""
    assert model.engine() is engine
    assert isinstance(model.engine(threads=1), NativeEngine)
    with use_backend("reference"):
        reference = model.engine()
    assert isinstance(reference, Engine)
    assert "reference" in reference.reason


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("w8a8-dynamic", "layers.0.hidden is int8 per-token dynamic"),
        ("llm-int8", "layers.0.in_proj.weight is"),
        ("ssmquant-w4a8+quantizer=rtn+group_size=12", "has groups of 12 codes, multiples of 8 are supported"),
    ],
)
def test_a_model_that_it_cannot_run_says_why(
    recipe: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = quantised("mamba2-two-groups", recipe)
    assert reason in (unsupported(model.shell) or "")
    with caplog.at_level("INFO", logger="ssmquant"):
        engine = ssmquant.Model(model.name, model.shell, None, model.plan).engine()
    assert isinstance(engine, Engine)
    assert reason in engine.reason
    assert reason in caplog.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised model's folder."""
    path = tmp_path_factory.mktemp("native") / "model"
    quantised("mamba2", "quamba-w8a8").save(path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads the pages of a process from /proc")
def test_pages_of_a_file_are_given_back(folder: Path) -> None:
    model = ssmquant.load(folder)
    codes = model.shell.blocks[0].mixer.in_proj.stored["codes"]
    before = codes.clone()
    assert FilePages().hold(codes)
    assert not FilePages().hold(before)  # memory of this process
    model.engine()
    assert torch.equal(codes, before)  # read from the file again
    codes[0, 0] += 1
    assert not FilePages().hold(codes)  # the file does not have this
    changed = codes.clone()
    model.engine()
    assert torch.equal(codes, changed)


def test_a_changed_weight_is_seen(folder: Path) -> None:
    model, ids = ssmquant.load(folder), random_ids(1, 10)
    before = model.logits(ids)
    model.shell.blocks[0].mixer.out_proj.stored["codes"].neg_()
    assert not torch.equal(model.logits(ids), before)


@pytest.mark.parametrize("recipe", ["quamba-w8a8", "ssmquant-w4a8+quantizer=rtn"])
def test_weights_can_be_dropped_once_they_are_packed(recipe: str) -> None:
    model, ids = _quantised_anew(recipe), random_ids(1, 10)
    expected = model.logits(ids)
    stored = model.shell.blocks[0].mixer.in_proj.stored
    engine = model.engine(threads=1, keep_weights=False)
    assert [tensor.untyped_storage().nbytes() for tensor in stored.values()] == [0] * len(stored)
    assert torch.equal(engine.logits(ids), expected)
    assert model.engine(threads=1) is engine


def _quantised_anew(recipe: str) -> ssmquant.Model:
    """Return a model that this test may change."""
    return ssmquant.quantize(
        float_model("mamba2"), recipe, calibration=str(texts()), samples=2, seqlen=16, cache=False
    )


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    engine = engine_of("mamba2", "quamba-w8a8")
    _, state = engine.prefill([[1, 2], [3]])
    with pytest.raises(InputError, match=f"token {token} is not in the vocabulary of {VOCAB}"):
        engine.step(torch.tensor([1, token]), state)
    with pytest.raises(InputError, match=f"token {token} is not in the vocabulary"):
        engine.prefill([[1], [2, token]])


def test_misuse_is_refused() -> None:
    engine, other = engine_of("mamba2", "quamba-w8a8"), engine_of("mamba2", "quamba-w8a8")
    _, state = engine.prefill([[1, 2], [3]])
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        engine.prefill([[1], []])
    with pytest.raises(InputError, match="tokens for 1 sequences were given, the state has 2"):
        engine.step(torch.tensor([1]), state)
    with pytest.raises(InputError, match="another engine's"):
        other.step(torch.tensor([1, 2]), state)
    with pytest.raises(InputError, match="0 threads"):
        NativeEngine(quantised("mamba2", "quamba-w8a8").shell, threads=0)


def test_sequences_of_several_threads_do_not_meet() -> None:
    engine, ids = engine_of("mamba2-two-groups", "quamba2-w8a8"), random_ids(4, 80)
    expected = [decoded(engine, ids[row : row + 1], 50) for row in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: decoded(engine, ids[row : row + 1], 50), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_one_state_stepped_by_several_threads() -> None:
    """Each step wants the place behind the pending tokens: one gets it, the others copy."""
    engine, ids = engine_of("mamba2-two-groups", "quamba2-w8a8"), random_ids(1, 30)
    _, state = engine.prefill(ids.tolist())
    tokens = torch.arange(1, 9)
    expected = [engine.step(token[None], state)[0] for token in tokens]
    barrier = threading.Barrier(8)

    def go(token: Tensor) -> Tensor:
        barrier.wait()
        return engine.step(token[None], state)[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(go, tokens))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_go_on() -> None:
    engine = engine_of("mamba2-two-groups", "quamba2-w8a8")
    _, state = engine.prefill([[1, 2, 3]])
    expected, _ = engine.step(torch.tensor([4]), state)
    child = os.fork()
    if child == 0:
        same = torch.equal(engine.step(torch.tensor([4]), state)[0], expected)
        os._exit(0 if same else 3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(engine.step(torch.tensor([4]), state)[0], expected)


INTERRUPTED = """
import signal, sys, torch
import ssmquant
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores Ctrl-C
engine = ssmquant.load(sys.argv[1]).engine()
prompt = [1 + i % 200 for i in range(3_000_000)]
_, state = engine.prefill([[1, 2, 3]])
expected, _ = engine.step(torch.tensor([4]), state)
print("ready", flush=True)
try:
    engine.prefill([prompt], state)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", torch.equal(engine.step(torch.tensor([4]), state)[0], expected), flush=True)
"""


def test_ctrl_c_ends_a_long_prefill_and_leaves_the_state_as_it_was(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)  # it has begun, and takes longer than that
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output == "interrupted True\n"


LIMITED = """
import resource, sys
import ssmquant
from ssmquant.errors import SsmquantError
model = ssmquant.load(sys.argv[1])
engine = model.engine(threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    engine.prefill([[1 + i % 200 for i in range(100)]] * 20_000)
except SsmquantError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_too_little_memory_is_an_error(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "not enough memory" in run.stdout
