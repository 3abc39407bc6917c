"""Made-up pages with every block and hostile text: a site that the tests build in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes

from altgrad.site import (
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Details,
    Heading,
    Note,
    Page,
    PageRef,
    Paragraph,
    Provenance,
    Table,
    code,
    link,
    md,
)
from altgrad.site.build import build

REPORTS = ("format_comparison", "failure_modes", "manifold_comparison", "literature")
HOSTILE = (
    "<script>window.pwned = 1</script> <img src=x onerror=window.pwned=1> [here](javascript:alert(1)) | a * b _c_ `d` "
    "{: onclick=window.pwned=1 } {{ config }} &lt; ![x](https://evil.example/x.png) \u202egnp.exe\u202c"
)
DATA = pd.DataFrame({"format": ["E5M2", "E4M3", HOSTILE], "gap": [0.5, -0.25, 0.125]})


def draw(axes: Axes) -> None:
    """A few bars with a hostile label."""
    axes.barh(range(3), DATA["gap"], color=PALETTE[0], height=0.6)
    axes.set_yticks(range(3), ["E5M2", "E4M3", HOSTILE[:24]])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("made-up gap (nats)")


def pages() -> Iterator[Page]:
    """Home, three reports, the runs table and one arm."""
    arm = PageRef("runs/arm", "seed-1")
    chart = Chart("gap", f"A chart {HOSTILE}", f"Three bars. {HOSTILE}", DATA, draw)
    columns = (Column("Format"), Column("Gap", "right"), Column("Note", sortable=False), "Arm")
    rows = (
        ("E5M2", 0.5, HOSTILE, link("arm", arm)),
        ("E4M3", -0.25, md("**{a}** {b}", a=HOSTILE, b=code(HOSTILE)), link(HOSTILE, "https://example.org/a b(c)")),
        ("E10M5", None, "–", link("plain", "javascript:alert(1)")),
    )
    table = Table(columns, rows, caption="Made-up gaps", data=DATA, id="gaps")
    body: tuple[Block, ...] = (
        Paragraph(md("**{text}** and {arm}.", text="A bold answer", arm=link("an arm", arm))),
        ChartBlock(chart),
        Heading("Gaps"),
        table,
        Note("warning", HOSTILE, (Paragraph(HOSTILE), Bullets((HOSTILE, code(HOSTILE))))),
        Note("info", "Pending", (CodeBlock("make demo\n```\n" + HOSTILE, "bash"),)),
        Details(
            "Folded",
            (ChartBlock(Chart("folded", "Folded", "Bars.", DATA, draw)), Table(("a", "b"), (("1", 2), ("3", 4)))),
        ),
        Heading(HOSTILE, 3, "hostile"),
    )
    foot = Provenance((("Data", "made up"), ("Run", HOSTILE)))
    yield Page("index", "AltGrad", body, description=HOSTILE, provenance=foot)
    for name in REPORTS:
        yield Page(f"reports/{name}", name.replace("_", " ").capitalize(), body, provenance=foot)
    for path in (
        "reports/head",
        "reports/scaling",
        "reports/preregistered",
        "reports/corrections",
        "formats/index",
    ):  # hand-written pages lead to them
        yield Page(path, path, (table,), provenance=foot)
    yield Page("runs/index", "Runs", (table,), provenance=foot)
    yield Page("compare/index", "Compare", (table,), provenance=foot)
    yield Page("runs/arm", HOSTILE, (Heading("Seed 1", anchor="seed-1"), Paragraph("One run.")), search=False)


build(pages, "index", *(f"reports/{name}" for name in REPORTS))
