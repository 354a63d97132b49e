"""Documents named by a spec, one domain for each part of it.

    builtin                            the embedded text: English, Chinese, code
    builtin:en=0.5,zh=0.3,code=0.2     chosen domains of it, with weights
    a.jsonl  ·  a.jsonl=0.7,b.txt=0.3  files, with or without weights; the domain is the file's stem

A ``.jsonl`` file holds one document a line, ``{"text": "…"}``; a ``.txt`` file is one running text. Calibration
and evaluation read different embedded files: the text that a model was calibrated on never judges it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ssmquant.data.assets import asset
from ssmquant.errors import DataError, nearest

__all__ = ["DOMAINS", "Documents", "Source", "evaluation_documents", "load_documents", "parse_spec"]

DOMAINS = ("en", "zh", "code")
"""The embedded domains, in the order in which they are used and reported."""

_WANTED = 'each line must be an object {"text": "…"}'
_SURROGATE = re.compile("[\ud800-\udfff]")


class Documents(NamedTuple):
    """The documents of one domain.

    Attributes:
        name: the domain; ``en``, ``zh``, ``code`` for embedded text, else the file's stem.
        texts: the documents in file order. A single text is taken as running text (see `windows`).
    """

    name: str
    texts: tuple[str, ...]


class Source(NamedTuple):
    """One part of a spec.

    Attributes:
        domain: the domain's name.
        path: the file that holds its text.
        weight: its weight, above 0, where the spec gives one.
    """

    domain: str
    path: Path
    weight: float | None

    def read(self) -> Documents:
        """Read the file.

        Raises:
            DataError: the file is missing, empty, not UTF-8, or holds a line that is no document.
        """
        path = self.path
        if not os.path.exists(path):  # unlike Path.exists, False for a name that the system finds too long
            raise DataError(f"{path}: no such file; give FILE.jsonl, FILE.txt or builtin[:en,zh,code]")
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: cannot tell from its name what it holds; give a .jsonl or .txt file")
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a readable file") from error
        try:
            text = raw.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
            raise DataError(f"{path}: not UTF-8, {found}; save the file as UTF-8") from None
        if not text.strip():
            raise DataError(f"{path}: the file is empty; give a file with text")
        return Documents(self.domain, tuple(reader(text, path)))


def load_documents(spec: str) -> list[Documents]:
    """Read calibration text, each domain whole; weights are for `calibration_windows`.

    Args:
        spec: see the top of this module; ``builtin`` is the embedded calibration text.

    Raises:
        DataError: the spec or a file cannot be used.
    """
    return [source.read() for source in parse_spec(spec, "calib")]


def evaluation_documents(spec: str | None) -> list[Documents]:
    """Read evaluation text.

    Args:
        spec: see the top of this module, but without weights, since domains are evaluated one by one. None
            and ``builtin`` are the embedded evaluation text, ``builtin:zh`` is a part of it.

    Raises:
        DataError: the spec has weights, or it or a file cannot be used.
    """
    sources = parse_spec("builtin" if spec is None else spec, "eval")
    weighted = [source.domain for source in sources if source.weight is not None]
    if weighted:
        raise DataError(
            f"evaluation text {spec!r}: {weighted[0]!r} has a weight; "
            "domains are evaluated one by one, so give names without weights"
        )
    return [source.read() for source in sources]


def parse_spec(spec: str, split: Literal["calib", "eval"]) -> list[Source]:
    """Parse a spec; no file is opened yet.

    Args:
        spec: see the top of this module.
        split: which of the embedded texts ``builtin`` means.

    Raises:
        DataError: an embedded domain that does not exist, a weight that is no number above 0, weights on some
            parts only, or one domain twice.
    """
    head, colon, tail = spec.partition(":")
    if head == "builtin":
        names = tail.split(",") if colon else DOMAINS
        parts = [_weighted(name, spec) for name in names]
        sources = [Source(name, _builtin_path(name, split), weight) for name, weight in parts]
    else:
        # A comma or an equals sign may be part of a file's name.
        names = [spec] if os.path.isfile(spec) else spec.split(",")
        parts = [(name, None) if os.path.isfile(name) else _weighted(name, spec) for name in names]
        sources = [Source(Path(name).stem, Path(name), weight) for name, weight in parts]
    for i, source in enumerate(sources):
        if source.domain in {earlier.domain for earlier in sources[:i]}:
            raise DataError(f"text {spec!r}: {source.domain!r} occurs twice; rename a file or leave one out")
    if len({source.weight is None for source in sources}) > 1:
        raise DataError(f"text {spec!r}: some parts have a weight, some have none; give one to all or none")
    return sources


def _weighted(part: str, spec: str) -> tuple[str, float | None]:
    """Split ``NAME=WEIGHT``; the weight may be missing."""
    name, equals, number = part.rpartition("=")
    if not equals:
        return part, None
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"text {spec!r}: the weight of {name!r} is {number!r}; give a number above 0")
    return name, weight


def _builtin_path(name: str, split: str) -> Path:
    if name not in DOMAINS:
        raise DataError(f"there is no embedded text {name!r}; {nearest(name, DOMAINS)}")
    return asset(f"text/{split}/{name}.jsonl")


def _lines(text: str, path: Path) -> Iterator[str]:
    # Not str.splitlines: JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); {_WANTED}") from None
        found = row.get("text") if isinstance(row, Mapping) else None
        if not isinstance(found, str):
            raise DataError(f'{where}: no string under "text"; {_WANTED}')
        if not found.strip():
            raise DataError(f'{where}: "text" is empty; remove the line')
        if _SURROGATE.search(found):
            raise DataError(f'{where}: "text" has half of a surrogate pair; repair or remove the line')
        yield found


_READERS: dict[str, Callable[[str, Path], Iterable[str]]] = {
    ".jsonl": _lines,
    ".txt": lambda text, _: (text,),
}
