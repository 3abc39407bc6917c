"""What every report has: how numbers are written, links to arms, the pending section, traceability, provenance."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import altgrad
from altgrad.analysis.hypotheses import Hypothesis
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.config import UsageError
from altgrad.pages import (
    FOREGROUND,
    MUTED,
    Block,
    Bullets,
    CodeBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Note,
    PageRef,
    Paragraph,
    Provenance,
    Table,
    code,
    md,
)
from altgrad.pages.content import Text
from altgrad.runs.schema import code_fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADLINE_SEEDS = 16
"""Findings from fewer pairs than this are labelled as a pilot."""

_SYNC = md(
    "To have runs in a project on {wandb}, record them with tracking and sync their files:",
    wandb=Link("https://wandb.ai", "https://wandb.ai"),
)
_SYNC_COMMANDS = CodeBlock(
    ".venv/bin/python experiments/run_experiment.py CONFIG --out experiments/synced --set tracking=offline\n"
    ".venv/bin/wandb login\n"
    ".venv/bin/wandb sync --project altgrad experiments/synced/*/wandb/offline-run-*",
    "bash",
)


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """`value` with fixed digits, never a negative zero; a dash for NaN."""
    if not _finite(value):
        return "–"
    rounded = round(float(value), digits)
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}" if rounded else f"{0:.{digits}f}"


def interval(low: float, high: float, digits: int = 3) -> str:
    """``[low, high]``; "none" where there is no interval (fewer than two pairs)."""
    return (
        "none"
        if not (_finite(low) and _finite(high))
        else f"[{number(low, digits, True)}, {number(high, digits, True)}]"
    )


def percent(value: float) -> str:
    """A fraction as a percentage with three significant digits; a dash for NaN."""
    return "–" if not _finite(value) else "0%" if value == 0 else f"{100 * value:.3g}%"


def p_text(value: float) -> str:
    """A p-value with three digits, "< 0.001" below them, a dash for NaN."""
    return "–" if not _finite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def arm_link(arm: str, text: str | None = None, run_id: str = "") -> Link:
    """A link to an arm's page, or to one of its runs on it."""
    return Link(text or arm, PageRef(f"runs/{arm}", run_id))


def names(items: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def moment(text: str | None) -> str:
    """An ISO time as ``2026-11-23 20:15 UTC``."""
    return "no records" if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def data_line(loader: ExperimentDataLoader) -> Paragraph:
    """The line under a report's title: how many runs, until when."""
    runs = loader.runs
    counts = runs["status"].value_counts()
    parts = [
        f"{counts[status]} {status}"
        for status in ("finished", "failed", "crashed", "interrupted", "running")
        if counts.get(status)
    ]
    if runs.empty:
        return Paragraph("Data: no recorded runs.")
    return Paragraph(f"Data: {len(runs)} recorded runs ({', '.join(parts)}), the newest of {moment(loader.newest)}.")


def pending(missing: Text, studies: Sequence[str]) -> list[Block]:
    """The section that stands where runs are missing: what is missing and the commands that record it."""
    campaign = [f".venv/bin/python experiments/campaign.py {study}" for study in studies]
    return [
        Heading("Pending Experiments"),
        Paragraph(missing),
        Paragraph("These commands record the runs; the next build of the page reads them:"),
        CodeBlock("\n".join(["make install", *campaign, "make reports", "make serve"]), "bash"),
        Paragraph("One run of one config:"),
        CodeBlock(
            ".venv/bin/python experiments/run_experiment.py experiments/configs/e5m2.yaml --set max_steps=300 --seed 0",
            "bash",
        ),
        Paragraph(
            "The same configs run on a GPU, for example on a rented H100 machine such as RunPod offers: clone the "
            "repository there, install a CUDA build of torch, and bring the records back."
        ),
        CodeBlock(
            "make install\n"
            ".venv/bin/python experiments/run_experiment.py experiments/configs/e5m2.yaml --device cuda\n"
            "tar czf runs.tgz experiments/runs   # copy it here and unpack it in this folder",
            "bash",
        ),
    ]


def pilot(loader: ExperimentDataLoader, arms: Iterable[str], pairs: int) -> list[Block]:
    """The label of findings from fewer than `HEADLINE_SEEDS` pairs; nothing from there on."""
    if pairs >= HEADLINE_SEEDS:
        return []
    config = loader.config(next(iter(arms)))
    text = (
        f"These are pilot findings: at most {pairs} pairs an arm, {config.max_steps} steps, a model of "
        f"{config.model.layers} layers of {config.model.dim}, formats simulated in float32. They show that the path "
        f"from a "
        "run to a page works, and they narrow the question; they do not settle it."
    )
    return [Note("info", "Pilot", (Paragraph(text),))]


def hypothesis(value: Hypothesis) -> Md:
    """A hypothesis with its date and what was known when it was written."""
    return md(
        "Hypothesis, written on {date}, before the runs that ship with the repository, but with earlier pilot "
        "figures of "
        "this project at hand, so an expectation rather than a blind prediction: {text}",
        date=value.written,
        text=value.statement,
    )


def hypothesis_pending(missing: Text) -> Md:
    """What stands for a hypothesis before there is anything to hold against it: no expectation is shown."""
    return md(
        "{missing} The hypothesis is written down in {file} and will stand here beside what happened.",
        missing=missing,
        file=code("altgrad/analysis/hypotheses.py"),
    )


def left_out(loader: ExperimentDataLoader) -> list[Block]:
    """A box that names every record that could not be used, and why; nothing where all were read."""
    if not loader.problems:
        return []
    title = f"{len(loader.problems)} record{'s' if len(loader.problems) > 1 else ''} left out"
    items = tuple(
        md("{where}: {reason}", where=code(problem.where), reason=problem.reason) for problem in loader.problems
    )
    return [Note("warning", title, (Bullets(items),))]


def traceability(loader: ExperimentDataLoader, arms: Iterable[str]) -> list[Block]:
    """The runs behind a report with their W&B links, or how to sync those that were recorded without W&B."""
    runs = loader.runs[loader.runs["arm"].isin(set(arms))]
    linked = runs["wandb_url"].notna()
    blocks: list[Block] = [Heading("Traceability")]
    if runs.empty:
        return [*blocks, Paragraph(md("No runs stand behind this report yet. {how}", how=_SYNC)), _SYNC_COMMANDS]
    if (~linked).any():
        blocks += [
            Paragraph(
                md(
                    "{count} of the {total} runs of this report were recorded without W&amp;B: their records are in "
                    "the "
                    "repository or on the machine that built this page. {how}",
                    count=int((~linked).sum()),
                    total=len(runs),
                    how=_SYNC,
                )
            ),
            _SYNC_COMMANDS,
        ]
    rows = tuple(
        (
            arm_link(run.arm, run.run_id, run.run_id),
            run.status,
            run.study,
            Link("W&B run", run.wandb_url) if isinstance(run.wandb_url, str) else "recorded without W&B",
        )
        for run in runs.itertuples()
    )
    columns: tuple[Column | str, ...] = ("Run", "Status", "Study", "W&B")
    return [
        *blocks,
        Details(f"The {len(rows)} runs of this report", (Table(columns, rows, caption="Runs of this report"),)),
    ]


def provenance(loader: ExperimentDataLoader, built: datetime | None = None) -> Provenance:
    """The page's foot: what it was computed from, by which code, when.

    `built` is the time of the build; where it is not given, SOURCE_DATE_EPOCH, else the time of the newest record, so
    that equal input gives equal pages.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if built is None and epoch and epoch.isdigit():
        try:
            built = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError):
            raise UsageError(
                f"SOURCE_DATE_EPOCH={epoch[:40]}: not a time in seconds since 1970; correct or unset it"
            ) from None
    when = moment(built.isoformat() if built else loader.newest)
    packages = ", ".join(f"{package} {_version(package)}" for package in ("numpy", "pandas", "scipy", "matplotlib"))
    datasets = {
        (record.run["data"].get("name", "unnamed"), str(record.run["data"]["sha256"])[:12])
        for record in loader.records.values()
    }
    return Provenance(
        (
            ("Records", f"{len(loader.runs)} runs, fingerprint {loader.fingerprint}, newest {moment(loader.newest)}"),
            ("Training data", "; ".join(f"{name} (sha256 {sha})" for name, sha in sorted(datasets)) or "none"),
            ("Code", f"altgrad {altgrad.__version__}, fingerprint {code_fingerprint()}"),
            ("Packages", packages),
            ("Built", f"{when}, from {loader.built_from}"),
        )
    )


def finite_rows(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which all `columns` are finite numbers: what a chart can draw."""
    return frame[frame[list(columns)].apply(lambda column: column.map(_finite)).all(axis=1)].reset_index(drop=True)


def spread(places: Sequence[float], drawn: NDArray[np.float64]) -> list[float]:
    """Heights for labels near `places`, at least 6% of the drawn range apart so that none covers another."""
    gap = 0.06 * float(np.nanmax(drawn) - np.nanmin(drawn))
    moved = [float(place) for place in places]
    order = sorted(range(len(moved)), key=lambda index: moved[index])
    for lower, upper in itertools.pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    return moved


def right(*titles: str) -> tuple[Column, ...]:
    """Right-aligned columns."""
    return tuple(Column(title, "right") for title in titles)


def reference_line(axes: Axes, label: str) -> None:
    """The line at zero that differences are measured from, named at its right end."""
    axes.axhline(0, color=FOREGROUND, linewidth=1)
    axes.annotate(
        label,
        (1, 0),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
    )


def _finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
