"""The section of a report on comparisons whose runs may be of different machines."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.machines import crossing
from altgrad.pages import Block, Details, Heading, Paragraph
from altgrad.reports import columns as col

REPEATED = (
    "The processor is not in the records. Repeated on 2026-11-29, runs of 2026-11-25 came out bit for bit and runs of "
    "2026-11-24 did not: E4M3 with seed 10 differs by .0022 nats, FP32 by at most .00005. That is noise of a single "
    "run; no bias was seen."
)
"""What an audit found, and no record can show."""


def machine_blocks(loader: ExperimentDataLoader, comparisons: Iterable[tuple[str, str, str]]) -> list[Block]:
    """Which comparisons of a report cross days of recording; nothing where none does.

    Args:
        loader: the records.
        comparisons: what a comparison is called, its arm, and the arm that is subtracted.
    """
    table = crossing(loader, [each for each in comparisons if each[1] and each[2]])
    across = table[table["n_crossing"] > 0]
    if across.empty:
        return []
    columns = (
        col.arm("Comparison", "contrast"),
        col.of("Other arm", lambda row: col.arm_link(row["against"], "against")),
        col.share("Pairs of two days", "n_crossing", "n_pairs"),
        col.text("Recorded", "days"),
    )
    caption = "Comparisons whose pairs were recorded on two days"
    listed = col.table(across, columns, caption, "machines", data=table)
    text = (
        f"{len(across)} of the {len(table)} comparisons of this page pair runs that were recorded on different days, "
        f"maybe on different machines. {REPEATED}"
    )
    return [
        Heading("Which comparisons cross machines"),
        Paragraph(text),
        Details(f"The {len(across)} comparisons", (listed,)),
    ]
