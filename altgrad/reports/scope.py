"""How far a finding reaches: what was run, until when, how large it was, and whether it is a pilot's."""

from __future__ import annotations

from typing import Any

from altgrad.analysis import words
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.costs import extent
from altgrad.analysis.effects import OWN, outcomes
from altgrad.analysis.loader import ExperimentDataLoader, scale_label
from altgrad.config import LAYER_TYPES, OPERANDS
from altgrad.runs import default_sources
from altgrad.runs.stores import StorePath
from altgrad.site import Link, Md, PageRef, Paragraph, escape, join, md

HEADLINE_SEEDS = 16
"""Findings from fewer pairs than this are labelled as a pilot."""
CORRECTIONS = Link("Corrections and limits", PageRef("reports/corrections"))
ONE_SCALE = ", ".join(("one power-of-two scale per tensor", "set at each step from its largest value"))


def scope(loader: ExperimentDataLoader, arm: str) -> str:
    """How far findings from an arm reach, in a line: model, length, text, scales, what is quantized and how."""
    size, config = extent(loader, arm), loader.config(arm)
    model, each = f"{config.model.layers} layers of {config.model.dim}", ""
    if size.parameters:
        model, each = f"{size.parameters:,} parameters", f" ({size.characters / size.parameters:.1f} per parameter)"
    text = "licence texts" if size.text.startswith("licenses") else size.text
    rules = [config.scaling.rule(operand) for operand in config.quantize.operands or OPERANDS]
    scales = words.names(sorted({scale_label(rule) or ONE_SCALE for rule in rules}))
    quantize, master = config.quantize, config.optimizer.storage == "master"
    where = ", ".join(("every layer quantized", "head and embedding too"))
    parts = (
        scales,
        where if set(quantize.layers) == set(LAYER_TYPES) and not (quantize.patterns or quantize.wide) else "",
        "rounding simulated" if quantize.compute == "simulated" else "",
        "32-bit master weights" if master else "",
    )
    trained = f"trained for {size.steps:,} steps on {size.characters:,} characters{each} of {text}"
    return f"a GPT of {model}, {trained}; {'; '.join(filter(None, parts))}"


def scope_line(loader: ExperimentDataLoader, arm: str, but: str = ", unless another is named") -> Md:
    """The line that belongs beside a headline that rests on an arm; `but` says what else it may rest on."""
    return Md(f"Scope: {escape(scope(loader, arm))}{but}.")


def data_line(loader: ExperimentDataLoader, scoped: bool = True) -> Paragraph:
    """The line under a report's title: how many runs, until when, their scope, and where corrections are."""
    headline = loader.memo(FormatComparator).headline
    parts = [recorded_line(loader).text]
    if scoped and headline:
        parts.append(f"Unless a section says otherwise: {scope(loader, headline.first)}.")
    parts.append(md("{corrections}: what was wrong, and what was not run.", corrections=CORRECTIONS))
    return Paragraph(join(" ", parts))


def only_foreign(loader: ExperimentDataLoader) -> bool:
    """Whether there are runs, and all of other training loops."""
    return len(loader.runs) > 0 and bool(loader.runs["foreign"].all())


def has_campaign() -> bool:
    """Whether the site is AltGrad's own, whose commands record the runs that are missing."""
    folders = [source for source in default_sources() if not isinstance(source, StorePath)]
    return any((source.parent / "campaign.py").is_file() for source in folders)


def site_values(loader: ExperimentDataLoader) -> dict[str, Any]:
    """What a document says of the metric by which a site's runs are compared."""
    measure = loader.memo(outcomes).measure
    found = measure or OWN
    values = {"metric": found.title, "unit": f", {found.unit}" if found.unit else "", "better": found.better}
    return values | {"digits": found.digits, "measured": measure is not None, "foreign": only_foreign(loader)}


def recorded_line(loader: ExperimentDataLoader) -> Paragraph:
    """How many runs there are, until when."""
    runs = loader.runs
    if runs.empty:
        return Paragraph("Data: no recorded runs.")
    count = f"{len(runs)} recorded {'run' if len(runs) == 1 else 'runs'}"
    return Paragraph(f"Data: {count} ({words.endings(runs['ending'])}), the newest of {words.moment(loader.newest)}.")


def pilot(loader: ExperimentDataLoader, arm: str, pairs: int) -> dict[str, int] | None:
    """How small what is behind findings from fewer than `HEADLINE_SEEDS` pairs is; None from there on."""
    config = loader.config(arm)
    size = {"pairs": pairs, "steps": config.max_steps, "layers": config.model.layers, "dim": config.model.dim}
    return size if pairs < HEADLINE_SEEDS else None
