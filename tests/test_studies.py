"""The campaign as data: names are keys, identities find the runs, and what is recorded is what the studies say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from altgrad import studies
from altgrad.analysis.contrasts import missing, runs_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.config import ExperimentConfig, UsageError
from altgrad.runs import RunRecord, load_runs
from altgrad.runs.schema import arm_id, run_id
from altgrad.studies import ARMS, STUDIES, Arm, Study, checked, identity_of, seeds_of

RECORDED = Path(__file__).resolve().parents[1] / "experiments" / "recorded"
RECORDED_RUNS = 2844 + 364 + 656 + 160 + 208 + 212 + 64 + 192 + 240 + 220 + 160 + 96 + 80 + 256 + 24 + 88
"""Rows of all packed studies but `GROWING`; 20 of them are AdamW's of the pilot, which two of its studies hold."""
GROWING = tuple(name for name in STUDIES if name.startswith("ladder"))
"""Studies whose runs are committed part by part, while the rest is still recorded."""


@pytest.fixture(scope="module")
def loader() -> ExperimentDataLoader:
    return ExperimentDataLoader([RECORDED])


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[RunRecord, ...]]:
    """The records of each study's folder."""
    folders = sorted(path for path in RECORDED.iterdir() if path.is_dir())
    return {folder.name: load_runs((folder,)).records for folder in folders}


def test_every_recorded_id_follows_from_the_stored_config(recorded: dict[str, tuple[RunRecord, ...]]) -> None:
    for record in chain.from_iterable(recorded.values()):
        assert record.id == run_id(record.config, record.run["data"])
        assert record.arm == arm_id(record.config, record.run["data"])
    assert sum(len(records) for name, records in recorded.items() if name not in GROWING) == RECORDED_RUNS


def test_every_run_that_a_study_defines_is_recorded_under_its_id(
    loader: ExperimentDataLoader, recorded: dict[str, tuple[RunRecord, ...]]
) -> None:
    texts: dict[tuple[Any, ...], set[str]] = {}
    for record in loader.records.values():
        texts.setdefault(_text(record.config), set()).add(record.run["data"]["sha256"])
    assert {len(found) for found in texts.values()} == {1}
    found: Counter[str] = Counter()
    defined: Counter[str] = Counter()
    for name, records in recorded.items():
        planned = STUDIES[name].seeds if name in STUDIES else {}
        if name in GROWING:
            own = {
                (identity_of(ARMS[arm].config(rate=1.0), rate=False), seed) for arm in planned for seed in planned[arm]
            }
            assert {(identity_of(record.config, rate=False), record.config.seed) for record in records} <= own
            continue
        found.update(record.id for record in records)
        for arm, seeds in planned.items():
            study = STUDIES[name]
            rates = (study.rates or ARMS[arm].swept_rates) if study.sweeps else (None,)
            configs = [ARMS[arm].config(seed, name, rate) for seed in seeds for rate in rates]
            defined.update(run_id(config, {"sha256": next(iter(texts[_text(config)]))}) for config in configs)
    assert not defined - found
    beyond_the_edge = found - defined
    assert sum(beyond_the_edge.values()) == 8 + 28 + 36 + 20 + 16 + 8, "sweeps went on beyond their edge"


def _text(config: ExperimentConfig) -> tuple[Any, ...]:
    """What decides the tokens that a run is trained on."""
    return config.data, config.tokenizer, config.vocabulary


def test_an_arm_s_runs_are_those_of_its_config_and_seeds(loader: ExperimentDataLoader) -> None:
    """An oracle that knows no identity: the settings themselves."""
    found = runs_of(loader, "E4M3 update stochastic")
    assert sorted(found["seed"]) == list(range(10, 26))
    for run_id_ in found["run_id"]:
        config = loader.records[run_id_].config
        assert set(dict(config.quantize)[operand] for operand in ("weight", "activation", "grad_output")) == {"e4m3"}
        optimizer = config.optimizer
        assert (optimizer.step_rule, optimizer.precondition, optimizer.storage) == ("manifold", "update", "grid")
        assert (optimizer.rounding, optimizer.learning_rate, config.max_steps) == ("stochastic", 1.28, 300)


def test_no_two_arms_of_the_campaign_are_one_config() -> None:
    fixed = [arm for arm in ARMS.values() if not isinstance(arm.rate, str)]
    names: dict[str, list[str]] = {}
    for arm in fixed:
        names.setdefault(arm.identity, []).append(arm.name)
    assert [same for same in names.values() if len(same) > 1] == []


def test_the_rates_of_the_arms_are_the_best_of_their_recorded_sweeps(loader: ExperimentDataLoader) -> None:
    """Recomputed from the tuning runs: the lowest mean loss over the held-out seeds."""
    names = ("tuning", "pilot-tuning", "head-tuning")
    runs = loader.runs[loader.runs["study"].isin(names)]
    sweeps: dict[str, dict[float, list[float]]] = {}
    for row in runs.itertuples():
        key = identity_of(loader.records[row.run_id].config, rate=False)
        sweeps.setdefault(key, {}).setdefault(row.learning_rate, []).append(row.final_val_loss)
    for study in names:
        for name, seeds in STUDIES[study].seeds.items():
            sweep = sweeps[identity_of(ARMS[name].config(), rate=False)]
            assert {len(losses) for losses in sweep.values()} == {len(seeds)}
            best = min(sweep, key=lambda rate: sum(sweep[rate]))
            own = {"E0M7 pilot": "E0M7 own rate", "E7M0 pilot": "E7M0 own rate"}.get(name, name)
            assert best == ARMS[own].rate, name


def test_changing_a_label_or_a_seed_is_one_edit_and_changes_no_identity() -> None:
    arm = ARMS["E4M3 code stochastic"]
    assert dataclasses.replace(arm, label="anything else").identity == arm.identity
    assert dataclasses.replace(arm, name="another key").identity == arm.identity
    assert arm.config(10).identity() | {"seed": 0} == arm.config(0).identity()
    assert dataclasses.replace(arm, rate=0.25).identity != arm.identity


def test_labels_tell_the_arms_of_a_study_apart() -> None:
    for name, study in STUDIES.items():
        labels = Counter(ARMS[arm].label for arm in study.seeds)
        assert [label for label, times in labels.items() if times > 1] == [], name


def test_held_out_seeds_are_reported_by_no_study() -> None:
    reported = {
        seed for study in STUDIES.values() if not study.sweeps for seeds in study.seeds.values() for seed in seeds
    }
    assert not reported & set(studies.HELD_OUT_SEEDS)
    assert seeds_of("FP32") == tuple(range(10, 42))
    assert seeds_of("E0M7 block") == tuple(range(10, 18))


@pytest.mark.parametrize(
    ("arms", "study", "said"),
    [
        ([Arm("A", "E4M3")], Study("", {"B": [10]}), r"study 'S': there is no arm 'B'"),
        ([Arm("A", "E9M9", {"weight": "e9m9"})], Study("", {"A": [10]}), r"arm 'A': .*e9m9"),
        ([Arm("A", "E4M3"), Arm("A", "E5M2")], Study("", {"A": [10]}), r"arm 'A': the name stands twice"),
        ([Arm("A", "E4M3")], Study("", {"A": [10, 99]}), r"study 'S', arm 'A': seed 99"),
        ([Arm("A", "E4M3")], Study("", {"A": [10]}, sweeps="once"), r"seed 10 is none of those held out"),
        ([Arm("A", "E4M3", rate="nobody")], Study("", {"A": [10]}), r"no study sweeps the rate of 'nobody'"),
        ([Arm("A", "E4M3", settings={"max_step": 3})], Study("", {"A": [10]}), r"arm 'A': .*max_step"),
    ],
)
def test_an_unsound_study_fails_with_one_line(arms: list[Arm], study: Study, said: str) -> None:
    with pytest.raises(UsageError, match=said) as failure:
        checked(arms, {"S": study})
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith("studies.py")


def test_a_new_arm_is_a_line_that_the_campaign_trains_and_the_analysis_asks_for(loader: ExperimentDataLoader) -> None:
    config = ARMS["E3M4 block"].config(10, "blocks-close")
    assert (config.quantize.weight, config.scaling.granularity, config.scaling.block) == ("e3m4", "block", 32)
    assert (
        missing(loader, ["E3M4 block"]) == "Not recorded in full: E3M4 with one scale per block of 32 (0 of 8 seeds)."
    )
