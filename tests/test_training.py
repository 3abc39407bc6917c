"""A run is decided by config, seed and data; its record survives a kill and says honestly how the run ended."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.config import ExperimentConfig, UsageError, load_config, parse_config  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import Policy, quantize_model, quantized_layers  # noqa: E402
from altgrad.runs import RunExists, read_run  # noqa: E402
from altgrad.training import Checkpoints, Corpus, data, load_corpus, loop, train  # noqa: E402
from altgrad.training.distributed import Processes  # noqa: E402
from altgrad.training.loop import Batches, build_model, build_optimizer, rate_factor  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "max_steps": 12,
    "batch_size": 4,
    "warmup_steps": 3,
    "eval_every": 5,
    "eval_batches": 2,
    "layers_every": 6,
    "model": {"layers": 1, "dim": 16, "heads": 2, "context": 16},
}
E5M2 = {"quantize": {"weight": "e5m2", "activation": "e5m2", "grad_output": "e5m2"}}
UPDATE = {"optimizer": {"step_rule": "manifold", "precondition": "update", "learning_rate": 0.5}}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """A text with something to learn: words in random order."""
    random = np.random.default_rng(0)
    words = [data.tokens(word) for word in (b"permission ", b"is hereby ", b"granted\n", b"free of charge ")]
    text = np.concatenate([words[index] for index in random.integers(0, 4, 3000)])
    return Corpus(text[:20_000], text[20_000:24_000], {"name": "words", "sha256": "0" * 64})


def config(**given: object) -> ExperimentConfig:
    return parse_config({**SMALL, **given}, source="test")


def run(out: Path, corpus: Corpus, **given: object) -> loop.Result:
    return train(config(**given), out, corpus=corpus, progress=False)


def events(folder: Path) -> list[dict]:
    """What happened beside clipping by the norm, which happens in most runs."""
    return [event for event in read_run(folder).run["events"] if event["kind"] != "clip"]


@pytest.mark.parametrize("given", [{}, E5M2, {**E5M2, **UPDATE}], ids=["fp32", "e5m2", "manifold"])
def test_the_same_config_and_seed_give_the_same_history(tmp_path: Path, corpus: Corpus, given: dict) -> None:
    records = [read_run(run(tmp_path / name, corpus, **given).path) for name in ("first", "second")]
    first, second = (record.history.drop(columns="seconds") for record in records)
    assert first.equals(second)
    assert records[0].layers.equals(records[1].layers)
    assert not first["loss"].equals(read_run(run(tmp_path, corpus, seed=1, **given).path).history["loss"])


def test_the_record_holds_every_step_the_evaluations_and_the_layers(tmp_path: Path, corpus: Corpus) -> None:
    result = run(tmp_path, corpus, **E5M2)
    record = read_run(result.path)
    assert record.status == result.status == "finished"
    assert record.history["step"].tolist() == list(range(1, 13))
    assert record.history.loc[record.history["val_loss"].notna(), "step"].tolist() == [5, 10, 12]
    last = record.history.iloc[-1]
    assert last["tokens"] == 12 * 4 * 16
    assert last["perplexity"] == pytest.approx(math.exp(last["val_loss"]))
    assert record.run["summary"]["val_loss"] == last["val_loss"]
    assert record.run["summary"]["tokens_per_second"] > 0
    layers = record.layers
    assert sorted(layers["step"].unique()) == [1, 6, 12]
    assert set(layers["operand"]) == {"weight", "activation", "grad_output", "gradient", "update"}
    assert set(layers["layer_type"]) == {"attention", "mlp", "embedding", "head"}
    wide = layers[layers["operand"] == "update"].pivot(index=["step", "layer"], columns="statistic", values="value")
    assert ((wide["flips"] >= 0) & (wide["flips"] <= wide["updates"])).all()
    np.testing.assert_allclose(wide["stall_ratio"], 1 - wide["flips"] / wide["updates"])
    assert wide["stall_ratio"].between(0.05, 1).all()


def test_only_quantized_weights_have_flips(tmp_path: Path, corpus: Corpus) -> None:
    quantize = {**E5M2["quantize"], "layers": ("mlp", "embedding")}
    layers = read_run(run(tmp_path, corpus, quantize=quantize).path).layers
    updates = layers[layers["operand"] == "update"]
    on_a_grid = updates[updates["statistic"].isin(["flips", "updates", "stall_ratio"])]
    assert set(on_a_grid["layer_type"]) == {"mlp", "embedding"}
    assert set(updates.loc[updates["statistic"] == "norm_l2", "layer_type"]) >= {"mlp", "embedding"}


def test_without_quantization_nothing_stalls_or_overflows(tmp_path: Path, corpus: Corpus) -> None:
    layers = read_run(run(tmp_path, corpus).path).layers
    assert not layers["statistic"].isin(["flips", "updates", "stall_ratio"]).any()
    assert (layers["statistic"] == "norm_l2").any()
    assert (layers.loc[layers["statistic"].isin(["overflow", "underflow"]), "value"] == 0).all()


def test_evaluation_reads_the_quantized_weights(tmp_path: Path, corpus: Corpus) -> None:
    result = run(tmp_path, corpus, **{**E5M2, "quantize": {"weight": "e5m2"}})
    trained = loop._Run.__new__(loop._Run)  # the loss is computed again from weights put on the grid by hand
    trained.processes = Processes()
    model = build_model(config(quantize={"weight": "e5m2"}))
    optimizer = build_optimizer(config(quantize={"weight": "e5m2"}), model)
    batches = Batches(corpus, config(), torch.device("cpu"))
    for step in range(1, 13):
        for group in optimizer.param_groups:
            group["lr"] = config().optimizer.learning_rate * rate_factor(config(), step)
        optimizer.zero_grad()
        model.loss(*batches.next()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    plain = build_model(config())
    plain.load_state_dict(model.state_dict())
    for name, layer in quantized_layers(model).items():
        on_grid = layer.operand(layer.weight.detach(), "weight")
        plain.get_submodule(name).weight.data.copy_(on_grid)
    trained.model, trained.batches, trained.eager = plain, batches, plain.loss
    assert trained.evaluate() == pytest.approx(result.summary["val_loss"], abs=1e-6)


def test_batches_depend_on_seed_and_data_alone(corpus: Corpus) -> None:
    first = Batches(corpus, config(), torch.device("cpu"))
    second = Batches(corpus, config(**E5M2, **UPDATE, max_steps=50), torch.device("cpu"))
    other = Batches(corpus, config(seed=1), torch.device("cpu"))
    for _ in range(3):
        token, target = first.next()
        assert torch.equal(token, second.next()[0])
        assert not torch.equal(token, other.next()[0])
        assert torch.equal(token[:, 1:], target[:, :-1])
    held_out, same = list(first.validation(first.held_out)), list(other.validation(other.held_out))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(held_out, same, strict=True))
    assert len(held_out) == 2


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    chosen = config(max_steps=100, warmup_steps=10, min_lr_ratio=0.1)
    assert rate_factor(chosen, 1) == pytest.approx(0.1)
    assert rate_factor(chosen, 10) == pytest.approx(1.0)
    assert rate_factor(chosen, 55) == pytest.approx(0.55)
    assert rate_factor(chosen, 100) == pytest.approx(0.1)
    assert rate_factor(config(schedule="constant", warmup_steps=0), 1) == 1.0


@pytest.mark.parametrize("name", ["fp32", "e4m3", "e5m2"])
def test_one_batch_can_be_learned_by_heart(name: str, corpus: Corpus) -> None:
    chosen = config(
        quantize=dict.fromkeys(("weight", "activation", "grad_output"), name),
        optimizer={"learning_rate": 0.02, "weight_decay": 0},
        model={"layers": 1, "dim": 32, "heads": 2, "context": 16},
    )
    model = build_model(chosen)
    optimizer = build_optimizer(chosen, model)
    token, target = Batches(corpus, chosen, torch.device("cpu")).next()
    for _ in range(120):
        loss = model.loss(token, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The first characters of a window cannot be known from nothing: what remains is about 1/16 of their entropy.
    assert model.loss(token, target).item() < 0.25


def test_nan_in_the_loss_ends_the_run_with_the_first_bad_tensor(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.build_model

    def broken(chosen: ExperimentConfig, *more: Processes) -> torch.nn.Module:
        model = original(chosen, *more)
        with torch.no_grad():
            model.blocks[0].mlp.up.weight.mul_(3e38)
        return model

    monkeypatch.setattr(loop, "build_model", broken)
    result = run(tmp_path, corpus, nan_patience=3)
    record = read_run(result.path)
    assert record.status == "failed"
    failure = record.run["failure"]
    assert failure["kinds"][:2] == ["nan_loss", "early_stop"]
    assert failure["step"] == 1
    assert failure["phase"] in ("forward", "optimizer")
    assert failure["tensor"].startswith("blocks.0.mlp.")
    assert record.history["step"].tolist() == [1, 2, 3]
    assert "nonfinite" in [event["kind"] for event in events(result.path)]


def test_a_run_that_learns_nothing_is_a_divergence(tmp_path: Path, corpus: Corpus) -> None:
    result = run(tmp_path, corpus, optimizer={"learning_rate": 30.0}, max_steps=40)
    assert result.status == "failed"
    assert result.failure is not None
    assert "divergence" in result.failure.kinds
    assert ("early_stop" in result.failure.kinds) == (result.summary["steps"] < 40)


def test_a_finished_run_is_not_run_again(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path, corpus)
    with pytest.raises(RunExists, match="already finished"):
        run(tmp_path, corpus)


def test_an_exception_leaves_a_crashed_record(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop._Run, "evaluate", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, corpus)
    record = read_run(next(tmp_path.iterdir()))
    assert record.status == "crashed"
    assert len(record.history) == 4


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"model": {**SMALL["model"], "context": 500_000}}, "model.context"),
        ({"model": {**SMALL["model"], "dim": 2**40}}, "model.dim=1099511627776"),
        ({"batch_size": 2**50}, "batch_size=1125899906842624"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line_and_leave_no_record(
    tmp_path: Path, corpus: Corpus, given: dict, key: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "runs", corpus, **given)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[x] DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA"), MemoryError()],
)
def test_memory_that_runs_out_names_the_keys(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: loop._Run) -> None:
        raise error

    monkeypatch.setattr(loop._Run, "_train_step", fail)
    with pytest.raises(UsageError, match=r"not enough memory for model\.layers=1"):
        run(tmp_path, corpus)


CHILD = """
import signal
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background leaves it ignored
from altgrad.config import parse_config
from altgrad.training import Corpus, train
text = np.random.default_rng(0).integers(0, 96, 20_000).astype(np.uint8)
corpus = Corpus(text, text, {"name": "noise", "sha256": "1" * 64})
model = {"layers": 1, "dim": 16, "heads": 2, "context": 16}
config = parse_config({"max_steps": 100_000, "batch_size": 4, "model": model}, "child")
train(config, Path(sys.argv[1]), corpus=corpus, progress=False)
"""


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGKILL, "crashed"), (signal.SIGTERM, "interrupted"), (signal.SIGINT, "interrupted")]
)
def test_a_run_that_is_killed_keeps_its_rows(tmp_path: Path, sent: signal.Signals, status: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        rows = 0
        while rows < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
            history = next(tmp_path.glob("*/history.jsonl"), None)
            rows = history.read_bytes().count(b"\n") if history else 0
        assert rows >= 20, "the child did not train"
        folder = next(tmp_path.iterdir())
        assert read_run(folder).status == "running"
        child.send_signal(sent)
        child.wait(30)
    finally:
        child.kill()
        child.wait()
    record = read_run(folder)
    assert record.status == status
    assert len(record.history) >= rows - 1
    assert record.history["step"].tolist() == list(range(1, len(record.history) + 1))


def test_folded_text_has_96_characters_and_front_matter_is_removed() -> None:
    document = "---\nkey: x\nname: a --- b\n---\n\nThe “licence” — naïve\t©\r\n\r\n\r\n\r\nend 漢\n"
    folded = data.fold(data.body(document))
    assert folded == b'The "licence" - naive   (c)\n\nend \n\n'.replace(b"end \n", b"end\n")
    everything = data.tokens(bytes([10, *range(32, 127)]))
    assert everything.tolist() == list(range(96))
    assert data.body("no front matter\n---\nat all") == "no front matter\n---\nat all"


def test_near_duplicates_are_one_group() -> None:
    random = np.random.default_rng(0)
    texts = [b" ".join(b"w%d" % word for word in random.integers(0, 500, 200)) for _ in range(3)]
    changed = texts[0].replace(b"w7", b"x7")
    assert data.near_duplicate_groups([*texts, changed, changed[: len(changed) // 2]]) == [0, 1, 2, 0, 0]


needs_licences = pytest.mark.skipif(
    not any(True for _ in data.metadata.distributions(name=data.PACKAGE)), reason="licensedcode-data is not installed"
)


@needs_licences
def test_the_licences_are_prepared_once_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = load_corpus()
    (cached,) = (tmp_path / "altgrad").iterdir()
    assert load_corpus().fingerprint == built.fingerprint
    held = (cached / "tokens").read_bytes()
    for damaged in (held[:1000], b"\x05" + held[1:]):  # a cache that was cut short or changed is built again
        (cached / "tokens").unlink()  # what is mapped must not become shorter
        (cached / "tokens").write_bytes(damaged)
        assert load_corpus().fingerprint == built.fingerprint
        assert (cached / "tokens").read_bytes() == held
    assert 3.5e6 < built.train.size < 4.2e6
    assert 0.08 < built.validation.size / built.train.size < 0.15
    assert built.train.max() == 95
    train_text, held_out = built.train.tobytes(), built.validation.tobytes()
    windows = [held_out[start : start + 200] for start in range(0, len(held_out) - 200, 1000)]
    leaked = sum(window in train_text for window in windows)
    assert leaked < 0.02 * len(windows), "validation text occurs in the training text"


def test_data_that_are_not_there_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise data.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.metadata, "version", missing)
    with pytest.raises(UsageError, match=r"licensedcode-data is missing; run: pip install"):
        load_corpus()
    with pytest.raises(UsageError, match="not a data set"):
        load_corpus("novels")


def test_offline_tracking_really_calls_wandb(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = run(tmp_path / "runs", corpus, tracking="offline")
    assert result.status == "finished"
    written = list(result.path.rglob("*.wandb"))
    assert len(written) == 1
    deadline = time.monotonic() + 20  # wandb's own process writes the file, some time after the run's end
    while written[0].stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"val_loss" in written[0].read_bytes()


def test_online_tracking_without_a_key_goes_on_with_the_local_record(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    begun = time.monotonic()
    result = run(tmp_path / "runs", corpus, tracking="online")
    assert result.status == "finished"
    assert time.monotonic() - begun < 10
    warning = capsys.readouterr().err.strip()
    assert warning.count("\n") == 0
    assert "WANDB_API_KEY" in warning
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert run(tmp_path / "runs", corpus, tracking="online", seed=1).status == "finished"
    assert "cannot be reached" in capsys.readouterr().err


def test_an_unquantized_run_is_the_plain_torch_loop_bit_by_bit(tmp_path: Path, corpus: Corpus) -> None:
    history = read_run(run(tmp_path, corpus, layers_every=0).path).history
    chosen = config()
    model = GPT(96, **SMALL["model"], seed=0)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.6e-2, betas=(0.9, 0.99), eps=1e-8)
    random = np.random.default_rng([0, 1])
    for step in range(1, 13):
        starts = random.integers(0, 20_000 - 16, 4)
        windows = torch.tensor(corpus.train[starts[:, None] + np.arange(17)].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1.6e-2 * rate_factor(chosen, step)
        optimizer.step()
        row = history.iloc[step - 1]
        assert (row["loss"], row["grad_norm"]) == (loss.item(), float(norm))


def test_a_default_quantized_run_is_nearest_even_at_the_current_amax(tmp_path: Path, corpus: Corpus) -> None:
    history = read_run(run(tmp_path, corpus, **E5M2).path).history
    model = quantize_model(GPT(96, **SMALL["model"], seed=0), Policy(*[get_format("e5m2")] * 3))
    optimizer = build_optimizer(config(**E5M2), model)
    assert type(optimizer) is torch.optim.AdamW
    batches = Batches(corpus, config(), torch.device("cpu"))
    for step in range(1, 13):
        loss = model.loss(*batches.next())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1.6e-2 * rate_factor(config(), step)
        optimizer.step()
        assert history["loss"].iloc[step - 1] == loss.item()


@pytest.mark.parametrize("given", [{}, {"quantize": {"weight": "e4m3"}}], ids=["fp32", "weights"])
def test_accumulated_batches_are_one_large_batch(tmp_path: Path, corpus: Corpus, given: dict) -> None:
    large = read_run(run(tmp_path, corpus, batch_size=8, **given).path).history
    small = read_run(run(tmp_path, corpus, batch_size=4, accumulate=2, eval_batches=4, **given).path).history
    assert small["tokens"].equals(large["tokens"])
    np.testing.assert_allclose(small["loss"], large["loss"], rtol=2e-3 if given else 1e-5)
    assert small["val_loss"].iloc[-1] == pytest.approx(large["val_loss"].iloc[-1], abs=0.05)


def test_draws_depend_on_the_step_and_the_batch_and_not_on_who_looks(tmp_path: Path, corpus: Corpus) -> None:
    given = {"quantize": {**E5M2["quantize"], "rounding": {"grad_output": "stochastic"}}, "accumulate": 2}
    watched = read_run(run(tmp_path / "a", corpus, **given, layers_every=1).path).history
    unwatched = read_run(run(tmp_path / "b", corpus, **given, layers_every=0).path).history
    assert watched["loss"].equals(unwatched["loss"])
    often = read_run(run(tmp_path / "c", corpus, **given, eval_every=1).path).history
    assert often["loss"].equals(unwatched["loss"]), "evaluations take no draws from training"
    nearest = read_run(run(tmp_path / "d", corpus, **E5M2, accumulate=2).path).history
    assert not nearest["loss"].equals(unwatched["loss"])


def test_range_aware_clipping_keeps_gradients_within_the_range_of_their_weight() -> None:
    model = build_model(config(**E5M2))
    layers = quantized_layers(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    layer = layers["blocks.0.mlp.up"]
    layer.weight.data.fill_(0.5)[0, 0] = 0.7  # the largest weight that E5M2 could hold at its scale is 0.875
    layer.weight.grad.view(-1)[:4] = torch.tensor([0.8, -5.0, math.inf, math.nan])
    model.final_norm.weight.grad[0] = 100.0
    assert loop.clip_to_range(model) == 1
    found = layer.weight.grad.view(-1)[:4].tolist()
    assert found[:3] == [pytest.approx(0.8), -0.875, math.inf]
    assert math.isnan(found[3])
    assert model.final_norm.weight.grad[0] == 100, "what is not quantized has no range"
    plain = build_model(config())
    assert loop.clip_to_range(plain) == 0


def test_clips_are_counted(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "amax_scale", lambda *given, **more: torch.tensor(1e-9))
    result = run(tmp_path, corpus, **E5M2, stability={"clip": "range_aware"})
    history = read_run(result.path).history
    assert (history["clipped"] > 0).all()
    assert result.summary["clipped"] == history["clipped"].sum()
    assert result.summary["range_clipped_steps"] == 12
    assert result.summary["norm_clipped_steps"] == 0, "nothing is left to clip"
    (clip,) = (event for event in read_run(result.path).run["events"] if event["kind"] == "clip")
    assert (clip["step"], clip["limit"]) == (1, "range")
    assert "clipped" not in read_run(run(tmp_path, corpus, **E5M2).path).history


def test_a_run_without_improvement_stops_early_and_is_finished(tmp_path: Path, corpus: Corpus) -> None:
    chosen = {"stability": {"patience": 2}, "eval_every": 1, "max_steps": 200, "layers_every": 0}
    result = run(tmp_path, corpus, optimizer={"learning_rate": 0.3}, **chosen)
    assert result.status == "finished"
    record = read_run(result.path)
    assert result.summary["stopped_early"] == record.history["step"].max() < 200
    best = record.history["val_loss"].idxmin()
    assert result.summary["best_step"] == record.history["step"][best] == result.summary["stopped_early"] - 2
    assert result.summary["best_val_loss"] == record.history["val_loss"][best]
    assert events(result.path) == [
        {"kind": "early_stop", "step": result.summary["stopped_early"], "best_step": result.summary["best_step"]}
    ]


ADAMW_SHIFT = {"quantize": E5M2["quantize"]}
GRID_SHIFT = {**ADAMW_SHIFT, "optimizer": {"storage": "grid", "rounding": "stochastic"}}


@pytest.mark.parametrize("given", [ADAMW_SHIFT, {**ADAMW_SHIFT, **UPDATE}, GRID_SHIFT], ids=["adamw", "update", "grid"])
def test_bad_steps_shift_the_format_once_and_the_run_goes_on_under_its_name(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, given: dict
) -> None:
    original = GPT.loss

    def too_narrow(self: GPT, token: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        bad = self.head.policy.weight.format.name == "e5m2" and self.head.clock.step >= 4
        return original(self, token, target) * (math.nan if bad else 1.0)

    monkeypatch.setattr(GPT, "loss", too_narrow)
    chosen = {**given, "nan_patience": 2, "stability": {"shift_to": "e3m4"}, "checkpoint": {"every": 1, "keep": 99}}
    result = run(tmp_path / "whole", corpus, **chosen)
    record = read_run(result.path)
    assert record.status == "finished"
    shifts = [event for event in record.run["events"] if event["kind"] == "shift"]
    assert shifts == [{"kind": "shift", "step": 5, "from": "e5m2", "to": "e3m4"}]
    assert result.run_id.startswith("e5m2-")
    assert record.config.quantize.weight == "e5m2"
    assert result.summary["nonfinite_steps"] == 2
    assert np.isfinite(record.history["loss"].drop([3, 4])).all()
    kept = Checkpoints(result.path, config(**chosen), corpus.fingerprint["sha256"])
    before, after = (kept.load(kept.folder / f"step-{step}") for step in (3, 5))
    for index, state in before["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg"], after["optimizer"]["state"][index]["exp_avg"])
    if given is not GRID_SHIFT:  # on the grid the weights move onto the new one
        assert all(torch.equal(tensor, after["model"][name]) for name, tensor in before["model"].items())
    for step in (4, 5, 9):  # resumed before, at and after the shift
        folder = tmp_path / f"from-{step}" / result.run_id
        shutil.copytree(result.path, folder)
        head = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(head | {"status": "interrupted"}))
        for path in (folder / "checkpoints").glob("step-*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        resumed = train(config(**chosen), tmp_path / f"from-{step}", corpus=corpus, progress=False, resume=True)
        assert read_run(resumed.path).history.drop(columns="seconds").equals(record.history.drop(columns="seconds"))


def test_a_shift_that_does_not_help_ends_the_run(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "loss", lambda self, token, target: self(token).sum() * math.nan)
    result = run(tmp_path, corpus, **E5M2, nan_patience=2, stability={"shift_to": "bf16"})
    assert result.status == "failed"
    assert result.summary["steps"] == 4
    assert [event["kind"] for event in events(result.path)] == ["nonfinite", "shift", "nonfinite"]


def test_a_run_whose_last_steps_are_bad_has_failed_though_there_is_a_format_to_shift_to(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "loss", lambda self, token, target: self(token).sum() * (math.nan if self.training else 0))
    result = run(tmp_path, corpus, **E5M2, nan_patience=2, stability={"shift_to": "bf16"}, max_steps=2, warmup_steps=0)
    assert result.status == "failed"
    assert [event["kind"] for event in events(result.path)] == ["nonfinite"]


def test_a_shift_to_a_format_that_the_config_cannot_have_is_refused_at_once(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r"stability\.shift_to=fp32: .*storage 'grid'"):
        run(tmp_path, corpus, **GRID_SHIFT, stability={"shift_to": "fp32"})
    assert not list(tmp_path.iterdir())


def test_moves_of_a_grids_scale_are_events_up_to_a_bound(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.EVENT_LIMITS, "scale", 3)
    grid = {"storage": "grid", "rounding": "stochastic", "learning_rate": 1.0, "weight_decay": 0}
    result = run(tmp_path, corpus, **E5M2, optimizer=grid)
    moves = [event for event in read_run(result.path).run["events"] if event["kind"] == "scale"]
    assert len(moves) == 3 < result.summary["scale_moves"]
    for move in moves:
        assert move["layer"] in quantized_layers(build_model(config()))
        assert math.log2(move["new"] / move["old"]).is_integer()


def test_weights_on_the_grid_are_read_at_the_optimizers_scale() -> None:
    chosen = config(**GRID_SHIFT)
    model = build_model(chosen)
    optimizer = build_optimizer(chosen, model)
    for layer in quantized_layers(model).values():
        assert layer.grid_scale is optimizer.scale_of(layer.weight)
        assert torch.equal(layer.operand(layer.weight, "weight"), layer.weight)


def test_steps_that_nobody_observes_are_compiled_where_asked(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def compiled(function):  # type: ignore[no-untyped-def]
        def call(*given):  # type: ignore[no-untyped-def]
            called.append(given)
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    eager = read_run(run(tmp_path, corpus, **E5M2).path)
    quick = read_run(run(tmp_path, corpus, **E5M2, compile=True).path)
    assert quick.id != eager.id
    assert len(called) == 1 + 12 - 3, "a trial, and the steps without telemetry"
    assert quick.history["loss"].equals(eager.history["loss"])
    monkeypatch.setattr(torch, "compile", lambda function: 1 / 0)
    without = run(tmp_path / "none", corpus, **E5M2, compile=True)
    assert read_run(without.path).history["loss"].equals(eager.history["loss"])
    assert events(without.path) == [{"kind": "eager", "step": 0, "reason": "ZeroDivisionError"}]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, about torch itself
def test_a_compiled_run_draws_and_remembers_what_the_eager_run_does(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial before the first step leaves no trace in the histories of delayed scales."""
    given = {"quantize": {**E5M2["quantize"], "rounding": {"activation": "stochastic"}}, "draw_version": 2}
    given |= {"scaling": {"kind": "delayed"}, "model": {"layers": 1, "dim": 16, "heads": 2, "context": 8}}
    compiler, made = torch.compile, []

    def compiled(function):  # type: ignore[no-untyped-def]
        made.append(compiler(function, backend="aot_eager"))
        return made[-1]

    monkeypatch.setattr(torch, "compile", compiled)
    eager, quick = (run(tmp_path, corpus, **given, compile=compile, layers_every=5) for compile in (False, True))
    assert len(made) == 1
    assert not events(quick.path)
    for name in ("loss", "grad_norm", "val_loss"):
        found, expected = (read_run(result.path).history[name].dropna() for result in (quick, eager))
        np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_the_version_of_the_draws_is_a_config_s_own_and_changes_them(tmp_path: Path, corpus: Corpus) -> None:
    drawn = {"quantize": {**E5M2["quantize"], "rounding": {"grad_output": "stochastic"}}}
    for given in (drawn, {**E5M2, "optimizer": {"storage": "grid", "rounding": "stochastic", "learning_rate": 0.01}}):
        assert "draw_version" not in config(**given).identity()
        assert config(**given, draw_version=1).identity() == config(**given).identity()
        first, second = (run(tmp_path, corpus, **given, draw_version=version) for version in (1, 2))
        assert not read_run(first.path).history["loss"].equals(read_run(second.path).history["loss"])
    with pytest.raises(UsageError, match="draw_version 2 is of stochastic rounding, and nothing is rounded so"):
        config(**E5M2, draw_version=2)


def test_two_processes_give_the_same_history(tmp_path: Path) -> None:
    script = CHILD.replace("100_000", "20").replace('"model": model', '"quantize": quantize, "model": model')
    script = script.replace("model =", 'quantize = {"weight": "e4m3", "grad_output": "e5m2"}\nmodel =')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    children = [subprocess.Popen([*command, str(tmp_path / name)], env=environment) for name in ("first", "second")]
    assert [child.wait(60) for child in children] == [0, 0]
    first, second = (read_run(next((tmp_path / name).iterdir())) for name in ("first", "second"))
    assert first.history.drop(columns="seconds").equals(second.history.drop(columns="seconds"))
    assert first.layers.equals(second.layers)


def test_a_text_of_ones_own_is_folded_split_and_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "my “text”.txt"
    path.write_bytes("\ufeff".encode() + ("naïve — 漢字\r\n" * 200).encode())
    found = data.load_text(path)
    assert data.fold("naïve — 漢字\r\n" * 200)[:16] == b"naive -\nnaive -\n"
    assert found.train[:8].tolist() == data.tokens(b"naive -\n").tolist()
    assert found.validation.size == (found.train.size + found.validation.size) // 10
    fingerprint = found.fingerprint
    assert fingerprint["name"] == "my _text_.txt"
    assert fingerprint["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint["left_out"] == 0.25
    assert str(tmp_path) not in str(fingerprint)
    (tmp_path / "other.txt").write_text("naive -\n" * 200)
    other = data.load_text(tmp_path / "other.txt").fingerprint
    assert other["sha256"] == fingerprint["sha256"], "the same training text is the same data"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("folder", "cannot be read"),
        (b"", "0 characters|2 characters"),
        ("漢字".encode() * 2000, "folded to ASCII"),
        (b"abc" * 50, "at least 1000"),
        (b"fine until \xff" + b"x" * 2000, "not UTF-8 text .byte 11"),
    ],
    ids=["missing", "folder", "empty", "no ASCII", "short", "binary"],
)
def test_a_bad_data_file_is_one_line(tmp_path: Path, content: bytes | str | None, said: str) -> None:
    path = tmp_path / "text.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        data.load_text(path)
    assert str(caught.value).startswith("--data ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_trains(path: Path, tmp_path: Path, corpus: Corpus) -> None:
    small = ["max_steps=3", "batch_size=2", "eval_batches=1", "warmup_steps=1", "model={layers: 1, dim: 8, heads: 1}"]
    result = train(load_config(path, small), tmp_path, corpus=corpus, progress=False)
    assert result.status == "finished"
    assert result.summary["steps"] == 3
    assert math.isfinite(result.summary["val_loss"])


@pytest.mark.filterwarnings("ignore:no layer and no parameter")
def test_patterns_that_match_no_layer_are_refused() -> None:
    config = parse_config({"quantize": {"weight": "e4m3", "patterns": ["blocks.9.*"]}}, source="test")
    with pytest.raises(UsageError, match=r"blocks\.9.* match no layer"):
        build_model(config)
