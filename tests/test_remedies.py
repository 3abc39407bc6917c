"""What cannot run is refused before there is a record; advice names the cause, and nothing that is done already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from altgrad.cli import main
from altgrad.config import parse_config
from altgrad.runs.remedies import remedies

SMALL: dict[str, Any] = {
    "model": {"layers": 1, "dim": 32, "heads": 2, "context": 16},
    "batch_size": 4,
    "eval_batches": 1,
    "max_steps": 10,
    "layers_every": 2,
}
ALL = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}
NATIVE = {**ALL, "compute": "native"}
BROKEN = (
    ({"quantize": {**ALL, "compute": "native"}, "batch_size": 3}, "model.context is 48", False),
    (
        {"quantize": {**ALL, "compute": "native"}, "batch_size": 3, "model": {"context": 15}},
        "model.context is 45",
        True,
    ),
    ({"quantize": {**ALL, "compute": "native"}, "model": {"dim": 24}}, "model.dim is 24", True),
    (
        {"quantize": {**ALL, "compute": "native"}, "tokenizer": "bpe", "vocabulary": 500},
        "the number of tokens, the head's outputs, is 500",
        True,
    ),
    ({"quantize": {"weight": "e8m0"}}, "quantize.weight is e8m0, a scale's format without sign and zero", True),
    ({"quantize": {**ALL, "grad_output": "e8m0"}}, "quantize.grad_output is e8m0", True),
    ({"scaling": {"activation": {"kind": "static", "value": 1e39}}}, "scaling.activation.value", True),
    ({"scaling": {"activation": {"kind": "static", "value": 1e-300}}}, "scaling.activation.value", True),
    ({"quantize": ALL, "stability": {"shift_to": "e2m1"}}, "is no wider than e4m3, e5m2", True),
    ({"quantize": ALL, "stability": {"shift_to": "e8m0"}}, "is no format that tensors are rounded to", True),
)


@pytest.mark.parametrize(("given", "message", "refused"), BROKEN, ids=[each[1][:30] for each in BROKEN])
def test_a_config_that_cannot_run_is_one_line_and_leaves_no_record(
    given: dict[str, Any], message: str, refused: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SMALL, **given, "model": {**SMALL["model"], **given.get("model", {})}}
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(given))
    if not refused:  # 48 rows are a multiple of 16
        parse_config(given, "test")
        return
    assert main(["train", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


def explained(given: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("torch")
    (folder / "config.yaml").write_text(yaml.safe_dump({**SMALL, **given}))
    assert main(["train", str(folder / "config.yaml"), "--out", str(folder / "out")]) == 0
    (record,) = (folder / "out").iterdir()
    capsys.readouterr()
    assert main(["explain", str(record)]) == 0
    return capsys.readouterr().out


def test_a_scale_that_is_too_large_is_named_with_the_operand_that_it_flushes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    static = {"activation": {"kind": "static", "value": 2.0**20}}
    told = explained({"quantize": ALL, "scaling": static}, tmp_path, capsys)
    assert "| underflow | blocks.0.mlp.up.activation | forward | 1 |" in told
    assert "- lower scaling.activation.value, 1.04858e+06, at which what is small becomes zero" in told
    assert "learning rate" not in told.split("## What to try")[1]


def test_gradients_that_are_clipped_to_nothing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = explained({"quantize": ALL, "clip_norm": 1e-30, "layers_every": 0}, tmp_path, capsys)
    assert "- raise clip_norm: at 1e-30 it scales the gradient of each step below optimizer.eps, 1e-08" in told


def test_a_healthy_run_is_given_no_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "What to try" not in explained({"layers_every": 0}, tmp_path, capsys)


# What is advised, of a config that follows some of it


def lines(given: dict[str, Any], *shown: tuple[str, str | None], norms: tuple[float, ...] = (1.0,)) -> str:
    return "\n".join(remedies(parse_config(given, "test"), pd.DataFrame({"grad_norm": list(norms)}), shown))


@pytest.mark.parametrize(
    ("rule", "advised", "kept_back"),
    [
        ({}, "more exponent bits for quantize.weight", "kind: amax"),
        ({"kind": "static", "value": 2.0}, "scaling.weight.kind: amax", "granularity"),
        ({"kind": "delayed"}, "scaling.weight.margin", "granularity"),
        ({"kind": "mx"}, "scaling.weight.kind: mx_rceil", "granularity"),
        ({"kind": "mx_rceil"}, "more exponent bits", "mx_rceil"),
    ],
)
def test_an_overflow_is_answered_by_what_the_scale_is_not(rule: dict[str, Any], advised: str, kept_back: str) -> None:
    told = lines({"quantize": ALL, "scaling": rule}, ("overflow", "weight"))
    assert advised in told
    assert kept_back not in told


@pytest.mark.parametrize(
    ("rule", "advised", "kept_back"),
    [
        ({}, "scaling.grad_output.granularity", "kind: amax"),
        ({"granularity": "row"}, "more exponent bits for quantize.grad_output", "granularity"),
        ({"kind": "mx"}, "more exponent bits", "granularity"),
        ({"kind": "none"}, "scaling.grad_output.kind: amax", "granularity"),
        ({"kind": "delayed"}, "scaling.grad_output.kind: amax, and its granularity", "margin"),
        ({"kind": "delayed", "margin": 2}, "lower scaling.grad_output.margin, 2, or use a format", "granularity"),
        ({"kind": "static", "value": 8.0}, "lower scaling.grad_output.value, 8,", "granularity"),
    ],
)
def test_an_underflow_is_answered_by_what_the_scale_is_not(rule: dict[str, Any], advised: str, kept_back: str) -> None:
    told = lines({"quantize": ALL, "scaling": rule}, ("underflow", "grad_output"))
    assert advised in told
    assert kept_back not in told


def test_a_stall_is_not_answered_by_the_storage_and_rounding_that_there_are() -> None:
    master, stall = {"quantize": ALL}, ("stall", None)
    assert lines(master, stall) == "raise the learning rate, or round stochastically (optimizer.rounding)"
    grid = {**master, "optimizer": {"storage": "grid", "rounding": "stochastic"}}
    assert lines(grid, stall) == "raise the learning rate, or keep float32 master weights (optimizer.storage: master)"


def test_a_gradient_that_vanishes_is_not_blamed_on_what_is_not_rounded_or_not_decayed() -> None:
    vanishing = ("gradient_vanishing", None)
    assert "quantize.grad_output" in lines({"quantize": ALL}, vanishing)
    assert lines({"quantize": {"weight": "e4m3"}}, vanishing) == "lower optimizer.weight_decay"
    assert lines({"optimizer": {"weight_decay": 0}}, vanishing) == ""


def test_what_follows_from_a_flushed_operand_or_from_clipping_is_not_advised_on() -> None:
    after = (("stall", None), ("gradient_vanishing", None))
    assert "learning rate" not in lines({"quantize": ALL}, ("underflow", "activation"), *after)
    assert "learning rate" in lines({"quantize": ALL}, ("underflow", "grad_output"), *after)
    assert lines({"quantize": ALL, "clip_norm": 1e-9}, *after).startswith("raise clip_norm: at 1e-09")
    assert "clip_norm" not in lines({"quantize": ALL, "clip_norm": 1e-9}, *after, norms=(1e-12, 1.0))
