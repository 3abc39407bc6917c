"""The API reference: an index of the public modules, and pages on which mkdocstrings puts their docstrings.

The sources are read, never imported: no torch is needed.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.exceptions import PluginError

from altgrad.site.build import build_files

ROOT = Path(__file__).resolve().parent.parent
LAST = "search:\n  boost: 0.0001\n"
"""A title weighs a thousand words in the search: with this it finds what reports and guides say before any name."""
PAGES = {
    "formats": ("Number formats", ("altgrad.formats",)),
    "quantize": ("Rounding, scales and quantized layers", ("altgrad.rounding", "altgrad.scaling", "altgrad.nn")),
    "optim": ("Step rules", ("altgrad.optim",)),
    "telemetry": ("What a run measures", ("altgrad.telemetry",)),
    "training": ("Training", ("altgrad.config", "altgrad.training", "altgrad.models")),
    "runs": ("Run records", ("altgrad.runs",)),
    "studies": ("The campaign as data", ("altgrad.studies",)),
    "analysis": ("Findings", ("altgrad.analysis", "altgrad.analysis.contrasts", "altgrad.analysis.hypotheses")),
    "reports": ("Reports", ("altgrad.reports",)),
    "pages": ("Pages and charts", ("altgrad.site",)),
}


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not text:
        raise PluginError(f"{path.relative_to(ROOT)}: a public module has a docstring")
    return " ".join(text.split("\n\n")[0].split())


def files() -> dict[str, bytes]:
    """The index, and a page for each group of modules."""
    found = {}
    lines = [f"---\n{LAST}---\n", "# API", "Everything public, from the sources' docstrings.", ""]
    for name, (title, modules) in PAGES.items():
        lines += [f"**[{title}]({name}.md)**\n"]
        lines += [f"- `{module}`: {summary(module)}" for module in modules] + [""]
        page = "\n\n".join([f"# {title} (API)", *(f"::: {module}" for module in modules)])
        found[f"api/{name}.md"] = f"---\ntitle: {title} (API)\n{LAST}---\n\n{page}\n".encode()
    return {"api/index.md": "\n".join(lines).encode()} | found


build_files(files, "api/index", *(f"api/{name}" for name in PAGES))
