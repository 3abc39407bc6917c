"""The built site, read as files."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import same_numbers
from conftest import ROOT, copy_project, mkdocs_build
from links import faults
from planted import found_in, planted

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


def test_builds_in_two_folders_cold_warm_and_refreshed_are_the_same_bytes_and_report_what_ran_and_what_is_slow(
    gallery: Path, tmp_path: Path
) -> None:
    again = copy_project(tmp_path)
    first = snapshot(gallery)
    kept = again / ".cache/site"
    kept.mkdir(parents=True)
    (kept / "gone-0123456789abcdef.zip").write_bytes(b"of a page that is gone")
    for out, refresh, origins in (("cold", "", {"made"}), ("warm", "", {"made", "cache"}), ("anew", "1", {"made"})):
        mkdocs_build(again, tmp_path / out, SOURCE_DATE_EPOCH="1700000000", ALTGRAD_REFRESH=refresh)
        second = snapshot(tmp_path / out)
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []
        report = json.loads((again / "build/report/build.json").read_text())
        assert {family["origin"] for family in report["families"]} == origins
    assert not any("report/" in name for name in first if name.startswith("build")), "the report is not in the site"
    text = (again / "build/report/build.txt").read_text()
    assert re.search(r"^ +[0-9.]+ s  made    own/page \(1\)$", text, re.MULTILINE)
    assert re.search(r"^ +[0-9.]+ s  reports/failure_modes.md$", text, re.MULTILINE) or len(report["pages"]) > 20
    assert report["pages"].keys() >= {"index.md", "own/page.md", "own/formats/e4m3.md"}
    assert not (kept / "gone-0123456789abcdef.zip").exists()


def test_one_page_is_built_alone_and_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    for page, place in (("reports/failure_modes", "reports/failure_modes"), ("own/formats/e5m2", "own/formats/e5m2")):
        mkdocs_build(project, tmp_path / "out", ALTGRAD_PAGE=page)
        built = {name for name in snapshot(tmp_path / "out") if name.endswith(".html")}
        assert built == {f"{place}/index.html", "404.html"}
        origins = {
            each["name"]: each["origin"]
            for each in json.loads((project / "build/report/build.json").read_text())["families"]
        }
        assert origins["guides/number-formats"] == "last"
        assert origins["own/formats" if page.startswith("own") else "index"] == "made"
    with pytest.raises(AssertionError, match="there is no page own/formats/e5m; near it: own/formats/e5m2") as caught:
        mkdocs_build(project, tmp_path / "out", ALTGRAD_PAGE="own/formats/e5m")
    assert "Traceback" not in str(caught.value)


def test_a_page_of_ones_own_shows_charts_tables_and_charts_of_other_pages(gallery: Path) -> None:
    html = (gallery / "own/page/index.html").read_text()
    article = html[html.index("<article") : html.index("</article>")]
    assert article.count('role="img"') == 3
    assert article.count('class="chart"') == 3
    assert 'id="chart-gap"' in article
    assert 'id="chart-gap-2"' in article, "two charts of one name have different ids"
    assert re.search(r'from <a href="../../reports/failure_modes/">', article)
    assert "&lt;!-- altgrad: chart no such --&gt;" in re.sub("<[^>]*>", "", article), "what stands in a fence is text"
    assert article.count('class="table-box"') == 2
    assert "<b>bold" not in article
    assert "<i>untrusted" not in article
    assert "under its block" in article
    assert (
        gallery / "own/page.table-1.csv"
    ).read_text() == "x,y,name,yes\n1,2,<b>bold</b> | *it*,True\n2,4,<b>bold</b> | *it*,True\n"
    for name in ("page.line.svg", "page.line.json", "page.table-2-3.csv"):
        assert (gallery / "own" / name).is_file(), name


def test_one_file_with_parameters_is_a_page_for_each_and_a_list_of_them(gallery: Path) -> None:
    index = (gallery / "own/formats/index.html").read_text()
    assert 'href="e4m3/"' in index
    assert 'href="e5m2/"' in index
    assert "Two formats" in index
    first, second = ((gallery / f"own/formats/{name}/index.html").read_text() for name in ("e4m3", "e5m2"))
    assert "Format e4m3" in first
    assert ">448.0\n" in first or "448.0" in first
    assert "57344.0" in second
    assert "<b>" not in first[first.index("It says") : first.index("It says") + 80]


def test_a_chart_leads_to_the_script_that_made_it(gallery: Path) -> None:
    html = (gallery / "reports/failure_modes/index.html").read_text()
    address, title, name = re.findall(r'<a href="(\S+)" title="([^"]*, sha256 [0-9a-f]{12})">([^<]*)</a>', html)[0]
    assert name == "pages()"
    assert title.startswith("gen/home.py, ")
    published = gallery / "reports/failure_modes" / address.split("#")[0]
    assert published.resolve().read_text() == (Path(__file__).parent / "gallery.py").read_text()


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("<!-- altgrad: chart reports/failure_modes nothing -->", "has no chart nothing; it has folded, gap"),
        ("<!-- altgrad: chart reports/nowhere gap -->", "it has no charts, or there is no such page"),
        ("<!-- altgrad: chart reports/failure_modes -->", "write `<!-- altgrad: chart PAGE CHART -->`"),
        ("text <!-- altgrad: table x y --> text", "write `<!-- altgrad: chart PAGE CHART -->`"),
    ],
)
def test_a_marker_that_cannot_be_filled_names_page_and_line(tmp_path: Path, marker: str, told: str) -> None:
    from types import SimpleNamespace

    mkdocs = pytest.importorskip("mkdocs.exceptions")
    from altgrad.site.build import SiteBuild, embed

    content = {"reports/failure_modes.gap.svg": "", "reports/failure_modes.folded.svg": ""}
    found = SimpleNamespace(src_uris=content, get_file_from_path=lambda name: content.get(name) or None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notes.md"))
    build = SiteBuild(tmp_path)
    with pytest.raises(mkdocs.PluginError) as caught:
        embed(f"# A\n\n{marker}\n", page, {"extra": {"altgrad": build}}, found)
    assert str(caught.value).startswith("notes.md: line 3: ")
    assert told in str(caught.value)
    build.serving = True
    shown = embed(f"# A\n\n{marker}\n", page, {"extra": {"altgrad": build}}, found)
    assert "!!! warning" in shown
    assert "<!--" not in shown


def test_search_finds_reports_but_neither_excluded_pages_nor_chart_labels(gallery: Path) -> None:
    documents = json.loads((gallery / "search/search_index.json").read_text())["docs"]
    places = {document["location"].split("#")[0] for document in documents}
    assert "reports/format_comparison/" in places
    assert "runs/arm/" not in places
    assert not any("made-up gap (nats)" in document["text"] for document in documents)


def test_the_search_loads_at_once_and_knows_the_beginning_of_each_section(real_site: Path) -> None:
    index = (real_site / "search/search_index.json").read_bytes()
    assert len(index) <= 300_000
    assert len(gzip.compress(index, 6)) <= 75_000
    texts = [document["text"] for document in json.loads(index)["docs"]]
    assert 200 < max(map(len, texts)) <= 240
    assert not any(re.search("<[^>]*>", text) for text in texts)


def test_no_two_pages_share_a_title(real_site: Path) -> None:
    titles = Counter(
        re.findall(r"<title>(.*?)</title>", page.read_text(), re.DOTALL)[0] for page in real_site.rglob("index.html")
    )
    assert len(titles) > 200
    assert [title for title, pages in titles.items() if pages > 1] == []
    assert max(map(len, titles)) < 160


SETTINGS = ("Learning rate", "Rate", "Steps", "Seed", "Parameters", "Tokens")
"""Columns of numbers that say which arm or run a row is of, not how it did."""


def test_rows_of_a_table_that_lead_to_two_arms_say_what_tells_them_apart(real_site: Path) -> None:
    arms = {path.parent.name for path in (real_site / "runs").glob("*/index.html")}
    alike, seen = [], 0
    for page in real_site.rglob("index.html"):
        for table in re.findall(r"<table class=\"data[^>]*>.*?</table>", page.read_text(), re.DOTALL):
            head, *rows = (
                re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for row in re.findall(r"(?s)<tr>(.*?)</tr>", table)
            )
            titles = [re.sub("<.*?>", "", title) for _, title in head]
            told = defaultdict[tuple[str, ...], set[str]](set)
            for row in rows:
                cells = list(zip(titles, row, strict=True))
                says = (cell for title, (align, cell) in cells if not align or title in SETTINGS)
                found = re.findall(
                    r'href="(?:\.\./)*(?:runs/)?([^/"]+)/(?:#([^"]*))?"', " ".join(cell for _, cell in row)
                )
                if found and found[0][0] in arms:
                    told[tuple(re.sub("<.*?>", "", cell) for cell in says)].add(" ".join(found[0]))
            seen += len(told)
            alike += [(page.parent.name, says) for says, places in told.items() if len(places) > 1]
    assert seen > 1000
    assert alike == []


def test_what_readers_choose_arms_from_has_no_two_of_one_name(real_site: Path) -> None:
    table = json.loads((real_site / "runs/index.table.json").read_text())["arms"]
    tensors = [run["label"] for run in json.loads((real_site / "tensors/index.json").read_text())["runs"]]
    assert len(set(table["label"])) == len(table["arm"]) > 400
    assert len(set(tensors)) == len(tensors) > 50
    for label, arm, page in zip(table["label"], table["arm"], table["study_page"]["codes"], strict=True):
        if page is None:
            assert f"<title>{label} - " in (real_site / f"runs/{arm}/index.html").read_text()


def test_the_changelog_is_in_the_foot_of_every_page_and_in_no_tab(real_site: Path) -> None:
    for place, up in {"": "", "runs/": "../", "guides/wandb/": "../../"}.items():
        html = (real_site / place / "index.html").read_text()
        assert re.findall(r'href="([^"]*changelog/)"', html) == [f"{up}changelog/"], "once, in the foot"
        tabs = re.findall(r'<a href="[^"]*" class="md-tabs__link">\s*(.*?)\s*</a>', html, re.DOTALL)
        assert tabs == ["Home", "Reports", "Formats", "Runs", "Guides", "Method", "API"]


def test_a_page_says_nothing_of_tickets_and_names_what_made_a_chart_plainly(real_site: Path) -> None:
    for place in ("", *(f"reports/{name}/" for name in REPORTS)):
        html = (real_site / place / "index.html").read_text()
        title = re.search(r"<title>(.*?)</title>", html)
        assert title
        assert title[1].partition(" - ")[0] != "AltGrad"
        assert "ANAL-" not in html.split("<body", 1)[1]
        makers = re.findall(r'<p class="files">Chart: .*>(\w+)\(\)</a></p>', html)
        assert makers
        assert not [name for name in makers if name.startswith("_")]


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


def test_no_byte_of_a_site_is_a_planted_secret(hostile_site: Path) -> None:
    parts = planted()[1]
    files = [path for path in hostile_site.rglob("*") if path.is_file()]
    assert any(b"left out: looks like a secret" in path.read_bytes() for path in files)
    found = {path.name: there for path in files if (there := found_in(path.read_bytes(), parts))}
    assert found == {}


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
    config = project / "mkdocs.yml"
    settings = config.read_text().replace("\nextra:\n", "\nextra:\n  serving: true\n")
    config.write_text(re.sub(r"\nnav:\n.*?\n(?=not_in_nav)", "\n", settings, flags=re.DOTALL))
    mkdocs_build(project, tmp_path / "out", ALTGRAD_PAGE="index")
    html = (tmp_path / "out/index.html").read_text()
    assert "This page could not be built" in html
    assert "RuntimeError: on purpose" in re.sub(r"<[^>]*>", "", html)


def test_pages_are_small_enough_to_load_at_once(real_site: Path) -> None:
    """Reports under 500 kB compressed, arms and formats under 60 kB, each with its curves; at most 500 pages."""
    sizes = {
        path.parent.relative_to(real_site).as_posix(): len(gzip.compress(path.read_bytes(), 6))
        for path in real_site.rglob("index.html")
    }
    assert len(sizes) <= 500
    for page, size in sizes.items():
        curves = real_site / f"{page}.curves.json"
        size += len(gzip.compress(curves.read_bytes(), 6)) if curves.is_file() else 0
        assert size < (60_000 if page.startswith(("runs/", "formats/")) else 500_000), page


def test_every_run_has_a_place_and_its_own_json(real_site: Path) -> None:
    parts = (ROOT / "experiments" / "recorded").rglob("runs.parquet")
    runs = [json.loads(run) for part in parts for run in pd.read_parquet(part)["run"]]
    html = {path.parent.name: path.read_text() for path in (real_site / "runs").glob("*/index.html")}
    places = defaultdict[str, set[str]](set)
    for name, text in html.items():
        for place in re.findall(r' id="([^"]*)"', text):
            places[place].add(name)
    of_arm = defaultdict[str, set[str]](set)
    for run in runs:
        of_arm[run["arm"]].add(run["id"])
        assert run["arm"] in places[run["id"]] or any(name.startswith("study-") for name in places[run["id"]])
    arms = {name for name in html if not name.startswith("study-")}
    for arm in arms:
        recorded = json.loads((real_site / "runs" / f"{arm}.runs.json").read_text())
        assert {*recorded} == of_arm[arm]
        for run_id, data in recorded.items():
            assert data["run"]["id"] == run_id
            assert data["history"]["step"]


def test_every_number_of_the_reports_folder_is_on_the_site_and_one_that_is_gone_is_told(
    real_site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert same_numbers.main(str(ROOT / "reports"), str(real_site)) == 0
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    (tmp_path / "before/a.csv").write_text("name,value\nx,0.12345678\ny,-2\nz,1e-9\n")
    (tmp_path / "after/b.json").write_text('{"x": [0.1234568, -2, true]}')
    capsys.readouterr()
    assert same_numbers.main(str(tmp_path / "before"), str(tmp_path / "after")) == 1
    assert "a.csv: 1 numbers are nowhere" in capsys.readouterr().out


def test_the_api_reference_has_every_public_name(real_site: Path) -> None:
    for page, names in {
        "formats": ("FloatFormat", "get_format", "list_formats"),
        "quantize": ("quantize", "fake_quantize"),
        "optim": ("ManifoldAdamW",),
        "runs": ("RunRecord", "record"),
        "analysis": ("ExperimentDataLoader", "FormatComparator"),
    }.items():
        html = (real_site / "api" / page / "index.html").read_text()
        for name in names:
            assert re.search(rf'id="altgrad\.[\w.]*\b{name}"', html), (page, name)


class Shown(HTMLParser):
    """The texts of a page, those of charts among them; code, which programs read, apart from them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside, self.texts, self.code = 0, list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        (self.code if self.inside else self.texts).append(data)


HYPHEN = re.compile(r"(?<![\w)\]./-])-\d|\d[eE]-\d")
SIGNED_ZERO = re.compile(r"(?<![\w.])[-−+]0(?:\.0+)?%?(?![\w.,])")


def wrong_signs(texts: Iterable[str]) -> set[str]:
    """Negative numbers with a hyphen, and zeros with a sign that are no code of a format (those have no decimals)."""
    found = set()
    for text in texts:
        found |= {text[max(0, match.start() - 20) :][:50] for match in HYPHEN.finditer(text)}
        found |= {text for match in SIGNED_ZERO.finditer(text) if "." in match.group()}
    return found


def test_a_wrong_sign_is_found() -> None:
    wrong = ["by -0.161 nats", "[-0.171, 0.2]", "1e-05", "2^-9", "−0.000", "+0.00", "-1"]
    assert [text for text in wrong if wrong_signs([text])] == wrong
    assert not wrong_signs(
        ["−0.161", "1e−05", "e4m3-adamw-1", "2026-11-30", "8-bit", "−0", "-0.0004".replace("-", "−")]
    )


def test_every_number_of_the_site_has_a_true_minus_and_no_zero_has_a_sign(real_site: Path) -> None:
    pages = [page for page in real_site.rglob("*.html") if page.relative_to(real_site).parts[0] != "api"]
    shown = {page.relative_to(real_site).as_posix(): Shown(page.read_text("utf-8")) for page in pages}
    wrong = {
        name: found
        for name, each in shown.items()
        if (found := wrong_signs(text for text in each.texts if "[Errno -" not in text))
    }
    assert not wrong
    commands = [text for each in shown.values() for text in each.code if re.search(r"[=\s]−\d", text)]
    assert not [text for text in commands if "make " in text or "python" in text]
