"""What recorded runs say of the probe's order: the gaps at the very setting that was probed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from pydantic import ValidationError

from altgrad.analysis import statistics
from altgrad.analysis.contrasts import by_seed
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import Estimate, paired_difference
from altgrad.config import OPERANDS, ExperimentConfig, digest

Candidate = tuple[str, str]
"""A format and a rounding of the logits' gradient, by their names in a config."""
WATCHING = ("eval_every", "log_every", "layers_every", "telemetry")
"""Keys that say when a run looks at itself; its numbers are the same."""


def quantized(config: ExperimentConfig, format: str, rounding: str) -> ExperimentConfig:
    """`config` with every operand in a format, and the head's grad_output rounded as said."""
    own = {} if rounding == config.quantize.rounding.grad_output else {"head": rounding}
    given = config.model_dump(mode="json", exclude={"name"})
    given["quantize"] |= dict.fromkeys(OPERANDS, format) | {"grad_output_rounding": own}
    return ExperimentConfig.model_validate(given)


def recorded_gaps(
    loader: ExperimentDataLoader, config: ExperimentConfig, data: str, candidates: Iterable[Candidate]
) -> dict[Candidate, Estimate]:
    """The paired gaps to `config` of the runs that quantize everything as a candidate says and are else the same.

    How often a run looks at itself makes no difference.

    Args:
        config: unquantized.
        data: sha256 of the text.
        candidates: those without such runs are left out.
    """
    runs = loader.runs[(loader.runs["data"] == data) & (loader.runs["status"] == "finished")]
    arms = {arm: _decisive(loader.config(arm)) for arm in runs["arm"].unique()}

    def losses(config: ExperimentConfig) -> pd.Series:
        wanted = _decisive(config)
        return by_seed(runs[runs["arm"].map(arms) == wanted])

    baseline = losses(config)
    found = {}
    for candidate in candidates:
        try:
            own = losses(quantized(config, *candidate))
        except ValidationError:  # no run can be so, as compiled code that draws
            continue
        estimate = paired_difference(own, baseline)
        if estimate.n:
            found[candidate] = estimate
    return found


def _decisive(config: ExperimentConfig) -> str:
    """What decides the final loss but for seed and data, as a digest."""
    identity = config.arm_identity()
    return digest({key: value for key, value in identity.items() if key not in WATCHING})


def rank_correlation(one: Mapping[Candidate, float], other: Mapping[Candidate, float]) -> tuple[float, int]:
    """Spearman's correlation over what both have, and over how many; NaN for fewer than three, or all alike."""
    both = pd.DataFrame({"one": pd.Series(one), "other": pd.Series(other)}).dropna()
    return statistics.rank_correlation(both["one"], both["other"]) if len(both) > 2 else math.nan, len(both)
