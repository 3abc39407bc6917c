"""One run's diagnosis, from its record alone: what broke, from which step, where; and the report that says so."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import markdown as python_markdown
import numpy as np
import pandas as pd
import pytest
from records import DATA, config, write_run

from altgrad.cli import main
from altgrad.config import ExperimentConfig
from altgrad.runs import FAILURE_KINDS, Failure, RunRecord, RunWriter, read_run, record
from altgrad.runs.diagnosis import (
    DIAGNOSED,
    LAST_LOSSES,
    LOSSES,
    SYMPTOMS,
    diagnose,
    symptoms,
    warnings_of,
)
from altgrad.runs.failure_report import failure_report

LIMIT = ExperimentConfig().diverged
WARNING = {"kind": "warning", "phase": "forward", "value": 9.0, "message": "m", "what": "jump"}


@pytest.fixture
def stopped(tmp_path: Path) -> RunRecord:
    """A healthy run that Ctrl-C has ended at its tenth step; its record has no failure yet."""
    given = config("e4m3", nan_patience=3, warmup_steps=3)
    return read_run(write_run(tmp_path, given, status="interrupted"))


def but(run: RunRecord, history: pd.DataFrame | None = None, layers: pd.DataFrame | None = None, **head: Any) -> Any:
    """The record with other tables, and other keys in run.json."""
    tables = {
        "history": run.history if history is None else history,
        "layers": run.layers if layers is None else layers,
    }
    return dataclasses.replace(run, run=run.run | head, tables=tables.__getitem__)


def explained(run: RunRecord) -> Failure:
    found = diagnose(run)
    assert found is not None
    return found


def place(failure: Failure) -> tuple[int, str | None, str | None]:
    return failure.step, failure.tensor, failure.phase


def layer_rows(*rows: tuple[int, str, str, str, float]) -> pd.DataFrame:
    full = [(step, layer, "mlp", operand, statistic, value) for step, layer, operand, statistic, value in rows]
    return pd.DataFrame(full, columns=["step", "layer", "layer_type", "operand", "statistic", "value"])


def test_each_symptom_is_seen_beyond_its_limit_alone() -> None:
    assert {symptom.kind for symptom in SYMPTOMS} <= {*FAILURE_KINDS, "nonfinite", "runaway_logits"}
    ends = {"gradient": "weight.grad", "update": "weight"}
    for symptom in SYMPTOMS:
        for operand in symptom.operands:
            far = symptom.limit / 2 if symptom.below else symptom.limit + 0.1
            for value, shown in ((far, True), (symptom.limit, False), (math.nan, False)):
                found = symptoms([(3, "head", "head", operand, symptom.statistic, value)])
                assert [alarm.what for alarm in found] == [symptom.kind] * shown
                assert all(alarm.tensor == f"head.{ends.get(operand, operand)}" for alarm in found)
    assert symptoms([(3, "head", "head", "update", "overflow", 1.0)]) == []


def test_losses_are_thinned_with_the_last_ones_whole(stopped: RunRecord) -> None:
    for length in (1, 19, 20, 49, 50, 51, 300, 5000):
        losses = np.linspace(4, 2, length)
        losses[-1] = math.inf
        history = pd.DataFrame({"step": np.arange(1, length + 1), "loss": losses})
        found = explained(but(stopped, history=history))
        steps = [step for step, _ in found.losses]
        assert steps == sorted(set(steps))
        assert steps[0] == 1
        assert steps[-LAST_LOSSES:] == list(range(max(1, length - LAST_LOSSES + 1), length + 1))
        assert len(steps) == min(length, LOSSES)
        assert found.losses[-1] == (length, None)
        assert all(loss == losses[step - 1] for step, loss in found.losses[:-1])
        assert "nan_loss" in found.kinds
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["kinds"] == list(found.kinds)


def test_a_divergence_without_a_warning_is_the_matrix_that_grew_most(stopped: RunRecord) -> None:
    losses = [4.0, 3.0, 6.0, *[LIMIT + 1] * 5]
    layers = layer_rows(
        *((step, "a", "weight", "norm_l2", 1.0 + step) for step in (1, 8)),
        *((step, "b", "weight", "norm_l2", 1.0 * step) for step in (1, 8)),
        (1, "c", "weight", "norm_l2", 0.0),
        (8, "c", "weight", "norm_l2", 9.0),
    )
    history = pd.DataFrame({"step": range(1, 9), "loss": losses})
    ended = but(stopped, history, layers)
    found = explained(ended)
    assert "divergence" in found.kinds
    assert place(found) == (4, "b.weight", "optimizer")
    assert "8 times from step 1 to step 8" in found.cause
    jump = {**WARNING, "phase": "optimizer"}
    events = [{**jump, "tensor": "c.weight", "step": 3}, {**jump, "tensor": "d.weight", "step": 5}]
    assert place(explained(but(ended, events=events))) == (3, "c.weight", "optimizer"), "the earliest"
    healed = but(ended, history.assign(loss=[4.0, 3.0, 3.0, 3.0, *[LIMIT + 1] * 4]), events=events)
    assert place(explained(healed)) == (5, "d.weight", "optimizer"), "the loss recovered from the one before"


def test_diagnostics_are_bounded_and_begin_with_the_layer_that_is_named(stopped: RunRecord) -> None:
    rows = [(step, f"layer{n}", "weight", "amax", 1.0) for n in range(100) for step in (1, 4)]
    layers = layer_rows(*rows, (4, "layer77", "weight", "nonfinite", 2.0))
    found = explained(but(stopped, layers=layers, events=[{**WARNING, "tensor": "layer50.weight", "step": 2}]))
    assert len(found.diagnostics) == DIAGNOSED
    assert [row["layer"] for row in found.diagnostics[:3]] == ["layer50", "layer77", "layer0"]
    assert {row["step"] for row in found.diagnostics} == {4}


def test_a_failure_without_the_later_keys_loads_unchanged_and_is_completed_by_the_reader(stopped: RunRecord) -> None:
    old = {"kinds": ["nan_loss"], "step": 3, "tensor": "head.weight", "phase": "forward", "message": "loss is NaN"}
    assert {key: value for key, value in Failure(**old).to_json().items() if key in old} == old
    assert (Failure(**old).losses, Failure(**old).advice, Failure(**old).cause) == ((), (), "")
    found = explained(but(stopped, status="failed", failure=old))
    assert {key: value for key, value in found.to_json().items() if key in old} == old
    assert found.losses
    assert found.diagnostics
    assert found.advice


@pytest.mark.parametrize(
    "wrong",
    [
        {"losses": [[1, "x"]]},
        {"losses": [[1]]},
        {"losses": [[1, 10**400]]},
        {"losses": 3},
        {"diagnostics": ["x"]},
        {"advice": [1]},
        {"cause": 1},
        {"unknown": 1},
    ],
)
def test_a_damaged_failure_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Failure(**{"kinds": ["unknown"], "step": 1, **wrong})


def test_a_run_without_a_row_is_explained_too(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        RunWriter.create(tmp_path, config(), data_fingerprint=DATA, environment={}) as writer,
    ):
        raise RuntimeError("at once")
    found = read_run(writer.path)
    assert place(explained(found)) == (0, None, None)
    report = failure_report(found)
    assert "at once" in report
    assert re.findall("^## (.*)", report, re.MULTILINE) == ["What to try", "Run it again"], "no empty table"


REPORT = """\
# fp32-adamw-s3-RUN: failed, jump, divergence, early_stop from step 2 in head.weight, forward

Step 2, forward, head.weight: jump: m.

| Field | Value |
| --- | --- |
| What | divergence, early_stop |
| How it ended | loss above 6.85 |
| Cause | jump: m |
| First bad step | 2 |
| Tensor | head.weight |
| Phase | forward |
| Last recorded step | 10 |
| Status | failed |

## What to try

Advice that follows from what was found; whether it helps, only a run can tell.

- lower it

## Warnings

**In order of steps, the first 1 of 7**

| Step | What | Tensor | Phase | Value | Message |
| ---: | --- | --- | --- | ---: | --- |
| 2 | jump | head.weight | forward | 9 | m |

## Losses

**Training loss in nats per character, thinned but for the last steps**

| Step | Loss |
| ---: | ---: |
| 1 | 4.5000 |
| 2 | not finite |

## Last diagnostics

**The last recorded figures; the Method page says what each is. Not finite: NaN or infinity**

| Layer | Operand | Step | amax | norm_l2 | sqnr_db |
| --- | --- | ---: | ---: | ---: | ---: |
| head | activations | 2 | 1.5 | – | −3.25 |
| head | gradient | 2 | – | not finite | – |

## Run it again

```bash
.venv/bin/python experiments/run_experiment.py experiments/configs/defaults.yaml \\
  --set optimizer.learning_rate=0.003 \\
  --set max_steps=20 \\
  --seed 3
```
"""


def test_a_report_has_all_that_a_failure_holds(tmp_path: Path) -> None:
    rows = (
        {"step": 2, "layer": "head", "operand": "activation", "amax": 1.5, "sqnr_db": -3.25},
        {"step": 2, "layer": "head", "operand": "gradient", "norm_l2": None},
    )
    kinds, told = ("divergence", "early_stop"), ("head.weight", "forward", "loss above 6.85", "jump: m")
    failure = Failure(kinds, 2, *told, diagnostics=rows, losses=((1, 4.5), (2, None)), advice=("lower it",))
    event = {**WARNING, "step": 2, "tensor": "head.weight"}
    found = read_run(write_run(tmp_path, config(seed=3), status="failed", events=[event], failure=failure))
    report = failure_report(but(found, summary={"warnings": 7}))
    assert report.replace(found.id, "fp32-adamw-s3-RUN") == REPORT


def test_explain_prints_any_record_and_names_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event = {**WARNING, "step": 2, "tensor": "head.weight"}
    for status, events, said in (
        ("finished", (), "The run finished: nothing to explain."),
        ("finished", (event,), "The run finished and left warnings."),
        ("running", (), "The run is still being written."),
    ):
        folder = write_run(tmp_path, config(seed=len(list(tmp_path.iterdir()))), status=status, events=events)
        assert main(["explain", str(folder)]) == 0
        assert f"\n\n{said}\n\n" in capsys.readouterr().out
    with contextlib.suppress(RuntimeError), record(tmp_path, name="loop", config={"lr": 1}) as run:
        raise RuntimeError("a <b> & a|b at *once*")
    assert main(["explain", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# loop-")
    assert ": crashed before a step was recorded" in printed
    assert "ended by an exception: RuntimeError: a <b> & a|b at *once*. No" in printed, "as it was"
    assert "| Last recorded step | none |" in printed
    for wrong in (tmp_path / "none", tmp_path):
        assert main(["explain", str(wrong)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1


def test_a_loop_of_ones_own_is_not_told_to_run_commands_of_ours(tmp_path: Path) -> None:
    with (
        contextlib.suppress(RuntimeError),
        record(tmp_path, name="mlp", config={"width": 32}, seed=0, data="digits") as run,
    ):
        run.log(1, loss=2.0)
        raise RuntimeError("no more memory")
    report = failure_report(read_run(run.path))
    assert "no more memory" in report
    assert "experiments/" not in report
    assert "--resume" not in report


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script> | [x](javascript:y) `",
        "![x](https://evil.example/x.png) **bold** _it_",
        "a\n\n# head\n- item\n\n```\nfence",
        "| a | b |\n| --- | --- |",
        "\x1b[31mred\x07 \u202eright\u200b",
        "{: onclick=alert(1) } &lt;b&gt; <https://evil.example>",
    ],
)
def test_a_report_shows_what_a_record_holds_as_text(stopped: RunRecord, evil: str) -> None:
    event = {**WARNING, "step": 2, "what": evil, "tensor": evil, "message": evil}
    row = {"step": 2, "layer": evil, "operand": evil, "amax": evil}
    failure = Failure(("unknown",), 2, evil, "forward", evil, evil, (row,), ((1, 2.0),), (evil,)).to_json()
    report = failure_report(but(stopped, id=evil, message=evil, failure=failure, events=[event]))
    assert report.replace("\n", "").isprintable()
    shown = python_markdown.markdown(report, extensions=["tables", "fenced_code", "attr_list"])
    elements = set(re.findall(r"<(\w[^>]*)>", shown))
    plain = {"h1", "h2", "p", "ul", "li", "strong", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    assert elements <= plain | {
        'code class="language-bash"',
        'th style="text-align: right;"',
        'td style="text-align: right;"',
    }
    assert shown.count("<tr>") == 4 + 8 + 1 + 1 + 1, "four heads and their rows"
    assert shown.count("<h2>") == 5
    assert shown.count("<li>") == 1


def test_events_of_another_shape_are_passed_over(stopped: RunRecord) -> None:
    event = {**WARNING, "step": 2, "tensor": "head.weight"}
    damaged = [
        None,
        {"kind": "warning"},
        {**event, "step": "x"},
        {**event, "phase": "lunch"},
        {**event, "phase": ["forward"]},
        {**event, "tensor": None},
        {"kind": "nonfinite"},
    ]
    odd = [{**event, "value": value} for value in (10**400, "x", None)]
    found = warnings_of(but(stopped, events=[*damaged, *odd, {**event, "step": 1}]))
    assert [step for step, _ in found] == [1, 2, 2, 2]
    assert [alarm.value for _, alarm in found[:1]] == [9.0]
    assert all(math.isnan(alarm.value) for _, alarm in found[1:])
    assert place(explained(but(stopped, events=[*damaged, event]))) == (2, "head.weight", "forward")


def test_what_a_run_without_warnings_is_advised_on_stands_before_the_advice(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, config(quantize={"weight": "e4m3"}), status="finished"))
    rows = ((1, "blocks.0.mlp.up", "weight", "overflow", 0.5), (2, "blocks.0.mlp.up", "weight", "overflow", 0.25))
    told = failure_report(but(run, layers=layer_rows(*rows)))
    found, advice = told.split("## What was found")[1].split("## What to try")
    assert "| overflow | blocks.0.mlp.up.weight | forward | 0.25 |" in found
    assert "| 0.5 |" not in found, "only the last look counts"
    assert "exponent bits for quantize.weight" in advice
