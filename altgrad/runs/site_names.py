"""What a site says of its own runs, in ``altgrad.yaml`` beside its mkdocs.yml: data read with its records.

    loss: accuracy                 # by which runs are compared; default: val_loss, test_loss, loss, else another
    metrics:
      accuracy:                    # what the site calls it
        names: [eval/acc, test_acc]  # what loops logged it as
        better: higher             # default: lower
        unit: share of examples
      val_loss: eval/nll           # the short form: a name, or a list of them
    seed: rng_state                # the key of the configs that is the seed
    arms: [width, learning_rate]   # the keys that make an arm; default: all but the seed and those of one run
    runs: [host_index]             # further keys that say which run it is, and make no arm
    project: sweep                 # the one project of all runs; default: what their tool or their folder says

Everything is optional. Formats that a config states in words of other tools are read as such
(`altgrad.runs.precision`). It adds to the table of `altgrad.runs.names`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from altgrad.config import OPERANDS, ExperimentConfig, UsageError, config_keys, first_mistake, one_line
from altgrad.runs.names import CONFIG, KEYS, OF_ONE_RUN, columns, map_config, normal
from altgrad.runs.precision import precision
from altgrad.runs.processor import NOT_STATED
from altgrad.runs.schema import digest
from altgrad.runs.stores import StorePath, located

FILE = "altgrad.yaml"


class Metric(BaseModel):
    """One metric of a site: its names in the logs, which way is better, and its unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...] = ()
    better: Literal["lower", "higher"] = "lower"
    unit: str = Field("", max_length=60)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        return {"names": [data]} if isinstance(data, str) else {"names": data} if isinstance(data, list) else data

    @field_validator("names", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names


class SiteNames(BaseModel):
    """What ``altgrad.yaml`` says; without a file, nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: str | None = None
    metrics: dict[str, Metric] = {}
    seed: str | None = None
    arms: tuple[str, ...] | None = None
    runs: tuple[str, ...] = ()
    project: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{0,59}$")

    @field_validator("metrics")
    @classmethod
    def _each_name_once(cls, metrics: dict[str, Metric]) -> dict[str, Metric]:
        owner: dict[str, str] = {}
        for column, metric in metrics.items():
            if column == "step":
                raise ValueError("step is no metric; take another name")
            for name in metric.names:
                if name in owner:
                    raise ValueError(f"{name!r} is a name of {owner[name]} and of {column}; leave one out")
                owner[name] = column
        return metrics

    def columns(self, names: Iterable[str]) -> dict[str, str]:
        """Name of a metric of one run -> the column under which it is read."""
        names = tuple(names)
        own: dict[str, str] = {}
        for column, metric in self.metrics.items():
            if found := next((name for name in metric.names if name in names), None):
                own[found] = column
        return columns(names, own)

    def main(self, metrics: Iterable[str]) -> str | None:
        """The metric by which runs are compared, of those that there are; None without any."""
        there = list(metrics)
        known = (self.loss, "val_loss", "test_loss", "loss")
        return next((name for name in known if name in there), there[0] if there else None)

    def metric(self, name: str) -> Metric:
        """What is said of a metric."""
        return self.metrics.get(name, Metric())

    def data(self, data: dict[str, Any]) -> dict[str, Any]:
        """What is known of the training data of a run; where nothing is stated, runs of one project have the same."""
        if self.project is None or not str(data["name"]).startswith(f"{NOT_STATED}, "):
            return data
        name = f"{NOT_STATED}, {self.project}"
        return {"name": name, "sha256": digest({"data": name})}

    def config(self, config: ExperimentConfig) -> ExperimentConfig:
        """The config of another loop's run as its arm has it: with its seed, without the keys that make no arm."""
        given = config.foreign
        if given is None:
            return config
        changed: dict[str, Any] = {"study": self.project} if self.project else {}
        seed = given.get(self.seed) if self.seed else None
        if type(seed) is int and 0 <= seed < 2**31:
            changed["seed"] = seed
        arms = None if self.arms is None else {normal(name) for name in self.arms}
        besides = {normal(name) for name in (*self.runs, *([self.seed] if self.seed and "seed" in changed else []))}

        called = map_config(given)[1]

        def makes_arm(key: str) -> bool:
            name = normal(key)
            if arms is not None:
                return not arms.isdisjoint((name, normal(called.get(key, key))))
            return name not in besides and name.rpartition(".")[2] not in OF_ONE_RUN

        formats, said = precision(given)
        own = any(config.states(f"quantize.{operand}") for operand in OPERANDS)
        if own or (said and arms is not None and not any(map(makes_arm, said))):
            formats, said = {}, ()
        if formats:
            try:
                config = ExperimentConfig.model_validate(config.model_dump(exclude_unset=True) | formats)
            except ValidationError:  # a setting that AltGrad's recipe cannot have, or a scaling of the loop's own
                formats, said = {}, ()
        kept = {key: value for key, value in given.items() if makes_arm(key) and key not in said}
        if changed or kept != given:
            config = config.model_copy(update={**changed, "foreign": kept})
        if arms is None:
            return config
        stated = {key for key in config_keys() if key != "foreign" and config.states(key)}
        names = {key: {normal(key), *CONFIG.get(key, ())} for key in stated}
        left = [
            key for key, own in names.items() if not own & arms and key.partition(".")[0] not in {*_ALWAYS, *formats}
        ]
        return _without(config, left)


NO_NAMES = SiteNames()
"""What a site says that says nothing."""
_ALWAYS = ("name", "notes", "tags", "study", "seed", "data", "tracking", "checkpoint")


def _without(config: ExperimentConfig, keys: Iterable[str]) -> ExperimentConfig:
    """`config` without some of the keys that it states."""
    dumped = config.model_dump(exclude_unset=True)
    for key in keys:
        *sections, last = key.split(".")
        inner = dumped
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(last, None)
    return ExperimentConfig.model_validate(
        {key: value for key, value in dumped.items() if value != {} or key == "foreign"}
    )


def own_names(configs: Iterable[ExperimentConfig]) -> dict[str, str]:
    """AltGrad's key -> what other loops call it, where a run of theirs has a value that the key cannot have.

    Formats are not among them: what is none that AltGrad knows says nothing of those that are.
    """
    counts = Counter(each for config in configs for each in refused(config).items())
    return {key: name for (key, name), _ in reversed(counts.most_common())}


def named_alike(config: ExperimentConfig, names: Mapping[str, str]) -> ExperimentConfig:
    """The config of another loop's run with each key of `names` in `foreign`, under the one name of all runs."""
    given = config.foreign or {}
    stated = [key for key, name in names.items() if key != name and name not in given and config.states(key)]
    called = {name: names[key] for key, name in refused(config).items() if names.get(key, name) not in given}
    if not stated and not called:
        return config
    moved = {names[key]: reduce(getattr, key.split("."), config) for key in stated}
    with contextlib.suppress(ValidationError):  # of a rule of AltGrad's that other keys of the run belong to
        foreign = {called.get(name, name): value for name, value in given.items()} | moved
        return _without(config, stated).model_copy(update={"foreign": foreign})
    return config


def refused(config: ExperimentConfig) -> dict[str, str]:
    """The keys of AltGrad's that a run has another value for than they can have, and what its loop calls them."""
    found: dict[str, str] = {}
    for name in config.foreign or ():
        key = KEYS.get(normal(name), "seed")
        if key not in ("seed", "data") and not key.startswith("quantize.") and not config.states(key):
            found.setdefault(key, name)
    return found


def site_names(sources: Iterable[Path]) -> SiteNames:
    """What the site of some folders of records says: the ``altgrad.yaml`` in one of them, or one or two above it.

    Raises:
        UsageError: the file is none; one line says which key and why.
    """
    path = names_file(sources)
    if path is None:
        return NO_NAMES
    try:
        return _parsed(path.read_bytes())
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from None
    except OSError as error:
        raise UsageError(f"{path.name}: cannot be read ({error.strerror})") from None


def names_file(sources: Iterable[Path]) -> Path | None:
    """Where the ``altgrad.yaml`` of some folders of records is; of a store's in the folder itself."""
    for source in map(located, sources):
        whole = source.resolve()
        for folder in (whole, *([] if isinstance(whole, StorePath) else whole.parents[:2])):
            if (folder / FILE).is_file():
                return folder / FILE
    return None


@lru_cache(8)
def _parsed(data: bytes) -> SiteNames:
    try:
        given = yaml.safe_load(data.decode("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"not valid YAML ({one_line(error)}); correct the file") from None
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"give keys and values, not a {type(given).__name__}")
    try:
        return SiteNames.model_validate(given or {})
    except ValidationError as error:
        raise UsageError(_mistake(error)) from None


def _mistake(error: ValidationError) -> str:
    """The first mistake on one line: the key, what is wrong, and what may be there."""
    first = error.errors(include_url=False)[0]
    *parents, key = map(str, first["loc"])
    if first["type"] != "extra_forbidden":
        return first_mistake(error)
    known = list(Metric.model_fields if parents else SiteNames.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {'.'.join([*parents, key])!r}; {hint}"
