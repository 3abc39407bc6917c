"""How far a finding reaches: what was run, until when, how large it was, and whether it is a pilot's."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.analysis import words
from altgrad.analysis.comparison import Comparison, FormatComparator
from altgrad.analysis.costs import extent
from altgrad.analysis.loader import ExperimentDataLoader, scale_label
from altgrad.pages import Block, Link, Md, Note, PageRef, Paragraph, md

HEADLINE_SEEDS = 16
"""Findings from fewer pairs than this are labelled as a pilot."""
CORRECTIONS = Link("Corrections and limits", PageRef("reports/corrections"))
ONE_SCALE = "one power-of-two scale a tensor, from its current largest value"


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
        f"{words.names(sorted(scales))}"
    )


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
    return Paragraph(
        f"Data: {len(runs)} recorded runs ({', '.join(parts)}), the newest of {words.moment(loader.newest)}."
    )


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
