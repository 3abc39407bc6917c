"""Report ANAL-01: which format, by the paired loss gap to the unquantized run; where, why, and whether it holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis import words
from altgrad.analysis.comparison import (
    PLACES,
    Comparison,
    FormatComparator,
    SweetSpot,
    at_own_rates,
    figures_of_tensors,
    format_order,
    is_8bit,
    is_combination,
    last_looks,
    own_rates,
    scale_policies,
)
from altgrad.analysis.contrasts import differs, shown
from altgrad.analysis.costs import LADDER, RESAMPLES, TokenRate, additivity, cost_per_bit, extent, losses, token_rate
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.loader import ExperimentDataLoader, rule_label
from altgrad.analysis.statistics import (
    MARGIN,
    MIN_PAIRS,
    SMALLEST_GAP,
    Estimate,
    name_of_test,
    paired_difference,
)
from altgrad.config import LAYER_TYPES, OPERAND_NAMES
from altgrad.formats import get_format
from altgrad.pages import (
    FOREGROUND,
    MUTED,
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Page,
    PageRef,
    Paragraph,
    Table,
    Text,
    escape,
    md,
)
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.pending import larger, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import CORRECTIONS, data_line, pilot, scope_line
from altgrad.studies import OPERAND_PLACES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/format_comparison"
PLACE_NAMES: dict[str, str] = {
    "all": "everything",
    **{kind: f"{kind} layers alone" for kind in LAYER_TYPES},
    **{place: f"{place} alone" for place in OPERAND_PLACES},
}
MOST = 0.8
"""A layer type that alone costs more than this fraction of a format's gap is named in the answer."""
LOWEST_OCTAVE = -16
"""The chart of weights ends this many octaves below a format's largest value; what is smaller is in its last bar."""
GAP = (col.signed("Gap to FP32", "gap"), col.interval(), col.count("Pairs", "n_pairs"), col.share())


def format_comparison_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where they allow no comparison."""
    comparator = loader.memo(FormatComparator)
    compared = [each.baseline for each in comparator.comparisons]
    arms = compared + [arm for each in comparator.comparisons for arm in each.table["arm"]]
    pending_blocks = [
        Paragraph(Md("**Sweet-spot format: pending.** No recorded run can be compared yet.")),
        *pending(_missing(loader), ["formats"]),
    ]
    return Page(
        PATH,
        "Format comparison",
        (
            Paragraph(Md("*Which 8-bit format trains with the smallest loss against the unquantized run?* (ANAL-01)")),
            data_line(loader, scoped=False),
            *left_out(loader),
            Heading("Executive Summary"),
            *(_found(loader, comparator, comparator.headline) if comparator.headline else pending_blocks),
            *traceability(loader, arms),
        ),
        description="Which 8-bit number format trains with the smallest loss gap, from recorded runs with intervals.",
        provenance=provenance(loader, built),
    )


def _found(loader: ExperimentDataLoader, comparator: FormatComparator, first: Comparison) -> list[Block]:
    """The sections of the page where formats can be compared."""
    spot, looks, rate = comparator.sweet_spot(first), last_looks(loader, first), loader.memo(token_rate)
    tensors, policies, long = figures_of_tensors(first, looks), scale_policies(loader, first), comparator.longer(first)
    return [
        *map(Paragraph, headline_answer(loader, first)),
        *by_layer_type(comparator),
        *_by_operand(comparator),
        *pilot(loader, [first.baseline], int(first.table["n_pairs"].max())),
        ChartBlock(gap_chart(first)),
        Heading("Results"),
        *_results(loader, first, "results", rate),
        *_preregistered(loader, "H1", "H2"),
        Heading("What would change this answer"),
        Bullets((*changes_if(loader), *_what_would_change(first))),
        Heading("By layer type and operand"),
        *_places(loader, comparator),
        *_preregistered(loader, "H3", "H4", "H5"),
        Heading("Why: what each format did to the tensors"),
        *_close_in_loss(tensors, spot),
        *_why(first, tensors, looks),
        Heading("Other scales"),
        *_scales(policies),
        *_preregistered(loader, "H19"),
        Heading("Does the order hold in longer runs?"),
        *_length(loader, comparator, first, long),
        *_preregistered(loader, "H20"),
        Heading("At a learning rate of its own"),
        *_own_rates(loader, first),
        *larger(loader, "formats"),
        *_afterwards(loader),
        Heading("Conclusions"),
        Bullets(tuple(_conclusions(loader, first, spot))),
        *_method(loader, first),
        *_others(loader, comparator, set(policies["arm"]), long),
        *_unmatched(comparator),
        *_all_results(comparator.results),
    ]


def headline_answer(loader: ExperimentDataLoader, comparison: Comparison) -> tuple[Md, Md]:
    """The answer of a comparison with what its gap is worth in tokens, and its scope."""
    spot = loader.memo(FormatComparator).sweet_spot(comparison)
    return answer(comparison, spot, loader.memo(token_rate)), scope_line(loader, comparison.first, but="")


def answer(comparison: Comparison, spot: SweetSpot, rate: TokenRate | None = None) -> Md:
    """The answer with numbers, intervals and seeds: the best format, and what is shown of each other one."""
    aside = f" Not ranked: {words.names(spot.unranked)}." if spot.unranked else ""
    if spot.best is None:
        return Md(f"**Sweet-spot format: no answer,** because {escape(spot.reason)}.{aside}")
    row = comparison.row(spot.best)
    lead = spot.best
    if spot.undecided and not spot.equivalent:
        lead = f"inconclusive between {words.names([spot.best, *spot.undecided])}"
    elif level := [name for name in spot.equivalent if name not in spot.within_margin]:
        lead += f", with {words.names(level)} within {MARGIN:g} nats of it"
    worth = f", as much as {words.tokens(rate, row['gap'])} more tokens would gain" if rate and row["gap"] > 0 else ""
    said = [
        f"With {words.quantized(comparison.scope)}, {spot.best} ends {words.number(abs(row['gap']))} nats a "
        f"character {'above' if row['gap'] >= 0 else 'below'} FP32 "
        f"(95% CI {words.span(row['low'], row['high'])}, n = {int(row['n_pairs'])} seeds){worth}.",
        *(f"{name} {_within_margin(comparison, spot, name)}." for name in spot.equivalent),
    ]
    if spot.undecided:
        listed = words.names([f"{name}, {_to_best(comparison, name)}" for name in spot.undecided])
        said.append(f"Undecided at this number of seeds: {listed}.")
    if spot.worse:
        ends = [words.number(comparison.row(name)["gap_to_best"]) for name in spot.worse]
        by = ends[0] if len(ends) == 1 else f"{min(ends)} to {max(ends)}"
        said.append(f"{words.names(spot.worse)} {_are(spot.worse)} worse than {spot.best}, by {by} nats.")
    return Md(f"**Sweet-spot format: {lead}.** {escape(' '.join(said))}{aside}")


def _within_margin(comparison: Comparison, spot: SweetSpot, name: str) -> str:
    """What is shown of a format that lies within the margin of the best."""
    real = "a real difference, below" if name in spot.within_margin else "no difference is shown, and any is below"
    return f"is {_to_best(comparison, name)}: {real} the {MARGIN:g} that was called negligible beforehand"


def _to_best(comparison: Comparison, name: str) -> str:
    """``0.004 nats worse (95% CI 0.001 to 0.007)``: a format beside the best."""
    row = comparison.row(name)
    word, ends = "worse" if row["gap_to_best"] >= 0 else "better", words.span(row["low_to_best"], row["high_to_best"])
    return f"{words.number(abs(row['gap_to_best']))} nats {word} (95% CI {ends})"


def _on_this_page(text: str, anchor: str) -> Md:
    return Link(text, PageRef(PATH, anchor)).markdown()


def changes_if(loader: ExperimentDataLoader) -> tuple[Md, ...]:
    """What the records show to change the headline's answer: longer runs, other scales, fewer layers quantized."""
    comparator = loader.memo(FormatComparator)
    first = comparator.headline
    if first is None or comparator.sweet_spot(first).best is None:
        return ()
    return tuple(filter(None, (_if_longer(loader, first), _if_scaled(loader, first), _if_layers(loader))))


def _if_longer(loader: ExperimentDataLoader, short: Comparison) -> Md | None:
    """What becomes, in longer runs, of the formats that lie within the margin of the best."""
    comparator = loader.memo(FormatComparator)
    long, spot = comparator.longer(short), comparator.sweet_spot(short)
    after = comparator.sweet_spot(long) if long else None
    if long is None or after is None or after.best is None:
        return None
    steps = f"after {loader.config(long.baseline).max_steps:,} steps"
    where = _on_this_page("the runs are longer", "does-the-order-hold-in-longer-runs")
    if after.best != spot.best:
        return Md(f"{where}: {steps} the smallest gap is {after.best}'s.")
    said = []
    for name in (name for name in spot.equivalent if name in set(long.table["format"])):
        row = long.row(name)
        adjusted = f", adjusted {words.p_equals(row['p_holm'])}"
        said.append(
            f"{steps} {name} is {_to_best(long, name)}, n = {int(row['n_pairs'])}"
            f"{adjusted if name in after.worse + after.within_margin else ''}, and that is "
            f"{'' if name in after.equivalent else 'no longer shown to be '}below {MARGIN:g} "
            f"(TOST, {words.p_equals(row['p_equivalent'])})"
        )
    return Md(f"{where}: {escape('; '.join(said))}.") if said else None


def _if_scaled(loader: ExperimentDataLoader, comparison: Comparison) -> Md | None:
    """The other scale that lowers a format's gap most."""
    better = [row for row in scale_policies(loader, comparison).to_dict("records") if shown(row, -1)]
    if not better:
        return None
    row = min(better, key=lambda row: float(row["difference"]))
    new, old, fp32 = (losses(loader, arm) for arm in (row["arm"], row["against"], comparison.baseline))
    before, left = paired_difference(old[old.index.isin(new.index)], fp32), paired_difference(new, fp32)
    rule = loader.config(row["arm"]).scaling.rule("weight")
    how = f"one scale for every {rule.block} values" if rule.granularity == "block" else f"the {row['policy']}"
    return Md(
        f"{_on_this_page('the scales are finer', 'other-scales')}: {how} "
        f"{'lowers' if left.excludes_zero else 'removes'} {row['format']}'s gap ({words.number(before.mean)} to "
        f"{words.number(left.mean)} nats, 95% CI {words.span(left.low, left.high)}, n = {left.n})."
    )


def _if_layers(loader: ExperimentDataLoader) -> Md | None:
    """The layer type that carries most of some formats' gaps."""
    table = loader.memo(additivity)
    rows = table[(table["by"] == "layer type") & (table["together"] > MARGIN)]
    parts = pd.DataFrame(list(rows["parts"]), list(rows["format"]))
    shares = parts.div(rows["together"].to_numpy(), axis=0)
    most = shares[shares > MOST].dropna(how="all").dropna(axis="columns", how="all")
    if most.empty:
        return None
    kind = most.count().idxmax()
    listed = words.names([f"{share:.0%} of {name}'s" for name, share in most[kind].dropna().items()])
    where = _on_this_page("fewer layers are quantized", "by-layer-type-and-operand")
    return Md(f"{where}: the {kind} alone accounts for {escape(listed)} gap.")


def by_layer_type(comparator: FormatComparator) -> list[Block]:
    """The answer by layer type in two sentences; nothing while one of the types has none."""
    spots = comparator.sweet_spots.set_index("place").loc[list(LAYER_TYPES)]
    if spots["best"].isna().any():
        return []
    named = {name: spots[name].str.split() for name in ("worse", "undecided")}
    good = [{row.best, *row.equivalent.split()} for row in spots.itertuples()]
    formats = sorted({*itertools.chain(*good, *named["worse"], *named["undecided"])})
    everywhere = [name for name in formats if all(name in names for names in good)]
    alike: dict[str, list[str]] = {}
    for name in formats:
        where = {key: [kind for kind in LAYER_TYPES if name in named[key][kind]] for key in named}
        if said := " and ".join(f"{key} in {words.names(kinds)}" for key, kinds in where.items() if kinds):
            alike.setdefault(said, []).append(name)
    lead = (
        f"{words.names(everywhere)} {_are(everywhere)} the best or within {MARGIN:g} nats of it, whichever type it is."
        if everywhere
        else f"no format is the best or within {MARGIN:g} nats of it for every type."
    )
    others = "; ".join(f"{words.names(those)} {_are(those)} {said}" for said, those in alike.items())
    table = _on_this_page("by layer type and operand", "by-layer-type-and-operand")
    pairs = _range(spots["n_pairs"])
    return [Paragraph(Md(f"**Quantize one layer type only, and {lead}** {others} (n = {pairs} seeds; {table})."))]


def _range(numbers: pd.Series) -> str:
    """``16``, or ``8 to 16``."""
    return " to ".join(map(str, dict.fromkeys((int(numbers.min()), int(numbers.max())))))


def _by_operand(comparator: FormatComparator) -> list[Block]:
    """The answer by operand in a sentence; nothing while one of them has none."""
    spots = comparator.sweet_spots.set_index("place").loc[list(OPERAND_PLACES)]
    if spots["best"].isna().any():
        return []
    parts = []
    for row in spots.itertuples():
        close = f", with {words.names(row.equivalent.split())} within {MARGIN:g} nats of it" if row.equivalent else ""
        open_ = f", {words.names(row.undecided.split())} undecided" if row.undecided else ""
        parts.append(f"{row.Index}: {row.best}{close}{open_}")
    said = (
        f"**Quantize one operand only, and the best are:** {'; '.join(parts)} (n = {_range(spots['n_pairs'])} seeds)."
    )
    return [Paragraph(Md(said))]


def _are(items: Sequence[str]) -> str:
    return "are" if len(items) > 1 else "is"


CHARTED = ["format", "arm", "n_pairs", "gap", "low", "high"]


def gap_chart(comparison: Comparison) -> Chart:
    """Paired gap of every format to FP32 with its 95% interval, in the order of exponent bits."""
    single = ~comparison.table["format"].map(is_combination)
    table = comparison.table[single] if single.any() else comparison.table
    without = table[table["n_pairs"] < 2] if (table["n_pairs"] > 1).any() else table.iloc[:0]
    data = charts.finite_rows(table.drop(without.index)[CHARTED], "gap")
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)
    absent = f" Left out, having no interval: {', '.join(without['format'])}." if len(without) else ""
    said = "Mean difference of the final validation loss to the FP32 run of the same seed, with 95% paired t interval"
    return charts.gaps("loss-gap", "Loss gap to FP32 by format", f"{said}.{absent}", data)


def _results(
    loader: ExperimentDataLoader, comparison: Comparison, identity: str, rate: TokenRate | None = None
) -> list[Block]:
    gap, interval, *counts = GAP
    worth = [col.of("In tokens", lambda row: words.tokens(rate, row["gap"]), right=True)] if rate else []
    columns = (
        *(col.arm(), gap, interval, *worth, *counts),
        col.p("p against FP32", "p_fp32"),
        col.signed("To the best", "gap_to_best"),
        col.p("p against the best", "p_holm"),
        col.text("Verdict", "verdict"),
    )
    caption = Md(
        f"{escape(words.quantized(comparison.scope).capitalize())}; {escape(_setting(loader, comparison))}. Gaps in "
        f"nats a character, paired by seed, best first. p against FP32: {_tests_used(comparison)}, Holm-adjusted over "
        "the 8-bit formats; against the best: over all pairs of them."
    )
    baseline = Paragraph(md("Baseline: {arm}.", arm=col.arm_link(comparison.baseline)))
    notes = [Paragraph(_in_tokens(rate))] if rate else []
    return [col.table(comparison.table, columns, caption, identity), baseline, *notes]


def _in_tokens(rate: TokenRate) -> str:
    """What the column rests on, and its limits."""
    short, long = rate.steps
    return (
        f"In tokens: how many more training tokens would gain as much, exp(gap / r) - 1. Between {short:,} and "
        f"{long:,} steps FP32 gains r = {words.estimate(rate.rate)} per unit of ln(tokens). It is a yardstick, not a "
        "measurement: it rests on FP32 of one model at two lengths, each with a schedule of its own. Where the loss "
        "falls faster near the shorter length, small gaps are worth less than shown; larger ones than the longer "
        "runs gained have no figure."
    )


def _tests_used(comparison: Comparison) -> str:
    return words.names(sorted({name_of_test(n) for n in comparison.table["n_pairs"] if n > 1}) or ["no test"])


def _preregistered(loader: ExperimentDataLoader, *hypotheses: str) -> list[Block]:
    """What the preregistered hypotheses of a section came to; what is missing where one is pending."""
    items = tuple(
        md(
            "{link} ({statement}) **{answer}.** {evidence}",
            link=Link(verdict.id, PageRef("reports/preregistered", verdict.id.lower())),
            statement=verdict.statement.rstrip("."),
            answer=verdict.answered.capitalize(),
            evidence=verdict.evidence,
        )
        for verdict in verdicts(loader, *hypotheses)
    )
    return [Paragraph("Written down before the runs:"), Bullets(items)]


def _what_would_change(comparison: Comparison) -> Iterator[str]:
    for row in comparison.seeds_for_smallest_gap.itertuples():
        needed = "not known" if row.seeds is None or math.isnan(row.seeds) else f"{int(row.seeds)} pairs"
        yield (
            f"More seeds: to see a difference of {SMALLEST_GAP:g} nats, the smallest called interesting here, between "
            f"{row.format} and the best takes {needed} (paired t test, power 80%, at the recorded standard deviation "
            f"{row.sd_to_best:.4f}); {row.n_pairs} are recorded."
        )
    yield "Another learning rate for a format, a larger model, longer runs, other data: see below what is recorded."


def _places(loader: ExperimentDataLoader, comparator: FormatComparator) -> Iterator[Block]:
    """The sweet spot of each layer type and operand, with what is undecided; rankings folded away."""
    spots = comparator.sweet_spots

    def known(row: col.Row) -> bool:
        return isinstance(row["best"], str)

    def listed(title: str, key: str) -> Column:
        return col.of(title, lambda row: (row[key].replace(" ", ", ") or "none") if known(row) else None)

    columns = (
        col.text("Quantized", "place", PLACE_NAMES),
        col.of(
            "Sweet-spot format",
            lambda row: col.arm_link(row["arm"], row["best"]) if known(row) else f"none: {row['reason']}",
        ),
        GAP[0],
        col.of("95% interval", lambda row: words.interval(row["low"], row["high"]) if known(row) else None, right=True),
        col.count("Pairs", "n_pairs"),
        listed(f"Within {MARGIN:g}", "equivalent"),
        listed("Undecided", "undecided"),
        listed("Worse", "worse"),
    )
    caption = (
        f"Sweet-spot format by layer type (all operands) and by operand (all layers). Within {MARGIN:g}: shown to lie "
        f"within {MARGIN:g} nats of the best. Undecided: neither that nor a difference is shown."
    )
    yield col.table(spots, columns, caption, "sweet-spots")
    if by_kind := {kind: found.table.assign(scope=kind) for kind in LAYER_TYPES if (found := comparator.at(kind))}:
        data = charts.finite_rows(pd.concat(by_kind.values())[[*CHARTED, "scope"]], "gap", "low", "high")
        said = "Mean paired differences with 95% t intervals, one layer type quantized at a time, everything else FP32."
        title = "Loss gap to FP32 by format, with one layer type quantized at a time"
        yield ChartBlock(charts.gaps("layer-gaps", title, said, data, dict(zip(by_kind, by_kind, strict=True))))
    for study, places in (("formats", ("all", *OPERAND_PLACES)), ("layers", LAYER_TYPES)):
        if lacking := [PLACE_NAMES[place] for place in PLACES if place in places and comparator.at(place) is None]:
            yield pending_note(f"No runs are recorded for {words.names(lacking)}.", [study])
    for place in list(PLACES)[1:]:
        if comparison := comparator.at(place):
            ranking = Paragraph(answer(comparison, comparator.sweet_spot(comparison)))
            table = _results(loader, comparison, f"results-{place}")
            yield Details(f"Ranking: {PLACE_NAMES[place]}", (ranking, *table))


def _close_in_loss(tensors: pd.DataFrame, spot: SweetSpot) -> list[Block]:
    """Where formats are close in loss, what the tensors say: second to the loss, and labelled so."""
    close = [spot.best, *spot.equivalent, *spot.undecided] if spot.best else []
    known = tensors[tensors["format"].isin(close)]
    if len(close) < 2 or known.empty:
        return []
    wide = known.pivot_table(index="format", columns="operand", values="sqnr_db", sort=False)
    wide = wide.reindex(index=[name for name in close if name in wide.index], columns=list(OPERAND_NAMES))
    said = "; ".join(
        f"{name}: {', '.join(f'{OPERAND_NAMES[key]} {words.number(value, 1)} dB' for key, value in row.items())}"
        for name, row in wide.iterrows()
    )
    text = (
        f"**Secondary evidence, where the losses are close.** {words.names(close)} are not shown to differ by more "
        "than the margin. The signal-to-quantization-noise ratio (SQNR) of their actual tensors, a mean over layers "
        f"and runs at the last look: {said}. A higher SQNR means values nearer to the unrounded ones; it is no ranking "
        "by loss."
    )
    return [Paragraph(Md(text))]


def _why(comparison: Comparison, tensors: pd.DataFrame, looks: Mapping[str, pd.DataFrame]) -> list[Block]:
    if tensors.empty:
        return [Paragraph("The runs recorded no figures of their layers: what the formats did to them is not known.")]
    columns = (
        col.arm(),
        col.text("Layer type", "layer_type"),
        col.text("Operand", "operand", OPERAND_NAMES),
        col.number("SQNR (dB)", "sqnr_db", 1),
        col.percent("Underflow", "underflow"),
        col.percent("Overflow", "overflow"),
        col.percent("Codes used", "codes_used"),
    )
    ordered = tensors.sort_values("format", key=lambda column: column.map(format_order), kind="stable")
    caption = (
        "Signal-to-quantization-noise ratio, fraction of nonzero elements that became zero or lie beyond the largest "
        "value, and fraction of the format's codes that occur: means over the layers of a type and the finished runs, "
        "at the last look."
    )
    table = col.table(ordered, columns, caption, "tensors")
    chart = weights_chart(comparison, looks)
    title = "SQNR, range and code use by format, layer type and operand"
    return [*([ChartBlock(chart)] if chart else []), Details(title, (table,))]


def weights_chart(comparison: Comparison, looks: Mapping[str, pd.DataFrame]) -> Chart | None:
    """Every format's grid below the histogram of the weights it held, by octave; None without histograms."""
    names = sorted(filter(is_8bit, comparison.table["format"]), key=format_order)
    parts = [part for name in names if (part := _octaves(name, looks[name])) is not None]
    if not parts:
        return None

    def draw(axes: Axes) -> None:
        boxes = []
        for place, bars in enumerate(parts):
            base, name, zero = -1.5 * place, bars["format"].iloc[0], bars["share_zero"].iloc[0]
            heights = 0.8 * bars["share_of_weights"] / bars["share_of_weights"].max()
            for octave, height in zip(bars["octave"], heights, strict=True):
                if height > 0:
                    boxes.append((octave - 0.96, octave - 0.04, base + height, base))
            grid = get_format(name).finite_values
            ticks = np.log2(grid[grid > 0] / grid.max())
            ticks = ticks[ticks >= LOWEST_OCTAVE]
            lines = np.column_stack([ticks, ticks, np.full(len(ticks), np.nan)]).ravel()
            axes.plot(lines, np.tile([base - 0.08, base - 0.3, np.nan], len(ticks)), color=PALETTE[1], linewidth=0.7)
            axes.text(LOWEST_OCTAVE - 1.3, base + 0.15, name, ha="right", color=FOREGROUND)
            axes.text(LOWEST_OCTAVE - 1.3, base - 0.25, f"{zero:.1%} zero", ha="right", fontsize=8, color=MUTED)
        axes.add_artist(charts.rectangles(boxes, PALETTE[0]))
        axes.set_xlim(LOWEST_OCTAVE - 1, 0.2)
        axes.set_ylim(-1.5 * len(parts) + 1.0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        ticks_shown = range(LOWEST_OCTAVE, 1, 4)
        axes.set_xticks(ticks_shown, [f"2^{tick}" if tick else "1" for tick in ticks_shown])
        axes.set_xlabel("size of a weight over the format's largest value; bars: share of weights, ticks: the grid")

    said = [
        f"{most['format']}: {most['share_zero']:.1%} of the weights are zero; the fullest octave, up to "
        f"2^{int(most['octave'])}, holds {most['share_of_weights']:.0%} of them and {int(most['grid_values'])} of the "
        "grid's positive values"
        for most in (bars.loc[bars["share_of_weights"].idxmax()] for bars in parts)
    ]
    return Chart(
        "weights-grid",
        "The grid of each format, and the weights it held",
        "For each format the share of its stored weights by octave of size, over all layers and runs at the last "
        f"histogram, above its grid of values. {'; '.join(said)}.",
        pd.concat(parts, ignore_index=True),
        draw,
        height=0.62 * len(parts) + 0.8,
        margins=(0.9, 0.15, 0.55, 0.1),
    )


def _octaves(name: str, look: pd.DataFrame) -> pd.DataFrame | None:
    """A format's values and the weights it held by octave below its largest value; None without a histogram."""
    codes = look[(look["operand"] == "weight") & look["statistic"].astype(str).str.fullmatch("code_[0-9a-f]{2}")]
    if codes.empty:
        return None
    fmt, counts = get_format(name), codes.groupby("statistic")["value"].sum()
    values = np.abs(fmt.values[[int(str(code)[5:], 16) for code in counts.index]])
    share, grid = counts.to_numpy() / counts.sum(), fmt.finite_values[fmt.finite_values > 0]
    return pd.DataFrame(
        {
            "format": name,
            "octave": range(LOWEST_OCTAVE, 1),
            "grid_values": _by_octave(grid, np.ones(len(grid)), grid.max()),
            "share_of_weights": _by_octave(values, share, grid.max()),
            "share_zero": float(share[values == 0].sum()),
        }
    )


def _by_octave(values: NDArray[np.float64], weights: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    """Sums of `weights` by octave of values / largest, from (2^(k-1), 2^k] with k from `LOWEST_OCTAVE` to 0."""
    sums = np.zeros(1 - LOWEST_OCTAVE)
    known = values > 0
    octave = np.ceil(np.log2(values[known] / largest)).astype(int)
    np.add.at(sums, np.maximum(octave, LOWEST_OCTAVE) - LOWEST_OCTAVE, weights[known])
    return sums


def _scales(policies: pd.DataFrame) -> list[Block]:
    if policies.empty:
        return [pending_note("No runs with another scale are recorded (study scaling).", ["scaling"])]
    columns = (
        *(col.arm(), col.text("Scale", "policy"), col.signed("Difference", "difference"), *GAP[1:]),
        col.p("Adjusted p", "p_holm"),
    )
    caption = (
        "Final validation loss minus that of the same format with one power-of-two scale a tensor from its current "
        "largest value, in nats a character; below zero, the other scale is better. p: Holm-adjusted over the rows."
    )
    page = Link("the literature page", PageRef("reports/literature")).markdown()
    beside = Md(f"Formats that are defined with scales of their own, MX and NVFP4, are compared in {page}.")
    return [col.table(policies, columns, caption, "scales"), Paragraph(beside)]


def _length(
    loader: ExperimentDataLoader, comparator: FormatComparator, short: Comparison, long: Comparison | None
) -> list[Block]:
    if long is None:
        return [pending_note("No longer runs of the same setting are recorded (study length).", ["length"])]
    both = long.table.merge(short.table, on="format", suffixes=("", "_short"), how="left")
    single = ~both["format"].map(is_combination)
    for end in ("_short", ""):
        both[f"rank{end}"] = both[f"gap{end}"].where(single).rank().astype("Int64")
    kept = ["format", "arm", "gap_short", "low_short", "high_short", "n_pairs_short", "rank_short"]
    data = both[[*kept, "gap", "low", "high", "n_pairs", "n_finished", "n_runs", "rank"]]
    columns = [col.arm()]
    for each, end in ((short, "_short"), (long, "")):
        columns += [
            col.signed(f"Gap after {loader.config(each.baseline).max_steps:,} steps", f"gap{end}"),
            col.interval(low=f"low{end}", high=f"high{end}"),
            col.count("Pairs", f"n_pairs{end}"),
            col.count("Place", f"rank{end}"),
        ]
    caption = "Gap to FP32 in short and in long runs, nats a character"
    table = col.table(data, [*columns, col.share()], caption, "length")
    return [Paragraph(answer(long, comparator.sweet_spot(long))), table]


def _own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    """What another rate changes: from runs at it on the reporting seeds, else from the tuning runs."""
    own, tuned = at_own_rates(loader, comparison), own_rates(loader, comparison)
    rate = f"{loader.config(comparison.baseline).optimizer.learning_rate:g}"
    shared = f"All formats share FP32's learning rate, {rate}."
    if len(own):
        columns: tuple[Column, ...] = (
            *(col.arm(), col.general("Its own rate", "learning_rate"), col.signed("Gap at its own rate", "gap")),
            *(*GAP[1:], col.signed(f"Gap at {rate}", "gap_shared")),
        )
        text = (
            f"All formats above share FP32's learning rate, {rate}. The formats below were also run at another one; "
            "the gap is to FP32 at its own rate, on the same seeds. Where the two differ, the gap above is partly the "
            "rate's."
        )
        caption = "Gap to FP32 at a learning rate of the format's own, nats a character"
    elif len(tuned):
        columns = (
            col.text("Format", "format"),
            col.general("Best rate tried", "own_rate"),
            col.signed("Gap at the shared rate", "gap_shared"),
            col.signed("Gap at its best rate", "gap_own"),
            col.count("Held-out seeds", "n"),
        )
        text = (
            f"{shared} The tuning runs show what a rate of its own changes: the mean gap to FP32 in nats a character, "
            "on held-out seeds too few for an interval. Where the two columns differ, the gap above is partly the "
            "rate's."
        )
        caption = "Gap to FP32 on the tuning seeds"
    else:
        return [Paragraph(f"{shared} No tuning runs are recorded: what another rate would change is not known.")]
    return [Paragraph(text), col.table(own if len(own) else tuned, columns, caption, "own-rates")]


def _conclusions(loader: ExperimentDataLoader, comparison: Comparison, spot: SweetSpot) -> Iterator[Text]:
    table = comparison.table
    whole = table[(table["n_finished"] == table["n_runs"]) & (table["n_pairs"] >= MIN_PAIRS)]
    gaps = (Estimate(row.gap, row.low, row.high, row.sd, row.n_pairs, math.nan) for row in whole.itertuples())
    equal = pd.Series([gap.equivalent() for gap in gaps], whole.index, dtype=bool)
    worse = whole["low"] > 0
    lost, close = whole[worse & ~equal], whole[(whole["low"] <= 0) & (whole["high"] >= 0) & ~equal]
    if spot.undecided:
        yield (
            f"Between {words.names([spot.best or '', *spot.undecided])} this number of seeds does not decide. "
            "That is not evidence that they are equal; no single format is named."
        )
    for name in spot.equivalent:
        yield f"Beside {spot.best}, {name} {_within_margin(comparison, spot, name)}."
    if longer := _if_longer(loader, comparison):
        yield Md(f"It changes if {longer}")
    for those, how in ((equal & ~worse, "no difference is shown"), (equal & worse, "worse, but by less than that")):
        if those.any():
            yield f"Within {MARGIN:g} nats of FP32 (TOST), {how}: {', '.join(whole.loc[those, 'format'])}."
    if len(close):
        listed = ", ".join(close["format"])
        yield f"Undecided against FP32 (the interval holds zero, which is not evidence of equality): {listed}."
    if len(lost):
        worst = lost.sort_values("gap").iloc[-1]
        ends = escape(words.interval(worst["low"], worst["high"]))
        yield Md(
            f"Worse than FP32: {', '.join(lost['format'])}. The largest gap is {worst['format']}'s, "
            f"{words.number(worst['gap'], sign=True)} nats {ends}."
        )
    arms = table.set_index("format")["arm"].reindex(["E0M7", "E1M6"])
    apart = pd.Series(dtype=float)
    if arms.notna().all():
        apart = (losses(loader, arms["E0M7"]) - losses(loader, arms["E1M6"])).abs().dropna()
    if len(apart):
        most = f"differ by at most {apart.max():.2g} nats" if apart.max() else "are equal to the last digit"
        seeds = "the seed" if len(apart) == 1 else f"the {len(apart)} seeds"
        yield (
            "E1M6 is E0M7 times 4: with a free scale the two are one quantizer. "
            f"Their losses on {seeds} that both ran {most}, and charts of gaps leave E1M6 out."
        )
    unfinished = table[table["n_finished"] < table["n_runs"]]
    if len(unfinished):
        yield f"With runs that did not finish, and therefore not ranked: {', '.join(unfinished['format'])}."


def _method(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    text = (
        "Every format shares the seeds, batches, learning rate and schedule of the FP32 runs; the validation loss is "
        "computed with the weights as deployed (quantized), at the last step. The interval is the paired t interval "
        f"over seeds. Tests: {_tests_used(comparison)}, two-sided. The format with the smallest gap is compared with "
        "each other one, Holm-adjusted over all pairs of formats, because the best one is picked from the same data; "
        f"so its own gap is a little optimistic. That two lie within {MARGIN:g} nats is shown by two one-sided t tests "
        "(TOST), each at 5%. Runs that did not finish have no loss and are counted, not dropped; an arm with one is "
        "not ranked. Runs of tuning studies are left out."
    )
    more = md(
        "{method} says more; {preregistration} says what was written down before the runs, {corrections} what was not "
        "run.",
        corrections=CORRECTIONS,
        method=Link("Method", PageRef("method")),
        preregistration=Link("Preregistration", PageRef("method/preregistration")),
    )
    size = extent(loader, comparison.baseline)
    of_all = f" of {size.validation_characters:,}" if size.validation_characters else ""
    each = f", {size.characters / size.parameters:.1f} a parameter" if size.parameters else ""
    limits = (
        f"An evaluation reads {size.evaluated:,}{of_all} validation characters, the same windows in every run; what "
        f"others would change is not in the intervals. {size.steps:,} steps are {size.characters:,} characters{each}: "
        "early in training."
    )
    return [Heading("Method and caveats"), Paragraph(text), Paragraph(limits), Paragraph(more)]


def _afterwards(loader: ExperimentDataLoader) -> list[Block]:
    """What was found in the records afterwards: the cost of a mantissa bit, and whether costs add up."""
    per_bit, table = _per_bit(loader), loader.memo(additivity)
    if per_bit is None and table.empty:
        return []
    text = "Exploratory: seen in the records after the runs. No hypothesis named it, and nothing was run to test it."
    blocks: list[Block] = [Heading("Found afterwards"), Paragraph(text)]
    if per_bit:
        blocks.append(Paragraph(per_bit))
    return [*blocks, Paragraph(_added_up(table)), _additivity_table(table)] if len(table) else blocks


def _per_bit(loader: ExperimentDataLoader) -> Md | None:
    bits, shorter = loader.memo(cost_per_bit), cost_per_bit(loader, LADDER[:-1])
    if bits is None or shorter is None:
        return None
    smallest = bits.formats[-1]
    return Md(
        f"**Each mantissa bit divides the cost by {words.number(bits.factor, 2)}** (95% interval "
        f"{words.span(bits.low, bits.high, 1)}, {bits.n} seeds), from 1 to {len(bits.formats)} bits: the slope of "
        f"ln(mean gap) over mantissa bits of {', '.join(bits.formats)}, with percentiles over {RESAMPLES:,} resamples "
        f"of the seeds. In {bits.left_out:.1%} of them {smallest}'s mean gap is not above zero and has no logarithm; "
        f"without {smallest} the factor is {words.number(shorter.factor, 2)} "
        f"({words.span(shorter.low, shorter.high, 1)}). E7M0 has no mantissa to count, and in splits with 5 bits or "
        "more the lack of range costs more than a bit gains: neither is in it."
    )


def _added_up(table: pd.DataFrame) -> Md:
    rows = table.to_dict("records")
    rest = [row for row in rows if not differs(row)]
    most = max(rest, key=lambda row: abs(float(row["difference"])))
    but = "; ".join(
        f"{row['format']}'s over {row['by']}s: {words.number(row['sum'])} one at a time, "
        f"{words.number(row['together'])} together"
        for row in rows
        if differs(row)
    )
    median = words.number(float(np.median([abs(row["difference"]) for row in rest])))
    return Md(
        "**Costs nearly add up.** The gap with all layer types, or all operands, differs from the sum of the gaps with "
        f"one at a time by {median} nats in the median and by {words.number(abs(most['difference']))} at most "
        f"({most['format']} over {most['by']}s, {escape(words.interval(most['low'], most['high']))})"
        f"{escape(f'. Not so {but}') if but else ''}."
    )


def _additivity_table(table: pd.DataFrame) -> Table:
    columns = (
        col.text("Divided by", "by"),
        col.text("Format", "format"),
        col.of(
            "Gap with one at a time",
            lambda row: ", ".join(f"{name} {words.number(gap)}" for name, gap in row["parts"].items()),
        ),
        col.number("Sum", "sum"),
        col.number("Together", "together"),
        col.signed("Together minus sum", "difference"),
        *GAP[1:3],
        col.p("Adjusted p", "p_holm"),
    )
    caption = "Gaps to FP32 of parts and whole, nats a character, on the same seeds; p: Holm-adjusted over the rows"
    data = pd.concat([table.drop(columns="parts"), table["parts"].apply(pd.Series)], axis=1)
    return col.table(table, columns, caption, "additivity", data)


def _others(
    loader: ExperimentDataLoader, comparator: FormatComparator, scaled: set[str], long: Comparison | None
) -> list[Block]:
    """Comparisons in other settings, such as the pilot's, folded away."""
    above = [comparator.at(place) for place in PLACES] + [long]
    blocks: list[Block] = []
    for comparison in comparator.comparisons:
        if any(comparison is each for each in above) or set(comparison.table["arm"]) <= scaled:
            continue
        title = f"Another setting: {comparison.scope}; {_setting(loader, comparison)}"
        table = _results(loader, comparison, f"results-other-{len(blocks) + 1}")
        blocks.append(Details(title, (Paragraph(answer(comparison, comparator.sweet_spot(comparison))), *table)))
    return [Heading("Other settings"), *blocks] if blocks else []


def _all_results(table: pd.DataFrame) -> list[Block]:
    columns = (
        col.text("Quantized", "scope"),
        col.general("Rate", "learning_rate"),
        col.count("Steps", "max_steps"),
        *(col.arm(), *GAP, col.text("Verdict", "verdict")),
    )
    caption = "Every comparison of this page in one table, gaps in nats a character"
    inner = col.table(table, columns, caption, "all-results")
    return [Heading("All results"), Details(f"The {len(table)} arms, to download as CSV or JSON", (inner,))]


def _unmatched(comparator: FormatComparator) -> list[Block]:
    runs = comparator.unmatched
    text = (
        f"{len(runs)} AdamW runs ({', '.join(sorted(runs['format'].unique()))}) have no FP32 run of the same setting "
        "(learning rate, storage, length, data) and take no part in these comparisons."
    )
    return [Paragraph(text)] if len(runs) else []


def _missing(loader: ExperimentDataLoader) -> str:
    """What is missing for any comparison of formats, in a sentence."""
    runs = loader.runs
    runs = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool)]
    if loader.runs.empty:
        return "No runs are recorded."
    if runs.empty:
        return f"{len(loader.runs)} runs are recorded, but all of tuning studies or of other training loops."
    quantized, baseline = runs[runs["quantized"] != ""], runs[runs["quantized"] == ""]
    count = f"{len(runs)} runs are recorded"
    if quantized.empty:
        return f"{count}, all of them unquantized: there is no format to compare with FP32."
    if baseline.empty:
        return f"{count}, but no FP32 run: without one there is no gap to report."
    names = {"data": "data", "max_steps": "number of steps", "learning_rate": "learning rate"}
    differing = [name for column, name in names.items() if not set(quantized[column]) & set(baseline[column])]
    how = f"the {words.names(differing)} of the two differ" if differing else "another part of the config differs"
    return (
        f"{count}, but none of them is an AdamW run of a format together with an FP32 run of the same setting (model, "
        f"data, steps, learning rate): {how}, so that there is no gap to report."
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
