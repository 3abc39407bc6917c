"""What every report has: how numbers are written, links to arms, the pending section, traceability, provenance."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import altgrad
from altgrad.analysis.comparison import Comparison, FormatComparator
from altgrad.analysis.costs import TokenRate, extent
from altgrad.analysis.hypotheses import Hypothesis
from altgrad.analysis.loader import ExperimentDataLoader, scale_label
from altgrad.analysis.preregistered import Verdict
from altgrad.config import UsageError
from altgrad.pages import (
    FOREGROUND,
    HEAT,
    MUTED,
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
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
    escape,
    md,
)
from altgrad.pages.content import Text, shorten, visible
from altgrad.pages.sketch import INCH, Sketch
from altgrad.runs.schema import code_fingerprint, digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch

HEADLINE_SEEDS = 16
"""Findings from fewer pairs than this are labelled as a pilot."""
CORRECTIONS = Link("Corrections and limits", PageRef("reports/corrections"))
ONE_SCALE = "one power-of-two scale a tensor, from its current largest value"
HEAT_COLUMNS = 60
"""Most columns of a heat map's panel; of more looks, neighbours share a column that shows the worst."""
HEAT_ROWS = 40
"""Most rows of a heat map; of more layers, those with the worst values are drawn."""

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
    """``[low, high]``; "none" where there is no interval (fewer than two pairs).

    A digit more where an end would be shown as 0 and is not: on which side of zero it lies is what a reader looks for.
    """
    if not (_finite(low) and _finite(high)):
        return "none"
    near = any(end and not round(float(end), digits) for end in (low, high))
    return f"[{number(low, digits + near, True)}, {number(high, digits + near, True)}]"


def span(low: float, high: float, digits: int = 3) -> str:
    """An interval in a sentence: ``0.003 to 0.014``; a digit more where `interval` has one."""
    return interval(low, high, digits).strip("[]").replace("+", "").replace(", ", " to ")


def quantized(scope: str) -> str:
    """A scope with the word where it belongs: ``weights quantized; scale 1``."""
    what, mark, how = scope.partition(";")
    return f"{what} quantized{mark}{how}"


def percent(value: float) -> str:
    """A fraction as a percentage with three significant digits; a dash for NaN."""
    return "–" if not _finite(value) else "0%" if value == 0 else f"{100 * value:.3g}%"


def tokens(rate: TokenRate, gap: float) -> str:
    """A gap as a percentage of more tokens; what lies beyond the measured lengths is not given a figure."""
    more = rate.more_tokens(gap)
    if math.isnan(more):
        return "–"
    if more > rate.limit:
        return f"over {100 * rate.limit:.0f}%"
    return f"{100 * more:.0f}%" if abs(more) >= 0.1 else f"{100 * more:.1f}%"


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


def scope(loader: ExperimentDataLoader, comparison: Comparison) -> str:
    """How far a comparison reaches, in a line: model, length, text, scales."""
    size, config = extent(loader, comparison), loader.config(comparison.baseline)
    model = f"{config.model.layers} layers of {config.model.dim}"
    each = ""
    if size.parameters:
        model, each = f"{size.parameters:,} parameters", f" ({size.characters / size.parameters:.1f} a parameter)"
    text = "licence texts" if size.text == "licenses" else size.text
    first = loader.config(str(comparison.table["arm"].iloc[0]))
    scales = {scale_label(first.scaling.rule(operand)) or ONE_SCALE for operand in first.quantize.operands}
    return (
        f"a GPT of {model}, {size.steps:,} steps, {size.characters:,} characters of {text}{each}; "
        f"{names(sorted(scales))}"
    )


def data_line(loader: ExperimentDataLoader, scoped: bool = True) -> Paragraph:
    """The line under a report's title: how many runs, until when, their scope, and where corrections are."""
    headline = loader.once(FormatComparator).headline
    reach = f" Unless a section says otherwise: {scope(loader, headline)}." if scoped and headline else ""
    text = "{data}{reach} {corrections}: what was said and is not so, and what was not run."
    return Paragraph(md(text, data=recorded_line(loader).text, reach=reach, corrections=CORRECTIONS))


def recorded_line(loader: ExperimentDataLoader) -> Paragraph:
    """How many runs there are, until when."""
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


def pending_note(missing: Text, studies: Sequence[str]) -> Note:
    """What stands in a section whose runs are missing, on a page that has others: what, and the commands."""
    commands = "\n".join(f"make campaign STUDY={study}" for study in studies)
    return Note("question", "Pending Experiments", (Paragraph(missing), CodeBlock(commands, "bash")))


def larger(loader: ExperimentDataLoader, study: str) -> list[Block]:
    """A note while a study of the campaign is recorded and its larger version, for a GPU, is not."""
    recorded = set(loader.runs["study"])
    if study not in recorded or f"{study}-large" in recorded:
        return []
    missing = (
        f"Whether this holds in a larger model is not known: study {study}-large, 6 layers of 384 and 5,000 steps, "
        "is written for a GPU and not recorded."
    )
    return [pending_note(missing, [f"{name}-large DEVICE=cuda" for name in ("tuning", study)])]


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


def scope_line(loader: ExperimentDataLoader, arm: str) -> Md:
    """What a headline rests on, in one line, from an arm's config."""
    config = loader.config(arm)
    record = next(record for record in loader.records.values() if record.arm == arm)
    size = record.run["summary"].get("parameters")
    how = {"tensor": "tensor", "row": "row", "block": f"block of {config.scaling.block}"}[config.scaling.granularity]
    kind = "power-of-two scale" if config.scaling.power_of_two else "scale"
    return md(
        "*Scope: {layers} layers of {dim}, {size}{steps} steps, one text ({data}), one {kind} a {how} unless another "
        "is named.*",
        layers=config.model.layers,
        dim=config.model.dim,
        size=Md(f"{size:,} parameters, ") if size else "",
        steps=config.max_steps,
        data=config.data,
        kind=kind,
        how=how,
    )


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


def verdict_table(verdicts: Iterable[Verdict], identity: str) -> Table:
    """What was written down beforehand, and what the records say of it."""
    records = [(verdict.id, verdict.statement, verdict.answered, verdict.evidence) for verdict in verdicts]
    data = pd.DataFrame(records, columns=["id", "hypothesis", "answer", "evidence"])
    rows = tuple((name, escape(text), answer, escape(evidence, 4000)) for name, text, answer, evidence in records)
    columns: tuple[Column | str, ...] = ("", "Hypothesis, written beforehand", "Answer", "Evidence")
    return Table(columns, rows, "Preregistered hypotheses and what the runs say", data=data, id=identity)


def tests_table(verdicts: Iterable[Verdict], identity: str) -> list[Block]:
    """Every test behind some verdicts, folded away; nothing while all are pending."""
    frames = [verdict.tests.assign(id=verdict.id) for verdict in verdicts if len(verdict.tests)]
    if not frames:
        return []
    data = pd.concat(frames, ignore_index=True)
    rows = tuple(
        (
            row["id"],
            arm_link(row["arm"], row["contrast"]),
            arm_link(row["against"], "against"),
            int(row["n_pairs"]),
            number(row["difference"], 4, sign=True),
            interval(row["low"], row["high"], 4),
            number(row["effect_size"], 2, sign=True),
            p_text(row["p_holm"]),
            p_text(row["p_equivalent"]),
        )
        for row in data.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "",
        "Difference",
        "Other arm",
        *right("Pairs", "Nats", "95% interval", "Effect size", "Adjusted p", "TOST p"),
    )
    table = Table(columns, rows, "Tests of the families that the preregistration names", data=data, id=identity)
    return [Details("The tests", (table,))]


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


def provenance(loader: ExperimentDataLoader, built: datetime | None = None, of: str = "") -> Provenance:
    """The page's foot: what it was computed from, by which code, when.

    `built` is the time of the build; where it is not given, SOURCE_DATE_EPOCH, else the time of the newest record, so
    that equal input gives equal pages. `of` says whose runs these are, where they are not all.
    """
    epoch = given_epoch()
    if built is None and epoch and epoch.isdigit():
        try:
            built = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError):
            raise UsageError(
                f"SOURCE_DATE_EPOCH={epoch[:40]}: not a time in seconds since 1970; correct or unset it"
            ) from None
    when = moment(built.isoformat() if built else loader.newest)
    packages = ", ".join(f"{package} {_version(package)}" for package in ("numpy", "pandas", "scipy", "matplotlib"))
    runs = " ".join(filter(None, (f"{len(loader.runs)} runs", of)))
    return Provenance(
        (
            ("Records", f"{runs}, fingerprint {loader.fingerprint}, newest {moment(loader.newest)}"),
            ("Training data", loader.once(_datasets)),
            ("Code", f"altgrad {altgrad.__version__}, fingerprint {code_fingerprint('page')}"),
            ("Packages", packages),
            ("Built", f"{when}, from {loader.built_from}"),
        )
    )


def given_epoch() -> str | None:
    """SOURCE_DATE_EPOCH where somebody gave one: the site's own (`altgrad.pages.mkdocs.begin`) is of no page."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return None if epoch == os.environ.get("ALTGRAD_EPOCH") else epoch


def code_key() -> str:
    """A digest of what every page depends on beside the records: code, packages, and the date of the build."""
    packages = [(name, version(name)) for name in ("numpy", "pandas", "pyarrow", "scipy", "matplotlib")]
    return digest(code_fingerprint("page"), packages, sys.version, given_epoch())


def _datasets(loader: ExperimentDataLoader) -> str:
    found = {
        (record.run["data"].get("name", "unnamed"), str(record.run["data"]["sha256"])[:12])
        for record in loader.records.values()
    }
    return "; ".join(f"{name} (sha256 {sha})" for name, sha in sorted(found)) or "none"


def finite_rows(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which all `columns` are numbers that a chart can draw: finite, and so is the axis they span."""
    drawn = frame[list(columns)].map(lambda value: _finite(value) and abs(value) < 1e300)
    return frame[drawn.all(axis=1)].reset_index(drop=True)


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


def differences_chart(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    rows: Sequence[str],
    axis: str,
    colours: Sequence[str] = (),
    margin: float = 0.0,
) -> ChartBlock:
    """Paired differences with their intervals, one below the other.

    Args:
        description: for those who cannot see it; every row's figures are added.
        data: a row each, with finite columns difference, low, high and n_pairs.
        rows: the name of each.
        axis: what the differences are, and their unit.
        colours: of each; else all have the first.
        margin: half the width of a grey band around zero.
    """
    labels = [f"{name} (n = {pairs})" for name, pairs in zip(rows, data["n_pairs"], strict=True)]

    def draw(axes: Axes) -> None:
        if margin:
            axes.axvspan(-margin, margin, color=MUTED, alpha=0.18, linewidth=0)
        axes.axvline(0, color=FOREGROUND, linewidth=1)
        for place, row in enumerate(data.itertuples()):
            colour = colours[place] if colours else PALETTE[0]
            axes.hlines([place], [row.low], [row.high], color=colour, linewidth=2)
            axes.plot([row.difference], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(data)), labels, color=FOREGROUND)
        axes.set_ylim(len(data) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(axis)

    said = "; ".join(
        f"{name}: {row.difference:+.3f} {interval(row.low, row.high)}, n = {row.n_pairs}"
        for name, row in zip(rows, data.itertuples(), strict=True)
    )
    left = 0.35 + 0.062 * max(map(len, labels))
    height = 0.28 * len(data) + 0.7
    margins = (left, 0.15, 0.5, 0.1)
    return ChartBlock(Chart(identity, title, f"{description} {said}.", data, draw, height=height, margins=margins))


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


@dataclass(frozen=True)
class Levels:
    """The six levels of a heat map, harmless first, with fixed edges: maps of one figure compare across pages.

    Attributes:
        edges: the five edges between levels; rising where a larger value is worse, falling where a smaller one is.
        legend: the six levels in words.
        text: how a value is written.
        missing: what a missing value means, in words.
    """

    edges: tuple[float, ...]
    legend: tuple[str, ...]
    text: Callable[[float], str]
    missing: str = "not recorded"

    @property
    def sign(self) -> int:
        """1 where larger is worse, -1 where smaller is."""
        return 1 if self.edges[-1] > self.edges[0] else -1

    def of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The level of each value, 0 to 5; -1 for NaN. An edge itself belongs to the worse level where larger is worse,
        and to the better one where smaller is."""
        side: Literal["left", "right"] = "right" if self.sign > 0 else "left"
        found = np.searchsorted(self.sign * np.array(self.edges), self.sign * values, side=side)
        return np.where(np.isnan(values), -1, found)


def heat_map(
    identity: str, title: str, data: pd.DataFrame, levels: Levels, panels: dict[str, str], note: str = ""
) -> Chart:
    """Layers by step in six levels, a panel for each operand side by side: where and when a figure is bad.

    One path a level with neighbouring cells merged, so that the drawing stays small. Missing values are drawn as a
    line; where a layer has no value of an operand at all (an embedding reads no activations), nothing is drawn.

    Args:
        identity: the chart's id.
        title: the chart's title.
        data: columns layer, operand, step, value, one row a cell; layers are drawn in the order in which they come.
        levels: what the colours mean.
        panels: titles of the operands, in the order of the panels; those without data are left out.
        note: what the description says first, such as whose runs these are.
    """
    recorded = set(data["operand"])
    shown = [name for name in panels if name in recorded]
    layers = list(dict.fromkeys(data["layer"]))
    steps = np.unique(data["step"].to_numpy())
    whole = np.full((len(layers), len(shown), len(steps)), np.nan)
    place = data["layer"].map(layers.index), data["operand"].map(shown.index), np.searchsorted(steps, data["step"])
    whole[place] = data["value"]
    cells, first_steps = _shared_columns(whole, steps, levels.sign)
    said = _heat_words(cells, layers, [panels[name] for name in shown], first_steps, levels)
    rows, left_out = _worst_rows(cells, levels.sign), ""
    if len(rows) < len(layers):
        left_out = f" Of {len(layers)} layers the {len(rows)} with the worst values are drawn."
    if len(first_steps) < len(steps):
        left_out += f" {len(steps)} looks share {len(first_steps)} columns; each shows the worst of its looks."
    drawn, names_ = levels.of(cells[rows]), [shorten(visible(layers[row]), 34) for row in rows]
    height, left = 0.17 * len(rows) + 0.95, 0.3 + 0.062 * max(len(name) for name in names_)
    width, up, top = 7.2, 0.17 * INCH, 0.3 * INCH

    def sketch(drawing: Sketch) -> None:
        wide = (drawing.width - (left + 0.15) * INCH) / (1.06 * len(shown) - 0.06)  # of one panel
        for row, name in enumerate(names_):
            drawing.text(left * INCH - 5, top + (row + 0.5) * up + 3, name, MUTED, size=8, anchor="end")
        boxes: list[list[tuple[float, float, float, float]]] = [[] for _ in range(len(HEAT) + 1)]
        base = top + len(rows) * up
        for number, operand in enumerate(shown):
            start = left * INCH + 1.06 * number * wide
            drawing.text(start, top - 6, panels[operand])
            drawing.text(start, base + 11, f"step {steps[0]}", MUTED, size=8)
            drawing.text(start + wide, base + 11, str(steps[-1]), MUTED, size=8, anchor="end")
            for row, line in enumerate(drawn[:, number]):
                for level, begin, end in _runs(line) if (line >= 0).any() else ():
                    half = (0.44 if level >= 0 else 0.03) * up
                    middle = top + (row + 0.5) * up
                    x0, x1 = (start + wide * place / len(line) for place in (begin, end))
                    boxes[level].append((x0, middle - half, x1, middle + half))
        place, below = 0.1 * INCH, base + 0.45 * INCH
        for level, word in enumerate([*levels.legend, *([levels.missing] if boxes[-1] else [])]):
            half = (0.055 if level < len(HEAT) else 0.01) * INCH
            boxes[level].append((place, below - half, place + 0.13 * INCH, below + half))
            drawing.text(place + 0.18 * INCH, below + 3, word, size=8)
            place += (0.36 + 0.06 * len(word)) * INCH
        for found, colour in zip(boxes, (*HEAT, MUTED), strict=True):
            drawing.rectangles(found, colour)

    return Chart(
        identity,
        title,
        f"{note} {said}{left_out}".strip(),
        _wide(whole, layers, shown, steps),
        sketch=sketch,
        width=width,
        height=height,
    )


def panel_axes(axes: Axes, titles: Sequence[str], ticks: Sequence[tuple[float, str]]) -> list[float]:
    """Make `axes` a row of panels, each one unit wide; returns where each begins.

    Args:
        axes: whose x axis is divided.
        titles: one a panel.
        ticks: places in a panel (0 to 1) and their labels; the outer ones are aligned inwards.
    """
    offsets = [1.06 * number for number in range(len(titles))]
    axes.set_xlim(0, offsets[-1] + 1)
    axes.xaxis.set_visible(False)
    place = axes.get_xaxis_transform()
    for offset, title in zip(offsets, titles, strict=True):
        axes.annotate(title, (offset, 1), xycoords=place, xytext=(0, 5), textcoords="offset points", color=FOREGROUND)
        for at, label in ticks:
            axes.annotate(
                f"step {label}" if at == 0 else label,
                (offset + at, 0),
                xycoords=place,
                xytext=(0, -5),
                textcoords="offset points",
                ha="left" if at == 0 else "right" if at == 1 else "center",
                va="top",
                fontsize=8,
                color=MUTED,
            )
    return offsets


def _wide(
    cells: NDArray[np.float64], layers: Sequence[str], operands: Sequence[str], steps: NDArray[np.int64]
) -> pd.DataFrame:
    """[layers, operands, steps] as a table to download: a row a layer and operand with values, a column a step."""
    rows = [(row, panel) for row, panel in np.argwhere(~np.isnan(cells).all(axis=2))]
    names_ = {
        "layer": [layers[row] for row, _ in rows],
        "operand": [operands[panel] for _, panel in rows],
    }
    values = cells[tuple(np.array(rows, dtype=int).reshape(-1, 2).T)]
    return pd.concat([pd.DataFrame(names_), pd.DataFrame(values, columns=[str(step) for step in steps])], axis=1)


def _shared_columns(
    cells: NDArray[np.float64], steps: NDArray[np.int64], sign: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """At most `HEAT_COLUMNS` columns, the worst of neighbours in one; and the first step of each."""
    if len(steps) <= HEAT_COLUMNS:
        return cells, steps
    starts = np.unique(np.linspace(0, len(steps), HEAT_COLUMNS, endpoint=False).astype(int))
    worst = np.fmax.reduceat(sign * cells, starts, axis=2)
    return sign * worst, steps[starts]


def _worst_rows(cells: NDArray[np.float64], sign: int) -> list[int]:
    """The rows to draw, in order: all, or the `HEAT_ROWS` with the worst values."""
    worst = np.where(np.isnan(cells), -np.inf, sign * cells).max(axis=(1, 2))
    return sorted(np.argsort(-worst, kind="stable")[:HEAT_ROWS].tolist())


def _runs(levels: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(level, start, stop) of each run of equal levels."""
    edges = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    return [(int(levels[start]), start, stop) for start, stop in itertools.pairwise(edges)]


def rectangles(boxes: Sequence[tuple[float, float, float, float]], colour: str) -> PathPatch:
    """All boxes (left, right, top, bottom) as one filled path, also outside of the axes."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)) for x0, x1, y0, y1 in boxes]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    path = Path(np.array(corners).reshape(-1, 2), codes)
    return PathPatch(path, facecolor=colour, edgecolor="none", linewidth=0, clip_on=False)


def _heat_words(
    cells: NDArray[np.float64],
    layers: Sequence[str],
    panels: Sequence[str],
    steps: NDArray[np.int64],
    levels: Levels,
) -> str:
    """A heat map in words: its extent, its worst layers with figures, and how many values are missing."""
    known = ~np.isnan(cells)
    missing = int((~known & known.any(axis=2, keepdims=True)).sum())
    worst = np.where(known, levels.sign * cells, -np.inf).max(axis=2)
    order = np.argsort(-worst, axis=None, kind="stable")[:3]
    parts = []
    for row, panel in zip(*np.unravel_index(order, worst.shape), strict=True):
        if np.isfinite(worst[row, panel]) or known[row, panel].any():
            column = int(np.argmax(np.where(known[row, panel], levels.sign * cells[row, panel], -np.inf)))
            where = f"{layers[row]} {panels[panel]}" if len(panels) > 1 else layers[row]
            parts.append(f"{where} {levels.text(cells[row, panel, column])} at step {steps[column]}")
    absent = f" {missing} values are missing ({levels.missing})." if missing else ""
    return (
        f"{len(layers)} layers at {len(steps)} looks from step {steps[0]} to {steps[-1]}, for {names(panels)}. "
        f"Worst: {'; '.join(parts)}.{absent}"
    )


def _finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
