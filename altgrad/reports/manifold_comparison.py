"""Report ANAL-03: what a step rule that knows the format's grid brings over AdamW, paired by seed, with controls.

Its sentences are in docs/reports/manifold_comparison.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.contrasts import missing, named_family, reading, shown
from altgrad.analysis.hypotheses import decayed
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, SMALLEST_GAP, seeds_needed
from altgrad.analysis.step_rules import NAME_COLUMNS, STEP_ARMS, StepRuleComparator, arm_of, evenly_spaced, in_words
from altgrad.config import OptimizerConfig
from altgrad.reports import charts, measured
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page
from altgrad.reports.machines import machine_blocks
from altgrad.reports.scope import pilot, scope
from altgrad.reports.step_slopes import NAME, SlopesRecord, slope_table
from altgrad.reports.verdicts import Expectation, expectation, outcome_table
from altgrad.site import PALETTE, Block, Cell, ChartBlock, Column, Md, Page, Table
from altgrad.site.document import Part
from altgrad.studies import ARMS, PLACES, RULE_FORMATS, RULES, SEEDS, adamw_arm

LABELS = {rule: choice.label for rule, choice in RULES.items()}
STYLES = {
    rule: charts.Style(colour, marker, LABELS[rule])
    for rule, colour, marker in zip(("update", "gradient", "relative", "code", "adamw"), PALETTE, "os^DX", strict=False)
}
STYLES |= dict.fromkeys(("shuffled", "constant"), STYLES["update"])
UNITS = dict.fromkeys(("update", "shuffled", "constant"), " ulps")
UNITS |= {"code": " codes", "relative": " of the tensor's rms"}
"""Of a learning rate; AdamW's and the gradient precondition's is in the unit of the weights."""
MISSCALED = ARMS["E4M3 update master misscaled"]
"""Of the format of all controls."""
TUNED_WITHIN = 0.5
"""Nats above an arm's best that the chart of sweeps shows."""


RIVALS = (
    *(
        (f"{fmt} {rule} fresh", f"{fmt} head nearest")
        for rule in ("muon", "relative", "update")
        for fmt in RULE_FORMATS
    ),
    ("FP32 muon fresh", "FP32 fresh"),
    *((f"{fmt} decayed fresh", f"{fmt} adamw fresh") for fmt in RULE_FORMATS),
)
"""Contrasts with AdamW on the seeds of the third registration; an arm of `head` to nearest is AdamW's."""
ON_THE_GRID = tuple((f"{fmt} adamw fresh", f"{fmt} head nearest") for fmt in RULE_FORMATS)
"""AdamW on the grid against master weights on the same seeds; E0M7's rates differ."""
RIVAL_HYPOTHESES = ("H33", "H34", "H35")


def manifold_comparison_page(loader: ExperimentDataLoader, benchmarks: Path = measured.RECORDED) -> Page:
    """The page, from the records of `loader` and the slopes in `benchmarks`; what is not recorded is pending."""
    slopes, no_slopes = measured.found(benchmarks / NAME, SlopesRecord, "No slopes are recorded.")
    values, parts, arms, code = content_of(loader, _content)
    values, parts = {**values, "slopes": slopes}, {**parts, "slopes": [slope_table(slopes)] if slopes else no_slopes}
    return document_page(loader, "reports/manifold_comparison", values, parts, arms, code)


def _content(loader: ExperimentDataLoader) -> Content:
    found = loader.memo(StepRuleComparator)
    verdicts = verdicts_of(loader, *(f"H{number}" for number in range(6, 15)))
    judged, others = found.pairings.dropna(subset="difference"), found.others
    pilots = (
        others[0][others[0]["counts"]].assign(n_ended_badly=0, p_equivalent=math.nan)
        if others
        else found.table.iloc[:0]
    )
    own = judged[judged["rule"] == "update"]
    by_format = list(own.groupby("format", sort=False))
    known = judged if len(judged) else pilots.assign(rule=[_rule_of(loader, arm) for arm in pilots["arm"]])
    rivals = named_family(loader, [pair for pair in RIVALS if not missing(loader, pair)])
    stiffness, tuning, frames = expectation("STIFFNESS"), _tuning(found), _frames(found)
    predictions = _predictions(stiffness, known)
    unquantized = frames["no-quantization"].query("contrast == 'FP32' and rule == 'relative'")
    values = {
        "recorded": not loader.runs.empty,
        "rivals": len(rivals),
        "muon": _muon(loader, rivals),
        "fresh": _fresh(loader, rivals),
        "level": ALPHA,
        "smallest": SMALLEST_GAP,
        "seeds": len(SEEDS),
        "label": LABELS,
        "reading": reading,
        "place": _place,
        "named": lambda row: in_words(arm_of(row)),
        "scope": lambda: scope(loader, found.pairings["arm"].iloc[0]),
        "ulps": next(verdict for verdict in verdicts if verdict.id == "H8"),
        "counts": Counter(verdict.answered for verdict in verdicts),
        "unmet": [verdict for verdict in verdicts if verdict.answer in ("no", "inconclusive")],
        "fp32": found.arms.query("format == 'FP32' and rule == 'adamw'").query("n_runs > 0").head(1).to_dict("records"),
        "own": _outcome(own),
        "worse_formats": [fmt for fmt, rows in by_format if len(_shown(rows, +1)) == len(rows)],
        "open_formats": [fmt for fmt, rows in by_format if _shown(rows, +1).empty and _shown(rows, -1).empty],
        "free": _by(frames["no-quantization"].query("rule == 'update'"), "contrast"),
        "ablations": _by(frames["ablations"], "rule"),
        "rounded": _rounded(loader, found.roundings),
        "ranks": found.stalls[found.stalls["missing"] == ""].to_dict("records"),
        "relative": _outcome(judged[judged["rule"] == "relative"]),
        "stronger": _shown(unquantized, -1).to_dict("records"),
        "better_untuned": lambda: _better_untuned(loader),
        "decays": _decays(found) | {"decayed": decayed(loader)},
        "pilots": _outcome(pilots),
        "pilot": lambda: pilot(loader, pilots["arm"].iloc[0], int(pilots["n_pairs"].max())),
        "stiffness": stiffness,
        "outcomes": Counter(row["outcome"] for row in predictions),
        "quantized_as": MISSCALED.format,
        "rescale": MISSCALED.settings["model"]["rescale"],
        "known": len(known),
        "faults": {name: list(dict.fromkeys(filter(None, rows["missing"]))) for name, rows in frames.items()},
        "tuning": tuning,
        "misscaled": _misscaled(frames["mis-scaled"], judged),
        "packages": measured.packages,
        "worse": _worse(judged),
        "unfinished": found.arms.query("n_runs > n_finished").to_dict("records"),
        "widest": own.nlargest(1, "sd").to_dict("records"),
        "seeds_for": lambda row: seeds_needed(row["sd"], SMALLEST_GAP),
        "judged": len(judged),
        "config": loader.config(known["arm"].iloc[0]) if len(known) else None,
        "half_width": ((known["high"] - known["low"]) / 2).max(),
        "other_rates": _other_rates(loader, pilots),
        "others": [_other(loader, part, number) for number, part in enumerate(others, start=1)],
    }
    tables: dict[str, Part] = {
        "arms": lambda: _arms(frames["arms"], found.arms),
        "stall-ranks": lambda: _stalls(found),
        **_contrasts(frames),
    }
    parts: dict[str, Part] = {
        "differences": lambda: _differences(judged),
        "pilot differences": lambda: [_pilot_chart(pilots)],
        "hypotheses": lambda: [outcome_table(verdicts, "hypotheses")],
        "rivals": lambda: [
            col.differences("Difference to AdamW", rivals, "rivals"),
            outcome_table(verdicts_of(loader, *RIVAL_HYPOTHESES), "rival-hypotheses"),
        ],
        "predictions": [_prediction_table(predictions)] if len(known) else [],
        "sweep chart": lambda: _sweep_chart(found.sweeps),
        "sweeps": lambda: [_sweep_table(tuning["sweeps"])],
        "tuning runs": lambda: [_tuning_runs(found.sweeps)],
        **{name: [] if frames[name]["missing"].all() else table for name, table in tables.items()},
        "stall chart": lambda: _stall_chart(found, frames["arms"]),
        "machines": lambda: machine_blocks(loader, _comparisons(found)),
    }

    def arms() -> pd.Series:
        compared = [part[["arm", "adamw_arm"]].stack() for part in others]
        return pd.concat([found.arms["arm"], found.sweeps["arm"], *compared]).dropna()

    return Content(values, parts, arms).kept()


def _frames(found: StepRuleComparator) -> dict[str, pd.DataFrame]:
    """The rows of each table, by the table's name."""
    controls = dict(list(found.controls.groupby("group")))
    free = controls["no quantization"]
    return {
        "arms": found.arms[found.arms["study"].isin(["formats", "storage"]) & (found.arms["format"] != "FP32")],
        "pairings": found.pairings,
        "roundings": found.roundings,
        "no-quantization": pd.concat([rows for _, rows in free.groupby("rule", sort=False)]),
        "ablations": controls["ablation"],
        "mis-scaled": controls["mis-scaled"],
        "stall-ranks": found.stalls,
    }


def _comparisons(found: StepRuleComparator) -> list[tuple[str, str, str]]:
    """Every pair of the campaign's arms that the page compares."""
    named = pd.concat([found.roundings, found.controls])
    names = [f"{in_words(arm_of(row))}: {row['contrast']}" for row in named.to_dict("records")]
    frame = pd.concat([found.pairings, named.assign(contrast=names)])[["contrast", "arm", "against"]]
    return list(frame[(frame["arm"] != "") & (frame["against"] != "")].itertuples(index=False, name=None))


def _place(row: col.Row) -> str:
    return PLACES[arm_of(row).place].label


def _shown(rows: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The rows whose difference is shown to have the sign."""
    return rows[pd.Series([shown(row, sign) for row in rows.to_dict("records")], rows.index, dtype=bool)]


def _outcome(rows: pd.DataFrame) -> dict[str, Any]:
    """How many pairings end lower and higher than AdamW, by how much at most, and both ends; empty without any."""
    ordered = rows.sort_values(["difference", "format"]).to_dict("records")
    counts = Counter(reading(row).partition(",")[0] for row in ordered)
    readings = {name: counts[name] for name in ("lower", "higher", "equivalent", "undecided")}
    most = max((-row["difference"] for row in ordered if shown(row, -1)), default=0.0)
    ends = {"best": ordered[0], "worst": ordered[-1]} if ordered else {}
    found = {"total": len(rows), "most": most, "formats": sorted({*rows["format"]})}
    found["flat"] = evenly_spaced(row["format"] for row in ordered if reading(row) == "undecided")
    return {**readings, **found, **ends} if ordered else {}


def _by(rows: pd.DataFrame, key: str) -> dict[str, col.Row]:
    """The rows by what tells them apart; none where one has no figures."""
    return {} if rows["difference"].isna().any() else {row[key]: row for row in rows.to_dict("records")}


def _rounded(loader: ExperimentDataLoader, roundings: pd.DataFrame) -> dict[str, Any]:
    """The smallest and the largest difference under AdamW, by contrast; none where some have no figures.

    Of "grid", where AdamW with master weights does better at another rate than its tuned one, the difference is to
    that; `better` has these.
    """
    found = roundings[roundings["rule"] == "adamw"]
    if found["difference"].isna().any():
        return {}
    sizes, better = found.set_index(["contrast", "format"])["difference"].to_dict(), []
    for each in _better_untuned(loader):
        pair = (adamw_arm(each["format"], "stochastic"), each["format"])
        row = named_family(loader, [pair]).to_dict("records")[0]
        sizes["grid", each["format"]] = row["difference"]
        better.append({**each, "grid": row})
    ends = pd.Series(sizes).groupby(level=0).agg(["min", "max"])
    return {**dict(ends.apply(tuple, axis=1)), "better": better}


# The answer


def _better_untuned(loader: ExperimentDataLoader) -> list[dict[str, Any]]:
    """Where AdamW, at another rate than that of its sweep, is shown to end lower on the reporting seeds."""
    rows = []
    for fmt in RULE_FORMATS:
        tuned, other = ARMS[adamw_arm(fmt, "master")], ARMS[fmt]
        if tuned is not other and not missing(loader, [tuned.name, other.name]):
            pairs = [(tuned.name, other.name), (f"{fmt} update master", other.name)]
            gain, ulps = (named_family(loader, [pair]).to_dict("records")[0] for pair in pairs)
            if shown(gain, +1):
                rows.append({"format": fmt, "tuned": tuned.rate, "other": other.rate, "gain": gain, "ulps": ulps})
    return rows


def _muon(loader: ExperimentDataLoader, rivals: pd.DataFrame) -> list[dict[str, Any]]:
    """Muon against AdamW in each format of H33, where it is shown to end lower in all of them."""
    arms = {f"{fmt} muon fresh": fmt for fmt in RULE_FORMATS}
    own = rivals[rivals["of"].isin(arms)] if verdicts_of(loader, "H33")[0].answer == "yes" else rivals.iloc[:0]
    return list(own.assign(format=own["of"].map(arms)).to_dict("records"))


def _fresh(loader: ExperimentDataLoader, rivals: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Two rules against AdamW with master weights, and AdamW on the grid, on the seeds of the third registration."""
    grid = named_family(loader, [pair for pair in ON_THE_GRID if not missing(loader, pair)])
    found = pd.concat([rivals, grid], ignore_index=True)
    rows = found.assign(format=[ARMS[arm].format for arm in found["of"]]).to_dict("records")
    return {
        rule: [row for row in rows if ARMS[row["of"]].rule == rule and row["to"].endswith(" head nearest")]
        for rule in ("relative", "update", "adamw")
    }


def _decays(found: StepRuleComparator) -> dict[str, Any]:
    """The weight decay that most step rules have, and those that have another one."""
    recorded = found.arms.loc[found.arms["n_runs"] > 0, "rule"]
    decays = {rule: RULES[rule].settings.get("weight_decay", OptimizerConfig().weight_decay) for rule in recorded}
    usual = max(decays.values(), key=list(decays.values()).count, default=0.0)
    return {"usual": usual, "odd": [(rule, decay) for rule, decay in decays.items() if decay != usual]}


def _differences(judged: pd.DataFrame) -> list[Block]:
    """The paired differences, as a forest of intervals: a line a format and place, a colour a rule."""
    names = ["format", "rule", "storage", "rounding", "n_pairs", "difference", "low", "high", "arm", "against"]
    data = charts.finite_rows(judged[names], "difference", "low", "high")
    if data.empty:
        return []
    rows = data.assign(misscaled=False).to_dict("records")
    lowest, *_, highest = sorted([rows[0], *rows], key=lambda row: row["difference"])
    told = "; ".join(
        f"{word}: {in_words(arm_of(row))} {words.number(row['difference'], sign=True)} "
        f"{words.interval(row['low'], row['high'])}"
        for word, row in (("lowest", lowest), ("highest", highest))
    )
    chart = charts.grouped_forest(
        "loss-difference",
        "Loss minus AdamW's, each at its tuned rate",
        f"{len(data)} pairings; {told}.",
        data,
        [f"{row['format']}  {_place(row)}" for row in rows],
        [f"{fmt}  {place.label}" for fmt in RULE_FORMATS for place in PLACES.values()],
        STYLES,
        "AdamW",
        "loss − AdamW's (nats per character)",
    )
    return [ChartBlock(chart)]


def _pilot_chart(paired: pd.DataFrame) -> ChartBlock:
    data = paired[["format", "rule", "n_pairs", "difference", "low", "high", "arm", "adamw_arm"]].reset_index(drop=True)
    chart = charts.forest(
        "loss-difference",
        "ManifoldAdamW's loss minus AdamW's, same format and seeds",
        "",
        data,
        list(data["format"] + " " + data["rule"]),
        "loss minus AdamW's (nats per character)",
        [PALETTE[rule] for rule in pd.factorize(data["rule"])[0] % len(PALETTE)],
    )
    return ChartBlock(chart)


def _rule_of(loader: ExperimentDataLoader, arm: str) -> str:
    """The key of `RULES` with an arm's optimizer, whatever its rates; "" where none is, as with weights on the grid."""
    rates = {"learning_rate", "other_learning_rate"}
    settings = loader.config(arm).optimizer.model_dump(exclude_defaults=True, exclude=rates)
    return next((rule for rule, choice in RULES.items() if choice.settings == settings), "")


def _predictions(stiffness: Expectation, known: pd.DataFrame) -> list[dict[str, Any]]:
    """What was predicted of the hypothesis, against the pairings of the rule that it names."""
    rows = []
    for key, text in stiffness.predictions.items():
        rule, measure = key.split("_")
        low, high = ("stall_low", "stall_high") if measure == "stall" else ("low", "high")
        own = known[(known["rule"] == rule) & known[low].notna()]
        below, above = int((own[high] < 0).sum()), int((own[low] > 0).sum())
        outcome = "held" if below == len(own) else "held in part" if below > above else "did not hold"
        rows.append(
            {
                "text": text,
                "outcome": outcome if below or above else "not decided",
                "interval": "stall ratio" if measure == "stall" else "loss",
                "below": below,
                "above": above,
                "around": len(own) - below - above,
                "pairings": len(own),
            }
        )
    return rows


def _prediction_table(rows: Sequence[col.Row]) -> Table:
    columns = (
        col.text("Prediction", "text"),
        col.text("Outcome", "outcome"),
        col.text("Interval of", "interval"),
        col.count("Below AdamW's", "below"),
        col.count("Above", "above"),
        col.count("Around zero", "around"),
        col.count("Pairings", "pairings"),
    )
    return col.table(rows, columns, "The hypothesis against what happened")


# What was compared


def _arms(shown: pd.DataFrame, data: pd.DataFrame) -> list[Block]:
    """A row a step rule and place, a column a format."""
    rules, places = list(RULES), list(PLACES)
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for row in shown.to_dict("records"):
        arm, badly = arm_of(row), row["n_runs"] - row["n_finished"]
        text = f"{badly} of {row['n_runs']} not finished" if badly else f"{row['val_loss']:.3f}"
        storage, rounding = _place(row).split(", ")
        new = {"rule": arm.rule, "storage": storage, "rounding": rounding, "extra_bytes": row["extra_bytes"]}
        cells = rows.setdefault((rules.index(arm.rule), places.index(arm.place)), new | dict.fromkeys(RULE_FORMATS))
        cells[arm.format] = "pending" if row["missing"] else col.arm_link(row["arm"], text)
    columns = (
        col.text("Step rule", "rule", LABELS),
        col.text("Storage", "storage"),
        col.text("Rounding", "rounding"),
        col.count("Extra bytes per weight", "extra_bytes"),
        *(col.of(fmt, itemgetter(fmt), right=True) for fmt in RULE_FORMATS),
    )
    return [col.table([rows[key] for key in sorted(rows)], columns, id="arms", data=data)]


def _tuning(found: StepRuleComparator) -> dict[str, Any]:
    """The sweep of each arm, what they have in common, and the arms without one."""
    sweeps = [_sweep(group) for _, group in found.sweeps.groupby(list(NAME_COLUMNS), sort=False)]
    tuned, rates = {arm_of(row).name for row in sweeps}, [row["rates"] for row in sweeps]
    return {
        "sweeps": sweeps,
        "rates": sorted({min(rates), max(rates)}) if rates else [],
        "seeds": sorted(set(found.sweeps["n"])),
        "edges": sum(row["edge"] for row in sweeps),
        "absent": [in_words(arm) for arm in STEP_ARMS if arm.name not in tuned],
    }


def _sweep(group: pd.DataFrame) -> dict[Any, Any]:
    """What the table of sweeps says of one arm."""
    best: dict[Any, Any] = next(iter(group[group["best"]].to_dict("records")), {})
    rates, used = group["learning_rate"], group["used"]
    return {
        **group.iloc[0][list(NAME_COLUMNS)],
        "rates": len(group),
        "tried": f"{rates.min():g} to {rates.max():g}{UNITS.get(group['rule'].iloc[0], '')}",
        **{key: best.get(key) for key in ("arm", "learning_rate", "val_loss")},
        "edge": bool(group["edge"].any()),
        "used": "not compared" if not used.any() else "no" if best and not best["used"] else "yes",
        "n_ended_badly": group["n_ended_badly"].sum(),
    }


def _sweep_table(rows: Sequence[col.Row]) -> Table:
    columns = (
        col.text("Format", "format"),
        col.of("Step rule", lambda row: LABELS[row["rule"]] + (", mis-scaled" if row["misscaled"] else "")),
        col.of("Storage and rounding", lambda row: _place(row) if row["format"] != "FP32" else None),
        col.count("Rates", "rates"),
        col.text("Tried", "tried"),
        col.of("Best", lambda row: row["arm"] and col.arm_link(row["arm"], f"{row['learning_rate']:g}"), right=True),
        col.number("Loss there", "val_loss"),
        col.text("At the edge", "edge", {True: "yes", False: "no"}),
        col.text("Used", "used"),
        col.count("Not finished", "n_ended_badly"),
    )
    return col.table(rows, columns, "Equal tuning: the sweep of each arm", "equal-tuning")


def _tuning_runs(sweeps: pd.DataFrame) -> Table:
    def loss(row: col.Row) -> str:
        return words.number(row["val_loss"]) if math.isfinite(row["val_loss"]) else "did not finish"

    columns = (
        col.of("Arm", lambda row: col.arm_link(row["arm"], in_words(arm_of(row)))),
        col.general("Learning rate", "learning_rate"),
        col.of("Mean validation loss", loss, right=True),
        col.count("Held-out seeds", "n"),
        col.of("", lambda row: "best" if row["best"] else ""),
    )
    return col.table(sweeps, columns, "All rates that were tried", "tuning")


def _sweep_chart(sweeps: pd.DataFrame) -> list[Block]:
    names = list(NAME_COLUMNS)
    groups = sweeps.assign(rate=sweeps["learning_rate"].where(sweeps["best"])).groupby(names, sort=False)
    factor = sweeps["learning_rate"] / groups["rate"].transform("max")
    above = sweeps["val_loss"] - groups["val_loss"].transform("min")
    drawn = factor.notna() & (groups["rate"].transform("size") > 1)
    data = sweeps.assign(factor=factor, above=above)[drawn].reset_index(drop=True)
    if data.empty:
        return []
    beyond = int((~(data["above"] <= TUNED_WITHIN)).sum())
    edges = sweeps.groupby(names, sort=False)["edge"].any()
    told = f" {beyond} rates beyond {TUNED_WITHIN:g} nats, or unfinished, are not drawn." if beyond else ""
    chart = charts.small_multiples(
        "sweeps",
        f"{int((~edges).sum())} of {len(edges)} best rates lie inside their sweep",
        f"{data.groupby(names).ngroups} arms.{told}",
        data,
        ("factor", "above"),
        ("rule", LABELS),
        NAME_COLUMNS,
        TUNED_WITHIN,
        "nats above best, by multiples of best rate",
    )
    return [ChartBlock(chart)]


# What came out


def _contrasts(frames: Mapping[str, pd.DataFrame]) -> dict[str, Part]:
    """The tables of contrasts, by their names."""
    rule = col.arm("Step rule", "rule", words_of=LABELS)
    contrasts = {
        "nearest": "nearest minus stochastic, on the grid",
        "feedback": "error feedback minus stochastic, on the grid",
        "grid": "stochastic on the grid minus master weights",
        "E4M3": "minus AdamW, with E4M3",
        "FP32": "minus AdamW, without quantization",
        "difference": "difference of the two",
    }

    def arm(title: str, text: Callable[[col.Row], str], end: str = "against") -> Column:
        return col.of(title, lambda row: col.arm_link(row[end], text(row)) if row[end] else text(row))

    declared = {
        "pairings": (rule, arm("Against AdamW with", lambda row: f"{row['format']}, {_place(row)}")),
        "roundings": (
            col.text("Format", "format"),
            rule,
            arm("What changes", lambda row: contrasts[row["contrast"]]),
        ),
        "no-quantization": (rule, col.text("Contrast", "contrast", contrasts)),
        "ablations": (replace(rule, title="Ablation"), arm("Against", lambda row: LABELS["update"])),
        "mis-scaled": (
            arm("Arm", lambda row: f"{row['format']} {LABELS[row['rule']]}", "arm"),
            arm("Against", lambda row: f"{'FP32' if row['contrast'] == 'E4M3 against FP32' else 'E4M3'} AdamW"),
        ),
    }
    return {name: partial(_contrast_table, frames[name], head, name) for name, head in declared.items()}


def _contrast_table(rows: pd.DataFrame, head: Sequence[Column], identity: str) -> list[Block]:
    """Contrasts with their interval, adjusted p, TOST and what that says; their stall ratios where they have them."""
    stall = col.signed("Stall ratio", "stall_difference", 2)
    columns = (
        *head,
        col.signed("Difference", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.p("p (Holm)", "p_holm"),
        col.p("p (TOST)", "p_equivalent"),
        *([stall] if "stall_difference" in rows else []),
        col.of("Reading", lambda row: "pending" if row["missing"] else reading(row)),
    )
    return [col.table(rows, columns, id=identity)]


def _misscaled(start: pd.DataFrame, judged: pd.DataFrame) -> list[tuple[col.Row, col.Row]]:
    """Each rule against AdamW where tensors begin mis-scaled, and where they do not."""
    plain = judged.query("format == 'E4M3' and storage == 'master'").set_index("rule", drop=False)
    rows = start.dropna(subset="difference").to_dict("records")
    return [(row, plain.loc[row["rule"]].to_dict()) for row in rows if row["rule"] in plain.index]


def _stalls(found: StepRuleComparator) -> list[Block]:
    def counterexample(row: col.Row) -> Cell:
        if col.missing(row["more"]):
            return "pending" if row["missing"] else "no such pair"
        return col.arm_link(row["arm"], row["more"])

    columns = (
        col.text("Format", "format"),
        col.count("Arms", "n_arms"),
        col.signed("Spearman's rho", "spearman", 2),
        col.of("Stalls more, loses less", counterexample),
        col.of("Against", lambda row: None if col.missing(row["less"]) else col.arm_link(row["against"], row["less"])),
        col.signed("Stall ratio, difference", "stall_difference", 2),
        col.signed("Loss, difference", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
    )
    return [col.table(found.stalls, columns, "Rank correlation of stall ratio and loss", "stall-ranks")]


def _stall_chart(found: StepRuleComparator, arms: pd.DataFrame) -> list[Block]:
    ranked = found.stalls[found.stalls["missing"] == ""]
    names = ["format", "rule", "storage", "rounding", "stall_ratio", "val_loss", "arm"]
    data = charts.finite_rows(arms.loc[arms["format"].isin(ranked["format"]), names], "stall_ratio", "val_loss")
    if data.empty:
        return []
    ranks = "; ".join(f"{row.format} {words.number(row.spearman, 2, sign=True)}" for row in ranked.itertuples())
    contrary = ranked["more"].notna()
    pairs = ranked.loc[contrary, ["arm", "against"]].itertuples(index=False, name=None)
    chart = charts.scatter(
        "stall",
        f"More stalls, lower loss: in {contrary.sum()} of {len(ranked)} formats",
        f"Spearman's rho: {ranks}.",
        data,
        {"stall_ratio": "stall ratio (mean over seeds)", "val_loss": "final validation loss (nats per character)"},
        STYLES,
        pairs,
    )
    return [ChartBlock(chart)]


# What it means, and what else is recorded


def _worse(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """Where each rule is shown to end higher than AdamW, the worst first."""
    return [
        {
            "rule": rule,
            "total": len(own),
            "rows": _shown(own, +1).sort_values("difference", ascending=False).to_dict("records"),
        }
        for rule, own in judged.groupby("rule", sort=False)
    ]


def _other_rates(loader: ExperimentDataLoader, pilots: pd.DataFrame) -> list[tuple[float, float]]:
    """Rates of what is not quantized beside ManifoldAdamW, where they are not those of AdamW."""
    rates = [loader.config(arm).optimizer.other_learning_rate for arm in pilots["arm"]]
    pairs = set(zip(rates, pilots["adamw_learning_rate"], strict=True))
    return sorted((own, rival) for own, rival in pairs if own is not None and own != rival)


def _other(loader: ExperimentDataLoader, part: pd.DataFrame, number: int) -> dict[str, Any]:
    """The pairings of one other experiment, under its studies, what is quantized, and how the weights are stored."""
    found = loader.runs[loader.runs["arm"].isin(part["arm"])]
    return {
        "studies": sorted(name or "no study" for name in found["study"].unique()),
        **found.iloc[0][["scope", "storage", "rounding"]],
        "steps": part["max_steps"].iloc[0],
        "pairs": part["n_pairs"].max(),
        "results": _results(part, "step-rules" if number == 1 else f"step-rules-{number}"),
    }


def _results(table: pd.DataFrame, identity: str) -> Table:
    def rates(row: col.Row) -> Md:
        rival = "no AdamW arm"
        if not col.missing(row["adamw_arm"]):
            rival = col.arm_link(row["adamw_arm"], f"{row['adamw_learning_rate']:g}").markdown()
        return Md(f"{row['learning_rate']:g} ({rival})")

    def stalls(row: col.Row) -> str:
        return f"{words.percent(row['stall_ratio'])} ({words.percent(row['adamw_stall_ratio'])})"

    columns = (
        col.text("Format", "format"),
        col.of("Step rule", lambda row: col.arm_link(row["arm"], row["rule"])),
        col.signed("Difference to AdamW", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.p("p (Holm)", "p_holm"),
        col.number("Validation loss", "val_loss"),
        col.of("Rate (AdamW's)", rates, right=True),
        col.of("Stall ratio (AdamW's)", stalls, right=True),
        col.share(),
    )
    return col.table(table, columns, id=identity)
