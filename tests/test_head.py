"""What the page on the gradient of the logits says, again from the Parquet files by pandas and scipy."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from registered import ROOT, before_the_runs
from scipy import stats

from altgrad.analysis import ExperimentDataLoader
from altgrad.reports.document import campaign
from altgrad.site.document import NotRecorded

STUDY = ROOT / "experiments" / "recorded" / "head"
COSTLY = {
    "E0M7": ("e0m7", "amax"),
    "MXFP4 (scales up)": ("e2m1", "mx_rceil"),
    "NVFP4": ("e2m1", "nvfp4"),
    "E7M0": ("e7m0", "amax"),
}
ALL = {"attention", "mlp", "embedding", "head"}


@pytest.fixture(scope="module")
def losses() -> pd.Series:
    """Final validation loss by element format, kind of scale, rounding of the logits' gradient and seed."""
    rows = {}
    for part in sorted(STUDY.glob("part-*")):
        history = pd.read_parquet(part / "history.parquet", columns=["run_id", "final_val_loss"]).dropna()
        final = history.set_index("run_id")["final_val_loss"]
        for row in pd.read_parquet(part / "runs.parquet").to_dict("records"):
            config = json.loads(row["run"])["config"]
            quantize, scaling = config["quantize"], config.get("scaling", {})
            own = (quantize.get("grad_output_rounding") or {}).get("head") or "nearest"
            fmt = quantize["weight"]
            key = (fmt, scaling.get("kind", "amax") if fmt != "fp32" else "", own if fmt != "fp32" else "")
            rows[*key, config["seed"]] = final[row["run_id"]]
    if len(rows) < 656:
        pytest.skip("the study is not recorded in full")
    return pd.Series(rows).sort_index()


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "reports" / "head.md").read_text().replace("\u2212", "-")


@pytest.mark.parametrize(
    ("title", "study", "first", "last"),
    [("Second registration", "head", 21, 27), ("Third registration", "controls-tuning", 28, 37)],
)
def test_the_predictions_were_committed_before_the_first_run(title: str, study: str, first: int, last: int) -> None:
    """Of the commit that the document names: its date, and that the hypotheses stand there word by word."""
    text = (ROOT / "docs" / "method" / "preregistration.md").read_text()
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    before = before_the_runs("docs/method/preregistration.md", section, study)
    rows = re.findall(r"^\| H[0-9]+ .*$", section, re.MULTILINE)
    assert [row.split()[1] for row in rows] == [f"H{number}" for number in range(first, last + 1)]
    assert all(row in before for row in rows)


def difference(losses: pd.Series, fmt: str, kind: str, how: str, against: str) -> pd.Series:
    return (losses[fmt, kind, how] - losses[fmt, kind, against]).dropna()


def test_the_answer_is_that_of_the_raw_records(losses: pd.Series, page: str) -> None:
    costs = {name: difference(losses, *key, "nearest", "wide") for name, key in COSTLY.items()}
    extra = {name: difference(losses, *key, "stochastic", "wide") for name, key in COSTLY.items()}
    assert {len(each) for each in (*costs.values(), *extra.values())} == {16}
    lead = re.search(
        r"\*\*With everything quantized, rounding this one tensor to nearest costs (.*?)\*\*", page, re.DOTALL
    )
    assert lead is not None
    for name, values in costs.items():
        mean, low, high = ends(values)
        assert f"{name} {mean:.2f} ({low:.2f} to {high:.2f})" in lead.group(1)


def test_each_gap_is_the_mean_difference_to_fp32_with_its_interval(losses: pd.Series, page: str) -> None:
    table = pd.read_csv(ROOT / "reports" / "head.gaps-table.csv")
    assert len(table) == 40
    base = losses["fp32", "", ""]
    for fmt, kind in COSTLY.values():
        for how in ("nearest", "stochastic", "diffused", "wide"):
            gap = (losses[fmt, kind, how] - base).dropna()
            low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
            near = table[(table["difference"] - gap.mean()).abs() < 1e-9]
            assert len(near) == 1
            assert near[["low", "high"]].to_numpy()[0] == pytest.approx([low, high], abs=1e-9)


def test_the_predictions_are_answered_by_their_pass_marks(losses: pd.Series) -> None:
    verdicts = pd.read_csv(ROOT / "reports" / "head.predictions.csv").set_index("id")["answer"]

    def interval(values: pd.Series) -> tuple[float, float]:
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        return float(low), float(high)

    extra = [difference(losses, *key, "stochastic", "wide") for key in COSTLY.values()]
    below = all(interval(values)[1] < 0.04 for values in extra)
    above = any(interval(values)[0] > 0.04 for values in extra)
    assert verdicts["H22"] == ("yes" if below else "no" if above else "inconclusive")
    cost = [difference(losses, *key, "nearest", "wide") for key in COSTLY.values()]
    if all(interval(values)[0] > 0.1 for values in cost):  # far beyond any adjustment
        assert verdicts["H21"] == "yes"

    def tost(values: pd.Series, margin: float) -> float:
        low = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        return max(float(low), float(stats.ttest_1samp(values, margin, alternative="less").pvalue))

    keys = [*COSTLY.values(), ("e2m5", "amax")]
    apart = [difference(losses, *key, "diffused", "stochastic") for key in keys]
    alike = all(tost(values, 0.015) < 0.05 for values in apart)
    beyond = any(interval(values)[0] > 0.015 or interval(values)[1] < -0.015 for values in apart)
    assert verdicts["H23"] == ("yes" if alike else "no" if beyond else "inconclusive")


def test_the_means_of_the_logits_are_those_of_the_last_looks(losses: pd.Series) -> None:
    arms: dict[str, tuple[str, str, str]] = {}
    looks = []
    for part in sorted(STUDY.glob("part-*")):
        layers = pd.read_parquet(part / "layers.parquet", columns=["run_id", "step", "statistic", "value"])
        looks.append(layers[layers["statistic"].eq("logits_mean") & layers["step"].eq(300)])
        for row in pd.read_parquet(part / "runs.parquet").to_dict("records"):
            config = json.loads(row["run"])["config"]
            own = (config["quantize"].get("grad_output_rounding") or {}).get("head") or "nearest"
            arms[row["run_id"]] = (config["quantize"]["weight"], config.get("scaling", {}).get("kind", "amax"), own)
    found = (
        pd.concat(looks)
        .assign(arm=lambda frame: frame["run_id"].map(arms))
        .groupby("arm")["value"]
        .agg(["mean", "size"])
    )
    outcomes = pd.read_csv(ROOT / "reports" / "head.predictions.csv").set_index("id")["outcome"]
    shown = re.fullmatch(r"means of the logits (.+)", outcomes["H27"])
    assert shown is not None
    wanted = [("e7m0", "amax"), ("e2m1", "nvfp4")]
    rows = [found.loc[[(*arm, how)]].iloc[0] for arm in wanted for how in ("nearest", "stochastic")]
    assert {int(row["size"]) for row in rows} == {16}
    assert shown[1].replace("\u2212", "-").split(", ") == [f"{row['mean']:+.1f}" for row in rows]


# What the other studies of the page say, from their own files


def finals(study: str) -> pd.DataFrame:
    """Config, seed and final loss of each run of a study."""
    rows = []
    for part in sorted((STUDY.parent / study).glob("part-*")):
        history = pd.read_parquet(part / "history.parquet", columns=["run_id", "final_val_loss"]).dropna()
        final = history.set_index("run_id")["final_val_loss"]
        for row in pd.read_parquet(part / "runs.parquet").to_dict("records"):
            run = json.loads(row["run"])
            loss = final[row["run_id"]] if run["status"] == "finished" else np.nan
            rows.append({"config": run["config"], "seed": run["config"]["seed"], "loss": loss, "run": run})
    return pd.DataFrame(rows)


def of(frame: pd.DataFrame, fmt: str, kind: str = "amax", own: str = "nearest", **more: object) -> pd.Series:
    """Loss by seed of the runs with these settings."""

    def is_so(config: dict) -> bool:  # type: ignore[type-arg]
        quantize, scaling = config["quantize"], config.get("scaling", {})
        found = (quantize.get("grad_output_rounding") or {}).get("head") or "nearest"
        formats = {quantize.get(name, "fp32") for name in ("weight", "activation", "grad_output")} - {"fp32"}
        same = formats == ({fmt} if fmt != "fp32" else set()) and (fmt == "fp32" or scaling.get("kind", "amax") == kind)
        rest = {"vocabulary": config.get("vocabulary"), "granularity": scaling.get("granularity", "tensor")}
        rest |= {"axis": scaling.get("axis", "last"), "quantize": quantize, "rule": config["optimizer"]["step_rule"]}
        return same and found == own and all(rest[name] == value for name, value in more.items())

    chosen = frame[frame["config"].map(is_so)]
    assert chosen["seed"].is_unique
    return chosen.set_index("seed")["loss"]


def ends(values: pd.Series) -> tuple[float, float, float]:
    values = values.dropna()
    return (values.mean(), *stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values)))


ELEMENTS = {"MXFP4 up": ("e2m1", "mx_rceil"), "MXFP6": ("e3m2", "mx_rceil"), "NVFP4": ("e2m1", "nvfp4")}


def is_row(row: object, values: pd.Series) -> bool:
    return np.allclose([getattr(row, name) for name in ("difference", "low", "high")], ends(values), rtol=0, atol=1e-8)


def test_the_gaps_without_embedding_and_head_are_those_of_the_files(losses: pd.Series) -> None:
    table, frame = pd.read_csv(ROOT / "reports" / "head.body.csv"), finals("blocks-only")
    assert len(table) == 10
    assert len(frame) == 160
    for row in table.itertuples():
        assert is_row(row, of(frame, *ELEMENTS.get(row.format, (row.format.lower(),))) - losses["fp32", "", ""])
    nvfp4, mxfp4 = (of(frame, "e2m1", kind) for kind in ("nvfp4", "mx_rceil"))
    assert ends(nvfp4 - mxfp4)[2] < 0
    answers = pd.read_csv(ROOT / "reports" / "head.predictions.csv").set_index("id")["answer"]
    e0m7 = of(frame, "e0m7") - losses["fp32", "", ""]
    equivalent = max(
        stats.ttest_1samp(e0m7, -0.01, alternative="greater").pvalue,
        stats.ttest_1samp(e0m7, 0.01, alternative="less").pvalue,
    )
    assert answers["H24"] == ("yes" if equivalent < 0.05 else "inconclusive")
    assert answers["H25"] == "yes"


def test_the_gaps_on_the_other_text_are_those_of_the_files() -> None:
    table, frame = pd.read_csv(ROOT / "reports" / "head.text-table.csv"), finals("text")
    base = of(frame, "fp32")
    assert len(base) == 16
    assert len(table) == 12
    for row in table.itertuples():
        fmt = ELEMENTS.get(row.format, (row.format.lower(), "amax"))
        assert is_row(row, of(frame, *fmt, row.rounding) - base)
    for fmt in (("e0m7", "amax"), ("e2m1", "nvfp4")):
        assert ends(of(frame, *fmt) - of(frame, *fmt, "stochastic"))[1] > 0.05  # far beyond any adjustment: H26


def test_the_controls_are_those_of_the_files(losses: pd.Series) -> None:
    """Eight seeds of the controls against the sixteen of study head; their marks are in the third registration."""
    table, frame = pd.read_csv(ROOT / "reports" / "head.controls-table.csv"), finals("head-controls")
    assert len(frame) == 64
    kinds = {"E0M7": ("e0m7", "amax"), "E6M1": ("e6m1", "amax"), "E7M0": ("e7m0", "amax"), **ELEMENTS}
    base = losses["fp32", "", ""]
    for row in table[table["rounding"].isin(("mean-removed", "residual-on-target"))].itertuples():
        assert is_row(row, of(frame, *kinds[row.format], f"own:{row.rounding}") - base)
    answers = pd.read_csv(ROOT / "reports" / "head.predictions.csv").set_index("id")["answer"]
    removed = {
        name: ends(of(frame, *kinds[name], "own:mean-removed") - losses[(*kinds[name], "nearest")])
        for name in ("E0M7", "E7M0", "MXFP4 up")
    }
    short = any(high < 0.3 for _, _, high in removed.values())
    assert answers["H28"] == (
        "no" if short else "yes" if min(mean for mean, *_ in removed.values()) > 0.3 else answers["H28"]
    )
    rest = {
        name: ends(of(frame, *kinds[name], "own:residual-on-target") - losses[(*kinds[name], "wide")])
        for name in ("E7M0", "E6M1", "E0M7", "MXFP4 up")
    }
    came = rest["E7M0"][2] < 0.03 and rest["E6M1"][2] < 0.03 and rest["E0M7"][0] > 0.1 and rest["MXFP4 up"][0] > 0.3
    assert (answers["H29"] == "yes") == came


def test_the_step_rules_on_fresh_seeds_are_those_of_the_files(losses: pd.Series) -> None:
    """Muon, relative rates and ManifoldAdamW against AdamW; codes with AdamW's decay a step against AdamW."""
    table = pd.read_csv(ROOT / "reports" / "manifold_comparison.rivals.csv")
    rivals, decay = finals("rivals"), finals("decay")
    assert len(table) == 13
    assert len(rivals) == 160
    assert len(decay) == 96

    def rule(frame: pd.DataFrame, fmt: str, **settings: object) -> pd.Series:
        own = frame["config"].map(
            lambda config: (
                config["quantize"]["weight"] == fmt
                and all(config["optimizer"].get(key) == value for key, value in settings.items())
            )
        )
        assert own.sum() == 16
        return frame[own].set_index("seed")["loss"]

    found: dict[tuple[str, str], pd.Series] = {}
    for fmt in ("e4m3", "e5m2", "e0m7"):
        adamw = losses[fmt, "amax", "nearest"]
        found[fmt, "muon"] = rule(rivals, fmt, step_rule="muon") - adamw
        found[fmt, "relative"] = rule(rivals, fmt, step_rule="adamw", relative=True) - adamw
        found[fmt, "update"] = rule(rivals, fmt, step_rule="manifold", precondition="update") - adamw
        codes = rule(decay, fmt, step_rule="code", weight_decay=0.0032)
        found[fmt, "decayed"] = codes - rule(decay, fmt, step_rule="adamw", storage="grid", rounding="stochastic")
    found["fp32", "muon"] = rule(rivals, "fp32", step_rule="muon") - losses["fp32", "", ""]
    for values in found.values():
        assert sum(is_row(row, values) for row in table.itertuples()) == 1
    answers = pd.read_csv(ROOT / "reports" / "manifold_comparison.rival-hypotheses.csv").set_index("id")["answer"]
    formats = ("e4m3", "e5m2", "e0m7")
    muon = [ends(found[fmt, "muon"]) for fmt in formats]
    assert (answers["H33"] == "yes") == all(high < 0 for _, _, high in muon)
    apart = [ends((found[fmt, "update"] - found[fmt, "relative"]).dropna()) for fmt in formats]
    assert (answers["H34"] == "yes") == (not any(high < 0 for _, _, high in apart))
    assert (answers["H35"] == "yes") == all(ends(found[fmt, "decayed"])[1] > 0 for fmt in formats)


def test_the_rates_and_the_sweep_that_documents_name_are_those_of_the_files(losses: pd.Series) -> None:
    """What sentences take with `rate` and `swept`, and weights on the grid against master weights."""
    loader = ExperimentDataLoader([STUDY.parent / name for name in ("head", "head-tuning", "decay")])
    rate, swept, contrast = (campaign(loader)[name] for name in ("rate", "swept", "contrast"))
    assert (rate("NVFP4 head nearest"), rate("MXFP4 up head nearest"), rate("FP32 fresh")) == (0.004, 0.0005, 0.016)
    with pytest.raises(NotRecorded, match="NVFP4"):
        rate("NVFP4")
    own = finals("head-tuning")
    own = own[
        own["config"].map(
            lambda config: (
                config["quantize"]["weight"] == "e2m1"
                and config["scaling"]["kind"] == "nvfp4"
                and config["quantize"]["grad_output_rounding"]["head"] is None
                and {*config["quantize"]["layers"]} == ALL
            )
        )
    ]
    means = own.groupby(own["config"].map(lambda config: config["optimizer"]["learning_rate"]))["loss"].mean()
    assert swept("NVFP4 head nearest") == pytest.approx(means.to_dict(), abs=1e-12)
    assert means.idxmin() == 0.004
    decay = finals("decay")
    grid = decay[decay["config"].map(lambda config: config["optimizer"].get("step_rule", "adamw") == "adamw")]
    for fmt in ("e4m3", "e5m2", "e0m7"):
        one = grid[grid["config"].map(lambda config, fmt=fmt: config["quantize"]["weight"] == fmt)]
        values = one.set_index("seed")["loss"] - losses[fmt, "amax", "nearest"]
        row = contrast(f"{fmt.upper()} adamw fresh", f"{fmt.upper()} head nearest")
        assert (row["difference"], row["n_pairs"]) == (pytest.approx(values.mean(), abs=1e-9), 16)


def test_the_costs_with_larger_vocabularies_are_those_of_the_files(losses: pd.Series) -> None:
    """In nats per character, and per token by the tokens and characters that the last evaluations read."""
    table, frame = pd.read_csv(ROOT / "reports" / "head.vocabulary.csv"), finals("vocabulary")
    assert len(table) == 15
    assert len(frame) == 256
    kinds = {**COSTLY, "E2M5": ("e2m5", "amax")}
    a_token: dict[tuple[str, int], pd.Series] = {}
    for row in table.itertuples():
        if row.tokens == 96:
            own = {how: losses[(*kinds[row.format], how)] for how in ("nearest", "stochastic", "wide")}
            characters = 1.0
        else:
            own = {
                how: of(frame, *kinds[row.format], how, vocabulary=row.tokens)
                for how in ("nearest", "stochastic", "wide")
            }
            read = {
                run["summary"]["evaluated_characters"] / run["summary"]["evaluated_tokens"]
                for run in frame["run"]
                if run["config"].get("vocabulary") == row.tokens and run["status"] == "finished"
            }
            (characters,) = read
        lost = (own["nearest"] - own["wide"]).dropna().empty
        assert lost == (row.n_pairs == 0) == (row.n_ended_badly == row.n_runs)
        if lost:
            assert np.isnan(row.difference)
            continue
        assert is_row(row, own["nearest"] - own["wide"])
        assert np.allclose([row.extra, row.extra_low, row.extra_high], ends(own["stochastic"] - own["wide"]), atol=1e-8)
        a_token[row.format, row.tokens] = (own["nearest"] - own["wide"]).dropna() * characters
        assert row.per_token == pytest.approx(a_token[row.format, row.tokens].mean(), abs=1e-8)
    answers = pd.read_csv(ROOT / "reports" / "head.predictions.csv").set_index("id")["answer"]
    assert ("E0M7", 2048) not in a_token, "no run of E0M7 finished, so that H36 cannot come true"
    assert answers["H36"] != "yes"
    extra = [table[(table["format"] == fmt) & (table["tokens"] == 2048)].iloc[0] for fmt in COSTLY]
    assert (answers["H37"] == "yes") == all(row["extra_high"] < 0.04 for row in extra)


def test_the_gaps_of_the_wider_model_are_those_of_the_files() -> None:
    if not (STUDY.parent / "width").is_dir():
        pytest.skip("study width is not recorded")
    table, frame = pd.read_csv(ROOT / "reports" / "format_comparison.wide-scales.csv"), finals("width")
    assert len(table) == 10
    assert len(frame) == 88
    scales = {"128, along the sum": "block", "128 x 128": "block_2d"}
    for row in table.itertuples():
        assert is_row(row, of(frame, row.format.lower(), granularity=scales[row.scale]) - of(frame, "fp32"))


def test_the_formats_close_to_fp32_with_scales_along_the_sum_are_those_of_the_files(losses: pd.Series) -> None:
    """As the README's answer names them: both one-sided t-tests at the margin."""
    frame, close = finals("granularity"), {}
    for fmt in ("E0M7", "E2M5", "E3M4", "E4M3", "E5M2"):
        own = of(frame, fmt.lower(), granularity="block", axis="contraction")
        gaps = (own if len(own) else of(frame, fmt.lower(), granularity="block")) - losses["fp32", "", ""]
        low, high = stats.t.interval(0.9, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
        close[gaps.mean()] = fmt if low > -0.01 and high < 0.01 else ""
    named = " ".join(
        (ROOT / "README.md").read_text().split("With such scales along the sum of each product ")[1].split()
    )
    *before, last = [close[mean] for mean in sorted(close) if close[mean]]
    assert named.startswith(
        f"{', '.join(before)} and {last} are each shown to be within 0.01 nats of FP32 (n = 16 seeds)"
    )


def test_what_more_validation_text_changes_is_that_of_the_files(losses: pd.Series) -> None:
    """The last evaluation on the way reads a tenth of the text that the last of all does."""
    rows = {}
    for part in sorted(STUDY.glob("part-*")):
        history = pd.read_parquet(part / "history.parquet", columns=["run_id", "step", "val_loss"]).dropna()
        last = history.sort_values("step").groupby("run_id")["val_loss"].last()
        for row in pd.read_parquet(part / "runs.parquet").to_dict("records"):
            config = json.loads(row["run"])["config"]
            own = (config["quantize"].get("grad_output_rounding") or {}).get("head") or "nearest"
            if own == "nearest" and config.get("scaling", {}).get("kind", "amax") == "amax":
                rows[config["quantize"]["weight"], config["seed"]] = last[row["run_id"]]
    less = pd.Series(rows)
    said = (ROOT / "reports" / "corrections.md").read_text().replace("\u2212", "-")
    home = (ROOT / "README.md").read_text() + (ROOT / "reports" / "format_comparison.md").read_text()
    grown = []
    for fmt in ("e3m4", "e4m3", "e5m2", "e2m5", "e6m1", "e0m7", "e7m0"):
        more = (losses[fmt, "amax", "nearest"] - losses["fp32", "", ""]).dropna()
        own = (less[fmt] - less["fp32"]).dropna()
        mean, low, high = ends(more - own)
        if low > 0.01:
            grown.append(fmt)
            assert f"is {own.mean():.3f} on the less text and {more.mean():.3f} on the more" in said
            assert f"a difference of {mean:.3f} nats (95% CI {low:.3f} to {high:.3f}, n = {len(more)})" in said
    assert grown == ["e2m5", "e0m7", "e7m0"]
    assert said.count("on the less text") == 3
    assert f"E2M5 ends +{(losses['e2m5', 'amax', 'nearest'] - losses['fp32', '', '']).mean():.3f} from FP32" in home
