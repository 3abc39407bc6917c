"""What broke in one run, where and when: the page that lies beside a record that ended badly, and on request of any."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.config import OPERAND_NAMES, command
from altgrad.runs.diagnosis import DIAGNOSTICS, advice_on_warnings, diagnose, last_symptoms, warnings_of
from altgrad.runs.schema import Failure
from altgrad.runs.store import RunRecord
from altgrad.text import cell, escape, fenced

SHOWN_WARNINGS = 20
"""How many warnings the report lists; the rest are counted."""
Row = Sequence[float | str | None]


def failure_report(record: RunRecord, failure: Failure | None = None) -> str:
    """What broke, where and when, what was measured last, what to try, and the command that runs it again: Markdown.

    A run that did not end badly has its warnings, or a line that says that there is nothing to explain.

    Args:
        record: of any status.
        failure: why it ended badly, where that is known already (default: `altgrad.runs.diagnosis.diagnose`).
    """
    failure = failure or diagnose(record)
    parts = [f"# {escape(_title(record, failure))}"]
    if failure is not None:
        parts += [*_explanation(record, failure), *_warnings(record), *_losses(record, failure), *_diagnostics(failure)]
    elif record.status == "running":
        parts += ["The run is still being written.", *_warnings(record)]
    elif warnings := _warnings(record):
        parts += ["The run finished and left warnings.", *warnings, *_advice(advice_on_warnings(record))]
    elif advice := advice_on_warnings(record):
        parts += ["The run finished without a warning.", *_symptoms(record), *_advice(advice)]
    else:
        parts.append("The run finished: nothing to explain.")
    if record.config.foreign is None:  # no command of ours runs another loop
        parts += ["## Run it again", fenced(command(record.config), "bash")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(record: RunRecord, failure: Failure | None) -> str:
    if failure is None:
        return f"{record.id}: {record.status}"
    where = f" in {failure.tensor}" if failure.tensor else ""
    phase = f", {failure.phase}" if failure.phase else ""
    what, named, _ = failure.cause.partition(": ")
    shown = [*([what] if named else []), *(kind for kind in failure.kinds if kind != "unknown")]
    since = f"from step {failure.step}" if len(record.history) else "before a step was recorded"
    return f"{record.id}: {', '.join([record.status, *shown])} {since}{where}{phase}"


def _explanation(record: RunRecord, failure: Failure) -> list[str]:
    rows = (
        ("What", ", ".join(failure.kinds)),
        ("How it ended", failure.message or None),
        ("Cause", failure.cause or None),
        ("First bad step", failure.step if len(record.history) else None),
        ("Tensor", failure.tensor),
        ("Phase", failure.phase),
        ("Last recorded step", int(record.history["step"].max()) if len(record.history) else "none"),
        ("Status", record.status),
    )
    if failure.tensor is None:
        sentence = f"{failure.message}. No tensor can be named."
    else:
        sentence = f"Step {failure.step}, {failure.phase}, {failure.tensor}: {failure.cause or failure.message}."
    parts = [escape(sentence), _table(("Field", "Value"), rows)]
    return parts + _advice(failure.advice)


def _advice(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    caution = "Advice that follows from what was found; whether it helps, only a run can tell."
    return ["## What to try", caution, "\n".join(f"- {escape(line)}" for line in lines)]


def _warnings(record: RunRecord) -> list[str]:
    found = warnings_of(record)
    count = record.run["summary"].get("warnings")
    total = max(len(found), count if isinstance(count, int) else 0)
    rows = [(step, *alarm) for step, alarm in found[:SHOWN_WARNINGS]]
    caption = "In order of steps" + (f", the first {len(rows)} of {total}" if total > len(rows) else "")
    return _section("Warnings", caption, ("Step", "What", "Tensor", "Phase", "Value", "Message"), rows, "Step", "Value")


def _symptoms(record: RunRecord) -> list[str]:
    rows: list[Row] = [[*alarm] for alarm in last_symptoms(record)]
    more = f", the first {SHOWN_WARNINGS} of {len(rows)}" if len(rows) > SHOWN_WARNINGS else ""
    columns = ("What", "Tensor", "Phase", "Value", "Message")
    return _section("What was found", f"At the last look at the layers{more}", columns, rows[:SHOWN_WARNINGS], "Value")


def _losses(record: RunRecord, failure: Failure) -> list[str]:
    rows = [(step, "not finite" if loss is None else f"{loss:.4f}") for step, loss in failure.losses]
    unit = " in nats per character" if record.config.foreign is None else ""
    caption = f"Training loss{unit}, thinned but for the last steps"
    return _section("Losses", caption, ("Step", "Loss"), rows, "Step", "Loss")


def _diagnostics(failure: Failure) -> list[str]:
    names = [name for name in DIAGNOSTICS if any(name in row for row in failure.diagnostics)]
    rows = []
    for row in failure.diagnostics:
        operand = str(row.get("operand"))
        figures = {name: "not finite" if value is None else value for name, value in row.items()}
        place = (str(row.get("layer")), OPERAND_NAMES.get(operand, operand), str(row.get("step")))
        rows.append((*place, *map(figures.get, names)))
    caption = "The last recorded figures; the Method page says what each is. Not finite: NaN or infinity"
    return _section("Last diagnostics", caption, ("Layer", "Operand", "Step", *names), rows, "Step", *names)


def _section(heading: str, caption: str, head: Sequence[str], rows: Sequence[Row], *right: str) -> list[str]:
    """A table below its heading; nothing where it has no rows."""
    return [f"## {heading}", f"**{caption}**", _table(head, rows, *right)] if rows else []


def _table(head: Sequence[str], rows: Sequence[Row], *right: str) -> str:
    lines: list[Sequence[str]] = [
        [cell(title) for title in head],
        ["---:" if title in right else "---" for title in head],
        *([cell(value) for value in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
