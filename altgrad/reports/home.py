"""The home page: the question, the answer so far, one chart, the ways on."""

from __future__ import annotations

from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.pages import Block, Bullets, ChartBlock, CodeBlock, Heading, Link, Md, Page, PageRef, Paragraph, md
from altgrad.reports.format_comparison import by_layer_type, changes_if, gap_chart, headline_answer
from altgrad.reports.provenance import left_out, provenance
from altgrad.reports.scope import pilot

WAYS_ON = (
    ("Format comparison", "reports/format_comparison", "the loss gap of every format, with its interval"),
    ("Failure modes", "reports/failure_modes", "where each format fails: forward, backward or optimizer"),
    ("Manifold comparison", "reports/manifold_comparison", "ManifoldAdamW against AdamW on the same problems"),
    ("Corrections and limits", "reports/corrections", "what these pages said and is not so, and what was not run"),
    ("Runs", "runs/index", "every arm with its seeds, curves, config and the command that runs it again"),
)


def home_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    comparator = loader.memo(FormatComparator)
    comparison = comparator.headline
    found: list[Block] = [
        Paragraph(Md("**Sweet-spot format: pending.** No runs are recorded yet.")),
        CodeBlock("make demo", "bash"),
    ]
    if comparison is not None:
        found = [*map(Paragraph, headline_answer(loader, comparison))]
        if changes := changes_if(loader):
            found += [Paragraph(Md("**This changes if**")), Bullets(changes)]
        found += [
            *by_layer_type(comparator),
            *pilot(loader, [comparison.baseline], int(comparison.table["n_pairs"].max())),
            ChartBlock(gap_chart(comparison)),
        ]
    question = (
        "**Which 8-bit number format is best for training, for which layer type, where does each format fail, and does "
        "an optimizer that knows the format's geometry help?** AltGrad trains small transformers in simulated "
        "low-precision formats and answers from its recorded runs. Every figure on this site comes from one."
    )
    ways = tuple(md("{link}: {text}", link=Link(title, PageRef(path)), text=text) for title, path, text in WAYS_ON)
    return Page(
        "index",
        "AltGrad",
        (
            Paragraph(Md(question)),
            *left_out(loader),
            Heading("The answer so far"),
            *found,
            Heading("Read on"),
            Bullets(ways),
        ),
        description="Which 8-bit number format trains best, where each fails, and whether a format-aware optimizer "
        "helps.",
        provenance=provenance(loader),
    )
