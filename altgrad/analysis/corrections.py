"""The figures of docs/reports/corrections.md: what is so, where something else was said, from the campaign's records.

The document's sentences take their figures from these values. Where the runs of one are not recorded it is None, of
formats, or says so, of failures.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, scale_policies
from altgrad.analysis.contrasts import NAMED, TEST_COLUMNS, by_seed, family, missing, named_family, runs_of
from altgrad.analysis.costs import LADDER, additivity, cost_per_bit, extent, losses, token_rate
from altgrad.analysis.failures import FailureAnalyzer, named
from altgrad.analysis.hypotheses import decayed, pairs_of_best, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.logits import on_more_text
from altgrad.analysis.machines import crossing
from altgrad.analysis.statistics import MARGIN, paired_difference
from altgrad.studies import ARMS, SEEDS, SPLITS, STUDIES

UNBLOCKED = tuple(ARMS[arm].format for arm in STUDIES["blocks-close"].seeds)
"""Formats that the campaign did not run with one scale per block."""
REPEATED = {"E4M3 with seed 10": "0.0022", "FP32": "at most 0.00005"}
"""By how many nats runs that were made again on 2026-11-29 differ from records of 2026-11-24; no record holds them."""


def corrections(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Every value that the document may name."""
    return format_values(loader) | failure_values(loader)


def format_values(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Of formats: scope, tie, worth in tokens, scales by block, E1M6, cost of a bit, additivity."""
    comparator = loader.memo(FormatComparator)
    found: dict[str, Any] = dict.fromkeys(("extent", "tie", "tokens", "blocks", "e1m6", "bits", "sums", "again"))
    short = comparator.headline
    if short is None or "formats" not in set(loader.runs.loc[loader.runs["arm"] == short.baseline, "study"]):
        return found
    long, size, bits = comparator.longer(short), extent(loader, short.baseline), cost_per_bit(loader)
    return {
        "extent": size if size.parameters and size.validation_characters else None,
        "tie": _tie(loader, short, long) if long else None,
        "tokens": _tokens(loader, short),
        "blocks": _blocks(loader, short),
        "e1m6": _e1m6(loader, short),
        "bits": {"all": bits, "without_last": cost_per_bit(loader, LADDER[:-1])} if bits else None,
        "sums": _sums(additivity(loader)),
        "again": (again := loader.memo(on_more_text)) and again | {"grown": _grown(loader, again)},
    }


def _grown(loader: ExperimentDataLoader, again: dict[str, Any]) -> list[dict[str, Any]]:
    """The formats of `on_more_text` whose gap grows by more than the margin with the text that is read.

    That is from the last evaluation on the way to the end, where more is read: format, rate, the mean on `less` and
    `more`, and their paired difference.
    """

    def read_last(arm: str) -> pd.Series:
        ended = runs_of(loader, arm).query("status == 'finished'")
        losses = [loader.records[run].history["val_loss"].dropna().iloc[-1] for run in ended["run_id"]]
        return pd.Series(losses, index=ended["seed"], dtype="float64")

    found = []
    for row in (*again["rows"], *again["own"]):
        less = read_last(row["of"]) - read_last(row["to"])
        more = by_seed(runs_of(loader, row["of"])) - by_seed(runs_of(loader, row["to"]))
        difference = paired_difference(more, less)
        if difference.low > MARGIN:
            means = {"less": less.mean(), "more": row["difference"]}
            found.append({"format": row["format"], "rate": row["rate"], "difference": difference, **means})
    return found


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
    """E0M7's gap with one scale per tensor and with one per block, on the same seeds; which formats have such runs."""
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
        "missing": [name for name in UNBLOCKED if name not in rules],
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
    if pd.isna(apart):
        return None
    e0m7 = paired_difference(one, losses(loader, short.baseline))
    return {"runs": int(rows.at["E1M6", "n_runs"]), "gap": rows.at["E1M6", "gap"], "apart": apart, "e0m7": e0m7}


def _sums(table: pd.DataFrame) -> dict[str, Any] | None:
    """The rows of `additivity` by division and format, and the largest deviations but E7M0's."""
    rows = table.set_index(["by", "format"]).to_dict("index")
    rest = table[table["format"] != "E7M0"].groupby("by")["difference"].agg(lambda column: column.abs().max())
    if ("operand", "E7M0") not in rows or not {"layer type", "operand"} <= set(rest.index):
        return None
    return {"rows": rows, "largest": rest.to_dict()}


def failure_values(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Of failures, step rules, H5 and machines; None, or an empty list, where the runs are missing."""
    gaps = loader.memo(FailureAnalyzer).gaps
    gaps = gaps[gaps["campaign"].astype(bool) & (gaps["n_pairs"] > 1)]
    late, runs = gaps[gaps["study"] == "blocks"], _own(loader)
    decays: dict[bool, set[float]] = {True: set(), False: set()}
    for _, run in runs[~runs["study"].isin(("decay", "rivals-tuning"))].drop_duplicates("arm").iterrows():
        decays[run["step_rule"] == "code"].add(loader.config(run["arm"]).optimizer.weight_decay)
    failed = runs[(runs["status"] == "failed") & (runs["role"] == "report")]
    return {
        "blocks_failing": int(late["failed"].sum()) if len(late) else None,
        "e7m0_worst": next(iter(gaps[gaps["format"] == "E7M0"].to_dict("records")), None),
        "code_decay": sorted(decays[True]),
        "other_decay": sorted(decays[False]),
        "decayed": decayed(loader),
        "h5": _h5(loader),
        "study_days": _study_days(loader),
        "crossing": _crossing(loader),
        "failed": failed["arm"].map(lambda arm: named(loader.config(arm))).value_counts().to_dict(),
        "fp32": _fp32(loader),
    }


def _own(loader: ExperimentDataLoader) -> pd.DataFrame:
    return loader.runs[~loader.runs["foreign"].astype(bool)]


def _h5(loader: ExperimentDataLoader) -> dict[str, Any] | None:
    """E4M3 against the mlp's best in both families: all pairs, and the best against the others."""
    arms = [f"{fmt} mlp" for fmt in SPLITS]
    if missing(loader, [*arms, "FP32"]):
        return None
    pairs = pairs_of_best(arms)(loader)
    if (best := pairs[-1][1]) == "E4M3 mlp":
        return {"best": "E4M3"}
    rows = [row for row in named_family(loader, pairs).to_dict("records") if row["to"] == best]
    others = family(rows, (*TEST_COLUMNS, *NAMED)).to_dict("records")
    amended, registered = (next(row for row in each if row["of"] == "E4M3 mlp") for each in (rows, others))
    return {"best": ARMS[best].format, "amended": amended, "registered": registered}


def _fp32(loader: ExperimentDataLoader) -> dict[str, int] | None:
    runs = runs_of(loader, "FP32")
    ended = {"runs": len(runs), "finished": int((runs["status"] == "finished").sum())}
    return None if missing(loader, ["FP32"]) else ended


def _study_days(loader: ExperimentDataLoader) -> dict[str, list[str]]:
    runs = _own(loader)
    runs = runs[runs["seed"].isin(SEEDS) & (runs["study"] != "")]
    return {
        str(study): sorted({str(each)[:10] for each in created}) for study, created in runs.groupby("study")["created"]
    }


def _crossing(loader: ExperimentDataLoader) -> dict[str, Any]:
    """How many tests of the hypotheses pair runs of two days, and of which."""
    rows = [
        (verdict.id, row["arm"], row["against"])
        for verdict in verdicts(loader)
        for row in verdict.tests.to_dict("records")
        if row["arm"] and row["against"]
    ]
    table = crossing(loader, rows)
    across = table[table["n_crossing"] > 0]
    return {"tests": len(table), "across": len(across), "of": list(dict.fromkeys(across["contrast"]))}
