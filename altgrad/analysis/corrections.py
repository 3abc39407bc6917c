"""The figures of docs/reports/corrections.md: what is so, where something else was said, from the campaign's records.

Each value is a mapping that the document's sentences take their figures from; None where its runs are not recorded,
and the document then says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import Comparison, FormatComparator, scale_policies
from altgrad.analysis.contrasts import NAMED, TEST_COLUMNS, family, missing, named_family, runs_of
from altgrad.analysis.costs import LADDER, additivity, cost_per_bit, extent, losses, token_rate
from altgrad.analysis.failures import FailureAnalyzer, named
from altgrad.analysis.hypotheses import LONG_ARMS, Verdict, pairs_of_best, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.machines import crossing
from altgrad.analysis.statistics import MARGIN, paired_difference
from altgrad.studies import ARMS, RULE_FORMATS, SEEDS, SPLITS


def corrections(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Every value that the document may name."""
    return format_values(loader) | failure_values(loader)


def format_values(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Of formats: scope, tie, worth in tokens, scales by block, E1M6, cost of a bit, additivity."""
    comparator = loader.once(FormatComparator)
    found: dict[str, Any] = dict.fromkeys(("extent", "tie", "tokens", "blocks", "e1m6", "bits", "sums"))
    short = comparator.headline
    if short is None or "formats" not in set(loader.runs.loc[loader.runs["arm"] == short.baseline, "study"]):
        return found | {"margin": MARGIN}
    long, size = comparator.longer(short), extent(loader, short.baseline)
    found |= {
        "extent": size if size.parameters and size.validation_characters else None,
        "tie": _tie(loader, short, long) if long else None,
        "tokens": _tokens(loader, short),
        "blocks": _blocks(loader, short),
        "e1m6": _e1m6(loader, short),
        "bits": _bits(loader),
        "sums": _sums(additivity(loader)),
    }
    return found | {"margin": MARGIN}


def _tie(loader: ExperimentDataLoader, short: Comparison, long: Comparison) -> dict[str, Any] | None:
    """E4M3 minus E3M4 in short and in long runs."""
    rows = [each.table.set_index("format") for each in (short, long)]
    if any(table["gap"].reindex(["E3M4", "E4M3"]).isna().any() for table in rows):
        return None
    found = {}
    for name, each, table in zip(("short", "long"), (short, long), rows, strict=True):
        difference = paired_difference(*(losses(loader, table.at[fmt, "arm"]) for fmt in ("E4M3", "E3M4")))
        found[name] = {
            "difference": difference,
            "p_holm": table.at["E4M3", "p_holm"],
            "p_equivalent": difference.equivalence_p(),
            "steps": loader.config(each.baseline).max_steps,
        }
    return found


def _tokens(loader: ExperimentDataLoader, short: Comparison) -> dict[str, Any] | None:
    rate = token_rate(loader)
    if rate is None:
        return None
    gaps = short.table.set_index("format")["gap"]
    worth = {name: rate.more_tokens(gaps[name]) for name in ("E4M3", "E5M2", "E0M7") if name in gaps}
    return {"rate": rate.rate, "steps": rate.steps, "margin": rate.more_tokens(MARGIN), "worth": worth}


def _blocks(loader: ExperimentDataLoader, short: Comparison) -> dict[str, Any] | None:
    """E0M7's gap with a scale a tensor and with one a block, on the same seeds, and which formats have such runs."""
    policies, baseline = scale_policies(loader, short), losses(loader, short.baseline)
    by_block = [loader.config(arm).scaling.rule("weight").granularity == "block" for arm in policies["arm"]]
    rows = policies[pd.Series(by_block, index=policies.index, dtype=bool)].set_index("format")
    if "E0M7" not in rows.index:
        return None
    ours, theirs = (losses(loader, rows.at["E0M7", name]) for name in ("arm", "against"))
    return {
        "block": loader.config(rows.at["E0M7", "arm"]).scaling.rule("weight").block,
        "gap": paired_difference(ours, baseline),
        "by_tensor": paired_difference(theirs[theirs.index.isin(ours.index)], baseline),
        "recorded": sorted(rows.index),
        "missing": [name for name in ("E2M5", "E3M4") if name not in rows.index],
    }


def _e1m6(loader: ExperimentDataLoader, short: Comparison) -> dict[str, Any] | None:
    rows = short.table.set_index("format")
    if not {"E0M7", "E1M6"} <= set(rows.index):
        return None
    one, other = (losses(loader, rows.at[name, "arm"]) for name in ("E0M7", "E1M6"))
    return {
        "runs": int(rows.at["E1M6", "n_runs"]),
        "gap": rows.at["E1M6", "gap"],
        "apart": (one - other).abs().max(),
        "e0m7": paired_difference(one, losses(loader, short.baseline)),
    }


def _bits(loader: ExperimentDataLoader) -> dict[str, Any] | None:
    found = cost_per_bit(loader)
    return {"all": found, "without_last": cost_per_bit(loader, LADDER[:-1])} if found else None


def _sums(table: pd.DataFrame) -> dict[str, Any] | None:
    """The rows of `additivity` by division and format, and the largest deviations but E7M0's."""
    if table.empty or not {"layer type", "operand"} <= set(table["by"]):
        return None
    rest = table[table["format"] != "E7M0"].groupby("by")["difference"].agg(lambda column: column.abs().max())
    return {"rows": table.set_index(["by", "format"]).to_dict("index"), "largest": rest.to_dict()}


UNRECORDED = "(these runs are not recorded)"
NAMES = (
    "blocks_failing", "mxfp4_up", "mxfp4_drawn", "e7m0_worst", "code_decay", "other_decay", "h10_differences",
    "h10_answer", "h5_best", "h5_p_registered", "h5_p_amended", "h5_difference", "h5_answer", "h18_removed",
    "h18_whole", "h18_answer", "h19_e0m7", "h19_others", "h20_formats", "h20_steps", "h20_gap", "study_days",
    "crossing_tests", "crossing_hypotheses", "failed_runs", "fp32_finished", "relative_fp32", "relative_p",
    "e0m7_rate", "e0m7_other_rate", "e0m7_rate_costs", "e0m7_rate_p", "e0m7_ulps",
)  # fmt: skip
Value = tuple[str, str | float]


def failure_values(loader: ExperimentDataLoader) -> dict[str, str | float]:
    """Of failures, step rules, verdicts and machines: every name of `NAMES`, in words where its runs are missing."""
    found = {verdict.id: verdict for verdict in verdicts(loader)}
    made = (
        *_block_arms(loader), *_decay(loader, found["H10"]), *_h5(loader, found["H5"]), *_limits(loader, found),
        *_machines(loader, found), *_failed(loader), *_baseline(loader), *_e0m7(loader),
    )  # fmt: skip
    return {name: UNRECORDED for name in NAMES} | dict(made)


def _row(loader: ExperimentDataLoader, *pair: str) -> dict[Any, Any] | None:
    """The contrast of two arms of the campaign; None where their runs are not all recorded."""
    if missing(loader, pair):
        return None
    return named_family(loader, [pair]).to_dict("records")[0]  # type: ignore[no-any-return]


def _nats(row: Mapping[Any, Any], digits: int = 3) -> str:
    """A difference with its interval and pairs."""
    mean, low, high = (f"{row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{mean} nats [{low}, {high}] (n = {int(row['n_pairs'])})"


def _block_arms(loader: ExperimentDataLoader) -> Iterator[Value]:
    gaps = loader.once(FailureAnalyzer).gaps
    gaps = gaps[gaps["campaign"].astype(bool) & (gaps["n_pairs"] > 1)]
    late = gaps[gaps["study"] == "blocks"]
    if len(late):
        yield "blocks_failing", int(late["failed"].sum())
    for name, arm in (("mxfp4_up", "MXFP4 up"), ("mxfp4_drawn", "MXFP4 stochastic gradients")):
        if row := _row(loader, arm, "FP32"):
            yield name, _nats(row)
    for row in gaps[gaps["format"] == "E7M0"].head(1).to_dict("records"):
        yield "e7m0_worst", _nats(row | {"difference": row["gap"]})


def _decay(loader: ExperimentDataLoader, h10: Verdict) -> Iterator[Value]:
    decays = defaultdict(set)
    for _, run in loader.runs[~loader.runs["foreign"].astype(bool)].drop_duplicates("arm").iterrows():
        decays[run["step_rule"] == "code"].add(loader.config(run["arm"]).optimizer.weight_decay)
    for name, of_code in (("code_decay", True), ("other_decay", False)):
        if decays[of_code]:
            yield name, " or ".join(f"{decay:g}" for decay in sorted(decays[of_code]))
    if h10.answer != "pending":
        rows = h10.tests["difference"]
        yield "h10_differences", f"{rows.min():.3f} to {rows.max():.3f} nats"
        yield "h10_answer", h10.answered


def _h5(loader: ExperimentDataLoader, h5: Verdict) -> Iterator[Value]:
    """E4M3 against the mlp's best in both families: all pairs, and the best against the others."""
    if h5.answer == "pending":
        return
    yield "h5_answer", h5.answered
    pairs = pairs_of_best([f"{fmt} mlp" for fmt in SPLITS])(loader)
    best = pairs[-1][1]
    if best == "E4M3 mlp":
        return
    rows = named_family(loader, pairs).to_dict("records")
    rows = [row for row in rows if row["to"] == best]
    others = family(rows, (*TEST_COLUMNS, *NAMED)).to_dict("records")
    amended, registered = (next(row for row in each if row["of"] == "E4M3 mlp") for each in (rows, others))
    yield "h5_best", ARMS[best].format
    yield "h5_p_amended", words.p_text(amended["p_holm"])
    yield "h5_p_registered", words.p_text(registered["p_holm"])
    yield "h5_difference", _nats(amended, 4)


def _limits(loader: ExperimentDataLoader, found: Mapping[str, Verdict]) -> Iterator[Value]:
    removed, whole = _row(loader, "E7M0", "E7M0 E5M2 gradients"), _row(loader, "E7M0", "FP32")
    if removed and whole:
        yield "h18_removed", f"{removed['difference']:.3f}"
        yield "h18_whole", f"{whole['difference']:.3f}"
    for name in ("H18", "H19", "H20"):
        if found[name].answer != "pending":
            yield f"{name.lower()}_answer", found[name].answered
    changes = {fmt: _row(loader, f"{fmt} block", fmt) for fmt in RULE_FORMATS}
    others = [f"{fmt} {_nats(row)}" for fmt, row in changes.items() if row and fmt != "E0M7"]
    if (row := changes["E0M7"]) and len(others) == len(RULE_FORMATS) - 1:
        yield "h19_e0m7", _nats(row)
        yield "h19_others", words.names(others)
    if row := _row(loader, "E0M7 long", "FP32 long"):
        yield "h20_formats", len(LONG_ARMS)
        yield "h20_steps", f"{ARMS['E0M7 long'].config().max_steps:,}"
        yield "h20_gap", _nats(row)


def _machines(loader: ExperimentDataLoader, found: Mapping[str, Verdict]) -> Iterator[Value]:
    runs = loader.runs[loader.runs["seed"].isin(SEEDS) & ~loader.runs["foreign"].astype(bool)]
    days = runs.groupby("study")["created"].agg(lambda created: sorted({str(each)[:10] for each in created}))
    if len(days):
        yield "study_days", "; ".join(f"{study} {' and '.join(those)}" for study, those in days.items() if study)
    rows = [
        (verdict.id, row["arm"], row["against"])
        for verdict in found.values()
        for row in verdict.tests.to_dict("records")
        if row["arm"] and row["against"]
    ]
    if rows:
        table = crossing(loader, rows)
        across = table[table["n_crossing"] > 0]
        yield "crossing_tests", f"{len(across)} of {len(table)}"
        yield "crossing_hypotheses", ", ".join(dict.fromkeys(across["contrast"])) or "none"


def _failed(loader: ExperimentDataLoader) -> Iterator[Value]:
    runs = loader.runs[~loader.runs["foreign"].astype(bool)]
    failed = runs[runs["status"] == "failed"]
    if len(failed):
        counts = failed["arm"].map(lambda arm: named(loader.config(arm))).value_counts()
        said = " and ".join(f"{count} of {name}" for name, count in counts.items())
        yield "failed_runs", f"{len(failed)} runs failed, {said}"
    base = runs_of(loader, "FP32")
    if len(base):
        yield "fp32_finished", f"{(base['status'] == 'finished').sum()} of its {len(base)} runs finished"


def _baseline(loader: ExperimentDataLoader) -> Iterator[Value]:
    if row := _row(loader, "FP32 relative master", "FP32"):
        yield "relative_fp32", _nats(row, 4)
        yield "relative_p", words.p_text(row["p_value"])


def _e0m7(loader: ExperimentDataLoader) -> Iterator[Value]:
    own, shared = ARMS["E0M7 own rate"], ARMS["E0M7"]
    if row := _row(loader, own.name, shared.name):
        yield "e0m7_rate", f"{own.rate:g}"
        yield "e0m7_other_rate", f"{shared.rate:g}"
        yield "e0m7_rate_costs", _nats(row, 4)
        yield "e0m7_rate_p", words.p_text(row["p_value"])
    if row := _row(loader, "E0M7 update master", shared.name):
        yield "e0m7_ulps", _nats(row, 4)
