from __future__ import annotations

import json
import os
import platform
import re
import socket
from pathlib import Path

import pytest
import torch

from ssmquant._version import __version__
from ssmquant.eval.environment import environment

KEYS = {
    "machine",
    "cpu",
    "cores",
    "gpu",
    "threads",
    "python",
    "torch",
    "transformers",
    "ssmquant",
    "date",
}


def test_says_what_ran_and_when() -> None:
    found = environment()
    assert found.keys() == KEYS
    assert found["torch"] == torch.__version__
    assert found["ssmquant"] == __version__
    assert found["python"] == platform.python_version()
    assert found["machine"].endswith(platform.machine())
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date"])
    json.dumps(found)


def test_threads_are_those_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert environment()["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_names_no_host_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = json.dumps(environment())
    assert "secret-host" not in text
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
