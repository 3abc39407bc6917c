"""Which format, and which step rule, ends at the lower loss: paired by seed, never pooled across settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, Estimate, holm, paired_difference
from altgrad.config import ExperimentConfig
from altgrad.formats import get_format

TABLE_COLUMNS = (
    "format",
    "arm",
    "n_runs",
    "n_finished",
    "n_pairs",
    "val_loss",
    "gap",
    "low",
    "high",
    "sd",
    "gap_to_best",
    "p_to_best",
    "p_holm",
    "p_equivalent",
    "tied",
)


@dataclass(frozen=True)
class Comparison:
    """Formats that differ in nothing but the format, against the unquantized runs of the same setting.

    Attributes:
        scope: what is quantized, in words.
        setting: key of everything else.
        baseline: the unquantized arm.
        table: one row a format, best first, columns `TABLE_COLUMNS`: gap is the paired difference of the final
            validation loss to the baseline in nats a character, with its 95% t interval over `n_pairs` seeds;
            `p_to_best` tests the paired difference to the 8-bit format with the smallest gap, `p_holm` is the same
            after Holm's adjustment over all pairs of 8-bit formats, `p_equivalent` that of TOST (a difference below
            `statistics.MARGIN`), and `tied` that nothing tells this 8-bit format from that one.
    """

    scope: str
    setting: str
    baseline: str
    table: pd.DataFrame

    @property
    def pairs(self) -> int:
        """Number of pairs behind the table."""
        return int(self.table["n_pairs"].sum())


@dataclass(frozen=True)
class SweetSpot:
    """The answer to "which format": the best one and those that cannot be told from it.

    Attributes:
        best: format with the smallest gap among those of which every run finished; None without a candidate.
        tied: formats that the paired test cannot tell from it.
        worse: formats that it does tell from it.
        unranked: recorded 8-bit formats that are no candidates: a run did not finish, or there are under 2 pairs.
        reason: why there is no answer, where there is none.
    """

    best: str | None
    tied: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    unranked: tuple[str, ...] = ()
    reason: str = ""

    @property
    def conclusive(self) -> bool:
        """Whether one format stands alone."""
        return self.best is not None and not self.tied


class FormatComparator:
    """Compares formats by the paired gap of their final validation loss to the unquantized run of the same seed.

    Of AltGrad's own runs, whose loss is in nats a character; with `foreign`, of those that other loops recorded.
    """

    def __init__(self, loader: ExperimentDataLoader, foreign: bool = False) -> None:
        runs = loader.runs
        self._runs = runs[(runs["role"] == "report") & (runs["foreign"] == foreign)]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison that the records allow, the one with the most pairs first."""
        found = []
        for (setting, scope), group in self._runs.groupby(["setting", "scope"], sort=True):
            baseline = self._baseline(setting)
            if scope == "nothing" or baseline.empty:
                continue
            found.append(Comparison(scope, setting, baseline["arm"].iloc[0], _format_table(group, _losses(baseline))))
        return tuple(sorted(found, key=lambda item: (-item.pairs, item.scope, item.setting)))

    @cached_property
    def unmatched(self) -> pd.DataFrame:
        """AdamW runs that no comparison uses, because their setting has no unquantized run."""
        settings = {comparison.setting for comparison in self.comparisons}
        runs = self._runs[(self._runs["step_rule"] == "adamw") & (self._runs["scope"] != "nothing")]
        return runs[~runs["setting"].isin(settings)]

    def sweet_spot(self, comparison: Comparison) -> SweetSpot:
        """The best 8-bit format of `comparison`; one with a run that did not finish, or under 2 pairs, cannot be it."""
        candidates = _candidates(comparison.table)
        recorded = [name for name in comparison.table["format"] if _is_8bit(name)]
        unranked = tuple(name for name in recorded if name not in set(candidates["format"]))
        if len(candidates) < 2:
            only = (
                f"only {candidates['format'].iloc[0]} can be ranked"
                if len(candidates)
                else "no 8-bit format can be ranked"
            )
            return SweetSpot(None, unranked=unranked, reason=f"{only}, and an answer needs at least two")
        best, rest = str(candidates["format"].iloc[0]), candidates.iloc[1:]
        tied, worse = (tuple(rest.loc[rest["tied"] == value, "format"]) for value in (True, False))
        return SweetSpot(best, tied, worse, unranked)

    def _baseline(self, setting: str) -> pd.DataFrame:
        return self._runs[(self._runs["setting"] == setting) & (self._runs["scope"] == "nothing")]


def own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> pd.DataFrame:
    """What a learning rate of its own changes for each format, from the tuning runs of the same experiment.

    One row a format that was tuned: format, shared_rate (the comparison's), own_rate (lowest mean loss), n (held-out
    seeds), gap_shared, gap_own: mean difference to FP32 at its own best rate, nats a character, on the same seeds.
    Two seeds or so give no interval: this is a caveat to the comparison, not a finding. Empty without tuning runs.
    """
    columns = ["format", "shared_rate", "own_rate", "n", "gap_shared", "gap_own"]
    runs = loader.runs
    base = loader.config(comparison.baseline)
    tuning = runs[
        (runs["role"] == "tuning")
        & (runs["step_rule"] == "adamw")
        & runs["scope"].isin(["nothing", comparison.scope])
        & (runs["data"] == runs.loc[runs["arm"] == comparison.baseline, "data"].iloc[0])
    ]
    same = [arm for arm in tuning["arm"].unique() if _but_rate(loader.config(arm)) == _but_rate(base)]
    tuning = tuning[tuning["arm"].isin(same) & tuning["final_val_loss"].notna()]
    losses = {key: _losses(group) for key, group in tuning.groupby(["format", "learning_rate"])}
    means = pd.Series({key: series.mean() for key, series in losses.items()}, dtype="float64")
    if means.empty or "FP32" not in means.index.get_level_values(0):
        return pd.DataFrame(columns=columns)
    fp32, shared = losses["FP32", means["FP32"].idxmin()], base.optimizer.learning_rate
    rows = []
    for name in sorted(set(means.index.get_level_values(0)) - {"FP32"}, key=format_order):
        own = means[name].idxmin()
        gap = paired_difference(losses[name, own], fp32)
        at_shared = paired_difference(losses[name, shared], fp32).mean if (name, shared) in losses else math.nan
        rows.append((name, shared, own, gap.n, at_shared, gap.mean))
    return pd.DataFrame(rows, columns=columns)


def _format_table(group: pd.DataFrame, baseline: pd.Series) -> pd.DataFrame:
    rows, losses = [], {}
    for name, runs in group.groupby("format"):
        losses[name] = _losses(runs)
        gap = paired_difference(losses[name], baseline)
        rows.append(
            {
                "format": name,
                "arm": runs["arm"].iloc[0],
                "n_runs": len(runs),
                "n_finished": int((runs["status"] == "finished").sum()),
                "n_pairs": gap.n,
                "val_loss": losses[name].mean(),
                "gap": gap.mean,
                "low": gap.low,
                "high": gap.high,
                "sd": gap.sd,
            }
        )
    frame = pd.DataFrame(rows).sort_values(["gap", "format"], ignore_index=True)
    candidates = _candidates(frame)["format"]
    best = candidates.iloc[0] if len(candidates) else None
    against = [
        _nothing() if best in (None, name) else paired_difference(losses[name], losses[best])
        for name in frame["format"]
    ]
    frame["gap_to_best"] = [estimate.mean for estimate in against]
    frame["p_to_best"] = [estimate.p_value for estimate in against]
    frame["p_holm"] = frame["format"].map(_adjusted_to_best([losses[name] for name in candidates], list(candidates)))
    frame["p_equivalent"] = [estimate.equivalence_p() for estimate in against]
    # Without shared seeds there is no test, and so nothing that tells the two apart.
    frame["tied"] = frame["format"].isin(candidates) & ~(frame["p_holm"] < ALPHA)
    return frame[list(TABLE_COLUMNS)]


def _adjusted_to_best(losses: Sequence[pd.Series], names: Sequence[str]) -> dict[str, float]:
    """p-values against the first of `names`, by Holm over all pairs of them.

    The best is picked from the same data: adjusted over the comparisons with it alone, formats that are all the same
    would be told apart far more often than one time in twenty.
    """
    pairs = list(itertools.combinations(range(len(names)), 2))
    adjusted = holm([paired_difference(losses[one], losses[other]).p_value for one, other in pairs])
    return {names[other]: p for (one, other), p in zip(pairs, adjusted, strict=True) if one == 0}


def _candidates(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that may be called the best: 8-bit formats with at least 2 pairs, of which every run finished."""
    return table[table["format"].map(_is_8bit) & (table["n_pairs"] >= 2) & (table["n_finished"] == table["n_runs"])]


def _is_8bit(label: str) -> bool:
    return all(get_format(part).bits == 8 for part in label.split("/"))


def _but_rate(config: ExperimentConfig) -> dict[str, object]:
    """The config's identity without seed, quantization, scale and learning rate."""
    identity = config.arm_identity()
    optimizer = {key: value for key, value in identity.get("optimizer", {}).items() if key != "learning_rate"}
    return {key: value for key, value in identity.items() if key not in ("quantize", "scaling")} | {
        "optimizer": optimizer
    }


def _losses(runs: pd.DataFrame) -> pd.Series:
    return by_seed(runs, "final_val_loss")


def by_seed(runs: pd.DataFrame, column: str) -> pd.Series:
    """The column by seed; where a seed was recorded twice (a repeat under another status), a finished run counts."""
    ordered = runs.assign(ended_well=runs["status"] == "finished").sort_values(["ended_well", "run_id"])
    return ordered.drop_duplicates("seed", keep="last").set_index("seed")[column].astype("float64")


def _nothing() -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, math.nan, 0, math.nan)


def format_order(label: str) -> tuple[int, int, str]:
    """Sorting key of a format label: width, exponent bits, name; labels of several formats come last."""
    try:
        fmt = get_format(label)
    except ValueError:
        return (99, 0, label)
    return (fmt.bits, fmt.exponent_bits, label)
