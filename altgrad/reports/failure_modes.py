"""Report ANAL-02: where each format fails - forward, backward or optimizer - and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import ALL_OPERANDS, Comparison, FormatComparator, format_order, own_rates
from altgrad.analysis.contrasts import shown
from altgrad.analysis.failures import (
    EXPLORATORY,
    HEALTH_STATISTICS,
    PRECISION_LOST,
    SYMPTOMS_OF_ARMS,
    FailureAnalyzer,
    named,
    one_format,
    plain_adamw,
    remedies_missing,
    unscaled,
)
from altgrad.analysis.hypotheses import E0M7, E7M0, Expectation, Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.config import OPERAND_NAMES, command
from altgrad.formats import SPLITS_8BIT, get_format
from altgrad.pages import (
    PALETTE,
    Block,
    Bullets,
    Cell,
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

PATH = "reports/failure_modes"
SPLITS = tuple(fmt.name for fmt in SPLITS_8BIT)
RANGE = ("overflow", "underflow")
"""The classes, warnings and figures that a lack of range has."""
ENDINGS_SHOWN = 8
"""Runs that ended badly whose last losses and advice are shown."""
ENDING_STEPS = 30
"""How many of the losses that a failure holds are shown."""
LISTED = 60
"""Failures whose commands are listed at most."""
OUTCOMES = {"yes": "held", "no": "did not hold", "inconclusive": "not decided", "pending": "pending"}
LACKS = {"precision": ("lacks", "lack", "precision"), "underflow": ("loses", "lose", "small values")}
"""A class of failure as a verb, of one format and of several, and its object."""
LACKING = {"e7m0": "E7M0 has no mantissa bits", "e0m7": "E0M7 has no exponent bits"}
ENDS = {"divergence": "diverges", "nan_loss": "ends in NaN"}
"""What a run that failed does, by the class of its failure."""

Row = Mapping[Any, Any]


def failure_modes_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where there is nothing to explain."""
    analyzer, comparison = loader.memo(FailureAnalyzer), loader.memo(FormatComparator).headline
    verdicts = verdicts_of(loader, "H17", "H18")
    question = "*Where does each format fail: in the forward pass, the backward pass or the optimizer?* (ANAL-02)"
    blocks: list[Block] = [
        Paragraph(Md(question)),
        data_line(loader, scoped=False),
        *left_out(loader),
        Heading("Executive Summary"),
    ]
    if comparison is None:
        ended = f"{len(analyzer.failures)} recorded runs did not finish; they are listed below."
        ended = ended if len(analyzer.failures) else "No recorded run ended badly."
        blocks.append(Paragraph(Md(f"**Failure Mode: pending.** {ended}")))
    else:
        blocks += [
            Paragraph(_answer(analyzer, comparison)),
            *pilot(loader, [comparison.baseline], int(comparison.table["n_pairs"].max())),
            *_operand_chart(analyzer, comparison),
            Heading("Failure Mode by arm"),
            *_failed_arms(analyzer),
            _how_classified(),
            Heading("Forward, backward and optimizer"),
            *_operand_table(analyzer, comparison),
            *_phases(analyzer, comparison),
            *_sqnr(analyzer, comparison),
            *_layers(analyzer),
            *_signatures(analyzer, comparison),
        ]
    blocks += [
        Heading("E7M0: hypothesis and observation"),
        *_e7m0(analyzer, comparison),
        Heading("E0M7: hypothesis and observation"),
        *_e0m7(analyzer, comparison),
        Heading("Remedies, tested"),
        *_remedies(analyzer, verdicts),
        Heading("Runs that did not finish"),
        *_failed_runs(analyzer),
        Heading("Warnings"),
        *_warnings(analyzer),
        *_reproduce(analyzer),
    ]
    if comparison is None:
        lacking = "No recorded format can be compared with an FP32 run of the same setting."
        blocks += pending(lacking if len(loader.runs) else "No runs are recorded.", ["formats", "remedies"])
    else:
        blocks += [Heading("What would change this answer"), Bullets(_what_would_change(analyzer))]
        blocks += machine_blocks(loader, _comparisons(analyzer, verdicts))
    compared = [] if comparison is None else [comparison.baseline, *comparison.table["arm"]]
    tried = [arm for arm in analyzer.remedies[["arm", "against"]].to_numpy().ravel() if isinstance(arm, str)]
    arms = [*compared, *analyzer.classified["arm"], *analyzer.failures["arm"], *tried]
    return Page(
        PATH,
        "Failure modes",
        (*blocks, *traceability(loader, arms)),
        description="Where each 8-bit format fails in training, by operand and phase, and which tested remedy helps.",
        provenance=provenance(loader, built),
    )


def _comparisons(analyzer: FailureAnalyzer, verdicts: tuple[Verdict, ...]) -> list[tuple[str, str, str]]:
    """Every pair of arms that the page compares: gaps of arms that fail, remedies, tests."""
    failed = analyzer.leading(analyzer.classified).dropna(subset=["baseline"]).to_dict("records")
    tests = [row for verdict in verdicts for row in verdict.tests.to_dict("records")]
    return [
        *((f"{_in_words(analyzer, row)} − FP32", row["arm"], row["baseline"]) for row in failed),
        *((f"{row.format}: {row.remedy}", row.arm, row.against) for row in analyzer.remedies.itertuples()),
        *((row["contrast"], row["arm"], row["against"]) for row in tests),
    ]


# The answer


def _answer(analyzer: FailureAnalyzer, comparison: Comparison) -> Md:
    """Which splits fail as the page compares them, and by what; the other scales; what helps; the scope of it all."""
    failed = analyzer.leading(analyzer.classified)
    splits = analyzer.of_formats(comparison.table[comparison.table["n_pairs"] >= 2], *SPLITS)
    finished = failed[failed["n_finished"] == failed["n_runs"]]
    failing = finished[finished["arm"].isin(splits["arm"])]
    said = [*_splits_that_fail(failing, len(splits)), *_broken(analyzer, failed)]
    bare = finished["arm"].map(lambda arm: unscaled(analyzer.loader.config(arm))).astype(bool)
    worst = finished[~bare].dropna(subset=["gap"]).head(1)
    for row in worst[~worst["arm"].isin(failing["arm"])].to_dict("records"):
        name = _in_words(analyzer, row)
        said.append(escape(f"With scales that follow the tensors {name} is worst: {_gap(row)}."))
    outright = analyzer.failures[analyzer.failures["status"] == "failed"]
    counts = outright["arm"].map(lambda arm: named(analyzer.loader.config(arm))).value_counts()
    whose = words.names([f"{number} of {name}" for name, number in counts.items()])
    runs = f"{len(outright)} recorded run{'s' if len(outright) != 1 else ''} failed outright ({whose})"
    return md(
        "**Failure Mode: {said}** A format fails where it ends more than {limit} nats above FP32, or a run of it does "
        "not finish: so it was written down beforehand. {runs}. {helped} {scope}",
        said=join(" ", said) if said else Md("none of the splits fails as they are compared."),
        limit=FAILURE_GAP,
        runs=runs if len(outright) else "No run failed outright",
        helped=join(" ", _what_helped(analyzer)),
        scope=scope_line(analyzer.loader, comparison.baseline),
    )


def _splits_that_fail(failed: pd.DataFrame, total: int) -> list[Md]:
    """The splits that fail as they are compared, by what they lack."""
    parts: dict[tuple[str, str, str], list[str]] = {}
    for row in failed.to_dict("records"):
        cause = row["causes"].split(", ")[0]
        one, several, what = LACKS.get(cause, ("fails", "fail", f"by {cause}"))
        what = "small gradients" if (cause, row["operand"]) == ("underflow", "grad_output") else what
        parts.setdefault((one, several, what), []).append(f"{row['format']} ({_gap(row)})")
    said = ", ".join(
        f"{' and '.join(those)} {several if len(those) > 1 else one} {what}"
        for (one, several, what), those in parts.items()
    )
    return [Md(f"{len(failed)} of {total} 8-bit splits fail: {said}.")] if said else []


def _broken(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> list[Md]:
    """The arms with runs that did not finish, in a sentence each."""
    said = []
    for row in failed[failed["n_finished"] < failed["n_runs"]].to_dict("records"):
        bare = unscaled(analyzer.loader.config(row["arm"]))
        name = f"Without any scale {row['format']}" if bare else _in_words(analyzer, row)
        ends = next((ENDS[kind] for kind in row["causes"].split(", ") if kind in ENDS), "does not finish")
        badly, n = int(row["n_runs"] - row["n_finished"]), int(row["n_runs"])
        said.append(escape(f"{name} {ends} in {f'all {n}' if badly == n > 1 else f'{badly} of {n}'} runs."))
    return said


def _in_words(analyzer: FailureAnalyzer, row: Row) -> str:
    """An arm's format with what is not the default of it."""
    config = analyzer.loader.config(row["arm"])
    return named(config) if plain_adamw(config) else f"{named(config)}, {row['rule']}"


def _gap(row: Row) -> str:
    """A gap with its interval and number of seeds, for a sentence."""
    low, high = (words.number(row[end]) for end in ("low", "high"))
    return f"{words.number(row['gap'], sign=True)} nats, 95% interval {low} to {high}, n = {int(row['n_pairs'])}"


def _figures(row: Row) -> str:
    """A gap with its interval and number of seeds, for a list."""
    return f"{words.number(row['gap'], sign=True)} {words.interval(row['low'], row['high'])}, n = {row['n_pairs']}"


def _what_helped(analyzer: FailureAnalyzer) -> list[Md]:
    """What helped each extreme most, of the remedies that are recorded in full, and what may do as well."""
    said = []
    for name in EXTREMES:
        rows = analyzer.remedies
        rows = rows[(rows["format"] == name) & (rows["missing"] == "") & (rows["n_ended_badly"] == 0)]
        helped = sorted((row for row in rows.to_dict("records") if shown(row, -1)), key=lambda row: row["difference"])
        if not helped:
            text = f"None of the {len(rows)} remedies tested is shown to lower {name}'s loss."
            said += [Md(text)] * bool(len(rows))
            continue
        row, alike = helped[0], analyzer.alike([each["arm"] for each in helped])
        others = words.names([other["remedy"] for other in helped[1:] if other["arm"] in alike])
        before, left, low, high = (words.number(row[key]) for key in ("gap_before", "gap", "gap_low", "gap_high"))
        said.append(
            Md(
                f"What lowers {name}'s loss most is {row['remedy']}: its gap falls from {before} to {left} nats (95% "
                f"interval {low} to {high}, n = {row['n_pairs']}){f'; {others} may do as well' if others else ''}."
            )
        )
    return said


# Arms that fail


def _failed_arms(analyzer: FailureAnalyzer) -> list[Block]:
    classified = analyzer.classified
    if classified.empty:
        return [Paragraph("No arm fails by the preregistered definition.")]
    leading = analyzer.leading(classified)
    rest = classified[~classified["arm"].isin(leading["arm"])]
    unfinished = leading["n_finished"] < leading["n_runs"]
    ordered = pd.concat([leading[unfinished], leading[~unfinished]])
    blocks: list[Block] = [_arms_table(ordered, "failure-modes", "Failure Mode of each arm that fails, worst first")]
    unknown = leading[leading["causes"] == "unknown"].to_dict("records")
    if unknown:
        items = (md("{arm}: {evidence}.", arm=col.arm_link(row["arm"]), evidence=row["evidence"]) for row in unknown)
        blocks += [Paragraph("Arms whose cause is unknown:"), Bullets(tuple(items))]
    else:
        blocks.append(Paragraph("Every arm that fails has at least one class: none is unknown."))
    if late := int(leading["study"].isin(EXPLORATORY).sum()):
        text = f"{late} of them are of study {words.names(EXPLORATORY)}, which was added after another had been "
        blocks.append(Paragraph(text + "looked at: they are exploratory."))
    if remarks := _weak_classes(analyzer, leading):
        blocks.append(Bullets(remarks))
    gaps = analyzer.leading(analyzer.gaps)
    if few := int(((gaps["n_pairs"] < 2) & ~gaps["failed"].astype(bool)).sum()):
        blocks.append(Paragraph(f"{few} more arms have fewer than two pairs and are not judged."))
    symptoms = analyzer.symptoms[analyzer.symptoms["arm"].isin(leading["arm"])]
    if len(symptoms):
        table = _symptoms_table(symptoms, leading)
        blocks.append(Details("What the looks at the layers show, by arm and operand", (table,)))
    if len(rest):
        table = _arms_table(rest, "failure-modes-earlier", "Failure Mode of the arms of earlier studies")
        blocks.append(Details(f"{len(rest)} arms of earlier studies", (table,)))
    return blocks


def _arms_table(classified: pd.DataFrame, identity: str, caption: str) -> Table:
    columns = (
        col.arm(),
        col.text("Failure Mode", "causes"),
        col.text("Where", "phases"),
        col.signed("Gap to FP32", "gap"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.of("Quantized; step rule", _treated),
        col.of("Began", _began),
        col.share(),
    )
    return col.table(classified, columns, caption, identity)


def _symptoms_table(symptoms: pd.DataFrame, classified: pd.DataFrame) -> Table:
    columns = (
        col.arm(),
        col.of("Quantized; step rule", _treated),
        col.text("Class", "cause"),
        col.of("Operand", lambda row: f"{OPERAND_NAMES.get(row['operand'], row['operand'])}, {row['phase']}"),
        col.percent("Share of looks", "share"),
        col.of("First", _began),
        col.text("Evidence", "evidence"),
    )
    caption = "Figures beyond a limit, as means over the runs of an arm; a look is one layer's operand at one step"
    rows = symptoms.merge(classified[["arm", "format", "scope", "rule"]], on="arm", how="left")
    return col.table(rows, columns, caption, "symptoms", data=symptoms)


def _treated(row: Row) -> str:
    """What is quantized and how it steps, in few words."""
    return f"{row['scope'].replace(ALL_OPERANDS, 'all operands')}; {row['rule']}"


def _began(row: Row) -> Md | None:
    """The first step at which something was seen, and the tensor in which; what of them is known."""
    at = [] if col.missing(row["step"]) else [Md(f"step {int(row['step'])}")]
    where = [Md(f"in {code(row['tensor'])}")] if isinstance(row["tensor"], str) and row["tensor"] else []
    return join(", ", at + where) if at + where else None


def _weak_classes(analyzer: FailureAnalyzer, leading: pd.DataFrame) -> tuple[str, ...]:
    """Classes that say less than they seem to: no symptom but a comparison, and a symptom that comes late."""
    bare = int((leading["causes"] == "step").sum())
    stalls = leading[(leading["causes"] == "stall") & leading["step"].notna()]
    late = sum(row.step > analyzer.loader.config(row.arm).max_steps / 2 for row in stalls.itertuples())
    found = {
        f"{bare} of them show no symptom in any look: class step says only that AdamW with the same format and master "
        "weights does not fail.": bare,
        f"{late} of them are first seen to stall in the second half of their runs, as the learning rate decays: there "
        "the class accompanies the loss, and what began it is not shown.": late,
    }
    return tuple(text for text, count in found.items() if count)


def _how_classified() -> Details:
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

    def limit(row: Row) -> str:
        return f"below {row['limit']:g}" if row["below"] else f"above {row['limit']:g}, as a fraction"

    columns = (col.text("Class", "kind"), col.of("Limit", limit), col.text("Of what", "figure"))
    table = col.table(map(vars, SYMPTOMS_OF_ARMS), columns, "When a look shows a class")
    return Details("How a failure is classified", (Paragraph(text), table, Paragraph(precision)))


# Operands, phases, layers


def _operand_chart(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    """Gaps of the splits with all operands and with each alone: which operand it is that costs the loss."""
    table = analyzer.of_formats(analyzer.operands(comparison), *SPLITS)
    data = charts.finite_rows(table[table["n_pairs"] >= 2], "gap", "low", "high")
    names = {comparison.scope: "all operands"} | {name: f"{name} alone" for name in OPERAND_NAMES.values()}
    title = "Loss gap to FP32 by format, with all operands quantized and with one alone"
    about = "Paired mean differences with 95% t intervals; the dashed line is the gap above which an arm has failed, "
    chart = charts.gaps("operands", title, f"{about}{FAILURE_GAP:g} nats.", data, names, FAILURE_GAP)
    return [ChartBlock(chart)] * bool(len(data))


def _operand_table(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    table = analyzer.of_formats(analyzer.operands(comparison), *SPLITS)
    single = table[(table["scope"] != comparison.scope) & (table["n_pairs"] >= 2)]
    if single.empty:
        return [pending_note("No format is recorded with one operand alone and two pairs or more.", ["formats"])]
    rows: dict[str, dict[str, Any]] = {name: {"format": name} for name in sorted({*table["format"]}, key=format_order)}
    for row in table[table["n_pairs"] >= 2].to_dict("records"):
        rows[row["format"]][row["scope"]] = row

    def gap_of(scope: str) -> Column:
        def cell(row: Row) -> Cell:
            return col.arm_link(row[scope]["arm"], _figures(row[scope])) if scope in row else None

        return col.of("All operands" if scope == comparison.scope else f"{scope} alone".capitalize(), cell)

    def fails_alone(row: Row) -> str:
        known = {scope: row[scope]["gap"] for scope in OPERAND_NAMES.values() if scope in row}
        alone = [f"{scope} ({_phase(scope)})" for scope, gap in known.items() if gap > FAILURE_GAP]
        return words.names(alone) or ("none" if len(known) == len(OPERAND_NAMES) else "not recorded")

    columns = (
        col.text("Format", "format"),
        *map(gap_of, dict.fromkeys(table["scope"])),
        col.of("Fails alone", fails_alone),
    )
    caption = "Gap to FP32 in nats a character with 95% interval, by what is quantized: forward is weights and "
    caption += "activations, backward is gradients"
    text = (
        "An operand that fails alone is a cause, and no mere symptom: its arm differs from FP32 in nothing else. That "
        "the parts do not fail does not clear them, for their errors may add up."
    )
    listed = col.table(rows.values(), columns, caption, "operands-table", data=table)
    blocks: list[Block] = [listed, Paragraph(text)]
    fewest, own = int(single["n_pairs"].min()), analyzer.gaps.set_index("arm")["campaign"]
    if fewest < len(SEEDS) and single["arm"].map(own).any():
        blocks.append(pending_note(f"Some arms have {fewest} of {len(SEEDS)} pairs so far.", ["formats"]))
    return blocks


def _phase(operand: str) -> str:
    """The phase of an operand by its name for readers."""
    return "backward" if operand == OPERAND_NAMES["grad_output"] else "forward"


def _phases(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    wide = analyzer.health.pivot_table(index="arm", columns=["operand", "statistic"], values="value")
    names = [(operand, statistic) for operand in OPERAND_NAMES for statistic in RANGE]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(names)).set_axis(map("_".join, names), axis="columns")
    data = comparison.table[["format", "arm"]].sort_values("format", key=lambda names: names.map(format_order))
    stall = analyzer.loader.runs.groupby("arm")["stall_ratio"].mean()
    data = data.join(wide, on="arm").join(stall, on="arm").reset_index(drop=True)
    titles = ["Forward: weights overflow", "weights underflow", "activations overflow", "activations underflow"]
    titles += ["Backward: gradients overflow", "gradients underflow", "Optimizer: stall ratio"]
    columns = (col.arm(), *map(col.percent, titles, data.columns[2:]))
    caption = (
        "Fraction of nonzero elements, mean over layers, recorded steps and runs; stall ratio = 1 - flips / updates"
    )
    notes = (
        "Per-tensor amax scaling cannot overflow by more than the rounding of the largest element, so overflow near "
        "zero says nothing about a format's range under static or delayed scales. The stall ratio is shown, never "
        "ranked: it does not order arms as their losses do."
    )
    return [col.table(data, columns, caption, "phases"), Paragraph(notes)]


def _sqnr(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    found = analyzer.health[analyzer.health["statistic"] == "sqnr_db"]
    found = analyzer.of_formats(found[found["arm"].isin(comparison.table["arm"])], *SPLITS)
    if found.empty:
        return []
    data = found.pivot_table(index="format", columns="operand", values="value").reset_index()
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)
    names = {operand: name for operand, name in OPERAND_NAMES.items() if operand in data}
    listed = "; ".join(
        f"{row['format']}: {', '.join(f'{name} {words.number(row[key], 1)}' for key, name in names.items())}"
        for row in data.to_dict("records")
    )
    title = "Signal-to-quantization-noise ratio of the 8-bit formats, by operand"
    about = f"Mean signal-to-quantization-noise ratio in dB over layers and recorded steps. {listed}."
    drawn = data.rename(columns=names).melt("format", list(names.values()), var_name="operand")
    axes = ("", "SQNR (dB), higher is better")
    chart = charts.lines("sqnr", title, about, data, drawn, ("format", "value", "operand"), axes, markers=True)
    return [ChartBlock(chart)]


def _layers(analyzer: FailureAnalyzer) -> list[Block]:
    """For each class, where and when it shows in the arm that loses most by it: one run, a layer a row."""
    blocks: list[Block] = []
    classified = analyzer.leading(analyzer.classified).dropna(subset=["gap"])
    for cause, statistic in ((each.kind, each.statistic) for each in SYMPTOMS_OF_ARMS):
        losing = classified[classified["causes"].str.split(", ").str[0] == cause].to_dict("records")
        if not losing or statistic not in HEALTH_STATISTICS:
            continue
        row, run_id = losing[0], analyzer.example(losing[0]["arm"])
        looks = analyzer.loader.layer_history([run_id])
        data = looks[(looks["statistic"] == statistic) & looks["operand"].isin(list(OPERAND_NAMES))]
        if data.empty:
            continue
        text = (
            f"{row['format']} ({escape(row['scope'])}) loses most among the arms whose first class is {cause}. Its run "
            f"{col.arm_link(row['arm'], run_id, run_id).markdown()} is the one with the median final loss of its "
            f"{row['n_finished']} finished runs."
        )
        identity = f"layers-{health.FIGURES[statistic].title.lower()}"
        chart = health.by_layer(identity, statistic, data, f"Run {run_id}.", f" of {row['format']}")
        blocks += [Paragraph(Md(text)), chart]
    return [Heading("By layer and step"), *blocks] if blocks else []


def _signatures(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    """What the two extremes look like beside the split with the smallest gap: SQNR and underflow over the steps."""
    table = comparison.table.dropna(subset=["gap"])
    extremes = pd.concat([analyzer.of_formats(table, name) for name in LACKING])
    rest = analyzer.of_formats(table, *({*SPLITS} - {*LACKING, "e1m6"})).sort_values("gap").head(1)
    if extremes.empty or rest.empty:
        return []
    frames, runs = [], analyzer.loader.runs
    runs = runs[(runs["role"] == "report") & runs["final_val_loss"].notna()]
    for row in pd.concat([extremes, rest]).itertuples():
        looks = analyzer.loader.layer_history(runs.loc[runs["arm"] == row.arm, "run_id"])
        means = looks.groupby(["statistic", "operand", "step"], observed=True)["value"].mean().reset_index()
        frames.append(means[means["operand"].isin(list(OPERAND_NAMES))].assign(format=row.format))
    data = pd.concat(frames, ignore_index=True)
    blocks = [*_signature(data, "sqnr_db", "SQNR (dB)"), *_signature(data, "underflow", "became zero")]
    lacks = [LACKING[one_format(analyzer.loader.config(arm))] for arm in extremes["arm"]]
    text = (
        f"{words.names(lacks)}. {rest['format'].iloc[0]} is drawn beside because its gap to FP32 is the smallest of "
        "the other splits. Means over layers and finished runs."
    )
    return [Heading("Signatures of the extremes"), Paragraph(text), *blocks] if blocks else []


def _signature(data: pd.DataFrame, statistic: str, axis: str) -> list[Block]:
    """One figure of a few formats over the steps, a panel for each operand."""
    figure = health.FIGURES[statistic]
    data = charts.finite_rows(data[data["statistic"] == statistic], "value")
    means: dict[str, dict[str, float]] = {name: {} for name in data["format"].unique()}
    for (name, operand), value in data.groupby(["format", "operand"], observed=True)["value"].mean().items():
        means[name][operand] = value
    if len(means) < 2:
        return []
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{OPERAND_NAMES[each]} {figure.levels.text(own[each])}" for each in OPERAND_NAMES if each in own)
        for name, own in means.items()
    )
    identity = f"signature-{figure.title.lower()}"
    title = f"{figure.title} of {words.names([*means])} by step and operand"
    about = f"{figure.meaning} From step {data['step'].min()} to {data['step'].max()}. Means: {said}."
    columns, panels, percent = ("step", "value", "format"), ("operand", OPERAND_NAMES), statistic != "sqnr_db"
    chart = charts.lines(identity, title, about, data, data, columns, ("", axis), panels=panels, percent=percent)
    return [ChartBlock(chart)]


# Hypotheses


def _expected(expectation: Expectation, observed: Mapping[str, tuple[str, str]]) -> list[Block]:
    """A hypothesis and its predictions, each with its outcome and what is recorded."""
    rows = [
        {"text": text, "observed": observed.get(key, ("not decided", "no record tells"))}
        for key, text in expectation.predictions.items()
    ]
    columns = (
        col.text("Prediction", "text"),
        col.of("Outcome", lambda row: row["observed"][0]),
        col.of("Recorded", lambda row: escape(row["observed"][1])),
    )
    return [Paragraph(hypothesis(expectation)), col.table(rows, columns, "The hypothesis against what happened")]


def _e7m0(analyzer: FailureAnalyzer, comparison: Comparison | None) -> list[Block]:
    observed = _e7m0_observed(analyzer, comparison)
    if not observed:
        return [Paragraph(hypothesis_pending("No E7M0 run is recorded."))]
    text = (
        "A correction: the preregistration says that the range of E7M0 is that of BF16. It is half as wide in "
        "exponents, and the figures of overflow and underflow above say what that costs."
    )
    blocks = [*_expected(E7M0, observed), Paragraph(text)]
    if comparison is None:
        return blocks
    blocks += _alone(analyzer, comparison, "e7m0")
    rates = own_rates(analyzer.loader, comparison)
    for row in rates[rates["format"] == get_format("e7m0").label].itertuples():
        text = (
            f"Part of this gap is the learning rate that all formats share: on {row.n} held-out seeds its mean gap is "
            f"{words.number(row.gap_shared, sign=True)} nats at the shared rate {row.shared_rate:g} and "
            f"{words.number(row.gap_own, sign=True)} at {row.own_rate:g}, the best rate tried."
        )
        blocks.append(Paragraph(text))
    return blocks


def _e7m0_observed(analyzer: FailureAnalyzer, comparison: Comparison | None) -> dict[str, tuple[str, str]]:
    """Outcome and figures of each prediction; keys are left out where no record decides them."""
    found: dict[str, tuple[str, str]] = {}

    def outcome(held: bool) -> str:
        return OUTCOMES["yes" if held else "no"]

    runs = analyzer.of_formats(analyzer.loader.runs, "e7m0")
    ended = runs[(runs["role"] == "report") & runs["status"].isin(["finished", "failed"])]
    if len(ended):
        failed = int((ended["status"] == "failed").sum())
        found["no_failed_run"] = (outcome(failed == 0), f"{failed} of {len(ended)} runs failed")
    counted = [run_id for run_id in ended["run_id"] if "warnings" in analyzer.loader.records[run_id].run["summary"]]
    if counted:
        kinds = analyzer.warnings.loc[analyzer.warnings["run_id"].isin(counted), "what"].value_counts()
        of_range = int(kinds.reindex(RANGE).fillna(0).sum())
        others = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if kind not in RANGE)
        figure = f"{of_range} such warnings in {len(counted)} runs{f'; of other kinds: {others}' if others else ''}"
        found["no_warning"] = (outcome(of_range == 0), figure)
    if comparison is None:
        return found
    table = analyzer.of_formats(comparison.table, *SPLITS)
    own = analyzer.of_formats(table, "e7m0")["arm"]
    figures = analyzer.health[analyzer.health["arm"].isin(table["arm"])]
    extremes = figures[figures["arm"].isin(own) & figures["statistic"].isin(RANGE)]
    if len(extremes):
        worst = extremes.loc[extremes["value"].idxmax()]
        figure = f"largest: {worst['statistic']} of {OPERAND_NAMES[worst['operand']]}, {words.percent(worst['value'])}"
        found["no_range_error"] = (outcome(worst["value"] < 0.001), figure)
    sqnr = figures[(figures["statistic"] == "sqnr_db") & (figures["operand"] == "weight")].dropna(subset=["value"])
    if both := _first_two(sqnr.sort_values("value"), own):
        lowest = both[0]["value"] <= both[1]["value"]
        figure = f"E7M0 {both[0]['value']:.1f} dB; the next lowest {both[1]['value']:.1f} dB"
        found["lowest_sqnr"] = (outcome(lowest), figure)
    if both := _first_two(table.dropna(subset=["gap", "low", "high"]).sort_values("gap", ascending=False), own):
        said = [f"{row['gap']:+.3f} {words.interval(row['low'], row['high'])}" for row in both]
        figure = f"E7M0 {said[0]}; the next largest is {both[1]['format']}, {said[1]}"
        largest, overlap = both[0]["gap"] > both[1]["gap"], both[0]["low"] <= both[1]["high"]
        unsure = "not decided (the intervals overlap)"
        found["largest_gap"] = (unsure if largest and overlap else outcome(largest), figure)
    return found


def _first_two(rows: pd.DataFrame, own: pd.Series) -> list[dict[Any, Any]]:
    """The first row of the arms of `own` and the first of the others; empty where either is missing."""
    mine = rows["arm"].isin(own)
    both = [*rows[mine].head(1).to_dict("records"), *rows[~mine].head(1).to_dict("records")]
    return both if len(both) == 2 else []


def _e0m7(analyzer: FailureAnalyzer, comparison: Comparison | None) -> list[Block]:
    """H3 and H17 as predictions of one hypothesis."""
    if analyzer.of_formats(analyzer.loader.runs, "e0m7").empty:
        return [Paragraph(hypothesis_pending("No E0M7 run is recorded."))]
    found = zip(("gradients", "remedies"), verdicts_of(analyzer.loader, "H3", "H17"), strict=True)
    observed = {key: (OUTCOMES[verdict.answer], verdict.evidence) for key, verdict in found}
    return [*_expected(E0M7, observed), *(_alone(analyzer, comparison, "e0m7") if comparison else [])]


def _alone(analyzer: FailureAnalyzer, comparison: Comparison, fmt: str) -> list[Block]:
    """What each operand costs a format alone, in a sentence; nothing where that is not recorded."""
    table = analyzer.of_formats(analyzer.operands(comparison), fmt)
    table = table[table["n_pairs"] >= 2]
    whole, single = table[table["scope"] == comparison.scope], table[table["scope"] != comparison.scope]
    if single.empty:
        return []
    parts = [f"{row['scope']} {_figures(row)}" for row in single.to_dict("records")]
    worst = str(single.loc[single["gap"].idxmax(), "scope"])
    text = (
        f"One operand at a time in {get_format(fmt).label}, everything else unquantized (nats a character against "
        f"FP32): {'; '.join(parts)}. The costliest alone is {worst} ({_phase(worst)})."
    )
    if len(whole):
        total, added = (words.number(value, sign=True) for value in (whole["gap"].iloc[0], single["gap"].sum()))
        text += f" All together cost {total}, and the parts add up to {added}."
    return [Paragraph(text)]


# Remedies


def _remedies(analyzer: FailureAnalyzer, verdicts: tuple[Verdict, ...]) -> list[Block]:
    """What was tried on the two extreme formats, with its effect against the format without it and against FP32."""
    blocks: list[Block] = [verdict_table(verdicts, "verdicts"), *tests_table(verdicts, "verdict-tests")]
    tried = analyzer.remedies[analyzer.remedies["n_pairs"] >= 2]
    if len(tried):
        text = (
            "Difference: final validation loss with the remedy minus that of the same format without it, by seed; "
            "below zero it helps. The adjusted p is Holm's over the rows of a format that are recorded in full. Rows "
            "that are not planned are arms of other studies, shown for what they are worth: their comparison was not "
            "written down as a remedy."
        )
        blocks += [*_remedy_chart(tried), _remedy_table(tried), Paragraph(text), *_prevention(analyzer)]
    if lacking := remedies_missing(analyzer.loader):
        blocks.append(pending_note(lacking, ["formats", "remedies", "scaling"]))
    return blocks


def _remedy_table(tried: pd.DataFrame) -> Table:
    def planned(row: Row) -> str:
        badly = f"{row['n_ended_badly']} runs did not finish: not judged" if row["n_ended_badly"] else "in full"
        return f"{'yes' if row['planned'] else 'no'}, {'in part' if row['missing'] else badly}"

    columns = (
        col.text("Format", "format"),
        col.arm("Remedy", "remedy"),
        col.signed("Difference", "difference"),
        col.interval(),
        col.p("Adjusted p", "p_holm"),
        col.count("Pairs", "n_pairs"),
        col.signed("Gap before", "gap_before"),
        col.signed("Gap left", "gap"),
        col.of("Planned", planned),
    )
    return col.table(tried, columns, "Remedies and their measured effect", "remedies")


def _remedy_chart(tried: pd.DataFrame) -> list[Block]:
    columns = ["format", "remedy", "n_pairs", "difference", "low", "high", "gap", "gap_low", "gap_high"]
    data = charts.finite_rows(tried[columns], "difference", "low", "high")
    if data.empty:
        return []
    title = "What each remedy does to the loss of E0M7 and E7M0"
    about = "Paired difference of the final validation loss with 95% t interval."
    axis = "nats a character; left of 0 it helps"
    names, colours = data["format"] + ": " + data["remedy"], [PALETTE[EXTREMES.index(each)] for each in data["format"]]
    return [ChartBlock(charts.forest("remedies-chart", title, about, data, list(names), axis, colours))]


def _prevention(analyzer: FailureAnalyzer) -> list[Block]:
    """Advice that recorded runs support, and the failing formats that no remedy was tried on."""
    items = _what_helped(analyzer)
    bare, stalled, left = set(), False, set()
    for row in analyzer.leading(analyzer.classified).to_dict("records"):
        config = analyzer.loader.config(row["arm"])
        on_grid = config.optimizer.storage == "grid"
        stalled |= on_grid and config.optimizer.rounding == "nearest_even"
        if unscaled(config):
            bare.add(row["format"])
        elif not on_grid and row["causes"] != "step":  # where the step rule is to blame, no format is
            left.add(one_format(config))
    if bare:
        text = "{names} at scale 1 want a scale that follows the tensor: see Other scales in the {report}."
        report = Link("format comparison", PageRef("reports/format_comparison", "other-scales"))
        items.append(md(text, names=words.names(sorted(bare)), report=report))
    if stalled:
        text = "Stalls on the grid: what rounding stochastically in place of to nearest changes is H6 of the {report}."
        items.append(md(text, report=Link("manifold comparison", PageRef("reports/manifold_comparison"))))
    drawn = _drawn_gradients(analyzer)
    for name, said in drawn.items():
        text = f"Gradients rounded stochastically take {get_format(name).label}'s gap {{said}}; exploratory."
        items.append(md(text, said=", ".join(said)))
    untried = left - {"", *LACKING, *drawn}
    if labels := sorted((get_format(name).label for name in untried), key=format_order):
        fail, them = ("fail", "them") if len(labels) > 1 else ("fails", "it")
        helps = f"No remedy was tried on {words.names(labels)}, which {fail} as well: what helps {them} is not known."
        items.append(Md(helps))
    return [Heading("Prevention", 3), Bullets(tuple(items))] if items else []


def _drawn_gradients(analyzer: FailureAnalyzer) -> dict[str, list[str]]:
    """What gradients rounded stochastically change where a format fails without them, by the name of the format."""
    found = {}
    for row in analyzer.leading(analyzer.gaps[analyzer.gaps["n_pairs"] >= 2]).to_dict("records"):
        config = analyzer.loader.config(row["arm"])
        nearest = config.quantize.rounding.model_copy(update={"grad_output": "nearest_even"})
        quantize = config.quantize.model_copy(update={"rounding": nearest})
        key = (quantize, config.scaling, config.optimizer, row["baseline"])
        found[key, config.quantize.rounding.grad_output] = (one_format(config), row)
    parts: dict[str, list[str]] = {}
    for (key, rounding), (name, row) in found.items():
        _, before = found.get((key, "nearest_even"), ("", None))
        if rounding != "stochastic" or not before or name in ("", *LACKING):
            continue
        if before["failed"] or row["failed"]:
            how = before["scope"].replace(ALL_OPERANDS, "").strip("; ")
            change = f"from {words.number(before['gap'])} to {words.number(row['gap'])}"
            parts.setdefault(name, []).append(f"{change} ({how})" if how else change)
    return parts


# Runs


def _failed_runs(analyzer: FailureAnalyzer) -> list[Block]:
    failures = analyzer.failures
    if failures.empty:
        return [Paragraph("Every recorded run finished.")]
    columns = (
        col.run(),
        col.of("Format", lambda row: named(analyzer.loader.config(row["arm"]))),
        col.text("Rule", "rule"),
        col.text("Status", "status"),
        col.text("Kind", "kinds"),
        col.count("First bad or last step", "step"),
        col.text("Tensor", "tensor"),
        col.text("Phase", "phase"),
        col.text("Message", "message"),
    )
    caption = "Runs that failed, crashed, were interrupted or are still running"
    return [col.table(failures, columns, caption, "unfinished"), *_endings(analyzer)]


def _endings(analyzer: FailureAnalyzer) -> list[Block]:
    """The loss around the end of runs that ended badly, those that failed first, and what their records advise."""
    failures = analyzer.failures[analyzer.failures["status"] != "running"]
    ordered = failures.sort_values("status", key=lambda status: status != "failed", kind="stable")
    items, frames = [], []
    for row in ordered.head(ENDINGS_SHOWN).itertuples():
        failure = diagnose(analyzer.loader.records[row.run_id])
        if failure is None:
            continue
        advice = " ".join(f"{line[0].upper()}{line[1:]}." for line in failure.advice) or "No advice."
        told = f", {', '.join(failure.kinds)}: {failure.cause or failure.message}. {advice}"
        items.append(md("{run}{told}", run=col.arm_link(row.arm, row.run_id, row.run_id), told=told))
        losses = pd.DataFrame(failure.losses, columns=["step", "loss"]).tail(ENDING_STEPS)
        losses = losses.assign(run_id=row.run_id, label=f"{row.format} {row.run_id[-8:]}")
        frames.append(losses.assign(to_end=losses["step"] - losses["step"].max()))
    if not items:
        return []
    more = f" {len(ordered) - ENDINGS_SHOWN} more are in the table." if len(ordered) > ENDINGS_SHOWN else ""
    text = f"What their records advise; whether it helps, only a run can tell.{more}"
    return [*_ending_chart(pd.concat(frames, ignore_index=True)), Paragraph(text), Bullets(tuple(items))]


def _ending_chart(data: pd.DataFrame) -> list[Block]:
    """Training loss against the steps that were left, a line a run; a cross where it was not finite any more."""
    finite = charts.finite_rows(data, "loss")
    if finite.empty:
        return []
    lost = data[data["loss"].isna()]
    said = "; ".join(
        f"{row.run_id} ends at step {row.step} with {row.loss:.3g}"
        + (", then not finite" if row.run_id in set(lost["run_id"]) else "")
        for row in finite.groupby("run_id", sort=False).tail(1).itertuples()
    )
    title = "Training loss around the end of runs that ended badly"
    about = f"Nats a character; a cross where the loss was not finite any more. {said}."
    wide = bool(finite["loss"].min() > 0 and finite["loss"].max() > 20 * finite["loss"].min())
    columns, axes, crossed = (
        ("to_end", "loss", "label"),
        ("steps before the last one", "training loss"),
        {*lost["label"]},
    )
    chart = charts.lines("endings", title, about, data, finite, columns, axes, crossed=crossed, markers=True, log=wide)
    return [ChartBlock(chart)]


def _warnings(analyzer: FailureAnalyzer) -> list[Block]:
    """How often telemetry warned, by kind and format, and how many runs are too old to have warnings."""
    warnings, runs, blocks = analyzer.warnings, analyzer.loader.runs, []
    ended = [each for each in analyzer.loader.records.values() if each.status in ("finished", "failed")]
    if old := sum("warnings" not in record.run["summary"] for record in ended):
        blocks.append(Paragraph(f"{old} of the {len(ended)} runs that ended were recorded before runs had warnings."))
    if warnings.empty:
        return [*blocks, Paragraph("No recorded run holds a warning.")]
    warned = warnings["run_id"].nunique()
    finished = int((runs["run_id"].isin(warnings["run_id"]) & (runs["status"] == "finished")).sum())
    text = (
        f"A warning says that a figure went beyond a limit while a run went on. {finished} of the {warned} runs "
        "with warnings finished. The pages of the runs list each warning with its figure and step."
    )
    configs = {arm: analyzer.loader.config(arm) for arm in warnings["arm"].unique()}
    bare = {arm: named(config) for arm, config in configs.items() if not config.quantize.operands}
    names = [bare.get(row.arm, row.format) for row in warnings.itertuples()]
    data = (
        warnings.assign(format=names)
        .groupby(["what", "format"])
        .agg(
            warnings=("step", "size"),
            runs=("run_id", "nunique"),
            first_step=("step", "min"),
            tensor=("tensor", lambda tensors: tensors.mode().iloc[0]),
        )
    )
    data = data.reset_index().sort_values(["warnings", "what", "format"], ascending=[False, True, True])
    columns = (
        col.text("What", "what"),
        col.text("Format", "format"),
        col.count("Warnings", "warnings"),
        col.count("Runs", "runs"),
        col.count("First step", "first_step"),
        col.text("Most often in", "tensor"),
    )
    caption = f"{len(warnings)} warnings of {warned} runs, by kind and format"
    return [*blocks, Paragraph(text), col.table(data, columns, caption, "warnings")]


def _reproduce(analyzer: FailureAnalyzer) -> list[Block]:
    """One run of each arm that failed, and the unquantized run of its seed: the smallest pair that shows it."""
    classified, loader = analyzer.leading(analyzer.classified), analyzer.loader
    if classified.empty:
        return []
    inner: list[Block] = []
    for row in classified.head(LISTED).to_dict("records"):
        record = loader.records[analyzer.example(row["arm"])]
        base = loader.runs[(loader.runs["arm"] == row["baseline"]) & (loader.runs["seed"] == record.config.seed)]
        pair = base["run_id"].head(1) if record.status == "finished" else []
        shown = [record, *(loader.records[run_id] for run_id in pair)]
        told = row["causes"] + (f", {row['phases']}" if row["phases"] else "")
        inner += [
            Paragraph(md("{run}: {told}", run=col.arm_link(row["arm"], record.id, record.id), told=told)),
            CodeBlock("\n".join(command(run.config) for run in shown), "bash"),
        ]
    more = f" The first {LISTED} of {len(classified)} are listed." if len(classified) > LISTED else ""
    text = (
        "One run shows a failure: the one with the median loss of its arm, or the first that did not finish. Where the "
        "failure is a gap, the second command is the unquantized run of the same seed, and the gap is the difference "
        f"of their last validation losses.{more}"
    )
    commands = Details(f"Commands of {min(len(classified), LISTED)} failures", tuple(inner))
    return [Heading("Reproduce a failure"), Paragraph(text), commands]


def _what_would_change(analyzer: FailureAnalyzer) -> tuple[str, ...]:
    judged = analyzer.leading(analyzer.gaps[analyzer.gaps["n_pairs"] >= 2])
    failed = judged["failed"].astype(bool) & judged["gap"].notna()
    unsure = int((failed & (judged["low"] <= FAILURE_GAP)).sum())
    near = int((~judged["failed"].astype(bool) & (judged["high"] > FAILURE_GAP)).sum())
    seeds = (
        f"More seeds: the interval of {unsure} arms that fail, and of {near} that do not, contains the limit of "
        f"{FAILURE_GAP:g} nats."
    )
    return (
        *([seeds] if unsure or near else []),
        "A learning rate of its own for each format: all have the rate that suits FP32, and a row of the remedies "
        "shows what another one does to the extremes.",
        "A scale that does not follow the tensor: with the current largest value as the scale nothing overflows, and "
        "the ranges of wide formats bring nothing. Study scaling has such arms.",
        "A larger or longer training: the recorded model is small, and what is underflow here may be noise there, or "
        "the other way round.",
    )
