"""Report ANAL-02: where each format fails - forward, backward or optimizer - and what mends it."""

from __future__ import annotations

import itertools
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import (
    ALL_OPERANDS,
    Comparison,
    FormatComparator,
    format_order,
    is_combination,
    own_rates,
)
from altgrad.analysis.contrasts import shown
from altgrad.analysis.failures import (
    EXPLORATORY,
    LIMITS,
    PRECISION_LOST,
    FailureAnalyzer,
    headline,
    named,
    remedies_missing,
)
from altgrad.analysis.hypotheses import E0M7, E7M0, Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.config import OPERAND_NAMES, command
from altgrad.formats import SPLITS_8BIT
from altgrad.pages import (
    BACKGROUND,
    FOREGROUND,
    MUTED,
    PALETTE,
    Block,
    Bullets,
    Cell,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Page,
    PageRef,
    Paragraph,
    Table,
    code,
    escape,
    join,
    md,
)
from altgrad.reports import charts, health
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.pending import hypothesis_pending, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line, pilot, scope_line
from altgrad.reports.verdicts import hypothesis, tests_table, verdict_table
from altgrad.runs.diagnosis import diagnose
from altgrad.studies import EXTREMES, SEEDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/failure_modes"
SPLITS = tuple(fmt.label for fmt in SPLITS_8BIT)
STATISTIC_OF_CAUSE = {"overflow": "overflow", "underflow": "underflow", "precision": "sqnr_db"}
"""The figure of the layers that shows a cause."""
LINEAR_TO = 0.05
"""The operand chart's scale is linear up to here."""
GAP_TICKS = (-0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
LIMITS_OF_RANGE = ("overflow", "underflow")
ENDINGS_SHOWN = 8
"""Runs that ended badly whose last losses and advice are shown."""
ENDING_STEPS = 30
"""How many of the losses that a failure holds are shown."""
LISTED = 60
"""Failures whose commands are listed at most."""


def failure_modes_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where there is nothing to explain."""
    analyzer, comparison = loader.once(FailureAnalyzer), headline(loader.once(FormatComparator))
    verdicts = verdicts_of(loader, "H17", "H18")
    blocks: list[Block] = [
        Paragraph(
            Md("*Where does each format fail: in the forward pass, the backward pass or the optimizer?* (ANAL-02)")
        ),
        data_line(loader),
        *left_out(loader),
        Heading("Executive Summary"),
    ]
    if comparison is None:
        blocks.append(Paragraph(md("**Failure Mode: pending.** {runs}", runs=_runs_sentence(analyzer))))
    else:
        blocks += [
            Paragraph(_answer(loader, analyzer, comparison)),
            *pilot(loader, [comparison.baseline], int(comparison.table["n_pairs"].max())),
            *_operand_chart(analyzer, comparison),
            Heading("Failure Mode by arm"),
            *_failed_arms(analyzer),
            *_how_classified(),
            Heading("Forward, backward and optimizer"),
            *_operand_table(analyzer, comparison),
            *_phase_tables(loader, analyzer, comparison),
            *_sqnr_block(analyzer, comparison),
            *_layers(loader, analyzer),
            *_signatures(loader, comparison),
        ]
    blocks += [
        Heading("E7M0: hypothesis and observation"),
        *_e7m0(loader, analyzer, comparison),
        Heading("E0M7: hypothesis and observation"),
        *_e0m7(loader, analyzer, comparison),
        Heading("Remedies, tested"),
        *_remedies(loader, analyzer, verdicts),
        *_failed_runs(loader, analyzer),
        *_warnings(loader, analyzer),
        *_reproduce(loader, analyzer),
    ]
    if comparison is None:
        lacking = (
            "No recorded format can be compared with an FP32 run of the same setting."
            if len(loader.runs)
            else "No runs are recorded."
        )
        blocks += pending(lacking, ["formats", "remedies"])
    else:
        blocks += [Heading("What would change this answer"), Bullets(_what_would_change(analyzer))]
        blocks += machine_blocks(loader, _comparisons(loader, analyzer, verdicts))
    used = analyzer.remedies[["arm", "against"]].to_numpy().ravel()
    arms = [] if comparison is None else [comparison.baseline, *comparison.table["arm"]]
    arms += [*analyzer.classified["arm"], *analyzer.failures["arm"], *(arm for arm in used if isinstance(arm, str))]
    return Page(
        PATH,
        "Failure modes",
        (*blocks, *traceability(loader, arms)),
        description="Where each 8-bit format fails in training, by operand and phase, and which tested remedy helps.",
        provenance=provenance(loader, built),
    )


def _comparisons(
    loader: ExperimentDataLoader, analyzer: FailureAnalyzer, verdicts: tuple[Verdict, ...]
) -> list[tuple[str, str, str]]:
    """Every pair of arms that the page compares: gaps of arms that fail, remedies, tests."""
    failed = _leading(analyzer.classified).dropna(subset=["baseline"]).to_dict("records")
    remedies = analyzer.remedies.to_dict("records")
    tests = [row for verdict in verdicts for row in verdict.tests.to_dict("records")]
    return [
        *((f"{_in_words(loader, row)} − FP32", row["arm"], row["baseline"]) for row in failed),
        *((f"{row['format']}: {row['remedy']}", row["arm"], row["against"]) for row in remedies),
        *((row["contrast"], row["arm"], row["against"]) for row in tests),
    ]


def _runs_sentence(analyzer: FailureAnalyzer) -> str:
    count = len(analyzer.failures)
    return f"{count} recorded runs did not finish; they are listed below." if count else "No recorded run ended badly."


def _leading(frame: pd.DataFrame) -> pd.DataFrame:
    """The campaign's arms, where any of them can be judged; else all."""
    own = frame[frame["campaign"].astype(bool)]
    return own if (own["n_pairs"] >= 2).any() else frame


SCALE_1 = "scale 1"
"""In the scope of an arm whose tensors have no scale of their own."""
DRAWN = "; gradients rounded stochastically"
"""In the scope of an arm that differs from another by this alone."""


def _answer(loader: ExperimentDataLoader, analyzer: FailureAnalyzer, comparison: Comparison) -> Md:
    """Which splits fail as the page compares them, and by what; the other scales; what helps; the scope of it all."""
    judged = _leading(analyzer.gaps[(analyzer.gaps["n_pairs"] >= 2) | analyzer.gaps["failed"].astype(bool)])
    failed = analyzer.classified[analyzer.classified["arm"].isin(judged["arm"])]
    compared = comparison.table[comparison.table["format"].isin(SPLITS) & (comparison.table["n_pairs"] >= 2)]
    finished = failed[failed["n_finished"] == failed["n_runs"]]
    splits = finished[finished["arm"].isin(compared["arm"])]
    said = [*_splits_that_fail(splits, len(compared)), *_broken(loader, failed)]
    scaled = finished[~finished["scope"].str.contains(SCALE_1, regex=False)].dropna(subset=["gap"])
    if len(scaled) and scaled["arm"].iloc[0] not in set(splits["arm"]):
        worst = scaled.iloc[0].to_dict()
        text = "With scales that follow the tensors {name} is worst: {gap}."
        said.append(md(text, name=_in_words(loader, worst), gap=_gap(worst)))
    helped = [text for text in (_helped(analyzer, name) for name in EXTREMES) if text]
    return md(
        "**Failure Mode: {said}** A format fails where it ends more than {limit} nats above FP32, or a run of it does "
        "not finish: so it was written down beforehand. {runs}. {helped} {scope}",
        said=join(" ", said) if said else Md("none of the splits fails as they are compared."),
        limit=FAILURE_GAP,
        runs=_outright(loader, analyzer),
        helped=join(" ", helped),
        scope=scope_line(loader, comparison.baseline),
    )


LACKS = {"precision": ("lacks", "lack", "precision"), "underflow": ("loses", "lose", "small values")}
"""A class of failure as a verb, of one format and of several, and its object."""


def _splits_that_fail(failed: pd.DataFrame, total: int) -> list[Md]:
    """The splits that fail as they are compared, by what they lack."""
    if failed.empty:
        return []
    parts: dict[tuple[str, str, str], list[Md]] = {}
    for row in failed.to_dict("records"):
        cause = row["causes"].split(", ")[0]
        one, several, what = LACKS.get(cause, ("fails", "fail", f"by {cause}"))
        what = "small gradients" if (cause, row["operand"]) == ("underflow", "grad_output") else what
        parts.setdefault((one, several, what), []).append(md("{name} ({gap})", name=row["format"], gap=_gap(row)))
    said = [
        md("{those} {verb} {what}", those=join(" and ", those), verb=several if len(those) > 1 else one, what=what)
        for (one, several, what), those in parts.items()
    ]
    return [md("{n} of {total} 8-bit splits fail: {said}.", n=len(failed), total=total, said=join(", ", said))]


ENDS = {"divergence": "diverges", "nan_loss": "ends in NaN"}
"""What a run that failed does, by the class of its failure."""


def _broken(loader: ExperimentDataLoader, failed: pd.DataFrame) -> list[Md]:
    """The arms with runs that did not finish, in a sentence each."""
    said = []
    for row in failed[failed["n_finished"] < failed["n_runs"]].to_dict("records"):
        bare = SCALE_1 in row["scope"]
        name = f"Without any scale {row['format']}" if bare else _in_words(loader, row)
        ends = next((ENDS[kind] for kind in row["causes"].split(", ") if kind in ENDS), "does not finish")
        badly, n = int(row["n_runs"] - row["n_finished"]), int(row["n_runs"])
        runs = f"all {n} runs" if badly == n > 1 else f"{badly} of {n} runs"
        said.append(md("{name} {ends} in {runs}.", name=name, ends=ends, runs=runs))
    return said


def _in_words(loader: ExperimentDataLoader, row: dict[Any, Any]) -> str:
    """An arm's format with what is not the default of it."""
    return ", ".join([named(loader.config(row["arm"])), *([row["rule"]] if row["rule"] != "AdamW" else [])])


def _gap(row: dict[Any, Any]) -> str:
    """A gap with its interval and number of seeds."""
    low, high = (words.number(row[end]) for end in ("low", "high"))
    return f"{words.number(row['gap'], sign=True)} nats, 95% interval {low} to {high}, n = {int(row['n_pairs'])}"


def _outright(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> str:
    """How many runs failed, and of what."""
    failed = analyzer.failures[analyzer.failures["status"] == "failed"]
    if failed.empty:
        return "No run failed outright"
    counts = failed["arm"].map(lambda arm: named(loader.config(arm))).value_counts()
    whose = words.names([f"{number} of {name}" for name, number in counts.items()])
    return f"{len(failed)} recorded run{'s' if len(failed) != 1 else ''} failed outright ({whose})"


def _helped(analyzer: FailureAnalyzer, name: str) -> Md | None:
    """What helped an extreme format most, of the remedies that are recorded in full, and what may do as well."""
    rows = analyzer.remedies
    rows = rows[(rows["format"] == name) & (rows["missing"] == "") & (rows["n_ended_badly"] == 0)]
    if rows.empty:
        return None
    helped = rows[[shown(row, -1) for row in rows.to_dict("records")]].sort_values("difference")
    if helped.empty:
        return md("None of the {count} remedies tested is shown to lower {name}'s loss.", count=len(rows), name=name)
    row, alike = helped.iloc[0], analyzer.alike(helped["arm"])
    others = [other["remedy"] for other in helped.iloc[1:].to_dict("records") if other["arm"] in alike]
    return md(
        "What lowers {name}'s loss most is {remedy}: its gap falls from {before} to {gap} nats (95% interval {low} to "
        "{high}, n = {n}){others}.",
        others=f"; {words.names(others)} may do as well" if others else "",
        name=name,
        remedy=row["remedy"],
        before=words.number(row["gap_before"]),
        gap=words.number(row["gap"]),
        low=words.number(row["gap_low"]),
        high=words.number(row["gap_high"]),
        n=int(row["n_pairs"]),
    )


def _failed_arms(analyzer: FailureAnalyzer) -> list[Block]:
    classified = analyzer.classified
    if classified.empty:
        return [Paragraph("No arm fails by the preregistered definition.")]
    leading = _leading(classified)
    late = leading[leading["study"].isin(EXPLORATORY)]
    rest = classified[~classified["arm"].isin(leading["arm"])]
    unfinished = leading["n_finished"] < leading["n_runs"]
    ordered = pd.concat([leading[unfinished], leading[~unfinished]])
    blocks: list[Block] = [_arms_table(ordered, "failure-modes", "Failure Mode of each arm that fails, worst first")]
    unknown = leading[leading["causes"] == "unknown"]
    if len(unknown):
        items = tuple(
            md("{arm}: {evidence}.", arm=col.arm_link(row["arm"]), evidence=row["evidence"])
            for row in unknown.to_dict("records")
        )
        blocks += [Paragraph("Arms whose cause is unknown:"), Bullets(items)]
    else:
        blocks.append(Paragraph("Every arm that fails has at least one class: none is unknown."))
    if len(late):
        text = f"{len(late)} of them are of study {words.names(EXPLORATORY)}, which was added after another had been "
        blocks.append(Paragraph(text + "looked at: they are exploratory."))
    if remarks := _weak_classes(analyzer, leading):
        blocks.append(Bullets(remarks))
    few = int(((_leading(analyzer.gaps)["n_pairs"] < 2) & ~_leading(analyzer.gaps)["failed"].astype(bool)).sum())
    if few:
        blocks.append(Paragraph(f"{few} more arms have fewer than two pairs and are not judged."))
    symptoms = analyzer.symptoms[analyzer.symptoms["arm"].isin(leading["arm"])]
    if len(symptoms):
        blocks.append(
            Details("What the looks at the layers show, by arm and operand", (_symptom_table(symptoms, leading),))
        )
    if len(rest):
        table = _arms_table(rest, "failure-modes-earlier", "Failure Mode of the arms of earlier studies")
        blocks.append(Details(f"{len(rest)} arms of earlier studies", (table,)))
    return blocks


def _arms_table(classified: pd.DataFrame, identity: str, caption: str) -> Table:
    columns: tuple[Column | str, ...] = (
        "Format",
        "Failure Mode",
        "Where",
        *col.right("Gap to FP32", "95% interval", "Seeds"),
        "Quantized; step rule",
        "Began",
        *col.right("Finished"),
    )
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            row["causes"],
            row["phases"] or None,
            words.number(row["gap"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            _treated(row["scope"], row["rule"]),
            _began(row["step"], row["tensor"]),
            f"{row['n_finished']} of {row['n_runs']}",
        )
        for row in classified.to_dict("records")
    )
    return Table(columns, rows, caption, data=classified, id=identity)


def _treated(scope: str, rule: str) -> str:
    """What is quantized and how it steps, in few words."""
    return f"{scope.replace(ALL_OPERANDS, 'all operands')}; {rule}"


def _weak_classes(analyzer: FailureAnalyzer, leading: pd.DataFrame) -> tuple[Md, ...]:
    """Classes that say less than they seem to: no symptom but a comparison, and a symptom that comes late."""
    found = []
    bare = int((leading["causes"] == "step").sum())
    if bare:
        found.append(
            md(
                "{count} of them show no symptom in any look: class step says only that AdamW with the same format and "
                "master weights does not fail.",
                count=bare,
            )
        )
    stalls = leading[(leading["causes"] == "stall") & leading["step"].notna()]
    late = [row["arm"] for row in stalls.to_dict("records") if row["step"] > analyzer.config(row["arm"]).max_steps / 2]
    if late:
        found.append(
            md(
                "{count} of them are first seen to stall in the second half of their runs, as the learning rate "
                "decays: there the class accompanies the loss, and what began it is not shown.",
                count=len(late),
            )
        )
    return tuple(found)


def _began(step: float | None, tensor: object) -> Md | None:
    """The first step at which something was seen, and the tensor in which; what of them is known."""
    at = [] if step is None or math.isnan(step) else [md("step {step}", step=int(step))]
    where = [md("in {tensor}", tensor=code(tensor))] if isinstance(tensor, str) and tensor else []
    return join(", ", at + where) if at + where else None


def _symptom_table(symptoms: pd.DataFrame, classified: pd.DataFrame) -> Table:
    columns: tuple[Column | str, ...] = (
        "Format", "Quantized; step rule", "Class", "Operand", *col.right("Share of looks"), "First", "Evidence",
    )  # fmt: skip
    arms = classified.set_index("arm")
    rows = tuple(
        (
            col.arm_link(row["arm"], arms["format"][row["arm"]]),
            _treated(arms["scope"][row["arm"]], arms["rule"][row["arm"]]),
            row["cause"],
            f"{OPERAND_NAMES.get(row['operand'], row['operand'])}, {row['phase']}",
            words.percent(row["share"]),
            _began(row["step"], row["tensor"]),
            row["evidence"],
        )
        for row in symptoms.to_dict("records")
    )
    caption = "Figures beyond a limit, as means over the runs of an arm; a look is one layer's operand at one step"
    return Table(columns, rows, caption, data=symptoms, id="symptoms")


def _how_classified() -> list[Block]:
    rows = tuple(
        (cause, f"{side} {limit:g}" if cause == "precision" else f"{side} {limit:g}, as a fraction"
         if cause != "gradient_vanishing" else f"{side} {limit:g}", meaning)
        for cause, (_, side, limit, meaning) in LIMITS.items()
    )  # fmt: skip
    text = (
        "A run that did not finish has the classes of its record (NaN loss, divergence, overflow, underflow, stall, "
        "vanishing gradient, early stop). An arm whose runs finish with a bad loss has the classes that its looks show "
        "by the limits below; several may hold, the one that most looks show stands first, and step and tensor are "
        "where it was seen first. A class is a symptom: that it is the cause only a comparison of arms can show, and "
        "the sections on operands and remedies are such comparisons."
    )
    precision = (
        "The classes of a failed run have none for rounding error by itself, so there is a further one, precision: a "
        f"low SQNR where less than {PRECISION_LOST:.0%} of the elements became zero. Its limit lies between what E5M2 "
        "and E6M1 showed in the pilot. Stalls count for weights on the grid only, for under master weights an update "
        "that moves no code is not lost. The class step says that the same formats do not fail under AdamW with master "
        "weights, so that the step rule or the storage is the cause."
    )
    table = Table(("Class", "Limit", "Of what"), rows, "When a look shows a class")
    return [Details("How a failure is classified", (Paragraph(text), table, Paragraph(precision)))]


def _operand_chart(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    """Gaps of the splits with all operands and with each alone: which operand it is that costs the loss."""
    table = analyzer.operands(comparison)
    data = charts.finite_rows(table[table["format"].isin(SPLITS) & (table["n_pairs"] >= 2)], "gap", "low", "high")
    if data.empty:
        return []
    scopes = list(dict.fromkeys(data["scope"]))
    formats = sorted(set(data["format"]), key=format_order)
    names = {comparison.scope: "all operands"} | {name: f"{name} alone" for name in OPERAND_NAMES.values()}

    def draw(axes: Axes) -> None:
        charts.reference_line(axes, "FP32")
        axes.axhline(FAILURE_GAP, color=MUTED, linewidth=1, linestyle="--")
        place = 0.0
        for number, (scope, colour, marker) in enumerate(zip(scopes, PALETTE, "os^D", strict=False)):
            part = data[data["scope"] == scope]
            x = [formats.index(name) + 0.17 * (number - (len(scopes) - 1) / 2) for name in part["format"]]
            axes.vlines(x, part["low"], part["high"], color=colour, linewidth=2)
            axes.plot(x, part["gap"], marker, color=colour, markersize=5)
            axes.annotate(
                names[scope],
                (place, 1),
                xycoords="axes fraction",
                xytext=(0, 6),
                textcoords="offset points",
                color=colour,
            )
            place += 0.04 + 0.0135 * len(names[scope])
        axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=1.5)
        ticks = [tick for tick in GAP_TICKS if data["low"].min() - 0.02 <= tick <= 1.3 * data["high"].max()]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.margins(y=0.1)
        axes.set_xticks(range(len(formats)), formats, color=FOREGROUND)
        axes.set_xlim(-0.6, len(formats) - 0.4)
        axes.set_ylabel(f"loss gap to FP32, nats a character\n(linear to {LINEAR_TO:g}, then logarithmic)")

    said = "; ".join(
        f"{row.format} {names[row.scope]} {row.gap:+.3f} {words.interval(row.low, row.high)}, n = {row.n_pairs}"
        for row in data.itertuples()
    )
    chart = Chart(
        "operands",
        "Loss gap to FP32 by format, with all operands quantized and with one alone",
        f"Paired mean differences with 95% t intervals; the dashed line is the gap above which an arm has failed, "
        f"{FAILURE_GAP:g} nats. {said}.",
        data,
        draw,
        height=3.9,
        margins=(0.85, 0.5, 0.35, 0.35),
    )
    return [ChartBlock(chart)]


def _operand_table(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    table = analyzer.operands(comparison)
    table = table[table["format"].isin(SPLITS)]
    single = table[(table["scope"] != comparison.scope) & (table["n_pairs"] >= 2)]
    if single.empty:
        return [pending_note("No format is recorded with one operand alone and two pairs or more.", ["formats"])]
    scopes = list(dict.fromkeys(table["scope"]))
    formats = sorted(set(table["format"]), key=format_order)
    found = {(row["format"], row["scope"]): row for row in table.to_dict("records")}

    def cell(name: str, scope: str) -> Cell:
        row = found.get((name, scope))
        if row is None or row["n_pairs"] < 2:
            return None
        text = f"{words.number(row['gap'], sign=True)} {words.interval(row['low'], row['high'])}, n = {row['n_pairs']}"
        return col.arm_link(row["arm"], text)

    rows = tuple((name, *(cell(name, scope) for scope in scopes), _failing_operands(found, name)) for name in formats)
    columns: tuple[Column | str, ...] = (
        "Format",
        *(Column("All operands" if scope == comparison.scope else f"{scope} alone".capitalize()) for scope in scopes),
        "Fails alone",
    )
    caption = "Gap to FP32 in nats a character with 95% interval, by what is quantized: forward is weights and "
    caption += "activations, backward is gradients"
    whole = int(single["n_pairs"].min())
    text = (
        "An operand that fails alone is a cause, and no mere symptom: its arm differs from FP32 in nothing else. That "
        "the parts do not fail does not clear them, for their errors may add up."
    )
    blocks: list[Block] = [Table(columns, rows, caption, data=table, id="operands-table"), Paragraph(text)]
    if whole < len(SEEDS) and single["arm"].map(lambda arm: bool(_of_study(analyzer, arm))).any():
        blocks.append(pending_note(f"Some arms have {whole} of {len(SEEDS)} pairs so far.", ["formats"]))
    return blocks


def _of_study(analyzer: FailureAnalyzer, arm: str) -> bool:
    return bool(analyzer.gaps.set_index("arm").at[arm, "campaign"])


def _failing_operands(found: dict[tuple[str, str], dict[Any, Any]], name: str) -> str:
    phases = {"weights": "forward", "activations": "forward", "gradients": "backward"}
    alone = [
        f"{scope} ({phase})"
        for scope, phase in phases.items()
        if (name, scope) in found and found[name, scope]["n_pairs"] >= 2 and found[name, scope]["gap"] > FAILURE_GAP
    ]
    known = [scope for scope in phases if (name, scope) in found and found[name, scope]["n_pairs"] >= 2]
    return words.names(alone) if alone else "none" if len(known) == len(phases) else "not recorded"


def _sqnr_block(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    arms = comparison.table["arm"]
    health = analyzer.health[(analyzer.health["statistic"] == "sqnr_db") & analyzer.health["arm"].isin(arms)]
    health = health[health["format"].isin(SPLITS)]
    data = health.pivot_table(index="format", columns="operand", values="value").reset_index()
    if data.empty:
        return []
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)
    operands = [operand for operand in OPERAND_NAMES if operand in data]

    def draw(axes: Axes) -> None:
        places = charts.spread([data[operand].iloc[-1] for operand in operands], data[operands].to_numpy())
        for operand, colour, marker, place in zip(operands, PALETTE, "os^", places, strict=False):
            axes.plot(range(len(data)), data[operand], marker=marker, color=colour, linewidth=1.5, markersize=5)
            axes.annotate(OPERAND_NAMES[operand], (len(data) - 0.85, place), va="center", color=colour)
        axes.set_xticks(range(len(data)), list(data["format"]), color=FOREGROUND)
        axes.set_xlim(-0.4, len(data) + 0.3)
        axes.margins(y=0.15)
        axes.set_ylabel("SQNR (dB), higher is better")

    listed = "; ".join(
        f"{row['format']}: " + ", ".join(f"{OPERAND_NAMES[name]} {words.number(row[name], 1)}" for name in operands)
        for _, row in data.iterrows()
    )
    description = f"Mean signal-to-quantization-noise ratio in dB over layers and recorded steps. {listed}."
    return [
        ChartBlock(
            Chart(
                "sqnr", "Signal-to-quantization-noise ratio of the 8-bit formats, by operand", description, data, draw
            )
        )
    ]


def _phase_tables(loader: ExperimentDataLoader, analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    health = analyzer.health[analyzer.health["arm"].isin(comparison.table["arm"])]
    stall = loader.runs.groupby("arm")["stall_ratio"].mean()
    wide = health.pivot_table(index=["format", "arm"], columns=["operand", "statistic"], values="value")
    ordered = sorted(
        comparison.table[["format", "arm"]].itertuples(index=False), key=lambda row: format_order(row.format)
    )
    rows: list[tuple[Cell, ...]] = []
    records = []
    for name, arm in ordered:
        figures = {
            f"{operand}_{statistic}": float(wide.at[(name, arm), (operand, statistic)])
            if (name, arm) in wide.index and (operand, statistic) in wide.columns
            else float("nan")
            for operand in OPERAND_NAMES
            for statistic in ("overflow", "underflow")
        }
        records.append({"format": name, "arm": arm, **figures, "stall_ratio": float(stall.get(arm, float("nan")))})
        cells = [words.percent(value) for value in figures.values()]
        rows.append((col.arm_link(arm, name), *cells, words.percent(records[-1]["stall_ratio"])))
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right(
            "Forward: weights overflow",
            "weights underflow",
            "activations overflow",
            "activations underflow",
            "Backward: gradients overflow",
            "gradients underflow",
            "Optimizer: stall ratio",
        ),
    )
    caption = (
        "Fraction of nonzero elements, mean over layers, recorded steps and runs; stall ratio = 1 - flips / updates"
    )
    notes = (
        "Per-tensor amax scaling cannot overflow by more than the rounding of the largest element, so overflow near "
        "zero says nothing about a "
        "format's range under static or delayed scales. The stall ratio is shown, never ranked: it does not order "
        "arms as their losses do."
    )
    return [Table(columns, tuple(rows), caption, data=pd.DataFrame(records), id="phases"), Paragraph(notes)]


def _layers(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> list[Block]:
    """For each class, where and when it shows in the arm that loses most by it: one run, a layer a row."""
    blocks: list[Block] = []
    classified = _leading(analyzer.classified).dropna(subset=["gap"])
    for cause, statistic in STATISTIC_OF_CAUSE.items():
        losing = classified[classified["causes"].str.split(", ").str[0] == cause]
        if losing.empty:
            continue
        row = losing.iloc[0]
        run_id = analyzer.example(row["arm"])
        looks = loader.looks([run_id])
        (title, levels) = next((title, levels) for name, title, levels in health.LOSSES if name == statistic)
        data = looks[(looks["statistic"] == statistic) & looks["operand"].isin(list(OPERAND_NAMES))]
        if data.empty:
            continue
        text = md(
            "{format} ({scope}) loses most among the arms whose first class is {cause}. Its run {run} is the one with "
            "the median final loss of its {n} finished runs.",
            format=row["format"],
            scope=row["scope"],
            cause=cause,
            run=col.arm_link(row["arm"], run_id, run_id),
            n=int(row["n_finished"]),
        )
        note = f"{health.MEANINGS[statistic]} Run {run_id}."
        name = f"{title} of {row['format']} by layer and step"
        blocks += [Paragraph(text), health.lost(f"layers-{title.lower()}", name, data, levels, note)]
    return [Heading("By layer and step"), *blocks] if blocks else []


def _compared_runs(loader: ExperimentDataLoader, arm: str) -> pd.DataFrame:
    """The finished runs of an arm but for those whose seeds are held out."""
    runs = loader.runs
    return runs[(runs["arm"] == arm) & (runs["role"] == "report") & runs["final_val_loss"].notna()]


def _signatures(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    """What the two extremes look like beside the split with the smallest gap: SQNR and underflow over the steps."""
    table = comparison.table[comparison.table["format"].isin(SPLITS)].dropna(subset=["gap"])
    extremes = [name for name in ("E7M0", "E0M7") if name in set(table["format"])]
    rest = table[~table["format"].isin([*extremes, "E1M6"])].sort_values("gap")
    if not extremes or rest.empty:
        return []
    best = str(rest["format"].iloc[0])
    frames = []
    for name in (*extremes, best):
        arm = table.loc[table["format"] == name, "arm"].iloc[0]
        looks = loader.looks(_compared_runs(loader, arm)["run_id"])
        looks = looks[looks["statistic"].isin(["sqnr_db", "underflow"]) & looks["operand"].isin(list(OPERAND_NAMES))]
        means = looks.groupby(["statistic", "operand", "step"], observed=True)["value"].mean().reset_index()
        frames.append(means.assign(format=name))
    data = pd.concat(frames, ignore_index=True)
    charts = [
        _signature(data, "sqnr_db", "signature-sqnr", "SQNR", "SQNR (dB)"),
        _signature(data, "underflow", "signature-underflow", "Underflow", "became zero"),
    ]
    blocks = [ChartBlock(chart) for chart in charts if chart is not None]
    if not blocks:
        return []
    lacks = {"E7M0": "E7M0 has no mantissa bits", "E0M7": "E0M7 has no exponent bits"}
    text = (
        f"{words.names([lacks[name] for name in extremes])}. {best} is drawn beside because its gap to FP32 is the "
        "smallest of the other splits. Means over layers and finished runs."
    )
    return [Heading("Signatures of the extremes"), Paragraph(text), *blocks]


def _signature(data: pd.DataFrame, statistic: str, identity: str, title: str, label: str) -> Chart | None:
    """One figure of a few formats over the steps, a panel for each operand."""
    data = charts.finite_rows(data[data["statistic"] == statistic], "value")
    operands = [operand for operand in OPERAND_NAMES if (data["operand"] == operand).any()]
    formats = list(dict.fromkeys(data["format"]))
    if not operands or len(formats) < 2:
        return None
    text = health.SQNR.text if statistic == "sqnr_db" else words.percent
    first, last = int(data["step"].min()), int(data["step"].max())
    means = data.groupby(["format", "operand"], observed=True)["value"].mean()
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{OPERAND_NAMES[each]} {text(means[name, each])}" for each in operands if (name, each) in means)
        for name in formats
    )

    def draw(axes: Axes) -> None:
        ticks = [(0.0, str(first)), (1.0, str(last))]
        offsets = charts.panel_axes(axes, [OPERAND_NAMES[operand] for operand in operands], ticks)
        for operand, offset in zip(operands, offsets, strict=True):
            panel = data[data["operand"] == operand]
            for name, colour in zip(formats, PALETTE, strict=False):
                line = panel[panel["format"] == name]
                place = offset + (line["step"] - first) / max(last - first, 1)
                axes.plot(place, line["value"], color=colour, linewidth=1.5)
        for offset in offsets[1:]:
            axes.axvline(offset - 0.03, color=BACKGROUND, linewidth=8)
        ends = [_end(data, name) for name in formats]
        for name, colour, place in zip(formats, PALETTE, charts.spread(ends, data["value"].to_numpy()), strict=False):
            axes.annotate(name, (offsets[-1] + 1.02, place), va="center", color=colour, annotation_clip=False)
        axes.set_ylabel(label)
        if statistic != "sqnr_db":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")

    description = f"{health.MEANINGS[statistic]} From step {first} to {last}. Means: {said}."
    title = f"{title} of {words.names(formats)} by step and operand"
    return Chart(identity, title, description, data, draw, height=2.6, margins=(0.65, 0.6, 0.35, 0.3))


def _end(data: pd.DataFrame, name: str) -> float:
    """The last value that a format's line has in the last panel that it is in."""
    line = data[data["format"] == name]
    operand = [each for each in OPERAND_NAMES if (line["operand"] == each).any()][-1]
    return float(line[line["operand"] == operand].sort_values("step")["value"].iloc[-1])


def _warnings(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> list[Block]:
    """How often telemetry warned, by kind and format, and how many runs are too old to have warnings."""
    warnings = analyzer.warnings
    ended = [record for record in loader.records.values() if record.status in ("finished", "failed")]
    old = sum("warnings" not in record.run["summary"] for record in ended)
    blocks: list[Block] = [Heading("Warnings")]
    if old:
        blocks.append(Paragraph(f"{old} of the {len(ended)} runs that ended were recorded before runs had warnings."))
    if warnings.empty:
        return [*blocks, Paragraph("No recorded run holds a warning.")]
    warned = set(warnings["run_id"])
    finished = int((loader.runs["run_id"].isin(warned) & (loader.runs["status"] == "finished")).sum())
    text = (
        f"A warning says that a figure went beyond a limit while a run went on. {finished} of the {len(warned)} runs "
        "with warnings finished. The pages of the runs list each warning with its figure and step."
    )
    names = {arm: named(loader.config(arm)) for arm in warnings["arm"].unique()}
    warnings = warnings.assign(
        format=warnings["format"].where(warnings["format"] != "FP32", warnings["arm"].map(names))
    )
    counts = warnings.groupby(["what", "format"]).agg(
        warnings=("step", "size"),
        runs=("run_id", "nunique"),
        first_step=("step", "min"),
        tensor=("tensor", lambda tensors: tensors.mode().iloc[0]),
    )
    data = counts.reset_index().sort_values(["warnings", "what", "format"], ascending=[False, True, True])
    columns: tuple[Column | str, ...] = (
        "What",
        "Format",
        *col.right("Warnings", "Runs", "First step"),
        "Most often in",
    )
    table = Table(
        columns,
        tuple(
            (row.what, row.format, int(row.warnings), int(row.runs), int(row.first_step), row.tensor)
            for row in data.itertuples()
        ),
        f"{len(warnings)} warnings of {len(warned)} runs, by kind and format",
        data=data,
        id="warnings",
    )
    return [*blocks, Paragraph(text), table]


def _failed_runs(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> list[Block]:
    failures = analyzer.failures
    heading = Heading("Runs that did not finish")
    if failures.empty:
        return [heading, Paragraph("Every recorded run finished.")]
    rows = tuple(
        (
            col.arm_link(row.arm, row.run_id, row.run_id),
            named(loader.config(row.arm)),
            row.rule,
            row.status,
            row.kinds,
            int(row.step),
            row.tensor if isinstance(row.tensor, str) else None,
            row.phase if isinstance(row.phase, str) else None,
            str(row.message),
        )
        for row in failures.itertuples()
    )
    columns: tuple[Column | str, ...] = (
        "Run",
        "Format",
        "Rule",
        "Status",
        "Kind",
        Column("First bad or last step", "right"),
        "Tensor",
        "Phase",
        "Message",
    )
    return [
        heading,
        Table(
            columns,
            rows,
            "Runs that failed, crashed, were interrupted or are still running",
            data=failures,
            id="unfinished",
        ),
        *_endings(loader, analyzer),
    ]


def _endings(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> list[Block]:
    """The loss around the end of runs that ended badly, those that failed first, and what their records advise."""
    failures = analyzer.failures[analyzer.failures["status"] != "running"]
    ordered = failures.sort_values("status", key=lambda status: status != "failed", kind="stable")
    shown = ordered.head(ENDINGS_SHOWN)
    items, frames = [], []
    for row in shown.itertuples():
        failure = diagnose(loader.records[row.run_id])
        if failure is None:
            continue
        advice = " ".join(f"{line[0].upper()}{line[1:]}." for line in failure.advice) or "No advice."
        cause = failure.cause or failure.message
        run = col.arm_link(row.arm, row.run_id, row.run_id)
        kinds = ", ".join(failure.kinds)
        items.append(md("{run}, {kinds}: {cause}. {advice}", run=run, kinds=kinds, cause=cause, advice=advice))
        losses = pd.DataFrame(failure.losses, columns=["step", "loss"]).tail(ENDING_STEPS)
        losses = losses.assign(run_id=row.run_id, label=f"{row.format} {row.run_id[-8:]}")
        frames.append(losses.assign(to_end=losses["step"] - losses["step"].max()))
    if not items:
        return []
    chart = _ending_chart(pd.concat(frames, ignore_index=True))
    more = f" {len(ordered) - len(shown)} more are in the table." if len(ordered) > len(shown) else ""
    return [
        *([ChartBlock(chart)] if chart else []),
        Paragraph(f"What their records advise; whether it helps, only a run can tell.{more}"),
        Bullets(tuple(items)),
    ]


def _ending_chart(data: pd.DataFrame) -> Chart | None:
    """Training loss against the steps that were left, a line a run; a cross where it was not finite any more."""
    finite = charts.finite_rows(data, "loss")
    if finite.empty:
        return None
    ends, lost = finite.groupby("run_id", sort=False).tail(1), set(data["run_id"][data["loss"].isna()])
    wide_range = bool(finite["loss"].min() > 0 and finite["loss"].max() > 20 * finite["loss"].min())

    def draw(axes: Axes) -> None:
        for (run_id, line), colour in zip(finite.groupby("run_id", sort=False), itertools.cycle(PALETTE), strict=False):
            axes.plot(line["to_end"], line["loss"], color=colour, marker="o", markersize=2, linewidth=1.2)
            if run_id in lost:
                end = line.iloc[-1]
                axes.plot([end["to_end"]], [end["loss"]], color=colour, marker="x", markersize=7, linewidth=0)
        scale = np.log10 if wide_range else np.asarray
        places = charts.spread(
            list(scale(ends["loss"].to_numpy(dtype=float))), scale(finite["loss"].to_numpy(dtype=float))
        )
        for label, place, colour in zip(ends["label"], places, itertools.cycle(PALETTE), strict=False):
            height = 10**place if wide_range else place
            axes.annotate(
                label, (1.01, height), xycoords=("axes fraction", "data"), va="center", color=colour, fontsize=8
            )
        if wide_range:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("steps before the last one")
        axes.set_ylabel("training loss")

    said = "; ".join(
        f"{row.run_id} ends at step {row.step} with {row.loss:.3g}"
        + (", then not finite" if row.run_id in lost else "")
        for row in ends.itertuples()
    )
    return Chart(
        "endings",
        "Training loss around the end of runs that ended badly",
        f"Nats a character; a cross where the loss was not finite any more. {said}.",
        data,
        draw,
        height=3.0,
        margins=(0.7, 1.1, 0.5, 0.1),
    )


def _e7m0(loader: ExperimentDataLoader, analyzer: FailureAnalyzer, comparison: Comparison | None) -> list[Block]:
    observed = _e7m0_observations(loader, analyzer, comparison)
    if not observed:
        return [Paragraph(hypothesis_pending("No E7M0 run is recorded."))]
    rows = tuple(
        (text, *observed.get(key, ("not decided", "no record tells"))) for key, text in E7M0.predictions.items()
    )
    return [
        Paragraph(hypothesis(E7M0)),
        Table(("Prediction", "Outcome", "Recorded"), rows, "The hypothesis against what happened"),
        Paragraph(
            "A correction: the preregistration says that the range of E7M0 is that of BF16. It is half as wide in "
            "exponents, and the figures of overflow and underflow above say what that costs."
        ),
        *_alone(analyzer, comparison, "E7M0"),
        *_e7m0_rate(loader, comparison),
    ]


def _e7m0_rate(loader: ExperimentDataLoader, comparison: Comparison | None) -> list[Block]:
    """How much of E7M0's gap is the shared learning rate, where tuning runs tell."""
    rates = pd.DataFrame() if comparison is None else own_rates(loader, comparison).set_index("format")
    if "E7M0" not in rates.index:
        return []
    row = rates.loc["E7M0"]
    return [
        Paragraph(
            f"Part of this gap is the learning rate that all formats share: on {int(row['n'])} held-out seeds its mean "
            f"gap is {words.number(row['gap_shared'], sign=True)} nats at the shared rate {row['shared_rate']:g} and "
            f"{words.number(row['gap_own'], sign=True)} at {row['own_rate']:g}, the best rate tried."
        )
    ]


def _e7m0_observations(
    loader: ExperimentDataLoader, analyzer: FailureAnalyzer, comparison: Comparison | None
) -> dict[str, tuple[str, str]]:
    """Outcome and figures of each prediction; keys are left out where no record decides them."""
    runs = loader.runs[(loader.runs["format"] == "E7M0") & (loader.runs["role"] == "report")]
    ended = runs[runs["status"].isin(["finished", "failed"])]
    found: dict[str, tuple[str, str]] = {}
    if len(ended):
        failed = int((ended["status"] == "failed").sum())
        found["no_failed_run"] = (_outcome(failed == 0), f"{failed} of {len(ended)} runs failed")
    counted = [run_id for run_id in ended["run_id"] if "warnings" in loader.records[run_id].run["summary"]]
    if counted:
        warnings = analyzer.warnings[analyzer.warnings["run_id"].isin(counted)]
        kinds = warnings["what"].value_counts()
        of_range = int(kinds.reindex(["overflow", "underflow"]).fillna(0).sum())
        others = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if kind not in LIMITS_OF_RANGE)
        figure = f"{of_range} such warnings in {len(counted)} runs" + (f"; of other kinds: {others}" if others else "")
        found["no_warning"] = (_outcome(of_range == 0), figure)
    health = analyzer.health
    if comparison is None:
        return found
    table = comparison.table[comparison.table["format"].isin(SPLITS)]
    own = health[(health["format"] == "E7M0") & health["arm"].isin(table["arm"])]
    extremes = own[own["statistic"].isin(["overflow", "underflow"])]
    if len(extremes):
        worst = extremes.loc[extremes["value"].idxmax()]
        figure = f"largest: {worst['statistic']} of {OPERAND_NAMES[worst['operand']]}, {words.percent(worst['value'])}"
        found["no_range_error"] = (_outcome(worst["value"] < 0.001), figure)
    sqnr = health[
        (health["statistic"] == "sqnr_db") & (health["operand"] == "weight") & health["arm"].isin(table["arm"])
    ]
    sqnr = sqnr.set_index("format")["value"].dropna()
    if "E7M0" in sqnr.index and len(sqnr) > 1:
        found["lowest_sqnr"] = (
            _outcome(sqnr.idxmin() == "E7M0"),
            f"E7M0 {sqnr['E7M0']:.1f} dB; the next lowest {sqnr.drop('E7M0').min():.1f} dB",
        )
    gaps = table.set_index("format")[["gap", "low", "high"]].dropna()
    if "E7M0" in gaps.index and len(gaps) > 1:
        own_gap, rest = gaps.loc["E7M0"], gaps.drop("E7M0")
        rival = rest["gap"].idxmax()
        figure = (
            f"E7M0 {own_gap['gap']:+.3f} {words.interval(own_gap['low'], own_gap['high'])}; the next largest is "
            f"{rival}, "
            f"{rest.at[rival, 'gap']:+.3f} {words.interval(rest.at[rival, 'low'], rest.at[rival, 'high'])}"
        )
        apart = own_gap["low"] > rest.at[rival, "high"]
        largest = own_gap["gap"] > rest.at[rival, "gap"]
        found["largest_gap"] = (
            "held" if largest and apart else "not decided (the intervals overlap)" if largest else "did not hold",
            figure,
        )
    return found


def _outcome(held: bool) -> str:
    return "held" if held else "did not hold"


def _alone(analyzer: FailureAnalyzer, comparison: Comparison | None, name: str) -> list[Block]:
    """What each operand costs a format alone, in a sentence; nothing where that is not recorded."""
    if comparison is None:
        return []
    table = analyzer.operands(comparison)
    table = table[(table["format"] == name) & (table["n_pairs"] >= 2)]
    whole, single = table[table["scope"] == comparison.scope], table[table["scope"] != comparison.scope]
    if single.empty:
        return []
    parts = [
        f"{row['scope']} {words.number(row['gap'], sign=True)} {words.interval(row['low'], row['high'])}, "
        f"n = {row['n_pairs']}"
        for row in single.to_dict("records")
    ]
    worst = str(single.loc[single["gap"].idxmax(), "scope"])
    phase = "backward" if worst == "gradients" else "forward"
    against = ""
    if len(whole):
        total, added = whole["gap"].iloc[0], single["gap"].sum()
        against = (
            f" All together cost {words.number(total, sign=True)}, and the parts add up to "
            f"{words.number(added, sign=True)}."
        )
    return [
        Paragraph(
            f"One operand at a time in {name}, everything else unquantized (nats a character against FP32): "
            f"{'; '.join(parts)}. The costliest alone is {worst} ({phase}).{against}"
        )
    ]


def _e0m7(
    loader: ExperimentDataLoader,
    analyzer: FailureAnalyzer,
    comparison: Comparison | None,
) -> list[Block]:
    """H3 and H17 as predictions of one hypothesis."""
    if not (loader.runs["format"] == "E0M7").any():
        return [Paragraph(hypothesis_pending("No E0M7 run is recorded."))]
    outcomes = {"yes": "held", "no": "did not hold", "inconclusive": "not decided", "pending": "pending"}
    found = zip(("gradients", "remedies"), verdicts_of(loader, "H3", "H17"), strict=True)
    observed = {key: (outcomes[verdict.answer], verdict.evidence) for key, verdict in found}
    rows = tuple((text, observed[key][0], escape(observed[key][1])) for key, text in E0M7.predictions.items())
    return [
        Paragraph(hypothesis(E0M7)),
        Table(("Prediction", "Outcome", "Recorded"), rows, "The hypothesis against what happened"),
        *_alone(analyzer, comparison, "E0M7"),
    ]


def _remedies(loader: ExperimentDataLoader, analyzer: FailureAnalyzer, verdicts: tuple[Verdict, ...]) -> list[Block]:
    """What was tried on the two extreme formats, with its effect against the format without it and against FP32."""
    table = analyzer.remedies
    shown = table[table["n_pairs"] >= 2]
    blocks: list[Block] = [verdict_table(verdicts, "verdicts"), *tests_table(verdicts, "verdict-tests")]
    if len(shown):
        blocks += [*_remedy_chart(shown), _remedy_rows(shown)]
        text = (
            "Difference: final validation loss with the remedy minus that of the same format without it, by seed; "
            "below zero it helps. The adjusted p is Holm's over the rows of a format that are recorded in full. Rows "
            "that are not planned are arms of other studies, shown for what they are worth: their comparison was not "
            "written down as a remedy."
        )
        blocks += [Paragraph(text), *_prevention(analyzer)]
    if lacking := remedies_missing(loader):
        blocks.append(pending_note(lacking, ["formats", "remedies", "scaling"]))
    return blocks


def _remedy_rows(shown: pd.DataFrame) -> Table:
    columns: tuple[Column | str, ...] = (
        "Format", "Remedy",
        *col.right("Difference", "95% interval", "Adjusted p", "Pairs", "Gap before", "Gap left"),
        "Planned",
    )  # fmt: skip
    rows = tuple(
        (
            row["format"],
            col.arm_link(row["arm"], row["remedy"]),
            words.number(row["difference"], sign=True),
            words.interval(row["low"], row["high"]),
            words.p_text(row["p_holm"]),
            int(row["n_pairs"]),
            words.number(row["gap_before"], sign=True),
            words.number(row["gap"], sign=True),
            f"{'yes' if row['planned'] else 'no'}, {_recorded(row)}",
        )
        for row in shown.to_dict("records")
    )
    return Table(columns, rows, "Remedies and their measured effect", data=shown, id="remedies")


def _recorded(row: dict[Any, Any]) -> str:
    if row["missing"]:
        return "in part"
    return f"{row['n_ended_badly']} runs did not finish: not judged" if row["n_ended_badly"] else "in full"


def _remedy_chart(shown: pd.DataFrame) -> list[Block]:
    columns = ["format", "remedy", "n_pairs", "difference", "low", "high", "gap", "gap_low", "gap_high"]
    data = charts.finite_rows(shown[columns], "difference", "low", "high")
    if data.empty:
        return []
    return [
        ChartBlock(
            charts.forest(
                "remedies-chart",
                "What each remedy does to the loss of E0M7 and E7M0",
                "Paired difference of the final validation loss with 95% t interval.",
                data,
                [f"{row.format}: {row.remedy}" for row in data.itertuples()],
                "nats a character; left of 0 it helps",
                [PALETTE[EXTREMES.index(name)] for name in data["format"]],
            )
        )
    ]


def _prevention(analyzer: FailureAnalyzer) -> list[Block]:
    """Advice that recorded runs support, and the failing formats that no remedy was tried on."""
    items = [text for text in (_helped(analyzer, name) for name in EXTREMES) if text]
    failed = _leading(analyzer.classified)
    unscaled, grid = failed["scope"].str.contains(SCALE_1, regex=False), failed["rule"].str.contains("on the grid")
    if unscaled.any():
        text = "{names} at scale 1 want a scale that follows the tensor: see Other scales in the {report}."
        report = Link("format comparison", PageRef("reports/format_comparison", "other-scales"))
        items.append(md(text, names=words.names(sorted(set(failed.loc[unscaled, "format"]))), report=report))
    if (failed["rule"].str.contains("rounded to nearest") & grid).any():
        text = "Stalls on the grid: what rounding stochastically in place of to nearest changes is H6 of the {report}."
        items.append(md(text, report=Link("manifold comparison", PageRef("reports/manifold_comparison"))))
    left = failed[~unscaled & ~grid & (failed["causes"] != "step")]  # where the step rule is to blame, no format is
    drawn, tried = _drawn_gradients(analyzer)
    items += drawn
    untried = sorted(
        {name for name in left["format"] if name not in (*EXTREMES, *tried) and not is_combination(name)},
        key=format_order,
    )
    if untried:
        items.append(
            md(
                "No remedy was tried on {names}, which fail as well: what helps them is not known.",
                names=words.names(untried),
            )
            if len(untried) > 1
            else md("No remedy was tried on {name}, which fails as well: what helps it is not known.", name=untried[0])
        )
    return [Heading("Prevention", 3), Bullets(tuple(items))] if items else []


def _drawn_gradients(analyzer: FailureAnalyzer) -> tuple[list[Md], set[str]]:
    """What gradients rounded stochastically change where a format fails without them, and in which formats."""
    gaps = _leading(analyzer.gaps[analyzer.gaps["n_pairs"] >= 2]).drop_duplicates(["format", "scope", "rule"])
    found = {(row["format"], row["scope"], row["rule"]): row for row in gaps.to_dict("records")}
    parts: dict[str, list[str]] = {}
    for (name, scope, rule), row in found.items():
        before = found.get((name, scope.removesuffix(DRAWN), rule))
        if name in EXTREMES or before is None or before is row or not (before["failed"] or row["failed"]):
            continue
        how = scope.removesuffix(DRAWN).replace(ALL_OPERANDS, "").strip("; ")
        change = f"from {words.number(before['gap'])} to {words.number(row['gap'])}"
        parts.setdefault(name, []).append(f"{change} ({how})" if how else change)
    items = [
        md(
            "Gradients rounded stochastically take {name}'s gap {said}; exploratory.",
            name=name,
            said=", ".join(said),
        )
        for name, said in parts.items()
    ]
    return items, set(parts)


def _reproduce(loader: ExperimentDataLoader, analyzer: FailureAnalyzer) -> list[Block]:
    """One run of each arm that failed, and the unquantized run of its seed: the smallest pair that shows it."""
    classified = _leading(analyzer.classified)
    if classified.empty:
        return []
    inner: list[Block] = []
    for row in classified.head(LISTED).to_dict("records"):
        run_id = analyzer.example(row["arm"])
        record = loader.records[run_id]
        base = loader.runs[(loader.runs["arm"] == row["baseline"]) & (loader.runs["seed"] == record.config.seed)]
        lines = [command(record.config)]
        if record.status == "finished" and len(base):
            lines.append(command(loader.records[base["run_id"].iloc[0]].config))
        about = md(
            "{run}: {causes}",
            run=col.arm_link(row["arm"], run_id, run_id),
            causes=row["causes"] + (f", {row['phases']}" if row["phases"] else ""),
        )
        inner += [Paragraph(about), CodeBlock("\n".join(lines), "bash")]
    left_out = f" The first {LISTED} of {len(classified)} are listed." if len(classified) > LISTED else ""
    text = (
        "One run shows a failure: the one with the median loss of its arm, or the first that did not finish. Where the "
        "failure is a gap, the second command is the unquantized run of the same seed, and the gap is the difference "
        f"of their last validation losses.{left_out}"
    )
    return [
        Heading("Reproduce a failure"),
        Paragraph(text),
        Details(f"Commands of {min(len(classified), LISTED)} failures", tuple(inner)),
    ]


def _what_would_change(analyzer: FailureAnalyzer) -> tuple[Md | str, ...]:
    failed = _leading(analyzer.classified).dropna(subset=["gap"])
    unsure = failed[(failed["low"] <= FAILURE_GAP) & (failed["n_pairs"] >= 2)]
    judged = _leading(analyzer.gaps[analyzer.gaps["n_pairs"] >= 2])
    near = judged[~judged["failed"].astype(bool) & (judged["high"] > FAILURE_GAP)]
    items: list[Md | str] = []
    if len(unsure) or len(near):
        items.append(
            f"More seeds: the interval of {len(unsure)} arms that fail, and of {len(near)} that do not, contains the "
            f"limit of {FAILURE_GAP:g} nats."
        )
    return (
        *items,
        "A learning rate of its own for each format: all have the rate that suits FP32, and a row of the remedies "
        "shows what another one does to the extremes.",
        "A scale that does not follow the tensor: with the current largest value as the scale nothing overflows, and "
        "the ranges of wide formats bring nothing. Study scaling has such arms.",
        "A larger or longer training: the recorded model is small, and what is underflow here may be noise there, or "
        "the other way round.",
    )
