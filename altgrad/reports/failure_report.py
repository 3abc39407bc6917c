"""What broke in one run, where and when: the page that lies beside a record that ended badly, and on request of any."""

from __future__ import annotations

import math

from altgrad.analysis.failures import DIAGNOSTICS, diagnose, warnings_of
from altgrad.analysis.loader import OPERAND_NAMES
from altgrad.pages import (
    Block,
    Bullets,
    CodeBlock,
    Column,
    Heading,
    Page,
    PageRef,
    Paragraph,
    Table,
    slug,
)
from altgrad.pages.render import Dialect, render
from altgrad.reports.arms import command
from altgrad.reports.common import right
from altgrad.runs import Failure, RunRecord

SHOWN_WARNINGS = 20
"""How many warnings the page lists; the rest are counted."""


def failure_report(record: RunRecord, failure: Failure | None = None) -> str:
    """The page as one markdown document; no files lie beside it.

    Args:
        record: of any status.
        failure: why it ended badly, where that is known already (default: `altgrad.analysis.failures.diagnose`).
    """

    def nowhere(reference: PageRef) -> str:
        raise ValueError(f"the report of a failure stands alone and cannot link to {reference.path}")

    return render(failure_page(record, failure), Dialect(site=False, address=nowhere))


def failure_page(record: RunRecord, failure: Failure | None = None) -> Page:
    """What broke, where and when, what was measured last, what to try, and the command that runs it again.

    A run that did not end badly has its warnings, or a line that says that there is nothing to explain.
    """
    failure = failure or diagnose(record)
    blocks = [Paragraph(_healthy(record))] if failure is None else _explanation(record, failure)
    blocks += _warnings(record)
    if failure is not None:
        blocks += [*_losses(failure), *_diagnostics(failure)]
    blocks += [Heading("Run it again"), CodeBlock(command(record.config), "bash")]
    return Page(f"failures/{slug(record.id)}", _title(record, failure), tuple(blocks))


def _title(record: RunRecord, failure: Failure | None) -> str:
    if failure is None:
        return f"{record.id}: {record.status}"
    where = f" in {failure.tensor}" if failure.tensor else ""
    phase = f", {failure.phase}" if failure.phase else ""
    what, named, _ = failure.cause.partition(": ")
    shown = [*([what] if named else []), *(kind for kind in failure.kinds if kind != "unknown")]
    return f"{record.id}: {', '.join([record.status, *shown])} from step {failure.step}{where}{phase}"


def _healthy(record: RunRecord) -> str:
    if record.status == "running":
        return "The run is still being written."
    return "The run finished and left warnings." if warnings_of(record) else "The run finished: nothing to explain."


def _explanation(record: RunRecord, failure: Failure) -> list[Block]:
    last = int(record.history["step"].max()) if len(record.history) else 0
    rows = (
        ("What", ", ".join(failure.kinds)),
        ("How it ended", failure.message or None),
        ("Cause", failure.cause or None),
        ("First bad step", failure.step),
        ("Tensor", failure.tensor),
        ("Phase", failure.phase),
        ("Last recorded step", last),
        ("Status", record.status),
    )
    blocks: list[Block] = [Paragraph(_sentence(failure)), Table(("Field", "Value"), rows)]
    if failure.advice:
        blocks += [
            Heading("What to try"),
            Paragraph("Advice that follows from what was found; whether it helps, only a run can tell."),
            Bullets(failure.advice),
        ]
    return blocks


def _sentence(failure: Failure) -> str:
    """The finding in one sentence."""
    if failure.tensor is None:
        return f"{failure.message}. No tensor can be named."
    return f"Step {failure.step}, {failure.phase}, {failure.tensor}: {failure.cause or failure.message}."


def _warnings(record: RunRecord) -> list[Block]:
    found = warnings_of(record)
    if not found:
        return []
    count = record.run["summary"].get("warnings")
    total = max(len(found), count if isinstance(count, int) else 0)
    rows = tuple(
        (step, alarm.what, alarm.tensor, alarm.phase, None if math.isnan(alarm.value) else alarm.value, alarm.message)
        for step, alarm in found[:SHOWN_WARNINGS]
    )
    left_out = f", the first {len(rows)} of {total}" if total > len(rows) else ""
    columns: tuple[Column | str, ...] = (*right("Step"), "What", "Tensor", "Phase", *right("Value"), "Message")
    return [Heading("Warnings"), Table(columns, rows, f"In order of steps{left_out}")]


def _losses(failure: Failure) -> list[Block]:
    if not failure.losses:
        return []
    rows = tuple((step, "not finite" if loss is None else f"{loss:.4f}") for step, loss in failure.losses)
    caption = "Training loss in nats per character, thinned but for the last steps"
    return [Heading("Losses"), Table(right("Step", "Loss"), rows, caption)]


def _diagnostics(failure: Failure) -> list[Block]:
    if not failure.diagnostics:
        return []
    names = [name for name in DIAGNOSTICS if any(name in row for row in failure.diagnostics)]
    rows = tuple(
        (
            str(row.get("layer")),
            OPERAND_NAMES.get(str(row.get("operand")), str(row.get("operand"))),
            str(row.get("step")),
            *(_figure(row, name) for name in names),
        )
        for row in failure.diagnostics
    )
    columns: tuple[Column | str, ...] = ("Layer", "Operand", *right("Step", *names))
    caption = "The last recorded figures; the Method page says what each is. Not finite: NaN or infinity"
    return [Heading("Last diagnostics"), Table(columns, rows, caption)]


def _figure(row: dict[str, object], name: str) -> float | str | None:
    if name not in row:
        return None
    value = row[name]
    if value is None:
        return "not finite"
    return value if isinstance(value, float) else str(value)
