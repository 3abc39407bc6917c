"""The probe: what it says of a model is what float64 numpy computes, and bad input is one line."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from test_nn import batch, small_gpt  # noqa: E402
from test_scaling import MX_TABLE, on_grid  # noqa: E402

from altgrad.analysis.probed import rank_correlation, recorded_gaps  # noqa: E402
from altgrad.cli import main  # noqa: E402
from altgrad.config import ExperimentConfig, parse_config  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.nn import Operand, Policy, Scaling, clock_of, quantize_model  # noqa: E402
from altgrad.runs import diagnosis  # noqa: E402
from altgrad.runs.diagnosis import symptoms  # noqa: E402
from altgrad.telemetry import Look  # noqa: E402
from altgrad.telemetry.probe import Part, class_statistics, head_of, probe  # noqa: E402
from altgrad.training import load_corpus, train  # noqa: E402
from altgrad.training.loop import build_model  # noqa: E402

Array = np.ndarray
SMALL = {"layers": 1, "dim": 16, "heads": 2, "context": 8}


def batches(number: int, classes: int = 96) -> list[tuple[torch.Tensor, torch.Tensor]]:
    tokens = torch.randint(0, classes, (number, 4, 9), generator=torch.Generator().manual_seed(2))
    return [(each[:, :-1], each[:, 1:]) for each in tokens]


def by_hand(model: torch.nn.Module, given: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[Array, Array]]:
    """x and the gradient of the mean cross-entropy for the logits, (p - 1[target]) / N, in float64."""
    found = []
    for token, target in given:
        with torch.no_grad():
            x = model.embedding(token) + model.position[: token.shape[1]]
            for block in model.blocks:
                x = block(x)
            x = model.final_norm(x).flatten(0, 1).double().numpy()
        logits = x @ model.head.weight.detach().double().numpy().T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(p)), target.flatten().numpy()] -= 1
        found.append((x, p / len(p)))
    return found


def rounded_to_nearest(g: Array, element: str) -> Array:
    """With the smallest power-of-two scale at which nothing exceeds the largest value."""
    _, maximum, emin, bits = MX_TABLE[element]
    scale = 2.0 ** math.ceil(math.log2(np.abs(g).max() / maximum))
    return on_grid(g / scale, maximum, emin, bits) * scale


def stated(parts: list[tuple[Array, Array, Array]]) -> dict[str, float]:
    """The formulas of the Method page, class by class."""
    gradients = [g.T @ x for x, g, _ in parts]
    errors = [(q - g).T @ x for x, g, q in parts]
    total, bias = np.mean(gradients, axis=0), 0.0
    for v, error in enumerate(np.mean(errors, axis=0)):
        if np.linalg.norm(total[v]) > 0:
            bias += (np.linalg.norm(error) / np.linalg.norm(total[v])) ** 2
    rows = [(abs((q[n] - g[n]).sum()), np.abs(g[n]).sum()) for _, g, q in parts for n in range(len(g))]
    return {
        "class_bias": math.sqrt(bias),
        "row_mass": np.mean([lost for lost, _ in rows]) / np.mean([whole for _, whole in rows]),
        "class_noise": math.sqrt(sum(np.sum(e**2) for e in errors) / sum(np.sum(g**2) for g in gradients)),
    }


@pytest.mark.parametrize("element", ["e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("number", [1, 3])
def test_it_is_what_float64_numpy_computes(element: str, number: int) -> None:
    model, given = small_gpt(), batches(number)
    found = probe(model, [lambda b=b: model.loss(*b) for b in given], {"it": Operand(get_format(element))})["it"]
    expected = stated([(x, g, rounded_to_nearest(g, element)) for x, g in by_hand(model, given)])
    assert found == pytest.approx(expected, rel=2e-3)


def test_the_statistics_are_those_of_their_formulas() -> None:
    random = np.random.default_rng(0)
    parts = [tuple(random.normal(size=shape) for shape in ((7, 3), (7, 5), (7, 5))) for _ in range(3)]
    for _, g, q in parts:
        g[:, 2] = 0  # a class without a gradient
        q[:, 2] = 1
    expected = stated(parts)  # type: ignore[arg-type]
    found = class_statistics([Part(*map(torch.from_numpy, part)) for part in parts])
    assert found == pytest.approx(expected)
    reshaped = [Part(*(torch.from_numpy(each).view(1, 7, -1) for each in part)) for part in parts]
    assert class_statistics(reshaped) == pytest.approx(expected)
    x, g, _ = map(torch.from_numpy, parts[0])
    assert class_statistics([Part(x, g, g)]) == {"class_bias": 0, "row_mass": 0, "class_noise": 0}
    assert class_statistics([Part(x, 0 * g, 0 * g)]) == {"class_bias": 0}


def test_the_product_that_makes_the_weight_s_gradient_is_the_one_that_is_probed() -> None:
    model, given = small_gpt(), batches(1)
    losses = [lambda: model.loss(*given[0])]
    spec = {"axis": "contraction", "granularity": "block", "block": 8}
    found = probe(model, losses, {"down": Operand(get_format("e4m3"), scaling=Scaling("amax", **spec))})["down"]
    ((x, g),) = by_hand(model, given)
    q = np.concatenate(  # blocks of 8 rows, each column with its own scale
        [rounded_to_nearest(g[row : row + 8, [v]], "e4m3") for row in range(0, len(g), 8) for v in range(g.shape[1])],
        axis=1,
    ).reshape(8, -1, g.shape[1]).transpose(1, 0, 2).reshape(g.shape)  # fmt: skip
    assert found == pytest.approx(stated([(x, g, q)]), rel=2e-3)


def test_diffusion_keeps_the_row_mass_and_draws_depend_on_the_seed() -> None:
    model = small_gpt()
    losses = [lambda b=b: model.loss(*b) for b in batches(2)]
    fmt = get_format("e7m0")
    candidates = {how: Operand(fmt, how) for how in ("nearest_even", "stochastic", "diffused")}
    found = probe(model, losses, candidates, seed=1)
    assert [*found] == [*candidates]
    assert found["diffused"]["row_mass"] < 0.1 * found["nearest_even"]["row_mass"]
    assert probe(model, losses, candidates, seed=1) == found
    other = probe(model, losses, candidates, seed=2)
    assert other["stochastic"] != found["stochastic"]
    assert other["diffused"] == found["diffused"]


def test_the_model_stays_as_it_is_and_is_read_without_rounding() -> None:
    plain, quantized = small_gpt(), small_gpt()
    quantize_model(quantized, Policy(*[get_format("e2m1")] * 3))
    before = copy.deepcopy(quantized.state_dict())
    candidates = {"e4m3": Operand(get_format("e4m3"))}
    found = [probe(model, [lambda m=model: m.loss(*batch())], candidates) for model in (plain, quantized)]
    assert found[0] == found[1]
    assert all(torch.equal(value, before[key]) for key, value in quantized.state_dict().items())
    assert all(parameter.grad is None for parameter in quantized.parameters())
    assert not quantized.head._forward_hooks
    assert quantized.head.policy.weight.format.name == "e2m1"


def test_a_model_that_cannot_be_probed_is_one_line() -> None:
    candidates = {"e4m3": Operand(get_format("e4m3"))}
    x, linear = torch.randn(4, 8), torch.nn.Linear(8, 3)
    headless = torch.nn.Sequential(linear)
    cases = [
        ({"model": headless, "losses": [lambda: linear(x).sum()]}, "the model has no heads; name one of .*: 0"),
        ({"model": headless, "losses": [], "layer": "0"}, "a batch at least"),
        ({"model": headless, "losses": [lambda: linear(x).sum()], "layer": "1"}, "no linear layer is called '1'"),
        ({"model": headless, "losses": [lambda: 0 * linear(x).sum()], "layer": "0"}, "zero or not finite"),
        ({"model": headless, "losses": [lambda: math.nan * linear(x).sum()], "layer": "0"}, "zero or not finite"),
        ({"model": headless, "losses": [lambda: x.sum()], "layer": "0"}, "uses 0 0 times"),
        ({"model": headless, "losses": [lambda: linear(linear(x)[:, :1] * x).sum()], "layer": "0"}, "uses 0 2 times"),
    ]
    single = torch.nn.ModuleDict({"head": torch.nn.Linear(8, 1)})
    cases += [({"model": single, "losses": [lambda: single["head"](x).sum()]}, "head has one class")]
    two = torch.nn.ModuleDict({"head": torch.nn.ModuleList([torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)])})
    cases += [({"model": two, "losses": []}, "the model has 2 heads; .* head.0, head.1")]
    for given, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            probe(**given, candidates=candidates)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    assert head_of(small_gpt()) == "head"
    assert not linear._forward_hooks


# The command


def arguments(*more: str) -> list[str]:
    sets = [f"--set=model.{key}={value}" for key, value in SMALL.items()]
    return ["probe", *more, *sets, "--set=batch_size=4", "--steps=4", "--batches=2"]


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "fp32.yaml"
    path.write_text("max_steps: 6\n")
    return str(path)


def test_it_prints_the_predicted_order(plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    given = ("--formats=e0m7,E4M3,e7m0", "--roundings=nearest,diffused", f"--runs={tmp_path / 'runs'}")
    assert main(arguments(plain, *given)) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["FORMAT", "ROUNDING", "CLASS_BIAS", "ROW_MASS", "CLASS_NOISE", "RECORDED", "GAP"]
    rows = [line.split() for line in lines[:6]]
    assert {tuple(row[:2]) for row in rows} == {*product(("E0M7", "E4M3", "E7M0"), ("nearest", "diffused"))}
    figures = [float(row[2]) for row in rows]
    assert figures == sorted(figures)
    assert {row[5] for row in rows} == {"-"}
    assert "no rank correlation" in lines[7]
    assert "No registered test" in lines[8]


def test_recorded_gaps_of_the_very_experiment_stand_beside_it(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, losses = tmp_path / "runs", {}
    corpus = load_corpus("licenses")
    common = {"model": SMALL, "batch_size": 4, "max_steps": 6, "layers_every": 3, "eval_every": 2}
    for name in ("fp32", "e0m7", "e4m3", "e7m0"):
        for seed in (1, 2):
            quantized = dict.fromkeys(("weight", "activation", "grad_output"), name)
            config = parse_config(common | {"quantize": quantized, "seed": seed}, source="test")
            losses[name, seed] = train(config, runs, corpus=corpus, progress=False).summary["val_loss"]
    other = parse_config(common | {"max_steps": 5}, source="test")
    train(other, runs, corpus=corpus, progress=False)
    assert main(arguments(plain, "--formats=e7m0,e4m3,e0m7,e5m2", f"--runs={runs}")) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:5]}
    gaps = {name: np.mean([losses[name, s] - losses["fp32", s] for s in (1, 2)]) for name in ("e0m7", "e4m3", "e7m0")}
    for name, gap in gaps.items():
        assert rows[name.upper()][5:] == [f"{gap:+.3f}", "(n", "=", "2)"]
    assert rows["E5M2"][5:] == ["-"]
    bias = pd.Series({name: float(rows[name.upper()][2]) for name in gaps})
    rho = bias.rank().corr(pd.Series(gaps).rank())
    assert f"Rank correlation of class_bias with the recorded gaps of this experiment: {rho:+.2f} (n = 3)." in out


def test_a_run_s_checkpoint_is_probed_in_place_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"model": SMALL, "batch_size": 4, "max_steps": 4, "eval_batches": 1, "checkpoint": {"every": 4}}
    path = train(parse_config(common, source="test"), tmp_path, progress=False).path
    given = ["--formats=e4m3", "--batches=2", f"--runs={tmp_path}"]
    assert main(["probe", str(path), *given]) == 0
    of_run = capsys.readouterr().out.splitlines()[1]
    config = tmp_path / "plain.yaml"
    config.write_text("max_steps: 4\n")
    assert main(arguments(str(config), "--formats=e4m3", f"--runs={tmp_path}")) == 0
    assert capsys.readouterr().out.splitlines()[1] == of_run
    assert main(["probe", str(path), *given, "--seed=1"]) == 2
    assert "leave out --set and --seed" in capsys.readouterr().err
    other = tmp_path / "text.txt"
    other.write_text("other words " * 400)
    assert main(["probe", str(path), *given, f"--data={other}"]) == 2
    assert "other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--formats=e4m33",), "--formats: unknown format 'e4m33'"),
        (("--formats=,",), "--formats: name one at least"),
        (("--formats=e4m3", "--roundings=up"), "--roundings: must be of nearest, stochastic, diffused, not up"),
        (("--formats=e4m3", "--set=scaling.kind=nvfp4"), "rule for e2m1, and --formats is e4m3"),
        (("--formats=e4m3", "--set=quantize.weight=e4m3"), "sets quantize.weight; leave it out"),
        (("--formats=e4m3", "--batches=0"), "--batches 0: give a number of at least 1"),
        (("--formats=e4m3", "--steps=-1"), "--steps -1: give a number of at least 1"),
        (("--formats=e15m0",), "float64"),
        (("--formats=fp32",), "--formats: gradients are not rounded to fp32"),
        (("--formats=e8m0",), "--formats: gradients are not rounded to e8m0"),
        (("--formats=e4m3", "--runs=nowhere"), "no such folder"),
    ],
)
def test_a_mistake_is_one_line(
    plain: str, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(plain), *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_rank_correlation_needs_three_that_differ() -> None:
    one = {(name, "nearest_even"): value for name, value in zip("abcd", (1.0, 2.0, 3.0, 9.0), strict=True)}
    assert rank_correlation(one, {key: -value for key, value in one.items()}) == (-1.0, 4)
    assert rank_correlation(one, {("a", "nearest_even"): 5.0, ("b", "nearest_even"): 4.0})[1] == 2
    assert math.isnan(rank_correlation(one, dict.fromkeys(one, 1.0))[0])


def test_the_recorded_formats_study_has_a_gap_for_every_split() -> None:
    from altgrad.analysis.loader import ExperimentDataLoader

    loader = ExperimentDataLoader([Path(__file__).parents[1] / "experiments" / "recorded" / "formats"])
    data = loader.runs["data"].iloc[0]
    splits = [(name, "nearest_even") for name in ("e0m7", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")]
    found = recorded_gaps(loader, ExperimentConfig(), data, [*splits, ("e4m3", "diffused")])
    assert [*found] == splits
    compiled = ExperimentConfig(compile=True)
    assert recorded_gaps(loader, compiled, data, [("e4m3", "stochastic")]) == {}
    assert min(estimate.n for estimate in found.values()) >= 16


# As telemetry


def looked_at(config: ExperimentConfig, parts: int = 1) -> tuple[dict[tuple[str, str, str], float], torch.nn.Module]:
    """The rows of one look by layer, operand and statistic."""
    model = build_model(config)
    look = Look(model, 1, config.telemetry)
    with look.operands():
        for clock_of(model).part, (token, target) in enumerate(batches(parts)):
            (model.loss(token, target) / parts).backward()
    return {(row[1], row[3], row[4]): row[5] for row in look.rows}, model


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("casts", [{}, {"grad_weight": {"grad_output": {"format": "e4m3"}}}], ids=["shared", "own"])
def test_a_run_may_record_its_logits_and_what_its_own_rounding_does(parts: int, casts: dict[str, object]) -> None:
    """Of a head that is quantized, in a model whose other layers are not, so that its gradient is known."""
    quantized = {"grad_output": "e5m2" if casts else "e4m3", "layers": ["head"], "casts": casts}
    given = {"model": SMALL, "quantize": quantized, "telemetry": {"logits": True}}
    found, model = looked_at(parse_config(given, source="test"), parts)
    known = by_hand(model, batches(parts))
    stats = stated([(x, g / parts, rounded_to_nearest(g / parts, "e4m3")) for x, g in known])
    cast = "grad_weight.grad_output" if casts else "grad_output"
    for name, value in stats.items():
        assert found["head", cast, name] == pytest.approx(value, rel=2e-3)
    logits = np.concatenate([x for x, _ in known]) @ model.head.weight.detach().double().numpy().T
    assert found["head", "output", "logits_mean"] == pytest.approx(logits.mean(), abs=1e-6)
    assert found["head", "output", "logits_spread"] == pytest.approx(np.sqrt(logits.var(1).mean()), rel=1e-5)
    without, _ = looked_at(parse_config(given | {"telemetry": {}}, source="test"), parts)
    assert {*found} - {*without} == {("head", cast, name) for name in stats} | {
        ("head", "output", name) for name in ("logits_mean", "logits_spread")
    }
    assert without.items() <= found.items()
    assert not model.head._forward_hooks


def test_recorded_identities_do_not_have_the_key() -> None:
    assert "telemetry" not in ExperimentConfig().identity()
    assert parse_config({"telemetry": {"logits": True}}, source="t").identity()["telemetry"]["logits"] is True


def test_runaway_logits_are_a_warning_that_explain_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pilot's E7M0 ended at 36, its FP32 at -1.7; here the limit is put below what a short run shows."""
    (alarm,) = symptoms([(3, "head", "head", "output", "logits_mean", 36.0)])
    assert alarm[:3] == ("runaway_logits", "head.output", "forward")
    assert "quantize.grad_output_rounding.head: 36 (above 10)" in alarm.message
    assert symptoms([(3, "head", "head", "output", "logits_mean", -1.7)]) == []
    lowered = [replace(each, limit=-100.0) if each.kind == alarm.what else each for each in diagnosis.SYMPTOMS]
    monkeypatch.setattr(diagnosis, "SYMPTOMS", lowered)
    given = {"model": SMALL, "max_steps": 3, "batch_size": 4, "eval_batches": 1, "layers_every": 1}
    for logits in (True, False):
        config = parse_config(given | {"telemetry": {"logits": logits}}, source="test")
        assert main(["explain", str(train(config, tmp_path, progress=False).path)]) == 0
        assert ("runaway_logits" in capsys.readouterr().out) is logits
