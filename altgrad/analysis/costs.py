"""What a gap means: the size of the experiment it was found in, what it is worth in tokens, and what it is made of.

The last two were found in the records after the campaign: they are descriptions, and no hypothesis named them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, is_8bit
from altgrad.analysis.contrasts import by_seed
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import Estimate, holm, mean_interval, paired_difference
from altgrad.config import LAYER_TYPES
from altgrad.formats import get_format
from altgrad.studies import OPERAND_PLACES
from altgrad.text import figure

RESAMPLES = 10_000
LADDER = ("E6M1", "E5M2", "E4M3", "E3M4")
"""The splits with 1 to 4 mantissa bits: below them E7M0 has no mantissa, above them the lack of range costs more."""

ADDITIVITY_COLUMNS = ("by", "format", "n_pairs", "parts", "sum", "together", "difference", "low", "high", "p_holm")


@dataclass(frozen=True)
class Extent:
    """How large the experiment behind a finding is.

    Attributes:
        parameters: of the model; None where no finished run says so.
        steps, characters: of training; rounded where tokens are not characters.
        evaluated: validation characters that the final loss was computed on.
        train_characters, validation_characters: of the text; None where the records do not say.
        text: its name.
    """

    parameters: int | None
    steps: int
    characters: int
    evaluated: int
    train_characters: int | None
    validation_characters: int | None
    text: str


def extent(loader: ExperimentDataLoader, arm: str) -> Extent:
    """The size of an arm's runs."""
    runs = loader.runs[(loader.runs["arm"] == arm) & (loader.runs["status"] == "finished")]
    config, first = loader.config(arm), next(iter(runs["run_id"]), None)
    run = loader.records[first].run if first else {}
    data, batch = run.get("data", {}), config.batch_size * config.model.context
    summary, per_token = run.get("summary") or {}, 1.0
    if "train_tokens" in data:
        per_token = data["train_characters"] / data["train_tokens"]
    return Extent(
        parameters=summary.get("parameters"),
        steps=config.max_steps,
        characters=round(config.max_steps * config.accumulate * batch * per_token),
        evaluated=summary.get("evaluated_characters", config.eval_batches * batch),
        train_characters=data.get("train_characters"),
        validation_characters=data.get("validation_characters"),
        text=str(data.get("name", "not stated")),
    )


@dataclass(frozen=True)
class TokenRate:
    """What more training tokens gain the unquantized model: the yardstick that turns a gap into tokens.

    A gap g is as much as ``exp(g / rate) - 1`` more tokens: so many more would lower the loss by g, if the loss fell
    as evenly over ln(tokens) between the two lengths as it does from one to the other, and a quantized run gained
    from tokens what FP32 does. It rests on one model, two lengths (each with a schedule of its own) and FP32 alone.

    Attributes:
        rate: nats per character gained per unit of ln(tokens), over the seeds of both lengths.
        steps: of the two lengths.
    """

    rate: Estimate
    steps: tuple[int, int]

    def more_tokens(self, gap: float) -> float:
        """The tokens that would make up for a gap in nats per character, as a fraction of those there were."""
        return math.expm1(gap / self.rate.mean)

    @property
    def limit(self) -> float:
        """The most that was measured: what is beyond it is extrapolated."""
        return self.steps[1] / self.steps[0] - 1

    def percent(self, gap: float) -> str:
        """`more_tokens` as text; what lies beyond the measured lengths is not given a figure."""
        more = self.more_tokens(gap)
        if math.isnan(more):
            return "–"
        if more > self.limit:
            return f"over {100 * self.limit:.0f}%"
        return f"{figure(100 * more, '.0f' if abs(more) >= 0.1 else '.1f')}%"


def token_rate(loader: ExperimentDataLoader) -> TokenRate | None:
    """The rate between the headline's length and the longest beside it; None without such runs, or without a gain."""
    comparator = loader.memo(FormatComparator)
    short = comparator.headline
    long = comparator.longer(short) if short else None
    if short is None or long is None:
        return None
    steps = (loader.config(short.baseline).max_steps, loader.config(long.baseline).max_steps)
    gained = (losses(loader, each.baseline) / math.log(steps[1] / steps[0]) for each in (short, long))
    rate = paired_difference(*gained)
    return TokenRate(rate, steps) if rate.low > 0 else None


@dataclass(frozen=True)
class BitCost:
    """By how much a mantissa bit divides the gap to FP32.

    Attributes:
        formats: the splits behind it, one mantissa bit apart.
        factor: exp of minus the slope of ln(mean gap) over mantissa bits, by least squares.
        low, high: 2.5th and 97.5th percentile over resamples of the seeds, all formats together.
        n: seeds that all of them share.
        left_out: fraction of resamples without a factor, since a mean gap is not above 0.
    """

    formats: tuple[str, ...]
    factor: float
    low: float
    high: float
    n: int
    left_out: float


def cost_per_bit(loader: ExperimentDataLoader, formats: Sequence[str] = LADDER) -> BitCost | None:
    """The factor over some splits of the headline comparison; None where one is missing or does not cost anything."""
    gaps = _gaps(loader, loader.memo(FormatComparator).headline)
    if any(name not in gaps for name in formats):
        return None
    table = pd.concat([gaps[name] for name in formats], axis=1, join="inner").to_numpy(np.float64)  # [seeds, formats]
    if len(table) < 3 or (table.mean(axis=0) <= 0).any():
        return None
    bits = np.array([get_format(name).mantissa_bits for name in formats], dtype=np.float64)
    weights = (bits - bits.mean()) / np.square(bits - bits.mean()).sum()  # of a least-squares slope
    drawn = np.random.default_rng(0).integers(0, len(table), size=(RESAMPLES, len(table)))
    means = table[drawn].mean(axis=1)
    known = means[(means > 0).all(axis=1)]
    low, high = np.percentile(np.exp(-np.log(known) @ weights), [2.5, 97.5])
    factor = math.exp(-np.log(table.mean(axis=0)) @ weights)
    return BitCost(tuple(formats), factor, float(low), float(high), len(table), 1 - len(known) / RESAMPLES)


def additivity(loader: ExperimentDataLoader) -> pd.DataFrame:
    """Whether the parts' gaps add up: a format's gaps with one layer type, or one operand, at a time, and with all.

    One row a format and division (`by`), columns `ADDITIVITY_COLUMNS`: `parts` are the mean gaps one at a time, by
    name, `sum` that of their sum, `together` the gap with all, `difference` together minus sum with its paired 95% t
    interval in nats per character over the seeds that all share; `p_holm` is adjusted over the rows.
    """
    comparator, rows, p_values = loader.memo(FormatComparator), [], []
    together = _gaps(loader, comparator.at("all"))
    for by, places in (("layer type", LAYER_TYPES), ("operand", OPERAND_PLACES)):
        single = [_gaps(loader, comparator.at(place)) for place in places]
        formats = [name for name in together if all(name in gaps for gaps in single)]
        for name in sorted(formats, key=lambda name: get_format(name).exponent_bits):
            table = pd.concat([*(gaps[name] for gaps in single), together[name]], axis=1, join="inner")
            ones, all_ = table.iloc[:, :-1], table.iloc[:, -1]
            found = mean_interval(all_ - ones.sum(axis=1))
            row = (by, name, found.n, dict(zip(places, map(float, ones.mean()), strict=True)))
            rows.append((*row, ones.sum(axis=1).mean(), all_.mean(), found.mean, found.low, found.high))
            p_values.append(found.p_value)
    return pd.DataFrame(rows, columns=list(ADDITIVITY_COLUMNS[:-1])).assign(p_holm=holm(p_values))


def _gaps(loader: ExperimentDataLoader, comparison: Comparison | None) -> dict[str, pd.Series]:
    """Gap to the unquantized run by seed, of every 8-bit split of which all runs finished."""
    if comparison is None:
        return {}
    table, baseline = comparison.table, losses(loader, comparison.baseline)
    whole = table[(table["n_finished"] == table["n_runs"]) & table["format"].map(is_8bit)]
    arms = zip(whole["format"], whole["arm"], strict=True)
    return {str(name): (losses(loader, str(arm)) - baseline).dropna() for name, arm in arms}


def losses(loader: ExperimentDataLoader, arm: str) -> pd.Series:
    """Final validation loss of an arm by seed."""
    return by_seed(loader.runs[loader.runs["arm"] == arm])
