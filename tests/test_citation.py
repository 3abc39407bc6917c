"""How to cite: what CITATION.cff says stands on the pages, and nothing that it does not say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from altgrad.analysis import ExperimentDataLoader
from altgrad.reports import citation, corrections_page, preregistered_page
from altgrad.reports.document import documents_key
from altgrad.site import CodeBlock, Details, Page, Paragraph

ROOT = Path(__file__).parents[1]


def git(*words: str) -> str:
    """What git says of this repository; nothing where it is none."""
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()


def cited(page: Page) -> tuple[str, str]:
    """The line and the BibTeX of a page."""
    at = next(at for at, block in enumerate(page.blocks) if isinstance(block, Details) and block.title == "BibTeX")
    line, (bibtex,) = page.blocks[at - 1], page.blocks[at].blocks  # type: ignore[attr-defined]
    assert isinstance(line, Paragraph)
    assert isinstance(bibtex, CodeBlock)
    return str(line.text), bibtex.text


@pytest.mark.parametrize("make", [corrections_page, preregistered_page])
def test_a_report_says_how_to_cite_it_as_the_repository_does(make: Any) -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    line, bibtex = cited(make(ExperimentDataLoader([])))
    for text in (said["title"], said["authors"][0]["name"], str(said["version"])):
        assert text in line
        assert text in bibtex
    assert "doi" not in bibtex


def test_the_preregistration_names_the_commit_that_brought_it() -> None:
    """As page, citation and CITATION.cff have it, and as the history has it where the whole of it is here."""
    file = "docs/method/preregistration.md"
    said = citation.citation_values((ROOT / file).read_text("utf-8"))
    (reference,) = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"]
    assert reference["filename"] == file
    assert reference["commit"].startswith(said["commit"])
    assert str(reference["date-released"]) == said["date"]
    assert f"Preregistered on {said['date']}, commit {said['commit']}" in said["bibtex"][0].text
    assert f"on {said['date']} in commit `{said['commit']}`" in cited(preregistered_page(ExperimentDataLoader([])))[0]
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("the history is not here")
    first = git("log", "--follow", "--diff-filter=A", "--format=%H %cs", "--", file).splitlines()[-1]
    assert first == f"{reference['commit']} {said['date']}"


def test_every_field_of_the_file_is_in_the_bibtex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [{"given-names": "A.", "family-names": "B"}, {"name": "C and D"}]
    given = {"title": "T", "version": 2, "authors": people, "doi": "10.1/x", "repository-code": "https://example.org",
             "date-released": "2027-01-02"}  # fmt: skip
    before = documents_key()
    monkeypatch.setattr(citation, "CITATION", tmp_path / "c.cff")
    citation.CITATION.write_text(yaml.safe_dump(given))
    found = citation.citation_values("It was first committed on 2026-01-02 as `0123abc`.")
    assert (found["authors"], found["date"], found["commit"]) == (["A. B", "C and D"], "2026-01-02", "0123abc")
    assert found["bibtex"][0].text == (
        "@software{altgrad,\n  author = {{A. B} and {C and D}},\n  title = {{T}},\n  version = {2},\n"
        "  doi = {10.1/x},\n  url = {https://example.org},\n  year = {2027},\n"
        "  note = {Preregistered on 2026-01-02, commit 0123abc},\n}"
    )
    monkeypatch.setattr("altgrad.reports.document.CITATION", citation.CITATION)
    assert documents_key() != before, "a page is made again"
