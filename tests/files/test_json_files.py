from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import Mamba2Config

from ssmquant.errors import ModelError
from ssmquant.files import read_config, read_json, write_json


def written(folder: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    (folder / "config.json").write_bytes(raw)
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"name": "Mamba-2 é", "limits": [0.0, math.inf, -math.inf], "nested": {"b": None, "a": True}}
    write_json(tmp_path / "config.json", value)
    assert read_config(tmp_path) == value
    assert list(read_config(tmp_path)["nested"]) == ["b", "a"]  # the order given


def test_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    Mamba2Config(time_step_limit=(0.0, float("inf"))).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path)["time_step_limit"] == [0.0, math.inf]


def test_infinity_that_we_write_is_read_by_transformers(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "mamba2", "time_step_limit": [0.0, math.inf]})
    assert list(Mamba2Config.from_pretrained(tmp_path).time_step_limit) == [0.0, math.inf]


def test_a_byte_order_mark_is_taken(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{\n "a": 1,\n "b" 2\n}', r"config\.json: not valid JSON, line 3, column 6: Expecting ':'"),
        ("", "not valid JSON, line 1, column 1"),
        (b'{\n "a": "\xff"\n}', r"line 2 is not UTF-8 \(byte 0xff\); save the file as UTF-8"),
        ("[1]", "asked for a JSON object .* found a list"),
        ("null", "found a NoneType"),
        ('{"__float__": "NaN"}', "found a float"),
        ('{"a": {"k": 1, "k": 2}}', "the key 'k' is given twice"),
        ("[" * 100_000, "not usable JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_config(written(tmp_path, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.json cannot be read: No such file"):
        read_json(tmp_path / "absent.json")
