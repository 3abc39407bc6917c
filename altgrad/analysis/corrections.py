"""The figures of docs/reports/corrections.md: what is so, where something else was said, from the campaign's records.

Each value is a mapping that the document's sentences take their figures from; None where its runs are not recorded,
and the document then says so.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, by_seed, scale_policies
from altgrad.analysis.costs import LADDER, additivity, cost_per_bit, extent, token_rate
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN, paired_difference


def corrections(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Every value that the document may name."""
    return format_values(loader)


def format_values(loader: ExperimentDataLoader) -> dict[str, Any]:
    """Of formats: scope, tie, worth in tokens, scales by block, E1M6, cost of a bit, additivity."""
    comparator = loader.once(FormatComparator)
    found: dict[str, Any] = dict.fromkeys(("extent", "tie", "tokens", "blocks", "e1m6", "bits", "sums"))
    short = comparator.headline
    if short is None or "formats" not in set(loader.runs.loc[loader.runs["arm"] == short.baseline, "study"]):
        return found | {"margin": MARGIN}
    long, size = comparator.longer(short), extent(loader, short)
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
        difference = paired_difference(*(_losses(loader, table.at[fmt, "arm"]) for fmt in ("E4M3", "E3M4")))
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
    policies, baseline = scale_policies(loader, short), _losses(loader, short.baseline)
    by_block = [loader.config(arm).scaling.rule("weight").granularity == "block" for arm in policies["arm"]]
    rows = policies[pd.Series(by_block, index=policies.index, dtype=bool)].set_index("format")
    if "E0M7" not in rows.index:
        return None
    ours, theirs = (_losses(loader, rows.at["E0M7", name]) for name in ("arm", "against"))
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
    one, other = (_losses(loader, rows.at[name, "arm"]) for name in ("E0M7", "E1M6"))
    return {
        "runs": int(rows.at["E1M6", "n_runs"]),
        "gap": rows.at["E1M6", "gap"],
        "apart": (one - other).abs().max(),
        "e0m7": paired_difference(one, _losses(loader, short.baseline)),
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


def _losses(loader: ExperimentDataLoader, arm: str) -> pd.Series:
    return by_seed(loader.runs[loader.runs["arm"] == arm], "final_val_loss")
