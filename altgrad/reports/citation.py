"""How to cite the reports: docs/sections/cite.md has the words, CITATION.cff the authors, the title and the version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from altgrad.site import CodeBlock

CITATION = Path(__file__).parent / "CITATION.cff"
_FIELDS = {"version": "version", "doi": "doi", "url": "repository-code"}
"""Of BibTeX, and where CITATION.cff has them; what it lacks is left out."""
_COMMITTED = re.compile(r"\bcommitted on ([0-9-]{10}) as `([0-9a-f]{7,40})`")


def citation_values(preregistration: str) -> dict[str, Any]:
    """What the section names; `date` and `commit` are what the text of the preregistration names, if it does."""
    cff = yaml.safe_load(CITATION.read_text("utf-8"))
    authors = [_name(author) for author in cff["authors"]]
    committed = _COMMITTED.search(preregistration)
    date, commit = committed.groups() if committed else ("", "")
    values = {
        "authors": authors,
        "title": cff["title"],
        "version": cff["version"],
        "date": date,
        "commit": commit,
    }
    return values | {"bibtex": [_bibtex(cff, authors, date, commit)]}


def _name(author: dict[str, str]) -> str:
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def _bibtex(cff: dict[str, Any], authors: list[str], date: str, commit: str) -> CodeBlock:
    fields = {"author": " and ".join(f"{{{name}}}" for name in authors), "title": f"{{{cff['title']}}}"}
    fields |= {name: str(cff[key]) for name, key in _FIELDS.items() if key in cff}
    fields |= {"year": str(cff["date-released"])[:4]} if "date-released" in cff else {}
    fields |= {"note": f"Preregistered on {date}, commit {commit}"} if commit else {}
    lines = (f"  {name} = {{{value}}}," for name, value in fields.items())
    return CodeBlock("\n".join(("@software{altgrad,", *lines, "}")), "bibtex")
