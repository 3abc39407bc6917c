"""A question of one's own: which of some formats costs least in one experiment. What is run for it, and the answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from altgrad.analysis.comparison import Comparison, format_table
from altgrad.analysis.contrasts import by_seed, contrast, family
from altgrad.analysis.loader import ExperimentDataLoader, scope_label
from altgrad.analysis.statistics import MARGIN, Estimate
from altgrad.config import OPERANDS, ExperimentConfig, UsageError, changes, parse_config
from altgrad.formats import FP32, get_format
from altgrad.recipes import RECIPES, recipe_keys
from altgrad.runs.foreign import slug
from altgrad.studies import TUNING_SEEDS, mean_loss, sweep

BASELINE = FP32.label
STUDY, TUNING = "compare", "compare-tuning"
"""Of the pairs, and of the sweeps, which comparisons leave out."""

Losses = Mapping[str, float]
Identity = Callable[[ExperimentConfig], str]
OWN = (
    "quantize", "scaling", "optimizer", "max_steps", "warmup_steps", "schedule", "schedule_steps", "min_lr_ratio",
    "clip_norm", "eval_every", "log_every", "layers_every", "nan_patience", "draw_version", "accumulate", "stability",
    "telemetry", "seed",
)  # fmt: skip
"""Sections and keys that also count for a model of one's own."""


@dataclass(frozen=True)
class Question:
    """What is compared, and how.

    Attributes:
        arms: the config of each format and recipe by name, at its own learning rate; `BASELINE` is the first.
        seeds: of the pairs.
        rates: with which the sweep of each begins; without any, nothing is tuned.
        held_out: the seeds of the sweeps.
        margin: the difference of losses below which two are called equivalent.
    """

    arms: Mapping[str, ExperimentConfig]
    seeds: Sequence[int]
    rates: Sequence[float] = ()
    held_out: Sequence[int] = tuple(TUNING_SEEDS)
    margin: float = MARGIN

    @property
    def formats(self) -> tuple[str, ...]:
        """What is held against the baseline."""
        return tuple(name for name in self.arms if name != BASELINE)

    def config(self, name: str, seed: int, rate: float, study: str = STUDY) -> ExperimentConfig:
        """The config of one run."""
        config = self.arms[name]
        optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
        return config.model_copy(update={"seed": seed, "study": study, "optimizer": optimizer})

    def sweep(self, name: str, losses: Losses, identity: Identity) -> tuple[list[float], float | None]:
        """The rates that an arm is tried at, and its own; None while it is not known."""
        if not self.rates:
            return [], self.arms[name].optimizer.learning_rate

        def mean(rate: float) -> float | None:
            return mean_loss(losses.get(identity(self.config(name, seed, rate, TUNING))) for seed in self.held_out)

        return sweep(self.rates, mean)

    def plan(self, losses: Losses, identity: Identity) -> list[ExperimentConfig]:
        """Every run that is wanted by what is known: the sweeps, then the pairs seed by seed."""
        found = {name: self.sweep(name, losses, identity) for name in self.arms}
        swept = [
            self.config(name, seed, rate, TUNING)
            for name, (rates, _) in found.items()
            for rate in rates
            for seed in self.held_out
        ]
        known = [(name, best) for name, (_, best) in found.items() if best is not None]
        return swept + [self.config(name, seed, best) for seed in self.seeds for name, best in known]


def question(
    config: ExperimentConfig,
    names: Iterable[str],
    seeds: int,
    rates: Sequence[float] | None = None,
    margin: float = MARGIN,
    task: Mapping[str, str] | None = None,
) -> Question:
    """The question which of some formats and recipes costs least in an experiment.

    Args:
        config: the experiment; what it quantizes is replaced, all else is shared.
        names: formats, for every operand of the layers that the config names, scaled as it says; and recipes, which
            have their own layers and scales.
        seeds: how many, from the config's on, but for those that are held out.
        rates: of the sweeps, in any order; none of them: nothing is tuned. Default: half, all and twice the config's.
        margin: see `Question`.
        task: what identifies a model of one's own (`own_config`).

    Raises:
        UsageError: a name that is neither, or that makes no config; no seeds, or rates that are none.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give a number of at least 1; an interval takes 2, and a ranking 3")
    if not 0 < margin < math.inf:
        raise UsageError(f"--margin {margin:g}: give a difference of losses above 0")
    own = config.optimizer.learning_rate
    rates = sorted({own / 2, own, own * 2} if rates is None else {*rates})
    if not all(0 < rate < math.inf for rate in rates):
        raise UsageError(f"--rates: {min(rates):g} to {max(rates):g}: learning rates are above 0")
    arms = {BASELINE: _arm(config, None)}
    for name in names:
        label = name if name in RECIPES else _format(name)
        arms[label] = _arm(config, name)
    if len(arms) < 2:
        raise UsageError("--formats: name one at least")
    if task is not None:
        arms = {name: own_config(arm, name, task) for name, arm in arms.items()}
    allowed = (seed for seed in itertools.count(config.seed) if seed not in TUNING_SEEDS)
    return Question(arms, tuple(itertools.islice(allowed, seeds)), rates, margin=margin)


def _format(name: str) -> str:
    try:
        fmt = get_format(name)
    except ValueError as error:
        known = f"recipes are {', '.join(RECIPES)}"
        raise UsageError(f"--formats {name:.80}: {error}; {known}") from None
    if fmt is FP32:
        raise UsageError(f"--formats {name}: all are held against {BASELINE}; leave it out")
    return fmt.label


def _arm(config: ExperimentConfig, name: str | None) -> ExperimentConfig:
    """The config with every operand in the format or by the recipe of this name; None: not quantized."""
    given = config.model_dump(mode="json") | {"name": None, "notes": ""}
    if name is None:
        plain = config.optimizer.rounding != "stochastic"
        given |= {"quantize": {}, "scaling": {}} | ({"draw_version": 1} if plain else {})
        given["stability"]["shift_to"] = None
    elif name in RECIPES:
        given |= {"name": name, **recipe_keys(name)}
    else:
        given["quantize"] |= dict.fromkeys(OPERANDS, name) | {"casts": {}}
    return parse_config(given, source=f"--formats {name or BASELINE.lower()}")


def own_config(config: ExperimentConfig, name: str, task: Mapping[str, str]) -> ExperimentConfig:
    """The config of a run of one's own model: what the training loop does, and which task it is of.

    Args:
        config: of the experiment.
        name: of the run.
        task: what identifies the model and its data, for the record: ``task`` is MODULE:FUNCTION.

    Raises:
        UsageError: it sets a key of the built-in model, or what a task has not; the line names the key.
    """
    for key, value in changes(config).items():
        if key.partition(".")[0] not in OWN:
            raise UsageError(f"{key}={value}: --model brings its own model and data; leave it out")
    optimizer = config.optimizer
    for key, value in (("checkpoint.every", config.checkpoint.every), ("stability.clip", config.stability.clip),
                       ("optimizer.step_rule", optimizer.step_rule), ("optimizer.storage", optimizer.storage),
                       ("optimizer.moments", optimizer.moments), ("optimizer.relative", optimizer.relative),
                       ("optimizer.other_learning_rate", optimizer.other_learning_rate)):  # fmt: skip
        if value not in (0, "plain", "adamw", "master", "fp32", False, None):
            raise UsageError(f"{key}={value}: a run of --model has AdamW with master weights and no checkpoints")
    given = {key: value for key, value in config.model_dump(mode="json").items() if key in OWN}
    return parse_config(given | {"name": slug(name), "foreign": dict(task)}, source="--model")


@dataclass(frozen=True)
class Answer:
    """What the recorded runs answer.

    Attributes:
        comparison: the formats, each at its own rate, as the reports compare them.
        costs: the difference of each to the baseline, rows of `altgrad.analysis.contrasts` (one family, by Holm).
        rates: of each arm its own learning rate, those tried, and whether its own lies at the edge of these.
        missing: arms of which not every run has ended.
    """

    comparison: Comparison
    costs: pd.DataFrame
    rates: pd.DataFrame
    missing: tuple[str, ...] = ()


def answer(loader: ExperimentDataLoader, asked: Question, losses: Losses, identity: Identity) -> Answer:
    """What the runs of a question answer.

    Args:
        loader: of the folder in which they are.
        asked: the question.
        losses: the final losses of the runs that have ended, by id.
        identity: a config's run id.

    Raises:
        UsageError: no run of any format has ended.
    """
    tried = {name: asked.sweep(name, losses, identity) for name in asked.arms}
    own = {name: best for name, (_, best) in tried.items() if best is not None}
    ids = {identity(asked.config(name, seed, rate)): name for name, rate in own.items() for seed in asked.seeds}
    ended = loader.runs[loader.runs["run_id"].isin(ids.keys() & losses.keys())]
    runs = ended.assign(format=ended["run_id"].map(ids))
    if runs.empty or (runs["format"] == BASELINE).all():
        raise UsageError("no run of a format has ended, so there is no answer; the same command runs what is missing")
    of = {name: runs[runs["format"] == name] for name in asked.arms}
    missing = tuple(name for name, rows in of.items() if len(rows) < len(asked.seeds))
    rows = []
    for name in asked.formats:
        row = contrast(name, of[name], of[BASELINE])
        pairs = Estimate(row["difference"], row["low"], row["high"], row["sd"], row["n_pairs"], row["p_value"])
        unjudged = row["n_ended_badly"]
        rows.append(row | {"p_equivalent": math.nan if unjudged else pairs.equivalence_p(asked.margin)})
    scope = {name: scope_label(asked.arms[name]) for name in asked.formats}
    table = format_table(runs[runs["format"] != BASELINE], by_seed(of[BASELINE]), bool, asked.margin)
    baseline = next(iter(of[BASELINE]["arm"]), "")
    found = Comparison(scope[table["format"].iloc[0]], "", "", baseline, table, bool, "format")  # the best's scope
    rates = pd.DataFrame(
        {
            "name": name,
            "rate": own.get(name, math.nan),
            "tried": sorted(rates),
            "edge": len(rates) > 1 and own.get(name) in (min(rates), max(rates)),
            "scope": scope.get(name, "nothing"),
        }
        for name, (rates, _) in tried.items()
    )
    return Answer(found, family(rows), rates, missing)


def facts(asked: Question, found: Answer, spot: Any, identity: Identity) -> dict[str, Any]:
    """The question and its answer as values, for JSON."""
    own = dict(zip(found.rates["name"], found.rates["rate"], strict=True))
    runs = partial(_ids, asked, identity)
    return {
        "seeds": list(asked.seeds),
        "held_out_seeds": list(asked.held_out) if asked.rates else [],
        "tuned": bool(asked.rates),
        "margin": asked.margin,
        "best": spot.best,
        "reason": spot.reason,
        **{
            name: list(getattr(spot, name))
            for name in ("equivalent", "within_margin", "undecided", "worse", "unranked")
        },
        "missing": list(found.missing),
        "arms": [row | {"runs": runs(row["name"], own[row["name"]])} for row in found.rates.to_dict("records")],
        "costs": found.costs.to_dict("records"),
        "formats": found.comparison.table.to_dict("records"),
    }


def _ids(asked: Question, identity: Identity, name: str, rate: float) -> list[str]:
    return [] if math.isnan(rate) else [identity(asked.config(name, seed, rate)) for seed in asked.seeds]
