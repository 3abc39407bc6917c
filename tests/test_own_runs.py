"""The pages of a site of anyone's runs: their figures against pandas and scipy, and what they must not say."""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.effects import figure_of, key_tests, measure_of, untold
from altgrad.analysis.labels import site_labels
from altgrad.analysis.statistics import holm, unpaired_difference
from altgrad.reports import tuning
from altgrad.reports.arms import arm_pages
from altgrad.reports.charts import forest
from altgrad.reports.own import curves_page, effects_page, health_page, overview_page, own_pages
from altgrad.runs import record
from altgrad.runs.sources import import_runs
from altgrad.site import Chart, ChartBlock, Page, Table
from altgrad.site.chart import chart_figure, fixed_svg
from altgrad.site.html import NARROW
from altgrad.site.render import Dialect, render

ROOT = Path(__file__).parents[1]
RATES, WIDTHS, SEEDS = (0.01, 0.1, 1.0), (32, 64), (11, 12, 13)
NAMES = "loss: accuracy\nmetrics:\n  accuracy: {names: [eval/acc], better: higher, unit: share}\nseed: rng_state\n"
NEVER = (
    r"nats|per character|paired gaps|without W&B|checkpoint\.every|\b0 steps|np\.\w+\(|not stated, |own-loop-\w+ has|"
    r"alidation loss|rounded weights|the reports|Studies|1 runs|\bnan\b|Pending|make campaign"
)
"""What pages of others' runs said of AltGrad's own."""


def logs(root: Path) -> pd.DataFrame:
    """Logs of eighteen runs whose accuracy falls on one side only at the last step; the last accuracy of each."""
    draw, ends = np.random.default_rng(0), []
    for lr in RATES:
        for width in WIDTHS:
            for seed in SEEDS:
                folder = root / f"lr{lr}-w{width}-{seed}"
                folder.mkdir(parents=True)
                config = {"lr": lr, "width": width, "rng_state": seed, "output_dir": folder.name}
                (folder / "config.json").write_text(json.dumps(config))
                curve = draw.uniform(0.6, 0.7, 3) + 0.01 * seed
                rows = [f"{step * 500},{2 - step},{value}" for step, value in enumerate(curve)]
                (folder / "metrics.csv").write_text("\n".join(["step,train_loss,eval/acc", *rows, "1070,-2,"]))
                ends.append({"lr": lr, "width": width, "seed": seed, "value": curve[-1]})
    return pd.DataFrame(ends)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentDataLoader, pd.DataFrame]:
    """A site of these logs, and what is in them."""
    folder = tmp_path_factory.mktemp("own")
    ends = logs(folder / "sweep")
    import_runs(folder / "sweep", folder / "site" / "runs")
    (folder / "site" / "altgrad.yaml").write_text(NAMES)
    return ExperimentDataLoader([folder / "site" / "runs"]), ends


def tables(page: Page) -> Iterator[Table]:
    return (block for block in page.blocks if isinstance(block, Table))


def charts(page: Page) -> list[Chart]:
    return [block.chart for block in page.blocks if isinstance(block, ChartBlock)]


def data(page: Page, name: str) -> pd.DataFrame:
    (found,) = (block.data for block in tables(page) if block.id == name)
    assert found is not None
    return found


def words(page: Page) -> str:
    """What a reader reads, but for the programs that made it."""
    text = render(page, Dialect(lambda reference: reference.path))
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", text).split()))


def interval(values: pd.Series) -> tuple[float, ...]:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(values.mean()), float(low), float(high)


def test_the_best_arm_is_the_one_of_the_highest_mean_with_its_interval(
    swept: tuple[ExperimentDataLoader, pd.DataFrame],
) -> None:
    loader, ends = swept
    page = overview_page(loader)
    found = data(page, "best")
    expected = (
        ends.groupby(["lr", "width"])["value"].apply(interval).sort_values(ascending=False, key=lambda x: x.str[0])
    )
    assert found[["mean", "low", "high"]].to_numpy() == pytest.approx(np.array(expected.tolist()))
    assert found["n"].tolist() == [3] * 6
    (lr, width), (mean, low, high) = expected.index[0], expected.iloc[0]
    said = f"has the highest accuracy, share: {mean:.4f}**, the mean of 3 seeds, 95% interval {low:.4f} to {high:.4f}"
    assert said in words(page)
    assert {f"width={width}", f"learning_rate={lr}"} <= {*re.split("[;,] ", found["label"].iloc[0])}
    varied = data(page, "varied").set_index("key")
    assert varied.at["width", "values"] == "32; 64"
    assert varied.at["optimizer.learning_rate", "values"] == "0.01; 0.1; 1.0"
    assert "output_dir" not in varied.index


def test_an_effect_is_the_mean_of_paired_differences_where_nothing_else_differs(
    swept: tuple[ExperimentDataLoader, pd.DataFrame],
) -> None:
    loader, ends = swept
    page = effects_page(loader)
    found = data(page, "effects").set_index(["key", "value"])
    for key, column, reference in (("width", "width", 32), ("optimizer.learning_rate", "lr", 0.01)):
        other = {"lr": "width", "width": "lr"}[column]
        wide = ends.pivot_table(index=[other, "seed"], columns=column, values="value")
        for value in wide.columns.drop(reference):
            row = found.loc[(key, str(value))]
            assert row["reference"] == str(reference)
            assert (row["difference"], row["low"], row["high"]) == pytest.approx(
                interval((wide[value] - wide[reference]).groupby(level=0).mean())
            ), "over the means of the settings"
            assert (row["n_pairs"], row["settings"]) == (len(wide), len(wide) // 3)
    assert len(found) == 3
    assert "One seed each" not in words(page)
    width, rate, both = charts(page)
    assert width.title == "width against 32: accuracy"
    assert rate.data is not None
    assert rate.data["difference"].tolist() == sorted(rate.data["difference"], reverse=True), "the best stands first"
    assert rate.data["difference"].tolist() == pytest.approx(
        sorted(found.loc["optimizer.learning_rate", "difference"], reverse=True)
    )
    expected = ends.groupby(["width", "lr"])["value"].mean()
    assert both.data is not None
    drawn = both.data.set_index([*both.data.columns[:2]])["accuracy"]
    for (width_, lr), mean in expected.items():
        assert drawn[str(width_), str(lr)] == pytest.approx(mean)
    for place in expected.groupby(level=1).idxmax():
        assert f"{expected[place]:.4g}" in both.description


SHIFTS = {("0.0", 16): -0.02, ("0.0", 128): -0.001, ("0.01", 16): 0.3, ("0.01", 128): 0.24}


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentDataLoader, pd.DataFrame, Path]:
    """Three solvers in four settings with three seeds, one of them always at another rate; and one run diverged."""
    folder, draw, ends = tmp_path_factory.mktemp("crossed"), np.random.default_rng(1), []
    for solver in ("a", "b", "c"):
        for (decay, batch), shift in SHIFTS.items():
            for seed in range(3):
                config = {"solver": solver, "decay": float(decay), "batch": batch, "seed": seed}
                place = folder / "logs" / f"{solver}-{decay}-{batch}-{seed}"
                place.mkdir(parents=True)
                (place / "config.json").write_text(json.dumps(config | {"rate": 0.1 if solver == "c" else 0.003}))
                end = 1 + shift * (solver == "b") + draw.normal(0, 0.0003)
                bad = (solver, decay, batch, seed) == ("c", "0.0", 16, 0)
                last = "50,nan,nan,60\n75,nan,nan,90" if bad else f"50,0.5,{end},60\n75,0.4,,90"
                (place / "metrics.csv").write_text(f"step,train_loss,val_loss,time\n25,9,6,30\n{last}\n")
                ends.append(config | {"value": np.nan if bad else end})
    import_runs(folder / "logs", folder / "site" / "runs")
    (folder / "site" / "altgrad.yaml").write_text("project: solvers\n")
    return ExperimentDataLoader([folder / "site" / "runs"]), pd.DataFrame(ends), folder


def test_an_effect_is_over_settings_and_says_where_they_disagree(
    crossed: tuple[ExperimentDataLoader, pd.DataFrame, Path],
) -> None:
    loader, ends, _ = crossed
    page = effects_page(loader)
    row = data(page, "effects").set_index(["key", "value"]).loc[("solver", "b")]
    wide = ends.pivot_table(index=["decay", "batch", "seed"], columns="solver", values="value")
    means = (wide["b"] - wide["a"]).groupby(level=[0, 1]).mean()
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(interval(means))
    assert (row["smallest"], row["largest"]) == pytest.approx((means.min(), means.max()))
    assert (row["n_pairs"], row["seeds"], row["settings"]) == (12, 3, 4)
    said = words(page)
    low, high = (
        f"{own.mean():+.4f} ({own.min():+.4f} to {own.max():+.4f} between settings)"
        for _, own in means.groupby(level=0)
    )
    assert (
        f"solver** matters, and by how much depends on decay: b against a is {high} with decay 0.01 and {low} "
        "with 0, in 12 pairs of runs: 4 settings, 3 seeds. **Settings disagree:** between them it goes from "
        f"{means.min():.4f} to +{means.max():.4f}."
    ) in said.replace("\N{MINUS SIGN}", "-")
    assert "spread differs" not in said


@pytest.fixture(scope="module")
def acting() -> pd.DataFrame:
    """Forty-eight runs: the optimizer matters at one rate alone, the width with one optimizer, shuffling never."""
    draw, rows = np.random.default_rng(2), []
    for optimizer, rate, width, shuffle, seed in product(
        ("adamw", "sgd"), (0.01, 0.1), (32, 64), (False, True), range(3)
    ):
        worse = 1.1 * (optimizer == "sgd") * (rate == 0.01) + 0.2 * (width == 64) * (-1 if optimizer == "sgd" else 1)
        value = 2 + worse + 0.05 * seed + draw.normal(0, 0.1)
        rows.append(
            {"optimizer": optimizer, "rate": rate, "width": width, "shuffle": shuffle, "seed": seed, "value": value}
        )
    return pd.DataFrame(rows)


def left(rows: pd.DataFrame, *terms: tuple[str, ...]) -> tuple[float, int]:
    """What least squares leave with these terms, each a column for each combination of values, and the degrees."""
    design = np.hstack(
        [pd.get_dummies(rows[[*term]].astype(str).agg("|".join, axis=1)).to_numpy(float) for term in terms]
    )
    fit = np.linalg.lstsq(design, rows["value"].to_numpy(), rcond=None)[0]
    return float(((rows["value"] - design @ fit) ** 2).sum()), len(rows) - int(np.linalg.matrix_rank(design))


ACTED = ["optimizer", "rate", "width", "shuffle"]


@pytest.mark.parametrize("missing", [[], [0, 7, 8, 9, 10, 11, 30]])
def test_whether_a_key_matters_is_what_f_tests_of_nested_designs_say(acting: pd.DataFrame, missing: list[int]) -> None:
    """Of a balanced sweep, and of one with fewer runs in some cells and none in another."""
    rows, p_values, shares = acting.drop(index=missing), [], []
    noise, mean = left(rows, tuple(ACTED), ("seed",)), left(rows, ("seed",))
    each = noise[0] / noise[1]

    def gain(more: tuple[float, int], less: tuple[float, int]) -> float:
        return more[0] - less[0] - (more[1] - less[1]) * each

    for key in ACTED:
        others = tuple(other for other in ACTED if other != key)
        without, alike = left(rows, others, ("seed",)), left(rows, others, (key,), ("seed",))
        for more, less in ((without, alike), (alike, noise)):
            df = more[1] - less[1]
            p_values.append(stats.f.sf((more[0] - less[0]) / df / each, df, noise[1]))
        shares.append(gain(without, noise) / gain(mean, noise))
    found = key_tests(rows, rows[ACTED], ACTED, ACTED)
    assert [p for key in ACTED for p in (found[key].mean, found[key].between)] == pytest.approx(
        holm(p_values), rel=1e-6
    )
    assert [found[key].share for key in ACTED] == pytest.approx([max(0.0, share) for share in shares])
    verdicts = {key: (found[key].verdict, found[key].depends) for key in ACTED}
    assert verdicts == {
        "optimizer": ("depends", "rate"),
        "rate": ("depends", "optimizer"),
        "width": ("depends", "optimizer"),
        "shuffle": ("not shown", None),
    }


def test_sweeps_without_any_effect_seldom_have_a_key_that_matters(acting: pd.DataFrame) -> None:
    draw, keys = np.random.default_rng(0), ACTED[:3]
    rows = acting[~acting["shuffle"]]
    wrong = 0
    for _ in range(200):
        made = rows.assign(value=draw.normal(size=len(rows)) + rows["seed"])
        wrong += any(each.verdict != "not shown" for each in key_tests(made, rows[keys], keys, ()).values())
    assert 4 <= wrong <= 17, "5% of sweeps, not of keys"


def test_a_key_that_matters_only_together_with_another_stands_above_one_that_never_does(
    acting: pd.DataFrame, tmp_path: Path
) -> None:
    acting = acting[acting["seed"] < 2]
    for row in acting.to_dict("records"):
        config = {key: row[key] for key in ACTED}
        with record(tmp_path, name="run", config=config, seed=row["seed"], data="digits") as run:
            run.log(1, val_loss=row["value"])
            run.finish()
    loader = ExperimentDataLoader([tmp_path])
    page = effects_page(loader)
    found, said = data(page, "tests").set_index("key"), words(page).replace("\N{MINUS SIGN}", "-")
    assert [*found.index] == ["rate", "optimizer", "width", "shuffle"]
    assert data(overview_page(loader), "varied")["key"].tolist() == [*found.index]
    means = acting.pivot_table(index="rate", columns="optimizer", values="value")
    for rate, value in (means["sgd"] - means["adamw"]).items():
        assert f"{value:+.4f} (" in said
        assert f" between settings) with {'rate ' * (rate == 0.01)}{rate}" in said
    assert "optimizer** matters, and by how much depends on rate: sgd against adamw is +" in said
    assert "width** matters, and by how much depends on optimizer: 64 against 32 is +" in said
    assert "shuffle** is not shown to matter: true against false is " in said
    assert "Settings disagree" not in said, "with two seeds no setting alone shows anything"
    own = data(page, "settings")
    assert len(own) == 4 * 8
    row = own[(own["key"] == "shuffle") & (own["setting"] == "optimizer=sgd, rate=0.01, width=64")].iloc[0]
    wide = acting.query("optimizer == 'sgd' and rate == 0.01 and width == 64").pivot_table(
        index="seed", columns="shuffle", values="value"
    )
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(interval(wide[True] - wide[False]))


def test_where_a_difference_depends_on_another_key_each_is_shown_with_its_interval_and_uneven_spreads_are_told(
    tmp_path: Path,
) -> None:
    draw, rows = np.random.default_rng(5), []
    for rule, rate, seed in product(("adamw", "sgd"), (0.01, 0.1), range(5)):
        worse = 1.0 if (rule, rate) == ("sgd", 0.01) else 0.1 * (rule == "sgd")
        value = 2 + worse + draw.normal(0, 0.2 if worse == 1.0 else 0.002)
        rows.append({"rule": rule, "rate": rate, "seed": seed, "value": value})
        with record(tmp_path, name="n", config={"rule": rule, "rate": rate}, seed=seed) as run:
            run.log(0, val_loss=value)
            run.finish()
    said = words(effects_page(ExperimentDataLoader([tmp_path]))).replace("\N{MINUS SIGN}", "-")
    wide = pd.DataFrame(rows).pivot_table(index=["rate", "seed"], columns="rule", values="value")
    for rate, own in (wide["sgd"] - wide["adamw"]).groupby(level=0):
        mean, low, high = interval(own)
        assert f"{mean:+.4f} (95% interval [{low:+.4f}, {high:+.4f}]) with {'rate ' * (rate == 0.01)}{rate}" in said
    arms = pd.DataFrame(rows).groupby(["rule", "rate"])["value"]
    p = stats.levene(*(own.to_numpy() for _, own in arms)).pvalue
    assert p < 0.01
    assert f"spread differs between arms** (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, Brown-Forsythe test)" in said
    assert f"goes from {arms.std().min():.4f} of" in said
    assert f"to {arms.std().max():.4f} of" in said


def test_a_run_that_ended_in_nan_has_failed_and_is_said_wherever_it_would_count(
    crossed: tuple[ExperimentDataLoader, pd.DataFrame, Path],
) -> None:
    loader, ends, _ = crossed
    (record_,) = (each for each in loader.records.values() if each.status == "failed")
    assert record_.run["failure"]["step"] == 50
    assert data(overview_page(loader), "best")["n"].tolist().count(2) == 1, "it is no seed of its arm"
    effect = data(effects_page(loader), "effects").set_index("key").loc["decay"]
    wide = ends.pivot_table(index=["solver", "batch", "seed"], columns="decay", values="value").dropna()
    means = (wide[0.01] - wide[0.0]).groupby(level=[0, 1]).mean()
    assert (effect["difference"], effect["n_pairs"]) == (pytest.approx(means.mean()), 17)
    for page in (overview_page(loader), effects_page(loader)):
        assert "36 recorded runs (35 with the ending not recorded, 1 failed)" in words(page)
        assert f"1 run has no result here: 1 failed ([{record_.id}]" in words(page)
    (of_arm,) = (page for page in arm_pages(loader) if page.path == f"runs/{record_.arm}")
    assert "train_loss is NaN or infinite from step 50 to its last value" in words(of_arm)
    assert "One line per run: from step 50 on, 1 of the 3 runs has no finite value" in words(of_arm)
    assert "1 of 3 stop at step 50" in "".join(fixed_svg(chart).decode() for chart in charts(curves_page(loader)))
    assert data(overview_page(loader), "best")["counted"].tolist().count("2 of 3, 1 failed") == 1
    assert "time" not in {chart.title for chart in charts(curves_page(loader))}, "a clock is no metric"


def test_a_value_that_always_goes_with_another_key_is_said_and_what_to_do(
    crossed: tuple[ExperimentDataLoader, pd.DataFrame, Path], tmp_path: Path
) -> None:
    loader, _, folder = crossed
    for page in (overview_page(loader), effects_page(loader)):
        assert (
            "solver** c: always run with rate 0.1, and no other solver was, so what each did alone is not known. "
            "To compare what goes together as one, name the keys that make an arm in `altgrad.yaml`: "
            "arms: [solver, batch, decay] ."
        ) in words(page)
    site = tmp_path / "site"
    shutil.copytree(folder / "site" / "runs", site / "runs")
    (site / "altgrad.yaml").write_text("project: solvers\narms: [solver, batch, decay]\n")
    page = effects_page(ExperimentDataLoader([site / "runs"]))
    assert ("solver", "c") in data(page, "effects").set_index(["key", "value"]).index
    assert "alone is not known" not in words(page)


def test_a_setting_is_one_key_whatever_its_value_and_runs_may_be_compared_by_what_only_summaries_have(
    tmp_path: Path,
) -> None:
    """Long values that begin alike are different ones."""
    for optim, loss in (("adamw", 1.0), ("sgd", 1.5), (long := "x" * 80) and (f"{long}1", 2.0), (f"{long}2", 3.0)):
        with record(tmp_path, name="run", config={"optim": optim}, seed=0, data="digits") as run:
            run.log(1, loss=9.0)
            run.finish({"val/loss": loss, "seconds": 7})
    loader = ExperimentDataLoader([tmp_path])
    found = data(effects_page(loader), "effects")
    assert set(found["key"]) == {"optim"}
    assert set(loader.memo(site_labels).values()) >= {"run; optim=adamw", "run; optim=sgd"}
    assert dict(zip(found["value"], found["difference"], strict=True)) == {"sgd": 0.5, f"{long}1": 1.0, f"{long}2": 2.0}
    assert "has the lowest val_loss: 1.0000" in words(overview_page(loader))
    (runs,) = (table for table in tables(arm_pages(loader)[1]) if table.caption == "1 run")
    assert [column.title for column in runs.columns if "val" in str(column.title)] == ["val_loss"]


@pytest.mark.parametrize("number", [10**400, -(10**400), 3])
def test_a_figure_that_no_float_holds_is_infinite(number: int) -> None:
    assert figure_of(number) == (3 if number == 3 else math.copysign(math.inf, 1 if number > 0 else -1))


def test_a_setting_called_as_a_part_of_a_page_is_not_taken_for_it() -> None:
    """The heading of a setting named layers has the id of the place that a script fills, which is a div."""
    for path in (ROOT / "docs/stylesheets/altgrad.css", ROOT / "docs/javascripts/curves.js"):
        assert set(re.findall(r"(\w*)#(?:layers|difference)\b", path.read_text())) == {"div"}, path


def test_one_seed_each_has_no_interval_and_says_so(tmp_path: Path) -> None:
    for width, loss in ((1, 2.0), (2, 1.5), (4, 3.0)):
        with record(tmp_path, name=f"w{width}", config={"width": width}, seed=0, data="digits") as run:
            run.log(0, loss=9.0)
            run.log(10, loss=loss)
            run.finish()
    page = effects_page(ExperimentDataLoader([tmp_path]))
    found = data(page, "effects").set_index("value")["difference"]
    assert found.to_dict() == {"2": -0.5, "4": 1.0}
    assert data(page, "effects")["low"].isna().all()
    assert "One seed each: there is no interval" in words(page)
    assert "width**: 4 against 1, +1.0000 in one pair of runs" in words(page)


def test_a_setting_without_two_seeds_in_common_has_the_interval_of_means_and_says_how_many(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(4), []
    cells = {
        (1, 0): (0, 1, 2),
        (2, 0): (0, 1, 2),
        (1, 1): (0, 1, 2),
        (2, 1): (2, 3, 4, 5),
        (1, 2): (0, 1),
        (2, 2): (1,),
    }
    for (width, depth), seeds in cells.items():
        for seed in seeds:
            rows.append((width, depth, seed, float(draw.normal(width, 0.1))))
            with record(tmp_path, name="run", config={"width": width, "depth": depth}, seed=seed, data="d") as run:
                run.log(1, val_loss=rows[-1][-1])
                run.finish()
    page = effects_page(ExperimentDataLoader([tmp_path]))
    found = data(page, "settings").query("key == 'width'").set_index("setting")
    assert found["counted"].tolist() == ["3", "4 and 3, not paired", "one seed each"]
    ends = pd.DataFrame(rows, columns=["width", "depth", "seed", "value"]).set_index(["width", "depth"])["value"]
    expected = stats.ttest_ind(ends[2, 1], ends[1, 1], equal_var=False)
    row, welch = found.loc["depth=1"], expected.confidence_interval()
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (ends[2, 1].mean() - ends[1, 1].mean(), welch.low, welch.high)
    )
    assert unpaired_difference(ends[2, 1].to_numpy(), ends[1, 1].to_numpy()).p_value == pytest.approx(expected.pvalue)
    assert math.isnan(found.at["depth=2", "low"])
    assert found.at["depth=2", "difference"] == pytest.approx(ends[2, 2] - ends[1, 2].iloc[1])
    said = words(page)
    assert "in 4 pairs of runs and 7 runs that are not paired: 3 settings, 6 seeds." in said
    assert "with Welch's interval" in said


def test_a_cell_of_two_keys_is_over_the_same_settings_of_the_others_in_every_cell(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(3), []
    for one, two, other, seed in product((0, 1), (0, 1, 2), (0, 1, 2), range(2)):
        if (one, two, other) in {(1, 2, 0), (1, 2, 2), (0, 0, 1)}:
            continue
        config = {"one": one, "two": two, "other": other}
        rows.append(config | {"value": 9.0 * other + one * two + float(draw.normal(0, 0.01))})
        with record(tmp_path, name="run", config=config, seed=seed, data="d") as run:
            run.log(1, val_loss=rows[-1]["value"])
            run.finish()
    page = effects_page(ExperimentDataLoader([tmp_path]))
    (chart,) = (each for each in charts(page) if each.id == "interaction")
    ends = pd.DataFrame(rows)
    expected = ends[ends["other"] != 1].groupby(["one", "two"])["value"].mean()
    assert chart.data is not None
    drawn = chart.data.set_index(["one", "two"])["val_loss"]
    assert {(int(one), int(two)): value for (one, two), value in drawn.items()} == pytest.approx(expected.to_dict())
    assert chart.title == "val_loss by one (rows) and two (columns), mean over 2 settings"
    said = words(page)
    assert "over the same 2 settings of the other keys in every cell; each setting counts once." in said
    assert "not run in all of these settings. One such pair was run elsewhere" in said


def test_settings_in_folders_of_their_own_are_compared_in_the_one_project_that_the_site_says(tmp_path: Path) -> None:
    """And the key of the largest difference is the first; what a test set said comes before the training loss."""
    losses = {(lr, width): lr + width / 100 for lr in (0.1, 0.5) for width in (1, 2)}
    for (lr, width), loss in losses.items():
        for seed in (0, 1):
            folder = tmp_path / "logs" / f"lr{lr}-w{width}" / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"lr": lr, "width": width, "seed": seed}))
            rows = f"step,train_loss,test_loss\n0,9,9\n1,0,{loss + seed}\n"
            (folder / "metrics.csv").write_text(rows)
    import_runs(tmp_path / "logs", tmp_path / "site" / "runs")
    apart = overview_page(ExperimentDataLoader([tmp_path / "site" / "runs"]))
    assert "Projects are not compared with each other" in words(apart)
    assert len(data(apart, "best")) == 4
    (tmp_path / "site" / "altgrad.yaml").write_text("project: sweep\n")
    loader = ExperimentDataLoader([tmp_path / "site" / "runs"])
    page = effects_page(loader)
    found = data(page, "effects").set_index("key")
    assert found["difference"].to_dict() == pytest.approx({"optimizer.learning_rate": 0.4, "width": 0.01})
    said = words(page)
    assert (
        0 < said.index("optimizer.learning_rate**: 0.5 is worse than 0.1, +0.4000") < said.index("width**: 2 is worse")
    )
    overview = overview_page(loader)
    assert data(overview, "varied")["key"].tolist() == ["optimizer.learning_rate", "width"]
    assert "has the lowest test_loss: 0.6100" in words(overview)


def test_every_metric_has_a_curve_of_the_means_over_the_seeds(
    swept: tuple[ExperimentDataLoader, pd.DataFrame],
) -> None:
    loader, ends = swept
    page = curves_page(loader)
    first, second = charts(page)
    assert (first.title, second.title) == ("accuracy", "loss")
    assert first.data is not None
    last = first.data[first.data["step"] == 1000]
    assert sorted(last["mean"]) == pytest.approx(sorted(ends.groupby(["lr", "width"])["value"].mean()))
    assert (last["n"] == 3).all()
    pages = arm_pages(loader)
    (table,) = (json.loads(file.content) for file in pages[0].downloads if file.name == "table.json")
    assert [*table["keys"]] == ["width"], "what was swept is a column, but for what has one anyway"
    assert sorted(table["keys"]["width"]) == ["32"] * 3 + ["64"] * 3
    assert {"Learning rate", "width"} <= {getattr(column, "title", column) for column in next(tables(pages[0])).columns}
    for arm_page in pages[1:-1]:
        (curve,) = [chart for chart in charts(arm_page) if chart.id == "loss"]
        assert curve.title == "accuracy by step"
        files = {each.name: each.content for each in arm_page.downloads}
        arm = json.loads(files["curves.json"])
        assert arm["metric"] == {
            "name": "accuracy",
            "title": "accuracy",
            "unit": "share",
            "better": "higher",
            "digits": 4,
        }
        assert arm["metrics"] == [["accuracy", "accuracy"], ["loss", "loss"]], "the one that the page opens with first"
        assert [run["loss"][-1] for run in arm["runs"]] == [-2.0] * 3
        assert arm["final"] == pytest.approx([run["accuracy"][2] for run in arm["runs"]], rel=1e-6)


def test_how_runs_ended_is_not_said_where_their_log_does_not_say_it(
    swept: tuple[ExperimentDataLoader, pd.DataFrame],
) -> None:
    loader, _ = swept
    index, *pages, _ = arm_pages(loader)
    for page in (*own_pages(loader), index):
        assert "18 recorded runs (how they ended is not recorded)" in words(page)
        assert not re.search(r"\d (of \d )?finished", words(page))
    assert data(index, "arms")["finished"].isna().all()
    for page in pages:
        assert "Runs: 3 with the ending not recorded." in words(page)
    (table,) = (json.loads(file.content) for file in index.downloads if file.name == "table.json")
    assert (table["runs"]["status"]["words"], table["arms"]["finished"]) == (["not recorded"], [None] * 6)


def test_what_a_chart_of_effects_says_leaves_the_figures_to_the_table(
    swept: tuple[ExperimentDataLoader, pd.DataFrame],
) -> None:
    width, rate, *_ = charts(effects_page(swept[0]))
    assert rate.description.startswith("2 differences, each with its interval; the rows of optimizer.learning_rate")
    assert not re.search(r"\d\.\d", rate.description + width.description)
    axes = [set(re.findall(r">([−\d.]+)</text>", fixed_svg(chart).decode())) for chart in (width, rate)]
    assert axes[0] == axes[1], "one axis for all keys"
    assert width.width * 72 < NARROW, "a telephone shows it whole"


@pytest.mark.parametrize("ends", [(-0.0021, 0.0009), (-0.000124, 0.000071), (-12000.0, 25000.0), (-3e-7, 5e-8), (0, 1)])
def test_numbers_on_a_narrow_axis_neither_touch_nor_are_cut(ends: tuple[float, float]) -> None:
    rows = pd.DataFrame({"difference": [ends[0]], "low": [ends[0]], "high": [ends[1]], "n_pairs": [3]})
    figure = chart_figure(forest("chart", "", "", rows, ["long_name" * 4], "axis", ends=ends))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert 2 <= len(boxes) <= 7
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1


@pytest.mark.parametrize(("second", "said"), [(0.30, True), (0.60, False)])
def test_the_best_of_arms_within_noise_is_not_said_to_be_shown(tmp_path: Path, second: float, said: bool) -> None:
    """The best has one run: the other's interval alone can hold it."""
    for lr, ends in ((0.1, [0.25]), (0.2, [second - 0.05, second, second + 0.05])):
        for seed, end in enumerate(ends):
            with record(tmp_path, name="n", config={"lr": lr}, seed=seed) as run:
                run.log(0, val_loss=end)
                run.finish()
    text = words(overview_page(ExperimentDataLoader([tmp_path])))
    assert "0.2500**, of one run: how much of it is chance is not known." in text
    assert ("That it is the best is not shown: so few seeds cannot tell it from 1 other arm," in text) == said


@pytest.mark.parametrize(("seeds", "near"), [(2, 1), (3, 1)])
def test_noise_is_that_of_runs_of_the_same_seed(tmp_path: Path, seeds: int, near: int) -> None:
    """The seeds differ by more than the arms do; two arms are 0.1 worse, one is 0.001 worse."""
    noise = iter([0.001, -0.001, 0.002, -0.002, 0.001, 0.003, -0.003, 0.002, 0.001, -0.001, 0.002, 0.0])
    for depth, end in ((1, 1.0), (2, 1.1), (3, 1.1), (4, 1.001)):
        for seed in range(seeds):
            with record(tmp_path, name="n", config={"depth": depth}, seed=seed) as run:
                run.log(0, val_loss=end + seed + next(noise))
                run.finish()
    told = words(overview_page(ExperimentDataLoader([tmp_path])))
    assert f"so few seeds cannot tell it from {near} other arm," in told


def test_no_two_names_beside_the_lines_of_a_chart_read_the_same(tmp_path: Path) -> None:
    """They differ behind the place where a line of a name ends."""
    begins = "the_same_long_beginning_of_a_value_" * 2
    for end in ("one", "two"):
        with record(tmp_path, name="n", config={"alpha": begins[:50] + end, "beta": 0.1 * len(end)}, seed=0) as run:
            for step in range(3):
                run.log(step, val_loss=1.0)
            run.finish()
    loader = ExperimentDataLoader([tmp_path])
    (chart,) = charts(curves_page(loader))
    text = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", fixed_svg(chart).decode()))
    for label in loader.memo(site_labels).values():
        assert label.replace(" ", "") in text.replace(" ", "")


def test_a_run_without_the_site_s_metric_opens_with_its_loss_else_its_first(tmp_path: Path) -> None:
    for name, metric in (("a", "val_loss"), ("b", "train_loss"), ("c", "score")):
        with record(tmp_path, name=name, config={"x": name}, seed=0, data="digits") as run:
            for step in range(3):
                run.log(step, **{metric: float(step), "grad_norm": 1.0})
            run.finish()
    loader = ExperimentDataLoader([tmp_path])
    found = {loader.title(arm): measure_of(loader, arm) for arm in loader.runs["arm"]}
    assert {name: each and each.name for name, each in found.items()} == {"a": "val_loss", "b": "loss", "c": "score"}
    titles = {chart.title for page in arm_pages(loader) for chart in charts(page)}
    assert titles == {"val_loss by step", "loss by step", "score by step"}


@pytest.mark.parametrize(("ends", "digits"), [((1e-6, 3e-6), 9), ((4e5, 7e5), 0), ((0.5, 0.7), 4)])
def test_figures_have_as_many_digits_as_their_size_asks_for(
    tmp_path: Path, ends: tuple[float, float], digits: int
) -> None:
    for place, end in enumerate(ends):
        with record(tmp_path, name=f"r{place}", config={"x": place}, seed=0, data="digits") as run:
            run.log(1, loss=end)
            run.finish()
    loader = ExperimentDataLoader([tmp_path])
    measure = measure_of(loader)
    assert measure is not None
    assert measure.digits == digits
    assert f"{ends[0]:.{digits}f}" in words(overview_page(loader))


def test_of_runs_that_state_different_keys_what_is_stated_is_said(tmp_path: Path) -> None:
    for name, config in (("one", {"model": "mamba", "width": 8}), ("two", {"lr": 0.1}), ("three", {"note": "x"})):
        with record(tmp_path, name=name, config=config, seed=0) as run:
            run.log(0, loss=1.0)
            run.finish()
    loader = ExperimentDataLoader([tmp_path])
    assert sorted(site_labels(loader).values()) == ["one; model=mamba", "three; note=x", "two; learning_rate=0.1"]
    assert "not stated: always run with" not in words(overview_page(loader))
    assert data(overview_page(loader), "varied")["values"].str.endswith("; not stated").all()
    effects = render(effects_page(loader), Dialect(lambda reference: reference.path))
    assert "\n## What is not known\n" in effects, "a heading"


def test_an_arm_that_states_no_varied_key_is_called_so(tmp_path: Path) -> None:
    """A baseline, say, whose seeds have names of their own."""
    for name, lr in (("plain", None), ("slow", 1), ("fast", 2)):
        for seed in (0, 1):
            rates = {"common": 1} if lr is None else {"common": 1, "alpha": lr}
            with record(tmp_path, name=f"{name}{seed}", config=rates, seed=seed) as run:
                run.log(0, loss=1.0)
                run.log(1, loss=0.5)
                run.finish()
    loader = ExperimentDataLoader([tmp_path])
    assert sorted(site_labels(loader).values()) == ["alpha=1", "alpha=2", "no alpha"]


def test_a_name_of_spaces_is_none(tmp_path: Path) -> None:
    with record(tmp_path, name="run", config={"lr": 1}, seed=0) as run:
        for step in (0, 1):
            run.log(step, loss=1.0)
        run.finish()
    path = next(tmp_path.glob("*/run.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"title": " \u3000 "}))
    loader = ExperimentDataLoader([tmp_path])
    assert [*site_labels(loader).values()] == [path.parent.name]
    assert own_pages(loader), "pages are made"


def test_what_states_neither_of_two_keys_is_said_not_to_be_compared(tmp_path: Path) -> None:
    """Where the other keys' values are in comparisons already, nothing else would tell of it."""
    for number, (alpha, beta) in enumerate([(1, 5), (2, 5), (1, 6), (None, None)]):
        given = {"common": 1} | ({} if alpha is None else {"alpha": alpha, "beta": beta})
        with record(tmp_path, name=f"r{number}", config=given, seed=0) as run:
            run.log(0, loss=1.0 + number)
            run.finish()
    (found,) = untold(ExperimentDataLoader([tmp_path]))
    assert (found.value, found.runs, found.always) == ("not stated", 1, {"beta": ["not stated"]})


def test_a_run_that_never_logged_a_step_says_so_in_words(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), record(tmp_path, name="loop", config={"lr": 1}, seed=0):
        raise RuntimeError("at once")
    with record(tmp_path, name="loop", config={"lr": 2}, seed=0) as run:
        run.log(0, loss=1.0)
        run.log_layers([(0, "a.up", "mlp", "weight", "amax", 0.25)])
        run.finish()
    loader = ExperimentDataLoader([tmp_path])
    index, crashed, one = (words(page) for page in arm_pages(loader)[:3])
    assert "−1" not in crashed + one + index
    assert "No step was logged. Runs: 1 crashed" in crashed
    assert "Failed, before a step was recorded" in crashed
    assert "One look, at step 0;" in one


def test_health_is_there_where_layers_were_recorded(tmp_path: Path) -> None:
    config = {"quantize": {"weight": "e4m3", "activation": "e4m3", "grad_output": "e4m3"}}
    rows = [(10, "a.up", "mlp", "weight", "underflow", 0.25), (10, "b.up", "mlp", "weight", "underflow", 0.75)]
    for name, layers in (("bare", []), ("told", rows)):
        assert health_page(ExperimentDataLoader([tmp_path])) is None
        with record(tmp_path, name=name, config=config, seed=0, data="digits") as run:
            run.log(10, loss=1.0)
            run.log_layers(layers)
            run.finish()
    with record(tmp_path, name="wide", config={}, seed=0, data="digits") as run:
        run.log(10, loss=1.0)
        run.log_layers([(10, "a.up", "mlp", "gradient", "norm_l2", 1.0)])
        run.finish()
    page = health_page(ExperimentDataLoader([tmp_path]))
    assert page is not None
    assert data(page, "health")["underflow"].tolist() == [0.5]
    assert "2 of 3 arms recorded statistics" in words(page)
    assert "Of 1 of them the table has no row" in words(page)
    assert "Most underflow: 50%" in words(page)


def test_a_site_of_many_arms_has_pages_of_the_best_and_says_where_the_others_are(
    swept: tuple[ExperimentDataLoader, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ends = swept
    loader = ExperimentDataLoader(swept[0]._sources)
    monkeypatch.setattr(tuning, "MOST_PAGES", 2)
    loader.__dict__["run_set"] = replace(swept[0].run_set)
    index, *pages, _ = arm_pages(loader)
    best = ends.groupby(["lr", "width"])["value"].mean().nlargest(2).index
    assert {(str(lr), str(width)) for lr, width in best} == {
        (config["optimizer.learning_rate"], config["width"])
        for page in pages
        for config in [json.loads(page.downloads[0].content)["config"]]
    }
    assert "The 4 others are in the searchable table alone" in words(index)
    table = json.loads(index.downloads[0].content)["arms"]
    assert len(table["arm"]) == 6
    assert [code is None for code in table["study_page"]["codes"]].count(True) == 2
    assert table["study_page"]["words"] == ["index"]


def test_pages_of_others_runs_say_what_holds_for_them(
    swept: tuple[ExperimentDataLoader, pd.DataFrame], tmp_path: Path
) -> None:
    """With seeds, without, with a failure and without a config."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "one.csv").write_text("epoch,accuracy\n0,0.5\n1,0.7\n")
    import_runs(tmp_path / "bare", tmp_path / "runs")
    with contextlib.suppress(KeyError), record(tmp_path / "runs", name="stopped", config={"lr": 1}, seed=0) as run:
        run.log(1, loss=1.0)
        raise KeyError("stopped")
    for loader in (swept[0], ExperimentDataLoader([tmp_path / "runs"])):
        for page in [*own_pages(loader), *arm_pages(loader)]:
            said = re.search(f".{{0,60}}(?:{NEVER}).{{0,60}}", words(page))
            assert said is None, f"{page.path}: {said and said[0]}"
    of_one = next(page for page in arm_pages(loader) if page.title == "one")
    assert "Records:** 1 run of this arm" in words(of_one)
    assert "1,070" not in words(of_one)
