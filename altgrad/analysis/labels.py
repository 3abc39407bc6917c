"""What an arm is called among those shown with it: for titles, rows, choices and legends, and the key of nothing.

A name begins with the format, the step rule, and the operands, layers and scales that are not the default. Arms that
are still called the same go on with what they differ in, one thing at a time, until each has a name of its own: first
`FACETS`, in readers' words, then the training data, then any key of the config as ``key=value``; where no key differs,
the end of the arm's id.

Arms of other training loops are called as their runs are, with the keys that vary within their project (`varied`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from itertools import chain
from typing import Any, TypeVar

from altgrad.analysis import words
from altgrad.analysis.loader import (
    NOT_STATED,
    ExperimentDataLoader,
    format_label,
    rule_label,
    scope_parts,
    states_formats,
)
from altgrad.config import OPERAND_NAMES, OPERANDS, ExperimentConfig, flat, parse_config, scalar
from altgrad.recipes import RECIPES, recipe_keys
from altgrad.text import cut, visible

T = TypeVar("T")
SHOWN_KEYS, COMPARED_KEYS = 3, 24
"""Most keys of a project's sweeps in the name of an arm, and those among which they are found."""
FORMATS = "formats"
"""What `values_of` calls all that a config says of formats and their scales."""
LONGEST = 60
"""Most characters of a name or a value that others wrote."""


def site_labels(loader: ExperimentDataLoader) -> dict[str, str]:
    """`arm_labels` of every recorded arm: the title of its page, and what links to it say."""
    return arm_labels(loader, loader.runs["arm"].unique())


def arm_labels(loader: ExperimentDataLoader, arms: Iterable[str], but: Collection[str] = ()) -> dict[str, str]:
    """A name for each of `arms`, no two alike, in their order; plain text, in which others may have a part.

    Args:
        loader: has the arms.
        arms: those shown together.
        but: keys of the config that are said elsewhere, such as ``optimizer.learning_rate`` in a table of rates.

    Raises:
        KeyError: no record has such an arm.
    """
    configs = {arm: loader.config(arm) for arm in arms}
    parts = {arm: [_beginning(config, loader.title(arm))] for arm, config in configs.items()}
    keys = naming(configs)
    for arm, config in configs.items():
        if config.foreign is not None and (values := values_of(config)):
            several = len({*loader.titles(arm)}) > 1  # its runs have names of their own
            told = but if several else {*but, FORMATS}  # its beginning says them
            left = [key for key in keys[config.study] if key not in told]
            named = [key for key in left if key in values] or (left if several else [])
            if several and named:
                parts[arm] = [""]
            parts[arm] += [_leaf(key, values) for key in named]
    alike = _groups(configs, lambda arm: _joined(parts[arm]))

    def divide(by: Callable[[str], str]) -> None:
        nonlocal alike
        left = []
        for group in alike:
            for arm in group if len({*map(by, group)}) > 1 else ():
                parts[arm].append(by(arm))
            left += _groups(group, by)
        alike = left

    for key, facet in FACETS.items():
        if key not in but and not any(key in own for own in keys.values()):
            divide(partial(_of, configs, facet))
    divide(lambda arm: _short(_data(loader.data_name(arm))))
    leaves = {arm: flat(configs[arm].arm_identity()) for arm in chain(*alike)}
    for key in sorted(set(chain(*leaves.values())) - {*but}):
        divide(partial(_of, leaves, partial(_leaf, key)))
    for end in (lambda arm: arm.rpartition("-")[2], str):
        counts = Counter(map(_joined, parts.values()))
        for arm, own in parts.items():
            if counts[_joined(own)] > 1:
                own.append(end(arm))
    return {arm: _joined(own) for arm, own in parts.items()}


def varied(configs: Mapping[str, ExperimentConfig], most: int = SHOWN_KEYS) -> dict[str, list[str]]:
    """The keys by which the arms of other loops differ within a project, for each project; at most `most` of each.

    Those come first that have more than one value, then those that the most arms state, then those of the fewest
    values: what was swept, not what follows. Arms that state nothing do not count.
    """
    found = {}
    for project, arms in _projects(configs).items():
        counts: dict[str, tuple[bool, int, int]] = {}
        for key in dict.fromkeys(chain(*arms)):
            stated = [scalar(arm[key]) for arm in arms if key in arm]
            values, missing = len({*stated}), len(arms) - len(stated)
            if values + (missing > 0) > 1:
                counts[key] = (values == 1, missing, values)
        found[project] = sorted(counts, key=lambda key: (*counts[key], key))[:most]
    return found


def naming(configs: Mapping[str, ExperimentConfig], most: int = SHOWN_KEYS) -> dict[str, list[str]]:
    """Of the keys that are `varied` within a project `most` that name its arms, the one of the most values first.

    One that follows from another, of which several arms share a value, is left out: the learning rate of an optimizer.
    One that is another in each arm is the last, where the others tell them apart without it.
    """
    found, projects = {}, _projects(configs)
    for project, keys in varied(configs, COMPARED_KEYS).items():
        arms = projects[project]
        texts = {key: [scalar(arm[key]) if key in arm else None for arm in arms] for key in keys}
        count = {key: len({*texts[key]}) for key in keys}
        left: list[str] = []
        for key in sorted(keys, key=lambda key: -count[key]):
            causes = (len({*zip(texts[other], texts[key], strict=True)}) == count[other] < len(arms) for other in left)
            left += [] if any(causes) else [key]
        last = [
            key
            for key in left
            if count[key] == len(arms) == len({*zip(*(texts[each] for each in left if each != key), strict=True)})
        ]
        found[project] = [*(key for key in left if key not in last), *last][:most]
    return found


def _projects(configs: Mapping[str, ExperimentConfig]) -> dict[str, list[dict[str, Any]]]:
    """What the arms of other loops state, for each project; those that state nothing are left out."""
    projects = defaultdict[str, list[dict[str, Any]]](list)
    for config in configs.values():
        if config.foreign is not None and (stated := values_of(config)):
            projects[config.study].append(stated)
    return projects


def values_of(config: ExperimentConfig) -> dict[str, Any]:
    """What another loop's run states, but for the seed: AltGrad's keys and its own, dotted; its formats are one."""
    formats = ("quantize", "scaling") if states_formats(config) else ()
    own = {key: value for key, value in config.arm_identity().items() if key not in ("foreign", *formats)}
    told = {FORMATS: ", ".join(_formats(config))} if formats else {}
    return flat(own) | told | dict(config.foreign or {})


def _data(name: str) -> str:
    """The training data; of an import that states none, the project that tells it from others."""
    known = name.removeprefix(f"{NOT_STATED}, ")
    return f"data {name}" if known == name else f"project {known.rpartition(' (')[0]}"


def _joined(parts: Iterable[str]) -> str:
    """``E4M3, AdamW; 300 steps, ...``: what an arm is, and what tells it from others (compare.js cuts there)."""
    named, *_ = own = list(parts)
    first, *more = dict.fromkeys(filter(None, own))
    return "; ".join([first, ", ".join(more)]) if more and named else ", ".join([first, *more])


def _of(values: Mapping[str, T], words_of: Callable[[T], str], arm: str) -> str:
    return words_of(values[arm])


def _groups(arms: Iterable[str], by: Callable[[str], str]) -> list[list[str]]:
    """The arms of which `by` says the same, where it is more than one."""
    found = defaultdict[str, list[str]](list)
    for arm in arms:
        found[by(arm)].append(arm)
    return [group for group in found.values() if len(group) > 1]


def _short(text: object) -> str:
    return cut(visible(str(text)), LONGEST)


def _leaf(key: str, leaves: Mapping[str, object]) -> str:
    name = key.removeprefix("foreign.").removeprefix("optimizer.")
    if key == FORMATS and key in leaves:
        return _short(leaves[key])
    return _short(f"{name}={scalar(leaves[key])}" if key in leaves else f"no {name}")


def _beginning(config: ExperimentConfig, title: str) -> str:
    if config.foreign is not None:
        return ", ".join([_short(title), *(_formats(config) if states_formats(config) else ())])
    label, *how = _formats(config)
    parts = [label, rule_label(config), *how]
    if config.model.rescale:
        parts.append(f"tensors mis-scaled up to {2**config.model.rescale:,} times")
    return ", ".join(parts)


def _formats(config: ExperimentConfig) -> list[str]:
    """The formats, and the operands, layers and scales that are not the default; of other loops, the recipe for all."""
    said = (config.quantize, config.scaling)
    if config.foreign is not None and (name := next((name for name, it in _recipes().items() if it == said), "")):
        return [f"recipe {name}"]
    operands, (_, *how) = config.quantize.operands, scope_parts(config) or [("", "")]
    few = 0 < len(operands) < len(OPERANDS)
    only = [f"{words.names([OPERAND_NAMES[each] for each in operands])} only"] if few else []
    return [format_label(config), *only, *(label for _, label in how)]


@cache
def _recipes() -> dict[str, tuple[Any, Any]]:
    """What the recipes, with their default settings, say of formats and scales."""
    configs = {name: parse_config(recipe_keys(name), source=name) for name in RECIPES}
    return {name: (config.quantize, config.scaling) for name, config in configs.items()}


def _rate(config: ExperimentConfig) -> str:
    return f"learning rate {config.optimizer.learning_rate:g}" if config.states("optimizer.learning_rate") else ""


def _steps(config: ExperimentConfig) -> str:
    return f"{config.max_steps:,} steps" if config.states("max_steps") else ""


def _size(config: ExperimentConfig) -> str:
    model = config.model
    return f"{model.layers} layers of {model.dim}" if config.states("model.dim") else ""


def _others(config: ExperimentConfig) -> str:
    rate = config.optimizer.other_learning_rate
    return "other parameters at the same rate" if rate is None else f"other parameters at {rate:g}"


def _read(config: ExperimentConfig) -> str:
    """How much text the final loss is of; "" for as much as every evaluation reads."""
    characters = config.final_eval_characters
    return f"final loss over {characters:,} characters" if characters else ""


def _histograms(config: ExperimentConfig) -> str:
    """Of which operands beside the weights, the default, there are histograms."""
    more = [OPERAND_NAMES[each] for each in config.telemetry.histograms if each != "weight"]
    return f"histograms of {words.names(more)}" if more else ""


FACETS: Mapping[str, Callable[[ExperimentConfig], str]] = {
    "optimizer.learning_rate": _rate,
    "max_steps": _steps,
    "model": _size,
    "vocabulary": lambda config: f"{config.vocabulary:,} tokens" if config.vocabulary else "",
    "optimizer.other_learning_rate": _others,
    "warmup_steps": lambda config: f"{config.warmup_steps} steps of warm-up",
    "final_eval_characters": _read,
    "telemetry.histograms": _histograms,
    "eval_every": lambda config: f"evaluated every {config.eval_every} steps",
}
"""What tells arms that begin alike from each other, the most important first; "" is what goes without saying."""
