"""Report ANAL-02: where each format fails - forward, backward or optimizer - and what prevents it."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, format_order, own_rates
from altgrad.analysis.failures import RANGE_THRESHOLD, UNDERFLOW_THRESHOLD, FailureAnalyzer, diagnose, headline
from altgrad.analysis.hypotheses import E7M0
from altgrad.analysis.loader import OPERAND_NAMES, ExperimentDataLoader
from altgrad.analysis.reports import common, health
from altgrad.formats import SPLITS_8BIT
from altgrad.pages import (
    BACKGROUND,
    FOREGROUND,
    PALETTE,
    Block,
    Bullets,
    Cell,
    Chart,
    ChartBlock,
    Column,
    Heading,
    Md,
    Page,
    Paragraph,
    Table,
    join,
    md,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/failure_modes"
SPLITS = tuple(fmt.label for fmt in SPLITS_8BIT)
REMEDIES = {
    "overflow": "a scale with headroom, or a format with more exponent bits for that operand",
    "underflow": "more exponent bits, or a scale per row or block, for that operand",
    "rounding error": "more mantissa bits, or stochastic rounding, for that operand",
}
STATISTIC_OF_MODE = {"overflow": "overflow", "underflow": "underflow", "rounding error": "sqnr_db"}
"""The figure of the layers that shows a symptom."""
ENDINGS_SHOWN = 8
"""Runs that ended badly whose last losses and advice are shown."""
ENDING_STEPS = 30
"""How many of the losses that a failure holds are shown."""


def failure_modes_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where there is nothing to explain."""
    analyzer, comparison = FailureAnalyzer(loader), headline(FormatComparator(loader))
    blocks: list[Block] = [
        Paragraph(
            Md("*Where does each format fail: in the forward pass, the backward pass or the optimizer?* (ANAL-02)")
        ),
        common.data_line(loader),
        *common.left_out(loader),
        Heading("Executive Summary"),
    ]
    modes = analyzer.modes(comparison) if comparison is not None else pd.DataFrame()
    if comparison is None:
        blocks.append(Paragraph(md("**Failure Mode: pending.** {runs}", runs=_runs_sentence(analyzer))))
    else:
        blocks += [
            Paragraph(_answer(modes, analyzer)),
            *common.pilot(loader, [comparison.baseline], int(comparison.table["n_pairs"].max())),
            *_sqnr_block(analyzer, modes),
            Heading("Failure Mode by format"),
            _modes_table(modes),
            Paragraph(
                f"The rule, in this order: recorded failures; a gap whose interval does not lie above zero is no "
                f"failure; "
                f"overflow from {RANGE_THRESHOLD:.1%} of an operand's nonzero elements; underflow from "
                f"{UNDERFLOW_THRESHOLD:.0%}; else "
                "rounding error in the operand with the lowest SQNR. It names the strongest recorded symptom, not a "
                "proven cause."
            ),
            Heading("Forward, backward and optimizer"),
            *_phase_tables(loader, analyzer, comparison),
            *_layers(loader, modes),
            *_signatures(loader, comparison),
        ]
    blocks += [
        *_failed_runs(loader, analyzer),
        *_warnings(loader, analyzer),
        Heading("E7M0: hypothesis and observation"),
        *_e7m0(loader, analyzer, comparison),
    ]
    if comparison is None:
        missing = (
            "No recorded format can be compared with an FP32 run of the same setting."
            if len(loader.runs)
            else "No runs are recorded."
        )
        blocks += common.pending(missing, ["pilot-formats"])
    else:
        blocks += [Heading("Prevention"), *_prevention(modes)]
    arms = [] if comparison is None else [comparison.baseline, *comparison.table["arm"]]
    return Page(
        PATH,
        "Failure modes",
        (*blocks, *common.traceability(loader, [*arms, *analyzer.failures["arm"]])),
        description="Where each 8-bit format fails in training: overflow, underflow, rounding error, by operand and "
        "phase.",
        provenance=common.provenance(loader, built),
    )


def _runs_sentence(analyzer: FailureAnalyzer) -> str:
    count = len(analyzer.failures)
    return f"{count} recorded runs did not finish; they are listed below." if count else "No recorded run ended badly."


def _answer(modes: pd.DataFrame, analyzer: FailureAnalyzer) -> Md:
    shown = modes[~modes["mode"].isin(["none seen", "not decided"])]
    failed = int((analyzer.failures["status"] == "failed").sum())
    ended = (
        f"{failed} recorded run{'s' if failed != 1 else ''} failed outright"
        if failed
        else "no recorded run failed outright"
    )
    lost, broken = shown[shown["low"] > 0], shown[~(shown["low"] > 0)]
    if shown.empty:
        return md("**Failure Mode: none seen.** No format's loss gap lies above zero, and {ended}.", ended=ended)
    parts = []
    if len(lost):
        worst = lost.sort_values("gap").iloc[-1]
        parts.append(
            md(
                "{count} of {total} formats end worse than FP32, {format} most: {gap} nats a character {interval}, n "
                "= {n} "
                "seeds, with {mode} as its strongest symptom ({where})",
                count=len(lost),
                total=len(modes),
                format=worst["format"],
                gap=common.number(worst["gap"], sign=True),
                interval=common.interval(worst["low"], worst["high"]),
                n=int(worst["n_pairs"]),
                mode=worst["mode"],
                where=_where(worst),
            )
        )
    if len(broken):
        parts.append(md("with failed runs: {names}", names=common.names(list(broken["format"]))))
    return md("**Failure Mode: {parts}.** Of all runs, {ended}.", parts=join("; ", parts), ended=ended)


def _where(row: pd.Series) -> str:
    operand = OPERAND_NAMES.get(row["operand"], "") if isinstance(row["operand"], str) else ""
    return ", ".join(part for part in (operand, row["phase"]) if part) or "–"


def _modes_table(modes: pd.DataFrame) -> Table:
    columns: tuple[Column | str, ...] = (
        "Format",
        Column("Failure Mode"),
        Column("Where"),
        Column("Evidence"),
        *common.right("Gap to FP32", "95% interval", "Seeds", "Finished"),
    )
    rows = tuple(
        (
            common.arm_link(row["arm"], row["format"]),
            row["mode"],
            _where(row),
            row["evidence"],
            common.number(row["gap"], sign=True),
            common.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            f"{row['n_finished']} of {row['n_runs']}",
        )
        for _, row in modes.iterrows()
    )
    return Table(columns, rows, "Failure Mode of each format, from its recorded runs", data=modes, id="failure-modes")


def _sqnr_block(analyzer: FailureAnalyzer, modes: pd.DataFrame) -> list[Block]:
    health = analyzer.health[(analyzer.health["statistic"] == "sqnr_db") & analyzer.health["arm"].isin(modes["arm"])]
    health = health[health["format"].isin(SPLITS)]
    data = health.pivot_table(index="format", columns="operand", values="value").reset_index()
    if data.empty:
        return []
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)
    operands = [operand for operand in OPERAND_NAMES if operand in data]

    def draw(axes: Axes) -> None:
        places = common.spread([data[operand].iloc[-1] for operand in operands], data[operands].to_numpy())
        for operand, colour, marker, place in zip(operands, PALETTE, "os^", places, strict=False):
            axes.plot(range(len(data)), data[operand], marker=marker, color=colour, linewidth=1.5, markersize=5)
            axes.annotate(OPERAND_NAMES[operand], (len(data) - 0.85, place), va="center", color=colour)
        axes.set_xticks(range(len(data)), list(data["format"]), color=FOREGROUND)
        axes.set_xlim(-0.4, len(data) + 0.3)
        axes.margins(y=0.15)
        axes.set_ylabel("SQNR (dB), higher is better")

    listed = "; ".join(
        f"{row['format']}: " + ", ".join(f"{OPERAND_NAMES[name]} {common.number(row[name], 1)}" for name in operands)
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
        cells = [common.percent(value) for value in figures.values()]
        rows.append((common.arm_link(arm, name), *cells, common.percent(records[-1]["stall_ratio"])))
    columns: tuple[Column | str, ...] = (
        "Format",
        *common.right(
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
        "format's range under static or delayed scales. The stall ratio is shown, never ranked: it does not predict "
        "the loss."
    )
    return [Table(columns, tuple(rows), caption, data=pd.DataFrame(records), id="phases"), Paragraph(notes)]


def _layers(loader: ExperimentDataLoader, modes: pd.DataFrame) -> list[Block]:
    """For each symptom, where and when it shows in the format that loses most by it: one run, a layer a row."""
    blocks: list[Block] = []
    losing = modes[modes["mode"].isin(STATISTIC_OF_MODE) & (modes["low"] > 0)].sort_values(
        "gap", ascending=False, kind="stable"
    )
    for _, row in losing.drop_duplicates("mode").iterrows():
        run_id = _median_run(loader, row["arm"])
        looks = loader.looks([run_id])
        for statistic, title, levels in health.LOSSES:
            data = looks[(looks["statistic"] == statistic) & looks["operand"].isin(list(OPERAND_NAMES))]
            if statistic == STATISTIC_OF_MODE[row["mode"]] and len(data):
                text = md(
                    "{format} loses most among the formats whose strongest symptom is {mode}. Its run {run} is the one "
                    "with the median final loss of its {n} finished runs.",
                    format=row["format"],
                    mode=row["mode"],
                    run=common.arm_link(row["arm"], run_id, run_id),
                    n=int(row["n_finished"]),
                )
                note = f"{health.MEANINGS[statistic]} Run {run_id}."
                name = f"{title} of {row['format']} by layer and step"
                blocks += [Paragraph(text), health.lost(f"layers-{title.lower()}", name, data, levels, note)]
    return [Heading("By layer and step"), *blocks] if blocks else []


def _median_run(loader: ExperimentDataLoader, arm: str) -> str:
    """Of an arm's runs that are compared, the one with the median final loss; of two in the middle the better one."""
    runs = _compared_runs(loader, arm)
    runs = runs.sort_values(["final_val_loss", "seed", "run_id"])
    return str(runs["run_id"].iloc[(len(runs) - 1) // 2])


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
        f"{common.names([lacks[name] for name in extremes])}. {best} is drawn beside because its gap to FP32 is the "
        "smallest of the other splits. Means over layers and finished runs."
    )
    return [Heading("Signatures of the extremes"), Paragraph(text), *blocks]


def _signature(data: pd.DataFrame, statistic: str, identity: str, title: str, label: str) -> Chart | None:
    """One figure of a few formats over the steps, a panel for each operand."""
    data = common.finite_rows(data[data["statistic"] == statistic], "value")
    operands = [operand for operand in OPERAND_NAMES if (data["operand"] == operand).any()]
    formats = list(dict.fromkeys(data["format"]))
    if not operands or len(formats) < 2:
        return None
    text = health.SQNR.text if statistic == "sqnr_db" else common.percent
    first, last = int(data["step"].min()), int(data["step"].max())
    means = data.groupby(["format", "operand"], observed=True)["value"].mean()
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{OPERAND_NAMES[each]} {text(means[name, each])}" for each in operands if (name, each) in means)
        for name in formats
    )

    def draw(axes: Axes) -> None:
        ticks = [(0.0, str(first)), (1.0, str(last))]
        offsets = common.panel_axes(axes, [OPERAND_NAMES[operand] for operand in operands], ticks)
        for operand, offset in zip(operands, offsets, strict=True):
            panel = data[data["operand"] == operand]
            for name, colour in zip(formats, PALETTE, strict=False):
                line = panel[panel["format"] == name]
                place = offset + (line["step"] - first) / max(last - first, 1)
                axes.plot(place, line["value"], color=colour, linewidth=1.5)
        for offset in offsets[1:]:
            axes.axvline(offset - 0.03, color=BACKGROUND, linewidth=8)
        ends = [_end(data, name) for name in formats]
        for name, colour, place in zip(formats, PALETTE, common.spread(ends, data["value"].to_numpy()), strict=False):
            axes.annotate(name, (offsets[-1] + 1.02, place), va="center", color=colour, annotation_clip=False)
        axes.set_ylabel(label)
        if statistic != "sqnr_db":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")

    description = f"{health.MEANINGS[statistic]} From step {first} to {last}. Means: {said}."
    title = f"{title} of {common.names(formats)} by step and operand"
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
        *common.right("Warnings", "Runs", "First step"),
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
            common.arm_link(row.arm, row.run_id, row.run_id),
            row.format,
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
        run = common.arm_link(row.arm, row.run_id, row.run_id)
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
    finite = common.finite_rows(data, "loss")
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
        places = common.spread(
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
        return [Paragraph(common.hypothesis_pending("No E7M0 run is recorded."))]
    rows = tuple(
        (text, *observed.get(key, ("not decided", "no runs recorded"))) for key, text in E7M0.predictions.items()
    )
    return [
        Paragraph(common.hypothesis(E7M0)),
        Table(("Prediction", "Outcome", "Recorded"), rows, "The hypothesis against what happened"),
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
            f"gap is {common.number(row['gap_shared'], sign=True)} nats at the shared rate {row['shared_rate']:g} and "
            f"{common.number(row['gap_own'], sign=True)} at {row['own_rate']:g}, the best rate tried."
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
    health = analyzer.health
    if comparison is None:
        return found
    table = comparison.table[comparison.table["format"].isin(SPLITS)]
    own = health[(health["format"] == "E7M0") & health["arm"].isin(table["arm"])]
    extremes = own[own["statistic"].isin(["overflow", "underflow"])]
    if len(extremes):
        worst = extremes.loc[extremes["value"].idxmax()]
        figure = f"largest: {worst['statistic']} of {OPERAND_NAMES[worst['operand']]}, {common.percent(worst['value'])}"
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
            f"E7M0 {own_gap['gap']:+.3f} {common.interval(own_gap['low'], own_gap['high'])}; the next largest is "
            f"{rival}, "
            f"{rest.at[rival, 'gap']:+.3f} {common.interval(rest.at[rival, 'low'], rest.at[rival, 'high'])}"
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


def _prevention(modes: pd.DataFrame) -> list[Block]:
    items = []
    for row in modes.sort_values("gap", ascending=False).to_dict("records"):
        remedy = REMEDIES.get(row["mode"])
        if remedy:
            where = OPERAND_NAMES.get(row["operand"], "")
            items.append(
                md(
                    "{format} ({mode} in the {where}, {evidence}): {remedy}.",
                    format=row["format"],
                    mode=row["mode"],
                    where=where,
                    evidence=row["evidence"],
                    remedy=remedy,
                )
            )
    safe = modes[modes["mode"] == "none seen"]["format"]
    if len(safe):
        items.append(
            md(
                "No failure was seen with {names} in these runs, which is not evidence that there is none.",
                names=", ".join(safe),
            )
        )
    if not items:
        return [Paragraph("No format of these runs shows a symptom to prevent.")]
    return [
        Paragraph(
            "Advice that follows from the symptoms above. No remedy has been tested by a recorded run yet; the "
            "effect is unknown until one has."
        ),
        Bullets(tuple(items)),
    ]
