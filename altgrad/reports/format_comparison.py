"""Report ANAL-01, docs/reports/format_comparison.md: which format, by the paired loss gap to the unquantized run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    by_format,
    figures_of_tensors,
    format_order,
    is_8bit,
    is_combination,
    last_looks,
    own_rates,
    scale_policies,
)
from altgrad.analysis.contrasts import differs, missing, named_family, reading, shown
from altgrad.analysis.costs import LADDER, RESAMPLES, TokenRate, additivity, cost_per_bit, extent, losses, token_rate
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.labels import arm_labels
from altgrad.analysis.loader import ExperimentDataLoader, rule_label
from altgrad.analysis.logits import (
    costs_of,
    everything_quantized,
    gaps_of,
    on_another_text,
    on_more_text,
    without_embedding_and_head,
)
from altgrad.analysis.statistics import (
    ALPHA,
    FAILURE_GAP,
    MARGIN,
    MIN_PAIRS,
    SMALLEST_GAP,
    Estimate,
    name_of_test,
    paired_difference,
)
from altgrad.analysis.step_rules import evenly_spaced
from altgrad.config import LAYER_TYPES, OPERAND_NAMES
from altgrad.formats import get_format
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page
from altgrad.reports.format_styles import format_style
from altgrad.reports.heat_map import gaps_map
from altgrad.reports.scope import pilot, scope_line
from altgrad.site import FOREGROUND, MUTED, Block, Chart, ChartBlock, Column, Link, Page, Table
from altgrad.site.document import Part
from altgrad.studies import ARMS, FINE_FORMATS, FINE_SCALES, OPERAND_PLACES, PILOT_SEEDS, ROUNDED, SPLITS, STUDIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE_NAMES: dict[str, str] = {
    "all": "everything",
    **{kind: f"{kind.replace('mlp', 'MLP')} layers alone" for kind in LAYER_TYPES},
    **{place: f"{place} alone" for place in OPERAND_PLACES},
}
TWINS = ("E0M7", "E1M6")
"""Two formats that are one quantizer under a free scale."""
MOST = 0.8
"""A layer type that alone costs more than this fraction of a format's gap is named in the answer."""
SCALES = {
    "": "per tensor",
    "exact amax scale": "exact",
    "delayed scale over 16 steps": "delayed",
    "amax scale per row": "per row",
    "amax scale per block of 32": "per 32 values",
    "no scale": "none",
}
"""What shares a scale, or which it is, by the policy as records call it."""
LOWEST_OCTAVE = -16
"""The chart of weights ends this many octaves below a format's largest value; what is smaller is in its last bar."""
GAPS = "Loss gap to FP32 by format"
GAP = (col.signed("Gap to FP32", "gap"), col.interval(), col.count("Pairs", "n_pairs"), col.share())


def format_comparison_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where they allow no comparison."""
    return document_page(loader, "reports/format_comparison", *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    comparator, parts = loader.memo(FormatComparator), dict[str, Part]()
    values = headline(loader) | {"lacking": _lacking(loader)}
    if first := comparator.headline:
        parts = _complete(values, loader, comparator, first)
    arms = [arm for each in comparator.comparisons for arm in (each.baseline, *each.table["arm"])]
    return Content(values, parts, lambda: arms).kept()


def _complete(
    values: dict[str, Any], loader: ExperimentDataLoader, comparator: FormatComparator, first: Comparison
) -> dict[str, Part]:
    """The parts of the page where formats can be compared; its values go into `values`."""
    looks, policies, long = last_looks(loader, first), scale_policies(loader, first), comparator.longer(first)
    tensors, own, tuned = figures_of_tensors(first, looks), at_own_rates(loader, first), own_rates(loader, first)
    sums, octaves = loader.memo(additivity), weights_held(looks)
    fine, wide = loader.memo(_fine_scales), _wide_scales(loader)
    at, noise = {place: comparator.at(place) for place in PLACES}, _noise(first, tensors)

    def ranking(comparison: Comparison, identity: str) -> dict[str, Any]:
        spot, runs = comparator.sweet_spot(comparison), loader.runs[loader.runs["role"] == "report"]
        runs = runs[runs["arm"].isin(comparison.table["arm"])]
        return {
            **{"comparison": comparison, "spot": spot, "results": results(comparison, identity)},
            "ranked": [spot.best, *spot.equivalent, *spot.undecided, *spot.worse] if spot.best else [],
            "studies": sorted(runs["study"].unique()),
            "seeds": sorted({int(runs["seed"].min()), int(runs["seed"].max())}),
            "pilot": runs["study"].isin(STUDIES).all() and runs["seed"].isin(PILOT_SEEDS).all(),
            **_tested(loader, comparison),
        }

    above = {id(each) for each in (*at.values(), long)}
    others = [each for each in comparator.comparisons if id(each) not in above]
    others = [each for each in others if not set(each.table["arm"]) <= set(policies["arm"])]
    seeds = first.seeds_for_smallest_gap
    values |= {
        "by_operand": _spots(comparator, OPERAND_PLACES),
        "verdicts": lambda *names: verdicts(loader, *names),
        "seeds_needed": seeds.astype(object).where(seeds.notna(), None).to_dict("records"),
        "smallest_gap": SMALLEST_GAP,
        "unrecorded": [
            (study, lacking)
            for study, places in (("formats", ("all", *OPERAND_PLACES)), ("layers", LAYER_TYPES))
            if (lacking := [PLACE_NAMES[place] for place in places if at[place] is None])
        ],
        "rankings": [
            ranking(comparison, f"results-{place}") | {"place": PLACE_NAMES[place]}
            for place, comparison in at.items()
            if comparison and place != "all"
        ],
        "sqnr_of_close": _sqnr_of_close(tensors, values["spot"]),
        "noise": _beside_the_line(noise, values["spot"]),
        "crowded": _crowded(octaves),
        "long_spot": comparator.sweet_spot(long) if long else None,
        "long_tests": _tested(loader, long)["tests_used"] if long else None,
        **{"tensors": tensors, "policies": policies, "long": long, "own_rates": own, "tuned_rates": tuned},
        "shared_rate": loader.config(first.baseline).optimizer.learning_rate,
        **{"bits": loader.memo(cost_per_bit), "shorter": cost_per_bit(loader, LADDER[:-1]), "resamples": RESAMPLES},
        "sums": _sums(sums),
        "to_fp32": _to_fp32(first),
        **{"twins": TWINS, "apart": _twins(loader, first)},
        **_tested(loader, first),
        "extent": extent(loader, first.baseline),
        "others": [ranking(each, f"results-other-{number}") for number, each in enumerate(others, 1)],
        "unmatched": comparator.unmatched,
        "fine": len(fine),
        "wider_model": len(wide),
        "arms": len(comparator.results),
    }
    return {
        "gaps": lambda: [ChartBlock(gap_chart(first))],
        "ranking": lambda: [ranked(first, values["rate"])],
        "results": lambda: [results(first, "results", values["rate"])],
        "noise": lambda: [ChartBlock(noise_chart(noise))],
        "sweet spots": lambda: [sweet_spots(comparator)],
        "layer gaps": lambda: layer_gaps(comparator),
        "weights": [ChartBlock(weights_chart(octaves))] if octaves else [],
        "tensors": lambda: [tensors_table(tensors)],
        "scales": lambda: [scales(policies)],
        "scale gaps": lambda: [ChartBlock(scale_gaps(comparator, first, policies))],
        "fine scales": lambda: _scales_map("fine-scales", fine, FINE_NAMES),
        "wide scales": lambda: _scales_map("wide-scales", wide, WIDE_NAMES),
        "length": lambda: [lengths(loader, first, long)] if long else [],
        "own rates": lambda: [own_rates_table(own, values["shared_rate"])],
        "tuned rates": lambda: [tuned_rates_table(tuned)],
        "additivity": lambda: [additivity_table(sums)],
        "all results": lambda: [all_results(loader, comparator.results)],
    }


def _within(gaps: pd.DataFrame, prefix: str, columns: Iterable[str] = ROUNDED) -> dict[str, list[str]]:
    """The splits shown to be within the margin of FP32, by how the logits' gradient is rounded, or by scale."""
    rows = gaps[gaps["format"].isin(SPLITS) & (gaps["p_equivalent"] < ALPHA)].sort_values("difference")
    return {f"{prefix}{how}": list(rows.loc[rows["rounding"] == how, "format"]) for how in columns}


FINE_NAMES = {"tensor": "tensor", "block": "32, last dimension", "tile": "32, along the sum", "square": "32 x 32"}
"""What has one scale, in the columns of the map of study granularity."""
WIDE_NAMES = {"tile": "128, along the sum", "square": "128 x 128"}
"""The same of study width."""


def _fine_scales(loader: ExperimentDataLoader) -> pd.DataFrame:
    """Gaps of study granularity, beside those with one scale per tensor; empty where one is missing."""
    arms = {(fmt, scale): f"{fmt} {scale} fresh" for fmt in FINE_FORMATS for scale in FINE_SCALES}
    arms |= {(fmt, "tensor"): f"{fmt} head nearest" for fmt in FINE_FORMATS}
    return _by_scale(loader, "FP32 fresh", arms, FINE_NAMES)


def _wide_scales(loader: ExperimentDataLoader) -> pd.DataFrame:
    """Gaps of study width; empty where one is missing."""
    arms = {(fmt, scale): f"{fmt} {scale} 256" for fmt in FINE_FORMATS for scale in WIDE_NAMES}
    return _by_scale(loader, "FP32 256", arms, WIDE_NAMES)


def _by_scale(
    loader: ExperimentDataLoader, baseline: str, arms: dict[tuple[str, str], str], names: dict[str, str]
) -> pd.DataFrame:
    gaps = gaps_of(loader, baseline, arms)
    return gaps.assign(scale=gaps["rounding"].map(names)) if len(gaps) == len(arms) else gaps.iloc[:0]


def _scales_map(identity: str, gaps: pd.DataFrame, names: dict[str, str]) -> list[Block]:
    return [ChartBlock(gaps_map(identity, "", gaps, "difference", "scale", names.values()))]


# What the answer rests on


def headline(loader: ExperimentDataLoader) -> dict[str, Any]:
    """What docs/sections/answer.md says of the leading comparison; where there is none, `comparison` is None."""
    comparator = loader.memo(FormatComparator)
    first = comparator.headline
    if first is None:
        return {"comparison": None}
    spot, shown, left = comparator.sweet_spot(first), *charted(first)
    return {
        **{"comparison": first, "spot": spot, "rate": loader.memo(token_rate)},
        "ends": losses(loader, first.baseline).mean(),
        "wide": [name for name in shown["format"] if not is_combination(name) and get_format(name).bits > 8],
        "same_as": _same_as(first, spot),
        "limit": FAILURE_GAP,
        "failing": [row for row in _ranked(first) if row["gap"] > FAILURE_GAP],
        "ulps": _ulps(loader),
        "mx": _mx(loader),
        "scope": scope_line(loader, first.first, but=""),
        "longer": spot.best and _if_longer(loader, first, spot),
        "finer": spot.best and _if_finer(loader, first),
        "bare": _without_scale(loader, first),
        **_within(loader.memo(everything_quantized), "within_"),
        **_within(text := loader.memo(on_another_text), "text_within_"),
        "text": len(text),
        **_within(fine := loader.memo(_fine_scales), "fine_within_", FINE_NAMES),
        "fine_seeds": int(fine["n_pairs"].min()) if len(fine) else 0,
        "fine_gaps": {(row["format"], row["rounding"]): row for row in fine.to_dict("records")},
        "body": {row["format"]: row for row in loader.memo(without_embedding_and_head).to_dict("records")},
        "logits": [row for row in costs_of(loader, loader.memo(everything_quantized)) if row["cost"] > FAILURE_GAP],
        "fewer": spot.best and _if_fewer(loader),
        "by_layer_type": _by_layer_type(comparator),
        "again": loader.memo(on_more_text),
        "without_interval": left,
        "pilot": pilot(loader, first.baseline, first.most_pairs),
    }


def _if_longer(loader: ExperimentDataLoader, short: Comparison, spot: SweetSpot) -> dict[str, Any] | None:
    """What becomes, in longer runs, of the formats that lie within the margin of the best."""
    comparator = loader.memo(FormatComparator)
    long = comparator.longer(short)
    if long is None or (after := comparator.sweet_spot(long)).best is None:
        return None
    close = [name for name in spot.equivalent if name in set(long.table["format"])]
    found = {"comparison": long, "spot": after, "steps": loader.config(long.baseline).max_steps, "close": close}
    found["ranked"] = sum(is_8bit(name) for name in long.table["format"])
    if after.best == spot.best:

        def apart(name: str, at: Comparison) -> pd.Series:
            return losses(loader, at.row(name)["arm"]) - losses(loader, at.row(str(spot.best))["arm"])

        found["grown"] = {name: paired_difference(apart(name, long), apart(name, short)) for name in close}
    return found if close or after.best != spot.best else None


def _if_finer(loader: ExperimentDataLoader, comparison: Comparison) -> dict[str, Any] | None:
    """The other scale that lowers a format's gap most."""
    better = [row for row in scale_policies(loader, comparison).to_dict("records") if shown(row, -1)]
    if not better:
        return None
    row = min(better, key=lambda row: float(row["difference"]))
    new, old, fp32 = (losses(loader, arm) for arm in (row["arm"], row["against"], comparison.baseline))
    before, left = paired_difference(old[old.index.isin(new.index)], fp32), paired_difference(new, fp32)
    rule, policies = loader.config(row["arm"]).scaling.rule("weight"), scale_policies(loader, comparison)
    recorded = set(policies.loc[policies["policy"] == row["policy"], "format"])
    found = {"block": rule.block if rule.granularity == "block" else None, "recorded": recorded}
    others = [
        {"policy": each["policy"], "gap": paired_difference(losses(loader, each["arm"]), fp32).mean}
        for each in better
        if each["format"] == row["format"] and each is not row
    ]
    return {**row, **found, "before": before, "left": left, "others": others}


def _without_scale(loader: ExperimentDataLoader, comparison: Comparison) -> list[dict[str, Any]]:
    """The formats that were run without a scale, those that break first, and their gaps."""
    policies, fp32 = scale_policies(loader, comparison), losses(loader, comparison.baseline)
    rows = policies[policies["policy"] == "no scale"].to_dict("records")
    found = [{**row, "gap": paired_difference(losses(loader, row["arm"]), fp32).mean} for row in rows]
    return sorted(found, key=lambda row: row["n_finished"] == row["n_runs"])


def _if_fewer(loader: ExperimentDataLoader) -> dict[str, Any] | None:
    """The layer type that carries most of some formats' gaps."""
    table = loader.memo(additivity)
    rows = table[(table["by"] == "layer type") & (table["together"] > MARGIN)].to_dict("records")
    carried = {
        kind: [{"format": row["format"], "share": row["parts"][kind] / row["together"]} for row in rows]
        for kind in LAYER_TYPES
    }
    carried = {kind: [row for row in found if row["share"] > MOST] for kind, found in carried.items()}
    kind = max(carried, key=lambda kind: len(carried[kind]))
    others = set(LAYER_TYPES) - {kind}
    left_out = any(set(loader.config(arm).quantize.layers or ()) == others for arm in loader.runs["arm"].unique())
    return {"layers": kind, "formats": carried[kind], "left_out": left_out} if carried[kind] else None


def _ranked(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of the 8-bit formats of which every run finished and that have enough pairs, by exponent bits."""
    table = comparison.table
    whole = table[(table["n_finished"] == table["n_runs"]) & (table["n_pairs"] >= MIN_PAIRS)]
    rows: list[dict[str, Any]] = by_format(whole[whole["format"].map(is_8bit).astype(bool)]).to_dict("records")
    return rows


def _same_as(comparison: Comparison, spot: SweetSpot) -> dict[str, str]:
    """The ranked format that an unranked one is under a free scale."""
    ranked = [row["format"] for row in _ranked(comparison)]
    return {
        name: other
        for name in spot.unranked
        for other in ranked
        if get_format(name).relation(get_format(other)).kind == "equal"
    }


def _ulps(loader: ExperimentDataLoader) -> dict[str, int] | None:
    """In how many comparisons steps in ulps end lower and higher than AdamW (H8); None while it is pending."""
    (verdict,) = verdicts(loader, "H8")
    if verdict.answer == "pending":
        return None
    counts = Counter(reading(row).partition(",")[0] for row in verdict.judgement.rows)
    rows = verdict.judgement.rows
    formats = list(dict.fromkeys(str(row["to"]).split()[0] for row in rows))
    found: dict[str, Any] = {key: counts[key] for key in ("lower", "higher", "undecided")}
    found["flat"] = evenly_spaced(str(row["to"]).split()[0] for row in rows if reading(row) == "undecided")
    found["seeds"] = min(row["n_pairs"] for row in rows)
    return {"total": len(rows), "formats": formats, "ways": len(rows) // len(formats), **found}


def _mx(loader: ExperimentDataLoader) -> dict[str, Any] | None:
    """The 8-bit MX format against BF16, and `up` with scales rounded up; None while runs are missing, or none shown."""
    if missing(loader, ("MXFP8", "BF16")):
        return None
    (row,) = named_family(loader, [("MXFP8", "BF16")]).to_dict("records")
    up = not missing(loader, ("MXFP8 up", "BF16")) and named_family(loader, [("MXFP8 up", "BF16")]).iloc[0].to_dict()
    return {**row, "format": ARMS["MXFP8"].format, "up": up or None} if shown(row, +1) else None


def _spots(comparator: FormatComparator, places: Sequence[str]) -> list[dict[str, Any]]:
    """The sweet spots of some places, with lists of formats; nothing while one of them has none."""
    rows = comparator.sweet_spots.set_index("place", drop=False).loc[list(places)]
    if rows["best"].isna().any():
        return []
    lists = ("equivalent", "undecided", "worse")
    return [row | {key: row[key].split() for key in lists} for row in rows.to_dict("records")]


def _by_layer_type(comparator: FormatComparator) -> dict[str, Any] | None:
    """Which formats are good for every layer type, and where the others are not; None while a type has no answer."""
    rows = _spots(comparator, LAYER_TYPES)
    if not rows:
        return None
    others: list[dict[str, Any]] = []
    for name in sorted({name for row in rows for name in (*row["worse"], *row["undecided"])}):
        where = {how: [row["place"] for row in rows if name in row[how]] for how in ("worse", "undecided")}
        found = [{"how": how, "layers": layers} for how, layers in where.items() if layers]
        alike = [row for row in others if row["verdicts"] == found]
        if alike:
            alike[0]["formats"].append(name)
        else:
            others.append({"formats": [name], "verdicts": found})
    good = [{row["best"], *row["equivalent"]} for row in rows]
    return {"rows": rows, "everywhere": sorted(set.intersection(*good)), "others": others}


def _lacking(loader: ExperimentDataLoader) -> dict[str, Any]:
    """What there is, and what differs, where formats cannot be compared."""
    runs = loader.runs
    own = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool)]
    quantized, baseline = own[own["quantized"] != ""], own[own["quantized"] == ""]
    names = {"data": "data", "max_steps": "number of steps", "learning_rate": "learning rate"}
    counts = {"runs": len(runs), "own": len(own), "quantized": len(quantized), "baseline": len(baseline)}
    differing = [name for column, name in names.items() if not set(quantized[column]) & set(baseline[column])]
    return counts | {"differing": differing}


def _sqnr_of_close(tensors: pd.DataFrame, spot: SweetSpot) -> list[dict[str, Any]]:
    """Signal over noise by operand of the formats that are close in loss; nothing where fewer than two are."""
    close = [spot.best, *spot.equivalent, *spot.undecided]
    known = tensors[tensors["format"].isin(close)]
    if len(close) < 2 or known.empty:
        return []
    wide = known.pivot_table(index="format", columns="operand", values="sqnr_db", sort=False)
    wide = wide.reindex(columns=list(OPERAND_NAMES)).rename(columns=OPERAND_NAMES)
    return [{"format": name, "sqnr": list(wide.loc[name].items())} for name in close if name in wide.index]


def _noise(comparison: Comparison, tensors: pd.DataFrame) -> pd.DataFrame:
    """A row an 8-bit format with an interval: its gap, mean SQNR, and what became of the head's gradients."""
    rows = charts.finite_rows(charted(comparison)[0], "gap", "low", "high")
    head = tensors[(tensors["layer_type"] == "head") & (tensors["operand"] == "grad_output")].groupby("format")
    means = {
        "sqnr_db": tensors.groupby("format")["sqnr_db"].mean(),
        "flushed": head["underflow"].mean(),
        "head_sqnr": head["sqnr_db"].mean(),
    }
    table = rows[rows["format"].map(is_8bit).astype(bool)][CHARTED].join(pd.DataFrame(means, dtype=float), on="format")
    return table.dropna(subset=["sqnr_db"]).sort_values("sqnr_db", ignore_index=True)


def _beside_the_line(table: pd.DataFrame, spot: SweetSpot) -> dict[str, Any]:
    """The formats of which one with a lower SQNR has a gap smaller by more than the margin, and the last such one."""
    rows = table.fillna({"flushed": 0.0}).to_dict("records")
    better = [[other for other in rows[:at] if other["gap"] < row["gap"] - MARGIN] for at, row in enumerate(rows)]
    off = [row for row, found in zip(rows, better, strict=True) if found]
    below = next((found[-1]["format"] for found in better if found), None)
    return {"rows": rows, "off": off, "below": below, "best": next((r for r in rows if r["format"] == spot.best), None)}


def _to_fp32(comparison: Comparison) -> dict[str, Any]:
    """Formats by what is shown of their gap to FP32, best first."""
    table = comparison.table
    finished = table["n_finished"] == table["n_runs"]
    whole = table[finished & (table["n_pairs"] >= MIN_PAIRS)]
    gaps = (Estimate(row.gap, row.low, row.high, row.sd, row.n_pairs, math.nan) for row in whole.itertuples())
    equal = pd.Series([gap.equivalent() for gap in gaps], whole.index, dtype=bool)
    worse = whole["low"] > 0
    return {
        "alike": list(whole.loc[equal & ~worse, "format"]),
        "slightly_worse": list(whole.loc[equal & worse, "format"]),
        "undecided": list(whole.loc[(whole["low"] <= 0) & (whole["high"] >= 0) & ~equal, "format"]),
        "unfinished": list(table.loc[~finished, "format"]),
    }


def _twins(loader: ExperimentDataLoader, comparison: Comparison) -> pd.Series:
    """By how much the losses of `TWINS` differ on the seeds that both ran."""
    one, other = (losses(loader, arm) for arm in comparison.table.set_index("format")["arm"].reindex(TWINS))
    return (one - other).abs().dropna()


def _sums(table: pd.DataFrame) -> dict[str, Any]:
    """How far the costs of parts are from adding up to that of the whole; `exceptions` are shown not to."""
    rows = table.to_dict("records")
    rest = [row for row in rows if not differs(row)]
    return {
        "rows": rows,
        "exceptions": [row for row in rows if differs(row)],
        "rest": rest,
        "median": np.median([abs(row["difference"]) for row in rest]) if rest else None,
        "most": max(rest, key=lambda row: abs(float(row["difference"])), default=None),
    }


# Tables and charts


def results(comparison: Comparison, identity: str, rate: TokenRate | None = None) -> Table:
    """Every format of a comparison, best first; with the rate, what its gap is worth in tokens."""
    return col.table(comparison.table, _columns(rate), id=identity)


def _columns(rate: TokenRate | None, tested: bool = True) -> list[Column]:
    gap, interval, *counts = GAP
    return [
        *(col.arm(), gap, interval),
        *([col.of("In tokens", lambda row: rate.percent(row["gap"]), right=True)] if rate else []),
        *counts,
        *([col.p("p against FP32", "p_fp32")] if tested else []),
        col.signed("To the best", "gap_to_best"),
        *([col.p("p against the best", "p_holm")] if tested else []),
        col.text("Verdict", "verdict"),
    ]


def ranked(comparison: Comparison, rate: TokenRate | None = None) -> Table:
    """The 8-bit formats of a comparison, best first, without the tests behind their verdicts."""
    rows = comparison.table[comparison.table["format"].map(is_8bit).astype(bool)]
    whole = (rows["n_finished"] == rows["n_runs"]).all()
    columns = [column for column in _columns(rate, tested=False) if not (whole and column is GAP[-1])]
    return col.table(rows, columns)


def _tested(loader: ExperimentDataLoader, comparison: Comparison) -> dict[str, str]:
    """The setting of a comparison, and the names of its tests."""
    tests = sorted({name_of_test(n) for n in comparison.table["n_pairs"] if n > 1})
    return {"setting": _setting(loader, comparison), "tests_used": words.names(tests or ["no test"])}


def sweet_spots(comparator: FormatComparator) -> Table:
    """The sweet spot of each layer type and operand, with what is undecided."""

    def listed(title: str, key: str) -> Column:
        return col.of(title, lambda row: None if col.missing(row["best"]) else row[key].replace(" ", ", ") or "none")

    def best(row: col.Row) -> Link | str:
        return f"none: {row['reason']}" if col.missing(row["best"]) else col.arm_link(row["arm"], row["best"])

    def interval(row: col.Row) -> str | None:
        return None if col.missing(row["best"]) else words.interval(row["low"], row["high"])

    columns = (
        *(col.text("Quantized", "place", PLACE_NAMES), col.of("Sweet-spot format", best), GAP[0]),
        *(col.of("95% interval", interval, right=True), GAP[2]),
        *(listed(f"Within {MARGIN:g}", "equivalent"), listed("Undecided", "undecided"), listed("Worse", "worse")),
    )
    return col.table(comparator.sweet_spots, columns, id="sweet-spots")


def layer_gaps(comparator: FormatComparator) -> list[Block]:
    """The chart of gaps with one layer type quantized at a time; nothing where no such runs are recorded."""
    by_kind = {kind: found.table.assign(scope=kind) for kind in LAYER_TYPES if (found := comparator.at(kind))}
    if not by_kind:
        return []
    data = pd.concat(by_kind.values())[[*CHARTED, "scope"]].replace({"scope": {"mlp": "MLP"}})
    data = charts.finite_rows(data, "gap", "low", "high")
    return [ChartBlock(gaps_map("layer-gaps", GAPS, by_format(data), "gap", "scope", data["scope"].unique()))]


def tensors_table(tensors: pd.DataFrame) -> Table:
    """What each format did to the tensors of each layer type."""
    columns = (
        col.arm(),
        col.text("Layer type", "layer_type"),
        col.text("Operand", "operand", OPERAND_NAMES),
        col.number("SQNR (dB)", "sqnr_db", 1),
        col.percent("Underflow", "underflow"),
        col.percent("Overflow", "overflow"),
        col.percent("Codes used", "codes_used"),
    )
    return col.table(by_format(tensors), columns, id="tensors")


def scales(policies: pd.DataFrame) -> Table:
    """What another scale changes."""
    columns = (
        *(col.arm(), col.text("Scale", "policy"), col.signed("Difference", "difference"), *GAP[1:]),
        col.p("Adjusted p", "p_holm"),
    )
    return col.table(policies, columns, id="scales")


def scale_gaps(comparator: FormatComparator, comparison: Comparison, policies: pd.DataFrame) -> Chart:
    """The mean gap of each format that was run with another scale than `comparison` has, by scale."""
    names = {comparison.scope: SCALES[""]} | {
        f"{comparison.scope}; {policy}": SCALES.get(policy, policy) for policy in policies["policy"]
    }
    parts = [
        found.table[found.table["format"].map(is_8bit)].assign(scale=names[found.scope])
        for found in comparator.comparisons
        if found.scope in names and found.setting == comparison.setting
    ]
    data = pd.concat(parts)[["format", "scale", "arm", "n_pairs", "gap", "low", "high"]]
    others = set(data.loc[data["scale"] != SCALES[""], "format"])
    data = data[data["format"].isin(others)].reset_index(drop=True)
    order = [name for name in dict.fromkeys((*SCALES.values(), *names.values())) if name in set(data["scale"])]
    return gaps_map("scale-gaps", GAPS, by_format(data), "gap", "scale", order)


def noise_chart(data: pd.DataFrame) -> Chart:
    """The gap of each format against the signal over noise of its tensors, and against the head's lost gradients."""
    over = {
        "sqnr_db": ("mean SQNR of the tensors, dB", "{:.0f}".format),
        "flushed": ("gradients of the head that become zero", "{:.0%}".format),
    }
    return charts.gaps_against("noise", GAPS, data, over)


def lengths(loader: ExperimentDataLoader, short: Comparison, long: Comparison) -> Table:
    """Gaps and places in short and in long runs."""
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
    return col.table(data, [*columns, col.share()], id="length")


def own_rates_table(own: pd.DataFrame, shared: float) -> Table:
    """Gaps at a learning rate of the format's own."""
    columns = (
        *(col.arm(), col.general("Its own rate", "learning_rate"), col.signed("Gap at its own rate", "gap")),
        *(*GAP[1:], col.signed(f"Gap at {shared:g}", "gap_shared")),
    )
    return col.table(own, columns, id="own-rates")


def tuned_rates_table(tuned: pd.DataFrame) -> Table:
    """Gaps at the best rate of the tuning runs."""
    columns = (
        col.text("Format", "format"),
        col.general("Best rate tried", "own_rate"),
        col.signed("Gap at the shared rate", "gap_shared"),
        col.signed("Gap at its best rate", "gap_own"),
        col.count("Held-out seeds", "n"),
    )
    return col.table(tuned, columns, "Gap to FP32 on the tuning seeds", "own-rates")


def additivity_table(table: pd.DataFrame) -> Table:
    """Whether the gaps of parts add up to that of the whole."""
    columns = (
        col.text("Divided by", "by"),
        col.text("Format", "format"),
        col.of(
            "Gap with one at a time",
            lambda row: ", ".join(f"{name} {words.number(gap)}" for name, gap in row["parts"].items()),
        ),
        *(col.number("Sum", "sum"), col.number("Together", "together")),
        *(col.signed("Together minus sum", "difference"), *GAP[1:3], col.p("Adjusted p", "p_holm")),
    )
    data = pd.concat([table.drop(columns="parts"), table["parts"].apply(pd.Series)], axis=1)
    return col.table(table, columns, id="additivity", data=data)


def all_results(loader: ExperimentDataLoader, table: pd.DataFrame) -> Table:
    """Every comparison of the page in one table."""
    columns = (
        col.named(arm_labels(loader, table["arm"].unique())),
        col.general("Rate", "learning_rate"),
        col.count("Steps", "max_steps"),
        *(*GAP, col.text("Verdict", "verdict")),
    )
    return col.table(table, columns, id="all-results")


CHARTED = ["format", "arm", "n_pairs", "gap", "low", "high"]


def charted(comparison: Comparison) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the chart of gaps, and the formats that it leaves out: without an interval, where another has one."""
    single = ~comparison.table["format"].map(is_combination)
    table = comparison.table[single] if single.any() else comparison.table
    few = table["n_pairs"] < 2
    few &= not few.all()
    return table[~few], list(table.loc[few, "format"])


def gap_chart(comparison: Comparison) -> Chart:
    """Paired gap of every format to FP32 with its 95% interval, in the order of exponent bits."""
    data = charts.finite_rows(charted(comparison)[0][CHARTED], "gap")
    data = by_format(data).reset_index(drop=True)
    return charts.gaps("loss-gap", GAPS, data)


def weights_held(looks: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """The weights that each format held, by octave; nothing of those without histograms.

    `looks` are last looks, by format; those of 16 bits are left out, and combinations.
    """
    names = sorted(
        (name for name in looks if not is_combination(name) and get_format(name).bits <= 8), key=format_order
    )
    return [part for name in names if (part := _octaves(name, looks[name])) is not None]


def _fullest(octaves: pd.DataFrame) -> pd.Series:
    """The octave that holds most weights."""
    return octaves.loc[octaves["share_of_weights"].idxmax()]


def _crowded(parts: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """The formats with the fewest and the most values where most of their weights lie."""
    found = [{"format": each["format"], "held": int(each["grid_values"])} for each in map(_fullest, parts)]
    found.sort(key=lambda each: each["held"])
    return [found[0], found[-1]] if found else []


def weights_chart(parts: Sequence[pd.DataFrame]) -> Chart:
    """Every format's grid below the histogram of the weights it held, by octave."""

    def draw(axes: Axes) -> None:
        for place, bars in enumerate(parts):
            base, name, zero = -1.5 * place, bars["format"].iloc[0], bars["share_zero"].iloc[0]
            heights = 0.8 * bars["share_of_weights"] / bars["share_of_weights"].max()
            bar = zip(bars["octave"], heights, strict=True)
            boxes = [(octave - 0.96, octave - 0.04, base + height, base) for octave, height in bar if height > 0]
            axes.add_artist(charts.rectangles(boxes, format_style(name).colour))
            grid = get_format(name).finite_values
            ticks = np.log2(grid[grid > 0] / grid.max())
            ticks = ticks[ticks >= LOWEST_OCTAVE]
            lines = np.column_stack([ticks, ticks, np.full(len(ticks), np.nan)]).ravel()
            axes.plot(lines, np.tile([base - 0.08, base - 0.3, np.nan], len(ticks)), color=FOREGROUND, linewidth=0.7)
            axes.text(LOWEST_OCTAVE - 1.3, base + 0.15, name, ha="right", color=FOREGROUND)
            axes.text(LOWEST_OCTAVE - 1.3, base - 0.25, f"{zero:.1%} zero", ha="right", color=MUTED)
        axes.set_xlim(LOWEST_OCTAVE - 1, 0.2)
        axes.set_ylim(-1.5 * len(parts) + 1.0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        ticks_shown = range(LOWEST_OCTAVE, 1, 4)
        axes.set_xticks(ticks_shown, [f"2^{words.figure(tick, 'd')}" if tick else "1" for tick in ticks_shown])
        axes.set_xlabel("size of a weight over the largest value")

    said = (
        f"{most['format']}: {most['share_zero']:.1%} zero; "
        f"fullest octave to 2^{words.figure(int(most['octave']), 'd')}: "
        f"{most['share_of_weights']:.0%} of weights, {int(most['grid_values'])} grid values"
        for most in map(_fullest, parts)
    )
    return Chart(
        "weights-grid",
        "Each format's grid and the weights it held",
        f"{'; '.join(said)}.",
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

    def by_octave(values: NDArray[np.float64], weights: NDArray[np.float64]) -> list[float]:
        """Sums of `weights` over values / largest in (2^(k-1), 2^k], k from `LOWEST_OCTAVE`, with all below, to 0."""
        known = values > 0
        octaves = np.ceil(np.log2(values[known] / grid.max())).clip(LOWEST_OCTAVE)
        return [float(weights[known][octaves == octave].sum()) for octave in range(LOWEST_OCTAVE, 1)]

    return pd.DataFrame(
        {
            "format": name,
            "octave": range(LOWEST_OCTAVE, 1),
            "grid_values": by_octave(grid, np.ones(len(grid))),
            "share_of_weights": by_octave(values, share),
            "share_zero": float(share[values == 0].sum()),
        }
    )


def _setting(loader: ExperimentDataLoader, comparison: Comparison) -> str:
    config = loader.config(comparison.baseline)
    model = config.model
    return (
        f"{rule_label(config)}, learning rate {config.optimizer.learning_rate:g}, {config.max_steps} steps, "
        f"{model.layers} layers of {model.dim}, context {model.context}"
        + (f", {config.accumulate} batches a step" if config.accumulate > 1 else "")
        + (f", final loss over {read:,} characters" if (read := config.final_eval_characters) else "")
        + (", range-aware clipping" if config.stability.clip == "range_aware" else "")
        + (f", {shift.upper()} when it goes wrong" if (shift := config.stability.shift_to) else "")
    )
