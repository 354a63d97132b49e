"""The same input on the same machine gives the same bits: run to run, process to process, with one thread or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest

DIGESTS = """
import json, sys
import torch
import ssmquant
from ssmquant.data import builtin_model
from ssmquant.files import combined, digest, digests
torch.set_num_threads(int(sys.argv[1]))
model = ssmquant.load(builtin_model())
random = torch.Generator().manual_seed(0)
inputs = [torch.randint(model.vocab_size, shape, generator=random) for shape in ((1, 96), (2, 33))]
found = {"threads": str(torch.get_num_threads())}
quantised = ssmquant.quantize(model, "quamba2-w8a8", samples=2, seqlen=64, cache=False)
found["codes"] = combined(digests(quantised.module.state_dict()))
for name, each in (("float", model), ("quamba2-w8a8", quantised)):
    for ids in inputs:
        found[f"{name} logits {list(ids.shape)}"] = digest(each.logits(ids))
    logits, state = each.engine().prefill([ids[0, :length].tolist() for length in (9, 20)])
    for token in range(5, 13):
        logits, state = each.engine().step(torch.tensor([token, token + 1]), state)
    found[f"{name} steps"] = digest(logits)
print(json.dumps(found))
"""


@cache
def digests_of(process: str, threads: int) -> dict[str, str]:
    """Return digests of codes and logits of the embedded model, float and quantised, as a fresh process finds them."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(len(process))}
    run = subprocess.run(
        [sys.executable, "-c", DIGESTS, str(threads)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found: dict[str, str] = json.loads(run.stdout)
    assert found.pop("threads") == str(threads)
    return found


def test_processes_agree() -> None:
    first = digests_of("a", 1)
    assert len(set(first.values())) == len(first) == 7
    assert digests_of("another", 1) == first


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_one_thread_and_two_agree() -> None:
    assert digests_of("of two threads", 2) == digests_of("a", 1)
