"""What is installed: the wheel's files, the pins, and the command that the README and CI share."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ssmquant._version import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "ssmquant"
TEST_COMMAND = " && ".join(
    (
        "python3 -m venv .venv",
        ".venv/bin/pip install -c constraints.txt '.[test]'",
        ".venv/bin/python -m pytest",
    )
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    pins: dict[str, Version] = {canonicalize_name(name): Version(version) for name, version in found}
    assert len(pins) == len(found), "a package is pinned twice"
    return pins


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel without the compiled extension, as it is built where there is no C++ compiler."""
    target = tmp_path_factory.mktemp("wheel")
    build = (
        "from scikit_build_core.build import build_wheel; "
        f"build_wheel({str(target)!r}, {{'wheel.cmake': 'false'}})"
    )
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    paths = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {path.relative_to(PACKAGE.parent).as_posix() for path in paths if path.suffix != ".so"}
    found = {name for name in wheel.namelist() if not name.startswith(f"ssmquant-{__version__}.dist-info/")}
    assert found == wanted
    patterns = (
        "py.typed",
        "recipes/*.yaml",
        "assets/mamba2-8m/model.safetensors",
        "assets/text/eval/zh.jsonl",
    )
    assert [p for p in patterns if not any(fnmatch(name, f"ssmquant/{p}") for name in found)] == []


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_the_extension_was_built_where_there_is_a_compiler() -> None:
    """An install goes on without it, so that it is missing would show in nothing but speed."""
    assert import_module("ssmquant._native").isa()


def test_the_wheel_without_a_compiler_is_pure_python_and_says_who_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"ssmquant-{__version__}.dist-info"
    assert "Tag: py3-none-any" in wheel.read(f"{info}/WHEEL").decode()
    assert "ssmquant = ssmquant.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()


def test_every_requirement_has_a_pin_in_its_range(project: dict[str, Any], pins: dict[str, Version]) -> None:
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    ours = [requirement for requirement in requirements if requirement.name != project["name"]]
    outside = [str(r) for r in ours if pins.get(canonicalize_name(r.name), Version("0")) not in r.specifier]
    assert outside == []


def test_pins_fit_every_build_of_a_release(pins: dict[str, Version]) -> None:
    # A local version (2.13.0+cpu) would be found in one index only.
    assert [name for name, version in pins.items() if version.local] == []


def test_the_readme_shows_the_command_that_ci_runs() -> None:
    assert TEST_COMMAND in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    wanted = re.search(r'grep -m 1 -F "([^"]+)" README\.md', (ROOT / ".ci" / "run").read_text())
    assert wanted is not None
    lines = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if wanted[1] in line
    ]
    assert lines[0] == TEST_COMMAND, "CI runs the first line that matches"


def test_the_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == __version__
