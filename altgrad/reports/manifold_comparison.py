"""Report ANAL-03: what a step rule that knows the format's grid brings over AdamW, paired by seed, with controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.contrasts import missing, named_family, reading, shown
from altgrad.analysis.hypotheses import STIFFNESS, Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, MARGIN, SMALLEST_GAP, seeds_needed
from altgrad.analysis.step_rules import NAME_COLUMNS, StepRuleComparator, arm_of, in_words
from altgrad.config import OptimizerConfig
from altgrad.pages import (
    PALETTE,
    Block,
    Bullets,
    Cell,
    ChartBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Page,
    PageRef,
    Paragraph,
    Table,
    escape,
    md,
)
from altgrad.pages.content import Text
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.measured import RECORDED
from altgrad.reports.pending import hypothesis_pending, larger, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line, pilot, scope_line
from altgrad.reports.step_slopes import slope_blocks
from altgrad.reports.verdicts import hypothesis, verdict_table
from altgrad.studies import ARMS, PLACES, RULE_FORMATS, RULES, SEEDS, adamw_arm

PATH = "reports/manifold_comparison"
LABELS = {rule: choice.label for rule, choice in RULES.items()}
STYLES = {
    rule: charts.Style(colour, marker, LABELS[rule])
    for rule, colour, marker in zip(("update", "gradient", "relative", "code", "adamw"), PALETTE, "os^DX", strict=False)
}
UNITS = dict.fromkeys(("update", "shuffled", "constant"), " ulps")
UNITS |= {"code": " codes", "relative": " of the tensor's rms"}
"""Of a learning rate; AdamW's and the gradient precondition's is in the unit of the weights."""
TUNED_WITHIN = 0.5
"""Nats above an arm's best that the chart of sweeps shows."""


def manifold_comparison_page(
    loader: ExperimentDataLoader, built: datetime | None = None, benchmarks: Path = RECORDED
) -> Page:
    """The page, from the records of `loader` and the slopes in `benchmarks`; what is not recorded is pending."""
    found = loader.memo(StepRuleComparator)
    verdicts = verdicts_of(loader, *(f"H{number}" for number in range(6, 15)))
    judged = found.pairings[found.pairings["difference"].notna()]
    others = found.others
    pilots = others[0][others[0]["counts"]].assign(n_ended_badly=0) if others else found.table.iloc[:0]
    blocks: list[Block] = [
        Paragraph(Md("*Does an optimizer that knows the format's geometry reach a lower loss?* (ANAL-03)")),
        data_line(loader),
        *left_out(loader),
        Heading("Executive Summary"),
        *_summary(loader, found, verdicts, judged, pilots),
        Heading("The stiffness-preconditioning hypothesis"),
        *_hypothesis(judged if len(judged) else pilots.assign(rule=[_rule_of(loader, arm) for arm in pilots["arm"]])),
    ]
    if loader.runs.empty:
        blocks += pending("No runs are recorded.", ["tuning", "formats", "storage", "controls"])
    else:
        blocks += [
            Heading("The arms"),
            *_arms(found),
            Heading("Equal tuning"),
            *_tuning(found),
            Heading("Step rules against AdamW"),
            *_pairings(found.pairings),
            Heading("Storage and rounding"),
            *_roundings(found.roundings),
            Heading("Controls"),
            *_controls(found),
            Heading("Does the stall ratio rank?"),
            *_stalls(found),
            Heading("Why: Adam in code space"),
            *_derivation(benchmarks),
            Heading("Negative results"),
            *_negative(found, verdicts, judged),
            Heading("What would change this answer"),
            _changes(found.pairings),
            *larger(loader, "storage"),
            Heading("What cannot be concluded"),
            _limits(loader, judged, pilots),
            *machine_blocks(loader, _comparisons(found)),
            Heading("Related work"),
            *_related(),
            *_others(loader, others),
        ]
    arms = pd.concat([found.arms["arm"], found.sweeps["arm"], *(part[["arm", "adamw_arm"]].stack() for part in others)])
    return Page(
        PATH,
        "Manifold comparison",
        (*blocks, *traceability(loader, arms.dropna())),
        description="ManifoldAdamW and steps of codes against AdamW, paired by seed, with controls and intervals.",
        provenance=provenance(loader, built),
    )


def _comparisons(found: StepRuleComparator) -> list[tuple[str, str, str]]:
    """Every pair of the campaign's arms that the page compares."""
    named = pd.concat([found.roundings, found.controls])
    names = [f"{in_words(arm_of(row))}: {row['contrast']}" for row in named.to_dict("records")]
    frame = pd.concat([found.pairings, named.assign(contrast=names)])[["contrast", "arm", "against"]]
    return list(frame[(frame["arm"] != "") & (frame["against"] != "")].itertuples(index=False, name=None))


def _known(frame: pd.DataFrame, study: str, *blocks: Block) -> list[Block]:
    """What a table shows, after the box that says which of its runs are missing; the box alone where all rows are."""
    faults = list(dict.fromkeys(text for text in frame["missing"] if text))
    if not faults:
        return [*blocks]
    more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
    box = pending_note(" ".join(faults[:3]) + more, ["tuning", "formats", study])
    return [box] if frame["missing"].all() else [box, *blocks]


# The answer


def _summary(
    loader: ExperimentDataLoader,
    found: StepRuleComparator,
    verdicts: Sequence[Verdict],
    judged: pd.DataFrame,
    pilots: pd.DataFrame,
) -> list[Block]:
    ulps = next(verdict for verdict in verdicts if verdict.id == "H8")
    blocks: list[Block]
    if ulps.answer != "pending":
        blocks = [
            Paragraph(_answer(ulps, judged)),
            Paragraph(scope_line(loader, found.pairings["arm"].iloc[0])),
            *_disclosed(loader, found),
            *_chart(judged),
        ]
    elif len(pilots):
        blocks = [
            Paragraph(_pilot_answer(pilots)),
            *pilot(loader, pilots["arm"], int(pilots["n_pairs"].max())),
            _pilot_chart(pilots),
        ]
    else:
        reason = "No runs are recorded." if loader.runs.empty else ulps.evidence
        blocks = [Paragraph(Md(f"**ManifoldAdamW against AdamW: pending.** {escape(reason)}"))]
    if loader.runs.empty:
        return blocks
    written = md(
        "Written down before the campaign's first run, with tests and with what counts as an answer, in the "
        "{preregistration}. The margin of equivalence is {margin:g} nats a character.",
        preregistration=Link("preregistration", PageRef("method/preregistration")),
        margin=MARGIN,
    )
    return [*blocks, Paragraph(written), verdict_table(verdicts, "hypotheses", caption="The preregistered hypotheses")]


def _answer(verdict: Verdict, judged: pd.DataFrame) -> Md:
    """Steps in ulps against AdamW, in one bold sentence."""
    own = judged[judged["rule"] == "update"]
    if own.empty:
        return Md(f"**Steps in ulps against AdamW: inconclusive.** {escape(verdict.evidence, 4000)}")
    readings = Counter(reading(row).partition(",")[0] for row in own.to_dict("records"))
    steps = "Steps in ulps (ManifoldAdamW)"
    if verdict.answer == "yes":
        told = {"higher": "worse", "equivalent": "within the margin", "undecided": "undecided"}
        counts = [f"{word} in {readings[key]}" for key, word in told.items() if readings[key]]
        counts[0] += f" of {len(own)} comparisons"
        lead = f"No. {steps} never beat AdamW: {', '.join(counts)}."
    elif readings["lower"]:
        lead = f"{steps} beat AdamW in {readings['lower']} of {len(own)} comparisons and are worse in "
        lead += f"{readings['higher']}."
    else:
        lost, total = len(verdict.tests) - len(own), len(verdict.tests)
        lead = f"Inconclusive: {lost} of {total} comparisons of s{steps[1:]} with AdamW have runs that did not finish."
    ordered = own.sort_values(["difference", "format", "storage", "rounding"]).to_dict("records")
    best, worst = (escape(_figures(_format_and_place(row, " ({})"), row)) for row in (ordered[0], ordered[-1]))
    text = (
        f"**{lead} At best, with {best}.** At worst, with {worst}. Each arm has its tuned rate; sign-flip permutation "
        f"tests, Holm-adjusted, level {ALPHA}."
    )
    relative = judged[judged["rule"] == "relative"]
    if len(helps := _shown(relative, -1)):
        text += (
            " AdamW with a rate relative to the tensor, which knows no format, beats plain AdamW in "
            f"{len(helps)} of {len(relative)} comparisons, by up to {words.number(-helps['difference'].min())} nats."
        )
    return Md(text)


def _format_and_place(row: col.Row, form: str = ", {}") -> str:
    return f"{row['format']}{form.format(PLACES[arm_of(row).place].label)}"


def _figures(name: str, row: col.Row) -> str:
    interval = words.interval(row["low"], row["high"])
    figures = f"{words.number(row['difference'], sign=True)} nats a character (95% interval {interval}"
    return f"{name}, {figures}, n = {row['n_pairs']} seeds)"


def _shown(rows: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The rows whose difference is shown to have the sign."""
    return rows[pd.Series([shown(row, sign) for row in rows.to_dict("records")], rows.index, dtype=bool)]


def _disclosed(loader: ExperimentDataLoader, found: StepRuleComparator) -> list[Block]:
    """What stands beside the answer: a stronger baseline, rates that tuning missed, a weight decay that differs."""
    free = found.controls.query("group == 'no quantization' and contrast == 'FP32' and rule == 'relative'")
    items = [
        "AdamW is not the strongest baseline: without quantization a rate relative to the tensor ends "
        f"{words.number(-row['difference'], 4)} nats below it (95% interval "
        f"{words.interval(row['low'], row['high'], 4)}, n = {row['n_pairs']}, p {words.p_text(row['p_holm'])})."
        for row in _shown(free, -1).to_dict("records")
    ]
    items += _better_untuned(loader)
    if decays := _decays(found):
        items.append(
            f"Weight decay is not the same in every arm: {decays}. Whether steps of codes lose by their steps or by "
            "that is not shown (H10)."
        )
    return [Bullets(tuple(items))] if items else []


def _better_untuned(loader: ExperimentDataLoader) -> list[str]:
    """Where AdamW, at another rate than that of its sweep, is shown to end lower on the reporting seeds."""
    notes = []
    for fmt in RULE_FORMATS:
        tuned, other = ARMS[adamw_arm(fmt, "master")], ARMS[fmt]
        if tuned is other or missing(loader, [tuned.name, other.name]):
            continue
        (better,) = named_family(loader, [(tuned.name, other.name)]).to_dict("records")
        (against,) = named_family(loader, [(f"{fmt} update master", other.name)]).to_dict("records")
        if shown(better, +1):
            notes.append(
                f"Two held-out seeds chose the rate {tuned.rate:g} for {fmt} under AdamW with master weights (H8), "
                f"where {other.rate:g} ends {words.number(better['difference'])} nats lower on the reporting seeds "
                f"({words.interval(better['low'], better['high'])}, n = {better['n_pairs']}, p "
                f"{words.p_text(better['p_value'])}); against AdamW at {other.rate:g}, steps in ulps end "
                f"{words.number(against['difference'], sign=True)} {words.interval(against['low'], against['high'])}, "
                f"n = {against['n_pairs']} (not planned)."
            )
    return notes


def _decays(found: StepRuleComparator) -> str:
    """The weight decay of the step rules in words; "" where all have the same."""
    recorded = found.arms.loc[found.arms["n_runs"] > 0, "rule"]
    decays = {rule: RULES[rule].settings.get("weight_decay", OptimizerConfig().weight_decay) for rule in recorded}
    usual = max(decays.values(), key=list(decays.values()).count, default=0.0)
    odd = [f"{decay:g} in {LABELS[rule].lower()}" for rule, decay in decays.items() if decay != usual]
    return f"{words.names(odd)}, {usual:g} in every other rule" if odd else ""


def _chart(judged: pd.DataFrame) -> list[Block]:
    """The paired differences, as a forest of intervals: a line a format and place, a colour a rule."""
    names = ["format", "rule", "storage", "rounding", "n_pairs", "difference", "low", "high", "arm", "against"]
    data = charts.finite_rows(judged[names], "difference", "low", "high")
    if data.empty:
        return []
    arms = [arm_of(row) for row in data.assign(misscaled=False).to_dict("records")]
    ends = {"lowest": data["difference"].idxmin(), "highest": data["difference"].idxmax()}
    told = "; ".join(
        f"{word}: {in_words(arms[place])} {data.at[place, 'difference']:+.3f} "
        f"{words.interval(data.at[place, 'low'], data.at[place, 'high'])}"
        for word, place in ends.items()
    )
    chart = charts.grouped_forest(
        "loss-difference",
        "Loss minus AdamW's, each arm at its tuned rate",
        f"Mean paired difference of the final validation loss with 95% t interval; left of zero is better. "
        f"{len(data)} pairings; {told}.",
        data,
        [f"{arm.format}  {PLACES[arm.place].label}" for arm in arms],
        [f"{fmt}  {place.label}" for fmt in RULE_FORMATS for place in PLACES.values()],
        STYLES,
        "AdamW",
        "loss minus AdamW's, all else equal (nats a character)",
    )
    return [ChartBlock(chart)]


def _rule_of(loader: ExperimentDataLoader, arm: str) -> str:
    """The key of `RULES` with an arm's optimizer, whatever its rates; "" where none is, as with weights on the grid."""
    rates = {"learning_rate", "other_learning_rate"}
    settings = loader.config(arm).optimizer.model_dump(exclude_defaults=True, exclude=rates)
    return next((rule for rule, choice in RULES.items() if choice.settings == settings), "")


def _hypothesis(known: pd.DataFrame) -> list[Block]:
    if known.empty:
        return [Paragraph(hypothesis_pending("No pair of a ManifoldAdamW and an AdamW arm is recorded."))]
    rows = []
    for key, text in STIFFNESS.predictions.items():
        rule, measure = key.split("_")
        low, high = ("stall_low", "stall_high") if measure == "stall" else ("low", "high")
        own = known[(known["rule"] == rule) & known[low].notna()]
        below, above = int((own[high] < 0).sum()), int((own[low] > 0).sum())
        outcome = "held" if below == len(own) else "held in part" if below > above else "did not hold"
        recorded = (
            f"{'stall ratio' if measure == 'stall' else 'loss'} interval below AdamW's in {below}, above in {above}, "
            f"around zero in {len(own) - below - above} of {len(own)} pairings"
        )
        rows.append(
            {
                "prediction": text,
                "outcome": outcome if below or above else "not decided",
                "recorded": recorded if len(own) else "no pairs recorded",
            }
        )
    columns = [col.text(title, title.lower()) for title in ("Prediction", "Outcome", "Recorded")]
    return [Paragraph(hypothesis(STIFFNESS)), col.table(rows, columns, "The hypothesis against what happened")]


# What was compared


def _arms(found: StepRuleComparator) -> list[Block]:
    frame = found.arms
    table = frame[frame["study"].isin(["formats", "storage"]) & (frame["format"] != "FP32")]
    rows: dict[tuple[str, str], dict[str, col.Row]] = {}
    for row in table.to_dict("records"):
        arm = arm_of(row)
        rows.setdefault((arm.rule, arm.place), {})[arm.format] = row
    order = sorted(rows, key=lambda key: (list(RULES).index(key[0]), list(PLACES).index(key[1])))

    def cell(fmt: str) -> Column:
        def shown(by_format: col.Row) -> Cell:
            row = by_format.get(fmt)
            if row is None or row["missing"]:
                return row and "pending"
            badly = row["n_runs"] - row["n_finished"]
            text = f"{badly} of {row['n_runs']} not finished" if badly else f"{row['val_loss']:.3f}"
            return col.arm_link(row["arm"], text)

        return col.of(fmt, shown, right=True)

    columns = (
        col.text("Step rule", "rule", LABELS),
        col.of("Storage", lambda row: PLACES[row["place"]].label.split(", ")[0]),
        col.of("Rounding", lambda row: PLACES[row["place"]].label.split(", ")[1]),
        col.of("Extra bytes a weight", lambda row: next(row[f]["extra_bytes"] for f in RULE_FORMATS if f in row), True),
        *(cell(fmt) for fmt in RULE_FORMATS),
    )
    text = (
        "An arm is a step rule, a storage of the weights and a rounding onto the grid. The cells are the mean final "
        f"validation loss over the {len(SEEDS)} seeds, each arm at its tuned learning rate, weights, activations and "
        "gradients in the format; a dash is no arm of the study. With master weights, float32 weights are kept and "
        "rounded on the forward pass; on the grid the weights themselves have the format, and nothing wider is kept. "
        "Extra bytes are those kept between steps besides the weight's code and Adam's two moments: stochastic "
        "rounding computes its draws, and error feedback puts the error where the momentum is."
    )
    caption = "The arms with a format, by their mean final loss (nats a character; unpaired, for orientation)"
    records = [{"rule": rule, "place": place, **rows[rule, place]} for rule, place in order]
    return [Paragraph(text), *_known(table, "storage", col.table(records, columns, caption, "arms", data=frame))]


def _tuning(found: StepRuleComparator) -> list[Block]:
    sweeps = found.sweeps
    groups = [group for _, group in sweeps.groupby(list(NAME_COLUMNS), sort=False)]
    tuned = {arm_of(group.iloc[0]).name for group in groups}
    absent = [in_words(arm) for row in found.arms.to_dict("records") if (arm := arm_of(row)).name not in tuned]
    blocks: list[Block] = []
    if absent:
        rest = f" and {len(absent) - 3} more arms" if len(absent) > 3 else ""
        blocks = [pending_note(f"No tuning run is recorded of {', '.join(absent[:3])}{rest}.", ["tuning"])]
    if sweeps.empty:
        text = "No tuning study is among the records: whether the learning rates are tuned equally cannot be shown."
        return [Paragraph(text), *blocks]
    rows = [_sweep(group) for group in groups]
    counts, edges = sorted({len(group) for group in groups}), sum(row["edge"] for row in rows)
    budget = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = " to ".join(str(n) for n in sorted(set(sweeps["n"])))
    text = (
        f"Every arm was tuned over {budget} learning rates, a factor of 2 apart, on "
        f"{seeds} held-out seeds that no comparison uses; the lowest mean loss was taken, and a "
        "best rate at the edge extended the sweep. AdamW with master weights was tuned in study pilot-tuning, with the "
        "same rates and seeds. "
        + (f"{edges} of {len(rows)} best rates lie at an edge." if edges else "No best rate lies at an edge.")
    )
    columns = (
        col.text("Format", "format"),
        col.of("Step rule", lambda row: LABELS[row["rule"]] + (", mis-scaled" if row["misscaled"] else "")),
        col.of("Storage and rounding", lambda row: PLACES[arm_of(row).place].label if row["format"] != "FP32" else "–"),
        col.count("Rates", "rates"),
        col.text("Tried", "tried"),
        col.of("Best", lambda row: row["arm"] and col.arm_link(row["arm"], f"{row['learning_rate']:g}"), right=True),
        col.number("Loss there", "val_loss"),
        col.text("At the edge", "edge", {True: "yes", False: "no"}),
        col.text("Used", "used"),
        col.count("Not finished", "n_ended_badly"),
    )
    run_columns = (
        col.of("Arm", lambda row: col.arm_link(row["arm"], in_words(arm_of(row)))),
        col.general("Learning rate", "learning_rate"),
        col.of("Mean validation loss", _loss, right=True),
        col.count("Held-out seeds", "n"),
        col.of("", lambda row: "best" if row["best"] else ""),
    )
    notes = [
        note
        for row in rows
        for note, holds in (
            (f"The best rate of {in_words(arm_of(row))} lies at the edge of its sweep.", row["edge"]),
            (f"{in_words(arm_of(row))} ran at another rate than the best of its sweep.", row["used"] == "no"),
        )
        if holds
    ]
    return [
        Paragraph(text),
        *blocks,
        *_tuning_chart(groups),
        col.table(rows, columns, "Equal tuning: the sweep of each arm"),
        *([Bullets(tuple(notes))] if notes else []),
        Details("The tuning runs", (col.table(sweeps, run_columns, "All rates that were tried", "tuning"),)),
    ]


def _loss(row: col.Row) -> str:
    return words.number(row["val_loss"]) if math.isfinite(row["val_loss"]) else "did not finish"


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


def _tuning_chart(groups: Sequence[pd.DataFrame]) -> list[Block]:
    parts = []
    for group in groups:
        for best in group[group["best"]].itertuples():
            factor, above = group["learning_rate"] / best.learning_rate, group["val_loss"] - best.val_loss
            parts.append(group.assign(factor=factor, above=above))
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        return []
    data = pd.concat(parts, ignore_index=True)
    beyond = int((~(data["above"] <= TUNED_WITHIN)).sum())
    told = f" {beyond} rates are beyond {TUNED_WITHIN:g} nats or did not finish, and not drawn." if beyond else ""
    chart = charts.curves_of_multiples(
        "sweeps",
        "The sweeps, each around its best rate",
        f"Mean loss over the held-out seeds of {len(parts)} arms by learning rate, as multiples of the best: a line "
        f"an arm, a colour a step rule. A minimum inside says that the rate is tuned.{told}",
        data,
        {
            "factor": "learning rate, as a multiple of the arm's best",
            "above": "loss above the arm's best (nats a character)",
        },
        NAME_COLUMNS,
        STYLES | dict.fromkeys(("shuffled", "constant"), STYLES["update"]),
        TUNED_WITHIN,
    )
    return [ChartBlock(chart)]


# What came out


def _contrasts(frame: pd.DataFrame, head: Sequence[Column], caption: str, identity: str, *more: Column) -> Table:
    """Rows of contrasts with their interval, adjusted p, TOST and what that says; `more` stands before the last."""
    columns = (
        *head,
        col.signed("Difference", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.p("p (Holm)", "p_holm"),
        col.p("p (TOST)", "p_equivalent"),
        *more,
        col.of("Reading", lambda row: "pending" if row["missing"] else reading(row)),
    )
    return col.table(frame, columns, caption, identity)


def _rule(title: str) -> Column:
    return col.arm(title, "rule", words_of=LABELS)


def _arm(title: str, text: Callable[[col.Row], str], end: str = "against") -> Column:
    return col.of(title, lambda row: col.arm_link(row[end], text(row)) if row[end] else text(row))


def _pairings(pairings: pd.DataFrame) -> list[Block]:
    text = (
        "Final validation loss minus AdamW's with the same format, storage, rounding, seeds and batches; below zero "
        "the rule is better. Holm's adjustment is over the rows of one step rule. The rows of S on the update are the "
        "family of H8, those of steps of codes that of H10; S on the gradient with master weights is H9; the others "
        "are exploratory. The stall ratio is the difference to AdamW's: a positive one says that more proposed steps "
        "leave the stored code as it "
        "was. Steps of codes run without weight decay, which every other rule has (see H10)."
    )
    table = _contrasts(
        pairings,
        (_rule("Step rule"), _arm("Against AdamW with", _format_and_place)),
        "Step rule minus AdamW, nats a character, paired by seed",
        "pairings",
        col.signed("Stall ratio", "stall_difference", 2),
    )
    return [Paragraph(text), *_known(pairings, "storage", table)]


def _roundings(frame: pd.DataFrame) -> list[Block]:
    names = {
        "nearest": "nearest minus stochastic, on the grid",
        "feedback": "error feedback minus stochastic, on the grid",
        "grid": "stochastic on the grid minus master weights",
    }
    head = (
        col.text("Format", "format"),
        _rule("Step rule"),
        _arm("What changes", lambda row: names[row["contrast"]]),
    )
    text = (
        "What keeping the weights on the grid costs, and what the rounding onto it changes, under one step rule. The "
        "rows of AdamW are the families of H6 (nearest) and H7 (error feedback); the others are exploratory."
    )
    table = _contrasts(frame, head, "Storage and rounding, nats a character, paired by seed", "roundings")
    return [Paragraph(text), *_known(frame, "storage", table)]


def _controls(found: StepRuleComparator) -> list[Block]:
    free, ablation, start = (
        found.controls[found.controls["group"] == name] for name in ("no quantization", "ablation", "mis-scaled")
    )
    free = free.sort_values(
        "rule", key=lambda column: column.map(["update", "gradient", "relative"].index), kind="stable"
    )
    what = {
        "E4M3": "minus AdamW, with E4M3",
        "FP32": "minus AdamW, without quantization",
        "difference": "difference of the two",
    }
    free_table = _contrasts(
        free,
        (_rule("Step rule"), col.text("Contrast", "contrast", what)),
        "Each step rule with and without quantization (master weights; S that of E4M3)",
        "no-quantization",
    )
    ablation_table = _contrasts(
        ablation,
        (_rule("Ablation"), _arm("Against", lambda row: LABELS["update"])),
        "S shuffled and S constant against S (E4M3, master weights)",
        "ablations",
    )
    start_table = _contrasts(
        start,
        (
            _arm("Arm", lambda row: f"{row['format']} {LABELS[row['rule']]}", "arm"),
            _arm("Against", lambda row: f"{'FP32' if row['contrast'] == 'E4M3 against FP32' else 'E4M3'} AdamW"),
        ),
        "Tensors that begin multiplied by up to 2^6, either way (E4M3, master weights, no gradient clipping)",
        "mis-scaled",
    )
    return [
        Heading("Without quantization", 3),
        Paragraph(
            "If a rule gains or loses by the geometry of the format, its difference to AdamW must be another one where "
            "nothing is rounded. Each rule ran with FP32 weights too, with the spacing that E4M3 would have. Steps "
            "of codes have no such control: there are none without a grid."
        ),
        *_known(free, "controls", free_table),
        Heading("S in the wrong places, and the same everywhere", 3),
        Paragraph(
            "Shuffled, each weight of a tensor gets the S of another one, always the same; constant, all get the "
            "tensor's mean, which leaves AdamW with a rate for each tensor."
        ),
        *_known(ablation, "controls", ablation_table),
        Heading("Mis-scaled tensors", 3),
        Paragraph(
            "Each weight tensor begins multiplied by a power of two and its output divided by it: the same function, "
            "but AdamW's one rate no longer fits all tensors. Steps in ulps are equivariant to such a factor, and so "
            "is AdamW with a rate relative to each tensor's size, which knows no format."
        ),
        *_known(start, "controls", start_table),
        *_where_it_helps(found, start),
    ]


def _where_it_helps(found: StepRuleComparator, start: pd.DataFrame) -> list[Block]:
    """Mis-scaled against well-scaled, in a sentence a rule."""
    plain = found.pairings.query("format == 'E4M3' and storage == 'master' and difference == difference")
    well = {row["rule"]: row for row in plain.to_dict("records")}

    def said(row: col.Row) -> str:
        return f"{words.number(row['difference'], sign=True)} {words.interval(row['low'], row['high'])}"

    items = [
        f"{LABELS[row['rule']]}: {said(row)} against AdamW where tensors begin mis-scaled ({reading(row)}), "
        f"{said(other)} where they do not ({reading(other)}); n = {row['n_pairs']} and {other['n_pairs']} seeds."
        for row in start[start["difference"].notna()].to_dict("records")
        if (other := well.get(row["rule"]))
    ]
    return [Bullets(tuple(items))] if items else []


def _stalls(found: StepRuleComparator) -> list[Block]:
    text = (
        "The stall ratio is 1 - flips / updates over the same elements: the share of proposed steps that leave the "
        "stored code as it was. If fewer stalls meant a lower loss, the arms of one format would lie on a rising line. "
        "A counterexample is a pair of arms whose losses differ (Holm over all pairs of the format's arms), of "
        "which the one that stalls more has the lower loss. AdamW with master weights is among the arms."
    )
    columns = (
        col.text("Format", "format"),
        col.count("Arms", "n_arms"),
        col.signed("Spearman's rho", "spearman", 2),
        col.of("Stalls more, loses less", _counterexample),
        col.of("Against", lambda row: None if col.missing(row["less"]) else col.arm_link(row["against"], row["less"])),
        col.signed("Stall ratio, difference", "stall_difference", 2),
        col.signed("Loss, difference", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
    )
    table = col.table(found.stalls, columns, "Rank correlation of stall ratio and loss", "stall-ranks")
    return [Paragraph(text), *_known(found.stalls, "storage", *_stall_chart(found), table)]


def _counterexample(row: col.Row) -> Cell:
    if col.missing(row["more"]):
        return "pending" if row["missing"] else "no such pair"
    return col.arm_link(row["arm"], row["more"])


def _stall_chart(found: StepRuleComparator) -> list[Block]:
    ranked, arms = found.stalls[found.stalls["missing"] == ""], found.arms
    arms = arms[arms["study"].isin(["formats", "storage"]) & arms["format"].isin(ranked["format"])]
    names = ["format", "rule", "storage", "rounding", "stall_ratio", "val_loss", "arm"]
    data = charts.finite_rows(arms[names], "stall_ratio", "val_loss")
    if data.empty:
        return []
    ranks = "; ".join(f"{row.format} {row.spearman:+.2f}" for row in ranked.itertuples())
    pairs = ranked.loc[ranked["more"].notna(), ["arm", "against"]].itertuples(index=False, name=None)
    chart = charts.scatter(
        "stall",
        "Stall ratio and loss: a point an arm",
        f"Colours are formats, markers step rules. Spearman's rho: {ranks}. Dashed lines join the counterexamples.",
        data,
        {"stall_ratio": "stall ratio (mean over seeds)", "val_loss": "final validation loss (nats a character)"},
        "format",
        STYLES,
        pairs,
    )
    return [ChartBlock(chart)]


# What it means


def _derivation(benchmarks: Path) -> list[Block]:
    first = Md(
        "Let w be a weight on the grid, S(w) the spacing of the grid there (one ulp, the tensor's scale and the "
        "subnormal range included) and c its code coordinate, dc = dw / S. By the chain rule dL/dc = S · g, so SGD in "
        "code space is dw = -lr · S² · g: S enters squared. Adam divides by the size of its gradients, so Adam in code "
        "space is dw = -lr · S · u′ with Adam's direction u′: a step is a number of ulps. That is S on the update."
    )
    second = Md(
        "The classical stiffness preconditioning multiplies the gradient by S before the moments and then steps in "
        "real space. That is half of the chain rule, and Adam's normalisation takes S out again where S does not "
        "change over time: both moments carry it, and it leaves only eps / S in place of eps. What stays of S comes "
        "from weights that change their binade within the moments' memory; the table says how much that is. On a "
        "fixed-point grid (E0M7) S is the same everywhere, and steps in ulps are AdamW with a rate for each tensor."
    )
    return [Paragraph(first), Paragraph(second), *slope_blocks(benchmarks)]


def _negative(found: StepRuleComparator, verdicts: Sequence[Verdict], judged: pd.DataFrame) -> list[Block]:
    asked = {"no": "expected, and not so", "inconclusive": "inconclusive"}
    items: list[Text] = [
        escape(f"{verdict.id}, {asked[verdict.answer]}: {verdict.statement} {verdict.evidence}", 4000)
        for verdict in verdicts
        if verdict.answer in asked
    ]
    for rule, own in judged.groupby("rule", sort=False):
        worse = _shown(own, +1).sort_values("difference", ascending=False)
        listed = "; ".join(
            f"{_format_and_place(row)} ({words.number(row['difference'], sign=True)})"
            for row in worse.to_dict("records")
        )
        text = f"worse than AdamW in {len(worse)} of {len(own)} comparisons{': ' if listed else ''}{listed}"
        items.append(f"{LABELS[str(rule)]}: {text}.")
    items += [
        f"{in_words(arm_of(row))}: {row['n_runs'] - row['n_finished']} of {row['n_runs']} runs did not finish; the arm "
        "is not ranked."
        for row in found.arms.query("n_runs > n_finished").to_dict("records")
    ]
    if not items:
        return [Paragraph("Pending: no pairing of the campaign is recorded yet.")]
    return [Paragraph("What did not work, and what was expected and not found, in full:"), Bullets(tuple(items))]


def _changes(pairings: pd.DataFrame) -> Bullets:
    items: list[Text] = [
        Md(
            "A pairing in which steps in ulps end lower, after Holm's adjustment, at a model size or length of its own."
        ),
        "A learning rate schedule under which the rules differ: it was the same in every arm.",
        "A weight decay under which they differ: it was the same number in all arms but those of steps of codes.",
    ]
    own = pairings[(pairings["rule"] == "update") & pairings["sd"].notna()]
    for widest in own.nlargest(1, "sd").to_dict("records"):
        needed = seeds_needed(widest["sd"], SMALLEST_GAP)
        items.append(
            f"More seeds: the largest standard deviation of these pairings of steps in ulps is "
            f"{words.number(widest['sd'], 4)} nats ({in_words(arm_of(widest))}; in tensors that begin mis-scaled it is "
            f"larger); to see {SMALLEST_GAP:g} nats there with 80% power takes "
            f"{'more than 100,000' if needed is None else needed} seeds, and {widest['n_pairs']} were run."
        )
    return Bullets(tuple(items))


def _limits(loader: ExperimentDataLoader, judged: pd.DataFrame, pilots: pd.DataFrame) -> Bullets:
    known = judged if len(judged) else pilots
    items: list[Text] = []
    if len(known):
        config = loader.config(known["arm"].iloc[0])
        width = words.number(((known["high"] - known["low"]) / 2).max())
        items += [
            f"Nothing about larger models or longer runs: these have {config.model.layers} layers of "
            f"{config.model.dim} and {config.max_steps} steps, with formats simulated in float32.",
            Md(
                'Equality, from an interval that holds zero: "equivalent" is said only where two one-sided tests '
                f"put the difference within {MARGIN:g} nats; the widest half-width of these pairings is {width} "
                "nats, and wider where tensors begin mis-scaled."
            ),
        ]
    items += [
        Md(
            "Nothing about time: a step in ulps costs more than AdamW's (the benchmark page of training has the "
            "figures), and the arms are compared by steps."
        ),
        Md("Nothing about other optimizers: all rules here are Adam's direction with another step."),
    ]
    if judged.empty:
        items.append(
            Md(
                "No control without quantization is recorded yet, so a difference cannot be attributed to the format's "
                "geometry alone, and nothing about weights stored on the grid."
            )
        )
    others = [loader.config(arm).optimizer.other_learning_rate for arm in pilots["arm"]]
    rates = set(zip(others, pilots["adamw_learning_rate"], strict=True))
    if unequal := sorted(f"{own:g} against {rival:g}" for own, rival in rates if own is not None and own != rival):
        items.append(
            "In the earlier runs, what is not quantized (norms and positions) was trained by AdamW at another rate "
            f"beside ManifoldAdamW than in the AdamW arms: {', '.join(unequal)}. Their difference holds this too."
        )
    return Bullets(tuple(items))


def _related() -> list[Block]:
    works = {
        "Madam (arXiv 2006.14560)": "multiplicative updates of weights kept in a logarithmic format",
        "LNS-Madam (arXiv 2106.13914)": "the same, for training in a logarithmic number system",
        "Stochastic rounding (arXiv 2010.06192)": "of weights kept in low precision",
        "ECO (arXiv 2601.22101)": "the rounding error fed back through the momentum: error feedback",
    }
    text = "Steps in ulps are close relatives of Madam and LNS-Madam; no novelty is claimed for any rule on this page."
    items = (
        md("{link}: {what}.", link=Link(title, f"https://arxiv.org/abs/{title[-11:-1]}"), what=what)
        for title, what in works.items()
    )
    return [Paragraph(text), Bullets(tuple(items))]


# What else is recorded


def _short(rule: str) -> str:
    """What S is put on, and what is not the default: "update", "update, S shuffled"."""
    return rule.removeprefix("ManifoldAdamW (").replace(")", "", 1)


def _pilot_answer(paired: pd.DataFrame) -> Md:
    """The answer from what is recorded while the campaign's studies are not."""
    better, worse, total = len(_shown(paired, -1)), len(_shown(paired, +1)), len(paired)
    if better and worse:
        verdict = f"mixed: lower loss in {better}, higher in {worse} of {total} pairings"
    elif better:
        verdict = f"lower loss in {better} of {total} pairings, higher in none"
    elif worse:
        verdict = f"no gain seen: higher loss in {worse} of {total} pairings, lower in none"
    else:
        verdict = f"inconclusive: in none of {total} comparisons is a difference shown"
    ordered = paired.sort_values(["difference", "format"]).to_dict("records")
    named = [f"{row['format']} with S on the {_short(row['rule'])}" for row in ordered]
    best, worst = (escape(_figures(named[end], ordered[end])) for end in (0, -1))
    return Md(
        f"**ManifoldAdamW against AdamW: {verdict}** (paired tests, Holm-adjusted over the pairings, level {ALPHA}). "
        f"The most favourable pairing is {best}, the least favourable {worst}."
    )


def _pilot_chart(paired: pd.DataFrame) -> ChartBlock:
    data = paired[["format", "rule", "n_pairs", "difference", "low", "high", "arm", "adamw_arm"]].reset_index(drop=True)
    chart = charts.forest(
        "loss-difference",
        "ManifoldAdamW's loss minus AdamW's, same format and seeds",
        "Mean paired difference of the final validation loss with 95% t interval; below zero is better.",
        data,
        list(data["format"] + " " + data["rule"]),
        "loss minus AdamW's (nats a character)",
        [PALETTE[rule] for rule in pd.factorize(data["rule"])[0] % len(PALETTE)],
    )
    return ChartBlock(chart)


def _others(loader: ExperimentDataLoader, others: Sequence[pd.DataFrame]) -> list[Block]:
    """Every other pairing among the records, folded away."""
    if not others:
        return []
    text = (
        "Pairings outside of the campaign's studies take no part in the tests above. An arm whose runs did not all "
        "finish, or with fewer than two pairs, has no adjusted p."
    )
    blocks: list[Block] = [Heading("Other recorded pairings"), Paragraph(text)]
    for position, part in enumerate(others, start=1):
        title = f"{_setting(loader, part)}, {part['max_steps'].iloc[0]} steps, up to {part['n_pairs'].max()} pairs"
        blocks.append(Details(title, (_results(part, "step-rules" if position == 1 else f"step-rules-{position}"),)))
    return blocks


def _setting(loader: ExperimentDataLoader, table: pd.DataFrame) -> str:
    """The studies, what is quantized, and how the weights are stored."""
    found = loader.runs[loader.runs["arm"].isin(table["arm"])]
    runs, studies = found.iloc[0], ", ".join(sorted(name or "no study" for name in found["study"].unique()))
    kept = "on the grid" if runs["storage"] == "grid" else "float32 weights"
    return f"{studies}: {runs['scope']}; {kept}, rounded {runs['rounding'].replace('_', ' ')}"


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
        col.of("S on", lambda row: col.arm_link(row["arm"], _short(row["rule"]))),
        col.signed("Difference to AdamW", "difference"),
        col.interval(),
        col.count("Seeds", "n_pairs"),
        col.p("p (Holm)", "p_holm"),
        col.number("Validation loss", "val_loss"),
        col.of("Rate (AdamW's)", rates, right=True),
        col.of("Stall ratio (AdamW's)", stalls, right=True),
        col.share(),
    )
    caption = "ManifoldAdamW minus AdamW in final validation loss, nats a character, paired by seed"
    return col.table(table, columns, caption, identity)
