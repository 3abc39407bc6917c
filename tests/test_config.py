"""A config is valid, or its error is one line that names the file, the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad.config import ExperimentConfig, UsageError, load_config


def load(tmp_path: Path, text: str, *overrides: str, seed: int | None = None) -> ExperimentConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, overrides, seed)


def test_an_empty_file_is_the_unquantized_default(tmp_path: Path) -> None:
    assert load(tmp_path, "") == ExperimentConfig()
    assert ExperimentConfig().resolved_name == "fp32-adamw"


def test_overrides_reach_nested_keys_and_read_numbers_lists_and_null(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "quantize: {weight: e5m2}",
        "optimizer.learning_rate=3e-4",
        "quantize.layers=[mlp]",
        "clip_norm=null",
        "tracking=offline",
        seed=7,
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.quantize.layers == ("mlp",)
    assert config.clip_norm is None
    assert config.tracking.mode == "offline"
    assert config.seed == 7
    assert config.resolved_name == "e5m2-w-mlp-adamw"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_step: 3", "unknown key 'max_step'; did you mean 'max_steps'?"),
        (
            "optimizer: {learningrate: 1}",
            "unknown key 'optimizer.learningrate'; did you mean 'optimizer.learning_rate'?",
        ),
        ("quantize: {weight: e4m33}", "quantize.weight: unknown format 'e4m33': did you mean e4m3"),
        ("optimizer: {learning_rate: 0}", "optimizer.learning_rate"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate"),
        ("optimizer: {step_rule: manifold}", "optimizer.precondition must be"),
        ("optimizer: {precondition: update}", "optimizer.precondition must be"),
        ("optimizer: {step_rule: manifold, precondition: update}", "needs quantize.weight"),
        ("model: {tied: true}", "unknown key 'model.tied'; the head of the built-in model is a layer of its own"),
        ("quantize: {rounding: {activation: odd}}", "quantize.rounding.activation: rounding to odd is for what is"),
        ("quantize: {weight: ue4m3}", "quantize.weight: format 'ue4m3' has no sign, and what is rounded here has one"),
        ("model: {dim: 65}", "model.heads=4 must divide model.dim=65"),
        ("name: ../../etc", "lower-case slug"),
        ("tracking: sometimes", "tracking.mode"),
        ("- a list", "a config is a mapping"),
        ("a: [", "not valid YAML"),
        ("max_steps: 0", "max_steps"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert expected in str(error.value)
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_config_names_the_configs_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "fp32.yaml").write_text("")
    with pytest.raises(UsageError, match=r"no such config; configs there: .*fp32\.yaml"):
        load_config(tmp_path / "fp23.yaml")


def test_a_malformed_override_is_one_line(tmp_path: Path) -> None:
    for override in ("max_steps", "=3", "max_steps.deeper=1"):
        with pytest.raises(UsageError, match="--set"):
            load(tmp_path, "max_steps: 3", override)


def test_bookkeeping_does_not_change_the_identity_but_the_seed_does() -> None:
    plain = ExperimentConfig()
    noted = ExperimentConfig(notes="n", tags=("a",), study="s", name="other")
    assert noted.identity() == plain.identity()
    other = ExperimentConfig(seed=1)
    assert other.identity() != plain.identity()
    assert other.arm_identity() == plain.arm_identity()


def test_the_same_layers_in_any_order_are_the_same_experiment() -> None:
    given = [["head", "mlp"], ["mlp", "head", "mlp"]]
    first, second = (
        ExperimentConfig.model_validate({"quantize": {"weight": "e4m3", "layers": layers}}) for layers in given
    )
    assert first.identity() == second.identity()
    assert first.resolved_name == "e4m3-w-head-mlp-adamw"


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        ("quantize: {weight: e4m3}", "scaling.weight.knd=mx", ("scaling.weight.knd", "'scaling.weight.kind'")),
        ("quantize: {weight: e4m3}", "scaling.kind=nvfp4", ("nvfp4", "quantize.weight is e4m3")),
        ("quantize: {weight: e15m0}", "seed=1", ("quantize.weight='e15m0'", "float64")),
        ("quantize: {activation: e4m3}", "quantize.layers=[embedding]", ("[embedding]", "quantize.weight is fp32")),
        ("scaling: {kind: static}", "scaling.value=1e-60", ("scaling.value", "1e-60")),
        ("scaling: {kind: static}", "scaling.value=1e+60", ("scaling.value", "1e+60")),
        ("quantize: {weight: e4m3, compute: native}", "seed=1", ("native", "quantize.activation is fp32", "simulated")),
        ("quantize: {weight: e4m3}", "optimizer.step_rule=code", ("optimizer", "rounding", "choose another storage")),
        (
            "quantize: {weight: e4m3, activation: e4m3, grad_output: e4m3, compute: native}",
            "scaling.kind=mx",
            ("native", "one scale per tensor", "simulated"),
        ),
    ],
)
def test_what_could_only_go_wrong_later_is_refused(
    tmp_path: Path, text: str, override: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as error:
        load(tmp_path, text, override)
    assert all(word in str(error.value) for word in words), error.value
