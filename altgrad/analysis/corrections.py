"""The figures of docs/reports/corrections.md: what is so, where something else was said, from the campaign's records.

The document's sentences take their figures from these values. Where the runs of one are not recorded it is None, of
formats, or says so, of failures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import Comparison, FormatComparator, scale_policies
from altgrad.analysis.contrasts import NAMED, TEST_COLUMNS, Row, family, missing, named_family, runs_of
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
    comparator = loader.memo(FormatComparator)
    found: dict[str, Any] = dict.fromkeys(("extent", "tie", "tokens", "blocks", "e1m6", "bits", "sums"))
    short = comparator.headline
    if short is None or "formats" not in set(loader.runs.loc[loader.runs["arm"] == short.baseline, "study"]):
        return found | {"margin": MARGIN}
    long, size, bits = comparator.longer(short), extent(loader, short.baseline), cost_per_bit(loader)
    return {
        "margin": MARGIN,
        "extent": size if size.parameters and size.validation_characters else None,
        "tie": _tie(loader, short, long) if long else None,
        "tokens": _tokens(loader, short),
        "blocks": _blocks(loader, short),
        "e1m6": _e1m6(loader, short),
        "bits": {"all": bits, "without_last": cost_per_bit(loader, LADDER[:-1])} if bits else None,
        "sums": _sums(additivity(loader)),
    }


def _tie(loader: ExperimentDataLoader, short: Comparison, long: Comparison) -> dict[str, Any] | None:
    """E4M3 minus E3M4 in short and in long runs."""
    found = {}
    for name, each in (("short", short), ("long", long)):
        table = each.table.set_index("format")
        if table["gap"].reindex(["E3M4", "E4M3"]).isna().any():
            return None
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
    rules = {row.format: (row, loader.config(row.arm).scaling.rule("weight")) for row in _by_block(loader, short)}
    if "E0M7" not in rules:
        return None
    row, rule = rules["E0M7"]
    ours, theirs, baseline = (losses(loader, arm) for arm in (row.arm, row.against, short.baseline))
    return {
        "block": rule.block,
        "gap": paired_difference(ours, baseline),
        "by_tensor": paired_difference(theirs[theirs.index.isin(ours.index)], baseline),
        "recorded": sorted(rules),
        "missing": [name for name in ("E2M5", "E3M4") if name not in rules],
    }


def _by_block(loader: ExperimentDataLoader, short: Comparison) -> list[Any]:
    rows = scale_policies(loader, short).itertuples()
    return [row for row in rows if loader.config(str(row.arm)).scaling.rule("weight").granularity == "block"]


def _e1m6(loader: ExperimentDataLoader, short: Comparison) -> dict[str, Any] | None:
    rows = short.table.set_index("format")
    if not {"E0M7", "E1M6"} <= set(rows.index):
        return None
    one, other = (losses(loader, rows.at[name, "arm"]) for name in ("E0M7", "E1M6"))
    apart = (one - other).abs().max()
    return (
        None
        if pd.isna(apart)
        else {
            "runs": int(rows.at["E1M6", "n_runs"]),
            "gap": rows.at["E1M6", "gap"],
            "apart": apart,
            "e0m7": paired_difference(one, losses(loader, short.baseline)),
        }
    )


def _sums(table: pd.DataFrame) -> dict[str, Any] | None:
    """The rows of `additivity` by division and format, and the largest deviations but E7M0's."""
    rows = table.set_index(["by", "format"]).to_dict("index")
    rest = table[table["format"] != "E7M0"].groupby("by")["difference"].agg(lambda column: column.abs().max())
    if ("operand", "E7M0") not in rows or not {"layer type", "operand"} <= set(rest.index):
        return None
    return {"rows": rows, "largest": rest.to_dict()}


UNRECORDED = "(these runs are not recorded)"


def failure_values(loader: ExperimentDataLoader) -> dict[str, str | float]:
    """Of failures, step rules, verdicts and machines: each in words where its runs are missing."""
    found = {verdict.id: verdict for verdict in verdicts(loader)}
    answered = {name: verdict.answered for name, verdict in found.items() if verdict.answer != "pending"}
    h10 = found["H10"].tests["difference"]
    gaps = loader.memo(FailureAnalyzer).gaps
    gaps = gaps[gaps["campaign"].astype(bool) & (gaps["n_pairs"] > 1)]
    late, base = gaps[gaps["study"] == "blocks"], runs_of(loader, "FP32")
    ended = (base["status"] == "finished").sum()
    e7m0 = next(iter(gaps[gaps["format"] == "E7M0"].to_dict("records")), None)
    decays = defaultdict(set)
    for _, run in _own(loader).drop_duplicates("arm").iterrows():
        decays[run["step_rule"] == "code"].add(loader.config(run["arm"]).optimizer.weight_decay)
    removed, whole = _row(loader, "E7M0", "E7M0 E5M2 gradients"), _row(loader, "E7M0", "FP32")
    blocks = {fmt: _row(loader, f"{fmt} block", fmt) for fmt in RULE_FORMATS}
    others = [f"{fmt} {_nats(row)}" for fmt, row in blocks.items() if row and fmt != "E0M7"]
    long, relative = _row(loader, "E0M7 long", "FP32 long"), _row(loader, "FP32 relative master", "FP32")
    own, shared = ARMS["E0M7 own rate"], ARMS["E0M7"]
    rates = _row(loader, own.name, shared.name)
    made: dict[str, Any] = {
        "blocks_failing": int(late["failed"].sum()) if len(late) else None,
        "mxfp4_up": _nats(_row(loader, "MXFP4 up", "FP32")),
        "mxfp4_drawn": _nats(_row(loader, "MXFP4 stochastic gradients", "FP32")),
        "e7m0_worst": _nats({**e7m0, "difference": e7m0["gap"]}) if e7m0 else None,
        "code_decay": " or ".join(f"{decay:g}" for decay in sorted(decays[True])),
        "other_decay": " or ".join(f"{decay:g}" for decay in sorted(decays[False])),
        "h10_differences": f"{h10.min():.3f} to {h10.max():.3f} nats" if len(h10) else None,
        **{f"{name.lower()}_answer": answered.get(name) for name in ("H5", "H10", "H18")},
        **_h5(loader, "H5" in answered),
        "h18_removed": f"{removed['difference']:.3f}" if removed and whole else None,
        "h18_whole": f"{whole['difference']:.3f}" if removed and whole else None,
        "h19_e0m7": _nats(blocks["E0M7"]) if all(blocks.values()) else None,
        "h19_others": words.names(others) if all(blocks.values()) else None,
        "h20_formats": long and len(LONG_ARMS),
        "h20_steps": long and f"{ARMS['E0M7 long'].config().max_steps:,}",
        "h20_gap": _nats(long),
        "study_days": _study_days(loader),
        **_crossing(loader, found.values()),
        "failed_runs": _failed(loader),
        "fp32_finished": f"{ended} of its {len(base)} runs finished" if len(base) else None,
        "relative_fp32": _nats(relative, 4),
        "relative_p": relative and words.p_text(relative["p_value"]),
        "e0m7_rate": rates and f"{own.rate:g}",
        "e0m7_other_rate": rates and f"{shared.rate:g}",
        "e0m7_rate_costs": _nats(rates, 4),
        "e0m7_rate_p": rates and words.p_text(rates["p_value"]),
        "e0m7_ulps": _nats(_row(loader, "E0M7 update master", shared.name), 4),
    }
    return {name: UNRECORDED if value in (None, "") else value for name, value in made.items()}


def _own(loader: ExperimentDataLoader) -> pd.DataFrame:
    return loader.runs[~loader.runs["foreign"].astype(bool)]


def _row(loader: ExperimentDataLoader, *pair: str) -> Row | None:
    """The contrast of two arms of the campaign; None where their runs are not all recorded."""
    return None if missing(loader, pair) else named_family(loader, [pair]).to_dict("records")[0]


def _nats(row: Row | None, digits: int = 3) -> str | None:
    """A difference with its interval and pairs."""
    if row is None:
        return None
    mean = words.number(row["difference"], digits, sign=True)
    return f"{mean} nats {words.interval(row['low'], row['high'], digits)} (n = {int(row['n_pairs'])})"


def _h5(loader: ExperimentDataLoader, answered: bool) -> dict[str, str | None]:
    """E4M3 against the mlp's best in both families: all pairs, and the best against the others."""
    names = ("h5_best", "h5_p_amended", "h5_p_registered", "h5_difference")
    pairs = pairs_of_best([f"{fmt} mlp" for fmt in SPLITS])(loader) if answered else ()
    best = pairs[-1][1] if pairs else "E4M3 mlp"
    if best == "E4M3 mlp":
        return dict.fromkeys(names)
    rows = [row for row in named_family(loader, pairs).to_dict("records") if row["to"] == best]
    others = family(rows, (*TEST_COLUMNS, *NAMED)).to_dict("records")
    amended, registered = (next(row for row in each if row["of"] == "E4M3 mlp") for each in (rows, others))
    p_values = [words.p_text(row["p_holm"]) for row in (amended, registered)]
    return dict(zip(names, (ARMS[best].format, *p_values, _nats(amended, 4)), strict=True))


def _study_days(loader: ExperimentDataLoader) -> str:
    runs = _own(loader)
    runs = runs[runs["seed"].isin(SEEDS)]
    days = runs.groupby("study")["created"].agg(lambda created: sorted({str(each)[:10] for each in created}))
    return "; ".join(f"{study} {' and '.join(those)}" for study, those in days.items() if study)


def _crossing(loader: ExperimentDataLoader, found: Iterable[Verdict]) -> dict[str, str | None]:
    """How many tests of the hypotheses pair runs of two days, and of which."""
    rows = [
        (verdict.id, row["arm"], row["against"])
        for verdict in found
        for row in verdict.tests.to_dict("records")
        if row["arm"] and row["against"]
    ]
    if not rows:
        return dict.fromkeys(("crossing_tests", "crossing_hypotheses"))
    table = crossing(loader, rows)
    across = table[table["n_crossing"] > 0]
    listed = ", ".join(dict.fromkeys(across["contrast"])) or "none"
    return {"crossing_tests": f"{len(across)} of {len(table)}", "crossing_hypotheses": listed}


def _failed(loader: ExperimentDataLoader) -> str | None:
    runs = _own(loader)
    failed = runs[runs["status"] == "failed"]
    counts = failed["arm"].map(lambda arm: named(loader.config(arm))).value_counts()
    said = " and ".join(f"{count} of {name}" for name, count in counts.items())
    return f"{len(failed)} runs failed, {said}" if len(failed) else None
