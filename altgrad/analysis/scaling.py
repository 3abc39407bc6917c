"""How the cost of a format moves with the size of the model and the length of the training: the ladder, and its laws.

A cell is an arm at a size (`parameters` of attention and MLP) and a length (`tokens`); its gap is the mean over seeds
of the paired difference of final losses to FP32's. A law says gap = sum over its terms of coefficient x shape, where a
shape is parameters^a tokens^b: exponents (some laws take them from FP32's own loss) are nonlinear, coefficients linear.

Laws are fitted by nonlinear least squares, each gap weighted by its variance, which is known from a few seeds only and
moderated (`covariance_of`). The exponents are found by scipy with the coefficients solved for at each step (variable
projection, Golub & Pereyra 1973), so that a coefficient may be zero or negative, as that of an arm whose gaps are near
zero. Gaps of one place share FP32's runs: their correlation is in the parameters' covariance. The interval method is
the one whose simulated coverage is right (benchmarks/interval_coverage.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis.contrasts import by_seed
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN, MIN_PAIRS, Estimate, mean_interval, paired_difference
from altgrad.studies import (
    EVERYWHERE,
    FITTED,
    LADDER,
    LADDER_FORMS,
    LADDER_HELD_OUT,
    LADDER_LARGE,
    LADDER_RATES,
    LADDER_SEEDS,
    LADDER_STEPS,
    LADDER_TUNING_SEEDS,
    MANTISSA_LADDER,
    STUDIES,
    TOKENS_PER_STEP,
    Size,
    forms_at,
    identity_of,
    rung,
    sweep,
)

Floats = NDArray[np.float64]
SETS = {"ladder": LADDER, "ladder-held-out": LADDER_HELD_OUT, "ladder-large": LADDER_LARGE}
"""Study -> the sizes that it records. The first is what laws are fitted to, the others are predicted."""

UNITS = (1e5, 1e6)
"""Parameters and tokens at which a coefficient is the gap itself."""

BAND = 0.35
"""How far the law's own 90% interval may reach, as a share of the gap that it predicts (preregistered)."""
LEAST = 3
"""Arms that must count (predicted at `MARGIN` or more after `LADDER_STEPS`) for an answer (preregistered)."""
GREY, REFUSED = 10.0, 100.0
"""How many times beyond the recorded sizes an answer is a guess, and from where on there is none."""

CELL = ["form", "size", "steps", "parameters", "tokens"]
"""What names a cell, in tables."""


class Points(NamedTuple):
    """Arms at sizes and lengths, a row each."""

    form: NDArray[np.str_]
    parameters: Floats
    tokens: Floats

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Points:
        """Those of a table with the columns `CELL`."""
        numbers = (rows[name].to_numpy(np.float64) for name in ("parameters", "tokens"))
        return cls(rows["form"].to_numpy(str), *numbers)

    def logs(self) -> tuple[Floats, Floats]:
        """ln of parameters and of tokens, in `UNITS`."""
        return np.log(self.parameters / UNITS[0]), np.log(self.tokens / UNITS[1])


class Ladder(NamedTuple):
    """Recorded cells: a row each with columns `CELL`, n, gap, sd, low and high, and the covariance of the gaps."""

    cells: pd.DataFrame
    covariance: Floats

    def only(self, keep: pd.Series | NDArray[np.bool_]) -> Ladder:
        """Some of the cells."""
        at = np.flatnonzero(np.asarray(keep))
        return Ladder(self.cells.iloc[at].reset_index(drop=True), self.covariance[np.ix_(at, at)])


# What is recorded


class Recorded(NamedTuple):
    """A row a run of an arm: columns `CELL`, study, seed, loss, gap (NaN for FP32 itself), and what was left out."""

    runs: pd.DataFrame
    left_out: tuple[str, ...]
    expected: Mapping[str, int]  # study -> how many runs of quantized arms it has when it is recorded in full


def planned() -> Iterator[tuple[str, str, Size, int]]:
    """Every cell of the ladder's studies: study, arm, size and steps."""
    for study, sizes in SETS.items():
        for size in sizes:
            for steps in size.steps:
                yield from ((study, form, size, steps) for form in forms_at(size, steps))


def recorded(loader: ExperimentDataLoader) -> Recorded:
    """The ladder's runs in the records. A cell in which a run did not finish is left out whole, and named."""
    known = {
        identity_of(rung(form, size, steps, 1.0).config(), rate=False): (form, size, steps)
        for _, form, size, steps in planned()
    }
    own = loader.runs[loader.runs["study"].isin(list(SETS)) & ~loader.runs["foreign"].astype(bool)]
    found: dict[tuple[str, Size, int], pd.DataFrame] = {}
    for _, runs in own.groupby("arm"):
        key = known.get(identity_of(loader.records[runs["run_id"].iloc[0]].config, rate=False))
        if key:
            found[key] = pd.concat([found[key], runs]) if key in found else runs
    rows: list[pd.DataFrame] = []
    left_out: list[str] = []
    for (form, size, steps), runs in found.items():
        base = found.get(("FP32", size, steps))
        where = f"{LADDER_FORMS[form][2]}, {size.name}, {steps} steps"
        if base is None:
            left_out.append(f"{where}: no run of FP32")
        elif (bad := int((runs["status"] != "finished").sum())) or (base["status"] != "finished").any():
            left_out.append(f"{where}: {f'{bad} not finished' if bad else 'FP32 not finished'}")
        elif len({*runs["data"], *base["data"]}) > 1:
            left_out.append(f"{where}: more than one data set")
        elif len({*runs["learning_rate"]}) > 1:
            left_out.append(f"{where}: more than one learning rate")
        else:
            rows.append(_runs_of_cell(form, size, steps, runs, base))
    columns = [*CELL, "study", "arm", "seed", "loss", "gap"]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    expected = dict.fromkeys(SETS, 0)
    for study, form, size, steps in planned():
        if form != "FP32":
            expected[study] += len(STUDIES[study].seeds.get(f"{form} ladder {size.name} {steps}", LADDER_SEEDS))
    return Recorded(table.sort_values([*CELL, "seed"], ignore_index=True), tuple(sorted(left_out)), expected)


def _runs_of_cell(form: str, size: Size, steps: int, runs: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    losses, others = by_seed(runs), by_seed(base)
    gaps = losses - others if form != "FP32" else losses * math.nan
    table = pd.DataFrame({"loss": losses, "gap": gaps}).reset_index()
    where = {"form": form, "size": size.name, "steps": steps, "parameters": size.parameters}
    where |= {"tokens": steps * TOKENS_PER_STEP, "study": runs["study"].iloc[0], "arm": runs["arm"].iloc[0]}
    return table.assign(**where)


def ladder_of(runs: pd.DataFrame, value: str = "gap") -> Ladder:
    """The cells of some of the runs of `recorded`: mean over seeds, t interval, and the covariance of the means.

    A cell with fewer than `MIN_PAIRS` seeds is left out.
    """
    runs = runs.dropna(subset=[value])
    values = runs.pivot_table(index=CELL, columns="seed", values=value, sort=False)
    values = values[values.notna().sum(axis=1) >= MIN_PAIRS]
    cells = values.index.to_frame(index=False)
    more = [name for name in ("arm", "study") if name in runs]
    cells = cells.merge(runs.drop_duplicates(CELL)[[*CELL, *more]], on=CELL, how="left")
    found = values.to_numpy(np.float64)
    estimates = [mean_interval(row[~np.isnan(row)]) for row in found]
    for column, name in (("n", "n"), ("gap", "mean"), ("sd", "sd"), ("low", "low"), ("high", "high")):
        cells[column] = [getattr(each, name) for each in estimates]
    return Ladder(cells, covariance_of(cells, found))


def covariance_of(cells: pd.DataFrame, values: Floats) -> Floats:
    """The covariance of the cells' means.

    A variance from 8 seeds is itself uncertain by half. So its logarithm is drawn to what the arm and the place (size
    and length) have in common over all cells, by as much as the cells' variances agree with that (moderated variances,
    Smyth 2004). The correlation of two arms in one place, who share FP32's runs, is pooled over the places that have
    both. Cells of other places are independent.

    Args:
        cells: with columns form, size, steps, n and sd.
        values: a row a cell, a column a seed; NaN where there is none.
    """
    if cells.empty:
        return np.zeros((0, 0))
    forms, places = list(dict.fromkeys(cells["form"])), list(zip(cells["size"], cells["steps"], strict=True))
    sd = _moderated(cells, places)
    centred = (values - np.nanmean(values, axis=1, keepdims=True)) / sd[:, None]
    known = ~np.isnan(centred)
    centred = np.where(known, centred, 0.0)
    number = np.array([forms.index(form) for form in cells["form"]])
    same = np.zeros((len(cells), len(cells)))
    products, squares = np.zeros((2, len(forms), len(forms)))
    for place in dict.fromkeys(places):
        here = np.array([at for at, each in enumerate(places) if each == place])
        block = np.ix_(number[here], number[here])
        products[block] += centred[here] @ centred[here].T
        squares[block] += centred[here] ** 2 @ known[here].T
        same[np.ix_(here, here)] = 1
    correlation = products / np.sqrt(squares * squares.T).clip(1e-150)
    np.fill_diagonal(correlation, 1.0)
    error = sd / np.sqrt(cells["n"].to_numpy(np.float64))
    found: Floats = same * correlation[np.ix_(number, number)] * np.outer(error, error)
    return found


def _moderated(cells: pd.DataFrame, places: Sequence[Any]) -> Floats:
    """Standard deviations over seeds, each drawn to an effect of its arm times one of its place."""
    from scipy.special import digamma, polygamma

    degrees, sd = cells["n"].to_numpy(np.float64) - 1, cells["sd"].to_numpy(np.float64)
    sd = np.maximum(sd, 1e-6 * float(sd.max()) or 1e-12)
    logs = 2 * np.log(sd) - digamma(degrees / 2) + np.log(degrees / 2)  # less the bias of a logarithm of chi-squared
    design = np.hstack([_indicators(list(cells["form"])), _indicators(places)])
    effects = np.linalg.lstsq(design, logs, rcond=None)[0]
    left = len(logs) - np.linalg.matrix_rank(design)
    if not left:
        return np.asarray(sd, np.float64)
    apart = float(np.sum((logs - design @ effects) ** 2)) / left - float(np.mean(polygamma(1, degrees / 2)))
    prior = 2 / apart + 1 if apart > 2e-3 else 1e3  # trigamma(x) is about 1 / (x - 1/2)
    pooled: Floats = (prior * np.exp(design @ effects) + degrees * sd**2) / (prior + degrees)
    found: Floats = np.sqrt(pooled)
    return found


def _indicators(keys: Sequence[Any]) -> Floats:
    names = list(dict.fromkeys(keys))
    return np.array([[float(key == name) for name in names] for key in keys])


# Laws


Term = tuple[float, float]
"""A shape: the exponents of parameters and of tokens."""


@dataclass(frozen=True)
class Law:
    """What a gap may depend on, and how.

    Attributes:
        key: its name in tables.
        exponents: the names of the nonlinear parameters that are fitted; with "bit" the arms of the mantissa ladder
            share a coefficient, divided by exp(bit) for each bit.
        terms: their values and FP32's (alpha, beta) -> the shapes, of which each arm has a coefficient.
        start: from where the exponents are sought.
        borrowed: whether it needs FP32's own exponents.
        source: whose it is, an arXiv number; "" where nobody's in particular.
    """

    key: str
    exponents: tuple[str, ...]
    terms: Callable[[Floats, tuple[float, float]], Sequence[Term]]
    start: tuple[float, ...] = ()
    borrowed: bool = False
    source: str = ""

    def basis(self, exponents: Floats, own: tuple[float, float], forms: Sequence[str], points: Points) -> Floats:
        """A column a coefficient at some points, the arms in the order of `forms`, term by term."""
        arms = [form for form in forms if "bit" not in self.exponents or form not in MANTISSA_LADDER]
        columns = np.asarray(points.form[:, None] == np.array(arms, dtype=str), np.float64)
        if "bit" in self.exponents:
            bits = np.array([MANTISSA_LADDER.get(str(form), 0) for form in points.form])
            shared = np.isin(points.form, list(MANTISSA_LADDER)) * np.exp(-exponents[-1] * bits)
            columns = np.hstack([shared[:, None], columns])
        size, data = points.logs()
        shapes = (np.exp(a * size + b * data)[:, None] for a, b in self.terms(exponents, own))
        found: Floats = np.hstack([columns * shape for shape in shapes])
        return found


LAWS: Mapping[str, Law] = {
    law.key: law
    for law in (
        Law("law", ("a", "b"), lambda e, _: [(e[0], e[1])], (-0.4, 0.3)),
        Law("bits", ("a", "b", "bit"), lambda e, _: [(e[0], e[1])], (-0.4, 0.3, 1.2)),
        Law("constant", (), lambda e, _: [(0, 0)]),
        Law("size", ("a",), lambda e, _: [(e[0], 0)], (-0.4,)),
        Law("data", ("b",), lambda e, _: [(0, e[0])], (-0.3,)),
        Law("effective N", (), lambda _, own: [(-own[0], 0)], borrowed=True, source="2411.04330"),
        Law("D over N", (), lambda _, own: [(-own[0], own[1])], borrowed=True, source="2501.02423"),
        Law("effective N and D", (), lambda _, own: [(-own[0], 0), (0, -own[1])], borrowed=True, source="2505.14669"),
    )
}
"""The law, with a cost a bit, and its rivals. With alpha and beta of FP32's loss E + A N^-alpha + B D^-beta: fewer
effective parameters (2411.04330) are c N^-alpha; 2501.02423 adds c D^beta N^-alpha; fewer effective parameters and
tokens (2505.14669, with its outer exponent 1) are c N^-alpha + d D^-beta. 2505.14302's form is the law's own."""

RIVALS = tuple(key for key in LAWS if key not in ("law", "bits"))
LOSS = Law("loss", ("alpha", "beta"), lambda e, _: [(0, 0), (-e[0], 0), (0, -e[1])], (0.3, 0.3))
"""FP32's own loss."""


class NoFit(LookupError):
    """There is no fit, and why, in a few words."""


Interval = Literal["plain", "widened"]
INTERVAL: Interval = "widened"
"""From the spread of seeds alone with a normal quantile ("plain"), or, where the residuals are larger than that
explains, widened by as much, with a t quantile: benchmarks/interval_coverage.py has how often each covers."""


@dataclass(frozen=True)
class Fit:
    """A law with its parameters.

    Attributes:
        law: which.
        forms: the arms, in the order of the coefficients.
        own: FP32's alpha and beta, as `Law.basis` has them.
        exponents, coefficients: the parameters, in order.
        covariance: of exponents and coefficients, from the spread of seeds alone.
        chi2: the weighted sum of squared residuals.
        dof: cells less parameters.
    """

    law: Law
    forms: tuple[str, ...]
    own: tuple[float, float]
    exponents: Floats = field(repr=False)
    coefficients: Floats = field(repr=False)
    covariance: Floats = field(repr=False)
    chi2: float
    dof: int

    @property
    def parameters(self) -> int:
        """How many were fitted."""
        return len(self.exponents) + len(self.coefficients)

    def __call__(self, points: Points) -> Floats:
        """The gaps that it gives, nats per character."""
        gaps: Floats = self.law.basis(self.exponents, self.own, self.forms, points) @ self.coefficients
        return gaps

    def widening(self, how: Interval = INTERVAL) -> float:
        """By what variances are multiplied: above 1 where residuals are larger than the spread of seeds explains."""
        return max(self.chi2 / self.dof, 1.0) if how == "widened" and self.dof else 1.0

    def quantile(self, level: float, how: Interval = INTERVAL) -> float:
        """How many standard errors an interval of that level reaches."""
        from scipy.special import ndtri, stdtrit

        p = (1 + level) / 2
        return float(stdtrit(self.dof, p) if how == "widened" and self.dof else ndtri(p))

    def error(self, points: Points, how: Interval = INTERVAL) -> Floats:
        """The standard errors of the gaps that it gives."""
        gradient = _jacobian(self.law, self.exponents, self.coefficients, self.own, self.forms, points)
        variance: Floats = np.einsum("ij,jk,ik->i", gradient, self.covariance, gradient)
        return np.sqrt(np.maximum(variance, 0) * self.widening(how))

    def exponent(self, name: str, how: Interval = INTERVAL) -> tuple[float, float, float]:
        """An exponent and the ends of its interval."""
        at = self.law.exponents.index(name)
        value = float(self.exponents[at])
        half = self.quantile(0.95, how) * math.sqrt(self.covariance[at, at] * self.widening(how))
        return value, value - half, value + half


def fit(law: Law, ladder: Ladder, own: tuple[float, float] | None = None) -> Fit:
    """The law's parameters by weighted least squares, with the covariance that correlated gaps give them.

    Args:
        law: which.
        ladder: recorded cells.
        own: FP32's alpha and beta, where the law needs them.

    Raises:
        NoFit: the cells do not determine the parameters, or FP32's exponents are missing.
    """
    from scipy.optimize import least_squares

    if law.borrowed and own is None:
        raise NoFit("no law of FP32's loss")
    cells, points = ladder.cells, Points.of(ladder.cells)
    forms = tuple(form for form in LADDER_FORMS if form in set(points.form))
    _determined(law, points)
    own = own or (math.nan, math.nan)
    basis = law.basis(np.array(law.start), own, forms, points)
    dof = len(cells) - len(law.exponents) - basis.shape[1]
    if dof < 0 or not len(cells):
        raise NoFit(f"{len(cells)} cells for {len(cells) - dof} parameters")
    variances = np.diag(ladder.covariance)
    if not (variances > 0).all():
        raise NoFit("no spread over seeds")
    weight = 1 / np.sqrt(variances)
    target = weight * cells["gap"].to_numpy(np.float64)

    def solved(exponents: Floats) -> tuple[Floats, Floats]:
        columns = weight[:, None] * law.basis(exponents, own, forms, points)
        coefficients = np.linalg.lstsq(columns, target, rcond=None)[0]
        return coefficients, columns @ coefficients - target

    exponents = np.zeros(0)
    if law.exponents:
        starts = [np.array(law.start), 0.05 - 0.5 * np.array(law.start)]
        tried = [least_squares(lambda at: solved(at)[1], start, bounds=(-6, 6)) for start in starts]
        exponents = min(tried, key=lambda each: float(each.cost)).x
    coefficients, residuals = solved(exponents)
    gradient = weight[:, None] * _jacobian(law, exponents, coefficients, own, forms, points)
    through = np.linalg.pinv(gradient) * weight  # from gaps to parameters
    covariance = through @ ladder.covariance @ through.T
    return Fit(law, forms, own, exponents, coefficients, covariance, float(residuals @ residuals), dof)


def _determined(law: Law, points: Points) -> None:
    """Refuse cells that leave an exponent open.

    Raises:
        NoFit: with which.
    """
    size, data = points.logs()
    sizes, lengths = len({*size.round(9)}), len({*data.round(9)})
    wanted = {*law.exponents}
    if wanted & {"a", "alpha"} and sizes < 2:
        raise NoFit("one size only")
    if wanted & {"b", "beta"} and lengths < 2:
        raise NoFit("one length only")
    if len(wanted) > 1 and np.linalg.matrix_rank(np.column_stack([np.ones(len(size)), size, data])) < 3:
        raise NoFit("size and length move together")
    if "bit" in wanted and len({*points.form} & {*MANTISSA_LADDER}) < 2:
        raise NoFit("one arm of the mantissa ladder")


def _jacobian(
    law: Law, exponents: Floats, coefficients: Floats, own: tuple[float, float], forms: Sequence[str], points: Points
) -> Floats:
    """Derivatives of the gaps by each exponent (central differences) and coefficient."""
    columns = [law.basis(exponents, own, forms, points)]
    for at in reversed(range(len(exponents))):
        step = np.zeros(len(exponents))
        step[at] = 1e-5
        above, below = (law.basis(exponents + sign * step, own, forms, points) @ coefficients for sign in (1, -1))
        columns.insert(0, ((above - below) / 2e-5)[:, None])
    return np.hstack(columns)


# What the ladder says


@dataclass(frozen=True)
class Findings:
    """What the recorded ladder says; each part is empty where the records do not reach.

    Attributes:
        recorded: the runs.
        fitted: the cells that laws are fitted to.
        everywhere: cells with everything quantized, which no law is fitted to.
        loss: FP32's own law.
        fits: by `Law.key`; those that could be fitted.
        why: of the others, why not.
        alone: the law fitted to each arm by itself.
        models: a row a law: how well it fits, and its errors on sizes that it has not seen.
        held: a row an arm and size that is predicted: columns `HELD`.
    """

    recorded: Recorded
    fitted: Ladder
    everywhere: pd.DataFrame
    loss: Fit | None
    fits: Mapping[str, Fit]
    why: Mapping[str, str]
    alone: Mapping[str, Fit]
    models: pd.DataFrame
    held: pd.DataFrame

    @property
    def law(self) -> Fit | None:
        """The law itself."""
        return self.fits.get("law")

    def complete(self, study: str) -> bool:
        """Whether every run of a study of the ladder is there."""
        return self.have(study) >= self.recorded.expected[study]

    def have(self, study: str) -> int:
        """How many runs of quantized arms a study has."""
        runs = self.recorded.runs
        return int(((runs["study"] == study) & runs["gap"].notna()).sum())


HELD = [
    *CELL, "study", "arm", "predicted", "low", "high", "band", "counted", "n", "gap", "gap_low", "gap_high", "inside",
]  # fmt: skip
"""The law's prediction and its 90% interval for the mean over the registered seeds, the band of the law by itself as a
share of the prediction, whether it counts; and what came, with its 95%."""
MODELS = ["key", "source", "parameters", "chi2", "dof", "misfit", "largest", "held_out", "why"]


def findings(loader: ExperimentDataLoader) -> Findings:
    """Everything that the records of the ladder say; to be asked through `loader.memo`."""
    return findings_of(recorded(loader))


def findings_of(found: Recorded) -> Findings:
    """`findings` of some runs."""
    runs = found.runs
    everywhere = ladder_of(runs[runs["form"].isin(list(EVERYWHERE)) & (runs["study"] == "ladder")]).cells
    fitted = ladder_of(runs[runs["form"].isin(FITTED) & (runs["study"] == "ladder")])
    base = ladder_of(runs[(runs["form"] == "FP32") & (runs["study"] == "ladder")], "loss")
    why: dict[str, str] = {}

    def tried(key: str, law: Law, ladder: Ladder, own: tuple[float, float] | None = None) -> Fit | None:
        try:
            return fit(law, ladder, own)
        except NoFit as error:
            why[key] = str(error)
            return None

    loss = tried("loss", LOSS, base)
    if loss and (min(loss.exponents) <= 0 or min(loss.coefficients[1:]) <= 0):
        loss = None  # it does not fall with size and data: no such law
    own = None if loss is None else (float(loss.exponents[0]), float(loss.exponents[1]))
    fits = {key: own_fit for key, law in LAWS.items() if (own_fit := tried(key, law, fitted, own))}
    by_arm = {form: fitted.only(fitted.cells["form"] == form) for form in FITTED}
    alone = {form: own_fit for form, cells in by_arm.items() if (own_fit := tried(form, LAWS["law"], cells))}
    held = _held(found, fitted, fits.get("law"))
    models = _models(fits, why, fitted, held, own)
    return Findings(found, fitted, everywhere, loss, fits, why, alone, models, held)


def _held(found: Recorded, fitted: Ladder, law: Fit | None) -> pd.DataFrame:
    """The predictions, and what came. The spread of what came is not looked at for its interval."""
    if law is None:
        return pd.DataFrame(columns=HELD).astype({"counted": bool, "inside": bool})
    came = ladder_of(found.runs[found.runs["form"].isin(FITTED) & (found.runs["study"] != "ladder")]).cells
    observed = {tuple(row[name] for name in CELL[:3]): row for row in came.to_dict("records")}
    rows: list[dict[str, Any]] = []
    for study, form, size, steps in planned():
        if study != "ladder" and form in law.forms:
            where = dict(zip(CELL, (form, size.name, steps, size.parameters), strict=False))
            rows.append({**where, "tokens": steps * TOKENS_PER_STEP, "study": study})
    table = pd.DataFrame(rows)
    seeds = {study: max(map(len, STUDIES[study].seeds.values()), default=len(LADDER_SEEDS)) for study in SETS}
    predicted, error = predictions(law, fitted, Points.of(table), table["study"].map(seeds).to_numpy(np.float64))
    half = law.quantile(0.9) * error
    table = table.assign(predicted=predicted, low=predicted - half, high=predicted + half)
    table["band"] = law.quantile(0.9) * law.error(Points.of(table)) / np.abs(predicted)
    table["counted"] = predicted >= MARGIN
    figures = [observed.get(tuple(row[name] for name in CELL[:3]), {}) for row in rows]
    for column, name in (("arm", "arm"), ("n", "n"), ("gap", "gap"), ("gap_low", "low"), ("gap_high", "high")):
        table[column] = [each.get(name, "" if name == "arm" else math.nan) for each in figures]
    table["inside"] = (table["low"] <= table["gap"]) & (table["gap"] <= table["high"])
    return table[HELD]


def predictions(law: Fit, fitted: Ladder, points: Points, seeds: Floats | float) -> tuple[Floats, Floats]:
    """The gaps of new cells and the standard errors of means over so many seeds around them.

    What a mean over seeds adds is the spread of the arm at the largest fitted size (its longest runs there).
    """
    cells = fitted.cells.assign(variance=np.diag(fitted.covariance) * fitted.cells["n"])
    last = cells.sort_values(["parameters", "tokens"]).groupby("form")["variance"].last()
    spread = np.array([float(last[form]) for form in points.form]) / seeds
    return law(points), np.sqrt(law.error(points) ** 2 + spread)


def relative_error(predicted: Floats, gap: Floats) -> float:
    """The mean of abs(predicted - gap) / gap over arms, with gaps below the margin taken as it (preregistered)."""
    return float(np.mean(np.abs(predicted - gap) / np.maximum(gap, MARGIN))) if len(gap) else math.nan


def _models(
    fits: Mapping[str, Fit], why: Mapping[str, str], fitted: Ladder, held: pd.DataFrame, own: tuple[float, float] | None
) -> pd.DataFrame:
    """A row a law; errors are `relative_error`, of the largest fitted size by a fit without it, and of the held-out."""
    largest = fitted.cells["parameters"] == fitted.cells["parameters"].max()
    came = held[(held["study"] == "ladder-held-out") & held["counted"] & held["gap"].notna()]
    rows = []
    for key, law in LAWS.items():
        row: dict[str, Any] = {"key": key, "source": law.source, "why": why.get(key, "")}
        if key in fits:
            found = fits[key]
            row |= {"parameters": found.parameters, "chi2": found.chi2, "dof": found.dof}
            row["misfit"] = found.chi2 / found.dof if found.dof else math.nan
            row["largest"] = _left_out(law, fitted, largest, own)
            row["held_out"] = relative_error(found(Points.of(came)), came["gap"].to_numpy(np.float64))
        rows.append(row)
    return pd.DataFrame(rows, columns=MODELS)


def _left_out(law: Law, fitted: Ladder, apart: pd.Series, own: tuple[float, float] | None) -> float:
    """The error on the cells `apart` of the law fitted to the others; NaN where it cannot be."""
    try:
        found = fit(law, fitted.only(~apart), own)
    except NoFit:
        return math.nan
    cells = fitted.cells[apart & fitted.cells["form"].isin(found.forms) & (fitted.cells["gap"] >= MARGIN)]
    return relative_error(found(Points.of(cells)), cells["gap"].to_numpy(np.float64))


class Outcome(NamedTuple):
    """Whether the law predicted the held-out size, by the marks of the registration."""

    answer: Literal["yes", "no", "inconclusive", "pending"]
    counted: int = 0
    inside: int = 0
    widest: float = math.nan
    best_rival: str = ""
    own_error: float = math.nan
    rival_error: float = math.nan

    @property
    def marks(self) -> dict[str, bool]:
        """Each mark, and whether it is met."""
        inside, best = self.inside >= self.counted - 1, self.own_error < self.rival_error
        return {"inside": inside, "narrow": self.widest <= BAND, "best": best}


def outcome(found: Findings) -> Outcome:
    """The answer: all counted arms but one inside, bands narrow enough, a lower error than every rival.

    The arms are those after `LADDER_STEPS`; errors are over both lengths. With fewer than `LEAST` arms that count it is
    inconclusive.
    """
    held = found.held[found.held["study"] == "ladder-held-out"]
    if not len(held) or not found.complete("ladder") or not found.complete("ladder-held-out"):
        return Outcome("pending")
    counted = held[held["counted"] & (held["steps"] == LADDER_STEPS)]
    errors = found.models.set_index("key")["held_out"]
    rivals = errors[list(RIVALS)].dropna()
    best = str(rivals.idxmin()) if len(rivals) else ""
    rival = float(rivals.min()) if len(rivals) else math.inf
    seen = Outcome(
        "no",
        len(counted),
        int(counted["inside"].sum()),
        float(counted["band"].max()) if len(counted) else math.nan,
        best,
        float(errors["law"]),
        rival,
    )
    if seen.counted < LEAST:
        return seen._replace(answer="inconclusive")
    return seen._replace(answer="yes" if all(seen.marks.values()) else "no")


# Questions


class Answer(NamedTuple):
    """What the law says of a size and a length.

    Attributes:
        gap, low, high: nats per character with the 95% interval of the law.
        share: of the tokens that FP32 could go without and still end as low; NaN without a law of its loss.
        beyond: how many times outside of the recorded sizes and lengths, 1 inside.
        kind: "inside"; "guess" from `GREY` times outside; "refused" from `REFUSED`, with no figures.
    """

    gap: float
    low: float
    high: float
    share: float
    beyond: float
    kind: Literal["inside", "guess", "refused"]


def asked(found: Findings, form: str, parameters: float, tokens: float) -> Answer:
    """The answer for an arm at a size and a length.

    Raises:
        ValueError: no positive finite numbers, or an arm that the law is not fitted to.
    """
    if not (0 < parameters < math.inf and 0 < tokens < math.inf):
        raise ValueError("parameters and tokens are positive numbers")
    if found.law is None or form not in found.law.forms:
        raise ValueError(f"no law of {form!r}")
    cells = found.fitted.cells
    beyond = 1.0
    for value, name in ((parameters, "parameters"), (tokens, "tokens")):
        beyond = max(beyond, value / float(cells[name].max()), float(cells[name].min()) / value)
    kind: Literal["inside", "guess", "refused"] = (
        "refused" if beyond >= REFUSED else "guess" if beyond > GREY else "inside"
    )
    if kind == "refused":
        return Answer(math.nan, math.nan, math.nan, math.nan, beyond, kind)
    points = Points(np.array([form]), np.array([float(parameters)]), np.array([float(tokens)]))
    gap, half = float(found.law(points)[0]), found.law.quantile(0.95) * float(found.law.error(points)[0])
    return Answer(gap, gap - half, gap + half, share_of_data(found.loss, tokens, gap), beyond, kind)


def share_of_data(loss: Fit | None, tokens: float, gap: float) -> float:
    """The share of tokens without which FP32 ends `gap` higher; 0 where there is no gap, NaN without its law."""
    if loss is None:
        return math.nan
    beta, fall = float(loss.exponents[1]), float(loss.coefficients[2])
    without = (tokens / UNITS[1]) ** -beta + max(gap, 0.0) / fall
    return float(1 - without ** (-1 / beta) / (tokens / UNITS[1]))


def extrapolated_rate(sizes: Mapping[int, float], width: int) -> float:
    """A learning rate for a width without a sweep: a line through log2 of the best rates over log2 of their widths.

    The nearest of the rates that sweeps try, .001 times a power of two.

    Args:
        sizes: width -> the best rate of its sweep.
        width: in question.
    """
    x, y = (np.log2(np.array(list(values), np.float64)) for values in (sizes, sizes.values()))
    slope, middle = np.polyfit(x, y, 1) if len(sizes) > 1 else (0.0, float(y[0]))
    wanted = slope * math.log2(width) + middle
    return float(0.001 * 2.0 ** round(wanted - math.log2(0.001)))


def swept(loader: ExperimentDataLoader) -> pd.DataFrame:
    """The sweeps of study ladder-tuning: size, form ("by width" is muP's rule), rate, mean loss, how many seeds.

    `losses` has a Series for each, of the final losses by seed.
    """
    arms = {
        identity_of(rung(form, size, LADDER_STEPS, 1.0).config(), rate=False): (size.name, form)
        for size in LADDER
        for form in ("FP32", "NVFP4")
    }
    rows = []
    runs = loader.runs[loader.runs["study"] == "ladder-tuning"]
    for _, group in runs.groupby("arm"):
        config = loader.records[group["run_id"].iloc[0]].config
        key = arms.get(identity_of(config, rate=False))
        if key:
            by_width = config.optimizer.other_learning_rate is not None
            size, form = key
            own = {"size": size, "form": "by width" if by_width else form, "rate": config.optimizer.learning_rate}
            losses = group.set_index("seed")["final_val_loss"]
            rows.append(own | {"loss": float(losses.mean(skipna=False)), "n": len(group), "losses": losses})
    return pd.DataFrame(rows, columns=["size", "form", "rate", "loss", "n", "losses"])


def best_rates(sweeps: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(size, form) -> the best rate of a sweep that has ended (`altgrad.studies.sweep`)."""
    ended = sweeps[(sweeps["n"] == len(LADDER_TUNING_SEEDS)) & (sweeps["form"] != "by width")].fillna({"loss": np.inf})
    found = {}
    for (size, form), rows in ended.groupby(["size", "form"]):
        best = sweep(LADDER_RATES, dict(zip(rows["rate"], rows["loss"], strict=True)).get)[1]
        if best is not None:
            found[str(size), str(form)] = best
    return found


RULED = "NVFP4"
"""The form of the ladder that is tuned by muP's rule too."""


def by_width(sweeps: pd.DataFrame) -> dict[str, Estimate]:
    """Size -> how much higher `RULED` ends at the rate of muP's rule than at the best of its sweep, paired by seed."""
    losses = sweeps.set_index(["size", "form", "rate"])["losses"]
    best = {size: losses[size, form, rate] for (size, form), rate in best_rates(sweeps).items() if form == RULED}
    ruled = sweeps[sweeps["form"] == "by width"].set_index("size")["losses"]
    names = [size.name for size in LADDER if size.name in ruled and size.name in best]
    return {name: paired_difference(ruled[name], best[name]) for name in names}
