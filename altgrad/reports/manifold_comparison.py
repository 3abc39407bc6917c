"""Report ANAL-03: what a step rule that knows the format's grid brings over AdamW, paired by seed, with controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import format_order
from altgrad.analysis.contrasts import missing, named_family, shown
from altgrad.analysis.hypotheses import STIFFNESS, Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, MARGIN, SMALLEST_GAP, seeds_needed
from altgrad.analysis.step_rules import StepRuleComparator, arm_of, in_words
from altgrad.config import OptimizerConfig
from altgrad.pages import (
    FOREGROUND,
    MUTED,
    PALETTE,
    Block,
    Bullets,
    Cell,
    Chart,
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
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.measured import RECORDED
from altgrad.reports.pending import hypothesis_pending, larger, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line, scope_line
from altgrad.reports.step_slopes import slope_blocks
from altgrad.reports.verdicts import hypothesis
from altgrad.studies import ARMS, PLACES, RULE_FORMATS, RULES, SEEDS, adamw_arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/manifold_comparison"
COLOURS = dict(zip(("update", "gradient", "relative", "code", "adamw"), PALETTE, strict=False))
MARKERS = {"update": "o", "gradient": "s", "relative": "^", "code": "D", "adamw": "X"}
UNITS = {"update": "ulps", "shuffled": "ulps", "constant": "ulps", "code": "codes", "relative": "of the tensor's rms"}
"""Of a learning rate; AdamW's and the gradient precondition's is in the unit of the weights."""
TUNED_WITHIN = 0.5
"""Nats above an arm's best that the chart of sweeps shows."""


def manifold_comparison_page(
    loader: ExperimentDataLoader, built: datetime | None = None, benchmarks: Path = RECORDED
) -> Page:
    """The page, from the records of `loader` and the slopes in `benchmarks`; what is not recorded is pending."""
    found = loader.once(StepRuleComparator)
    verdicts = verdicts_of(loader, *(f"H{number}" for number in range(6, 15)))
    pairings = found.pairings
    judged = pairings[pairings["difference"].notna()]
    others = [part for part in found.experiments if _outside(loader, part)]
    pilot = others[0][others[0]["counts"]] if others else found.table.iloc[:0]
    blocks: list[Block] = [
        Paragraph(Md("*Does an optimizer that knows the format's geometry reach a lower loss?* (ANAL-03)")),
        data_line(loader),
        *left_out(loader),
        Heading("Executive Summary"),
        *_summary(loader, found, verdicts, judged, pilot),
        Heading("The stiffness-preconditioning hypothesis"),
        *_hypothesis(judged, pilot),
    ]
    if loader.runs.empty:
        blocks += pending("No runs are recorded.", ["tuning", "formats", "storage", "controls"])
    else:
        blocks += [
            Heading("The arms"),
            *_arms(found),
            Heading("Equal tuning"),
            *_tuning(loader, found),
            Heading("Step rules against AdamW"),
            *_pairings(pairings),
            Heading("Storage and rounding"),
            *_roundings(found),
            Heading("Controls"),
            *_controls(found),
            Heading("Does the stall ratio rank?"),
            *_stalls(found),
            Heading("Why: Adam in code space"),
            *_derivation(benchmarks),
            Heading("Negative results"),
            *_negative(found, verdicts),
            Heading("What would change this answer"),
            *_changes(pairings),
            *larger(loader, "storage"),
            Heading("What cannot be concluded"),
            Bullets(_limits(loader, judged, pilot)),
            *machine_blocks(loader, _comparisons(found)),
            Heading("Related work"),
            *_related(),
            *_others(loader, others),
        ]
    arms = {str(arm) for part in others for arm in (*part["arm"], *part["adamw_arm"].dropna())}
    arms |= {str(arm) for frame in (found.arms, found.sweeps) for arm in frame["arm"].dropna()}
    return Page(
        PATH,
        "Manifold comparison",
        (*blocks, *traceability(loader, arms)),
        description="ManifoldAdamW and steps of codes against AdamW, paired by seed, with controls and intervals.",
        provenance=provenance(loader, built),
    )


def _comparisons(found: StepRuleComparator) -> list[tuple[str, str, str]]:
    """Every pair of the campaign's arms that the page compares."""
    frames = (found.pairings, found.roundings, found.controls)
    return [
        (f"{in_words(arm_of(row))}: {row['contrast']}" if frame is not found.pairings else row["contrast"], row["arm"],
         row["against"])
        for frame in frames
        for row in frame.to_dict("records")
        if row["arm"] and row["against"]
    ]  # fmt: skip


def _outside(loader: ExperimentDataLoader, part: pd.DataFrame) -> bool:
    """Whether the pairings of an experiment are none of the campaign's."""
    studies = loader.runs.loc[loader.runs["arm"].isin(part["arm"]), "study"]
    return not set(studies) & {"formats", "storage", "controls"}


def _known(frame: pd.DataFrame, study: str, *blocks: Block) -> list[Block]:
    """What a table shows, after the box that says which of its runs are missing; the box alone where all rows are."""
    faults = list(dict.fromkeys(text for text in frame["missing"] if text))
    if not faults:
        return [*blocks]
    more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
    box = pending_note(" ".join(faults[:3]) + more, ["tuning", "formats", study])
    return [box] if frame["missing"].astype(bool).all() else [box, *blocks]


# The answer


def _summary(
    loader: ExperimentDataLoader,
    found: StepRuleComparator,
    verdicts: Sequence[Verdict],
    judged: pd.DataFrame,
    pilot: pd.DataFrame,
) -> list[Block]:
    by_id = {verdict.id: verdict for verdict in verdicts}
    blocks: list[Block]
    if by_id["H8"].answer != "pending":
        blocks = [
            Paragraph(_answer(by_id["H8"], judged)),
            *_scope(loader, found),
            *_disclosed(loader, found),
            *_charts(judged),
        ]
    elif len(pilot):
        blocks = [
            Paragraph(_pilot_answer(pilot)),
            *pilot(loader, pilot["arm"], int(pilot["n_pairs"].max())),
            ChartBlock(_pilot_chart(pilot)),
        ]
    else:
        reason = "No runs are recorded." if loader.runs.empty else by_id["H8"].evidence
        blocks = [Paragraph(md("**ManifoldAdamW against AdamW: pending.** {reason}", reason=reason))]
    if loader.runs.empty:
        return blocks
    rows = tuple(
        (verdict.id, _whole(verdict.statement), _answered(verdict), _whole(verdict.evidence)) for verdict in verdicts
    )
    columns = ("No.", "Hypothesis", "Answer", "What the runs show")
    written = md(
        "Written down before the campaign's first run, with tests and with what counts as an answer, in the "
        "{preregistration}. The margin of equivalence is {margin:g} nats a character.",
        preregistration=Link("preregistration", PageRef("method/preregistration")),
        margin=MARGIN,
    )
    told = [
        {"id": each.id, "statement": each.statement, "answer": each.answered, "evidence": each.evidence}
        for each in verdicts
    ]
    table = Table(columns, rows, "The preregistered hypotheses", data=pd.DataFrame(told), id="hypotheses")
    return [*blocks, Paragraph(written), table]


def _whole(text: str) -> Md:
    """Our own sentence, however long: a cell would shorten it."""
    return escape(text, 4000)


def _answered(verdict: Verdict) -> Md:
    return Md(verdict.answered if verdict.answer in ("pending", "inconclusive") else f"**{verdict.answered}**")


def _answer(verdict: Verdict, judged: pd.DataFrame) -> Md:
    """Steps in ulps against AdamW, in one bold sentence."""
    own = judged[judged["rule"] == "update"]
    if own.empty:
        return md("**Steps in ulps against AdamW: inconclusive.** {evidence}", evidence=_whole(verdict.evidence))
    better, worse = _shown(own, -1), _shown(own, +1)
    if verdict.answer == "yes":
        tied = int(((own["p_holm"] >= ALPHA) & (own["p_equivalent"] < ALPHA)).sum())
        counts = {"worse": len(worse), "within the margin": tied, "unresolved": len(own) - len(worse) - tied}
        (word, most), *rest = [(word, count) for word, count in counts.items() if count]
        lead = ", ".join([f"{word} in {most} of {len(own)} comparisons", *(f"{word} in {n}" for word, n in rest)])
        lead = f"No. Steps in ulps (ManifoldAdamW) never beat AdamW: {lead}."
    elif len(better):
        lead = f"Steps in ulps (ManifoldAdamW) beat AdamW in {len(better)} of {len(own)} comparisons"
        lead += f" and are worse in {len(worse)}."
    else:
        total = int(verdict.tests["contrast"].count())
        lead = (
            f"Inconclusive: {total - len(own)} of {total} comparisons of steps in ulps (ManifoldAdamW) with AdamW have "
        )
        lead += "runs that did not finish."
    ordered = own.sort_values(["difference", "format", "storage", "rounding"])
    relative = judged[judged["rule"] == "relative"]
    helps = _shown(relative, -1)
    other = md(
        " AdamW with a rate relative to the tensor, which knows no format, beats plain AdamW in {some} of {all} "
        "comparisons, by up to {most} nats.",
        some=len(helps),
        all=len(relative),
        most=words.number(-float(helps["difference"].min())),
    )
    return md(
        "**{lead} At best, with {best}.** At worst, with {worst}. Each arm has its tuned rate; sign-flip permutation "
        "tests, Holm-adjusted, level {alpha}.{other}",
        other=other if len(helps) else Md(""),
        lead=lead,
        best=_figures(ordered.iloc[0]),
        worst=_figures(ordered.iloc[-1]),
        alpha=ALPHA,
    )


def _format_and_place(row: Mapping[Any, Any]) -> str:
    return f"{row['format']}, {PLACES[arm_of(row).place].label}"


def _figures(row: pd.Series) -> str:
    arm = arm_of(row)
    return (
        f"{arm.format} ({PLACES[arm.place].label}), {words.number(row['difference'], sign=True)} nats a character "
        f"(95% interval {words.interval(row['low'], row['high'])}, n = {row['n_pairs']} seeds)"
    )


def _shown(rows: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The rows whose difference is shown to have the sign."""
    return rows[(rows["difference"] * sign > 0) & (rows["p_holm"] < ALPHA)]


def _scope(loader: ExperimentDataLoader, found: StepRuleComparator) -> list[Block]:
    arms = [arm for row in found.pairings.to_dict("records") if (arm := row["arm"])]
    return [Paragraph(scope_line(loader, arms[0]))] if arms else []


def _disclosed(loader: ExperimentDataLoader, found: StepRuleComparator) -> list[Block]:
    """What stands beside the answer: a stronger baseline, rates that tuning missed, a weight decay that differs."""
    items = []
    free = found.controls.query("group == 'no quantization' and contrast == 'FP32' and rule == 'relative'")
    for row in _shown(free, -1).to_dict("records"):
        items.append(
            md(
                "AdamW is not the strongest baseline: without quantization a rate relative to the tensor ends {less} "
                "nats below it (95% interval {interval}, n = {n}, p {p}).",
                less=words.number(-row["difference"], 4),
                interval=words.interval(row["low"], row["high"], 4),
                n=int(row["n_pairs"]),
                p=words.p_text(row["p_holm"]),
            )
        )
    items += [md("{note}.", note=f"{note[0].upper()}{note[1:]}") for note in _better_untuned(loader, found)]
    if decays := _decays(found):
        items.append(
            md(
                "Weight decay is not the same in every arm: {decays}. Whether steps of codes lose by their steps or by "
                "that is not shown (H10).",
                decays=decays,
            )
        )
    return [Bullets(tuple(items))] if items else []


def _decays(found: StepRuleComparator) -> str:
    """The weight decay of the step rules in words; "" where all have the same."""
    recorded = found.arms.loc[found.arms["n_runs"] > 0, "rule"]
    decays = {rule: RULES[rule].settings.get("weight_decay", OptimizerConfig().weight_decay) for rule in recorded}
    usual = max(decays.values(), key=list(decays.values()).count, default=0.0)
    odd = [f"{decay:g} in {RULES[rule].label.lower()}" for rule, decay in decays.items() if decay != usual]
    return f"{words.names(odd)}, {usual:g} in every other rule" if odd else ""


def _charts(judged: pd.DataFrame) -> list[Block]:
    """The paired differences, as a forest of intervals: a line a format and place, a colour a rule."""
    names = ["format", "rule", "storage", "rounding", "n_pairs", "difference", "low", "high", "arm", "against"]
    data = charts.finite_rows(judged[names], "difference", "low", "high")
    if data.empty:
        return []
    data_arms = [arm_of(row | {"misscaled": False}) for row in data.to_dict("records")]
    lines = [(arm.format, arm.place) for arm in data_arms]
    order = sorted(set(lines), key=lambda line: (RULE_FORMATS.index(line[0]), list(PLACES).index(line[1])))
    rules = [rule for rule in COLOURS if (data["rule"] == rule).any()]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=FOREGROUND, linewidth=1)
        axes.annotate("AdamW", (0, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                      ha="center", color=MUTED)  # fmt: skip
        for number, rule in enumerate(rules):
            own = data[data["rule"] == rule]
            shift = 0.16 * (number - (len(rules) - 1) / 2)
            places = [order.index(lines[row]) + shift for row in own.index]
            axes.hlines(places, own["low"], own["high"], color=COLOURS[rule], linewidth=1.6)
            axes.plot(
                own["difference"], places, MARKERS[rule], color=COLOURS[rule], markersize=4, label=RULES[rule].label
            )
        axes.set_yticks(range(len(order)), [f"{fmt}  {PLACES[place].label}" for fmt, place in order], color=FOREGROUND)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("loss minus AdamW's, all else equal (nats a character)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.04), ncols=min(len(rules), 2), frameon=False)

    best = data.loc[data["difference"].idxmin()]
    worst = data.loc[data["difference"].idxmax()]
    told = "; ".join(
        f"{word}: {in_words(arm_of(row | {'misscaled': False}))} {row['difference']:+.3f} "
        f"{words.interval(row['low'], row['high'])}"
        for word, row in (("lowest", best.to_dict()), ("highest", worst.to_dict()))
    )
    chart = Chart(
        "loss-difference",
        "Loss minus AdamW's, each arm at its tuned rate",
        f"Mean paired difference of the final validation loss with 95% t interval; left of zero is better. "
        f"{len(data)} pairings; {told}.",
        data,
        draw,
        height=0.34 * len(order) + 1.4,
        margins=(2.2, 0.15, 0.5, 0.75),
    )
    return [ChartBlock(chart)]


def _hypothesis(judged: pd.DataFrame, pilot: pd.DataFrame) -> list[Block]:
    known = judged if len(judged) else pilot.assign(rule=[_short(rule) for rule in pilot["rule"]])
    if known.empty:
        return [Paragraph(hypothesis_pending("No pair of a ManifoldAdamW and an AdamW arm is recorded."))]
    rows = []
    for key, text in STIFFNESS.predictions.items():
        rule, measure = key.split("_")
        low, high = ("stall_low", "stall_high") if measure == "stall" else ("low", "high")
        own = known[known["rule"] == rule].dropna(subset=[low])
        if own.empty:
            rows.append((text, "not decided", "no pairs recorded"))
            continue
        below, above = own[own[high] < 0], own[own[low] > 0]
        outcome = "held" if len(below) == len(own) else "held in part"
        if len(below) <= len(above):
            outcome = "did not hold"
        if below.empty and above.empty:
            outcome = "not decided"
        recorded = (
            f"{'stall ratio' if measure == 'stall' else 'loss'} interval below AdamW's in {len(below)}, above in "
            f"{len(above)}, around zero in {len(own) - len(below) - len(above)} of {len(own)} pairings"
        )
        rows.append((text, outcome, recorded))
    return [
        Paragraph(hypothesis(STIFFNESS)),
        Table(("Prediction", "Outcome", "Recorded"), tuple(rows), "The hypothesis against what happened"),
    ]


# What was compared


def _arms(found: StepRuleComparator) -> list[Block]:
    frame = found.arms
    table = frame[frame["study"].isin(["formats", "storage"]) & (frame["format"] != "FP32")]
    known = {arm_of(row).name: row for row in table.to_dict("records")}
    named = {(arm.format, arm.rule, arm.place): row for name, row in known.items() for arm in [ARMS[name]]}
    rows: list[tuple[Cell, ...]] = []
    for rule in ("adamw", "relative", "gradient", "update", "code"):
        for place, choice in PLACES.items():
            arms = [named.get((fmt, rule, place)) for fmt in RULE_FORMATS]
            extra = next((arm["extra_bytes"] for arm in arms if arm), None)
            if extra is None:
                continue
            rows.append((RULES[rule].label, *choice.label.split(", "), extra, *(_arm_cell(arm) for arm in arms)))
    columns: tuple[Column | str, ...] = (
        "Step rule",
        "Storage",
        "Rounding",
        *col.right("Extra bytes a weight", *RULE_FORMATS),
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
    table_block = Table(columns, tuple(rows), caption, data=frame, id="arms")
    return [Paragraph(text), *_known(table, "storage", table_block)]


def _arm_cell(row: dict[str, Any] | None) -> Cell:
    if row is None:
        return None
    if row["missing"]:
        return "pending"
    badly = row["n_runs"] - row["n_finished"]
    return col.arm_link(row["arm"], f"{badly} of {row['n_runs']} not finished" if badly else f"{row['val_loss']:.3f}")


def _tuning(loader: ExperimentDataLoader, found: StepRuleComparator) -> list[Block]:
    sweeps = found.sweeps
    names = ["format", "rule", "storage", "rounding", "misscaled"]
    tuned = {arm_of(row).name for row in sweeps.to_dict("records")}
    wanted = [arm for arm in found.arms.to_dict("records") if arm_of(arm).name not in tuned]
    absent = len(wanted)
    blocks: list[Block] = []
    if absent:
        untuned = [in_words(arm_of(row)) for row in wanted[:3]]
        rest = f" and {absent - 3} more arms" if absent > 3 else ""
        blocks.append(pending_note(f"No tuning run is recorded of {', '.join(untuned)}{rest}.", ["tuning"]))
    if sweeps.empty:
        text = "No tuning study is among the records: whether the learning rates are tuned equally cannot be shown."
        return [Paragraph(text), *blocks]
    rows, notes = [], []
    for _, group in sweeps.groupby(names, sort=False):
        arm, best, used = arm_of(group.iloc[0]), group[group["best"]], group[group["used"]]
        unit = UNITS.get(arm.rule, "")
        badly = int(group["n_ended_badly"].sum())
        at_edge = bool(group["edge"].any())
        other = len(best) and len(used) and not best["used"].any()
        if at_edge:
            notes.append(f"the best rate of {in_words(arm)} lies at the edge of its sweep")
        if other:
            notes.append(f"{in_words(arm)} ran at another rate than the best of its sweep")
        rows.append(
            (
                arm.format,
                RULES[arm.rule].label + (", mis-scaled" if group["misscaled"].iloc[0] else ""),
                PLACES[arm.place].label if arm.format != "FP32" else "–",
                len(group),
                f"{group['learning_rate'].min():g} to {group['learning_rate'].max():g} {unit}".strip(),
                col.arm_link(best["arm"].iloc[0], f"{best['learning_rate'].iloc[0]:g}") if len(best) else None,
                words.number(best["val_loss"].iloc[0]) if len(best) else None,
                "yes" if at_edge else "no",
                "not compared" if used.empty else "no" if other else "yes",
                badly,
            )
        )
    counts = sweeps.groupby(names, sort=False).size()
    seeds = sorted({int(n) for n in sweeps["n"]})
    budget = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    edges = sum(row[7] == "yes" for row in rows)
    text = (
        f"Every arm was tuned over {budget} learning rates, a factor of 2 apart, on "
        f"{' to '.join(map(str, seeds))} held-out seeds that no comparison uses; the lowest mean loss was taken, and a "
        "best rate at the edge extended the sweep. AdamW with master weights was tuned in study pilot-tuning, with the "
        "same rates and seeds. "
        + (f"{edges} of {len(rows)} best rates lie at an edge." if edges else "No best rate lies at an edge.")
    )
    columns: tuple[Column | str, ...] = (
        "Format",
        "Step rule",
        "Storage and rounding",
        *col.right("Rates"),
        "Tried",
        *col.right("Best", "Loss there"),
        "At the edge",
        "Used",
        *col.right("Not finished"),
    )
    remarks = Bullets(tuple(f"{note[0].upper()}{note[1:]}." for note in notes))
    runs = tuple(
        (
            col.arm_link(row["arm"], in_words(arm_of(row))),
            f"{row['learning_rate']:g}",
            words.number(row["val_loss"]) if math.isfinite(row["val_loss"]) else "did not finish",
            int(row["n"]),
            "best" if row["best"] else "",
        )
        for row in sweeps.to_dict("records")
    )
    all_columns: tuple[Column | str, ...] = (
        "Arm",
        *col.right("Learning rate", "Mean validation loss", "Held-out seeds"),
        "",
    )
    return [
        Paragraph(text),
        *blocks,
        *_tuning_chart(sweeps, names),
        Table(columns, tuple(rows), "Equal tuning: the sweep of each arm"),
        *([remarks] if notes else []),
        Details(
            "The tuning runs",
            (Table(all_columns, runs, "All rates that were tried", data=sweeps, id="tuning"),),
        ),
    ]


def _better_untuned(loader: ExperimentDataLoader, found: StepRuleComparator) -> list[str]:
    """Where AdamW, at another rate than that of its sweep, is shown to end lower on the reporting seeds."""
    notes = []
    for fmt in RULE_FORMATS:
        tuned, other = ARMS[adamw_arm(fmt, "master")], ARMS[fmt]
        if tuned is other or missing(loader, [tuned.name, other.name]):
            continue
        (better,) = named_family(loader, [(tuned.name, other.name)]).to_dict("records")
        if not shown(better, +1):
            continue
        (against,) = named_family(loader, [(f"{fmt} update master", other.name)]).to_dict("records")
        notes.append(
            f"two held-out seeds chose the rate {tuned.rate:g} for {fmt} under AdamW with master weights (H8), "
            f"where {other.rate:g} ends {words.number(better['difference'])} nats lower on the reporting seeds "
            f"({words.interval(better['low'], better['high'])}, n = {better['n_pairs']}, p "
            f"{words.p_text(better['p_value'])}); against AdamW at {other.rate:g}, steps in ulps end "
            f"{words.number(against['difference'], sign=True)} {words.interval(against['low'], against['high'])}, "
            f"n = {against['n_pairs']} (not planned)"
        )
    return notes


def _tuning_chart(sweeps: pd.DataFrame, names: list[str]) -> list[Block]:
    parts = []
    for _, group in sweeps.groupby(names, sort=False):
        best = group[group["best"]]
        if len(best) and len(group) > 1:
            above, factor = best["val_loss"].iloc[0], best["learning_rate"].iloc[0]
            parts.append(group.assign(factor=group["learning_rate"] / factor, above=group["val_loss"] - above))
    if not parts:
        return []
    data = pd.concat(parts, ignore_index=True)
    drawn = charts.finite_rows(data, "factor", "above")
    beyond = len(data) - int((drawn["above"] <= TUNED_WITHIN).sum())
    rules = {"shuffled": "update", "constant": "update"}

    def draw(axes: Axes) -> None:
        seen: set[str] = set()
        for _, group in drawn.groupby(names, sort=False):
            rule = rules.get(group["rule"].iloc[0], group["rule"].iloc[0])
            label = None if rule in seen else RULES[rule].label
            seen.add(rule)
            axes.plot(group["factor"], group["above"], "-" + MARKERS[rule], color=COLOURS[rule], markersize=3,
                      linewidth=0.9, alpha=0.75, label=label)  # fmt: skip
        low, high = np.log2(drawn["factor"].min()), np.log2(drawn["factor"].max())
        ticks = [2.0**power for power in range(round(float(low)), round(float(high)) + 1)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
        axes.set_ylim(-0.01, min(TUNED_WITHIN, max(0.02, 1.05 * float(drawn["above"].max()))))
        axes.set_xlabel("learning rate, as a multiple of the arm's best")
        axes.set_ylabel("loss above the arm's best (nats a character)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

    told = f" {beyond} rates are beyond {TUNED_WITHIN:g} nats or did not finish, and not drawn." if beyond else ""
    chart = Chart(
        "sweeps",
        "The sweeps, each around its best rate",
        f"Mean loss over the held-out seeds of {len(parts)} arms by learning rate, as multiples of the best: a line "
        f"an arm, a colour a step rule. A minimum inside says that the rate is tuned.{told}",
        data,
        draw,
        height=4.0,
        margins=(0.7, 0.15, 0.5, 0.6),
    )
    return [ChartBlock(chart)]


# What came out


Head = tuple[tuple[Column | str, ...], Callable[[dict[str, Any]], tuple[Cell, ...]]]
"""The first columns of a table of contrasts, and how a row fills them."""


def _contrasts(frame: pd.DataFrame, head: Head, caption: str, identity: str, stalls: bool = False) -> Table:
    """Rows of contrasts with their interval, adjusted p, TOST and what that says."""
    titles, fill = head
    rows = []
    for row in frame.to_dict("records"):
        figures: tuple[Cell, ...]
        if row["missing"]:
            figures = (None, "pending", None, None, None, "no conclusion")
        elif row["n_ended_badly"]:
            told = f"not judged: {row['n_ended_badly']} runs did not finish"
            figures = (None, "none", 0, None, None, told)
        else:
            figures = (
                words.number(row["difference"], sign=True),
                words.interval(row["low"], row["high"]),
                int(row["n_pairs"]),
                words.p_text(row["p_holm"]),
                words.p_text(row["p_equivalent"]),
                _told(row),
            )
        stall: tuple[Cell, ...] = (words.number(row["stall_difference"], 2, True),) if stalls else ()
        rows.append((*fill(row), *figures[:-1], *stall, figures[-1]))
    columns = (
        *titles,
        *col.right("Difference", "95% interval", "Seeds", "p (Holm)", "p (TOST)"),
        *(col.right("Stall ratio") if stalls else ()),
        "Reading",
    )
    return Table(columns, tuple(rows), caption, data=frame, id=identity)


def _told(row: dict[str, Any]) -> str:
    """What a contrast says, in a word or two; a difference may be shown and lie within the margin."""
    if row["p_holm"] < ALPHA:
        word = "lower" if row["difference"] < 0 else "higher"
        return f"{word}, within the margin" if row["p_equivalent"] < ALPHA else word
    return "equivalent" if row["p_equivalent"] < ALPHA else "unresolved"


def _linked(row: dict[str, Any], text: str) -> Cell:
    return col.arm_link(row["arm"], text) if row["arm"] else text


def _against(row: dict[str, Any], text: str) -> Cell:
    return col.arm_link(row["against"], text) if row["against"] else text


def _pairings(pairings: pd.DataFrame) -> list[Block]:
    head: Head = (
        ("Step rule", "Against AdamW with"),
        lambda row: (
            _linked(row, RULES[row["rule"]].label),
            _against(row, f"{row['format']}, {PLACES[arm_of(row).place].label}"),
        ),
    )
    text = (
        "Final validation loss minus AdamW's with the same format, storage, rounding, seeds and batches; below zero "
        "the rule is better. Holm's adjustment is over the rows of one step rule. The rows of S on the update are the "
        "family of H8, those of steps of codes that of H10; S on the gradient with master weights is H9; the others "
        "are exploratory. The stall ratio is the difference to AdamW's: a positive one says that more proposed steps "
        "leave the stored code as it "
        "was. Steps of codes run without weight decay, which every other rule has (see H10)."
    )
    table = _contrasts(
        pairings, head, "Step rule minus AdamW, nats a character, paired by seed", "pairings", stalls=True
    )
    return [Paragraph(text), *_known(pairings, "storage", table)]


def _roundings(found: StepRuleComparator) -> list[Block]:
    frame = found.roundings
    names = {
        "nearest": "nearest minus stochastic, on the grid",
        "feedback": "error feedback minus stochastic, on the grid",
        "grid": "stochastic on the grid minus master weights",
    }
    head: Head = (
        ("Format", "Step rule", "What changes"),
        lambda row: (row["format"], _linked(row, RULES[row["rule"]].label), _against(row, names[row["contrast"]])),
    )
    text = (
        "What keeping the weights on the grid costs, and what the rounding onto it changes, under one step rule. The "
        "rows of AdamW are the families of H6 (nearest) and H7 (error feedback); the others are exploratory."
    )
    table = _contrasts(frame, head, "Storage and rounding, nats a character, paired by seed", "roundings")
    return [Paragraph(text), *_known(frame, "storage", table)]


def _controls(found: StepRuleComparator) -> list[Block]:
    frame = found.controls
    free, ablation, start = (frame[frame["group"] == name] for name in ("no quantization", "ablation", "mis-scaled"))
    what = {
        "E4M3": "minus AdamW, with E4M3",
        "FP32": "minus AdamW, without quantization",
        "difference": "difference of the two",
    }

    def rule_of(row: dict[str, Any]) -> Cell:
        return _linked(row, RULES[row["rule"]].label)

    free_table = _contrasts(
        free.sort_values(
            "rule", key=lambda column: column.map(["update", "gradient", "relative"].index), kind="stable"
        ),
        (("Step rule", "Contrast"), lambda row: (rule_of(row), what[row["contrast"]])),
        "Each step rule with and without quantization (master weights; S that of E4M3)",
        "no-quantization",
    )
    ablation_table = _contrasts(
        ablation,
        (("Ablation", "Against"), lambda row: (rule_of(row), _against(row, RULES["update"].label))),
        "S shuffled and S constant against S (E4M3, master weights)",
        "ablations",
    )
    start_table = _contrasts(
        start,
        (
            ("Arm", "Against"),
            lambda row: (
                _linked(row, f"{row['format']} {RULES[row['rule']].label}"),
                _against(row, "FP32 AdamW" if row["contrast"] == "E4M3 against FP32" else "E4M3 AdamW"),
            ),
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
    plain = found.pairings[(found.pairings["format"] == "E4M3") & (found.pairings["storage"] == "master")]
    well = {row["rule"]: row for row in plain.to_dict("records") if not math.isnan(row["difference"])}
    items = []
    for row in start.to_dict("records"):
        if row["rule"] not in well or math.isnan(row["difference"]):
            continue
        other = well[row["rule"]]
        items.append(
            md(
                "{rule}: {mis} {mis_interval} against AdamW where tensors begin mis-scaled ({mis_told}), {well} "
                "{well_interval} where they do not ({well_told}); n = {n} and {m} seeds.",
                rule=RULES[row["rule"]].label,
                mis=words.number(row["difference"], sign=True),
                mis_interval=words.interval(row["low"], row["high"]),
                mis_told=_told(row),
                well=words.number(other["difference"], sign=True),
                well_interval=words.interval(other["low"], other["high"]),
                well_told=_told(other),
                n=int(row["n_pairs"]),
                m=int(other["n_pairs"]),
            )
        )
    return [Bullets(tuple(items))] if items else []


def _stalls(found: StepRuleComparator) -> list[Block]:
    stalls = found.stalls
    text = (
        "The stall ratio is 1 - flips / updates over the same elements: the share of proposed steps that leave the "
        "stored code as it was. If fewer stalls meant a lower loss, the arms of one format would lie on a rising line. "
        "A counterexample is a pair of arms whose losses differ (Holm over all pairs of the format's arms), of "
        "which the one that stalls more has the lower loss. AdamW with master weights is among the arms."
    )
    rows: list[tuple[Cell, ...]] = []
    for row in stalls.to_dict("records"):
        if row["missing"]:
            rows.append((row["format"], None, None, "pending", *[None] * 5))
            continue
        start = (row["format"], int(row["n_arms"]), words.number(row["spearman"], 2, sign=True))
        if not isinstance(row["more"], str):
            rows.append((*start, "no such pair", *[None] * 5))
            continue
        rows.append(
            (
                *start,
                col.arm_link(row["arm"], row["more"]),
                col.arm_link(row["against"], row["less"]),
                words.number(row["stall_difference"], 2, sign=True),
                words.number(row["difference"], sign=True),
                words.interval(row["low"], row["high"]),
                int(row["n_pairs"]),
            )
        )
    columns: tuple[Column | str, ...] = (
        "Format",
        *col.right("Arms", "Spearman's rho"),
        "Stalls more, loses less",
        "Against",
        *col.right("Stall ratio, difference", "Loss, difference", "95% interval", "Seeds"),
    )
    table = Table(columns, tuple(rows), "Rank correlation of stall ratio and loss", data=stalls, id="stall-ranks")
    return [Paragraph(text), *_known(stalls, "storage", *_stall_chart(found), table)]


def _stall_chart(found: StepRuleComparator) -> list[Block]:
    ranked = found.stalls[found.stalls["missing"] == ""]
    arms = found.arms
    arms = arms[arms["study"].isin(["formats", "storage"]) & arms["format"].isin(ranked["format"])]
    data = charts.finite_rows(
        arms[["format", "rule", "storage", "rounding", "stall_ratio", "val_loss", "arm"]], "stall_ratio", "val_loss"
    )
    if data.empty:
        return []
    pairs = ranked[ranked["more"].notna()]
    places = {row["arm"]: (row["stall_ratio"], row["val_loss"]) for row in data.to_dict("records")}

    def draw(axes: Axes) -> None:
        for _, pair in pairs.iterrows():
            ends = [places[pair["arm"]], places[pair["against"]]]
            axes.plot(*zip(*ends, strict=True), "--", color=MUTED, linewidth=1)
        for number, (fmt, group) in enumerate(data.groupby("format", sort=False)):
            for rule, own in group.groupby("rule"):
                axes.plot(own["stall_ratio"], own["val_loss"], MARKERS[str(rule)], color=PALETTE[number], markersize=5)
            axes.plot([], [], "o", color=PALETTE[number], label=str(fmt))
        for rule in dict.fromkeys(data["rule"]):
            axes.plot([], [], MARKERS[rule], color=MUTED, label=RULES[rule].label)
        axes.set_xlabel("stall ratio (mean over seeds)")
        axes.set_ylabel("final validation loss (nats a character)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, columnspacing=1)

    ranks = "; ".join(f"{row['format']} {row['spearman']:+.2f}" for row in ranked.to_dict("records"))
    chart = Chart(
        "stall",
        "Stall ratio and loss: a point an arm",
        f"Colours are formats, markers step rules. Spearman's rho: {ranks}. Dashed lines join the counterexamples.",
        data,
        draw,
        height=4.4,
        margins=(0.7, 0.15, 0.5, 0.6),
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


def _negative(found: StepRuleComparator, verdicts: Sequence[Verdict]) -> list[Block]:
    items: list[Md] = []
    for verdict in verdicts:
        if verdict.answer in ("no", "inconclusive"):
            word = "expected, and not so" if verdict.answer == "no" else "inconclusive"
            items.append(
                md(
                    "{id}, {word}: {statement} {evidence}",
                    id=verdict.id,
                    word=word,
                    statement=verdict.statement,
                    evidence=_whole(verdict.evidence),
                )
            )
    frame = found.pairings
    for rule, own in frame[frame["difference"].notna()].groupby("rule", sort=False):
        worse = _shown(own, +1)
        listed = [
            f"{row['format']}, {PLACES[arm_of(row).place].label} ({words.number(row['difference'], sign=True)})"
            for row in worse.sort_values("difference", ascending=False).to_dict("records")
        ]
        text = f"worse than AdamW in {len(worse)} of {len(own)} comparisons{': ' if listed else ''}"
        items.append(md("{rule}: {text}.", rule=RULES[str(rule)].label, text=text + "; ".join(listed)))
    badly = [row for row in found.arms.to_dict("records") if row["n_runs"] > row["n_finished"]]
    items += [
        md(
            "{arm}: {badly} of {n} runs did not finish; the arm is not ranked.",
            arm=in_words(arm_of(row)),
            badly=row["n_runs"] - row["n_finished"],
            n=row["n_runs"],
        )
        for row in badly
    ]
    if not items:
        return [Paragraph("Pending: no pairing of the campaign is recorded yet.")]
    return [Paragraph("What did not work, and what was expected and not found, in full:"), Bullets(tuple(items))]


def _changes(pairings: pd.DataFrame) -> list[Block]:
    own = pairings[(pairings["rule"] == "update") & pairings["sd"].notna()]
    items = [
        Md(
            "A pairing in which steps in ulps end lower, after Holm's adjustment, at a model size or length of its own."
        ),
        Md("A learning rate schedule under which the rules differ: it was the same in every arm."),
        Md("A weight decay under which they differ: it was the same number in all arms but those of steps of codes."),
    ]
    if len(own):
        widest = own.loc[own["sd"].astype("float64").idxmax()]
        needed = seeds_needed(float(widest["sd"]), SMALLEST_GAP)
        items.append(
            md(
                "More seeds: the largest standard deviation of these pairings of steps in ulps is {sd} nats ({arm}; "
                "in tensors that begin mis-scaled it is larger); to see "
                "{gap:g} nats there with 80% power takes {needed} seeds, and {n} were run.",
                sd=words.number(float(widest["sd"]), 4),
                arm=in_words(arm_of(widest)),
                gap=SMALLEST_GAP,
                needed="more than 100,000" if needed is None else needed,
                n=int(widest["n_pairs"]),
            )
        )
    return [Bullets(tuple(items))]


def _limits(loader: ExperimentDataLoader, judged: pd.DataFrame, pilot: pd.DataFrame) -> tuple[Md, ...]:
    known = judged if len(judged) else pilot
    items: list[Md] = []
    if len(known):
        config = loader.config(known["arm"].iloc[0])
        items.append(
            md(
                "Nothing about larger models or longer runs: these have {layers} layers of {dim} and {steps} steps, "
                "with formats simulated in float32.",
                layers=config.model.layers,
                dim=config.model.dim,
                steps=config.max_steps,
            )
        )
        items.append(
            md(
                'Equality, from an interval that holds zero: "equivalent" is said only where two one-sided tests '
                "put the difference within {margin:g} nats; the widest half-width of these pairings is {width} "
                "nats, and wider where tensors begin mis-scaled.",
                margin=MARGIN,
                width=words.number(float(((known["high"] - known["low"]) / 2).max())),
            )
        )
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
    others = {
        (loader.config(row["arm"]).optimizer.other_learning_rate, row["adamw_learning_rate"])
        for row in pilot.to_dict("records")
    }
    unequal = sorted({f"{own:g} against {rival:g}" for own, rival in others if own is not None and own != rival})
    if unequal:
        items.append(
            md(
                "In the earlier runs, what is not quantized (norms and positions) was trained by AdamW at another rate "
                "beside ManifoldAdamW than in the AdamW arms: {rates}. Their difference holds this too.",
                rates=", ".join(unequal),
            )
        )
    return tuple(items)


def _related() -> list[Block]:
    works = (
        ("Madam (arXiv 2006.14560)", "2006.14560", "multiplicative updates of weights kept in a logarithmic format"),
        ("LNS-Madam (arXiv 2106.13914)", "2106.13914", "the same, for training in a logarithmic number system"),
        ("Stochastic rounding (arXiv 2010.06192)", "2010.06192", "of weights kept in low precision"),
        ("ECO (arXiv 2601.22101)", "2601.22101", "the rounding error fed back through the momentum: error feedback"),
    )
    text = "Steps in ulps are close relatives of Madam and LNS-Madam; no novelty is claimed for any rule on this page."
    items = tuple(
        md("{link}: {what}.", link=Link(title, f"https://arxiv.org/abs/{number}"), what=what)
        for title, number, what in works
    )
    return [Paragraph(text), Bullets(items)]


# What else is recorded


def _short(rule: str) -> str:
    """What S is put on, and what is not the default: "update", "update, S shuffled"."""
    return rule.removeprefix("ManifoldAdamW (").replace(")", "", 1)


def _pilot_answer(paired: pd.DataFrame) -> Md:
    """The answer from what is recorded while the campaign's studies are not."""
    better, worse = _shown(paired, -1), _shown(paired, +1)
    if len(better) and not len(worse):
        verdict = f"lower loss in {len(better)} of {len(paired)} pairings, higher in none"
    elif len(worse) and not len(better):
        verdict = f"no gain seen: higher loss in {len(worse)} of {len(paired)} pairings, lower in none"
    elif len(worse):
        verdict = f"mixed: lower loss in {len(better)}, higher in {len(worse)} of {len(paired)} pairings"
    else:
        verdict = f"inconclusive: in none of {len(paired)} comparisons is a difference shown"
    ordered = paired.sort_values(["difference", "format"])
    return md(
        "**ManifoldAdamW against AdamW: {verdict}** (paired tests, Holm-adjusted over the pairings, level {alpha}). "
        "The most favourable pairing is {best}, the least favourable {worst}.",
        verdict=verdict,
        alpha=ALPHA,
        best=_pilot_pairing(ordered.iloc[0]),
        worst=_pilot_pairing(ordered.iloc[-1]),
    )


def _pilot_pairing(row: pd.Series) -> str:
    return (
        f"{row['format']} with S on the {_short(row['rule'])}, "
        f"{words.number(row['difference'], sign=True)} nats a character "
        f"(95% interval {words.interval(row['low'], row['high'])}, n = {row['n_pairs']} seeds)"
    )


def _pilot_chart(paired: pd.DataFrame) -> Chart:
    data = paired[["format", "rule", "n_pairs", "difference", "low", "high", "arm", "adamw_arm"]].reset_index(drop=True)
    labels = sorted(data["format"].unique(), key=format_order)
    rules = list(dict.fromkeys(data["rule"]))

    def draw(axes: Axes) -> None:
        charts.reference_line(axes, "AdamW")
        for number, rule in enumerate(rules):
            group = data[data["rule"] == rule]
            colour = PALETTE[number % len(PALETTE)]
            places = [labels.index(name) + 0.2 * (number - (len(rules) - 1) / 2) for name in group["format"]]
            axes.vlines(places, group["low"], group["high"], color=colour, linewidth=2)
            axes.plot(places, group["difference"], "os^D"[number % 4], color=colour, markersize=6, label=f"{rule}")
        axes.set_xticks(range(len(labels)), labels, color=FOREGROUND)
        axes.set_xlim(-0.5, len(labels) - 0.4)
        axes.set_ylabel("loss minus AdamW's (nats a character)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=FOREGROUND)

    listed = "; ".join(
        f"{row.format} {row.rule} {row.difference:+.3f} {words.interval(row.low, row.high)}"
        for row in data.itertuples()
    )
    return Chart(
        "loss-difference",
        "ManifoldAdamW's loss minus AdamW's, same format and seeds",
        f"Mean paired difference of the final validation loss with 95% t interval; below zero is better. {listed}.",
        data,
        draw,
    )


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
    columns: tuple[Column | str, ...] = (
        "Format",
        Column("S on"),
        *col.right(
            "Difference to AdamW",
            "95% interval",
            "Seeds",
            "p (Holm)",
            "Validation loss",
            "Rate (AdamW's)",
            "Stall ratio (AdamW's)",
            "Finished",
        ),
    )
    rows = []
    for row in table.to_dict("records"):
        rival = row["adamw_arm"] if isinstance(row["adamw_arm"], str) else None
        rows.append(
            (
                row["format"],
                col.arm_link(row["arm"], _short(row["rule"])),
                words.number(row["difference"], sign=True),
                words.interval(row["low"], row["high"]),
                int(row["n_pairs"]),
                words.p_text(row["p_holm"]),
                words.number(row["val_loss"]),
                md(
                    "{rate} ({adamw})",
                    rate=f"{row['learning_rate']:g}",
                    adamw=col.arm_link(rival, f"{row['adamw_learning_rate']:g}") if rival else "no AdamW arm",
                ),
                f"{words.percent(row['stall_ratio'])} ({words.percent(row['adamw_stall_ratio'])})",
                f"{row['n_finished']} of {row['n_runs']}",
            )
        )
    caption = "ManifoldAdamW minus AdamW in final validation loss, nats a character, paired by seed"
    return Table(columns, tuple(rows), caption, data=table, id=identity)
