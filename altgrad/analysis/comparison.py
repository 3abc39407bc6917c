"""Which format, and which step rule, ends at the lower loss: paired by seed, never pooled across settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from altgrad.analysis.contrasts import Row, by_seed, differs, equivalent, paired_gap
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import (
    MARGIN,
    MIN_PAIRS,
    SMALLEST_GAP,
    holm,
    name_of_test,
    paired_difference,
    seeds_needed,
)
from altgrad.config import LAYER_TYPES, OPERAND_NAMES, OPERANDS, ExperimentConfig
from altgrad.formats import get_format
from altgrad.studies import OPERAND_PLACES

TABLE_COLUMNS = (
    "format", "arm", "n_runs", "n_finished", "n_pairs", "val_loss", "gap", "low", "high", "sd", "p_fp32", "gap_to_best",
    "low_to_best", "high_to_best", "sd_to_best", "p_to_best", "p_holm", "p_equivalent", "verdict",
)  # fmt: skip
ALL_OPERANDS = " + ".join(OPERAND_NAMES.values())
PLACES: dict[str, str] = {
    "all": " ".join(OPERANDS),
    **{kind: f"{' '.join(OPERANDS)}; layers {kind}" for kind in LAYER_TYPES},
    **dict(zip(OPERAND_PLACES, OPERANDS, strict=True)),
}
"""Where a sweet spot is asked for (everything, one layer type, one operand), and what such runs have quantized."""

SWEET_SPOT_COLUMNS = (
    "place", "best", "gap", "low", "high", "n_pairs", "equivalent", "undecided", "worse", "not_ranked", "reason",
    "scope", "arm",
)  # fmt: skip
RESULT_COLUMNS = (
    "scope", "format", "arm", "baseline", "learning_rate", "max_steps", "n_runs", "n_finished", "n_pairs", "val_loss",
    "gap", "low", "high", "sd", "test", "p_fp32", "gap_to_best", "p_holm", "p_equivalent", "verdict",
)  # fmt: skip
RATE_KEYS = ("learning_rate", "other_learning_rate")
_WIDE = ("BF16", "FP16")
LENGTH_KEYS = ("max_steps", "warmup_steps", "eval_every", "log_every", "layers_every")


VERDICTS = {
    "unfinished": "not ranked: a run did not finish",
    "few": f"not ranked: fewer than {MIN_PAIRS} pairs",
    "combination": "not ranked: a combination of formats",
    "wide": "reference, not 8 bits",
    "alone": "alone: no other 8-bit format can be ranked",
    "best": "smallest gap",
    "equivalent": f"within {MARGIN:g} of the best",
    "within_margin": f"worse by less than {MARGIN:g}",
    "undecided": "undecided",
    "worse": "worse than the best",
}
"""What follows for a format, and how readers are told."""


def is_8bit(label: str) -> bool:
    """Whether one format is meant, and it has 8 bits."""
    return not is_combination(label) and get_format(label).bits == 8


def is_combination(label: str) -> bool:
    """Whether the operands have several formats, as in ``E4M3/E4M3/E5M2``."""
    return "/" in label


@dataclass(frozen=True)
class Comparison:
    """Formats that differ in nothing but the format, against the unquantized runs of the same setting.

    Attributes:
        scope: what is quantized, in words; `quantized`: the same, as a key.
        setting: key of everything else.
        baseline: the unquantized arm.
        table: one row a format, best first, columns `TABLE_COLUMNS`: gap is the paired difference of the final
            validation loss to the baseline in nats per character, with its 95% t interval over `n_pairs` seeds;
            `p_fp32` tests it, after Holm's adjustment over the 8-bit formats that can be ranked. `gap_to_best`, its
            interval and `sd_to_best` are of the paired difference to the 8-bit format with the smallest gap,
            `p_to_best` tests it,
            `p_holm` is the same after Holm's adjustment over all pairs of 8-bit formats, `p_equivalent` that of TOST (a
            difference below `statistics.MARGIN`). `verdict` says in words what follows.
        ranked: whether a format, by its name in the table, may be called the best; `kind`: what those are.
    """

    scope: str
    quantized: str
    setting: str
    baseline: str
    table: pd.DataFrame
    ranked: Callable[[str], bool] = is_8bit
    kind: str = "8-bit format"

    @property
    def first(self) -> str:
        """The arm with the smallest gap."""
        return str(self.table["arm"].iloc[0])

    @property
    def pairs(self) -> int:
        """Number of pairs behind the table."""
        return int(self.table["n_pairs"].sum())

    @property
    def most_pairs(self) -> int:
        """The largest number of pairs behind a format's gap."""
        return int(self.table["n_pairs"].max())

    def row(self, name: str) -> pd.Series:
        """The row of a format."""
        return self.table.set_index("format").loc[name]

    def rows(self, names: Sequence[str]) -> pd.DataFrame:
        """The rows of some formats."""
        return self.table.set_index("format").loc[list(names)]

    @cached_property
    def verdicts(self) -> pd.Series:
        """The verdict of each row of the table, as a key of `VERDICTS`."""
        candidates = _candidates(self.table, self.ranked)["format"]
        best = candidates.iloc[0] if len(candidates) > 1 else None
        return pd.Series(
            [_verdict(row, best, self.ranked) for row in self.table.to_dict("records")], self.table.index, dtype=object
        )

    def having(self, *verdicts: str) -> tuple[str, ...]:
        """The formats of these verdicts (keys of `VERDICTS`), best first."""
        return tuple(self.table.loc[self.verdicts.isin(verdicts), "format"])

    @property
    def seeds_for_smallest_gap(self) -> pd.DataFrame:
        """How many seeds would show a difference of `statistics.SMALLEST_GAP` to the best, by a paired t test.

        One row a format that is within the margin of the best or undecided: format, sd_to_best, n_pairs (of it and
        FP32), seeds (needed for a power of 80%; None where that is not known).
        """
        close = self.table[self.verdicts.isin(["equivalent", "within_margin", "undecided"])]
        needed = [seeds_needed(sd, SMALLEST_GAP) for sd in close["sd_to_best"]]
        return close[["format", "sd_to_best", "n_pairs"]].assign(seeds=needed).reset_index(drop=True)


@dataclass(frozen=True)
class SweetSpot:
    """The answer to "which format": the best one, and what is shown of the others.

    Attributes:
        best: format with the smallest gap among those of which every run finished; None without a candidate.
        equivalent: formats that TOST shows to lie within the margin of it.
        within_margin: those of `equivalent` that are shown to be worse nevertheless, by less than the margin.
        undecided: formats that are neither shown to be worse nor to lie within the margin.
        worse: formats that are shown to be worse, and not to lie within the margin.
        unranked: recorded 8-bit formats that are no candidates: a run did not finish, or there are too few pairs.
        reason: why there is no answer, where there is none.
    """

    best: str | None
    equivalent: tuple[str, ...] = ()
    within_margin: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    unranked: tuple[str, ...] = ()
    reason: str = ""


class FormatComparator:
    """Compares formats by the paired gap of their final validation loss to the unquantized run of the same seed.

    Of AltGrad's own runs, whose loss is in nats per character; with `foreign`, of those that other loops recorded,
    against those in BF16 or FP16 where a setting has no unquantized ones.
    """

    def __init__(self, loader: ExperimentDataLoader, foreign: bool = False) -> None:
        runs = loader.runs
        self._loader = loader
        self._foreign = foreign
        self._runs = runs[(runs["role"] == "report") & (runs["foreign"] == foreign)]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison that the records allow, the one with the most pairs first."""
        found = []
        for setting, runs in self._runs.groupby("setting"):
            baseline = runs[runs["quantized"] == ""]
            for label in _WIDE if self._foreign else ():  # others mostly train in 16 bits
                baseline = baseline if len(baseline) else runs[runs["format"] == label]
            rest = runs[~runs["arm"].isin(baseline["arm"])]
            for quantized, group in rest.groupby("quantized") if len(baseline) else ():
                table = format_table(group, by_seed(baseline))
                scope, arm = group["scope"].iloc[0], baseline["arm"].iloc[0]
                found.append(Comparison(scope, quantized, setting, arm, table))
        return tuple(sorted(found, key=lambda item: (-item.pairs, item.quantized, item.setting)))

    @cached_property
    def unmatched(self) -> pd.DataFrame:
        """AdamW runs that no comparison uses, because their setting has no unquantized run."""
        settings = {comparison.setting for comparison in self.comparisons}
        runs = self._runs[(self._runs["step_rule"] == "adamw") & (self._runs["quantized"] != "")]
        return runs[~runs["setting"].isin(settings)]

    @property
    def headline(self) -> Comparison | None:
        """The comparison that reports lead with: the one with the most pairs."""
        return self.comparisons[0] if self.comparisons else None

    def at(self, place: str) -> Comparison | None:
        """The comparison at one of `PLACES`, in the setting of the headline; None where none is recorded.

        Raises:
            KeyError: for another place.
        """
        wanted = (self.headline and self.headline.setting, PLACES[place])
        return next((each for each in self.comparisons if (each.setting, each.quantized) == wanted), None)

    @staticmethod
    def sweet_spot(comparison: Comparison) -> SweetSpot:
        """The best format of `comparison`; one with a run that did not finish, or under 3 pairs, cannot be it."""
        table, having = comparison.table, comparison.having
        candidates = _candidates(table, comparison.ranked)
        known = table["format"][table["format"].map(comparison.ranked).astype(bool)]
        unranked = tuple(known[~known.isin(candidates["format"])])
        if len(candidates) < 2:
            reason = _no_answer(table[table["format"].isin(known)], candidates, comparison.kind)
            return SweetSpot(None, unranked=unranked, reason=reason)
        return SweetSpot(
            best=having("best")[0],
            equivalent=having("equivalent", "within_margin"),
            within_margin=having("within_margin"),
            undecided=having("undecided"),
            worse=having("worse"),
            unranked=unranked,
        )

    @cached_property
    def sweet_spots(self) -> pd.DataFrame:
        """The sweet spot of every layer type and operand: one row for each of `PLACES`, columns `SWEET_SPOT_COLUMNS`.

        Formats that are shown to lie within the margin of the best are in `equivalent`, those that are neither that nor
        shown to be worse in `undecided`; several names are separated by spaces. Where there is no answer, `reason` says
        why.
        """
        rows: list[dict[str, object]] = []
        for place in PLACES:
            row: dict[str, object] = {"place": place, "n_pairs": 0, "reason": "no such runs are recorded"}
            if comparison := self.at(place):
                spot = self.sweet_spot(comparison)
                row |= {name: " ".join(getattr(spot, name)) for name in ("equivalent", "undecided", "worse")}
                row |= {"best": spot.best, "not_ranked": " ".join(spot.unranked), "reason": spot.reason}
                row["scope"] = comparison.scope
                if spot.best is not None:
                    found = comparison.table.set_index("format").loc[spot.best]
                    row |= {name: found[name] for name in ("gap", "low", "high", "n_pairs", "arm")}
            rows.append(row)
        return pd.DataFrame(rows, columns=list(SWEET_SPOT_COLUMNS))

    @cached_property
    def results(self) -> pd.DataFrame:
        """Every arm of every comparison, that with the most pairs first: columns `RESULT_COLUMNS`."""
        parts = []
        for comparison in self.comparisons:
            config = self._loader.config(comparison.baseline)
            parts.append(
                comparison.table.assign(
                    scope=comparison.scope,
                    baseline=comparison.baseline,
                    learning_rate=config.optimizer.learning_rate,
                    max_steps=config.max_steps,
                    test=[name_of_test(n) for n in comparison.table["n_pairs"]],
                )[list(RESULT_COLUMNS)]
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(RESULT_COLUMNS))

    def longer(self, comparison: Comparison) -> Comparison | None:
        """The comparison that differs from this one in nothing but the length, and is longer; None without one."""
        base = self._loader.config(comparison.baseline)
        found = []
        for other in self.comparisons:
            config = self._loader.config(other.baseline)
            same = other.quantized == comparison.quantized and config.max_steps > base.max_steps
            if same and _without(config, LENGTH_KEYS) == _without(base, LENGTH_KEYS):
                found.append(other)
        return max(found, key=lambda other: (other.pairs, other.setting), default=None)


def results_table(loader: ExperimentDataLoader) -> pd.DataFrame:
    """Every arm of every comparison of formats, that with the most pairs first: columns `RESULT_COLUMNS`."""
    return loader.memo(FormatComparator).results


def scale_policies(loader: ExperimentDataLoader, comparison: Comparison) -> pd.DataFrame:
    """What another scale changes, paired by seed with the same format under one power of two per tensor.

    One row a format and policy with the comparison's setting: format, policy (in words), arm, against, n_runs,
    n_finished, n_pairs, difference, low, high (nats per character), p_value, and p_holm, adjusted over the rows. The
    p-values are NaN where a run did not finish. Empty without such runs.
    """
    columns = ["format", "policy", "arm", "against", "n_runs", "n_finished", "n_pairs", "difference", "low", "high"]
    whole = loader.runs[(loader.runs["setting"] == comparison.setting) & (loader.runs["role"] == "report")]
    runs = whole[whole["study"] == "scaling"]
    rows = []
    for (name, quantized), group in runs.groupby(["format", "quantized"], sort=False):
        against = whole[(whole["format"] == name) & (whole["quantized"] == comparison.quantized)]
        if against.empty or quantized == comparison.quantized:
            continue
        against = against[against["seed"].isin(group["seed"])]
        found = paired_gap(group, by_seed(against))
        finished = (group["status"] == "finished").all() and (against["status"] == "finished").all()
        if not finished or found["n_pairs"] < MIN_PAIRS:
            found["p_value"] = math.nan
        given = {"format": name, "policy": str(group["scope"].iloc[0]).partition("; ")[2], "quantized": quantized}
        arms = {"arm": group["arm"].iloc[0], "against": next(iter(against["arm"]), "")}
        rows.append(given | arms | found | {"difference": found["gap"]})
    frame = pd.DataFrame(rows, columns=[*columns, "p_value", "quantized"])
    frame.insert(len(columns) + 1, "p_holm", holm(list(frame["p_value"])))
    frame = frame.sort_values(["format", "quantized"], key=ordered, ignore_index=True)
    return frame.drop(columns="quantized")


def last_looks(loader: ExperimentDataLoader, comparison: Comparison) -> dict[str, pd.DataFrame]:
    """What the finished runs of each format saw of their layers last (`ExperimentDataLoader.last_look`)."""
    found = {}
    for row in comparison.table.itertuples():
        runs = loader.runs[(loader.runs["arm"] == row.arm) & (loader.runs["status"] == "finished")]
        found[str(row.format)] = loader.last_look(runs["run_id"])
    return found


def figures_of_tensors(comparison: Comparison, looks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each format did to the tensors it held: one row a format, layer type and operand.

    Columns format, arm, layer_type, operand, sqnr_db, underflow, overflow, codes_used (fractions of 1, but for
    decibels), as means over the layers of a type and the runs of an arm in its last look (`last_looks`).
    """
    kept = ["sqnr_db", "underflow", "overflow", "codes_used"]
    parts = []
    for row in comparison.table.itertuples():
        look = looks[str(row.format)]
        look = look[look["statistic"].isin(kept) & look["operand"].isin(["weight", "activation", "grad_output"])]
        if len(look):
            wide = look.pivot_table(index=["layer_type", "operand"], columns="statistic", values="value", sort=False)
            parts.append(wide.reindex(columns=kept).reset_index().assign(format=row.format, arm=row.arm))
    names = ["format", "arm", "layer_type", "operand", *kept]
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)


def at_own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> pd.DataFrame:
    """Formats that were also run at another learning rate than FP32's, against FP32 at its own.

    One row an arm: format, arm, learning_rate, n_runs, n_finished, n_pairs, gap, low, high, gap_shared (the
    comparison's own). Empty without such arms.
    """
    runs, base = loader.runs, loader.config(comparison.baseline)
    baseline = runs[runs["arm"] == comparison.baseline]
    found = runs[(runs["role"] == "report") & (runs["quantized"] == comparison.quantized)]
    found = found[(found["data"] == baseline["data"].iloc[0]) & (found["setting"] != comparison.setting)]
    shared, rows = comparison.table.set_index("format")["gap"], []
    for arm, group in found.groupby("arm"):
        if _without(loader.config(str(arm)), RATE_KEYS) != _without(base, RATE_KEYS):
            continue
        name = group["format"].iloc[0]
        given = {"format": name, "arm": arm, "learning_rate": group["learning_rate"].iloc[0]}
        rows.append(given | paired_gap(group, by_seed(baseline)) | {"gap_shared": shared.get(name, math.nan)})
    names = ["format", "arm", "learning_rate", "n_runs", "n_finished", "n_pairs", "gap", "low", "high", "gap_shared"]
    return pd.DataFrame(rows, columns=names)


def own_rates(loader: ExperimentDataLoader, comparison: Comparison) -> pd.DataFrame:
    """What a learning rate of its own changes for each format, from the tuning runs of the same experiment.

    One row a format that was tuned: format, shared_rate (the comparison's), own_rate (lowest mean loss), n (held-out
    seeds), gap_shared, gap_own: mean difference to FP32 at its own best rate, nats per character, on the same seeds.
    Two seeds or so give no interval: this is a caveat to the comparison, not a finding. Empty without tuning runs.
    """
    columns = ["format", "shared_rate", "own_rate", "n", "gap_shared", "gap_own"]
    runs = loader.runs
    base = loader.config(comparison.baseline)
    tuning = runs[
        (runs["role"] == "tuning")
        & (runs["step_rule"] == "adamw")
        & runs["quantized"].isin(["", comparison.quantized])
        & (runs["data"] == runs.loc[runs["arm"] == comparison.baseline, "data"].iloc[0])
    ]
    same = [
        arm for arm in tuning["arm"].unique() if _without(loader.config(arm), RATE_KEYS) == _without(base, RATE_KEYS)
    ]
    tuning = tuning[tuning["arm"].isin(same) & tuning["final_val_loss"].notna()]
    losses = {key: by_seed(group) for key, group in tuning.groupby(["format", "learning_rate"])}
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


def format_table(
    group: pd.DataFrame, baseline: pd.Series, ranked: Callable[[str], bool] = is_8bit, margin: float = MARGIN
) -> pd.DataFrame:
    """The table of a `Comparison`: one row for each `format` of the runs in `group`."""
    rows, losses = [], {}
    for name, runs in group.groupby("format"):
        losses[name] = by_seed(runs)
        given = {"format": name, "arm": runs["arm"].iloc[0], "val_loss": losses[name].mean()}
        rows.append(given | paired_gap(runs, baseline))
    frame = pd.DataFrame(rows).sort_values(["gap", "format"], ignore_index=True)
    candidates = list(_candidates(frame, ranked)["format"])
    judged = frame["format"].isin(candidates)
    best = candidates[0] if len(candidates) > 1 else None
    nothing = baseline.iloc[:0]
    against = [
        paired_difference(losses[name], nothing if best in (None, name) else losses[best]) for name in frame["format"]
    ]
    frame["p_fp32"] = holm(list(frame["p_value"].where(judged)))
    for column, name in (("gap", "mean"), ("low", "low"), ("high", "high"), ("sd", "sd"), ("p", "p_value")):
        frame[f"{column}_to_best"] = [getattr(estimate, name) for estimate in against]
    frame["p_holm"] = frame["format"].map(_adjusted_to_best([losses[name] for name in candidates], candidates))
    frame["p_equivalent"] = pd.Series([estimate.equivalence_p(margin) for estimate in against]).where(judged)
    frame["verdict"] = [VERDICTS[_verdict(row, best, ranked)] for row in frame.to_dict("records")]
    return frame[list(TABLE_COLUMNS)]


def _verdict(row: Row, best: str | None, ranked: Callable[[str], bool]) -> str:
    """A key of `VERDICTS`."""
    if row["n_finished"] < row["n_runs"]:
        return "unfinished"
    if row["n_pairs"] < MIN_PAIRS:
        return "few"
    if not ranked(row["format"]):
        return "combination" if is_combination(row["format"]) else "wide"
    if best in (None, row["format"]):
        return "alone" if best is None else "best"
    row = {**row, "difference": row["gap_to_best"]}
    if equivalent(row):
        return "within_margin" if differs(row) else "equivalent"
    return "worse" if differs(row) else "undecided"  # without shared seeds there is no test, and nothing is shown


def _no_answer(recorded: pd.DataFrame, candidates: pd.DataFrame, kind: str) -> str:
    """Why fewer than two formats can be ranked, in words; `recorded` are those that might have been."""
    if len(candidates):
        return f"only {candidates['format'].iloc[0]} can be ranked, and it takes two"
    if recorded.empty:
        return f"no single {kind} is recorded"
    if (recorded["n_finished"] == 0).all():
        return f"no run of {'an' if kind.startswith('8') else 'a'} {kind} finished"
    if (recorded["n_finished"] < recorded["n_runs"]).all():
        return f"every {kind} has an unfinished run"
    most = int(recorded["n_pairs"].max())
    if most == 0:
        return "no seed shared with FP32, nothing is paired"
    return f"no format has the {MIN_PAIRS} pairs needed, {most} at most"


def _adjusted_to_best(losses: Sequence[pd.Series], names: Sequence[str]) -> dict[str, float]:
    """p-values against the first of `names`, by Holm over all pairs of them.

    The best is picked from the same data: adjusted over the comparisons with it alone, formats that are all the same
    would be called different far more often than one time in twenty.
    """
    pairs = list(itertools.combinations(range(len(names)), 2))
    adjusted = holm([paired_difference(losses[one], losses[other]).p_value for one, other in pairs])
    return {names[other]: p for (one, other), p in zip(pairs, adjusted, strict=True) if one == 0}


def _candidates(table: pd.DataFrame, ranked: Callable[[str], bool]) -> pd.DataFrame:
    """Rows that may be called the best: 8-bit formats with at least 3 pairs, of which every run finished.

    A combination, with another format for the gradients, say, is no answer to which format, and none was among the
    formats of which the preregistration says how they are tested.
    """
    enough = (table["n_pairs"] >= MIN_PAIRS) & (table["n_finished"] == table["n_runs"])
    return table[table["format"].map(ranked) & enough]


def _without(config: ExperimentConfig, keys: Sequence[str]) -> dict[str, object]:
    """The config's identity without seed, quantization, scale and some keys, of the optimizer's too."""
    identity = config.arm_identity()
    optimizer = {key: value for key, value in identity.get("optimizer", {}).items() if key not in keys}
    kept = {key: value for key, value in identity.items() if key not in ("quantize", "scaling", *keys)}
    return kept | {"optimizer": optimizer}


def format_order(label: str) -> tuple[int, int, str]:
    """Sorting key of a format label: width, exponent bits, name; labels of several formats come last."""
    try:
        fmt = get_format(label)
    except ValueError:
        return (99, 0, label)
    return (fmt.bits, fmt.exponent_bits, label)


def ordered(column: pd.Series) -> pd.Series:
    """Sorting keys of a column: those of format labels for one that is named so."""
    return column.map(format_order) if column.name == "format" else column


def by_format(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by their column `format`; those of one format stay as they are."""
    return frame.sort_values("format", key=ordered, kind="stable")
