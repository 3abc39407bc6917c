"""The runs: an index of arms, a page for each arm with an anchor for each of its runs, a page for each tuning study."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from functools import cache, partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import pandas as pd
import yaml

from altgrad.analysis import words
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.contrasts import by_seed
from altgrad.analysis.effects import OWN, Measure, last_value, measure_of, outcomes, summary_of
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import NOT_STATED, ExperimentDataLoader, Looks, states_formats, unquantized
from altgrad.analysis.statistics import Estimate, paired_difference
from altgrad.config import ExperimentConfig, changes, command, flat, nested, scalar
from altgrad.reports import columns as col
from altgrad.reports import health, tuning
from altgrad.reports.compare import (
    arm_json,
    arm_table,
    arms_in_order,
    averaged,
    compare_page,
    downloads,
    run_value,
    stated,
    swept_columns,
    table_json,
)
from altgrad.reports.curves import Losses, capital, compact, curves, losses_of, metrics_of_arm, plain
from altgrad.reports.document import document_page, documents_key
from altgrad.reports.format_styles import format_style
from altgrad.reports.provenance import code_key, data_of, provenance
from altgrad.reports.scope import has_campaign, only_foreign, site_values
from altgrad.reports.tuning import tuning_page, tuning_studies
from altgrad.runs import RunRecord
from altgrad.runs.diagnosis import coverage_of, diagnose, happened, warnings_of
from altgrad.runs.schema import digest
from altgrad.runs.wandb_records import tool_of
from altgrad.site import PALETTE, Block, CodeBlock, Column, Link, Page, PageMaker, PageRef, Table, code, join, md, slug
from altgrad.site.document import Part
from altgrad.text import Md, escape, minus, visible

SUMMED = 6
"""Values of the summaries alone that the table of an arm's runs has."""
EVENTS_SHOWN = 5
"""Events of one kind that a run's section lists before it counts the rest."""
WARNINGS_SHOWN = 20
"""Warnings that a run's section lists before it counts the rest."""
NO_WANDB, HERE = "recorded without W&B", "recorded here"
_FORMATS = (
    col.arm(),
    col.number("Validation loss", "val_loss", 4),
    col.signed("Gap", "gap", 4),
    col.interval(digits=4),
    col.count("Pairs", "n_pairs"),
    col.share(),
)


def _arms_columns(loader: ExperimentDataLoader, arms: pd.DataFrame, keys: Iterable[str]) -> tuple[Column, ...]:
    """What an arm is and how it ended; where no run is AltGrad's own, what is stated of its runs."""
    measure, foreign = loader.memo(outcomes).measure or OWN, only_foreign(loader)
    digits = measure.digits if foreign else 3
    rate = col.filled("Learning rate", "{learning_rate:g}", blank=NOT_STATED)
    return (
        col.arm("Arm", "label"),
        *([rate] if not foreign or arms["learning_rate"].notna().any() else []),
        *(_config_column(key, arms[f"config {key}"]) for key in keys),
        col.count("Steps", "max_steps"),
        col.number(capital(measure.title), "val_loss", digits),
        col.interval(digits=digits, sign=False),
        col.text("Runs", "counted"),
        col.text("Projects" if foreign else "Studies", "studies"),
    )


def _config_column(key: str, values: pd.Series) -> Column:
    numbers = pd.to_numeric(values, errors="coerce").notna() | values.isna()
    return col.of(key, lambda row: row[f"config {key}"], right=bool(numbers.all()))


def _runs_columns(shown: pd.DataFrame, measure: Measure, foreign: bool, ends: Iterable[str]) -> tuple[Column, ...]:
    """Of another loop's runs, what is known of one at least; and what only their summaries have."""
    linked = shown["wandb_url"].notna().any() or not foreign
    known = {key: not foreign or shown[key].notna().any() for key in ("seed", "seconds")}
    run = Md('<a id="{id}"></a>{name} {title}')
    return (
        col.of(
            "Run",
            lambda row: Md(
                run.format(id=slug(row["run_id"]), name=code(row["run_id"]), title=escape(row["title"])).strip()
            ),
        ),
        *([col.count("Seed", "seed")] if known["seed"] else []),
        col.of("Status", lambda row: row["ending"] + (f": {row['reason']}" if row["reason"] else "")),
        col.of(
            "Project" if foreign else "Study",
            lambda row: row["study"] + (" (held out of comparisons)" if row["role"] == "tuning" else ""),
        ),
        col.number(f"Last {measure.title}" if foreign else f"Final {measure.title}", "last", measure.digits),
        *(col.general(visible(name), f"end {name}", ".5g") for name in ends),
        col.last_step(),
        *([col.number("Seconds", "seconds", 1)] if known["seconds"] else []),
        col.of("Recorded", lambda row: words.moment(row["created"])),
        col.of(
            "W&B" if linked else "Source",
            lambda row: Link("W&B run", url) if isinstance(url := row["wandb_url"], str) else row["made"],
        ),
    )


_OF_RUN = (
    "arm", "run_id", "seed", "ending", "study", "role", "last_step", "created", "wandb_url",
)  # fmt: skip
_LEFT_OUT = (
    col.of("Parameters", lambda row: visible(row["name"])),
    col.of("Why", lambda row: visible(row["why"])),
    col.count("Tensors", "count"),
    col.of("Share of parameters", lambda row: words.percent(row["parameters"] / row["all"]), right=True),
    col.of("Of multiply-adds", lambda row: words.percent(row["added"] / row["made"]), right=True),
)
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
    moved = loader.memo(tuning.moved)
    there = loader.runs[~("runs/" + loader.runs["arm"]).isin(path for path, at in moved.items() if not at.anchor)]
    arms = {str(arm): runs for arm, runs in there.groupby("arm", sort=True)}
    baselines = {arm: _baseline(loader, runs) for arm, runs in arms.items()}
    baselines = {arm: other if other in arms else None for arm, other in baselines.items()}
    compared = {arm for arm, runs in arms.items() if runs["foreign"].any() and states_formats(loader.config(arm))}
    measures = {arm: measure_of(loader, arm) for arm in arms}
    labels = loader.memo(site_labels)
    losses = cache(partial(losses_of, loader))
    documents = documents_key("runs/_arm", "runs/_study")
    code = digest(code_key(__name__), documents, {path: astuple(at) for path, at in moved.items()})

    formats = loader.of_arms(compared)  # of other loops, which are compared with each other

    def maker(make: Callable[..., Page], shown: Iterable[str], *what: Any, told: Any = None) -> PageMaker:
        shown = set(shown)
        part = loader.of_arms({*shown, *filter(None, map(baselines.get, shown))})
        about = [(arm, labels[arm], baselines[arm], measures[arm]) for arm in sorted(shown)]
        key = digest(code, part.fingerprint, about, told, formats.fingerprint if shown & compared else "")
        return PageMaker(lambda: replace(make(part, *what), moved=moved), key)

    def study(part: ExperimentDataLoader, name: str, swept_only: list[str]) -> Page:
        last = {arm: health.last_rounded(part, arm, averaged(part, arms[arm])) for arm in swept_only}
        files = {
            f"{arm}.curves.json": arm_json(part, arm, arms[arm], baselines[arm], last[arm], measure=measures[arm])
            for arm in last
        }
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
        return maker(_arm_page, [arm], labels[arm], named, arm, arms[arm], measures[arm], losses, formats, told=named)

    return [
        PageMaker(lambda: replace(_index(loader, own), moved=moved)),
        *studies,
        *map(of_arm, own, [None, *own], [*own[1:], None]),
        PageMaker(lambda: replace(compare_page(loader), moved=moved)),
    ]


def _index(loader: ExperimentDataLoader, own: list[str]) -> Page:
    """The table without JavaScript has the arms with a page; with it, all arms and runs (docs/javascripts/runs/)."""
    arms = arm_table(loader)
    keys = swept_columns(loader, arms["arm"])
    shown = arms.assign(**{f"config {key}": values for key, values in keys.items()})
    shown = shown[shown["arm"].isin(own)]
    sweeps = join(", ", (Link(study, PageRef(path)) for study, path in tuning_studies(loader).items()))
    count = f"{len(shown)} arm{'s' if len(shown) != 1 else ''}"
    parts = {"arms": [col.table(shown, _arms_columns(loader, shown, keys), count, "arms")] if len(shown) else []}
    beyond = sum(not at.anchor for at in loader.memo(tuning.moved).values())
    values = {"runs": len(loader.runs), "sweeps": sweeps, **site_values(loader), "campaign": has_campaign()}
    values |= {"shown": len(shown), "beyond": beyond}
    page = document_page(loader, "runs/index", values, parts, code=__name__)
    return replace(page, downloads=downloads({"table.json": table_json(loader, arms)}))


def _arm_page(
    loader: ExperimentDataLoader,
    title: str,
    around: Mapping[str, tuple[str, str] | None],
    arm: str,
    runs: pd.DataFrame,
    measure: Measure | None,
    losses: Callable[[str | None, str], Losses],
    formats: ExperimentDataLoader,
) -> Page:
    """The page.

    `around` has its baseline, and the arms before and after it in the index, with what they are called; `formats` the
    arms of other loops whose formats are compared.
    """
    first, config, records = runs.iloc[0], loader.config(arm), [loader.records[run_id] for run_id in runs["run_id"]]
    baseline = around["baseline"] and around["baseline"][0]
    ids, counts = averaged(loader, runs), runs["ending"].value_counts()
    unsaid = ("unknown",) if config.foreign is not None else ()
    reasons = runs["failure"].map(
        lambda found: ", ".join(k for k in found["kinds"] if k not in unsaid) if found else ""
    )
    looks = loader.looks(ids)
    left = health.unrounded(loader, arm, last := looks.last())
    last = health.of_rounding(last, left)
    layers = _layers(loader, records, ids, looks, last, left)
    colour = PALETTE[0] if first["format"] == NOT_STATED else format_style(first["format"]).colour
    foreign, name = config.foreign is not None, measure.name if measure else ""
    drawn = curves(losses(arm, name), losses(baseline, name), baseline is not None, measure, colour)
    compared, environment = _compared(formats, arm), _environment(records)
    values = {
        "title": title,
        "id": arm,
        "format": first["format"],
        "around": around,
        "scope": first["scope"],
        "rate": f"{first['learning_rate']:g}" if pd.notna(first["learning_rate"]) else NOT_STATED,
        "steps": first["max_steps"] if config.states("max_steps") or runs["last_step"].max() >= 0 else None,
        "foreign": foreign,
        "stated": NOT_STATED not in (first["format"], first["scope"]),
        "length": config.states("max_steps"),
        "metric": measure and measure.title,
        "axes": _axes(records),
        "runs": len(records),
        "environment": bool(environment),
        "curved": len(metrics_of_arm(loader, runs, measure)),
        "ended": [f"{words.ended(counts[how], how)}{_why(reasons[runs['ending'] == how])}" for how in counts.index],
        "studies": sorted(runs["study"].unique()),
        "baseline": baseline,
        "gap": _gap(loader, arm, baseline),
        "curves": drawn,
        "read": _read(config),
        "config": _config(loader, config, baseline),
        "command": CodeBlock(command(config), "bash"),
        "compared": compared,
        "averaged": len(ids),
        "looks": np.unique(looks.layers["step"].to_numpy(np.int64)).tolist(),
        "data": Link(f"{arm}.curves.json", PageRef(f"runs/{arm}.curves.json")),
        "raw": Link(f"{arm}.runs.json", PageRef(f"runs/{arm}.runs.json")),
        "special": _special(records),
        "coverage": _coverage(records),
    }
    seconds = [record.run.get("seconds") or np.nan for record in records]
    titles = [record.title if record.title != record.id else "" for record in records]
    here = HERE if foreign else NO_WANDB
    made = [f"from {tool_of(record.run)}" if "origin" in record.run else here for record in records]
    shown = runs[[*_OF_RUN]].assign(seconds=seconds, reason=reasons, title=titles, made=made)
    shown["last"] = [last_value(record, measure) for record in records]
    ends = pd.DataFrame([summary_of(record) for record in records], index=shown.index).iloc[:, :SUMMED]
    shown[[f"end {name}" for name in ends]] = ends
    columns = _runs_columns(shown, measure or OWN, foreign, [*ends])
    parts: dict[str, Part] = {
        "runs": [col.table(shown, columns, f"{len(runs)} run{'s' if len(runs) > 1 else ''}")],
        "events": _events(records) if len(runs) > 1 else [],
        "readings": _readings(records),
        "environment": environment,
    }
    behind = formats if compared else loader.of_arms(filter(None, (arm, baseline)))
    whose = "of this arm" + (" and its baseline" if baseline else "")
    whose = "of these formats" if compared else whose
    page = document_page(loader, f"runs/{arm}", values, parts, code=__name__, document="runs/_arm")
    page = replace(page, provenance=provenance(behind, of=whose, code=__name__))
    files = {"curves.json": arm_json(loader, arm, runs, baseline, last, layers, measure)}
    files["runs.json"] = compact({record.id: run_value(record) for record in records})
    return replace(page, search=False, downloads=downloads(files))


def _axes(records: list[RunRecord]) -> str:
    """By what the curves of some runs can be drawn."""
    there = {*chain(*(record.history for record in records))}
    names = ["step", *(["tokens"] if "tokens" in there else []), *(["time"] if "seconds" in there else [])]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _why(reasons: pd.Series) -> str:
    """Why some runs ended as they did, where their records say it: `` (divergence, early_stop)``."""
    found = [reason for reason in dict.fromkeys(reasons) if reason]
    return f" ({'; '.join(found)})" if found else ""


def _gap(loader: ExperimentDataLoader, arm: str, baseline: str | None) -> Estimate | None:
    """Final validation loss minus the baseline's of the same seed; held-out tuning seeds take no part.

    None where the two are of different amounts of text, or of other tokens.
    """
    if baseline is not None and _measured_as(loader.config(arm)) != _measured_as(loader.config(baseline)):
        return None
    runs = loader.runs[loader.runs["role"] == "report"]
    own, other = (by_seed(runs[runs["arm"] == name]) for name in (arm, baseline))
    gap = paired_difference(own, other)
    return gap if gap.n else None


def _read(config: ExperimentConfig) -> dict[str, Any] | None:
    """How much of the held-out text the final loss is of, and an evaluation on the way, where that is another."""
    if config.foreign is not None or not config.final_eval_characters:
        return None
    on_the_way = config.eval_batches * config.batch_size * config.model.context
    return {"final": config.final_eval_characters, "way": on_the_way, "tokens": config.tokenizer != "characters"}


def _config(loader: ExperimentDataLoader, config: ExperimentConfig, baseline: str | None) -> list[Block]:
    """What differs from the baseline, else from the defaults; of another loop all keys, which are no YAML of ours."""
    if config.foreign is not None:
        given = tuple((key, scalar(value)) for key, value in {**stated(config), **config.foreign}.items())
        return [Table(("Key", "Value"), given, id="config")] if given else []
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
        if arm in (comparison.baseline, *comparison.table["arm"]) and comparison.table["n_pairs"].any():
            formats = loader.runs.loc[loader.runs["arm"] == comparison.baseline, "format"]
            scope = words.quantized(comparison.scope)
            caption = md(
                "{scope}: gap of val_loss to {baseline}, paired by seed",
                scope=scope[:1].upper() + scope[1:],
                baseline=col.arm_link(comparison.baseline, f"the runs in {formats.iloc[0]}"),
            )
            number = f"-{len(blocks) + 1}" if blocks else ""  # one setting may have several scopes
            blocks.append(col.table(comparison.table, _FORMATS, caption, f"formats-{comparison.setting}{number}"))
    return blocks


def _layers(
    loader: ExperimentDataLoader,
    records: list[RunRecord],
    ids: list[str],
    looks: Looks,
    last: pd.DataFrame,
    left: frozenset[tuple[str, str]],
) -> dict[str, Any] | None:
    """What the script draws of the layers: means over some runs, and alone each other run that ended badly."""
    if last.empty:
        return None
    bad = [record for record in records if record.status != "finished" and ids != [record.id] and len(record.coded)]
    return {
        **health.over_time(health.of_rounding(looks.history(), left)),
        "tables": health.last_look(last, len(ids), left),
        "codes": health.codes_value(health.codes(loader, ids, looks, last)),
        "alone": [
            {
                "run": record.id,
                "status": record.status,
                **health.over_time(health.of_rounding(loader.layer_history([record.id]), left)),
            }
            for record in bad
        ],
    }


def _coverage(records: list[RunRecord]) -> dict[str, Any] | None:
    """What of the model is quantized, where a run's record says it: that of the first, and how many differ from it."""
    found = [each for record in records if (each := coverage_of(record)) is not None]
    if not found:
        return None
    first, ran = found[0], bool(found[0].multiply_adds)
    columns = _LEFT_OUT if ran else _LEFT_OUT[:-1]
    total = {"all": first.parameters or 1, "made": first.multiply_adds or 1}
    rows = [total | each.model_dump() | {"added": each.multiply_adds or 0} for each in first.left_out]
    caption = "Left as it is" + (f", the {len(rows)} largest of {len(rows) + first.more} groups" if first.more else "")
    table = [col.table(rows, columns, caption, "coverage")] if rows else []
    others = sum(each != first for each in found)
    return first.model_dump() | {"ran": ran, "table": table, "others": others, "reports": len(found)}


def _special(records: list[RunRecord]) -> Iterator[dict[str, Any]]:
    """What there is to say of single runs: why they ended badly, facts and warnings."""
    for record in records:
        bad, brought = record.status != "finished", "origin" in record.run and record.config.foreign is None
        if len(records) == 1 or bad or record.run.get("message") or record.config.notes or brought:
            facts, warnings = _facts(record), _warnings(record)
            begun = len(record.history) > 0
            yield {"id": record.id, "begun": begun, "failure": diagnose(record), "facts": facts, "warnings": warnings}


def _events(records: list[RunRecord]) -> list[Block]:
    """What happened in the runs of an arm, by kind: in how many of them, how often, and the first time."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for record in records:
        for event in happened(record):
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
    rows = [(field, value) for field, value in rows if value] + _event_rows(happened(record))
    return [Table(("Field", "Value"), tuple(rows), md("About run {run}", run=code(record.id)))] if rows else []


def _read_lines(record: RunRecord) -> list[str]:
    """What an import said of a run, but for what its site has answered since."""
    lines = [str(line) for line in (record.run.get("origin") or {}).get("report", [])]
    answered = ["config: no seed is stated"] if record.config.states("seed") else []
    answered += ["metrics: none has the name of a loss"] if record.names.loss else []
    return [line for line in lines if not line.startswith(tuple(answered))]


def _readings(records: list[RunRecord]) -> list[Block]:
    """What an import said of the runs of an arm, each line once."""
    lines = Counter(line for record in records for line in _read_lines(record))
    columns: list[str | Column] = ["Read from the logs", *([Column("Runs", "right")] if len(records) > 1 else [])]
    rows = tuple((line, count)[: len(columns)] for line, count in lines.items())
    return [Table(tuple(columns), rows, "How the logs were read")] if rows else []


def _environment(records: list[RunRecord]) -> list[Block]:
    """By which code, on which data and where the runs were recorded: a row for each kind of run.

    Of other loops' runs only what is known; nothing where nothing is.
    """
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for record in records:
        made = record.run["code"]
        where = record.run["environment"] and {"processor": NOT_STATED, **record.run["environment"]}
        environment = ", ".join(f"{key} {plain(value)}" for key, value in sorted(where.items()))
        program = f"altgrad {made.get('version', '?')}, fingerprint {made.get('fingerprint', '?')}"
        if record.config.foreign is not None and not made.get("fingerprint"):
            program = ", ".join(f"{key} {plain(value)}" for key, value in sorted(made.items()))
        data = ", sha256 ".join(filter(None, data_of(record.run)))
        seeds = found[environment or "not recorded", program or "not recorded", data]
        seeds += [] if record.config.stated_seed is None else [record.config.stated_seed]
    rows = [(_seeds(seeds), *kind) for kind, seeds in found.items()]
    titles = ("Seeds", "Environment", "Code", "Training data")
    unknown = ("", "not recorded", "not recorded", NOT_STATED)
    kept = [place for place in range(4) if any(row[place] != unknown[place] for row in rows)]
    if not {1, 2, 3} & {*kept}:
        return []
    return [
        Table(tuple(titles[at] for at in kept), tuple(tuple(row[at] for at in kept) for row in rows), "Environment")
    ]


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
    """The unquantized arm to draw behind this one: of the same setting, else of the same data, model and length.

    Of several the one whose final loss is of as much text in the same tokens, then with the most seeds in common, by
    which differences are paired, then the one whose settings differ least.
    """
    first, config = runs.iloc[0], loader.config(str(runs["arm"].iloc[0]))
    free = [each for each in loader.memo(_unquantized) if each.arm != first["arm"]]
    same = [str(each.arm) for each in free if each.setting == first["setting"]]
    if not same and config.foreign is None and config.quantize.operands:
        here = (first["data"], first["max_steps"], False)
        near = (str(each.arm) for each in free if (each.data, each.max_steps, each.foreign) == here)
        same = [arm for arm in near if loader.config(arm).model == config.model]
    if len(same) < 2 or config.foreign is not None:
        return same[0] if same else None
    seeds, settings, own = loader.memo(_seeds_of_arms), loader.memo(_settings_of_unquantized), _settings(config)
    paired = seeds.get(str(first["arm"]), set())

    def distance(arm: str) -> tuple[bool, int, int, int]:
        theirs, alike = settings[arm], _measured_as(loader.config(arm)) == _measured_as(config)
        differing = sum(own.get(key) != theirs.get(key) for key in {*own, *theirs})
        return not alike, -len(paired & seeds.get(arm, set())), differing, -len(seeds.get(arm, ()))

    return min(same, key=distance)


def _measured_as(config: ExperimentConfig) -> tuple[Any, ...]:
    """What final losses have to share to be compared: how much text they are of, and its tokens."""
    return config.final_eval_characters, config.tokenizer, config.vocabulary


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """What a run does beside its formats, its seed and what is recorded of it."""
    beside = ("seed", "quantize", "scaling", "telemetry")
    return {key: value for key, value in flat(config.identity()).items() if key.partition(".")[0] not in beside}


def _settings_of_unquantized(loader: ExperimentDataLoader) -> dict[str, dict[str, Any]]:
    return {str(each.arm): _settings(loader.config(each.arm)) for each in loader.memo(_unquantized)}


def _seeds_of_arms(loader: ExperimentDataLoader) -> dict[str, set[int]]:
    """The seeds of each arm that take part in comparisons."""
    rows = loader.runs[(loader.runs["role"] == "report") & loader.runs["seed"].notna()]
    return {str(arm): {*map(int, seeds)} for arm, seeds in rows.groupby("arm")["seed"]}


def _unquantized(loader: ExperimentDataLoader) -> list[Any]:
    """The arms of unquantized reporting runs, with what `_baseline` chooses by; a row for each length of an arm."""
    rows = loader.runs[unquantized(loader.runs) & (loader.runs["role"] == "report")]
    return list(rows[["arm", "setting", "data", "max_steps", "foreign"]].drop_duplicates().itertuples(index=False))
