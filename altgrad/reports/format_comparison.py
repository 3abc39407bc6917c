"""Report ANAL-01: which format, by the paired loss gap to the unquantized run; where, why, and whether it holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis import words
from altgrad.analysis.comparison import (
    PLACES,
    WITHIN_MARGIN,
    WORSE,
    Comparison,
    FormatComparator,
    SweetSpot,
    at_own_rates,
    figures_of_tensors,
    format_order,
    is_combination,
    last_looks,
    own_rates,
    scale_policies,
)
from altgrad.analysis.contrasts import by_seed
from altgrad.analysis.costs import LADDER, RESAMPLES, BitCost, TokenRate, additivity, cost_per_bit, extent, token_rate
from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader, rule_label
from altgrad.analysis.statistics import (
    ALPHA,
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
    md,
)
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.pending import larger, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import CORRECTIONS, data_line, pilot, scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/format_comparison"
LINEAR_TO = 0.05
"""The gap chart's scale is linear up to here: the close formats must be readable beside E7M0."""
GAP_TICKS = (-0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
PLACE_NAMES: dict[str, str] = {
    "all": "everything",
    **{kind: f"{kind} layers alone" for kind in LAYER_TYPES},
    "weights": "weights alone",
    "activations": "activations alone",
    "gradients": "gradients alone",
}
MOST = 0.8
"""A layer type that alone costs more than this fraction of a format's gap is named in the answer."""
LOWEST_OCTAVE = -16
"""The chart of weights ends this many octaves below a format's largest value; what is smaller is in its last bar."""


def format_comparison_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where they allow no comparison."""
    comparator = loader.once(FormatComparator)
    first = comparator.headline
    blocks: list[Block] = [
        Paragraph(Md("*Which 8-bit format trains with the smallest loss against the unquantized run?* (ANAL-01)")),
        data_line(loader, scoped=False),
        *left_out(loader),
        Heading("Executive Summary"),
    ]
    if first is None:
        blocks += [
            Paragraph(Md("**Sweet-spot format: pending.** No recorded run can be compared yet.")),
            *pending(_missing(loader), ["formats"]),
        ]
    else:
        spot, found = comparator.sweet_spot(first), {verdict.id: verdict for verdict in verdicts(loader)}
        looks = last_looks(loader, first)
        tensors, policies, long = (
            figures_of_tensors(first, looks),
            scale_policies(loader, first),
            comparator.longer(first),
        )
        rate = loader.once(token_rate)
        blocks += [
            Paragraph(answer(first, spot, rate)),
            Paragraph(scope_line(loader, first)),
            *by_layer_type(comparator),
            *_by_operand(comparator),
            *pilot(loader, [first.baseline], int(first.table["n_pairs"].max())),
            ChartBlock(gap_chart(first)),
            Heading("Results"),
            *_results(loader, first, "results", rate),
            *_said(found, "H1", "H2"),
            Heading("What would change this answer"),
            Bullets((*changes_if(loader), *_what_would_change(first))),
            Heading("By layer type and operand"),
            *_places(loader, comparator, found),
            Heading("Why: what each format did to the tensors"),
            *_ties(tensors, spot),
            *_why(first, tensors, looks),
            Heading("Other scales"),
            *_scales(policies),
            *_said(found, "H19"),
            Heading("Does the order hold in longer runs?"),
            *_length(loader, comparator, first, long),
            *_said(found, "H20"),
            *_own_rates(loader, first),
            *larger(loader, "formats"),
            *_afterwards(loader),
            Heading("Conclusions"),
            Bullets(_conclusions(loader, first, spot)),
            *_method(loader, first),
            *_others(loader, comparator, policies, long),
            *_unmatched(comparator),
            *_all_results(comparator.results),
        ]
    return Page(
        PATH,
        "Format comparison",
        (*blocks, *traceability(loader, _arms(loader, comparator))),
        description="Which 8-bit number format trains with the smallest loss gap, from recorded runs with intervals.",
        provenance=provenance(loader, built),
    )


def answer(comparison: Comparison, spot: SweetSpot, rate: TokenRate | None = None) -> Md:
    """The answer with numbers, intervals and seeds: the best format, and what is shown of each other one."""
    aside = md(" Not ranked: {names}.", names=words.names(spot.unranked)) if spot.unranked else Md("")
    if spot.best is None:
        return md("**Sweet-spot format: no answer,** because {reason}.{aside}", reason=spot.reason, aside=aside)
    row = _row(comparison, spot.best)
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
        *(f"{name} {_difference(comparison, name)}." for name in spot.equivalent),
    ]
    if spot.undecided:
        listed = words.names([f"{name}, {_figures(comparison, name)}" for name in spot.undecided])
        said.append(f"Undecided at this number of seeds: {listed}.")
    if spot.worse:
        ends = [words.number(_row(comparison, name)["gap_to_best"]) for name in spot.worse]
        by = ends[0] if len(ends) == 1 else f"{min(ends)} to {max(ends)}"
        said.append(f"{words.names(spot.worse)} {_are(spot.worse)} worse than {spot.best}, by {by} nats.")
    return md("**Sweet-spot format: {lead}.** {said}{aside}", lead=lead, said=" ".join(said), aside=aside)


def _difference(comparison: Comparison, name: str) -> str:
    """What is shown of a format that lies within the margin of the best."""
    row = _row(comparison, name)
    shown = row["verdict"] == WITHIN_MARGIN
    what = "a real difference, below" if shown else "no difference is shown, and any is below"
    return f"is {_figures(comparison, name)}: {what} the {MARGIN:g} that was called negligible beforehand"


def _figures(comparison: Comparison, name: str) -> str:
    """``0.004 nats worse (95% CI 0.001 to 0.007)``: a format beside the best."""
    row = _row(comparison, name)
    word = "worse" if row["gap_to_best"] >= 0 else "better"
    ends = words.span(row["low_to_best"], row["high_to_best"])
    return f"{words.number(abs(row['gap_to_best']))} nats {word} (95% CI {ends})"


def scope_line(loader: ExperimentDataLoader, comparison: Comparison) -> Md:
    """The line that belongs beside an answer."""
    return md("Scope: {scope}.", scope=scope(loader, comparison))


def changes_if(loader: ExperimentDataLoader) -> tuple[Md, ...]:
    """What the records show to change the headline's answer: longer runs, other scales, fewer layers quantized."""
    comparator = loader.once(FormatComparator)
    first = comparator.headline
    if first is None or comparator.sweet_spot(first).best is None:
        return ()
    found = (_if_longer(loader, first), _if_scaled(loader, first), _if_layers(loader))
    return tuple(item for item in found if item)


def _if_longer(loader: ExperimentDataLoader, short: Comparison) -> Md | None:
    """What becomes, in longer runs, of the formats that lie within the margin of the best."""
    comparator = loader.once(FormatComparator)
    long, spot = comparator.longer(short), comparator.sweet_spot(short)
    after = comparator.sweet_spot(long) if long else None
    if long is None or after is None or after.best is None:
        return None
    steps = f"after {loader.config(long.baseline).max_steps:,} steps"
    where = Link("the runs are longer", PageRef(PATH, "does-the-order-hold-in-longer-runs"))
    if after.best != spot.best:
        return md("{where}: {steps} the smallest gap is {best}'s.", where=where, steps=steps, best=after.best)
    said = []
    for name in (name for name in spot.equivalent if name in set(long.table["format"])):
        row = _row(long, name)
        figures = f"{steps} {name} is {_figures(long, name)}, n = {int(row['n_pairs'])}"
        small = f"below {MARGIN:g} (TOST, p {_equals(row['p_equivalent'])})"
        shown = f", adjusted p {_equals(row['p_holm'])}" if row["verdict"] in (WORSE, WITHIN_MARGIN) else ""
        said.append(
            f"{figures}{shown}, and that is {'' if name in after.equivalent else 'no longer shown to be '}{small}"
        )
    return md("{where}: {said}.", where=where, said="; ".join(said)) if said else None


def _if_scaled(loader: ExperimentDataLoader, comparison: Comparison) -> Md | None:
    """The other scale that lowers a format's gap most."""
    policies = scale_policies(loader, comparison)
    better = policies[(policies["p_holm"] < ALPHA) & (policies["difference"] < 0)]
    if better.empty:
        return None
    row = better.loc[better["difference"].idxmin()]
    arms = (row["arm"], row["against"], comparison.baseline)
    new, old, fp32 = (by_seed(loader.runs[loader.runs["arm"] == arm]) for arm in arms)
    before, left = paired_difference(old[old.index.isin(new.index)], fp32), paired_difference(new, fp32)
    rule = loader.config(row["arm"]).scaling.rule("weight")
    how = f"one scale for every {rule.block} values" if rule.granularity == "block" else f"the {row['policy']}"
    return md(
        "{where}: {how} {verb} {format}'s gap ({before} to {after} nats, 95% CI {ends}, n = {n}).",
        where=Link("the scales are finer", PageRef(PATH, "other-scales")),
        how=how,
        verb="lowers" if left.excludes_zero else "removes",
        format=row["format"],
        before=words.number(before.mean),
        after=words.number(left.mean),
        ends=words.span(left.low, left.high),
        n=left.n,
    )


def _if_layers(loader: ExperimentDataLoader) -> Md | None:
    """The layer type that carries most of some formats' gaps."""
    table = loader.once(additivity)
    rows = table[(table["by"] == "layer type") & (table["together"] > MARGIN)]
    shares = pd.DataFrame(
        [{k: v / row.together for k, v in row.parts.items()} for row in rows.itertuples()], rows["format"]
    )
    most = shares[shares > MOST].dropna(how="all").dropna(axis="columns", how="all")
    if most.empty:
        return None
    kind = most.count().idxmax()
    listed = words.names([f"{share:.0%} of {name}'s" for name, share in most[kind].dropna().items()])
    where = Link("fewer layers are quantized", PageRef(PATH, "by-layer-type-and-operand"))
    return md("{where}: the {kind} alone accounts for {listed} gap.", where=where, kind=kind, listed=listed)


def by_layer_type(comparator: FormatComparator) -> list[Block]:
    """The answer by layer type in two sentences; nothing while one of the types has none."""
    spots = comparator.sweet_spots.set_index("place").loc[list(LAYER_TYPES)]
    if spots["best"].isna().any():
        return []
    named = {name: spots[name].str.split() for name in ("equivalent", "undecided", "worse")}
    good = [{row.best, *row.equivalent.split()} for row in spots.itertuples()]
    formats = sorted({*itertools.chain(*good, *(names for each in named.values() for names in each))})
    everywhere = [name for name in formats if all(name in names for names in good)]
    alike: dict[str, list[str]] = {}
    for name in formats:
        where = {key: [kind for kind in LAYER_TYPES if name in named[key][kind]] for key in ("worse", "undecided")}
        said = [f"worse in {words.names(where['worse'])}"] * bool(where["worse"])
        said += [f"undecided in {words.names(where['undecided'])}"] * bool(where["undecided"])
        if said:
            alike.setdefault(" and ".join(said), []).append(name)
    parts = [f"{words.names(those)} {_are(those)} {said}" for said, those in alike.items()]
    lead = (
        f"{words.names(everywhere)} {_are(everywhere)} the best or within {MARGIN:g} nats of it, whichever type it is."
        if everywhere
        else f"no format is the best or within {MARGIN:g} nats of it for every type."
    )
    return [
        Paragraph(
            md(
                "**Quantize one layer type only, and {lead}** {others} (n = {pairs} seeds; {table}).",
                lead=lead,
                others="; ".join(parts),
                pairs=_range(spots["n_pairs"]),
                table=Link("by layer type and operand", PageRef(PATH, "by-layer-type-and-operand")),
            )
        )
    ]


def _range(numbers: pd.Series) -> str:
    """``16``, or ``8 to 16``."""
    return " to ".join(map(str, dict.fromkeys((int(numbers.min()), int(numbers.max())))))


def _by_operand(comparator: FormatComparator) -> list[Block]:
    """The answer by operand in a sentence; nothing while one of them has none."""
    spots = comparator.sweet_spots.set_index("place").loc[list(OPERAND_NAMES.values())]
    if spots["best"].isna().any():
        return []
    parts = []
    for row in spots.itertuples():
        said = f"{row.Index}: {row.best}"
        said += f", with {words.names(row.equivalent.split())} within {MARGIN:g} nats of it" if row.equivalent else ""
        said += f", {words.names(row.undecided.split())} undecided" if row.undecided else ""
        parts.append(said)
    text = "**Quantize one operand only, and the best are:** {parts} (n = {pairs} seeds)."
    return [Paragraph(md(text, parts="; ".join(parts), pairs=_range(spots["n_pairs"])))]


def _equals(p: float) -> str:
    text = words.p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _are(items: Sequence[str]) -> str:
    return "are" if len(items) > 1 else "is"


def gap_chart(comparison: Comparison) -> Chart:
    """Paired gap of every format to FP32 with its 95% interval, in the order of exponent bits."""
    single = ~comparison.table["format"].map(is_combination)
    table = comparison.table[single] if single.any() else comparison.table
    without = table[table["n_pairs"] < 2] if (table["n_pairs"] > 1).any() else table.iloc[:0]
    table = table.drop(without.index)
    data = charts.finite_rows(table[["format", "arm", "n_pairs", "gap", "low", "high"]], "gap")
    data = data.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)

    def draw(axes: Axes) -> None:
        places = range(len(data))
        charts.reference_line(axes, "FP32")
        axes.vlines(places, data["low"], data["high"], color=PALETTE[0], linewidth=2)
        axes.plot(places, data["gap"], "o", color=PALETTE[0], markersize=6)
        for place, gap, high in zip(places, data["gap"], data["high"].fillna(data["gap"]), strict=True):
            text = words.number(gap, sign=True)
            axes.annotate(text, (place, high), xytext=(0, 7), textcoords="offset points", ha="center", color=FOREGROUND)
        axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=1.5)
        ticks = [tick for tick in GAP_TICKS if data["low"].min() - 0.02 <= tick <= 1.3 * data["high"].max()]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.margins(y=0.12)
        axes.set_xticks(places, [f"{row['format']}\nn = {row['n_pairs']}" for _, row in data.iterrows()])
        axes.set_xlim(-0.6, len(data) - 0.4)
        axes.set_ylabel(f"loss gap to FP32, nats a character\n(linear to {LINEAR_TO:g}, then logarithmic)")

    listed = "; ".join(f"{row.format} {row.gap:+.3f} {words.interval(row.low, row.high)}" for row in data.itertuples())
    return Chart(
        "loss-gap",
        "Loss gap to FP32 by format",
        f"Mean difference of the final validation loss to the FP32 run of the same seed, with 95% paired t interval: "
        f"{listed}." + (f" Left out, having no interval: {', '.join(without['format'])}." if len(without) else ""),
        data,
        draw,
    )


def _results(
    loader: ExperimentDataLoader, comparison: Comparison, identity: str, rate: TokenRate | None = None
) -> list[Block]:
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right("Gap to FP32", "95% interval", *(["In tokens"] if rate else [])),
        *col.right("Pairs", "Finished", "p against FP32"),
        *col.right("To the best", "p against the best"),
        Column("Verdict"),
    )
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            words.number(row["gap"], sign=True),
            words.interval(row["low"], row["high"]),
            *([words.tokens(rate, row["gap"])] if rate else []),
            int(row["n_pairs"]),
            f"{row['n_finished']} of {row['n_runs']}",
            words.p_text(row["p_fp32"]),
            words.number(row["gap_to_best"], sign=True),
            words.p_text(row["p_holm"]),
            row["verdict"],
        )
        for row in comparison.table.to_dict("records")
    )
    caption = md(
        "{scope}; {setting}. Gaps in nats a character, paired by seed, best first. p against FP32: {test}, "
        "Holm-adjusted over the 8-bit formats; against the best: over all pairs of them.",
        scope=words.quantized(comparison.scope).capitalize(),
        setting=_setting(loader, comparison),
        test=_tests_used(comparison),
    )
    base = Paragraph(md("Baseline: {arm}.", arm=col.arm_link(comparison.baseline)))
    notes = [Paragraph(_in_tokens(rate))] if rate else []
    return [Table(columns, rows, caption, data=comparison.table, id=identity), base, *notes]


def _in_tokens(rate: TokenRate) -> str:
    """What the column rests on, and its limits."""
    short, long = rate.steps
    ends = words.span(rate.rate.low, rate.rate.high)
    gained = f"{words.number(rate.rate.mean)} nats (95% CI {ends}, n = {rate.rate.n})"
    return (
        f"In tokens: how many more training tokens would gain as much, exp(gap / r) - 1. Between {short:,} and "
        f"{long:,} steps FP32 gains r = {gained} per unit of ln(tokens). It is a yardstick, not a measurement: it "
        "rests on FP32 of one model at two lengths, each with a schedule of its own. Where the loss falls faster near "
        "the shorter length, small gaps are worth less than shown; larger ones than the longer "
        "runs gained have no figure."
    )


def _tests_used(comparison: Comparison) -> str:
    return words.names(sorted({name_of_test(n) for n in comparison.table["n_pairs"] if n > 1}) or ["no test"])


def _said(found: dict[str, Verdict], *identities: str) -> list[Block]:
    """What the preregistered hypotheses of a section came to; what is missing where one is pending."""
    items = tuple(
        md(
            "{link} ({statement}) **{answer}.** {evidence}",
            link=Link(identity, PageRef("reports/preregistered", identity.lower())),
            statement=found[identity].statement.rstrip("."),
            answer=found[identity].answer.capitalize(),
            evidence=found[identity].evidence,
        )
        for identity in identities
    )
    return [Paragraph("Written down before the runs:"), Bullets(items)]


def _what_would_change(comparison: Comparison) -> tuple[Text, ...]:
    items: list[Text] = []
    for row in comparison.seeds_for_smallest_gap.itertuples():
        needed = "not known" if row.seeds is None or math.isnan(row.seeds) else f"{int(row.seeds)} pairs"
        items.append(
            f"More seeds: to see a difference of {SMALLEST_GAP:g} nats, the smallest called interesting here, between "
            f"{row.format} and the best takes {needed} (paired t test, power 80%, at the recorded standard deviation "
            f"{row.sd_to_best:.4f}); {row.n_pairs} are recorded."
        )
    items.append(
        "Another learning rate for a format, a larger model, longer runs, other data: see below what is recorded."
    )
    return tuple(items)


def _places(loader: ExperimentDataLoader, comparator: FormatComparator, found: dict[str, Verdict]) -> list[Block]:
    """The sweet spot of each layer type and operand, with what is undecided; rankings folded away."""
    spots = comparator.sweet_spots
    rows = []
    for row in spots.to_dict("records"):
        known = isinstance(row["best"], str)
        listed = [str(row[name] or "none").replace(" ", ", ") for name in ("equivalent", "undecided", "worse")]
        rows.append(
            (
                PLACE_NAMES[row["place"]],
                col.arm_link(row["arm"], row["best"]) if known else f"none: {row['reason']}",
                words.number(row["gap"], sign=True),
                words.interval(row["low"], row["high"]) if known else None,
                int(row["n_pairs"]),
                *(listed if known else (None, None, None)),
            )
        )
    columns: tuple[Column | str, ...] = (
        "Quantized",
        "Sweet-spot format",
        *col.right("Gap to FP32", "95% interval", "Pairs"),
        f"Within {MARGIN:g}",
        "Undecided",
        "Worse",
    )
    caption = (
        f"Sweet-spot format by layer type (all operands) and by operand (all layers). Within {MARGIN:g}: shown to lie "
        f"within {MARGIN:g} nats of the best. Undecided: neither that nor a difference is shown."
    )
    blocks: list[Block] = [Table(columns, tuple(rows), caption, data=spots, id="sweet-spots")]
    absent = [str(place) for place in spots.loc[spots["arm"].isna() & spots["best"].isna(), "place"]]
    for study, places in (("formats", ("all", *OPERAND_NAMES.values())), ("layers", LAYER_TYPES)):
        lacking = [PLACE_NAMES[place] for place in absent if place in places and comparator.at(place) is None]
        if lacking:
            blocks.append(pending_note(f"No runs are recorded for {words.names(lacking)}.", [study]))
    for place in list(PLACES)[1:]:
        comparison = comparator.at(place)
        if comparison is not None:
            inner = (
                Paragraph(answer(comparison, comparator.sweet_spot(comparison))),
                *_results(loader, comparison, f"results-{place}"),
            )
            blocks.append(Details(f"Ranking: {PLACE_NAMES[place]}", inner))
    return [*blocks, *_said(found, "H3", "H4", "H5")]


def _ties(tensors: pd.DataFrame, spot: SweetSpot) -> list[Block]:
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
    text = md(
        "**Secondary evidence, where the losses are close.** {names} are not shown to differ by more than the margin. "
        "The signal-to-quantization-noise ratio (SQNR) of their actual tensors, a mean over layers and runs at the "
        "last look: {said}. A higher SQNR means values nearer to the unrounded ones; it is no ranking by loss.",
        names=words.names(close),
        said=said,
    )
    return [Paragraph(text)]


def _why(comparison: Comparison, tensors: pd.DataFrame, looks: Mapping[str, pd.DataFrame]) -> list[Block]:
    if tensors.empty:
        return [Paragraph("The runs recorded no figures of their layers: what the formats did to them is not known.")]
    blocks: list[Block] = []
    if (chart := weights_chart(comparison, looks)) is not None:
        blocks.append(ChartBlock(chart))
    columns: tuple[Column | str, ...] = (
        "Format",
        "Layer type",
        "Operand",
        *col.right("SQNR (dB)", "Underflow", "Overflow", "Codes used"),
    )
    ordered = tensors.sort_values("format", key=lambda column: column.map(format_order), kind="stable")
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            row["layer_type"],
            OPERAND_NAMES[row["operand"]],
            words.number(row["sqnr_db"], 1),
            words.percent(row["underflow"]),
            words.percent(row["overflow"]),
            words.percent(row["codes_used"]),
        )
        for row in ordered.to_dict("records")
    )
    caption = (
        "Signal-to-quantization-noise ratio, fraction of nonzero elements that became zero or lie beyond the largest "
        "value, and fraction of the format's codes that occur: means over the layers of a type and the finished runs, "
        "at the last look."
    )
    table = Table(columns, rows, caption, data=ordered, id="tensors")
    return [*blocks, Details("SQNR, range and code use by format, layer type and operand", (table,))]


def weights_chart(comparison: Comparison, looks: Mapping[str, pd.DataFrame]) -> Chart | None:
    """Every format's grid below the histogram of the weights it held, by octave; None without histograms."""
    parts, zeros = [], {}
    names = sorted((name for name in comparison.table["format"] if "/" not in name), key=format_order)
    for name in names:
        fmt = get_format(name)
        look = looks[name]
        codes = look[(look["operand"] == "weight") & look["statistic"].astype(str).str.fullmatch("code_[0-9a-f]{2}")]
        if fmt.bits != 8 or codes.empty:
            continue
        counts = codes.groupby("statistic")["value"].sum()
        values = np.abs(fmt.values[[int(str(code)[5:], 16) for code in counts.index]])
        share = counts.to_numpy() / counts.sum()
        zeros[name] = float(share[values == 0].sum())
        grid = np.abs(fmt.finite_values[fmt.finite_values > 0])
        parts.append(
            pd.DataFrame(
                {
                    "format": name,
                    "octave": range(LOWEST_OCTAVE, 1),
                    "grid_values": _by_octave(grid, np.ones(len(grid)), grid.max()),
                    "share_of_weights": _by_octave(values, share, grid.max()),
                    "share_zero": zeros[name],
                }
            )
        )
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
    shown = list(dict.fromkeys(data["format"]))

    def draw(axes: Axes) -> None:
        boxes = []
        for place, name in enumerate(shown):
            bars = data[data["format"] == name]
            base, tallest = -1.5 * place, bars["share_of_weights"].max()
            for octave, share in zip(bars["octave"], bars["share_of_weights"], strict=True):
                if share > 0:
                    boxes.append((octave - 0.96, octave - 0.04, base + 0.8 * share / tallest, base))
            grid = get_format(name).finite_values
            ticks = np.log2(grid[grid > 0] / grid.max())
            ticks = ticks[ticks >= LOWEST_OCTAVE]
            lines = np.column_stack([ticks, ticks, np.full(len(ticks), np.nan)]).ravel()
            heights = np.tile([base - 0.08, base - 0.3, np.nan], len(ticks))
            axes.plot(lines, heights, color=PALETTE[1], linewidth=0.7)
            axes.text(LOWEST_OCTAVE - 1.3, base + 0.15, name, ha="right", color=FOREGROUND)
            axes.text(LOWEST_OCTAVE - 1.3, base - 0.25, f"{zeros[name]:.1%} zero", ha="right", fontsize=8, color=MUTED)
        axes.add_artist(charts.rectangles(boxes, PALETTE[0]))
        axes.set_xlim(LOWEST_OCTAVE - 1, 0.2)
        axes.set_ylim(-1.5 * len(shown) + 1.0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        ticks_shown = range(LOWEST_OCTAVE, 1, 4)
        axes.set_xticks(ticks_shown, [f"2^{tick}" if tick else "1" for tick in ticks_shown])
        axes.set_xlabel("size of a weight over the format's largest value; bars: share of weights, ticks: the grid")

    said = []
    for name in shown:
        bars = data[data["format"] == name]
        most = bars.loc[bars["share_of_weights"].idxmax()]
        said.append(
            f"{name}: {zeros[name]:.1%} of the weights are zero; the fullest octave, up to 2^{int(most['octave'])}, "
            f"holds {most['share_of_weights']:.0%} of them and {int(most['grid_values'])} of the grid's positive values"
        )
    return Chart(
        "weights-grid",
        "The grid of each format, and the weights it held",
        f"For each format the share of its stored weights by octave of size, over all layers and runs at the last "
        f"histogram, above its grid of values. {'; '.join(said)}.",
        data,
        draw,
        height=0.62 * len(shown) + 0.8,
        margins=(0.9, 0.15, 0.55, 0.1),
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
    columns: tuple[Column | str, ...] = (
        "Format",
        "Scale",
        *col.right("Difference", "95% interval", "Pairs", "Finished", "Adjusted p"),
    )
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            row["policy"],
            words.number(row["difference"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            f"{row['n_finished']} of {row['n_runs']}",
            words.p_text(row["p_holm"]),
        )
        for row in policies.to_dict("records")
    )
    caption = (
        "Final validation loss minus that of the same format with one power-of-two scale a tensor from its current "
        "largest value, in nats a character; below zero, the other scale is better. p: Holm-adjusted over the rows."
    )
    beside = md(
        "Formats that are defined with scales of their own, MX and NVFP4, are compared in {page}.",
        page=Link("the literature page", PageRef("reports/literature")),
    )
    return [Table(columns, rows, caption, data=policies, id="scales"), Paragraph(beside)]


def _length(
    loader: ExperimentDataLoader, comparator: FormatComparator, short: Comparison, long: Comparison | None
) -> list[Block]:
    if long is None:
        return [pending_note("No longer runs of the same setting are recorded (study length).", ["length"])]
    steps = [loader.config(each.baseline).max_steps for each in (short, long)]
    both = long.table.merge(short.table, on="format", suffixes=("", "_short"), how="left")
    single = ~both["format"].map(is_combination)
    both["rank"] = both["gap"].where(single).rank().astype("Int64")
    both["rank_short"] = both["gap_short"].where(single).rank().astype("Int64")
    kept = ["format", "arm", "gap_short", "low_short", "high_short", "n_pairs_short", "rank_short"]
    data = both[[*kept, "gap", "low", "high", "n_pairs", "n_finished", "n_runs", "rank"]]
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right(f"Gap after {steps[0]:,} steps", "95% interval", "Pairs", "Place"),
        *col.right(f"Gap after {steps[1]:,} steps", "95% interval", "Pairs", "Place", "Finished"),
    )
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            words.number(row["gap_short"], sign=True),
            words.interval(row["low_short"], row["high_short"]),
            None if math.isnan(row["n_pairs_short"]) else int(row["n_pairs_short"]),
            None if pd.isna(row["rank_short"]) else int(row["rank_short"]),
            words.number(row["gap"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            None if pd.isna(row["rank"]) else int(row["rank"]),
            f"{row['n_finished']} of {row['n_runs']}",
        )
        for row in data.to_dict("records")
    )
    table = Table(columns, rows, "Gap to FP32 in short and in long runs, nats a character", data=data, id="length")
    return [Paragraph(answer(long, comparator.sweet_spot(long))), table]


def _other_rates(loader: ExperimentDataLoader, comparison: Comparison, own: pd.DataFrame) -> list[Block]:
    """Formats at the rate that suits them, on the reporting seeds."""
    rate = loader.config(comparison.baseline).optimizer.learning_rate
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right("Its own rate", "Gap at its own rate", "95% interval", "Pairs", "Finished"),
        *col.right(f"Gap at {rate:g}"),
    )
    rows = tuple(
        (
            col.arm_link(row["arm"], row["format"]),
            f"{row['learning_rate']:g}",
            words.number(row["gap"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            f"{row['n_finished']} of {row['n_runs']}",
            words.number(row["gap_shared"], sign=True),
        )
        for row in own.to_dict("records")
    )
    text = (
        f"All formats above share FP32's learning rate, {rate:g}. The formats below were also run at another one; the "
        "gap is to FP32 at its own rate, on the same seeds. Where the two differ, the gap above is partly the rate's."
    )
    caption = "Gap to FP32 at a learning rate of the format's own, nats a character"
    return [Paragraph(text), Table(columns, rows, caption, data=own, id="own-rates")]


def _conclusions(loader: ExperimentDataLoader, comparison: Comparison, spot: SweetSpot) -> tuple[Text, ...]:
    table = comparison.table
    whole = table[(table["n_finished"] == table["n_runs"]) & (table["n_pairs"] >= MIN_PAIRS)]
    equal = pd.Series([_equivalent_to_fp32(row) for row in whole.to_dict("records")], whole.index, dtype=bool)
    worse = whole["low"] > 0
    lost, close = whole[worse & ~equal], whole[(whole["low"] <= 0) & (whole["high"] >= 0) & ~equal]
    items: list[Text] = []
    if spot.undecided:
        items.append(
            f"Between {words.names([spot.best or '', *spot.undecided])} this number of seeds does not decide. "
            "That is not evidence that they are equal; no single format is named."
        )
    items += [f"Beside {spot.best}, {name} {_difference(comparison, name)}." for name in spot.equivalent]
    if longer := _if_longer(loader, comparison):
        items.append(md("It changes if {longer}", longer=longer))
    for those, how in ((equal & ~worse, "no difference is shown"), (equal & worse, "worse, but by less than that")):
        if those.any():
            text = "Within {margin:g} nats of FP32 (TOST), {how}: {names}."
            items.append(md(text, margin=MARGIN, how=how, names=", ".join(whole.loc[those, "format"])))
    if len(close):
        items.append(
            md(
                "Undecided against FP32 (the interval holds zero, which is not evidence of equality): {names}.",
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
                gap=words.number(worst["gap"], sign=True),
                interval=words.interval(worst["low"], worst["high"]),
            )
        )
    arms = table.set_index("format")["arm"].reindex(["E0M7", "E1M6"])
    if arms.notna().all():
        one, other = (by_seed(loader.runs[loader.runs["arm"] == arm]) for arm in arms)
        apart = (one - other).abs().dropna()
        if len(apart):
            most = f"differ by at most {apart.max():.2g} nats" if apart.max() else "are equal to the last digit"
            seeds = "the seed" if len(apart) == 1 else f"the {len(apart)} seeds"
            items.append(
                "E1M6 is E0M7 times 4: with a free scale the two are one quantizer. "
                f"Their losses on {seeds} that both ran {most}, and charts of gaps leave E1M6 out."
            )
    unfinished = table[table["n_finished"] < table["n_runs"]]
    if len(unfinished):
        items.append(
            md(
                "With runs that did not finish, and therefore not ranked: {names}.",
                names=", ".join(unfinished["format"]),
            )
        )
    return tuple(items)


def _equivalent_to_fp32(row: dict[Hashable, Any]) -> bool:
    return Estimate(row["gap"], row["low"], row["high"], row["sd"], row["n_pairs"], math.nan).equivalent()


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
    size = extent(loader, comparison)
    read = f"{size.evaluated:,}" + (f" of {size.validation_characters:,}" if size.validation_characters else "")
    limits = (
        f"An evaluation reads {read} validation characters, the same windows in every run; what others would change is "
        f"not in the intervals. {size.steps:,} steps are {size.characters:,} characters"
        + (f", {size.characters / size.parameters:.1f} a parameter" if size.parameters else "")
        + ": early in training."
    )
    return [Heading("Method and caveats"), Paragraph(text), Paragraph(limits), Paragraph(more)]


def _afterwards(loader: ExperimentDataLoader) -> list[Block]:
    """What was found in the records afterwards: the cost of a mantissa bit, and whether costs add up."""
    bits, shorter, table = loader.once(cost_per_bit), cost_per_bit(loader, LADDER[:-1]), loader.once(additivity)
    if bits is None and table.empty:
        return []
    blocks: list[Block] = [
        Heading("Found afterwards"),
        Paragraph(
            "Exploratory: seen in the records after the runs. No hypothesis named it, and nothing was run to test it."
        ),
    ]
    if bits and shorter:
        blocks.append(Paragraph(_per_bit(bits, shorter)))
    if len(table):
        blocks += [Paragraph(_added_up(table)), _additivity_table(table)]
    return blocks


def _per_bit(bits: BitCost, shorter: BitCost) -> Md:
    return md(
        "**Each mantissa bit divides the cost by {factor}** (95% interval {ends}, {n} seeds), from 1 to {last} bits: "
        "the slope of ln(mean gap) over mantissa bits of {formats}, with percentiles over {resamples:,} resamples of "
        "the seeds. In {left_out} of them {smallest}'s mean gap is not above zero and has no logarithm; without "
        "{smallest} the factor is {short} ({short_ends}). E7M0 has no mantissa to count, and in splits with 5 "
        "bits or more the lack of range costs more than a bit gains: neither is in it.",
        factor=words.number(bits.factor, 2),
        ends=words.span(bits.low, bits.high, 1),
        n=bits.n,
        last=len(bits.formats),
        formats=", ".join(bits.formats),
        resamples=RESAMPLES,
        left_out=f"{bits.left_out:.1%}",
        smallest=bits.formats[-1],
        short=words.number(shorter.factor, 2),
        short_ends=words.span(shorter.low, shorter.high, 1),
    )


def _added_up(table: pd.DataFrame) -> Md:
    shown = table["p_holm"] < ALPHA
    rest = table[~shown]
    most = rest.loc[rest["difference"].abs().idxmax()]
    but = [
        f"{row['format']}'s over {row['by']}s: {words.number(row['sum'])} one at a time, "
        f"{words.number(row['together'])} together"
        for row in table[shown].to_dict("records")
    ]
    return md(
        "**Costs nearly add up.** The gap with all layer types, or all operands, differs from the sum of the gaps with "
        "one at a time by {median} nats in the median and by {most} at most ({format} over {by}s, {ends}){but}.",
        median=words.number(rest["difference"].abs().median()),
        most=words.number(abs(most["difference"])),
        format=most["format"],
        by=most["by"],
        ends=words.interval(most["low"], most["high"]),
        but=f". Not so {'; '.join(but)}" if but else "",
    )


def _additivity_table(table: pd.DataFrame) -> Table:
    rows = tuple(
        (
            row["by"],
            row["format"],
            ", ".join(f"{name} {words.number(gap)}" for name, gap in row["parts"].items()),
            words.number(row["sum"]),
            words.number(row["together"]),
            words.number(row["difference"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            words.p_text(row["p_holm"]),
        )
        for row in table.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "Divided by",
        "Format",
        "Gap with one at a time",
        *col.right("Sum", "Together", "Together minus sum", "95% interval", "Pairs", "Adjusted p"),
    )
    caption = "Gaps to FP32 of parts and whole, nats a character, on the same seeds; p: Holm-adjusted over the rows"
    data = pd.concat([table.drop(columns="parts"), table["parts"].apply(pd.Series)], axis=1)
    return Table(columns, rows, caption, data=data, id="additivity")


def _others(
    loader: ExperimentDataLoader, comparator: FormatComparator, policies: pd.DataFrame, long: Comparison | None
) -> list[Block]:
    """Comparisons in other settings, such as the pilot's, folded away."""
    shown = [comparator.at(place) for place in PLACES] + [long]
    scaled = set(policies["arm"])
    blocks: list[Block] = []
    for comparison in comparator.comparisons:
        if any(comparison is each for each in shown) or set(comparison.table["arm"]) <= scaled:
            continue
        title = f"Another setting: {comparison.scope}; {_setting(loader, comparison)}"
        table = _results(loader, comparison, f"results-other-{len(blocks) + 1}")
        blocks.append(Details(title, (Paragraph(answer(comparison, comparator.sweet_spot(comparison))), *table)))
    return [Heading("Other settings"), *blocks] if blocks else []


def _own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> list[Block]:
    heading, rates = Heading("At a learning rate of its own"), own_rates(loader, comparison)
    if len(own := at_own_rates(loader, comparison)):
        return [heading, *_other_rates(loader, comparison, own)]
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
            words.number(row["gap_shared"], sign=True),
            words.number(row["gap_own"], sign=True),
            int(row["n"]),
        )
        for row in rates.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right("Best rate tried", "Gap at the shared rate", "Gap at its best rate", "Held-out seeds"),
    )
    text = (
        f"{shared} The tuning runs show what a rate of its own changes: the mean gap to FP32 in nats a character, on "
        "held-out seeds too few for an interval. Where the two columns differ, the gap above is partly the rate's."
    )
    table = Table(columns, rows, "Gap to FP32 on the tuning seeds", data=rates, id="own-rates")
    return [heading, Paragraph(text), table]


def _all_results(table: pd.DataFrame) -> list[Block]:
    columns: tuple[Column | str, ...] = (
        "Quantized",
        *col.right("Rate", "Steps"),
        "Format",
        *col.right("Gap to FP32", "95% interval", "Pairs", "Finished"),
        "Verdict",
    )
    rows = tuple(
        (
            row["scope"],
            f"{row['learning_rate']:g}",
            int(row["max_steps"]),
            col.arm_link(row["arm"], row["format"]),
            words.number(row["gap"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            f"{row['n_finished']} of {row['n_runs']}",
            row["verdict"],
        )
        for row in table.to_dict("records")
    )
    caption = "Every comparison of this page in one table, gaps in nats a character"
    inner = Table(columns, rows, caption, data=table, id="all-results")
    return [Heading("All results"), Details(f"The {len(rows)} arms, to download as CSV or JSON", (inner,))]


def _unmatched(comparator: FormatComparator) -> list[Block]:
    runs = comparator.unmatched
    if runs.empty:
        return []
    return [
        Paragraph(
            f"{len(runs)} AdamW runs ({', '.join(sorted(runs['format'].unique()))}) have no FP32 run of the same "
            "setting (learning rate, storage, length, data) and take no part in these comparisons."
        )
    ]


def _missing(loader: ExperimentDataLoader) -> str:
    """What is missing for any comparison of formats, in a sentence."""
    runs = loader.runs
    runs = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool)]
    if loader.runs.empty:
        return "No runs are recorded."
    if runs.empty:
        return f"{len(loader.runs)} runs are recorded, but all of tuning studies or of other training loops."
    quantized, baseline = runs[runs["scope"] != "nothing"], runs[runs["scope"] == "nothing"]
    count = f"{len(runs)} runs are recorded"
    if quantized.empty:
        return f"{count}, all of them unquantized: there is no format to compare with FP32."
    if baseline.empty:
        return f"{count}, but no FP32 run: without one there is no gap to report."
    differing = [
        word
        for column, word in (("data", "data"), ("max_steps", "number of steps"), ("learning_rate", "learning rate"))
        if not set(quantized[column]) & set(baseline[column])
    ]
    how = f"the {words.names(differing)} of the two" if differing else "another part of the config"
    return (
        f"{count}, but none of them is an AdamW run of a format together with an FP32 run of the same setting (model, "
        f"data, steps, learning rate): {how} {'differ' if differing else 'differs'}, so that there is no gap to report."
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
