"""What was varied in anyone's runs, and what it did to the metric by which they are compared.

A project's arms differ in the keys that `labels.varied` finds. Two arms that differ in one key alone are compared by
the difference of their runs of one seed; where no two seeds match, by the difference of their means; where each has a
single run without a seed, by these two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis.labels import site_labels, values_of, varied
from altgrad.analysis.loader import ExperimentDataLoader, final_val_loss
from altgrad.analysis.statistics import (
    ALPHA,
    MOST_LEVELS,
    Estimate,
    beyond_noise,
    f_test,
    holm,
    mean_interval,
    residual,
    unpaired_difference,
)
from altgrad.config import scalar
from altgrad.runs import RunRecord
from altgrad.runs.history import LOSSES
from altgrad.text import visible

Floats = NDArray[np.float64]

MOST_KEYS = 12
NOT_METRICS = ("step", "tokens", "seconds", "time", "lr", "epoch", "logged_step")
ABSENT = "not stated"
"""The value of a key that a run does not state."""
DATA = "training data"
"""What the training data is called among the keys of a setting."""


class Measure(NamedTuple):
    """A metric as pages show it: its column, what it is called, its unit ("" where none is known), which way is better,
    and with how many digits after the point it is written."""

    name: str
    title: str
    unit: str = ""
    better: str = "lower"
    digits: int = 4

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return 1 if self.better == "lower" else -1

    @property
    def axis(self) -> str:
        """Its name with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


OWN = Measure("val_loss", "validation loss", "nats per character")
"""What AltGrad's own runs are compared by."""


@dataclass(frozen=True)
class Outcomes:
    """The runs of a site with the value of the metric by which they are compared.

    Attributes:
        measure: that metric; None where no run has logged any.
        runs: a row a run: run_id, arm, label, project, seed (NaN where not stated), status, ending, value (NaN where it
            did not finish or has none).
    """

    measure: Measure | None
    runs: pd.DataFrame

    @property
    def metric(self) -> str | None:
        """What the metric is called."""
        return self.measure and self.measure.title

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return self.measure.sign if self.measure else 1


class Tested(NamedTuple):
    """Whether a key matters in the settings that were run: two F tests against the spread of the seeds of a cell.

    A cell is one value of every key, a setting all keys but this one. `mean` is the p-value of what the key does alike
    in all settings, `between` that of how this differs between them, both adjusted over the keys of the project (Holm)
    and NaN where seeds or settings are too few. `share` is how much of the variance between cells goes with the key,
    alone or together with others, corrected for noise (`key_tests` has the formulas); `depends` the one other key that
    most of the difference between settings goes with.
    """

    share: float
    mean: float = math.nan
    between: float = math.nan
    depends: str | None = None

    @property
    def verdict(self) -> str:
        """One of "depends", "matters", "not shown", "not tested"."""
        if self.between < ALPHA:
            return "depends"
        return "matters" if self.mean < ALPHA else "not tested" if math.isnan(self.mean) else "not shown"


class Setting(NamedTuple):
    """The difference in one setting, and the values of the other keys that were varied.

    It is over the runs of one seed where `paired`, else of the mean of all `runs` with the value from that with the
    reference. `seeds` has those of these runs; none where they state none.
    """

    others: dict[str, str]
    estimate: Estimate
    runs: tuple[int, int]
    seeds: frozenset[float]
    paired: bool = True


class Group(NamedTuple):
    """The settings that have one `value` of a key: their `Effect.estimate` and `Effect.reach`."""

    value: str
    estimate: Estimate
    reach: tuple[float, float]


class Effect(NamedTuple):
    """What one value of a key does against the reference value of it, over the settings in which both were run.

    `estimate` is of the means of the settings where there are several, each counted once, else of the pairs of the one:
    pairs of one setting share what is particular to it, and are not independent.
    """

    project: str
    key: str
    reference: str
    value: str
    estimate: Estimate
    settings: list[Setting]
    test: Tested = Tested(math.nan)

    @property
    def pairs(self) -> int:
        """In all settings."""
        return sum(each.estimate.n for each in self.settings if each.paired)

    @property
    def unpaired(self) -> int:
        """The runs of the settings in which none were paired."""
        return sum(each.estimate.n for each in self.settings if not each.paired)

    @property
    def alone(self) -> bool:
        """Whether it is of one pair of runs: then there is no interval."""
        return math.isnan(self.estimate.low)

    @property
    def seeds(self) -> int:
        """In all settings; 0 where none are stated."""
        return len(frozenset[float]().union(*(each.seeds for each in self.settings)))

    @property
    def reach(self) -> tuple[float, float]:
        """The smallest and the largest mean of a setting; NaN of one setting."""
        return _reach(self.settings)

    @property
    def opposed(self) -> bool:
        """Whether it is shown to be below 0 in one setting and above it in another, each by its own interval."""
        own = [each.estimate for each in self.settings]
        return any(each.high < 0 for each in own) and any(each.low > 0 for each in own)

    @property
    def by(self) -> list[Group]:
        """Where it depends on one other key, the values of that with the smallest and the largest mean."""
        settings = defaultdict[str, list[Setting]](list)
        for each in self.settings if self.test.depends else ():
            settings[each.others[str(self.test.depends)]].append(each)
        found = sorted((Group(value, _over(own), _reach(own)) for value, own in settings.items()), key=_mean)
        return [found[0], found[-1]] if len(found) > 1 else []

    @property
    def size(self) -> float:
        """By how much it changes with the key on which it depends, else how far its mean is from 0."""
        return _mean(self.by[1]) - _mean(self.by[0]) if self.by else abs(self.estimate.mean)


class Uneven(NamedTuple):
    """A project in which runs of one arm spread over seeds more than those of another: the standard deviations of the
    arms `narrow` and `wide`, and the p-value (Brown and Forsythe 1974, of the absolute deviations from the medians)."""

    project: str
    narrow: str
    smallest: float
    wide: str
    largest: float
    p: float


class Together(NamedTuple):
    """The mean of the metric of each pair of values of two keys, over the same settings of all other keys.

    `cells` has a row a value of `one` and a column a value of `two`, NaN where the pair was not run in all `settings`:
    those in which the most pairs were run. Each setting counts once. `left` pairs were run, but not in all of these.
    """

    one: str
    two: str
    cells: pd.DataFrame
    settings: list[dict[str, str]]
    left: int


class Untold(NamedTuple):
    """A value of a key of which no difference is known.

    `always` has the other keys whose values here no other value of `key` was run with; `runs` is how many have a
    result; `arms` are the varied keys without those of `always`.
    """

    project: str
    key: str
    value: str
    runs: int
    always: dict[str, list[str]]
    arms: list[str]


def outcomes(loader: ExperimentDataLoader) -> Outcomes:
    """The runs of a site with the last value of the metric by which they are compared."""
    metric = loader.memo(measure_of)
    labels = loader.memo(site_labels)
    runs = loader.runs
    records = [loader.records[run_id] for run_id in runs["run_id"]]
    frame = pd.DataFrame(
        {
            "run_id": runs["run_id"],
            "arm": runs["arm"],
            "label": [labels[arm] for arm in runs["arm"]],
            "project": runs["study"],
            "seed": runs["seed"].astype("float64"),
            "status": runs["status"],
            "ending": runs["ending"],
            "value": [last_value(record, metric) for record in records],
        }
    )
    return Outcomes(metric, frame)


def measure_of(loader: ExperimentDataLoader, arm: str | None = None) -> Measure | None:
    """The metric by which the runs of a site are compared, or that an arm's page opens with where it has not that one.

    It is the site's own (of a site what only summaries have too), else the validation, test or training loss, else the
    first; None where nothing was logged.
    """
    if arm is not None and loader.config(arm).foreign is None:
        return OWN
    own = list(loader.records.values()) if arm is None else loader.records_of(arm)
    if not own or any(record.config.foreign is None for record in own):
        return OWN
    names = own[0].names
    ended = [record for record in own if record.status == "finished"]
    there = metrics_of(ended, ends=arm is None) or metrics_of(own, ends=arm is None)
    site = arm and loader.memo(measure_of)
    name = site.name if site and site.name in there else names.main(there)
    if name is None:
        return None
    about = names.metric(name)
    ends = [abs(value) for record in own if math.isfinite(value := last_value(record, Measure(name, name)))]
    return Measure(name, visible(name), visible(about.unit), about.better, _digits(max(ends, default=1.0)))


def _digits(largest: float) -> int:
    """Digits after the point that show five of a number: four for those of usual size."""
    if largest == 0 or 0.05 <= largest < 1000:
        return 4
    return min(12, max(0, 4 - math.ceil(math.log10(largest))))


def metrics_of(records: Iterable[RunRecord], but: Collection[str] = NOT_METRICS, ends: bool = False) -> list[str]:
    """What some runs have logged: the losses first, then what the most of them have, the norm of gradients last.

    Args:
        records: the runs.
        but: names that are no metrics.
        ends: with what only their summaries have.
    """
    logged = ([*record.history, *(summary_of(record) if ends else ())] for record in records)
    counts = Counter(name for names in logged for name in names if name not in but)
    return sorted(counts, key=lambda name: (name not in LOSSES, name == "grad_norm", -counts[name], name))


def summary_of(record: RunRecord) -> dict[str, float]:
    """The numbers that only the summary of another loop's run has, by the names that its site gives them."""
    given = record.run.get("summary") if record.config.foreign is not None else None
    numbers = {name: figure_of(value) for name, value in (given or {}).items() if type(value) in (int, float)}
    logged = set(record.history) if numbers else set()
    return {name: numbers[own] for own, name in record.names.columns(numbers).items() if name not in logged}


def figure_of(number: float) -> float:
    """As a float; infinity for an integer beyond it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def last_value(record: RunRecord, metric: Measure | None) -> float:
    """What a finished run ended with; NaN where it did not finish or has no finite value."""
    if metric == OWN and record.config.foreign is None:
        return final_val_loss(record)
    if record.status != "finished" or metric is None:
        return math.nan
    history = record.history
    if metric.name not in history:
        value = summary_of(record).get(metric.name, math.nan)
        return value if math.isfinite(value) else math.nan
    known = history[metric.name].dropna()
    return float(known.iloc[-1]) if len(known) and np.isfinite(known.iloc[-1]) else math.nan


def varied_keys(loader: ExperimentDataLoader) -> pd.DataFrame:
    """A row a project and key: project, key, values (the most common first; `ABSENT`, where none is stated, last)."""
    rows = []
    arms = _arms(loader)
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = [values for arm, values in arms.items() if loader.config(arm).study == project]
        for key in keys:
            counts = Counter(_value(values, key) for values in own)
            order = sorted(counts.items(), key=lambda each: (each[0] == ABSENT, -each[1], _order(each[0])))
            values = [value for value, _ in order]
            rows.append({"project": project, "key": key, "values": values})
    return pd.DataFrame(rows, columns=["project", "key", "values"])


def effects(loader: ExperimentDataLoader) -> list[Effect]:
    """What each varied key does within each project: by project, the key with the largest share first, and value."""
    found: list[Effect] = []
    for project, keys, own, levels in _projects(loader):
        by_key = {key: [*_of_key(project, key, keys, levels, own)] for key in keys if key in levels}
        by_key = {key: each for key, each in by_key.items() if each}
        if not by_key:
            continue
        tests = key_tests(own, levels, [*by_key], keys)
        for key in sorted(by_key, key=lambda key: -tests[key].share):
            found += [each._replace(test=tests[key]) for each in by_key[key]]
    return found


def _projects(loader: ExperimentDataLoader) -> Iterable[tuple[str, list[str], pd.DataFrame, pd.DataFrame]]:
    """Each project, its varied keys, the runs with a result (of one seed and cell the first), and for each run the
    value of every key that differs."""
    runs = loader.memo(outcomes).runs.dropna(subset=["value"]).sort_values("arm", kind="stable")
    arms = {arm: values for arm, values in _arms(loader).items() if values}
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = runs[runs["arm"].isin(arms) & (runs["project"] == project)]
        texts = {arm: {key: _text(each) for key, each in arms[arm].items()} for arm in own["arm"].unique()}
        if not texts:
            continue
        for arm, each in texts.items():
            each[DATA] = loader.data_name(arm)
        levels = pd.DataFrame.from_dict(texts, "index")
        levels = levels.fillna(ABSENT).loc[own["arm"], lambda frame: frame.nunique() > 1]
        if levels.empty:
            continue
        cells = pd.DataFrame({"cell": _joined(_codes(levels), levels), "seed": own["seed"].to_numpy()})
        once = ~cells.duplicated().to_numpy() | own["seed"].isna().to_numpy()
        yield project, keys, own[once], levels[once]


def key_tests(
    runs: pd.DataFrame, levels: pd.DataFrame, keys: Collection[str], others: Collection[str]
) -> dict[str, Tested]:
    """Of each of `keys` whether it matters, by sums of squares of nested models of the means of cells.

    Runs of one seed share a shift (a block), and cells one spread. What a key does alike in all settings is what its
    levels explain beside the means of the settings; what is left of the means of the cells then differs between them.
    The first is the F test of a Type II sum of squares (Yates, JASA 29, 1934; Langsrud, Statistics and Computing 13,
    2003): of the key after all terms without it, the other keys alone and together, against what is left in the cells.
    The second is of all terms that join the key with others, after the first. The share is the sum of squares of both
    over that between all cells, each less its degrees of freedom times the mean square of the noise, which is what
    omega squared corrects by (Hays 1963).

    Args:
        runs: a row a run, with `value` and `seed`.
        levels: the value of each key in these rows.
        keys: the keys to test; p-values are adjusted over them.
        others: keys on which the effect of one may depend.
    """
    values = runs["value"].to_numpy(float) - runs["value"].mean()
    seeds = pd.factorize(runs["seed"])[0]
    blocks = [seeds] if seeds.max(initial=0) < MOST_LEVELS else []
    codes = _codes(levels)
    noise = residual(values, _joined(codes, codes), *blocks)
    between = beyond_noise(noise, residual(values, _joined(codes, ()), *blocks), noise)
    found, p_values = list[tuple[float, str | None]](), list[float]()
    for key in keys:
        settings = _joined(codes, [other for other in codes if other != key])
        without = residual(values, settings, *blocks)
        share = beyond_noise(noise, without, noise) / between if between > 0 else 0.0
        alike, gains = noise, dict[str, float]()
        if codes[key].max() < MOST_LEVELS:
            alike = residual(values, settings, *blocks, codes[key])
        p_values += [f_test(alike, without, noise), f_test(noise, alike, noise)]
        for other in others if p_values[-1] < ALPHA else ():
            if other != key and other in codes and (pairs := _joined(codes, (key, other))).max() < MOST_LEVELS:
                gains[other] = beyond_noise(residual(values, settings, *blocks, pairs), alike, noise)
        best = max(gains, key=lambda other: gains[other], default=None)
        most = best and gains[best] > beyond_noise(noise, alike, noise) / 2
        found.append((min(1.0, max(0.0, share)), best if most else None))
    adjusted = iter(holm(p_values))
    tests = [Tested(share, next(adjusted), next(adjusted), depends) for share, depends in found]
    shown = (each if each.verdict == "depends" else each._replace(depends=None) for each in tests)
    return dict(zip(keys, shown, strict=True))


def uneven(loader: ExperimentDataLoader) -> list[Uneven]:
    """The projects whose arms with three runs or more are shown to differ in their spread, which `key_tests` takes as
    the same in all."""
    from scipy.stats import levene

    found = []
    for project, _, runs, _ in _projects(loader):
        arms = {str(arm): own["value"].to_numpy() for arm, own in runs.groupby("arm", sort=False) if len(own) > 2}
        spreads = {arm: float(np.std(own, ddof=1)) for arm, own in arms.items()}
        if len(arms) > 1 and any(spreads.values()):
            p = float(levene(*arms.values()).pvalue)
            narrow, wide = min(spreads, key=lambda arm: spreads[arm]), max(spreads, key=lambda arm: spreads[arm])
            if p < ALPHA:
                found.append(Uneven(project, narrow, spreads[narrow], wide, spreads[wide], p))
    return found


def _codes(levels: pd.DataFrame) -> dict[str, NDArray[np.intp]]:
    """The values of each key as numbers."""
    return {key: pd.factorize(levels[key])[0] for key in levels}


def _joined(codes: Mapping[str, NDArray[np.intp]], keys: Iterable[str]) -> NDArray[np.intp]:
    """A number for each combination of the values of some keys, by row."""
    joined = np.zeros_like(next(iter(codes.values())))
    for key in keys:
        joined = np.unique(joined * (codes[key].max() + 1) + codes[key], return_inverse=True)[1]
    return joined


def strongest(found: Iterable[Effect]) -> list[Effect]:
    """Of each project and key the largest difference, or what changes most with the key on which it depends."""
    largest: dict[tuple[str, str], Effect] = {}
    for each in found:
        own = largest.setdefault((each.project, each.key), each)
        if each.size > own.size:
            largest[each.project, each.key] = each
    return list(largest.values())


def untold(loader: ExperimentDataLoader) -> list[Untold]:
    """The values of varied keys that no difference is of; of two keys that go together, the one with fewer of them."""
    known = {(each.project, each.key, value) for each in loader.memo(effects) for value in (each.reference, each.value)}
    runs, arms = loader.memo(outcomes).runs.dropna(subset=["value"]), _arms(loader)
    counts, keys, found = Counter(runs["arm"]), varied_keys(loader), list[list[Untold]]()
    for project, key, values in keys.itertuples(index=False):
        others = [other for other in keys.loc[keys["project"] == project, "key"] if other != key]
        own = {arm: arms[arm] for arm in counts if arm in arms and loader.config(arm).study == project}
        rows = []
        stated = {
            other
            for _, other, each in keys[keys["project"] == project].itertuples(index=False)
            if any(value != ABSENT and (project, other, value) not in known for value in each)
        }
        for value in values:
            if (project, key, value) in known:
                continue
            here = [arm for arm, each in own.items() if _value(each, key) == value]
            always = {}
            for other in others:
                with_it = {_value(own[arm], other) for arm in here}
                if with_it.isdisjoint(_value(own[arm], other) for arm in own.keys() - here):
                    always[other] = sorted(with_it, key=_order)
            always = always if here else {}
            if value == ABSENT and always and not stated.isdisjoint((key, *always)):
                continue  # what goes with not saying a key is told of the values of these keys
            left = [other for other in (key, *others) if other not in always]
            rows.append(Untold(project, key, value, sum(counts[arm] for arm in here), always, left))
        found.append(rows)
    said, kept = set[tuple[str, str, str]](), list[Untold]()
    for each in (row for rows in sorted(found, key=len) for row in rows):
        if not each.always or not all((each.project, other, each.key) in said for other in each.always):
            kept.append(each)
            said |= {(each.project, each.key, other) for other in each.always}
    return kept


def _of_key(
    project: str, key: str, keys: Collection[str], levels: pd.DataFrame, runs: pd.DataFrame
) -> Iterable[Effect]:
    settings: dict[Any, dict[str, NDArray[np.intp]]] = defaultdict(dict)
    codes = _codes(levels)
    joined = _joined(codes, [other for other in codes if other != key])
    for (setting, value), places in (
        pd.Series(range(len(runs))).groupby([joined, levels[key].to_numpy()]).indices.items()
    ):
        settings[setting][value] = places
    settings = {setting: by_value for setting, by_value in settings.items() if len(by_value) > 1}
    counts = Counter(value for by_value in settings.values() for value in by_value)
    if not counts:
        return
    others = [other for other in (*keys, DATA) if other != key and other in levels]
    told, seeds, results = levels[others].to_numpy(), runs["seed"].to_numpy(), runs["value"].to_numpy()
    reference = min(counts, key=lambda value: (-counts[value], _order(value)))
    for value in sorted(set(counts) - {reference}, key=_order):
        found = list[Setting]()
        for by_value in settings.values():
            if reference in by_value and value in by_value:
                own, other = by_value[value], by_value[reference]
                of = dict(zip(others, told[own[0]], strict=True))
                found += _setting(of, seeds[own], results[own], seeds[other], results[other])
        found.sort(key=lambda each: [*map(_order, each.others.values())])
        if found:
            yield Effect(project, key, reference, value, _over(found), found)


def _over(settings: list[Setting]) -> Estimate:
    """The mean of the means of several settings; of one its own."""
    first, *more = (each.estimate for each in settings)
    return mean_interval([first.mean, *(each.mean for each in more)]) if more else first


def _reach(settings: list[Setting]) -> tuple[float, float]:
    means = [each.estimate.mean for each in settings]
    return (min(means), max(means)) if len(means) > 1 else (math.nan, math.nan)


def _mean(group: Group) -> float:
    return group.estimate.mean


def _setting(others: dict[str, str], seeds: Floats, own: Floats, of_other: Floats, other: Floats) -> Iterable[Setting]:
    """The difference of `own` from `other`, if any is known: by pairs of one seed, of the means where fewer than two
    seeds match and both sides have two runs, or of single runs that state no seed."""
    shared, one, two = np.intersect1d(seeds, of_other, return_indices=True)
    runs, fewest = (len(own), len(other)), min(len(own), len(other))
    if len(shared) < 2 <= fewest:
        stated = np.concatenate([seeds, of_other])
        every = frozenset[float](stated[~np.isnan(stated)].tolist())
        yield Setting(others, unpaired_difference(own, other), runs, every, paired=False)
    elif len(shared):
        yield Setting(others, mean_interval(own[one] - other[two]), runs, frozenset(shared.tolist()))
    elif runs == (1, 1) and np.isnan([*seeds, *of_other]).any():
        yield Setting(others, mean_interval(own - other), runs, frozenset())


def interaction(loader: ExperimentDataLoader) -> Together | None:
    """The two keys of a project of whose pairs of values the most can be compared, and the mean of the metric of each.

    Before them those of which one's effect depends on the other; of several such those between whose cells the mean
    differs most. None where no two keys have four pairs that were run in one setting of the others.
    """
    best: tuple[tuple[bool, int, float], Together] | None = None
    tied = {frozenset((each.key, each.test.depends)) for each in loader.memo(effects)}
    for _, keys, runs, levels in _projects(loader):
        for one, two in combinations([key for key in keys if key in levels], 2):
            found = _together(one, two, [*keys, DATA], levels, runs)
            shown = found.cells.dropna(how="all").dropna(how="all", axis="columns")
            count = (
                frozenset((one, two)) in tied,
                int(shown.count().sum()),
                float(shown.max().max() - shown.min().min()),
            )
            small = max(found.cells.shape) <= 8 and min(shown.shape) > 1
            if small and count[1] >= 4 and (best is None or count > best[0]):
                best = count, found
    return best and best[1]


def _together(one: str, two: str, keys: Iterable[str], levels: pd.DataFrame, runs: pd.DataFrame) -> Together:
    codes = _codes(levels)
    settings = _joined(codes, [key for key in codes if key not in (one, two)])
    rows = pd.DataFrame({"row": levels[one], "column": levels[two]}).assign(setting=settings)
    means = runs["value"].groupby([rows[name].to_numpy() for name in ("row", "column", "setting")]).mean().unstack()
    alike = Counter(means.notna().T.itertuples(index=False, name=None))
    most = max(alike, key=lambda each: (sum(each), alike[each], each))
    kept = [setting for setting in means if (*means[setting].notna(),) == most]
    cells = means[kept].mean(axis="columns", skipna=False).unstack()
    cells = cells.loc[sorted(cells.index, key=_order), sorted(cells.columns, key=_order)]
    others = [key for key in keys if key in levels and key not in (one, two)]
    told = levels[others].groupby(settings).first().loc[kept]
    return Together(one, two, cells, told.to_dict("records"), int((~np.array(most)).sum()))


def _arms(loader: ExperimentDataLoader) -> dict[str, dict[str, Any]]:
    """What the arms of other training loops state."""
    arms = loader.runs.loc[loader.runs["foreign"].astype(bool), "arm"].unique()
    return {arm: values_of(loader.config(arm)) for arm in arms}


def _value(values: Mapping[str, Any], key: str) -> str:
    return _text(values[key]) if key in values else ABSENT


def _text(value: Any) -> str:
    return visible(scalar(value))


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
