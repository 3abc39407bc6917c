"""The runs: an index of arms, a page for each arm with an anchor for each of its runs, a page for each tuning study."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from functools import cache, partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import yaml

from altgrad.analysis import words
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import NOT_STATED, ExperimentDataLoader, Looks, unquantized
from altgrad.analysis.statistics import Estimate, mean_interval
from altgrad.config import ExperimentConfig, changes, command, flat, nested, scalar
from altgrad.reports import columns as col
from altgrad.reports import health
from altgrad.reports.compare import (
    arm_json,
    arm_table,
    arms_in_order,
    averaged,
    compare_page,
    downloads,
    run_value,
    stated,
    table_json,
)
from altgrad.reports.curves import Losses, compact, curves, losses_of, plain
from altgrad.reports.document import document_page, documents_key
from altgrad.reports.format_styles import format_style
from altgrad.reports.provenance import code_key
from altgrad.reports.tuning import swept, tuning_page, tuning_studies
from altgrad.runs import RunRecord
from altgrad.runs.diagnosis import diagnose, warnings_of
from altgrad.runs.schema import digest
from altgrad.runs.wandb_records import tool_of
from altgrad.site import Block, CodeBlock, Link, Page, PageMaker, PageRef, Table, code, join, md, slug
from altgrad.site.document import Part
from altgrad.text import Md, escape, minus

EVENTS_SHOWN = 5
"""Events of one kind that a run's section lists before it counts the rest."""
WARNINGS_SHOWN = 20
"""Warnings that a run's section lists before it counts the rest."""
NO_WANDB = "recorded without W&B"
_ARMS = (
    col.arm("Arm", "label"),
    col.filled("Learning rate", "{learning_rate:g}", blank=NOT_STATED),
    col.count("Steps", "max_steps"),
    col.number("Validation loss", "val_loss"),
    col.interval(sign=False),
    col.share("Finished", "finished", "runs"),
    col.text("Studies", "studies"),
)
_FORMATS = (
    col.arm(),
    col.number("Validation loss", "val_loss", 4),
    col.signed("Gap", "gap", 4),
    col.interval(digits=4),
    col.count("Pairs", "n_pairs"),
    col.share(),
)
_RUNS = (
    col.of(
        "Run", lambda row: Md(f'<a id="{slug(row["run_id"])}"></a>{code(row["run_id"])} {escape(row["title"])}'.strip())
    ),
    col.count("Seed", "seed"),
    col.of("Status", lambda row: row["status"] + (f": {row['reason']}" if row["reason"] else "")),
    col.of("Study", lambda row: row["study"] + (" (held out of comparisons)" if row["role"] == "tuning" else "")),
    col.number("Final validation loss", "final_val_loss", 4),
    col.count("Last step", "last_step"),
    col.number("Seconds", "seconds", 1),
    col.of("Recorded", lambda row: words.moment(row["created"])),
    col.of("W&B", lambda row: Link("W&B run", url) if isinstance(url := row["wandb_url"], str) else row["made"]),
)
_OF_RUN = (
    "arm", "run_id", "seed", "status", "study", "role", "final_val_loss", "last_step", "created", "wandb_url",
)  # fmt: skip
_EVENTS = (
    col.text("Event", "event"),
    col.count("Runs", "runs"),
    col.count("Times", "times"),
    col.filled("First at step", "{step}", blank="None"),
    col.text("The first", "details"),
)
_WARNINGS = (
    col.count("Step", "step"),
    *(col.filled(name.capitalize(), f"{{{name}}}", right=False) for name in ("what", "tensor", "phase")),
    col.of("Value", lambda row: row["value"], right=True),
    col.of("Message", lambda row: minus(row["message"])),
)


def arm_pages(loader: ExperimentDataLoader) -> list[Page]:
    """The index of arms, one page for each tuning study with the arms that only it has, one for each arm, Compare."""
    return [maker() for maker in arm_page_makers(loader)]


def arm_page_makers(loader: ExperimentDataLoader) -> list[PageMaker]:
    """What makes each of `arm_pages`, the longest first, for processes that share them; records are read here.

    The page of an arm is made from its records and its baseline's alone, and the cache keeps it while these are as they
    were; so it is with the page of a study.
    """
    arms = {str(arm): runs for arm, runs in loader.runs.groupby("arm", sort=True)}
    baselines = {arm: _baseline(loader, runs) for arm, runs in arms.items()}
    foreign = {arm for arm, runs in arms.items() if runs["foreign"].any()}
    moved = loader.memo(swept)
    labels = loader.memo(site_labels)
    losses = cache(partial(losses_of, loader))
    documents = documents_key("runs/_arm", "runs/_study")
    code = digest(code_key(__name__), documents, {path: astuple(at) for path, at in moved.items()})

    def maker(make: Callable[..., Page], shown: Iterable[str], *what: Any, told: Any = None) -> PageMaker:
        shown = set(shown)
        others = foreign if shown & foreign else set()  # arms of another loop are compared with each other
        part = loader.of_arms({*shown, *others, *filter(None, map(baselines.get, shown))})
        about = [(arm, labels[arm], baselines[arm]) for arm in sorted(shown)]
        key = digest(code, part.fingerprint, about, told)
        return PageMaker(lambda: replace(make(part, *what), moved=moved), key)

    def study(part: ExperimentDataLoader, name: str, swept_only: list[str]) -> Page:
        last = {arm: part.last_look(averaged(part, arms[arm])) for arm in swept_only}
        files = {f"{arm}.curves.json": arm_json(part, arm, arms[arm], baselines[arm], last[arm]) for arm in last}
        return replace(tuning_page(part, name), downloads=downloads(files))

    own = [arm for arm in arms_in_order(loader) if f"runs/{arm}" not in moved]
    studies = []
    for name, path in tuning_studies(loader).items():
        rows = loader.runs[(loader.runs["study"] == name) & (loader.runs["role"] == "tuning")]
        swept_only = [arm for arm in arms if (at := moved.get(f"runs/{arm}")) and at.path == path]
        studies.append(maker(study, {*rows["arm"], *swept_only}, name, swept_only))

    def of_arm(arm: str, before: str | None, after: str | None) -> PageMaker:
        around = {"baseline": baselines[arm], "before": before, "after": after}
        named = {place: other and (other, labels[other]) for place, other in around.items()}
        return maker(_arm_page, [arm], labels[arm], named, arm, arms[arm], losses, told=named)

    return [
        PageMaker(lambda: replace(_index(loader, own), moved=moved)),
        *studies,
        *map(of_arm, own, [None, *own], [*own[1:], None]),
        PageMaker(lambda: replace(compare_page(loader), moved=moved)),
    ]


def _index(loader: ExperimentDataLoader, own: list[str]) -> Page:
    """The table without JavaScript has the arms with a page; with it, all arms and runs (docs/javascripts/runs/)."""
    arms = arm_table(loader)
    shown = arms[arms["arm"].isin(own)]
    sweeps = join(", ", (Link(study, PageRef(path)) for study, path in tuning_studies(loader).items()))
    parts = {"arms": [col.table(shown, _ARMS, f"{len(shown)} arms", "arms")] if len(shown) else []}
    page = document_page(loader, "runs/index", {"runs": len(loader.runs), "sweeps": sweeps}, parts, code=__name__)
    return replace(page, downloads=downloads({"table.json": table_json(loader, arms)}))


def _arm_page(
    loader: ExperimentDataLoader,
    title: str,
    around: Mapping[str, tuple[str, str] | None],
    arm: str,
    runs: pd.DataFrame,
    losses: Callable[[str | None], Losses],
) -> Page:
    """The page; `around` has its baseline, and the arms before and after it in the index, with what they are called."""
    first, config, records = runs.iloc[0], loader.config(arm), [loader.records[run_id] for run_id in runs["run_id"]]
    baseline = around["baseline"] and around["baseline"][0]
    ids, counts = averaged(loader, runs), runs["status"].value_counts()
    reasons = runs["failure"].map(lambda failure: ", ".join(failure["kinds"]) if failure else "")
    looks = loader.looks(ids)
    last = looks.last()
    layers = _layers(loader, records, ids, looks, last)
    colour = format_style(first["format"]).colour
    drawn = curves(losses(arm), losses(baseline), baseline is not None, config.foreign is not None, colour)
    values = {
        "title": title,
        "id": arm,
        "format": first["format"],
        "around": around,
        "scope": first["scope"],
        "rate": f"{first['learning_rate']:g}" if pd.notna(first["learning_rate"]) else NOT_STATED,
        "steps": first["max_steps"],
        "foreign": config.foreign is not None,
        "ended": [f"{counts[status]} {status}{_why(reasons[runs['status'] == status])}" for status in counts.index],
        "studies": sorted(runs["study"].unique()),
        "baseline": baseline,
        "gap": _gap(loader, arm, baseline),
        "curves": drawn,
        "config": _config(loader, config, baseline),
        "command": CodeBlock(command(config), "bash"),
        "compared": _compared(loader, arm),
        "averaged": len(ids),
        "looks": np.unique(looks.layers["step"].to_numpy(np.int64)).tolist(),
        "data": Link(f"{arm}.curves.json", PageRef(f"runs/{arm}.curves.json")),
        "raw": Link(f"{arm}.runs.json", PageRef(f"runs/{arm}.runs.json")),
        "special": _special(records),
    }
    seconds = [record.run.get("seconds") or np.nan for record in records]
    titles = [record.title if record.title != record.id else "" for record in records]
    made = [f"from {tool_of(record.run)}" if "origin" in record.run else NO_WANDB for record in records]
    shown = runs[[*_OF_RUN]].assign(seconds=seconds, reason=reasons, title=titles, made=made)
    shown["seed"] = [record.config.seed if record.config.states("seed") else np.nan for record in records]
    parts: dict[str, Part] = {
        "runs": [col.table(shown, _RUNS, f"{len(runs)} run{'s' if len(runs) > 1 else ''}")],
        "events": _events(records) if len(runs) > 1 else [],
        "environment": [_environment(records)],
    }
    whose = "of this arm and its baseline"
    page = document_page(loader, f"runs/{arm}", values, parts, code=__name__, document="runs/_arm", of=whose)
    files = {"curves.json": arm_json(loader, arm, runs, baseline, last, layers)}
    files["runs.json"] = compact({record.id: run_value(record) for record in records})
    return replace(page, search=False, downloads=downloads(files))


def _why(reasons: pd.Series) -> str:
    """Why some runs ended as they did, where their records say it: `` (divergence, early_stop)``."""
    found = [reason for reason in dict.fromkeys(reasons) if reason]
    return f" ({'; '.join(found)})" if found else ""


def _gap(loader: ExperimentDataLoader, arm: str, baseline: str | None) -> Estimate | None:
    """Final validation loss minus the baseline's of the same seed; held-out tuning seeds take no part."""
    losses: dict[str, dict[int, float]] = {}
    names = ("arm", "role", "seed", "final_val_loss")
    for name, role, seed, loss in zip(*(loader.runs[name].tolist() for name in names), strict=True):
        if role == "report" and np.isfinite(loss):
            losses.setdefault(name, {}).setdefault(seed, loss)
    own, other = losses.get(arm, {}), losses.get(baseline or "", {})
    gaps = [loss - other[seed] for seed, loss in sorted(own.items()) if seed in other]
    return mean_interval(gaps) if gaps else None


def _config(loader: ExperimentDataLoader, config: ExperimentConfig, baseline: str | None) -> list[Block]:
    """What differs from the baseline, else from the defaults; of another loop all keys, which are no YAML of ours."""
    if config.foreign is not None:
        given = [(key, scalar(value), "AltGrad's") for key, value in stated(config).items()]
        given += [(key, scalar(value), "the loop's own") for key, value in config.foreign.items()]
        return [Table(("Key", "Value", "Whose key"), tuple(given), id="config")]
    if baseline is None:
        changed = nested(changes(config))
        return [CodeBlock(yaml.safe_dump(changed, sort_keys=False) if changed else "# nothing\n", "yaml")]
    own, base = (flat(each.identity()) for each in (config, loader.config(baseline)))
    keys = [key for key in dict.fromkeys([*own, *base]) if key != "seed" and own.get(key) != base.get(key)]
    rows = tuple((key, scalar(own.get(key)), scalar(base.get(key))) for key in keys)
    caption = md("What differs from {arm}", arm=col.arm_link(baseline, "the baseline"))
    return [Table(("Key", "This arm", "Baseline"), rows, caption)] if rows else []


def _foreign(loader: ExperimentDataLoader) -> FormatComparator:
    return FormatComparator(loader, foreign=True)


def _compared(loader: ExperimentDataLoader, arm: str) -> list[Block]:
    """The formats that another loop recorded in this arm's setting, against its unquantized runs."""
    blocks: list[Block] = []
    for comparison in loader.memo(_foreign).comparisons:
        if arm in (comparison.baseline, *comparison.table["arm"]):
            formats = loader.runs.loc[loader.runs["arm"] == comparison.baseline, "format"]
            caption = md(
                "{scope}: gap of val_loss to {baseline}, paired by seed",
                scope=words.quantized(comparison.scope).capitalize(),
                baseline=col.arm_link(comparison.baseline, f"the runs in {formats.iloc[0]}"),
            )
            blocks.append(col.table(comparison.table, _FORMATS, caption, f"formats-{comparison.setting}"))
    return blocks


def _layers(
    loader: ExperimentDataLoader, records: list[RunRecord], ids: list[str], looks: Looks, last: pd.DataFrame
) -> dict[str, Any] | None:
    """What the script draws of the layers: means over some runs, and alone each other run that ended badly."""
    if last.empty:
        return None
    bad = [record for record in records if record.status != "finished" and ids != [record.id] and len(record.coded)]
    return {
        **health.over_time(looks.history()),
        "tables": health.last_look(last, len(ids)),
        "codes": health.codes_value(health.codes(loader, ids, looks, last)),
        "alone": [
            {"run": record.id, "status": record.status, **health.over_time(loader.layer_history([record.id]))}
            for record in bad
        ],
    }


def _special(records: list[RunRecord]) -> Iterator[dict[str, Any]]:
    """What there is to say of single runs: why they ended badly, facts and warnings."""
    for record in records:
        bad = record.status != "finished"
        if len(records) == 1 or bad or record.run.get("message") or record.config.notes or "origin" in record.run:
            facts, warnings = _facts(record), _warnings(record)
            yield {"id": record.id, "failure": diagnose(record), "facts": facts, "warnings": warnings}


def _events(records: list[RunRecord]) -> list[Block]:
    """What happened in the runs of an arm, by kind: in how many of them, how often, and the first time."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for record in records:
        for event in record.run["events"]:
            if isinstance(event, dict):
                kind = str(event.get("kind"))
                name = f"warning: {event.get('what')}" if kind == "warning" else kind
                found[name].append((record.id, event))
    rows = []
    for name, events in sorted(found.items()):
        _, first = min(events, key=lambda each: step if isinstance(step := each[1].get("step"), int) else 1 << 62)
        told = {"event": name, "runs": len({run for run, _ in events}), "times": len(events), "step": first.get("step")}
        rows.append(told | {"details": _details(first, "kind", "step", "what")})
    return [col.table(rows, _EVENTS, f"What happened in the {len(records)} runs")] if rows else []


def _facts(record: RunRecord) -> list[Block]:
    """A run's message, notes, origin and events; nothing for a run without any."""
    rows = [("Message", str(record.run.get("message") or "")), ("Notes", record.config.notes)]
    if origin := record.run.get("origin"):
        where = "/".join(str(origin[key]) for key in ("entity", "project", "id") if origin.get(key))
        rows.append((f"Made from {tool_of(record.run)}", f"{where}, {words.moment(origin.get('pulled'))}"))
        rows += [("Read from its log", str(line)) for line in origin.get("report", [])]
    rows = [(field, value) for field, value in rows if value] + _event_rows(record.run["events"])
    return [Table(("Field", "Value"), tuple(rows), md("About run {run}", run=code(record.id)))] if rows else []


def _environment(records: list[RunRecord]) -> Table:
    """By which code, on which data and where the runs were recorded: a row for each kind of run."""
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for record in records:
        made, data = record.run["code"], record.run["data"]
        where = record.run["environment"] and {"processor": NOT_STATED, **record.run["environment"]}
        environment = ", ".join(f"{key} {plain(value)}" for key, value in sorted(where.items()))
        program = f"altgrad {made.get('version', '?')}, fingerprint {made.get('fingerprint', '?')}"
        text = f"{data.get('name', 'unnamed')}, sha256 {data['sha256'][:12]}"
        found[environment or "not recorded", program, text].append(record.config.seed)
    rows = tuple((_seeds(seeds), *kind) for kind, seeds in found.items())
    return Table(("Seeds", "Environment", "Code", "Training data"), rows, "Environment")


def _seeds(seeds: Iterable[int]) -> str:
    """``10 to 25, 31``."""
    parts = groupby(enumerate(sorted(set(seeds))), key=lambda each: each[1] - each[0])
    ranges = [[seed for _, seed in part] for _, part in parts]
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in ranges)


def _event_rows(events: Iterable[Any]) -> list[tuple[str, str]]:
    """A row an event with its details; of each kind the first few, then how many there are. Warnings have a table."""
    rows: list[tuple[str, str]] = []
    found = [event for event in events if isinstance(event, dict) and event.get("kind") != "warning"]
    seen, shown = Counter(str(event.get("kind")) for event in found), Counter[str]()
    for event in found:
        kind = str(event.get("kind"))
        shown[kind] += 1
        if shown[kind] in (*range(EVENTS_SHOWN + 1), seen[kind]):
            told = _details(event, "kind", "step") if shown[kind] <= EVENTS_SHOWN else f"the last of {seen[kind]}"
            rows.append((f"Event at step {event.get('step')}", f"{kind}: {told}" if told else kind))
    return rows


def _details(event: dict[str, Any], *besides: str) -> str:
    """``key value`` of each detail but for those `besides`, nested ones as ``outer.key value``."""
    details = flat({key: value for key, value in event.items() if key not in besides})
    return ", ".join(f"{key} {minus(str(value))}" for key, value in details.items())


def _warnings(record: RunRecord) -> list[Block]:
    """What telemetry warned of, at which step, and in which tensor."""
    found, counted = warnings_of(record), record.run["summary"].get("warnings")
    if not found:
        return []
    total = max(len(found), counted if isinstance(counted, int) else 0)
    rows = [{"step": step} | alarm._asdict() for step, alarm in found[:WARNINGS_SHOWN]]
    more = f", the first {len(rows)} of {total}" if total > len(rows) else ""
    return [col.table(rows, _WARNINGS, f"Warnings of this run{more}")]


def _baseline(loader: ExperimentDataLoader, runs: pd.DataFrame) -> str | None:
    """The unquantized arm to draw behind this one: of the same setting, else of the same data, model and length."""
    first, config = runs.iloc[0], loader.config(str(runs["arm"].iloc[0]))
    free = [each for each in loader.memo(_unquantized) if each.arm != first["arm"]]
    same = [each.arm for each in free if each.setting == first["setting"]]
    if not same and config.foreign is None and config.quantize.operands:
        here = (first["data"], first["max_steps"], False)
        near = (each.arm for each in free if (each.data, each.max_steps, each.foreign) == here)
        same = [arm for arm in near if loader.config(arm).model == config.model]
    return str(same[0]) if same else None


def _unquantized(loader: ExperimentDataLoader) -> list[Any]:
    """The arms of unquantized reporting runs, with what `_baseline` chooses by; a row for each length of an arm."""
    rows = loader.runs[unquantized(loader.runs) & (loader.runs["role"] == "report")]
    return list(rows[["arm", "setting", "data", "max_steps", "foreign"]].drop_duplicates().itertuples(index=False))
