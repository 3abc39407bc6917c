"""Where a page's figures come from: the runs behind it, what was left out, and its foot."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

import altgrad
from altgrad.analysis import words
from altgrad.analysis.loader import NOT_STATED, ExperimentDataLoader
from altgrad.config import UsageError
from altgrad.imports import code_fingerprint
from altgrad.reports import columns as col
from altgrad.runs.schema import digest
from altgrad.site import Block, Bullets, Link, Note, Provenance, code, md
from altgrad.site.cache import installed

_PACKAGES = (
    "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "Jinja2", "Markdown", "pymdown-extensions", "Pygments",
)  # fmt: skip
LINKED = 200
"""Runs whose links to W&B a report shows at most; its file has all."""


def left_out(loader: ExperimentDataLoader) -> list[Block]:
    """A box that names every record that could not be used, and why; nothing where all were read."""
    if not loader.problems:
        return []
    title = f"{len(loader.problems)} record{'s' if len(loader.problems) > 1 else ''} left out"
    items = tuple(
        md("{where}: {reason}", where=code(problem.where), reason=problem.reason) for problem in loader.problems
    )
    return [Note("warning", title, (Bullets(items),))]


def runs_behind(loader: ExperimentDataLoader, arms: Iterable[str]) -> pd.DataFrame:
    """The runs of some arms, as the file that lies beside a report."""
    columns = ["run_id", "arm", "seed", "study", "status", "final_val_loss", "created", "wandb_url"]
    return loader.runs.loc[loader.runs["arm"].isin(set(arms)), columns]


def linked_table(runs: pd.DataFrame) -> list[Block]:
    """Links to those of the runs that are on W&B, as many as a report shows; nothing where none is."""
    columns = (col.run(), col.of("W&B", lambda row: Link("W&B run", row["wandb_url"])))
    linked = runs[runs["wandb_url"].notna()].head(LINKED)
    return [col.table(linked, columns, "Runs of this report on W&B")] if len(linked) else []


def provenance(loader: ExperimentDataLoader, built: datetime | None = None, of: str = "", code: str = "") -> Provenance:
    """The page's foot: what it was computed from, by which code, when.

    `built` is the time of the build; where it is not given, SOURCE_DATE_EPOCH, else none, so that equal input gives
    equal pages. `of` says whose runs these are, where they are not all;
    `code` is the module that makes the page (default: all that decides pages).
    """
    epoch = given_epoch()
    if built is None and epoch and epoch.isdigit():
        try:
            built = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError):
            raise UsageError(
                f"SOURCE_DATE_EPOCH={epoch[:40]}: not a time in seconds since 1970; correct or unset it"
            ) from None
    when = f"{words.moment(built.isoformat())}, " if built else ""
    packages = ", ".join(f"{package} {installed(package)}" for package in ("numpy", "pandas", "scipy", "matplotlib"))
    count = len(loader.runs)
    runs = " ".join(filter(None, (f"{count} run{'s' if count != 1 else ''}", of)))
    return Provenance(
        (
            ("Records", f"{runs} up to {words.moment(loader.newest)}, fingerprint {loader.fingerprint}"),
            ("Training data", loader.memo(_datasets)),
            ("Code of this page", f"altgrad {altgrad.__version__}, fingerprint {page_code(*filter(None, [code]))}"),
            ("Packages", packages),
            ("Built", f"{when}from {loader.built_from}"),
        )
    )


def given_epoch() -> str | None:
    """SOURCE_DATE_EPOCH where somebody gave one: the site's own (`altgrad.site.build.begin`) is of no page."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return None if epoch == os.environ.get("ALTGRAD_EPOCH") else epoch


def page_code(*modules: str) -> str:
    """The fingerprint of the code by which some modules make a page; without any, of all that decides pages."""
    return code_fingerprint(" ".join((*modules, "altgrad.site.build")) if modules else "page")


def code_key(*modules: str) -> str:
    """A digest of what a page depends on beside the records: `page_code`, packages, and the date of the build."""
    return digest(page_code(*modules), [(name, installed(name)) for name in _PACKAGES], sys.version, given_epoch())


def data_of(run: Mapping[str, Any]) -> tuple[str, str]:
    """What a run was trained on, and the first digits of its sha256; "not stated" and none of imports without."""
    name = str(run["data"].get("name", "unnamed"))
    return (NOT_STATED, "") if name.startswith(NOT_STATED) else (name, str(run["data"]["sha256"])[:12])


def _datasets(loader: ExperimentDataLoader) -> str:
    found: dict[str, set[str]] = {}
    for record in loader.records.values():
        name, sha = data_of(record.run)
        found.setdefault(name, set()).update(filter(None, [sha]))
    told = (f"{name} (sha256 {', '.join(sorted(own))})" if own else name for name, own in sorted(found.items()))
    return "; ".join(told) or "none"
