"""The ladder's laws on made-up runs with a known law: by other code, with rivals that lose, and with what is bad."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ladders import interval_coverage, made_up, write_ladder
from registered import ROOT, before_the_runs

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.scaling import (
    CELL,
    LAWS,
    RIVALS,
    SETS,
    Findings,
    NoFit,
    Points,
    Recorded,
    asked,
    best_rates,
    extrapolated_rate,
    findings_of,
    fit,
    ladder_of,
    outcome,
    recorded,
    share_of_data,
)
from altgrad.reports.scaling import scaling_page
from altgrad.studies import ARMS, FITTED, LADDER, LADDER_HELD_OUT, STUDIES, Arm, forms_at, rung

REGISTRATION = "docs/method/preregistration-ladder.md"
Truth = Callable[[str, float, float], float]
A, B = interval_coverage.EXPONENTS


def law(form: str, parameters: float, tokens: float) -> float:
    """The known law, with gaps of which enough count at the held-out size."""
    return 1.5 * interval_coverage.law(form, parameters, tokens)


def found(truth: Truth = law, spread: float = 0.3, **more: object) -> Findings:
    """What a whole ladder says, with less noise than records have."""
    runs = made_up(np.random.default_rng(3), truth=truth, spread=spread)
    return findings_of(Recorded(runs, (), dict.fromkeys(SETS, 1)))


@pytest.fixture(scope="module")
def lawful() -> Findings:
    return found()


def test_the_law_is_found_and_predicts_a_size_that_it_has_not_seen(lawful: Findings) -> None:
    fitted = lawful.law
    assert fitted is not None
    for name, truth in zip("ab", (A, B), strict=True):
        value, low, high = fitted.exponent(name)
        assert abs(value - truth) < high - low < 0.04
    bit = lawful.fits["bits"].exponent("bit")
    assert bit[1] <= math.log(4) <= bit[2], "the coefficients of the mantissa ladder are four apart"
    seen = outcome(lawful)
    assert seen.answer == "yes"
    assert seen.marks == {"inside": True, "narrow": True, "best": True}
    assert lawful.loss is not None
    for name, truth in (("alpha", 0.25), ("beta", 0.4)):
        value, low, high = lawful.loss.exponent(name)
        assert low - 0.02 <= truth <= high + 0.02


def test_every_rival_has_a_larger_error_on_the_held_out_size(lawful: Findings) -> None:
    errors = lawful.models.set_index("key")["held_out"]
    assert len(RIVALS) == 6
    assert all(errors[rival] > errors["law"] for rival in RIVALS)


def test_a_law_of_another_kind_is_no_hit() -> None:
    """The cost stops to fall at the largest fitted size and then rises."""

    def turned(form: str, parameters: float, tokens: float) -> float:
        return law(form, min(parameters, 8e5), tokens) * (1 + 0.6 * math.log(max(parameters / 8e5, 1)))

    assert outcome(found(turned)).answer == "no"


def test_the_fit_is_that_of_gauss_and_newton(lawful: Findings) -> None:
    """Ten lines of numpy: log-exponents and coefficients together, from another start, with the same weights."""
    ladder = lawful.fitted
    points, gaps = Points.of(ladder.cells), ladder.cells["gap"].to_numpy()
    forms = [form for form in FITTED if form in set(points.form)]
    member = np.array([[form == name for name in forms] for form in points.form], float)
    x, y = np.log(points.parameters / 1e5), np.log(points.tokens / 1e6)
    weight = 1 / np.sqrt(np.diag(ladder.covariance))
    at = np.array([-0.3, 0.1, *[0.05] * len(forms)])
    for _ in range(60):
        shape = np.exp(at[0] * x + at[1] * y)
        value = member @ at[2:] * shape
        jacobian = np.column_stack([value * x, value * y, member * shape[:, None]]) * weight[:, None]
        at = at + 0.7 * np.linalg.lstsq(jacobian, weight * (gaps - value), rcond=None)[0]
    fitted = lawful.law
    assert fitted is not None
    assert [*fitted.exponents] == pytest.approx(at[:2], abs=1e-6)
    assert dict(zip(fitted.forms, fitted.coefficients, strict=True)) == pytest.approx(
        dict(zip(forms, at[2:], strict=True))
    )


def test_intervals_cover_about_as_often_as_they_say() -> None:
    """A small version of benchmarks/interval_coverage.py; 1,000 ladders gave what the registration says."""
    shares = interval_coverage.coverage(40, 8, start=10_000)
    assert shares.loc["widened"].between([0.86, 0.90, 0.83], [1, 1, 0.97]).all()
    assert (shares.loc["each variance from its own seeds", "exponents"]) < 0.85, "why variances are moderated"


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[(runs["study"] == "ladder") & runs["form"].isin(FITTED)]


def test_gaps_around_zero_are_fitted_and_do_not_count() -> None:
    def nothing(form: str, parameters: float, tokens: float) -> float:
        return -0.001 if form == "MXFP6" else interval_coverage.law(form, parameters, tokens)

    seen = found(nothing, spread=0.5)
    fitted = seen.law
    assert fitted is not None
    at = fitted.forms.index("MXFP6")
    assert fitted.coefficients[at] < 2 * math.sqrt(fitted.covariance[2 + at, 2 + at])
    assert not seen.held.loc[seen.held["form"] == "MXFP6", "counted"].any()
    answer = asked(seen, "MXFP6", 1e6, 1e6)
    assert answer.low < 0.002
    assert share_of_data(seen.loss, 1e6, -0.5) == 0


@pytest.mark.parametrize(
    ("keep", "why"),
    [
        (lambda row: row["size"] == "64x2", "one size only"),
        (lambda row: row["steps"] == 400, "one length only"),
        (lambda row: (row["size"], row["steps"]) in (("32x2", 400), ("64x2", 1600)), "size and length move together"),
        (lambda row: row["size"] == "none", "one size only"),
        (lambda row: row["seed"] < 72, "one size only"),
    ],
)
def test_a_ladder_that_does_not_determine_the_law_says_why(keep: Callable[[dict], bool], why: str) -> None:
    runs = made_up(np.random.default_rng(0))
    part = runs[[keep(row) for row in runs.to_dict("records")]]
    seen = findings_of(Recorded(part, (), dict.fromkeys(SETS, 1)))
    assert seen.law is None
    assert seen.why["law"] == why
    assert outcome(seen).answer == "pending"
    with pytest.raises(ValueError, match="no law of"):
        asked(seen, "NVFP4", 1e6, 1e6)


def test_one_size_has_a_law_of_data_and_missing_cells_are_done_without() -> None:
    runs = cells_of(made_up(np.random.default_rng(0), spread=0.3))
    one = ladder_of(runs[runs["size"] == "64x2"])
    assert fit(LAWS["data"], one).exponent("b")[1] <= B <= fit(LAWS["data"], one).exponent("b")[2]
    with pytest.raises(NoFit, match="no law of FP32's loss"):
        fit(LAWS["D over N"], one)
    gone = (runs["form"] == "E7M0") & (runs["size"] == "32x2") | (runs["form"] == "NVFP4") & (runs["steps"] == 400)
    few = ladder_of(runs[~gone & ~((runs["form"] == "E6M1") & (runs["seed"] > 73))])
    assert len(few.cells) < len(ladder_of(runs).cells)
    assert abs(fit(LAWS["law"], few).exponent("a")[0] - A) < 0.05


def test_cells_without_spread_are_no_fit() -> None:
    runs = cells_of(made_up(np.random.default_rng(0), spread=0.0))
    ladder = ladder_of(runs)
    assert np.isfinite(ladder.covariance).all()
    with pytest.raises(NoFit, match="no spread over seeds"):
        fit(LAWS["law"], ladder._replace(covariance=0 * ladder.covariance))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, of which one run is NaN and one of FP32 crashed."""
    runs = made_up(np.random.default_rng(5), 3, (*LADDER[:2], *LADDER_HELD_OUT))
    failed = {("E7M0", "32x2", 400, 71): "failed", ("FP32", "64x2", 6400, 70): "crashed"}
    return write_ladder(tmp_path_factory.mktemp("ladder"), runs, failed)


def test_records_are_read_by_what_their_configs_are(packed: Path) -> None:
    """Against the made-up figures themselves; a cell with a run that did not finish is left out whole, and named."""
    seen = recorded(ExperimentDataLoader([packed]))
    without = ("E6M1", "E7M0", "MXFP4 (scales up)", "NVFP4", "NVFP4, gradients stochastic")
    named = [f"{name}, 64x2, 6400 steps: FP32 not finished" for name in without]
    named += ["E7M0, 32x2, 400 steps: 1 not finished", "FP32, 64x2, 6400 steps: 1 not finished"]
    assert seen.left_out == tuple(sorted(named))
    runs = made_up(np.random.default_rng(5), 3, (*LADDER[:2], *LADDER_HELD_OUT))
    keys = [*CELL, "study", "seed"]
    both = seen.runs.merge(runs, on=keys, suffixes=("", " made up"))
    assert len(both) == len(seen.runs) == len(runs) - 3 - 6 * 3
    assert both["loss"].to_numpy() == pytest.approx(both["loss made up"].to_numpy())
    quantized = both[both["form"] != "FP32"]
    assert quantized["gap"].to_numpy() == pytest.approx(quantized["gap made up"].to_numpy())
    assert seen.expected["ladder"] == (8 * 6 + 2 * 5 + 2 * 2 + 8) * 8


def test_the_answer_says_which_way_a_cost_moves_only_where_that_is_shown(tmp_path: Path) -> None:
    def flat(form: str, parameters: float, tokens: float) -> float:
        return law(form, parameters, 1e6)

    runs = made_up(np.random.default_rng(5), 3, LADDER, flat, spread=0.3)
    loader = ExperimentDataLoader([write_ladder(tmp_path, runs)])
    answer = " ".join(str(block) for block in scaling_page(loader).blocks).replace("\n", " ").split("seeds)")[0]
    power = r"power \S+ \(95% CI \S+ to \S+\)"
    falls = rf"what a format costs falls with the size of the model, as its {power}, and "
    assert re.search(rf"{falls}is not shown to move with the text trained on: {power}\*\*", answer), answer


def test_answers_are_grey_from_ten_times_outside_and_refused_from_a_hundred(lawful: Findings) -> None:
    largest = 786_432
    assert asked(lawful, "NVFP4", largest, 1e6).kind == "inside"
    assert asked(lawful, "NVFP4", 9.9 * largest, 1e6).kind == "inside"
    assert asked(lawful, "NVFP4", 10.1 * largest, 1e6).kind == "guess"
    refused = asked(lawful, "NVFP4", 100 * largest, 1e6)
    assert refused.kind == "refused"
    assert math.isnan(refused.gap)
    assert asked(lawful, "NVFP4", 1e5, 512 * 640_000).kind == "refused"
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive numbers"):
            asked(lawful, "NVFP4", bad, 1e6)


def test_the_share_of_data_is_what_fp32_could_do_without(lawful: Findings) -> None:
    loss = lawful.loss
    assert loss is not None
    share = share_of_data(loss, 2e6, 0.03)
    at = Points(np.array(["FP32"] * 2), np.array([1e5] * 2), np.array([2e6, 2e6 * (1 - share)]))
    before, after = loss(at)
    assert after - before == pytest.approx(0.03)


def test_a_rate_is_extrapolated_along_a_line_of_logarithms() -> None:
    assert extrapolated_rate({32: 0.032, 64: 0.016, 128: 0.008}, 256) == 0.004
    assert extrapolated_rate({32: 0.016, 64: 0.016, 96: 0.016, 128: 0.008}, 192) == 0.008
    assert extrapolated_rate({64: 0.016}, 512) == 0.016


def test_fewer_than_three_arms_decide_nothing() -> None:
    seen = found(lambda *at: 0.2 * interval_coverage.law(*at), spread=0.1)
    assert outcome(seen).answer == "inconclusive"
    more = seen.recorded._replace(expected=dict.fromkeys(SETS, 999))
    assert outcome(dataclasses.replace(seen, recorded=more)).answer == "pending"


def test_the_registration_names_what_the_studies_cost() -> None:
    """Its table of costs, again from its milliseconds a step and the studies themselves."""
    text = (ROOT / REGISTRATION).read_text()
    per_step = {name: (int(own), int(other)) for name, own, other in re.findall(r"(\d+x\d) (\d+)/(\d+)", text)}
    held = [
        rung(form, size, steps, 0.01)
        for size in LADDER_HELD_OUT
        for steps in size.steps
        for form in forms_at(size, steps)
    ]
    checked = [rung(form, size, 1600, 0.01) for size in LADDER_HELD_OUT for form in ("FP32", "NVFP4")]
    runs = {
        "ladder-tuning": [(ARMS[arm], 4 * len(ARMS[arm].swept_rates)) for arm in STUDIES["ladder-tuning"].seeds],
        "ladder": [(ARMS[arm], len(seeds)) for arm, seeds in STUDIES["ladder"].seeds.items()],
        "ladder-held-out": [(arm, 8) for arm in held],
        "ladder-check": [(arm, 2 * 4) for arm in checked],
    }

    def hours(arm: Arm) -> float:
        model = arm.settings["model"]
        milliseconds = per_step[f"{model['dim']}x{model['layers']}"][arm.format != "FP32"]
        return float((arm.settings["max_steps"] + 65) * milliseconds / 3.6e6)

    totals = {study: (sum(n for _, n in own), sum(n * hours(arm) for arm, n in own)) for study, own in runs.items()}
    totals["together"] = (sum(n for n, _ in totals.values()), sum(each for _, each in totals.values()))
    for study, (n, cost) in totals.items():
        assert f"| {study} | {n} | {cost:.1f} |" in text
    assert totals["together"][1] < 24, "twelve hours of two cores"


def test_the_registration_stood_before_the_first_run() -> None:
    """At the commit that it names, word by word, but for that sentence and what changed afterwards."""
    text = (ROOT / REGISTRATION).read_text()
    title, sentence, rest = text.split("\n\n", 2)
    assert sentence.startswith("As it stands (but for this sentence and the last section) committed on ")
    then = before_the_runs(REGISTRATION, sentence, "ladder-tuning")
    registered, _ = f"{title}\n\n{rest}".split("## Changes after the first run")
    assert then.startswith(registered)


def test_a_sweep_has_a_best_rate_when_half_and_twice_of_it_are_recorded_on_all_seeds() -> None:
    def best(losses: dict[float, float], seeds: int = 4) -> list[float]:
        rows = pd.DataFrame({"rate": losses.keys(), "loss": losses.values()}).assign(size="64x2", form="FP32", n=seeds)
        return [*best_rates(rows).values()]
