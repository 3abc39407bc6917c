"""A run is decided by config, seed and data; its record survives a kill and says honestly how the run ended."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.config import ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.nn import quantized_layers  # noqa: E402
from altgrad.runs import RunExists, read_run  # noqa: E402
from altgrad.training import Corpus, data, load_corpus, loop, train  # noqa: E402
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
    assert set(layers["operand"]) == {"weight", "activation", "grad_output", "update"}
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
    trained.model, trained.batches = plain, batches
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
    held_out, same = list(first.validation()), list(other.validation())
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

    def broken(chosen: ExperimentConfig) -> torch.nn.Module:
        model = original(chosen)
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
    assert record.run["events"][0]["kind"] == "nonfinite"


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
    cached.write_bytes(cached.read_bytes()[:1000])  # a cache cut short is built again
    assert load_corpus().fingerprint == built.fingerprint
    assert zipfile.is_zipfile(cached)
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
