"""How to cite: what CITATION.cff says stands on the pages, and nothing that it does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from altgrad.analysis import ExperimentDataLoader
from altgrad.reports import citation, corrections_page, preregistered_page
from altgrad.reports.document import documents_key
from altgrad.site import CodeBlock, Details, Page, Paragraph

ROOT = Path(__file__).parents[1]


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


def test_every_field_of_the_file_is_in_the_bibtex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [{"given-names": "A.", "family-names": "B"}, {"name": "C and D"}]
    given = {"title": "T", "version": 2, "authors": people, "doi": "10.1/x", "repository-code": "https://example.org",
             "date-released": "2027-01-02"}  # fmt: skip
    before = documents_key()
    monkeypatch.setattr(citation, "CITATION", tmp_path / "c.cff")
    citation.CITATION.write_text(yaml.safe_dump(given))
    found = citation.citation_values("It was first committed in commit `0123abc`.")
    assert (found["authors"], found["commit"]) == (["A. B", "C and D"], "0123abc")
    assert found["bibtex"][0].text == (
        "@software{altgrad,\n  author = {{A. B} and {C and D}},\n  title = {{T}},\n  version = {2},\n"
        "  doi = {10.1/x},\n  url = {https://example.org},\n  year = {2027},\n"
        "  note = {Preregistration: commit 0123abc},\n}"
    )
    monkeypatch.setattr("altgrad.reports.document.CITATION", citation.CITATION)
    assert documents_key() != before, "a page is made again"
