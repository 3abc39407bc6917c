"""Report ANAL-01: which format, by the paired loss gap to the unquantized run."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, SweetSpot, format_order, own_rates
from altgrad.analysis.loader import ExperimentDataLoader, rule_label
from altgrad.analysis.reports import common
from altgrad.formats import get_format
from altgrad.pages import (
    FOREGROUND,
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
    Column,
    Details,
    Heading,
    Md,
    Page,
    Paragraph,
    Table,
    md,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/format_comparison"
LINEAR_TO = 0.05
"""The gap chart's scale is linear up to here: the close formats must be readable beside E7M0."""
GAP_TICKS = (-0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def format_comparison_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where they allow no comparison."""
    comparator = FormatComparator(loader)
    blocks: list[Block] = [
        Paragraph(Md("*Which 8-bit format trains with the smallest loss against the unquantized run?* (ANAL-01)")),
        common.data_line(loader),
        *common.left_out(loader),
        Heading("Executive Summary"),
    ]
    if not comparator.comparisons:
        blocks += [
            Paragraph(Md("**Sweet-spot format: pending.** No recorded run can be compared yet.")),
            *common.pending(_missing(loader), ["pilot-formats"]),
        ]
    else:
        first, *others = comparator.comparisons
        spot = comparator.sweet_spot(first)
        blocks += [
            Paragraph(answer(first, spot)),
            *common.pilot(loader, [first.baseline], int(first.table["n_pairs"].max())),
            ChartBlock(gap_chart(first)),
            Heading("Results"),
            *_results(loader, first, spot.best, "results"),
            *_own_rates(loader, first),
            *_unmatched(comparator),
        ]
        for position, comparison in enumerate(others, start=2):
            other = comparator.sweet_spot(comparison)
            table = _results(loader, comparison, other.best, f"results-{position}")
            inner = (Paragraph(answer(comparison, other)), *table)
            blocks.append(Details(f"Another setting: {comparison.scope}; {_setting(loader, comparison)}", inner))
        blocks += [Heading("Conclusions"), Bullets(tuple(_conclusions(first, spot))), *_method(loader, first)]
    return Page(
        PATH,
        "Format comparison",
        (*blocks, *common.traceability(loader, _arms(loader, comparator))),
        description="Which 8-bit number format trains with the smallest loss gap, from recorded runs with intervals.",
        provenance=common.provenance(loader, built),
    )


def answer(comparison: Comparison, spot: SweetSpot) -> Md:
    """The answer in one bold sentence, with number, interval and seeds."""
    aside = md(" Not ranked: {names}.", names=common.names(spot.unranked)) if spot.unranked else Md("")
    if spot.best is None:
        return md("**Sweet-spot format: no answer,** because {reason}.{aside}", reason=spot.reason, aside=aside)
    row = _row(comparison, spot.best)
    figures = md(
        "{best} ends {gap} nats a character from FP32 (95% interval {interval}, n = {n} seeds) with {scope} quantized",
        best=spot.best,
        gap=common.number(row["gap"], sign=True),
        interval=common.interval(row["low"], row["high"]),
        n=int(row["n_pairs"]),
        scope=comparison.scope,
    )
    apart = (
        md("; the paired test tells {names} apart from it.", names=common.names(spot.worse)) if spot.worse else Md(".")
    )
    if spot.conclusive:
        return md(
            "**Sweet-spot format: {best}.** {figures}{apart}{aside}",
            best=spot.best,
            figures=figures,
            apart=apart,
            aside=aside,
        )
    return md(
        "**Sweet-spot format: inconclusive between {all}.** {figures}; the paired test cannot tell {tied} from "
        "it.{aside}",
        all=common.names([spot.best, *spot.tied]),
        figures=figures,
        tied=common.names(spot.tied),
        aside=aside,
    )


def gap_chart(comparison: Comparison) -> Chart:
    """Paired gap of every format to FP32 with its 95% interval, in the order of exponent bits."""
    data = common.finite_rows(comparison.table[["format", "arm", "n_pairs", "gap", "low", "high"]], "gap")
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)

    def draw(axes: Axes) -> None:
        places = range(len(data))
        common.reference_line(axes, "FP32")
        axes.vlines(places, data["low"], data["high"], color=PALETTE[0], linewidth=2)
        axes.plot(places, data["gap"], "o", color=PALETTE[0], markersize=6)
        for place, gap, high in zip(places, data["gap"], data["high"].fillna(data["gap"]), strict=True):
            text = common.number(gap, sign=True)
            axes.annotate(text, (place, high), xytext=(0, 7), textcoords="offset points", ha="center", color=FOREGROUND)
        axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=1.5)
        ticks = [tick for tick in GAP_TICKS if data["low"].min() - 0.02 <= tick <= 1.3 * data["high"].max()]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.margins(y=0.12)
        axes.set_xticks(places, [f"{row['format']}\nn = {row['n_pairs']}" for _, row in data.iterrows()])
        axes.set_xlim(-0.6, len(data) - 0.4)
        axes.set_ylabel(f"loss gap to FP32, nats a character\n(linear to {LINEAR_TO:g}, then logarithmic)")

    listed = "; ".join(f"{row.format} {row.gap:+.3f} {common.interval(row.low, row.high)}" for row in data.itertuples())
    return Chart(
        "loss-gap",
        "Loss gap to FP32 by format",
        f"Mean difference of the final validation loss to the FP32 run of the same seed, with 95% paired t interval: "
        f"{listed}.",
        data,
        draw,
    )


def _results(loader: ExperimentDataLoader, comparison: Comparison, best: str | None, identity: str) -> list[Block]:
    columns: tuple[Column | str, ...] = (
        "Format",
        *common.right("Gap to FP32", "95% interval", "Seeds", "Validation loss", "Finished", "p against the best"),
        Column("Verdict"),
    )
    rows = []
    for row in comparison.table.to_dict("records"):
        verdict = _verdict(row, best)
        rows.append(
            (
                common.arm_link(row["arm"], row["format"]),
                common.number(row["gap"], sign=True),
                common.interval(row["low"], row["high"]),
                int(row["n_pairs"]),
                common.number(row["val_loss"]),
                f"{row['n_finished']} of {row['n_runs']}",
                common.p_text(row["p_holm"]),
                verdict,
            )
        )
    caption = md(
        "{scope} quantized; {setting}. Gap: nats a character, paired by seed. p: paired t test, Holm-adjusted.",
        scope=comparison.scope.capitalize(),
        setting=_setting(loader, comparison),
    )
    base = Paragraph(md("Baseline: {arm}.", arm=common.arm_link(comparison.baseline)))
    return [Table(columns, tuple(rows), caption, data=comparison.table, id=identity), base]


def _verdict(row: dict[str, Any], best: str | None) -> str:
    if row["n_finished"] < row["n_runs"]:
        return "not ranked: a run did not finish"
    if row["n_pairs"] < 2:
        return "not ranked: fewer than two pairs"
    if row["format"] == best:
        return "smallest gap"
    if row["tied"]:
        return "tied with the best"
    if get_format(row["format"].split("/")[0]).bits > 8:
        return "reference, not 8 bits"
    return "worse than the best"


def _conclusions(comparison: Comparison, spot: SweetSpot) -> list[Md]:
    table = comparison.table
    lost = table[(table["low"] > 0) & (table["n_finished"] == table["n_runs"])]
    close = table[(table["low"] <= 0) & (table["high"] >= 0)]
    items = []
    if spot.best is not None and spot.tied:
        items.append(
            md(
                "{names} cannot be told apart at this number of seeds; no single format is named.",
                names=common.names([spot.best, *spot.tied]),
            )
        )
    if len(close):
        items.append(
            md(
                "Not told from FP32 (the interval holds zero, which is not evidence of equality): {names}.",
                names=", ".join(close["format"]),
            )
        )
    if len(lost):
        worst = lost.sort_values("gap").iloc[-1]
        items.append(
            md(
                "Worse than FP32: {names}. The largest gap is {format}'s, {gap} nats {interval}.",
                names=", ".join(lost["format"]),
                format=worst["format"],
                gap=common.number(worst["gap"], sign=True),
                interval=common.interval(worst["low"], worst["high"]),
            )
        )
    pair = table.set_index("format").reindex(["E0M7", "E1M6"])[["gap", "n_pairs"]]
    if pair["gap"].notna().all():
        gap = pair["gap"].iloc[1] - pair["gap"].iloc[0]
        items.append(
            md(
                "E1M6 is E0M7 times 4: with a free scale the two are one quantizer. Their recorded gaps differ by "
                "{gap} nats.",
                gap=f"{gap:+.4f}",
            )
        )
    unfinished = table[table["n_finished"] < table["n_runs"]]
    if len(unfinished):
        items.append(
            md(
                "With runs that did not finish, and therefore not ranked: {names}.",
                names=", ".join(unfinished["format"]),
            )
        )
    items.append(
        Md(
            "What would change this answer: more seeds (the intervals shrink with their square root), another "
            "learning rate for a format, a larger model, longer runs, other layer types or operands."
        )
    )
    return items


def _method(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    text = (
        "Every format shares the seeds, batches, learning rate and schedule of the FP32 runs; the validation loss is "
        "computed with the weights "
        "as deployed (quantized), at the last step. The interval is the paired t interval over seeds. The format "
        "with the smallest gap is "
        "compared with each other one by a paired t test, Holm-adjusted; since the best one is picked from the same "
        "data, its own gap is "
        "a little optimistic. Runs that did not finish have no loss and are counted, not dropped; runs of tuning "
        "studies are left out."
    )
    return [Heading("Method and caveats"), Paragraph(text)]


def _own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    heading, rates = Heading("At a learning rate of its own"), own_rates(loader, comparison)
    shared = f"All formats share FP32's learning rate, {loader.config(comparison.baseline).optimizer.learning_rate:g}."
    if rates.empty:
        return [
            heading,
            Paragraph(f"{shared} No tuning runs are recorded: what another rate would change is not known."),
        ]
    rows = tuple(
        (
            row["format"],
            f"{row['own_rate']:g}",
            common.number(row["gap_shared"], sign=True),
            common.number(row["gap_own"], sign=True),
            int(row["n"]),
        )
        for row in rates.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "Format",
        *common.right("Best rate tried", "Gap at the shared rate", "Gap at its best rate", "Held-out seeds"),
    )
    text = (
        f"{shared} The tuning runs show what a rate of its own changes: the mean gap to FP32 in nats a character, on "
        "held-out seeds too few for an interval. Where the two columns differ, the gap above is partly the rate's."
    )
    table = Table(columns, rows, "Gap to FP32 on the tuning seeds", data=rates, id="own-rates")
    return [heading, Paragraph(text), table]


def _unmatched(comparator: FormatComparator) -> list[Block]:
    runs = comparator.unmatched
    if runs.empty:
        return []
    return [
        Paragraph(
            f"{len(runs)} AdamW runs ({', '.join(sorted(runs['format'].unique()))}) have no FP32 run of the same "
            f"setting "
            "(learning rate, length, data) and take no part here."
        )
    ]


def _missing(loader: ExperimentDataLoader) -> str:
    runs = loader.runs
    if runs.empty:
        return "No runs are recorded."
    return (
        f"{len(runs)} runs are recorded, but none of them is an AdamW run of a format together with an FP32 run of the "
        "same setting (model, data, steps, learning rate): without one there is no gap to report."
    )


def _setting(loader: ExperimentDataLoader, comparison: Comparison) -> str:
    config = loader.config(comparison.baseline)
    model = config.model
    return (
        f"{rule_label(config)}, learning rate {config.optimizer.learning_rate:g}, {config.max_steps} steps, "
        f"{model.layers} layers of {model.dim}, context {model.context}"
        + (f", {config.accumulate} batches a step" if config.accumulate > 1 else "")
        + (", range-aware clipping" if config.stability.clip == "range_aware" else "")
        + (f", {shift.upper()} when it goes wrong" if (shift := config.stability.shift_to) else "")
    )


def _row(comparison: Comparison, name: str) -> pd.Series:
    return comparison.table.set_index("format").loc[name]


def _arms(loader: ExperimentDataLoader, comparator: FormatComparator) -> list[str]:
    used = [comparison.baseline for comparison in comparator.comparisons]
    return used + [arm for comparison in comparator.comparisons for arm in comparison.table["arm"]]
