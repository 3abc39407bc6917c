"""`altgrad compare`: what it runs, and its answer recomputed from the tables by other code; a finished run goes on."""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from altgrad.analysis.question import question
from altgrad.cli import main
from altgrad.config import ExperimentConfig, UsageError, load_config
from altgrad.runs import load_runs, read_run, run_id
from altgrad.runs.query import verify

DATA = {"sha256": "0" * 64}
SMALL = """
max_steps: 6
batch_size: 2
eval_batches: 2
eval_every: 3
warmup_steps: 2
layers_every: 0
telemetry: {watch: false}
model: {layers: 1, dim: 8, heads: 1, context: 8}
"""
OWN = """
import torch
from torch import nn

def build(seed):
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    truth = torch.randn(8, 4, generator=torch.Generator().manual_seed(7))

    def batch(number, stream):
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(stream + number))
        return {"x": x, "y": (x @ truth).argmax(1)}

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    return model, loss, lambda number: batch(number, 1000 * (seed + 1)), [batch(n, 0) for n in range(3)]

def by_seed(seed):
    model, loss, train, _ = build(seed)
    return model, loss, train, [train(0)]

def ends(seed):
    model, loss, train, validation = build(seed)
    return model, loss, (train(number) for number in range(3)), validation

def breaks(seed):
    raise RuntimeError("no such file")

def nested(seed):
    model, _, train, validation = build(seed)

    def loss(model, batch):
        return model(torch.nested.nested_tensor([batch["x"][:2], batch["x"][:3]], layout=torch.jagged)).values().sum()

    return model, loss, train, validation

def three(seed):
    return build(seed)[:3]

def vector(seed):
    model, _, train, validation = build(seed)
    return model, lambda model, batch: model(batch["x"]), train, validation

def gpt2(seed):
    from transformers import GPT2Config, GPT2LMHeadModel
    size = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**size))
    generator = torch.Generator().manual_seed(seed)
    train = [torch.randint(0, 32, (2, 8), generator=generator) for _ in range(3)]
    held_out = [torch.arange(16).reshape(2, 8)]
    return model, lambda model, batch: model(batch, labels=batch).loss, train, held_out
"""
OWN_CONFIG = "max_steps: 8\nwarmup_steps: 2\neval_every: 4\nlayers_every: 4\noptimizer: {learning_rate: 0.01}\n"


@pytest.fixture(scope="module")
def trained() -> Iterator[list[ExperimentConfig]]:
    """The configs that are trained, one after the other: in this process, without workers."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from altgrad.training import pool

    done: list[ExperimentConfig] = []

    def results(todo: list[ExperimentConfig], train: Any, *_: Any) -> Iterator[tuple[str, str]]:
        done.extend(todo)
        return map(partial(pool.run_one, pickle.loads(pickle.dumps(train))), todo)  # as another process gets it

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "results", results)
        yield done
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def answered(trained: list[ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("licensedcode", reason="licensedcode-data is not installed")
    out = tmp_path_factory.mktemp("compare")
    (out / "small.yaml").write_text(SMALL)
    assert main([*command(out), "--rates", "0.02"]) == 0
    return out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module of one's own, in which one works."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "models_of_mine.py").write_text(OWN)
    (folder / "own.yaml").write_text(OWN_CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("models_of_mine", None)


def command(out: Path, formats: str = "e4m3,mxfp8", seeds: int = 3) -> list[str]:
    return ["compare", str(out / "small.yaml"), "--formats", formats, "--seeds", str(seeds), "--out", str(out / "runs")]


def last_losses(folder: Path, ids: list[str]) -> list[float]:
    """The last validation loss of each run, from its table alone."""
    columns = (pq.read_table(folder / each / "history.parquet")["val_loss"].to_pylist() for each in ids)
    return [next(loss for loss in reversed(column) if loss is not None) for column in columns]


def test_the_intervals_are_those_of_scipy_over_the_recorded_tables(answered: Path) -> None:
    from scipy import stats

    found = json.loads((answered / "runs" / "compare.json").read_text())
    losses = {arm["name"]: last_losses(answered / "runs", arm["runs"]) for arm in found["arms"]}
    assert {name: len(each) for name, each in losses.items()} == {"FP32": 3, "E4M3": 3, "mxfp8": 3}
    p_values = {}
    for row in found["costs"]:
        pairs = [one - two for one, two in zip(losses[row["contrast"]], losses["FP32"], strict=True)]
        test = stats.ttest_1samp(pairs, 0.0)
        interval = test.confidence_interval(0.95)
        p_values[row["contrast"]] = test.pvalue
        assert (row["difference"], row["n_pairs"]) == (pytest.approx(sum(pairs) / 3), 3)
        assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high])
        below = stats.ttest_1samp(pairs, 0.01, alternative="less").pvalue
        above = stats.ttest_1samp(pairs, -0.01, alternative="greater").pvalue
        assert row["p_equivalent"] == pytest.approx(max(below, above))
    first, second = sorted(p_values, key=lambda name: p_values[name])
    adjusted = {row["contrast"]: row["p_holm"] for row in found["costs"]}
    assert adjusted[first] == pytest.approx(min(1, 2 * p_values[first]))
    assert adjusted[second] == pytest.approx(max(adjusted[first], p_values[second]))
    text = (answered / "runs" / "compare.md").read_text()
    best = min(found["formats"], key=lambda row: row["gap"])
    assert found["best"] == best["format"]
    assert f"{abs(best['gap']):.3f} nats per character {'above' if best['gap'] >= 0 else 'below'} FP32" in text
    assert "Each format is at its own learning rate" in text
    assert "not in embedding, head; MX scales rounded up along the contraction" in text


def test_a_second_call_runs_what_is_missing_and_gives_the_same_answer(
    answered: Path, trained: list[ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    from shutil import rmtree

    folder, before = answered / "runs", json.loads((answered / "runs" / "compare.json").read_text())
    gone = before["arms"][1]["runs"][0]
    rmtree(folder / gone)
    trained.clear()
    assert main([*command(answered), "--rates", "0.02"]) == 0
    assert [(config.quantize.weight, config.seed, config.study) for config in trained] == [("e4m3", 0, "compare")]
    assert json.loads((folder / "compare.json").read_text()) == before
    assert "15 runs, 14 recorded, 1 to do" in capsys.readouterr().out
    assert verify([folder]) == (15, [], [])
    studies = [record.config.study for record in load_runs((folder,)).records]
    assert (studies.count("compare"), studies.count("compare-tuning")) == (9, 6)


def test_a_dry_run_counts_and_records_nothing(
    answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command(answered, "e4m3"), "--rates", "0.02,0.04", "--dry-run", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert (
        "2 arms (FP32, E4M3), each with 2 learning rates on 2 held-out seeds and 3 seeds: 14 runs, 0 recorded" in said
    )
    assert "at most 8 runs more of an arm" in said
    assert "min with " in said
    assert not (tmp_path / "runs").exists()


def test_sweeps_go_on_at_an_edge_and_pairs_follow_at_the_best_rate(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    asked = question(load_config(tmp_path / "small.yaml"), ["e4m3", "nvfp4"], 3)
    losses: dict[str, float] = {}
    best = {"fp32": 0.064, "e4m3": 0.016, "nvfp4": 0.004}  # of the config: 0.016, swept from half of it to twice
    for _ in range(6):
        for config in asked.plan(losses, identity):
            name = "nvfp4" if config.name == "nvfp4" else config.quantize.weight
            losses[identity(config)] = 2 + abs(math.log(config.optimizer.learning_rate / best[name]))
    wanted = asked.plan(losses, identity)
    assert all(identity(config) in losses for config in wanted)
    pairs = [config for config in wanted if config.study == "compare"]
    assert {config.seed for config in wanted if config.study == "compare-tuning"} == {100, 101}
    assert [config.seed for config in pairs] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {config.optimizer.learning_rate for config in pairs if config.quantize.weight == "fp32"} == {0.064}
    assert {config.optimizer.learning_rate for config in pairs if config.name == "nvfp4"} == {0.004}
    tried = {name: asked.sweep(name, losses, identity)[0] for name in asked.arms}
    assert tried["FP32"] == [0.008, 0.016, 0.032, 0.064, 0.128]
    assert tried["E4M3"] == [0.008, 0.016, 0.032]


def test_held_out_seeds_are_no_seeds_of_the_pairs(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    asked = question(load_config(tmp_path / "small.yaml", seed=99), ["e4m3"], 3)
    assert list(asked.seeds) == [99, 102, 103]


def identity(config: ExperimentConfig) -> str:
    return run_id(config, DATA)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--formats", "e4m9"], "--formats e4m9: unknown format 'e4m9'"),
        (["--formats", "fp32"], "leave it out"),
        (["--formats", ","], "--formats: name one at least"),
        (["--formats", "e4m3", "--seeds", "0"], "--seeds 0"),
        (["--formats", "e4m3", "--rates", "fast"], "--rates fast: give numbers"),
        (["--formats", "e4m3", "--rates", "-1"], "learning rates are above 0"),
        (["--formats", "e4m3", "--rates", "1", "--no-tune"], "give one of them"),
        (["--formats", "e4m3", "--steps", "0"], "max_steps"),
        (["--formats", "e4m3", "--margin", "0"], "--margin 0"),
        (["--formats", "e4m3", "--set", "optimizer.storage=grid"], "quantize.weight to be a format narrower than fp32"),
        (["--formats", "e8m0"], "e8m0"),
        (["--formats", "e4m3", "--set", "model.context=100000000"], "model.context: 100000000 is longer than the data"),
        (["--formats", "e4m3", "--model", "nowhere:build"], "there is no module nowhere"),
        (["--formats", "e4m3", "--model", "models_of_mine"], "write MODULE:FUNCTION"),
        (
            ["--formats", "e4m3", "--model", "models_of_mine:build", "--set", "model.dim=8"],
            "model.dim=8: --model brings",
        ),
        (["--formats", "e4m3", "--model", "models_of_mine:build", "--set", "checkpoint.every=2"], "no checkpoints"),
        (["--formats", "e4m3", "--model", "models_of_mine:none"], "has no function none"),
        (
            [
                "--formats",
                "e4m3",
                "--model",
                "models_of_mine:build",
                "--set",
                "quantize={weight: e4m3, activation: e4m3, grad_output: e4m3, compute: native}",
            ],
            "layer 0: native FP8 products need rows, inputs and outputs in multiples of 16, not (32, 8, 16)",
        ),
        (["--formats", "e4m3", "--model", "models_of_mine:nested"], "layer 0: its input is a nested tensor"),
        (
            ["--formats", "e4m3", "--model", "models_of_mine:breaks"],
            "RuntimeError: no such file (models_of_mine.py, line",
        ),
        (["--formats", "e4m3", "--model", "models_of_mine:three"], "must return (model, loss, train, validation)"),
        (["--formats", "e4m3", "--model", "models_of_mine:vector"], "its loss must be a scalar tensor"),
        (["--formats", "e4m3", "--model", "models_of_mine:by_seed"], "the validation batches differ between seeds"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_no_record(
    own: Path, arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("licensedcode", reason="licensedcode-data is not installed")
    assert main(["compare", str(own / "own.yaml"), *arguments, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert part in said
    assert not (tmp_path / "runs").exists()


def test_processes_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "own.yaml", "--formats", "e4m3"]) == 2
    assert "error: altgrad compare shares out its runs itself (--workers)" in capsys.readouterr().err


def test_a_model_of_ones_own_trains_as_a_plain_loop_does_and_its_records_are_whole(
    own: Path, trained: list[ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    arguments = ["compare", "own.yaml", "--formats", "e4m3,mxfp8", "--seeds", "2", "--no-tune", "--margin", "0.5"]
    assert main([*arguments, "--model", "models_of_mine:build", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "E4M3: 90.6% of parameters and 100.0% of multiply-adds quantized" in said  # all but 20 biases of 212
    assert "mxfp8: 90.6% of parameters" in said
    assert "**Untuned:**" in said
    assert "no format has the 3 pairs needed, 2 at most" in said
    found = json.loads((tmp_path / "compare.json").read_text())
    recorded = dict(zip((0, 1), last_losses(tmp_path, found["arms"][0]["runs"]), strict=True))
    module = sys.modules["models_of_mine"]
    for seed, loss in recorded.items():
        torch.manual_seed(seed)
        model, criterion, train, validation = module.build(seed)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-8)
        for step in range(1, 9):
            cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / 6)) / 2
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step / 2 if step < 2 else cosine)
            optimizer.zero_grad()
            criterion(model, train(step - 1)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            mean = sum(float(criterion(model, batch)) for batch in validation) / 3
        assert loss == pytest.approx(mean, rel=1e-6)
    records = load_runs((tmp_path,)).records
    assert verify([tmp_path]) == (6, [], [])
    for record in records:
        assert record.config.foreign is not None
        assert record.config.foreign["task"] == "models_of_mine:build"
        assert set(record.layers["layer"]) == {"0", "2"}
        assert "tokens" not in record.history
    from altgrad.analysis import ExperimentDataLoader
    from altgrad.reports.own import own_pages

    pages = own_pages(ExperimentDataLoader((tmp_path,)))  # what a site of this folder begins with
    assert [page.path for page in pages] == ["overview", "effects", "curves", "health"]


def test_batches_that_end_are_named(own: Path, trained: list[ExperimentConfig], tmp_path: Path) -> None:
    from altgrad.analysis.question import own_config
    from altgrad.training import train
    from altgrad.training.task import load_task

    config = own_config(load_config("own.yaml"), "fp32", {"task": "models_of_mine:ends"})
    with pytest.raises(UsageError, match="its training batches end after 3; give an iterable"):
        train(config, tmp_path, task=load_task("models_of_mine:ends"), progress=False)


def test_gpt2_of_transformers_is_compared(
    own: Path, trained: list[ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    arguments = ["compare", "own.yaml", "--formats", "e4m3", "--seeds", "2", "--no-tune", "--set", "max_steps=4"]
    assert main([*arguments, "--model", "models_of_mine:gpt2", "--out", str(tmp_path)]) == 0
    share = float(capsys.readouterr().out.partition("E4M3: ")[2].partition("%")[0])
    assert share > 90, "Conv1D, embeddings and the tied head"
    record = next(each for each in load_runs((tmp_path,)).records if each.config.name == "e4m3")
    assert "transformer.h.0.attn.c_attn" in set(record.layers["layer"])
    assert record.history["loss"].iloc[-1] < record.history["loss"].iloc[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each schedule that has finished."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("licensedcode", reason="licensedcode-data is not installed")
    from altgrad.training import train

    root = tmp_path_factory.mktemp("finished")
    (root / "small.yaml").write_text(SMALL + "quantize: {weight: e4m3, activation: e4m3, grad_output: e4m3}\n")
    delayed = ["scaling.kind=delayed", "optimizer.rounding=stochastic", "layers_every=2", "telemetry.watch=true"]
    found = {}
    for schedule in ("constant", "cosine"):
        sets = [*delayed, f"schedule={schedule}", "checkpoint.every=4", "study=parts"]
        found[schedule] = train(load_config(root / "small.yaml", sets), root / "runs", progress=False).path
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_goes_on_as_one_that_was_planned_so_long(
    finished: dict[str, Path], schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from altgrad.training import train

    old = finished[schedule]
    kept = {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    assert main(["continue", str(old), "--steps", "9", "--out", str(tmp_path / "longer")]) == 0
    said = capsys.readouterr().err
    assert ("the cosine ended at step 6: the further steps have the rate 0.0016" in said) == (schedule == "cosine")
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()} == kept
    (longer,) = load_runs((tmp_path / "longer",)).records
    assert longer.config.schedule_steps == (6 if schedule == "cosine" else None)
    planned = read_run(train(longer.config, tmp_path / "planned", progress=False).path)
    assert longer.id == planned.id
    assert longer.history.drop(columns="seconds").equals(planned.history.drop(columns="seconds"))
    assert longer.layers.equals(planned.layers)
    events = [event for event in longer.run["events"] if event["kind"] != "continued"]
    assert events == planned.run["events"]
    assert {"kind": "continued", "step": 6, "run": old.name} in longer.run["events"]
    tensors = [
        (root / longer.id / "checkpoints" / "step-9" / "tensors.safetensors").read_bytes()
        for root in (tmp_path / "longer", tmp_path / "planned")
    ]
    assert tensors[0] == tensors[1]
    assert verify([tmp_path / "longer"]) == (1, [], [])


def test_what_cannot_go_on_is_one_line(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shutil import copytree, rmtree

    old = finished["constant"]
    bare, stopped = tmp_path / old.name, tmp_path / "stopped" / old.name
    copytree(old, bare)
    rmtree(bare / "checkpoints")
    copytree(old, stopped)
    text = (stopped / "run.json").read_text()
    (stopped / "run.json").write_text(text.replace('"status": "finished"', '"status": "interrupted"'))
    for run, steps, part in (
        (old, 6, "the run has 6 steps; give more"),
        (tmp_path / "nothing", 9, "no such folder"),
        (bare, 9, "has no checkpoint"),
        (stopped, 9, "only a finished one can become longer"),
    ):
        assert main(["continue", str(run), "--steps", str(steps), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line.startswith("error: ") for line in said][-1:] == [True]
        assert part in said[-1]
    assert not (tmp_path / "out").exists()
