"""Is a difference shown? The one set of rules for it, for arms of the campaign and for any others.

A contrast is the paired difference of two arms' final validation losses: same seed, same batches. A family of them is
adjusted by Holm. What its rows show is asked with `shown`, `equivalent` and `refuted`, and answered by `all_shown` and
its kind, as docs/method/preregistration.md has it: a run that did not finish leaves its arm unjudged, and "no" is an
answer only where the opposite is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, MARGIN, Estimate, holm, name_of_test, paired_difference
from altgrad.studies import ARMS, called_beside, seeds_of, studies_of

ENDED = ("finished", "failed", "crashed")
"""Statuses of a run that will not go on."""

TEST_COLUMNS = (
    "contrast", "arm", "against", "n_pairs", "n_ended_badly", "difference", "low", "high", "sd", "effect_size",
    "test", "p_value", "p_holm", "p_equivalent",
)  # fmt: skip
NAMED = ("of", "to")
"""The arms of a contrast by their names in `altgrad.studies`."""

Answer = Literal["yes", "no", "inconclusive", "pending"]
Row = Mapping[Any, Any]
Rows = Sequence[Row]
Pair = tuple[str, ...]
"""Names of an arm and of the one that is subtracted; with two more, their difference is subtracted too."""


def runs_of(loader: ExperimentDataLoader, arm: str) -> pd.DataFrame:
    """The campaign's runs of an arm: rows of `loader.runs` of its identity, of the studies and seeds that report it.

    Raises:
        KeyError: there is no such arm.
    """
    return loader.memo(_Runs)[arm]


class _Runs(dict[str, pd.DataFrame]):
    """The campaign's runs by arm, found when they are asked for."""

    def __init__(self, loader: ExperimentDataLoader) -> None:
        own = loader.runs[~loader.runs["foreign"].astype(bool)]
        self._none, self._own = own.iloc[:0], {str(identity): rows for identity, rows in own.groupby("identity")}

    def __missing__(self, arm: str) -> pd.DataFrame:
        runs = self._own.get(ARMS[arm].identity, self._none)
        self[arm] = runs[runs["seed"].isin(seeds_of(arm)) & runs["study"].isin(studies_of(arm))]
        return self[arm]


def missing(loader: ExperimentDataLoader, arms: Iterable[str]) -> str:
    """What keeps arms from being compared, in a sentence; "" where nothing does.

    They are when every seed of theirs has ended, one way or another, so that nothing is added or left out after
    looking, and when all were trained on the same data and their final losses read as much text.
    """
    found = {arm: runs_of(loader, arm) for arm in dict.fromkeys(arms)}
    counts = {arm: runs.loc[runs["status"].isin(ENDED), "seed"].nunique() for arm, runs in found.items()}
    lacking = [
        f"{ARMS[arm].label} ({count} of {seeds} seeds)"
        for arm, count in counts.items()
        if count < (seeds := len(seeds_of(arm)))
    ]
    if lacking:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        return f"Not recorded in full: {', '.join(lacking[:8])}{more}."
    data = {arm: set(runs["data"]) for arm, runs in found.items()}
    if several := [ARMS[arm].label for arm, fingerprints in data.items() if len(fingerprints) > 1]:
        return f"More than one data set: {', '.join(several)}."
    if len(set().union(*data.values())) > 1:
        return "The recorded runs differ in data."
    read = {ARMS[arm].settings.get("final_eval_characters", 0) for arm in found}
    return "The recorded runs differ in evaluated characters." if len(read) > 1 else ""


def by_seed(runs: pd.DataFrame, column: str = "final_val_loss") -> pd.Series:
    """The column by seed; where a seed was recorded twice (a repeat under another status), a finished run counts.

    A run that states no seed has no place in it.
    """
    runs = runs[runs["seed"].notna()]
    columns = (runs[name].tolist() for name in ("status", "run_id", "seed", column))
    rows = sorted((status == "finished", *others) for status, *others in zip(*columns, strict=True))
    found: dict[int, float] = {}
    for *_, seed, value in rows:
        found.pop(seed, None)  # so that a seed stands where it was last
        found[seed] = value
    seeds = pd.Index(list(found), dtype="int64", name="seed")
    return pd.Series(list(found.values()), seeds, dtype="float64", name=column)


def paired_gap(runs: pd.DataFrame, baseline: pd.Series) -> dict[str, Any]:
    """The runs of an arm against final losses by seed: n_runs, n_finished, n_pairs, and gap, low, high, sd, p_value."""
    gap = paired_difference(by_seed(runs), baseline)
    figures = {"gap": gap.mean, "low": gap.low, "high": gap.high, "sd": gap.sd, "p_value": gap.p_value}
    return {"n_runs": len(runs), "n_finished": int((runs["status"] == "finished").sum()), "n_pairs": gap.n} | figures


def contrast(name: str, runs: pd.DataFrame, against: pd.DataFrame, *then: pd.DataFrame) -> dict[str, Any]:
    """One row of `TEST_COLUMNS` but for p_holm: the paired difference of one arm's final loss to another's.

    Where a run of any of them did not finish there is no p-value, of difference or equivalence: an arm is not judged by
    its survivors. The difference of those that did is there to be shown.

    Args:
        name: what the row is called.
        runs, against: rows of `loader.runs`, of one arm each.
        then: two more, whose difference is subtracted from that of the first two.
    """
    values, baseline = by_seed(runs), by_seed(against)
    if then:
        values, baseline = values - baseline, by_seed(then[0]) - by_seed(then[1])
    badly = sum(int((each["status"] != "finished").sum()) for each in (runs, against, *then))
    arms = {"arm": next(iter(runs["arm"]), ""), "against": next(iter(against["arm"]), ""), "n_ended_badly": badly}
    unjudged = {"p_value": math.nan, "p_equivalent": math.nan} if badly else {}
    return row_of(name, paired_difference(values, baseline)) | arms | unjudged


def row_of(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as a row of `TEST_COLUMNS`, without arms and p_holm."""
    return {
        "contrast": name,
        "n_pairs": estimate.n,
        "n_ended_badly": 0,
        "difference": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "sd": estimate.sd,
        "effect_size": estimate.effect_size,
        "test": name_of_test(estimate.n),
        "p_value": estimate.p_value,
        "p_equivalent": estimate.equivalence_p(),
    }


def family(rows: Sequence[Row], columns: Sequence[str] = TEST_COLUMNS) -> pd.DataFrame:
    """The rows as a table, with Holm's adjustment over all of them; one without a p-value counts as a p of 1."""
    frame = pd.DataFrame(list(rows), columns=list(columns))
    adjusted = holm([1.0 if math.isnan(p) else float(p) for p in frame["p_value"]])
    frame["p_holm"] = pd.Series(adjusted, dtype="float64").where(frame["p_value"].notna())
    return frame


def name_of(*pair: str) -> str:
    """What the contrast of two of the campaign's arms is called, or of two such differences."""
    one, other, *then = (ARMS[arm] for arm in pair)
    name = f"{called_beside(one, other)} − {called_beside(other, one)}"
    return f"({name}) − ({name_of(*pair[2:])})" if then else name


def named_family(loader: ExperimentDataLoader, pairs: Iterable[Pair]) -> pd.DataFrame:
    """The contrasts of the campaign's arms as one family, columns `TEST_COLUMNS` and `NAMED`."""
    rows = []
    for pair in pairs:
        row = contrast(name_of(*pair), *(runs_of(loader, arm) for arm in pair))
        rows.append(row | dict(zip(NAMED, pair, strict=False)))
    return family(rows, (*TEST_COLUMNS, *NAMED))


# What a row shows


def judged(row: Row) -> bool:
    """Whether it can show anything: every run finished, where it says so, and there are two pairs for an interval."""
    return not row.get("n_ended_badly") and row["n_pairs"] >= 2


def shown(row: Row, sign: int, by: float = 0.0) -> bool:
    """Whether a difference of this sign is shown, and its estimate is larger than `by` nats per character."""
    return bool(judged(row) and row["p_holm"] < ALPHA and sign * row["difference"] > by)


def differs(row: Row) -> bool:
    """Whether a difference is shown, of either sign."""
    return shown(row, +1) or shown(row, -1)


def equivalent(row: Row, margin: float = MARGIN) -> bool:
    """Whether the difference is shown to lie within the margin."""
    if margin == MARGIN:
        return bool(judged(row) and row["p_equivalent"] < ALPHA)
    found = Estimate(row["difference"], row["low"], row["high"], row["sd"], row["n_pairs"], row["p_value"])
    return judged(row) and found.equivalent(margin)


def refuted(row: Row, sign: int, by: float = 0.0) -> bool:
    """Whether a claimed difference of this sign is refuted: the opposite is shown, or equivalence and not the claim.

    One of more than `by` is refuted by an interval that ends before it, too.
    """
    short = by > 0 and judged(row) and max(sign * row["low"], sign * row["high"]) < by
    return not shown(row, sign, by) and (short or shown(row, -sign) or equivalent(row))


def beyond(row: Row, limit: float) -> bool:
    """Whether the whole interval lies above the limit; below it where that is negative."""
    return bool(judged(row) and (row["low"] > limit if limit >= 0 else row["high"] < limit))


# What a family answers


@dataclass(frozen=True)
class Judgement:
    """The answer of a family and what it rests on, in values: docs/sections/evidence.md has the words.

    Attributes:
        answer: to what was claimed.
        rows: that decide it.
        tost: whether the test of equivalence is named.
        more: what else is to be said, by name.
    """

    answer: Answer
    rows: Rows = ()
    tost: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Of more than four judged rows, how many show what; of fewer nothing, since each is named."""
        known = [row for row in self.rows if judged(row)]
        lower, higher = (sum(shown(row, sign) for row in known) for sign in (-1, 1))
        unjudged = len(self.rows) - len(known)
        return {"lower": lower, "higher": higher, "unjudged": unjudged} if len(known) > 4 else {}

    @property
    def named(self) -> Rows:
        """The rows whose figures are given: all of them, or of those that are counted the two extremes."""
        return self.ends if self.counts else self.rows

    @property
    def ends(self) -> Rows:
        """The judged rows with the smallest and the largest difference, one where they are the same."""
        known = sorted((row for row in self.rows if judged(row)), key=lambda row: float(row["difference"]))
        return known if len(known) < 2 else [known[0], known[-1]]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many of the rows read how."""
        return dict(Counter(reading(row) for row in self.rows))


Judge = Callable[[Rows], Judgement]


def _answer(yes: bool, no: bool) -> Answer:
    return "yes" if yes else "no" if no else "inconclusive"


def all_shown(sign: int, by: float = 0.0, of: Sequence[str] = ()) -> Judge:
    """Yes where every difference has the sign and is larger than `by`; no where one is refuted.

    Args:
        sign: +1 where the first arm of a pair is to end above the second, -1 below.
        by: nats per character.
        of: the first arms of the contrasts that decide; without any, all do.
    """

    def judge(rows: Rows) -> Judgement:
        rows = _of(rows, of)
        yes = all(shown(row, sign, by) for row in rows)
        return Judgement(_answer(yes, any(refuted(row, sign, by) for row in rows)), rows)

    return judge


def same_direction(sign: int) -> Judge:
    """Yes where every difference has the sign; no where one is shown to have the other."""

    def judge(rows: Rows) -> Judgement:
        yes = all(shown(row, sign) for row in rows)
        return Judgement(_answer(yes, any(shown(row, -sign) for row in rows)), rows)

    return judge


def within(margin: float) -> Judge:
    """Yes where every difference lies within the margin; no where an interval lies beyond it."""

    def judge(rows: Rows) -> Judgement:
        no = any(beyond(row, margin) or beyond(row, -margin) for row in rows)
        answer = _answer(all(equivalent(row, margin) for row in rows), no)
        open_size = answer == "inconclusive" and all(differs(row) for row in rows)
        mark = _mark(margin, [equivalent(row, margin) for row in rows])
        return Judgement(answer, rows, margin == MARGIN, {"open_size": open_size, **mark})

    return judge


def below(limit: float) -> Judge:
    """Yes where no interval reaches so far above zero; no where one lies beyond it."""

    def judge(rows: Rows) -> Judgement:
        held = [judged(row) and row["high"] < limit for row in rows]
        answer = _answer(all(held), any(beyond(row, limit) for row in rows))
        return Judgement(answer, rows, more=_mark(limit, held))

    return judge


def _mark(limit: float, held: Sequence[bool]) -> dict[str, Any]:
    """How many rows pass a mark of their own, which is not the margin that `reading` knows."""
    return {"mark": limit, "held": sum(held)} if limit != MARGIN else {}


all_equivalent, none_worse = within(MARGIN), below(MARGIN)
"""The same with the margin of all studies."""


def none_shown(sign: int) -> Judge:
    """Yes where no difference has the sign, and all are judged; no where one has."""

    def judge(rows: Rows) -> Judgement:
        no = any(shown(row, sign) for row in rows)
        return Judgement(_answer(not no and all(judged(row) for row in rows), no), rows)

    return judge


def in_parts(*judges: tuple[int, Judge]) -> Judge:
    """Of a statement in parts, each about so many of the rows in order: "no" where one does not hold."""

    def judge(rows: Rows) -> Judgement:
        found, start = [], 0
        for count, part in judges:
            found.append(part(rows[start : start + count]))
            start += count
        answers = {each.answer for each in found}
        tost = any(each.tost for each in found)
        return Judgement(_answer(answers == {"yes"}, "no" in answers), rows, tost)

    return judge


def _of(rows: Rows, arms: Sequence[str]) -> Rows:
    if strange := set(arms) - {row["of"] for row in rows}:
        raise KeyError(f"no contrast of {', '.join(sorted(strange))} decides")
    return [row for row in rows if row["of"] in arms] if arms else rows


# In words


def reading(row: Row) -> str:
    """What a row shows, in a word or two: a difference may be shown and lie within the margin."""
    if bad := row["n_ended_badly"]:
        return f"not judged: {_unfinished(bad)}"
    sign = "lower" if shown(row, -1) else "higher" if shown(row, +1) else ""
    if equivalent(row):
        return f"{sign}, within the margin" if sign else "equivalent"
    return sign or "undecided"


def describe(row: Row, tost: bool = False) -> str:
    """The figures of a test, such as ``+0.096 nats [+0.074, +0.118], n = 16, adjusted p < 0.001``."""
    parts = [f"{words.number(row['difference'], sign=True)} nats {words.interval(row['low'], row['high'])}"]
    parts += [f"n = {row['n_pairs']}", f"adjusted {words.p_equals(row['p_holm'])}".replace("adjusted no", "no")]
    if tost and not math.isnan(row["p_equivalent"]):
        parts.append(f"TOST {words.p_equals(row['p_equivalent'])}")
    if bad := row["n_ended_badly"]:
        parts.append(_unfinished(bad))
    return ", ".join(parts)


def _unfinished(runs: int) -> str:
    return f"{runs} run{'s' if runs > 1 else ''} did not finish"
