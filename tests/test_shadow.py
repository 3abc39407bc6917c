"""The fp32 shadow gives the gradients of the unquantized model, and leaves no trace in the run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from altgrad.config import ExperimentConfig, parse_config  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import Policy, clock_of, quantize_model, quantized_layers  # noqa: E402
from altgrad.optim import ManifoldAdamW  # noqa: E402
from altgrad.runs import read_run  # noqa: E402
from altgrad.telemetry.gradients import gradient_statistics  # noqa: E402
from altgrad.telemetry.shadow import shadow_gradients, shadow_statistics  # noqa: E402
from altgrad.training import load_corpus, train  # noqa: E402
from altgrad.training.loop import build_model, build_optimizer  # noqa: E402

SMALL = {"model": {"layers": 1, "dim": 16, "heads": 2, "context": 16}, "batch_size": 4, "eval_batches": 2}
WAG = {"weight": "e5m2", "activation": "e4m3", "grad_output": "e5m2"}
# Everything that remembers: delayed scales, and draws that depend on the clock.
STATEFUL = {
    **SMALL,
    "quantize": {**WAG, "rounding": {"activation": "stochastic", "grad_output": "stochastic"}},
    "scaling": {"kind": "delayed"},
    "accumulate": 2,
}


def config(**given: object) -> ExperimentConfig:
    return parse_config({**SMALL, **given}, source="test")


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, 90, (2, 4, 16), generator=random)) for _ in range(count)]


def losses(model: GPT, count: int) -> list[Callable[[], torch.Tensor]]:
    return [lambda batch=batch: model.loss(*batch) for batch in batches(count)]


def plain(model: GPT) -> GPT:
    """The same weights in a GPT that has never been quantized."""
    vocabulary, dim = model.embedding.weight.shape
    twin = GPT(vocabulary, layers=len(model.blocks), dim=dim, heads=2, context=model.position.shape[0], seed=9)
    twin.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if ".delayed." not in name})
    return twin


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quantize": WAG},
        STATEFUL,
        {"quantize": WAG, "scaling": {"kind": "mx"}},
        {"quantize": {"weight": "e4m3"}, "optimizer": {"storage": "grid", "rounding": "stochastic"}},
    ],
    ids=["fp32", "amax", "delayed and stochastic", "mx", "grid"],
)
def test_the_shadow_has_the_gradients_of_a_model_that_was_never_quantized(given: dict, count: int) -> None:
    model = build_model(config(**given))
    build_optimizer(config(**given), model)  # which puts weights on the grid
    twin = plain(model)
    for loss in losses(twin, count):
        loss().backward()
    found = shadow_gradients(model, losses(model, count))
    assert list(found) == list(quantized_layers(model))
    for name, gradient in found.items():
        expected = twin.get_submodule(name).weight.grad / count
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
        if count == 1:
            assert torch.equal(gradient, expected), name


def everything(model: torch.nn.Module) -> dict[str, object]:
    """All that a later step could depend on, copied."""
    layers = quantized_layers(model)
    return copy.deepcopy(
        {
            "tensors": model.state_dict(),
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "scales": {
                name: {key: d.state_dict() for key, d in layer.delayed.items()} for name, layer in layers.items()
            },
            "clock": vars(clock_of(model)),
            "random": torch.random.get_rng_state(),
        }
    )


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(same(first[k], second[k]) for k in first)
        )
    return first == second


class WithMemory(torch.nn.Module):
    """A model with everything that a forward pass may change: running means, dropout's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 3)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.dropout(self.norm(self.mlp(x)), 0.5, self.training)
        return self.head(hidden).square().sum()


def test_the_shadow_leaves_everything_as_it_was() -> None:
    model = build_model(config(**STATEFUL))
    for loss in losses(model, 2):
        loss().backward()
    layers, before = quantized_layers(model), everything(model)
    policies = {name: layer.policy for name, layer in layers.items()}
    assert before["scales"]["head"]["weight"]
    shadow_gradients(model, losses(model, 2))
    assert same(before, everything(model))
    assert all(layer.policy is policies[name] and layer.observer is None for name, layer in layers.items())


def test_running_means_and_random_draws_stay_and_so_does_all_after_an_error() -> None:
    model = quantize_model(WithMemory(), Policy(*[get_format("e4m3")] * 3))
    x = torch.randn(5, 4)
    before = everything(model)
    assert len(shadow_gradients(model, [lambda: model.loss(x)])) == 2
    assert same(before, everything(model))

    def broken() -> torch.Tensor:
        model.loss(x)
        raise RuntimeError("broken")

    policy = quantized_layers(model)["head"].policy
    with pytest.raises(RuntimeError, match="broken"):
        shadow_gradients(model, [broken])
    assert quantized_layers(model)["head"].policy is policy
    assert same(before, everything(model))


def test_frozen_and_unused_weights_have_no_shadow_and_tied_ones_share_it() -> None:
    model = build_model(config(quantize=WAG))
    model.blocks[0].mlp.up.weight.requires_grad_(False)
    model.head.weight = model.embedding.weight
    found = shadow_gradients(model, losses(model, 1))
    assert "blocks.0.mlp.up" not in found
    assert found["head"] is found["embedding"]
    assert list(shadow_gradients(model, [lambda: model.embedding.weight.sum()])) == ["embedding", "head"]
    assert shadow_gradients(model, []) == {}
    assert shadow_gradients(model.requires_grad_(False), losses(model, 1)) == {}


def test_a_sparse_gradient_is_made_dense() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(7, 3, sparse=True))
    quantize_model(model, Policy(get_format("e4m3"), layers=("*",)))
    (found,) = shadow_gradients(model, [lambda: model(torch.tensor([1, 1, 4])).sum()] * 2).values()
    assert torch.equal(found[:, 0], torch.tensor([0.0, 2, 0, 0, 1, 0, 0]))


pairs = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).standard_normal((2, 5, 6)))


@given(pairs, st.floats(1e-6, 1e6))
def test_cosine_and_snr_are_numpys(pair: np.ndarray, magnitude: float) -> None:
    g, h = (pair * magnitude).astype(np.float32)
    found = shadow_statistics(torch.from_numpy(g), torch.from_numpy(h))
    g, h = g.astype(np.float64).ravel(), h.astype(np.float64).ravel()
    assert found["shadow_cosine"] == pytest.approx(g @ h / np.linalg.norm(g) / np.linalg.norm(h), rel=1e-9, abs=1e-12)
    assert found["shadow_snr_db"] == pytest.approx(20 * np.log10(np.linalg.norm(h) / np.linalg.norm(g - h)), abs=1e-9)


@pytest.mark.parametrize(
    ("gradient", "reference", "expected"),
    [
        ([3.0, 4], [3.0, 4], {"shadow_cosine": 1}),
        ([-3.0, -4], [3.0, 4], {"shadow_cosine": -1, "shadow_snr_db": -20 * math.log10(2)}),
        ([0.0, 2], [2.0, 0], {"shadow_cosine": 0, "shadow_snr_db": -10 * math.log10(2)}),
        ([0.0, 0], [3.0, 4], {"shadow_snr_db": 0}),
        ([3.0, 4], [0.0, 0], {}),
        ([0.0, 0], [0.0, 0], {}),
        ([math.nan, 1], [1.0, 1], {}),
        ([1.0, 1], [math.nan, 1], {}),
        ([math.inf, 1], [math.inf, 1], {}),
        ([], [], {}),
    ],
)
def test_what_is_undefined_is_left_out(gradient: list, reference: list, expected: dict) -> None:
    found = shadow_statistics(torch.tensor(gradient), torch.tensor(reference))
    assert found == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(width=32), max_size=20))
def test_the_figures_of_a_gradient_are_numpys_whatever_it_holds(values: list[float]) -> None:
    g = np.array(values, np.float32)
    found = gradient_statistics(torch.from_numpy(g))
    exact = g.astype(np.float64)
    assert found["nonfinite"] == (~np.isfinite(g)).sum()
    assert found["norm_l2"] == pytest.approx(math.sqrt((exact**2).sum()), rel=1e-12, nan_ok=True)
    np.testing.assert_equal(found["norm_inf"], np.abs(exact).max(initial=0.0))
    if values:
        assert found["zero"] == (g == 0).mean()
    else:
        assert "zero" not in found


def test_a_gradient_that_is_large_has_a_norm_and_a_sparse_one_the_norm_of_the_dense() -> None:
    assert gradient_statistics(torch.full((4, 4), 3e38))["norm_l2"] == pytest.approx(1.2e39)
    dense = torch.tensor([[0.0, 0], [1, -2]])
    assert gradient_statistics(dense.to_sparse(1)) == gradient_statistics(dense)
    assert gradient_statistics(dense)["zero"] == 0.5


@pytest.mark.parametrize("given", [STATEFUL, {"quantize": WAG}], ids=["delayed and stochastic", "amax"])
def test_a_run_has_the_same_losses_with_the_shadow_and_without(tmp_path: Path, given: dict) -> None:
    corpus = load_corpus("licenses")
    records = []
    for shadow in (False, True):
        telling = config(**given, max_steps=12, layers_every=3, telemetry={"shadow": shadow})
        records.append(read_run(train(telling, tmp_path, corpus=corpus, progress=False).path))
    without, with_shadow = (record.history.drop(columns="seconds") for record in records)
    assert without.equals(with_shadow)
    both = [set(record.layers["statistic"]) for record in records]
    assert both[1] - both[0] == {"shadow_cosine", "shadow_snr_db"}
    rows = records[1].layers.set_index(["statistic", "layer", "step"])["value"]
    assert len(rows["shadow_cosine"]) == len(set(records[1].layers["layer"])) * 5  # steps 1, 3, 6, 9, 12
    assert rows["shadow_cosine"].between(0.5, 1).all()


def test_without_quantization_the_shadow_is_the_gradient_itself(tmp_path: Path) -> None:
    telling = config(max_steps=4, layers_every=2, telemetry={"shadow": True})
    layers = read_run(train(telling, tmp_path, corpus=load_corpus("licenses"), progress=False).path).layers
    assert (layers.loc[layers["statistic"] == "shadow_cosine", "value"] == 1).all()
    assert "shadow_snr_db" not in set(layers["statistic"])


def test_the_shadow_reads_weights_on_the_grid_as_they_are() -> None:
    model = quantize_model(
        torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)), Policy(get_format("e4m3"), layers=("*",))
    )
    optimizer = ManifoldAdamW(model.parameters(), get_format("e4m3"), precondition=None, storage="grid")
    quantized_layers(model)["0"].grid_scale = optimizer.scale_of(model[0].weight)
    x = torch.randn(5, 4)
    (found,) = shadow_gradients(model, [lambda: model(x).square().sum()]).values()
    torch.testing.assert_close(found, 2 * (x @ model[0].weight.detach().T).T @ x)
