"""Who may import whom, read off the syntax trees; and what stays unimported until it is needed.

The tables below are the rule. A new unit (a module or package directly under ``ssmquant``) gets a row; a new arrow is a
decision and not a repair. ``if TYPE_CHECKING`` and imports inside functions count: they are dependencies all the same.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "ssmquant"

# Unit -> the units that it may import. Low to high.
PARTS: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "tolerance": set(),
    "scheme": {"errors"},
    "numerics": {"errors"},
    "sites": {"scheme", "errors"},
    "files": {"errors"},
    "data": {"errors"},
    "ops": {"numerics", "scheme", "errors"},
    "observers": {"numerics", "scheme", "sites", "errors"},
    "quantizers": {"formats", "numerics", "scheme", "sites", "errors"},
    "statistics": {"observers", "errors"},
    "formats": {"ops", "numerics", "scheme", "errors"},
    "modules": {"formats", "ops", "numerics", "scheme", "sites", "errors"},
    "families": {"modules", "formats", "ops", "numerics", "scheme", "sites", "files", "errors"},
    "runtime": {"families", "modules", "formats", "ops", "numerics", "scheme", "sites", "files", "errors"},
    # A transform rewrites the mixers of a model in place, guided by statistics: it needs to know both.
    # AWQ rounds weights to choose their scales.
    "transforms": {
        "quantizers",
        "families",
        "modules",
        "formats",
        "statistics",
        "ops",
        "numerics",
        "scheme",
        "sites",
        "errors",
    },
}
# From here on a unit may import everything lower and its neighbours, as long as no two modules need each other.
CORE = {
    "recipe",
    "recipes",
    "planning",
    "resolution",
    "footprint",
    "calibrate",
    "ranges",
    "sensitivity",
    "allocation",
    "sequential",
    "pipeline",
    "checkpoint",
    "model",
    "loading",
}
TOOLS = {"eval", "analysis", "bench", "report"}
ROOT = "__init__"  # the package itself: `import ssmquant`, which hands out the public names lazily
ALLOWED: dict[str, set[str]] = {
    **PARTS,
    **{unit: PARTS.keys() | CORE for unit in CORE},
    **{unit: PARTS.keys() | CORE | TOOLS for unit in TOOLS},
    "integrations": PARTS.keys() | CORE | TOOLS | {ROOT},
    "cli": PARTS.keys() | CORE | TOOLS | {ROOT, "integrations"},
    ROOT: PARTS.keys() | CORE | TOOLS | {"integrations"},
    "__main__": {"cli"},
}
# Library -> the only files that may import it, as patterns under src/ssmquant.
CONFINED: dict[str, tuple[str, ...]] = {
    # Kernels, the device functions that they share, and the command that tunes them.
    "triton": (
        "ops/*/triton.py",
        "ops/*/triton_float.py",
        "ops/*/triton_step.py",
        "ops/triton_numerics.py",
        "ops/linear_tuning.py",
    ),
    # In `bench` it is a peer to measure.
    "transformers": (
        "families/*",
        "integrations/*",
        "model.py",
        "loading.py",
        "data/windows.py",
        "bench/subjects.py",
    ),
    "lm_eval": ("integrations/lm_eval.py",),
    "huggingface_hub": ("files/*",),
    "typer": ("cli/*",),
    "wrapt": ("__init__.py",),
    "jinja2": ("report/*",),
    "matplotlib": ("report/*",),
}

Sources = Mapping[str, str]  # path under src/ssmquant -> text


def module_of(path: str) -> str:
    return ".".join(("ssmquant", *Path(path).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that is imported anywhere below a node."""
    package = module_of(path) if path.endswith("__init__.py") else module_of(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def unit_of(path: str) -> str:
    return Path(path).with_suffix("").parts[0]


def violations(sources: Sources) -> list[str]:
    """Return one line for each import that the tables do not allow."""
    units = {unit_of(path) for path in sources}
    found = [
        f"{unit}: no row for it in the tables of {Path(__file__).name}"
        for unit in sorted(units - ALLOWED.keys())
    ]
    for path, source in sources.items():
        unit = unit_of(path)
        for line, imported in imports(path, ast.parse(source)):
            library, _, rest = imported.partition(".")
            if library == "ssmquant":
                name = rest.partition(".")[0]
                target = name if name in units | ALLOWED.keys() else ROOT
                if target not in ALLOWED.get(unit, units) | {unit}:
                    found.append(f"{path}:{line}: {unit} may not import {target}")
            elif not any(fnmatch(path, pattern) for pattern in CONFINED.get(library, ("*",))):
                found.append(
                    f"{path}:{line}: {library} may be imported only in {', '.join(CONFINED[library])}"
                )
    return list(dict.fromkeys(found))  # a line that imports several names breaks a rule once


def imported_on_loading(path: str, source: str, modules: set[str]) -> set[str]:
    """Return the modules of ours that loading a module needs: not those inside functions or for type checking."""
    now = ast.Module([], [])
    for node in ast.parse(source).body:
        later = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not (later or typing):
            now.body.append(node)
    names = {name for _, name in imports(path, now)}
    return {
        name if name in modules else name.rpartition(".")[0] for name in names if name.startswith("ssmquant")
    }


def cycle(sources: Sources) -> list[str]:
    """Return modules that need each other while they load, first and last being the same; or nothing."""
    modules = {module_of(path) for path in sources}
    graph = {
        module_of(path): imported_on_loading(path, source, modules) & modules
        for path, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def sources() -> Sources:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_imports_keep_to_the_tables(sources: Sources) -> None:
    found = violations(sources)
    assert not found, "\n".join(found)


def test_modules_do_not_need_each_other(sources: Sources) -> None:
    found = cycle(sources)
    assert not found, " ← ".join(found)


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("ops/a/__init__.py", "from ssmquant.formats import dense", "ops may not import formats"),
        ("ops/a/__init__.py", "def f():\n    import ssmquant.formats.dense", "ops may not import formats"),
        ("ops/a/__init__.py", "from ...formats import dense", "ops may not import formats"),
        ("ops/a/__init__.py", "from ssmquant import formats", "ops may not import formats"),
        ("model.py", "import ssmquant", "model may not import __init__"),
        ("model.py", "from ssmquant import load", "model may not import __init__"),
        ("eval/a.py", "from ssmquant.cli.main import main", "eval may not import cli"),
        ("ops/a/__init__.py", "import triton.language", "triton may be imported only in ops/*/triton.py"),
        (
            "planning.py",
            "if TYPE_CHECKING:\n    from transformers import X",
            "transformers may be imported only in",
        ),
        ("extra.py", "", "extra: no row for it in the tables"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str, found: str) -> None:
    rest = {"formats/dense.py": "", "cli/main.py": "", "__init__.py": ""}
    (violation,) = violations(rest | {path: source})
    assert found in violation


def test_allowed_imports_are_let_through() -> None:
    ours = {
        "formats/int8.py": "from ssmquant.ops.a import f\nimport torch",
        "ops/a/triton.py": "import triton",
    }
    assert violations(ours | {"ops/a/__init__.py": "from ssmquant.ops.a.triton import f"}) == []


def test_a_cycle_is_seen_and_a_late_import_is_none() -> None:
    early = {"planning.py": "from ssmquant.recipe import R", "recipe.py": "import ssmquant.planning"}
    assert {"ssmquant.planning", "ssmquant.recipe"} == set(cycle(early))
    assert cycle(early | {"recipe.py": "def f():\n    from ssmquant.planning import P"}) == []
    assert cycle(early | {"recipe.py": "if TYPE_CHECKING:\n    from ssmquant.planning import P"}) == []


def loaded(code: str) -> set[str]:
    """Run code in a fresh interpreter and return which heavy libraries it has loaded."""
    heavy = {"torch", "transformers", "triton", "scipy", "huggingface_hub"}
    report = f"import sys; sys.stderr.write('loaded:' + ','.join({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stderr.rpartition("loaded:")[2].split(",")))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import torch") >= {"torch"}
    assert loaded("import ssmquant") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["eval", "--help"]])
def test_help_is_printed_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = f"""
import contextlib, sys
from ssmquant.cli.main import main
sys.argv = ["ssmquant", *{arguments!r}]
with contextlib.suppress(SystemExit):
    main()
"""
    assert loaded(code) == set()
