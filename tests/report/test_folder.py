"""The report's files: well formed, complete, one page that fetches nothing; and folders that are refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ssmquant.errors import InputError
from ssmquant.report.comparison import Comparison
from ssmquant.report.folder import require_report_folder, write_report
from ssmquant.report.plots import pareto

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "<b>$x_1|y.yaml"


class Page(HTMLParser):
    """Collects text, ids and links, and checks that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src", "srcset", "data", "action"):
                self.links.append(value or "")


@pytest.fixture
def page(comparison: Comparison, tmp_path: Path) -> Page:
    write_report(tmp_path, comparison)
    page = Page()
    page.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    page.close()
    return page


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 4
    assert len(set(page.ids)) == len(page.ids)


def test_the_page_fetches_nothing(page: Page, tmp_path: Path) -> None:
    assert all(link.startswith("#") for link in page.links)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {
        "http://www.w3.org/2000/svg",  # names of namespaces, which nothing fetches
        "http://www.w3.org/1999/xlink",
    }
    places = re.findall(r"url\(#?([^)]*)\)", text)
    assert places
    assert set(places) <= set(page.ids)
    assert "@import" not in text


def test_a_name_stays_text(page: Page, tmp_path: Path) -> None:
    assert "b" not in page.tags[: page.tags.index("figure")]
    assert HOSTILE in page.text
    assert any(HOSTILE in piece and piece != HOSTILE for piece in page.text)  # in a plot's legend
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| &lt;b>$x\\_1\\|y.yaml | b |" in markdown


def test_the_markdown_tables_have_as_many_cells_in_every_row(comparison: Comparison, tmp_path: Path) -> None:
    write_report(tmp_path, comparison)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1
        assert len(table.splitlines()) > 2


def test_the_json_file_is_the_comparison(comparison: Comparison, tmp_path: Path) -> None:
    write_report(tmp_path, comparison)
    found = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(comparison.to_json()))


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, comparison)
    for file in ("index.html", "report.md", "compare.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_name_beyond_the_plots_font_and_a_perfect_recipe_are_drawn(
    comparison: Comparison, tmp_path: Path, make_row: object
) -> None:
    assert callable(make_row)
    rows = (make_row("配方.yaml", 0.0), make_row("_hidden", 0.1))
    shown = Comparison("m", comparison.environment, comparison.calibration, comparison.workload, rows)
    write_report(tmp_path, shown)
    page = Page()
    page.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert any("1  配方.yaml" in piece for piece in page.text)
    assert any("2  _hidden" in piece for piece in page.text)


def test_pareto_keeps_what_nothing_beats() -> None:
    assert pareto([(1, 5), (2, 3), (3, 3), (2, 9), (4, 1), (1, 5)]) == [0, 1, 4]
    assert pareto([(1, 1)]) == [0]


def test_folders_that_can_be_used(tmp_path: Path, comparison: Comparison) -> None:
    require_report_folder(tmp_path)  # empty
    require_report_folder(tmp_path / "new" / "deep")
    write_report(tmp_path / "made", comparison)
    require_report_folder(tmp_path / "made")
    (tmp_path / "broken" / "rows").mkdir(parents=True)
    require_report_folder(tmp_path / "broken")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "report"):
        with pytest.raises(InputError, match="found a file"):
            require_report_folder(path)
    with pytest.raises(InputError, match="other things"):
        require_report_folder(tmp_path)


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_cure(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"'{library}'.*pip install 'ssmquant\[report\]'"):
        require_report_folder(tmp_path)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_the_page(comparison: Comparison, tmp_path: Path) -> None:
    write_report(tmp_path, comparison)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "index.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.count("<svg") == 2
    assert done.stdout.rstrip().endswith("</html>")
