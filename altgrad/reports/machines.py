"""The section of a report on comparisons whose runs may be of different machines: docs/sections/machines.md."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.machines import crossing
from altgrad.reports import columns as col
from altgrad.reports.document import section
from altgrad.runs.processor import NOT_STATED
from altgrad.site import Block, Details


def machine_blocks(loader: ExperimentDataLoader, comparisons: Iterable[tuple[str, str, str]]) -> tuple[Block, ...]:
    """Which comparisons of a report cross days of recording, folded away; nothing where none does.

    Args:
        loader: the records.
        comparisons: what a comparison is called, its arm, and the arm that is subtracted.
    """
    table = crossing(loader, [each for each in comparisons if each[1] and each[2]])
    across = table[table["n_crossing"] > 0]
    if across.empty:
        return ()
    stated = bool((across["processors"] != NOT_STATED).any())
    columns = (
        col.contrast("Comparison"),
        col.of("Other arm", lambda row: col.arm_link(row["against"], "against")),
        col.share("Pairs of two days" + (" or machines" if stated else ""), "n_crossing", "n_pairs"),
        col.text("Recorded", "days"),
        *((col.text("Processors", "processors"), col.text("Canary", "canary")) if stated else ()),
    )
    caption = "Comparisons whose pairs were recorded on two days"
    listed = col.table(across, columns, caption, "machines", data=table)
    values = {"across": len(across), "total": len(table), "stated": stated}
    heading, *inside = section("machines", values, {"comparisons": [listed]})
    return (Details(heading.text, tuple(inside)),)
