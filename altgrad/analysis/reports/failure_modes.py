"""Report ANAL-02: where each format fails - forward, backward or optimizer - and what prevents it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, format_order, own_rates
from altgrad.analysis.failures import RANGE_THRESHOLD, UNDERFLOW_THRESHOLD, FailureAnalyzer, headline
from altgrad.analysis.hypotheses import E7M0
from altgrad.analysis.loader import OPERAND_NAMES, ExperimentDataLoader
from altgrad.analysis.reports import common
from altgrad.formats import SPLITS_8BIT
from altgrad.pages import (
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
        ]
    blocks += [
        *_failed_runs(analyzer),
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


def _failed_runs(analyzer: FailureAnalyzer) -> list[Block]:
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
    ]


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
