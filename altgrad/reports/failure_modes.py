"""Report ANAL-02, docs/reports/failure_modes.md: where each format fails, in which phase, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from altgrad.analysis import failures, words
from altgrad.analysis.comparison import ALL_OPERANDS, Comparison, FormatComparator, by_format, format_order, own_rates
from altgrad.analysis.contrasts import shown
from altgrad.analysis.failures import FailureAnalyzer, named, one_format, unscaled
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.logits import costs_of, everything_quantized, on_more_text
from altgrad.analysis.statistics import FAILURE_GAP, MARGIN
from altgrad.config import OPERAND_NAMES, command
from altgrad.formats import SPLITS_8BIT, get_format
from altgrad.reports import charts, health
from altgrad.reports import columns as col
from altgrad.reports.columns import Row
from altgrad.reports.document import Content, content_of, document_page
from altgrad.reports.format_styles import format_style
from altgrad.reports.heat_map import figures_map
from altgrad.reports.machines import machine_blocks
from altgrad.reports.scope import pilot, scope
from altgrad.reports.verdicts import Expectation, evidence, expectation, tests_table, verdict_table
from altgrad.runs.diagnosis import diagnose
from altgrad.site import Block, Cell, ChartBlock, CodeBlock, Column, Md, Page, Table, code, escape, join
from altgrad.site.document import Part
from altgrad.studies import EXTREMES, SEEDS

SPLITS = tuple(fmt.name for fmt in SPLITS_8BIT)
LACKING = ("e7m0", "e0m7")  # mantissa bits, and exponent bits
TESTED = ("H17", "H18")
RANGE = ("overflow", "underflow")
"""The classes, warnings and figures that a lack of range has."""
ENDINGS_SHOWN = 8  # arms of which a run that ended badly is shown, with its last losses and advice
ENDING_STEPS = 30  # how many of the losses that a failure holds are shown
GROUPS_SHOWN = 8  # arms with runs that did not finish that are told above the table
MAP_EDGES = (MARGIN, FAILURE_GAP, 0.1, 0.3)
MAP_LEGEND = (f"to {MARGIN:g}", f"to {FAILURE_GAP:g}", "fails: to 0.1", "to 0.3", "above 0.3")
OUTCOMES = {"yes": "held", "no": "did not hold", "inconclusive": "not decided", "pending": "pending"}

Values = dict[str, Any]


def failure_modes_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where there is nothing to explain."""
    return document_page(loader, "reports/failure_modes", *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    analyzer, comparison = loader.memo(FailureAnalyzer), loader.memo(FormatComparator).headline
    failed, verdicts = analyzer.leading(analyzer.classified), verdicts_of(loader, *TESTED)
    hypotheses = {name.lower(): expectation(name) for name in ("E7M0", "E0M7")}
    of_e0m7 = zip(("gradients", "remedies"), verdicts_of(loader, "H3", "H17"), strict=True)
    e7m0, e0m7 = (
        _e7m0_observed(analyzer, comparison),
        {key: (OUTCOMES[verdict.answer], evidence(verdict.judgement)) for key, verdict in of_e0m7},
    )
    predicted = {name: _counted(hypotheses[name], found) for name, found in (("e7m0", e7m0), ("e0m7", e0m7))}
    values = {
        "comparison": comparison,
        "runs": len(loader.runs),
        "limit": FAILURE_GAP,
        "failed": len(failed),
        "unfinished": len(analyzer.failures),
        "swept": len(analyzer.failures) - len(_outside_of_sweeps(analyzer)),
        "helped": _what_helped(analyzer),
        "recorded": {fmt: len(analyzer.of_formats(loader.runs, fmt)) for fmt in LACKING},
        "hypotheses": hypotheses,
        "predicted": predicted,
        "tested": [each for each in verdicts if each.answer != "pending"],
        **_remedies(analyzer.remedies[analyzer.remedies["n_pairs"] >= 2]),
        "remedies_missing": failures.remedies_missing(loader),
        **_prevention(analyzer, failed),
        **_endings(analyzer),
        "warnings": _warnings(loader, analyzer.warnings),
        "broken_runs": _broken_runs(analyzer),
        "examples": _examples(analyzer, _to_show(failed)),
    }
    parts: dict[str, Part] = {
        "e7m0": [_predictions(hypotheses["e7m0"], e7m0, "e7m0-predictions")],
        "e0m7": [_predictions(hypotheses["e0m7"], e0m7, "e0m7-predictions")],
        "verdicts": [verdict_table(verdicts), *tests_table(verdicts, "verdict-tests")],
        "unfinished": lambda: [_unfinished_table(analyzer)],
        "machines": lambda: machine_blocks(loader, _comparisons(analyzer, failed)),
    }
    tried = [arm for arm in analyzer.remedies[["arm", "against"]].to_numpy().ravel() if isinstance(arm, str)]
    arms = {*analyzer.classified["arm"], *analyzer.failures["arm"], *tried}
    if comparison is not None:
        arms |= {comparison.baseline, *comparison.table["arm"]}
        splits, rates = analyzer.of_formats(analyzer.operands(comparison), *SPLITS), own_rates(loader, comparison)
        paired = splits[splits["n_pairs"] >= 2]
        values |= {
            "scope": scope(loader, comparison.baseline),
            "pilot": pilot(loader, comparison.baseline, comparison.most_pairs),
            "precision_lost": failures.PRECISION_LOST,
            **(summary := _summary(analyzer, comparison, failed)),
            "formats": _by_format(analyzer, comparison, paired, summary["failing"]),
            **_failed_arms(analyzer, failed),
            "operands": _operands(analyzer, comparison, splits),
            "layers": _layers(analyzer, failed.dropna(subset=["gap"])),
            **_signatures(analyzer, comparison.table.dropna(subset=["gap"])),
            "by_operand": {fmt: analyzer.of_formats(paired, fmt).to_dict("records") for fmt in LACKING},
            "own_rates": rates[rates["format"] == get_format("e7m0").label].to_dict("records"),
        }
        parts |= {
            "gaps by operand": _operand_map(comparison, splits),
            "limits": [_limits_table()],
            "phases": [_phases(analyzer, comparison)],
            "sqnr": _sqnr(analyzer, comparison),
        }
    return Content(values, parts, lambda: arms).kept()


def _comparisons(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Every pair of arms that the page compares: gaps of arms that fail, remedies, tests."""
    for row in failed.dropna(subset=["baseline"]).to_dict("records"):
        yield f"{_in_words(analyzer, row)} − FP32", row["arm"], row["baseline"]
    for remedy in analyzer.remedies.itertuples():
        yield f"{remedy.format}: {remedy.remedy}", remedy.arm, remedy.against
    for verdict in verdicts_of(analyzer.loader, *TESTED):
        yield from verdict.tests[["contrast", "arm", "against"]].itertuples(index=False, name=None)


def _summary(analyzer: FailureAnalyzer, comparison: Comparison, failed: pd.DataFrame) -> Values:
    """Which splits fail as the page compares them, and by what; which arms break; the worst of the other scales."""
    splits = set(analyzer.of_formats(comparison.table[comparison.table["n_pairs"] >= 2], *SPLITS)["arm"])
    broken, bare_rows, failing, worst = [], [], dict[str, list[Row]](), None
    steps = analyzer.loader.config(comparison.baseline).max_steps
    for row in failed.to_dict("records"):
        causes, bare = row["causes"].split(", "), unscaled(analyzer.loader.config(row["arm"]))
        end = next((cause for cause in causes if cause in ("divergence", "nan_loss")), "")
        row |= {"end": end, "bare": bare, "name": _in_words(analyzer, row)}
        if row["n_finished"] < row["n_runs"]:
            broken.append(row)
        elif row["arm"] in splits:
            gradients = (causes[0], row["operand"]) == ("underflow", "grad_output")
            failing.setdefault("small gradients" if gradients else causes[0], []).append(row)
        elif bare and analyzer.loader.config(row["arm"]).max_steps == steps:
            bare_rows.append(row)
        elif not (bare or failing or worst or col.missing(row["gap"])):  # the largest gap is first
            worst = row | {"bits": min(get_format(name).bits for name in row["format"].split("/"))}
    return {
        "splits": len(splits),
        "failing": failing,
        "broken": broken,
        "bare": bare_rows,
        "worst": worst,
    }


def _in_words(analyzer: FailureAnalyzer, row: Row) -> str:
    """An arm's format with what is not the default of it."""
    config = analyzer.loader.config(row["arm"])
    return named(config) if failures.plain_adamw(config) else f"{named(config)}, {row['rule']}"


def _what_helped(analyzer: FailureAnalyzer) -> list[Values]:
    """What helped each extreme most, of the remedies that are recorded in full, and what may do as well."""
    found = []
    for name in EXTREMES:
        rows = analyzer.remedies
        rows = rows[(rows["format"] == name) & (rows["missing"] == "") & (rows["n_ended_badly"] == 0)]
        best, *others = sorted(
            (row for row in rows.to_dict("records") if shown(row, -1)), key=lambda row: row["difference"]
        ) or [None]
        alike = analyzer.alike([best["arm"], *(row["arm"] for row in others)]) if best else set()
        same = [row["remedy"] for row in others if row["arm"] in alike]
        found.append({"format": name, "number": len(rows), "best": best, "alike": same})
    return [each for each in found if each["number"]]


def _failed_arms(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> Values:
    """The tables of arms that fail, those with runs that did not finish first, and what their classes do not say."""
    whole = failed["n_finished"] == failed["n_runs"]
    ordered, rest = pd.concat([failed[~whole], failed[whole]]), analyzer.classified.drop(failed.index)
    gaps = analyzer.leading(analyzer.gaps).astype({"failed": bool})
    judged = gaps[gaps["n_pairs"] >= 2]
    stalls = failed[(failed["causes"] == "stall") & failed["step"].notna()]
    symptoms = analyzer.symptoms[analyzer.symptoms["arm"].isin(failed["arm"])]
    return {
        "arms": _arms_table(analyzer.loader, ordered, "failure-modes"),
        "earlier": _arms_table(analyzer.loader, rest, "failure-modes-earlier"),
        "unknown": failed[failed["causes"] == "unknown"].to_dict("records"),
        "exploratory": int(failed["study"].isin(failures.EXPLORATORY).sum()),
        "exploratory_studies": failures.EXPLORATORY,
        "no_symptom": int((failed["causes"] == "step").sum()),
        "late_stalls": sum(row.step > analyzer.loader.config(row.arm).max_steps / 2 for row in stalls.itertuples()),
        "unjudged": int(((gaps["n_pairs"] < 2) & ~gaps["failed"]).sum()),
        "unsure": int((judged["failed"] & (judged["low"] <= FAILURE_GAP)).sum()),
        "near": int((~judged["failed"] & (judged["high"] > FAILURE_GAP)).sum()),
        "symptoms": _symptoms_table(analyzer.loader, symptoms),
    }


def _arms_table(loader: ExperimentDataLoader, classified: pd.DataFrame, identity: str) -> Table:
    columns = (
        col.named(loader.memo(site_labels)),
        col.text("Failure Mode", "causes"),
        col.text("Where", "phases"),
        col.signed("Gap to FP32", "gap"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.of("Began", _began),
        col.share(),
    )
    return col.table(classified, columns, id=identity)


def _symptoms_table(loader: ExperimentDataLoader, symptoms: pd.DataFrame) -> Table:
    columns = (
        col.named(loader.memo(site_labels)),
        col.text("Class", "cause"),
        col.of("Operand", lambda row: f"{OPERAND_NAMES.get(row['operand'], row['operand'])}, {row['phase']}"),
        col.percent("Share of looks", "share"),
        col.of("First", _began),
        col.text("Evidence", "evidence"),
    )
    return col.table(symptoms, columns, id="symptoms")


def _began(row: Row) -> Md | None:
    """The first step at which something was seen, and the tensor in which; what of them is known."""
    at = [] if col.missing(row["step"]) else [Md(f"step {int(row['step'])}")]
    where = [Md(f"in {code(row['tensor'])}")] if isinstance(row["tensor"], str) and row["tensor"] else []
    return join(", ", at + where) if at + where else None


def _limits_table() -> Table:
    words_of = {True: "below {limit}", False: "above {limit}, as a fraction"}
    limit = col.of("Limit", lambda row: words_of[row["below"]].format(limit=words.figure(row["limit"])))
    columns = (col.text("Class", "kind"), limit, col.text("Of what", "figure"))
    return col.table(map(vars, failures.SYMPTOMS_OF_ARMS), columns, "", "limits")


def _operand_map(comparison: Comparison, splits: pd.DataFrame) -> list[Block]:
    """Gaps of the splits by what is quantized: which operand it is that costs the loss."""
    drawn = splits[splits["n_pairs"] >= 2]
    scopes = {name: f"{name} alone" for name in OPERAND_NAMES.values()} | {comparison.scope: "all together"}
    cells = drawn.pivot_table(index="format", columns="scope", values="gap").reindex(columns=[*scopes])
    cells = cells.dropna(axis="columns", how="all").sort_index(key=lambda names: names.map(format_order))
    cells, text = cells.rename(columns=scopes), partial(words.number, sign=True)
    return [ChartBlock(figures_map("operands", "", cells, splits, MAP_EDGES, MAP_LEGEND, text))] if len(cells) else []


def _by_format(
    analyzer: FailureAnalyzer, comparison: Comparison, paired: pd.DataFrame, failing: Mapping[str, list[Row]]
) -> list[Values]:
    """Each split: its gap, whether and by what it fails, what each operand costs alone, and what its tensors lost."""
    causes = {row["arm"]: cause for cause, rows in failing.items() for row in rows}
    means = analyzer.health.set_index(["arm", "operand", "statistic"])["value"].to_dict()
    whole = by_format(paired[paired["scope"] == comparison.scope])
    found = []
    for row in whole.to_dict("records"):
        alone = paired[(paired["format"] == row["format"]) & (paired["scope"] != comparison.scope)]
        ordered = alone.sort_values("gap", ascending=False)
        first = _printed(ordered["gap"].max())
        found.append(
            row
            | {
                "cause": causes.get(row["arm"]),
                "fails_alone": ordered[ordered["gap"] > FAILURE_GAP].to_dict("records"),
                "passes_alone": ordered[ordered["gap"] <= FAILURE_GAP].to_dict("records"),
                "costliest": list(ordered.loc[ordered["gap"].map(_printed) == first, "scope"]),
                "sqnr": means.get((row["arm"], "weight", "sqnr_db")),
                "sqnr_gradients": means.get((row["arm"], "grad_output", "sqnr_db")),
                "flushed": means.get((row["arm"], "grad_output", "underflow")),
                "free_gradients": bool(((alone["scope"] == "gradients") & (alone["low"] <= 0)).any()),
            }
        )
    return found


def _printed(gap: float) -> str:
    return words.number(gap, sign=True)


def _operands(analyzer: FailureAnalyzer, comparison: Comparison, splits: pd.DataFrame) -> Values | None:
    """The table of what each operand costs alone; None where no operand is recorded alone."""
    paired = splits[splits["n_pairs"] >= 2]
    single = paired[paired["scope"] != comparison.scope]
    if single.empty:
        return None
    rows: dict[str, Values] = {name: {"format": name} for name in sorted({*splits["format"]}, key=format_order)}
    for row in paired.to_dict("records"):
        rows[row["format"]][row["scope"]] = row

    def gap_of(scope: str) -> Column:
        def cell(row: Row) -> Cell:
            if (found := row.get(scope)) is None:
                return None
            gap, interval = words.number(found["gap"], sign=True), words.interval(found["low"], found["high"])
            return col.arm_link(found["arm"], f"{gap} {interval}, n = {found['n_pairs']}")

        return col.of("All operands" if scope == comparison.scope else f"{scope} alone".capitalize(), cell)

    def fails_alone(row: Row) -> str:
        known = {scope: row[scope]["gap"] for scope in OPERAND_NAMES.values() if scope in row}
        alone = [_with_phase(scope) for scope, gap in known.items() if gap > FAILURE_GAP]
        return words.names(alone) or ("none" if len(known) == len(OPERAND_NAMES) else "not recorded")

    columns = (
        col.text("Format", "format"),
        *map(gap_of, dict.fromkeys(splits["scope"])),
        col.of("Fails alone", fails_alone),
    )
    fewest, own = int(single["n_pairs"].min()), analyzer.gaps.set_index("arm")["campaign"]
    return {
        "table": col.table(rows.values(), columns, id="operands-table", data=splits),
        "fewest": fewest if fewest < len(SEEDS) and single["arm"].map(own).any() else None,
        "planned": len(SEEDS),
    }


def _with_phase(operand: str) -> str:
    """An operand by its name for readers, and its phase."""
    return f"{operand} ({'backward' if operand == OPERAND_NAMES['grad_output'] else 'forward'})"


def _phases(analyzer: FailureAnalyzer, comparison: Comparison) -> Table:
    wide = analyzer.health.pivot_table(index="arm", columns=["operand", "statistic"], values="value")
    names = [(operand, statistic) for operand in OPERAND_NAMES for statistic in RANGE]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(names)).set_axis(map("_".join, names), axis="columns")
    data = by_format(comparison.table[["format", "arm"]])
    stall = analyzer.loader.runs.groupby("arm")["stall_ratio"].mean()
    data = data.join(wide, on="arm").join(stall, on="arm").reset_index(drop=True)
    titles = ["Forward: weights overflow", "weights underflow", "activations overflow", "activations underflow"]
    titles += ["Backward: gradients overflow", "gradients underflow", "Optimizer: stall ratio"]
    return col.table(data, (col.arm(), *map(col.percent, titles, data.columns[2:])), id="phases")


def _sqnr(analyzer: FailureAnalyzer, comparison: Comparison) -> list[Block]:
    found = analyzer.health[analyzer.health["statistic"] == "sqnr_db"]
    found = analyzer.of_formats(found[found["arm"].isin(comparison.table["arm"])], *SPLITS)
    if found.empty:
        return []
    data = found.pivot_table(index="format", columns="operand", values="value")
    data = data.sort_index(key=lambda names: names.map(format_order))
    title, about = "SQNR of the 8-bit formats, by operand", f"{_means(data, 'sqnr_db')}."
    data, names = data.reset_index(), [name for name in OPERAND_NAMES if name in data]
    drawn = data.melt("format", names, var_name="operand").replace({"operand": OPERAND_NAMES})
    axes = ("", "SQNR (dB), higher is better")
    chart = charts.lines("sqnr", title, about, data, drawn, ("format", "value", "operand"), axes, markers=True)
    return [ChartBlock(chart)]


def _means(means: pd.DataFrame, statistic: str) -> str:
    """Means by format and operand, for those who do not see a chart of them."""
    text, means = health.FIGURES[statistic].levels.text, means.reindex(columns=[*OPERAND_NAMES])
    rows = ((name, row.dropna().rename(OPERAND_NAMES)) for name, row in means.iterrows())
    return "; ".join(f"{name}: {', '.join(f'{key} {text(value)}' for key, value in row.items())}" for name, row in rows)


def _layers(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> list[Values]:
    """For each class, where and when it shows in the arm that loses most by it: one run, a layer a row."""
    found, first = [], failed["causes"].str.split(", ").str[0]
    for symptom in failures.SYMPTOMS_OF_ARMS:
        for row in failed[first == symptom.kind].head(1).to_dict("records"):
            run_id = analyzer.example(row["arm"])
            data = analyzer.loader.layer_history([run_id])
            data = data[(data["statistic"] == symptom.statistic) & data["operand"].isin([*OPERAND_NAMES])]
            if len(data):
                identity = f"layers-{health.FIGURES[symptom.statistic].title.lower()}"
                drawn = health.by_layer(identity, symptom.statistic, data, f"Run {run_id}.").chart
                title = _worst_layer(symptom.statistic, data, row["format"])
                chart = ChartBlock(replace(drawn, title=title))
                found.append(row | {"cause": symptom.kind, "run_id": run_id, "chart": chart})
    return found


def _worst_layer(statistic: str, data: pd.DataFrame, name: str) -> str:
    """Where a figure of a run is worst: rows layer, operand, value."""
    figure, known = health.FIGURES[statistic], data.dropna(subset=["value"])
    worst = known.loc[(figure.levels.sign * known["value"]).idxmax()]
    where = f"{worst['layer']}, {OPERAND_NAMES[worst['operand']]}"
    return f"{figure.title} of {name} is worst in {where}: {figure.levels.text(worst['value'])}"


def _signatures(analyzer: FailureAnalyzer, table: pd.DataFrame) -> Values:
    """The two extremes beside the split with the smallest gap: SQNR and underflow over the steps, by operand."""
    extremes = pd.concat([analyzer.of_formats(table, name) for name in LACKING])
    rest = analyzer.of_formats(table, *({*SPLITS} - {*LACKING, "e1m6"})).sort_values("gap").head(1)
    if extremes.empty or rest.empty:
        return {"signatures": []}
    frames, runs, drawn = [], analyzer.loader.runs, []
    runs = runs[(runs["role"] == "report") & runs["final_val_loss"].notna()]
    for row in pd.concat([extremes, rest]).itertuples():
        history = analyzer.loader.layer_history(runs.loc[runs["arm"] == row.arm, "run_id"])
        means = history.groupby(["statistic", "operand", "step"], observed=True)["value"].mean().reset_index()
        frames.append(means[means["operand"].isin([*OPERAND_NAMES])].assign(format=row.format))
    every, columns, panels = pd.concat(frames), ("step", "value", "format"), ("operand", OPERAND_NAMES)
    for statistic, axis in (("sqnr_db", "SQNR (dB)"), ("underflow", "became zero")):
        data, figure = charts.finite_rows(every[every["statistic"] == statistic], "value"), health.FIGURES[statistic]
        names, identity = list(data["format"].unique()), f"signature-{figure.title.lower()}"
        if len(names) < 2:
            continue
        means = data.pivot_table(index="format", columns="operand", values="value", observed=True).loc[names]
        worst, *_, best = (figure.levels.sign * means.mean(axis=1)).sort_values(ascending=False).index
        title = f"{figure.title} is worst in {worst} and best in {best}"
        percent, step = statistic != "sqnr_db", data["step"]
        about = f"{figure.meaning} From step {step.min()} to {step.max()}. Means: {_means(means, statistic)}."
        more: Any = {"formats": dict(zip(names, names, strict=True)), "panels": panels, "percent": percent}
        chart = charts.lines(identity, title, about, data, data, columns, ("", axis), **more)
        drawn.append(ChartBlock(chart))
    names = [one_format(analyzer.loader.config(arm)) for arm in extremes["arm"]]
    return {"signatures": drawn, "extremes": [*map(get_format, names)], "beside": rest["format"].iloc[0]}


def _counted(expectation: Expectation, observed: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """How many of the predictions of a hypothesis held, did not, and are not decided."""
    outcomes = [observed.get(key, ("", ""))[0] for key in expectation.predictions]
    held, failed = (outcomes.count(OUTCOMES[answer]) for answer in ("yes", "no"))
    return {"number": len(outcomes), "held": held, "failed": failed, "open": len(outcomes) - held - failed}


def _predictions(expectation: Expectation, observed: Mapping[str, tuple[str, str]], identity: str) -> Table:
    """The predictions of a hypothesis, each with its outcome and what is recorded."""
    unseen = ("not decided", "no record tells")
    rows = []
    for key, text in expectation.predictions.items():
        outcome, recorded = observed.get(key, unseen)
        rows.append({"prediction": text, "outcome": outcome, "recorded": recorded})
    columns = (
        col.text("Prediction", "prediction"),
        col.text("Outcome", "outcome"),
        col.of("Recorded", lambda row: escape(row["recorded"])),
    )
    return col.table(rows, columns, "", identity)


def _e7m0_observed(analyzer: FailureAnalyzer, comparison: Comparison | None) -> dict[str, tuple[str, str]]:
    """Outcome and figures of each prediction; keys are left out where no record decides them."""
    found: dict[str, tuple[str, str]] = {}

    def note(key: str, held: bool, figure: str) -> None:
        found[key] = (OUTCOMES["yes" if held else "no"], figure)

    runs = analyzer.of_formats(analyzer.loader.runs, "e7m0")
    ended = runs[(runs["role"] == "report") & runs["status"].isin(["finished", "failed"])]
    if len(ended):
        failed = int((ended["status"] == "failed").sum())
        note("no_failed_run", not failed, f"{failed} of {len(ended)} runs failed")
    counted = [run_id for run_id in ended["run_id"] if "warnings" in analyzer.loader.records[run_id].run["summary"]]
    if counted:
        kinds = analyzer.warnings.loc[analyzer.warnings["run_id"].isin(counted), "what"].value_counts()
        of_range = int(kinds.reindex(RANGE).fillna(0).sum())
        others = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if kind not in RANGE)
        others = f"; of other kinds: {others}" if others else ""
        note("no_warning", not of_range, f"{of_range} such warnings in {len(counted)} runs{others}")
    if comparison is None:
        return found
    table = analyzer.of_formats(comparison.table, *SPLITS)
    own = analyzer.of_formats(table, "e7m0")["arm"]
    figures = analyzer.health[analyzer.health["arm"].isin(table["arm"])].dropna(subset=["value"])
    of_range = figures[figures["arm"].isin(own) & figures["statistic"].isin(RANGE)].sort_values("value")
    for row in of_range.tail(1).itertuples():
        what = f"largest: {row.statistic} of {OPERAND_NAMES[row.operand]}, {words.percent(row.value)}"
        note("no_range_error", row.value < 0.001, what)
    sqnr = figures[(figures["statistic"] == "sqnr_db") & (figures["operand"] == "weight")]
    for mine, other in _first_two(sqnr.sort_values("value"), own):
        what = f"E7M0 {words.number(mine['value'], 1)} dB; the next lowest {words.number(other['value'], 1)} dB"
        note("lowest_sqnr", mine["value"] <= other["value"], what)
    gaps = table.dropna(subset=["gap", "low", "high"]).sort_values("gap", ascending=False)
    for mine, other in _first_two(gaps, own):
        said = [
            f"{words.number(row['gap'], sign=True)} {words.interval(row['low'], row['high'])}" for row in (mine, other)
        ]
        what = f"E7M0 {said[0]}; the next largest is {other['format']}, {said[1]}"
        note("largest_gap", mine["gap"] > other["gap"], what)
        if mine["gap"] > other["gap"] and mine["low"] <= other["high"]:
            found["largest_gap"] = ("not decided (the intervals overlap)", what)
    return found


def _first_two(rows: pd.DataFrame, own: pd.Series) -> Iterable[tuple[Row, Row]]:
    """The first row of the arms of `own` beside the first of the others; nothing where either is missing."""
    mine = rows["arm"].isin(own)
    return zip(rows[mine].head(1).to_dict("records"), rows[~mine].head(1).to_dict("records"), strict=False)


def _remedies(tried: pd.DataFrame) -> Values:
    """What was tried on the two extreme formats, with its effect against the format without it and against FP32."""
    if tried.empty:
        return {"remedies": None}

    def planned(row: Row) -> str:
        badly = f"{row['n_ended_badly']} runs did not finish: not judged" if row["n_ended_badly"] else "in full"
        return f"{'yes' if row['planned'] else 'no'}, {'in part' if row['missing'] else badly}"

    columns = (
        col.text("Format", "format"),
        col.arm("Remedy", "remedy"),
        col.signed("Difference", "difference"),
        col.interval(),
        col.p("Adjusted p", "p_holm"),
        col.count("Pairs", "n_pairs"),
        col.signed("Gap before", "gap_before"),
        col.signed("Gap left", "gap"),
        col.of("Planned", planned),
    )
    table = col.table(tried, columns, id="remedies")
    shown = ["format", "remedy", "n_pairs", "difference", "low", "high", "gap", "gap_low", "gap_high"]
    data = charts.finite_rows(tried[shown], "difference", "low", "high")
    names, colours = data["format"] + ": " + data["remedy"], [format_style(each).colour for each in data["format"]]
    axis, title = "nats per character; left of 0 it helps", "What each remedy does to the loss"
    chart = charts.forest("remedies-chart", title, "", data, list(names), axis, colours) if len(data) else None
    shown_of = list(dict.fromkeys(tried["format"]))
    return {"remedies": table, "remedies_chart": [ChartBlock(chart)] if chart else [], "remedied": shown_of}


def _prevention(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> Values:
    """What the failing arms call for, and the failing formats that no remedy was tried on."""
    bare, stalled, left = set(), False, set()
    for row in failed.to_dict("records"):
        config = analyzer.loader.config(row["arm"])
        on_grid = config.optimizer.storage == "grid"
        stalled |= on_grid and config.optimizer.rounding == "nearest_even"
        if unscaled(config):
            bare.add(row["format"])
        elif not on_grid and row["causes"] != "step":  # where the step rule is to blame, no format is
            left.add(one_format(config))
    drawn = _drawn_gradients(analyzer)
    costs = costs_of(analyzer.loader, analyzer.loader.memo(everything_quantized))
    logits = [row for row in costs if row["nearest"] > FAILURE_GAP and row["low"] > 0]
    helped = {row["format"] for row in logits}
    untried = [get_format(name).label for name in left - {"", *LACKING, *drawn}]
    untried = [name for name in untried if name not in helped]
    return {
        "logits": logits,
        "again": analyzer.loader.memo(on_more_text),
        "unscaled": sorted(bare),
        "stalled": stalled,
        "drawn": [(get_format(name).label, changes) for name, changes in drawn.items()],
        "untried": sorted(untried, key=format_order),
    }


def _drawn_gradients(analyzer: FailureAnalyzer) -> dict[str, list[Values]]:
    """What gradients rounded stochastically change where a format fails without them, by the name of the format."""
    found: dict[Any, Values] = {}
    for row in analyzer.leading(analyzer.gaps[analyzer.gaps["n_pairs"] >= 2]).to_dict("records"):
        config = analyzer.loader.config(row["arm"])
        nearest = config.quantize.rounding.model_copy(update={"grad_output": "nearest_even"})
        quantize = config.quantize.model_copy(update={"rounding": nearest})
        pair = found.setdefault((quantize, config.scaling, config.optimizer, row["baseline"]), {})
        pair[config.quantize.rounding.grad_output] = row | {"name": one_format(config)}
    changes: dict[str, list[Values]] = {}
    for pair in found.values():
        before, after = pair.get("nearest_even"), pair.get("stochastic")
        if before and after and after["name"] not in ("", *LACKING) and (before["failed"] or after["failed"]):
            how = before["scope"].replace(ALL_OPERANDS, "").strip("; ")
            ends = {"before": before["gap"], "after": after["gap"], "lower": after["gap"] < before["gap"]}
            changes.setdefault(after["name"], []).append(ends | {"how": how})
    return changes


def _unfinished_table(analyzer: FailureAnalyzer) -> Table:
    columns = (
        col.named(analyzer.loader.memo(site_labels)),
        col.count("Seed", "seed"),
        col.text("Status", "status"),
        col.text("Kind", "kinds"),
        col.text("Message", "message"),
        col.count("First bad or last step", "step"),
        col.text("Tensor", "tensor"),
        col.text("Phase", "phase"),
        col.run(),
    )
    return col.table(analyzer.failures, columns, id="unfinished")


def _outside_of_sweeps(analyzer: FailureAnalyzer) -> pd.DataFrame:
    """The runs that did not finish, but for those of sweeps, which try rates that are too high."""
    roles = analyzer.loader.runs.set_index("run_id")["role"]
    return analyzer.failures[analyzer.failures["run_id"].map(roles) != "tuning"]


def _broken_runs(analyzer: FailureAnalyzer) -> list[Values]:
    """The runs that did not finish, by arm and status: how many, what was recorded of them, and where it began."""
    found, runs = [], analyzer.loader.runs
    means = analyzer.health.set_index(["arm", "operand", "statistic"])["value"].to_dict()
    labels = analyzer.loader.memo(site_labels)
    for (arm, status), rows in _outside_of_sweeps(analyzer).groupby(["arm", "status"], sort=False):
        steps = sorted({int(step) for step in rows["step"].dropna()})
        first = rows.iloc[0]
        known = {
            key: None if col.missing(first[key]) else first[key] for key in ("kinds", "tensor", "phase", "message")
        }
        about = {"arm": arm, "status": status, "name": labels[arm], "number": len(rows)}
        about["flushed"] = means.get((arm, "grad_output", "underflow")) if "underflow" in str(first["kinds"]) else None
        ends = [steps[0], steps[-1]] if len(steps) > 1 else steps
        own = (runs["arm"] == arm) & (runs["role"] != "tuning")
        found.append(about | known | {"of": int(own.sum()), "steps": ends})
    return sorted(found, key=lambda each: each["status"] != "failed")[:GROUPS_SHOWN]


def _to_show(failed: pd.DataFrame) -> pd.DataFrame:
    """Of the arms that fail, the first of each first class: those whose commands the page gives."""
    return failed[~failed["causes"].str.split(", ").str[0].duplicated()]


def _endings(analyzer: FailureAnalyzer) -> Values:
    """How one run of each arm ended badly, those that failed first: what its record advises, and its last losses."""
    failures = _outside_of_sweeps(analyzer).query("status != 'running'")
    ordered = failures.sort_values("status", key=lambda status: status != "failed", kind="stable")
    found, frames = [], []
    for row in ordered.drop_duplicates("arm").head(ENDINGS_SHOWN).to_dict("records"):
        if failure := diagnose(analyzer.loader.records[row["run_id"]]):
            found.append(row | {"failure": failure})
            losses = pd.DataFrame(failure.losses, columns=["step", "loss"]).tail(ENDING_STEPS)
            losses = losses.assign(run_id=row["run_id"], label=f"{row['format']} {row['run_id'][-8:]}")
            frames.append(losses.assign(to_end=losses["step"] - losses["step"].max()))
    return {
        "endings": found,
        "ending_losses": _ending_chart(pd.concat(frames, ignore_index=True)) if frames else [],
        "more_endings": len(ordered) - len(found),
    }


def _ending_chart(data: pd.DataFrame) -> list[Block]:
    """Training loss against the steps that were left, a line a run; a cross where it was not finite any more."""
    finite = charts.finite_rows(data, "loss")
    if finite.empty:
        return []
    lost = data[data["loss"].isna()]
    said = "; ".join(
        f"{row.run_id} ends at step {row.step} with {words.figure(row.loss, '.3g')}"
        + (", then not finite" if row.run_id in set(lost["run_id"]) else "")
        for row in finite.groupby("run_id", sort=False).tail(1).itertuples()
    )
    ends = [rows["loss"].iloc[[0, -1]].tolist() for _, rows in finite.groupby("run_id")]
    rising = sum(last > first for first, last in ends)
    title, about = f"The loss rises towards the end in {rising} of {len(ends)}", f"{said}."
    wide = bool(finite["loss"].min() > 0 and finite["loss"].max() > 20 * finite["loss"].min())
    drawn, axes = (data, finite, ("to_end", "loss", "label")), ("steps before the last one", "training loss")
    formats = {label: label.split(" ")[0] for label in finite["label"]}
    more: Any = {"formats": formats, "crossed": {*lost["label"]}, "markers": True, "log": wide}
    return [ChartBlock(charts.lines("endings", title, about, *drawn, axes, **more))]


def _warnings(loader: ExperimentDataLoader, warnings: pd.DataFrame) -> Values:
    """How often telemetry warned, by kind and format, and how many runs are too old to have warnings."""
    ended = [each for each in loader.records.values() if each.status in ("finished", "failed")]
    warned = loader.runs[loader.runs["run_id"].isin(warnings["run_id"])]
    configs = {arm: loader.config(arm) for arm in warnings["arm"].unique()}
    bare = {arm: named(config) for arm, config in configs.items() if not config.quantize.operands}
    names = [bare.get(row.arm, row.format) for row in warnings.itertuples()]
    groups = warnings.assign(format=names).groupby(["what", "format"])
    data = groups.agg(
        warnings=("step", "size"),
        runs=("run_id", "nunique"),
        first_step=("step", "min"),
        tensor=("tensor", lambda tensors: tensors.mode().iloc[0]),
    )
    columns = (
        col.text("What", "what"),
        col.text("Format", "format"),
        col.count("Warnings", "warnings"),
        col.count("Runs", "runs"),
        col.count("First step", "first_step"),
        col.text("Most often in", "tensor"),
    )
    data = data.reset_index().sort_values(["warnings", "what", "format"], ascending=[False, True, True])
    return {
        "number": len(warnings),
        "ended": len(ended),
        "before": sum("warnings" not in record.run["summary"] for record in ended),
        "runs": len(warned),
        "finished": int((warned["status"] == "finished").sum()),
        "table": col.table(data, columns, id="warnings"),
    }


def _examples(analyzer: FailureAnalyzer, failed: pd.DataFrame) -> list[Values]:
    """One run of each arm that failed, and the unquantized run of its seed: the smallest pair that shows it."""
    found, runs, records = [], analyzer.loader.runs, analyzer.loader.records
    for row in failed.to_dict("records"):
        record = records[analyzer.example(row["arm"])]
        base = runs[(runs["arm"] == row["baseline"]) & (runs["seed"] == record.config.seed)]
        pair = base["run_id"].head(1) if record.status == "finished" else []
        commands = [command(each.config) for each in (record, *map(records.__getitem__, pair))]
        found.append(row | {"run_id": record.id, "commands": CodeBlock("\n".join(commands), "bash")})
    return found
