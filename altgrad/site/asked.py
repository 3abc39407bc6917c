"""What ``altgrad new-site --from`` has to know of somebody's runs: given, asked for on a terminal, or said in a line.

Nothing is guessed in silence, and nothing waits for an answer where nobody can give one.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from altgrad.analysis.effects import metrics_of
from altgrad.analysis.labels import values_of, varied
from altgrad.config import UsageError
from altgrad.runs import RunRecord
from altgrad.runs.foreign import slug
from altgrad.runs.history import LOSSES
from altgrad.runs.names import KEYS, columns, map_config, normal
from altgrad.runs.site_names import NO_NAMES
from altgrad.text import shorten, visible

SHOWN = 12
"""Most names that a question offers."""
Ask = Callable[[str, str], str]
"""Gives the answer to a question, or the second argument where there is none."""


@dataclass(frozen=True)
class Given:
    """What the command line says; None where it says nothing."""

    loss: str | None = None
    better: str | None = None
    seed: str | None = None
    arms: str | None = None
    project: str | None = None


class Found(NamedTuple):
    """What a site says of its runs, for ``altgrad.yaml``; what was taken without an answer; what was a mistake."""

    names: dict[str, Any]
    lines: list[str]
    mistakes: list[str]


def ask_on_terminal(question: str, default: str) -> str:
    """The line that somebody types; `default` without a terminal, for an empty line, and at the end of the input."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return default
    try:
        return input(f"{visible(question)} [{default or 'none'}]: ").strip() or default
    except EOFError:
        print()
        return default


def find_names(records: Sequence[RunRecord], given: Given, ask: Ask) -> Found:
    """What ``altgrad.yaml`` has to say of these runs."""
    found = Found({}, [], [])
    there = metrics_of(records, ends=True)
    usual = NO_NAMES.main(there)
    loss = given.loss and _known("--loss", given.loss, there, columns([given.loss])[given.loss], found)
    if loss is None and usual is not None:
        loss = usual
        if usual not in LOSSES:
            loss = _one_of(ask, f"By which metric are runs compared? There are {_some(there)}", usual, there)
        found.lines.append(f"runs are compared by {loss}; by another: --loss NAME, or loss: in altgrad.yaml")
    if loss is not None and (loss != usual or usual not in LOSSES):
        found.names["loss"] = loss
    better = given.better
    if loss is not None and loss not in LOSSES and better is None:
        better = _one_of(ask, f"{loss}: is lower or higher better?", "", ("lower", "higher"))
        if not better:
            found.lines.append(f"{loss}: lower is taken as better; else --better higher, or better: in altgrad.yaml")
    if loss is not None and better:
        found.names["metrics"] = {loss: {"better": better}}

    configs = {record.arm: record.config for record in records if record.config.foreign is not None}
    seedless = [record for record in records if not record.config.states("seed")]
    own = sorted({key for config in configs.values() for key in config.foreign or {}})
    wanted = given.seed
    if wanted and not seedless and KEYS.get(normal(wanted)) == "seed":  # what is known anyway
        wanted = None
    seed = wanted and _known("--seed", wanted, own, wanted, found)
    whole = [key for key in own if _could_be_seed(seedless, key)]
    if not given.seed and whole:
        what = f"{len(seedless)} runs state no seed. Which key of their config is it? There are {_some(whole)}"
        seed = _one_of(ask, what, "", whole)
    if seed:
        found.names["seed"] = seed

    studies = sorted({config.study for config in configs.values()})
    project = given.project
    if len(studies) > 1 and project is None:
        what = f"Runs of several projects are not compared with each other: {_some(studies)}. One name for all of them"
        project = ask(what, "")
        if not project:
            found.lines.append(
                f"there are {len(studies)} projects, which are not compared with each other: {_some(studies)}; "
                "to make them one: --project NAME, or project: in altgrad.yaml"
            )
    if project:
        found.names["project"] = slug(project)
    differ = [key for keys in varied(configs, SHOWN).values() for key in keys if key != seed]
    arms = given.arms
    if arms is None and len(differ := list(dict.fromkeys(differ))) > 1:
        answer = ask(f"Which keys make an arm, with commas between? These differ: {_some(differ)}", "all")
        arms = None if answer == "all" else answer
    keys = sorted({key for config in configs.values() for key in values_of(config)})
    names = [name for each in (arms or "").split(",") if (name := each.strip())]
    if chosen := [
        key for name in names if (key := _known("--arms", name, keys, next(iter(map_config({name: None})[0])), found))
    ]:
        found.names["arms"] = chosen
    return found


def ask_address(ask: Ask) -> str:
    """The address that the site will have, asked again until it is one; empty for none."""
    question = "Address that the site will have, https://..."
    while True:
        try:
            return site_address(ask(question, ""))
        except UsageError as error:
            question = str(error)


def site_address(text: str) -> str:
    """The address of a published site, with a slash at its end; empty for none.

    Raises:
        UsageError: it is no web address.
    """
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and not set(text) & set(" \"'<>\\?#@$")
    if text and not (plain and parts.scheme in ("http", "https") and parts.hostname):
        shown = shorten(visible(text), 80)
        raise UsageError(f"--site-url {shown}: give an address such as https://our-name.github.io/our-runs/")
    return text and text.rstrip("/") + "/"


def _could_be_seed(records: Sequence[RunRecord], key: str) -> bool:
    """Whether a key is a whole number in each of some runs, and not the same in all."""
    values = [(record.config.foreign or {}).get(key) for record in records]
    return all(type(value) is int for value in values) and len({*values}) > 1


def _known(option: str, name: str, there: Sequence[str], other: str, found: Found) -> str | None:
    """The one of `there` that is meant by a name or its `other` form; a mistake is noted with what is near."""
    if match := next((each for each in there if name == each), None):
        return match
    match = next(
        (each for each in there if normal(each) == normal(name) or KEYS.get(normal(each), each) == other), None
    )
    if match is None:
        near = difflib.get_close_matches(name, there, 3, 0.5)
        found.mistakes.append(f"{option} {name}: no run has it; there are {_some(near or there)}")
    return match


def _one_of(ask: Ask, question: str, default: str, there: Sequence[str]) -> str:
    """An answer that is one of those there are, or the default; asked again until it is."""
    while (answer := ask(question, default)) != default and answer not in there:
        question = f"{answer}: not among {_some(there)}; which?"
    return answer


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
