"""The built site, read as files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import copy_project, mkdocs_build
from links import faults

REPORTS = ("format_comparison", "failure_modes", "manifold_comparison", "literature")


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_link_anchor_and_asset_of_the_real_site_holds(real_site: Path) -> None:
    assert faults(real_site) == []
    assert {f"reports/{name}/index.html" for name in REPORTS} <= set(snapshot(real_site))


def test_every_link_anchor_and_asset_of_the_gallery_holds(gallery: Path) -> None:
    assert faults(gallery) == []


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ('<a href="nowhere/">x</a>', "nothing at 'nowhere/'"),
        ('<a href="../method/#no-such-anchor">x</a>', "no anchor"),
        ('<a href="#no-such-anchor">x</a>', "no anchor"),
        ('<img src="missing.png">', "nothing at 'missing.png'"),
        ('<script src="https://cdn.example/x.js"></script>', "<script> leads to"),
        ('<a href="javascript:alert(1)">x</a>', "<a> leads to"),
        ('<a href="../../../etc/passwd">x</a>', "nothing at"),
        ('<b id="twin"></b><i id="twin"></i>', "'twin' stands 2 times"),
    ],
)
def test_the_checker_finds_a_planted_fault(tmp_path: Path, planted: str, told: str) -> None:
    for name in ("method", "runs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("<h1 id='a'>x</h1><a href='#a'>y</a>")
    assert faults(tmp_path) == []
    page = tmp_path / "runs" / "index.html"
    page.write_text(page.read_text() + planted)
    (found,) = faults(tmp_path)
    assert found.startswith("runs/index.html: ")
    assert told in found


def test_two_builds_in_two_folders_are_the_same_bytes(gallery: Path, tmp_path: Path) -> None:
    again = copy_project(tmp_path)
    mkdocs_build(again, tmp_path / "out", SOURCE_DATE_EPOCH="1700000000")
    first, second = snapshot(gallery), snapshot(tmp_path / "out")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_search_finds_reports_but_neither_excluded_pages_nor_chart_labels(gallery: Path) -> None:
    documents = json.loads((gallery / "search/search_index.json").read_text())["docs"]
    places = {document["location"].split("#")[0] for document in documents}
    assert "reports/format_comparison/" in places
    assert "runs/arm/" not in places
    assert not any("made-up gap (nats)" in document["text"] for document in documents)


def test_charts_are_inline_in_palette_variables_with_their_data_beside_them(gallery: Path) -> None:
    html = (gallery / "reports/failure_modes/index.html").read_text()
    drawings = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert "var(--chart-1, " in drawing
        assert "<style" not in drawing
        assert "font-family" not in drawing
        assert re.search(r"<title id=\S+>.+?</title>\s*<desc id=\S+>.+?</desc>", drawing, re.DOTALL)
    for kind in ("csv", "json", "svg"):
        assert (gallery / f"reports/failure_modes.gap.{kind}").is_file()


def test_hostile_text_becomes_neither_element_nor_attribute(gallery: Path) -> None:
    for path in gallery.rglob("*.html"):
        html = path.read_text()
        assert "window.pwned = 1</script>" not in html
        assert not re.search(r"<[^>]*\son\w+=(?![^<]*<)", html.split("<body", 1)[1].split("<script", 1)[0]), path
        assert not re.search(r'(?:href|src)="\s*javascript:', html)
        assert not re.search(r'src="https?://', html)
        assert "\u202e" not in html


def test_a_page_allows_no_script_but_its_own(real_site: Path) -> None:
    html = (real_site / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "default-src 'self'; script-src 'self' 'sha256-" in policy.group(1)
    assert "unsafe-eval" not in policy.group(1)


def test_an_error_while_making_pages_fails_a_build(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    home = project / "gen/home.py"
    home.write_text(
        home.read_text().replace('    arm = PageRef("', '    raise RuntimeError("on purpose")\n    arm = PageRef("')
    )
    with pytest.raises(AssertionError, match="on purpose"):
        mkdocs_build(project, tmp_path / "out", SOURCE_DATE_EPOCH="1700000000")


def test_an_error_while_serving_becomes_a_box_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = copy_project(tmp_path)
    home = project / "gen/home.py"
    home.write_text(
        home.read_text().replace('    arm = PageRef("', '    raise RuntimeError("on purpose")\n    arm = PageRef("')
    )
    hooks = project / "gen/hooks.py"
    hooks.write_text(hooks.read_text().replace('serving = command == "serve"', "serving = True"))
    config = project / "mkdocs.yml"
    config.write_text(re.sub(r"\nnav:\n.*?\n(?=not_in_nav)", "\n", config.read_text(), flags=re.DOTALL))
    (project / "docs/runs").mkdir()
    (project / "docs/runs/index.md").write_text("# Runs\n")  # guides link to it; the script that raises would make it
    mkdocs_build(project, tmp_path / "out")
    html = (tmp_path / "out/index.html").read_text()
    assert "This page could not be built" in html
    assert "RuntimeError: on purpose" in re.sub(r"<[^>]*>", "", html)
