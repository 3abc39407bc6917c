"""How to cite the reports: docs/sections/cite.md has the words, CITATION.cff the authors, the title and the version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from altgrad.site import CodeBlock

CITATION = Path(__file__).parent / "CITATION.cff"
_ADDRESSES = ("repository-code", "url")
_FIELDS = {"version": "version", "doi": "doi"}
"""Of BibTeX, and where CITATION.cff has them; what it lacks is left out."""
_COMMITTED = re.compile(r"\bcommitted on ([0-9-]{10}) as `([0-9a-f]{7,40})`")


def citation_values(preregistration: str) -> dict[str, Any]:
    """What the section names; `date` and `commit` are what the text of the preregistration names, if it does."""
    cff = yaml.safe_load(CITATION.read_text("utf-8"))
    authors = [_name(author) for author in cff["authors"]]
    date, commit = next(iter(registrations(preregistration)), ("", ""))
    values = {
        "authors": authors,
        "title": cff["title"],
        "version": cff["version"],
        "year": str(cff.get("date-released", date))[:4],
        "url": next((cff[key] for key in _ADDRESSES if key in cff), ""),
        "date": date,
        "commit": commit,
    }
    return values | {"bibtex": [_bibtex(cff, values)]}


def registrations(text: str) -> list[tuple[str, str]]:
    """Date and commit of each registration, as the text of the preregistration names them."""
    return _COMMITTED.findall(text)


def _name(author: dict[str, str]) -> str:
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def _bibtex(cff: dict[str, Any], values: dict[str, Any]) -> CodeBlock:
    fields = {"author": " and ".join(f"{{{name}}}" for name in values["authors"]), "title": f"{{{cff['title']}}}"}
    fields |= {name: str(cff[key]) for name, key in _FIELDS.items() if key in cff}
    fields |= {name: values[name] for name in ("url", "year") if values[name]}
    fields |= {"note": "Preregistered on {date}, commit {commit}".format(**values)} if values["commit"] else {}
    lines = (f"  {name} = {{{value}}}," for name, value in fields.items())
    return CodeBlock("\n".join(("@software{altgrad,", *lines, "}")), "bibtex")
