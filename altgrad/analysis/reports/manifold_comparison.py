"""Report ANAL-03: what ManifoldAdamW brings over AdamW on the same problem, paired by seed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pandas as pd

from altgrad.analysis.comparison import format_order
from altgrad.analysis.hypotheses import STIFFNESS
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.reports import common
from altgrad.analysis.statistics import ALPHA
from altgrad.analysis.step_rules import StepRuleComparator
from altgrad.pages import (
    FOREGROUND,
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Page,
    Paragraph,
    Table,
    md,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = "reports/manifold_comparison"
RULES = {"update": "ManifoldAdamW (update)", "gradient": "ManifoldAdamW (gradient)"}
_STYLES = {"ManifoldAdamW (update)": (PALETTE[0], "o", -0.12), "ManifoldAdamW (gradient)": (PALETTE[1], "s", 0.12)}


def _short(rule: str) -> str:
    """What S is put on, and what is not the default: "update", "update, S shuffled"."""
    return rule.removeprefix("ManifoldAdamW (").replace(")", "", 1)


def manifold_comparison_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; "Pending Experiments" where no ManifoldAdamW run has an AdamW partner."""
    experiments = StepRuleComparator(loader).experiments
    table = experiments[0] if experiments else StepRuleComparator(loader).table
    paired = table[table["counts"]]
    blocks: list[Block] = [
        Paragraph(Md("*Does an optimizer that knows the format's geometry reach a lower loss?* (ANAL-03)")),
        common.data_line(loader),
        *common.left_out(loader),
        Heading("Executive Summary"),
    ]
    if paired.empty:
        blocks.append(
            Paragraph(Md("**ManifoldAdamW against AdamW: pending.** No two recorded arms can be paired yet."))
        )
    else:
        blocks += [
            Paragraph(_answer(paired)),
            *common.pilot(loader, paired["arm"], int(paired["n_pairs"].max())),
            ChartBlock(_difference_chart(paired)),
        ]
    blocks += [Heading("The stiffness-preconditioning hypothesis"), *_hypothesis(paired)]
    if len(table):
        units = (
            "With S on the update a step is measured in ulps, and so is its learning rate. Losses: deployed weights."
        )
        results = _results(table, "step-rules")
        blocks += [Heading("ManifoldAdamW against AdamW"), results, Paragraph(units), *_tuning(loader, table)]
    for position, other in enumerate(experiments[1:], start=2):
        title = (
            f"Another setting: {_setting(loader, other)}, {other['max_steps'].iloc[0]} steps, up to "
            f"{other['n_pairs'].max()} pairs"
        )
        blocks.append(Details(title, (_results(other, f"step-rules-{position}"),)))
    if paired.empty:
        missing = (
            "No runs are recorded."
            if loader.runs.empty
            else "No ManifoldAdamW arm, with every run finished, shares two seeds with an AdamW arm of the same "
            "problem."
        )
        blocks += common.pending(missing, ["pilot-tuning", "pilot-formats", "pilot-manifold"])
    else:
        blocks += [
            Heading("Analysis"),
            *_analysis(paired),
            Heading("What cannot be concluded"),
            Bullets(_limits(loader, table, paired)),
        ]
    arms = [arm for part in experiments for arm in (*part["arm"], *part["adamw_arm"].dropna())]
    return Page(
        PATH,
        "Manifold comparison",
        (*blocks, *common.traceability(loader, arms)),
        description="ManifoldAdamW against AdamW on the same problems, paired by seed, with intervals.",
        provenance=common.provenance(loader, built),
    )


def _setting(loader: ExperimentDataLoader, table: pd.DataFrame) -> str:
    """What is quantized, and how the weights are stored where that is not as float32 masters to nearest."""
    runs = loader.runs[loader.runs["arm"].isin(table["arm"])].iloc[0]
    kept = "on the grid" if runs["storage"] == "grid" else "float32 weights"
    return f"{runs['scope']}; {kept}, rounded {runs['rounding'].replace('_', ' ')}"


def _hypothesis(paired: pd.DataFrame) -> list[Block]:
    if paired.empty:
        return [Paragraph(common.hypothesis_pending("No pair of a ManifoldAdamW and an AdamW arm is recorded."))]
    return [
        Paragraph(common.hypothesis(STIFFNESS)),
        Table(("Prediction", "Outcome", "Recorded"), _predictions(paired), "The hypothesis against what happened"),
    ]


def _answer(paired: pd.DataFrame) -> Md:
    better, worse = _told_apart(paired, -1), _told_apart(paired, +1)
    if len(better) and not len(worse):
        verdict = f"lower loss in {len(better)} of {len(paired)} pairings, higher in none"
    elif len(worse) and not len(better):
        verdict = f"no gain seen: higher loss in {len(worse)} of {len(paired)} pairings, lower in none"
    elif len(worse):
        verdict = f"mixed: lower loss in {len(better)}, higher in {len(worse)} of {len(paired)} pairings"
    else:
        verdict = f"inconclusive: none of {len(paired)} pairings is told from zero"
    ordered = paired.sort_values(["difference", "format"])
    return md(
        "**ManifoldAdamW against AdamW: {verdict}** (paired t tests, Holm-adjusted over the pairings, level {alpha}). "
        "The most favourable pairing is {best}, the least favourable {worst}.",
        verdict=verdict,
        alpha=ALPHA,
        best=_pairing(ordered.iloc[0]),
        worst=_pairing(ordered.iloc[-1]),
    )


def _pairing(row: pd.Series) -> str:
    return (
        f"{row['format']} with S on the {_short(row['rule'])}, "
        f"{common.number(row['difference'], sign=True)} nats a character "
        f"(95% interval {common.interval(row['low'], row['high'])}, n = {row['n_pairs']} seeds)"
    )


def _told_apart(paired: pd.DataFrame, sign: int) -> pd.DataFrame:
    return paired[(paired["difference"] * sign > 0) & (paired["p_holm"] < ALPHA)]


def _predictions(paired: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    rows = []
    for key, text in STIFFNESS.predictions.items():
        rule, measure = key.split("_")
        own = paired[paired["rule"] == RULES[rule]].dropna(subset=["stall_low"] if measure == "stall" else ["low"])
        if own.empty:
            rows.append((text, "not decided", "no pairs recorded"))
            continue
        low, high = ("stall_low", "stall_high") if measure == "stall" else ("low", "high")
        below, above = own[own[high] < 0], own[own[low] > 0]
        outcome = "held" if len(below) == len(own) else "did not hold" if below.empty else "held in part"
        if below.empty and above.empty:
            outcome = "not decided"
        what = "stall ratio" if measure == "stall" else "loss"
        text_recorded = (
            f"{what} interval below AdamW's in {len(below)}, above in {len(above)}, around zero in "
            f"{len(own) - len(below) - len(above)} of {len(own)} formats"
        )
        rows.append((text, outcome, text_recorded))
    return tuple(rows)


def _difference_chart(paired: pd.DataFrame) -> Chart:
    data = paired[["format", "rule", "n_pairs", "difference", "low", "high", "arm", "adamw_arm"]].reset_index(drop=True)
    labels = sorted(data["format"].unique(), key=format_order)

    def draw(axes: Axes) -> None:
        common.reference_line(axes, "AdamW")
        for rule, group in data.groupby("rule"):
            colour, marker, shift = _STYLES.get(rule, (PALETTE[2], "^", 0.0))
            places = [labels.index(name) + shift for name in group["format"]]
            axes.vlines(places, group["low"], group["high"], color=colour, linewidth=2)
            axes.plot(places, group["difference"], marker, color=colour, markersize=6, label=f"{rule}")
        axes.set_xticks(range(len(labels)), labels, color=FOREGROUND)
        axes.set_xlim(-0.5, len(labels) - 0.4)
        axes.set_ylabel("loss minus AdamW's (nats a character)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=FOREGROUND)

    listed = "; ".join(
        f"{row.format} {row.rule} {row.difference:+.3f} {common.interval(row.low, row.high)}"
        for row in data.itertuples()
    )
    return Chart(
        "loss-difference",
        "ManifoldAdamW's loss minus AdamW's, same format and seeds",
        f"Mean paired difference of the final validation loss with 95% t interval; below zero is better. {listed}.",
        data,
        draw,
    )


def _results(table: pd.DataFrame, identity: str) -> Table:
    columns: tuple[Column | str, ...] = (
        "Format",
        Column("S on"),
        *common.right(
            "Difference to AdamW",
            "95% interval",
            "Seeds",
            "p (Holm)",
            "Validation loss",
            "Learning rate",
            "AdamW's",
            "Stall ratio",
            "AdamW's",
            "Finished",
        ),
        Column("Against"),
    )
    rows = []
    for row in table.to_dict("records"):
        rival = row["adamw_arm"] if isinstance(row["adamw_arm"], str) else None
        rows.append(
            (
                row["format"],
                common.arm_link(row["arm"], _short(row["rule"])),
                common.number(row["difference"], sign=True),
                common.interval(row["low"], row["high"]),
                int(row["n_pairs"]),
                common.p_text(row["p_holm"]),
                common.number(row["val_loss"]),
                f"{row['learning_rate']:g}",
                f"{row['adamw_learning_rate']:g}" if rival else None,
                common.percent(row["stall_ratio"]),
                common.percent(row["adamw_stall_ratio"]),
                f"{row['n_finished']} of {row['n_runs']}",
                common.arm_link(rival, "AdamW") if rival else "no AdamW arm of the same problem",
            )
        )
    caption = "ManifoldAdamW minus AdamW in final validation loss, nats a character, paired by seed"
    return Table(columns, tuple(rows), caption, data=table, id=identity)


def _tuning(loader: ExperimentDataLoader, table: pd.DataFrame) -> list[Block]:
    runs = loader.runs[(loader.runs["role"] == "tuning") & loader.runs["problem"].isin(table["problem"])]
    if runs.empty:
        return [
            Paragraph(
                "No tuning study is among the records: whether the learning rates are tuned equally cannot be shown."
            )
        ]
    grouped = runs.groupby(["rule", "format", "learning_rate"])["final_val_loss"].agg(["mean", "count"]).reset_index()
    sizes = runs.groupby(["rule", "format"])["learning_rate"].nunique()
    chosen = {(row["rule"], row["format"], row["learning_rate"]) for row in table.to_dict("records")}
    named = loader.runs.drop_duplicates("arm").set_index("arm")["rule"]
    chosen |= {
        (named.get(row["adamw_arm"], "AdamW"), row["format"], row["adamw_learning_rate"])
        for row in table.to_dict("records")
    }
    best = grouped.loc[grouped.groupby(["rule", "format"])["mean"].idxmin().dropna().astype(int)]
    edges = [
        f"{row.rule} with {row.format}"
        for row in best.itertuples()
        if row.learning_rate
        in (
            grouped[(grouped["rule"] == row.rule) & (grouped["format"] == row.format)]["learning_rate"]
            .agg(["min", "max"])
            .tolist()
        )
    ]
    rows = tuple(
        (
            row.rule,
            row.format,
            f"{row.learning_rate:g}",
            common.number(row.mean),
            int(row.count),
            "yes" if (row.rule, row.format, row.learning_rate) in chosen else "no",
        )
        for row in grouped[["rule", "format", "learning_rate", "mean", "count"]].itertuples(index=False)
    )
    columns: tuple[Column | str, ...] = (
        "Step rule",
        "Format",
        *common.right("Learning rate", "Mean validation loss", "Held-out seeds"),
        Column("Used above"),
    )
    budget = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    edge = (
        f"A best value lies at the edge of its sweep for {common.names(edges)}."
        if edges
        else "No best value lies at the edge of its sweep."
    )
    return [
        Paragraph(f"Each step rule was tuned for each format on held-out seeds, over {budget} learning rates. {edge}"),
        Details(
            "The tuning runs",
            (
                Table(
                    columns,
                    rows,
                    "Tuning runs, on seeds that take no part in the comparison",
                    data=grouped,
                    id="tuning",
                ),
            ),
        ),
    ]


def _analysis(paired: pd.DataFrame) -> list[Block]:
    items = []
    for rule in sorted(paired["rule"].unique()):
        own = paired[paired["rule"] == rule]
        stall = own.dropna(subset=["stall_difference"])
        items.append(
            md(
                "{rule}: mean differences from {low} to {high} nats over {formats}; told from zero after Holm in "
                "{apart} of {count}. {stall}",
                rule=rule,
                low=common.number(own["difference"].min(), sign=True),
                high=common.number(own["difference"].max(), sign=True),
                formats=", ".join(own["format"]),
                apart=int((own["p_holm"] < ALPHA).sum()),
                count=len(own),
                stall=f"Its stall ratio differs from AdamW's by "
                f"{common.number(stall['stall_difference'].min(), sign=True)} to "
                f"{common.number(stall['stall_difference'].max(), sign=True)}."
                if len(stall)
                else "",
            )
        )
    theory = (
        "Why the two preconditions differ: Adam in code space is dw = -lr · S · u with u Adam's direction (S on the "
        "update). Scaling the gradient by S before "
        "the moments does half of the chain rule, and Adam's normalisation nearly cancels it: with S constant it "
        "only turns eps into eps / S. "
        "ULP steps are close relatives of Madam and LNS-Madam; no novelty is claimed."
    )
    related = md(
        "Related work: {madam}, {lns}.",
        madam=Link("Madam (arXiv 2006.14560)", "https://arxiv.org/abs/2006.14560"),
        lns=Link("LNS-Madam (arXiv 2106.13914)", "https://arxiv.org/abs/2106.13914"),
    )
    return [Bullets(tuple(items)), Paragraph(theory), Paragraph(related)]


def _limits(loader: ExperimentDataLoader, table: pd.DataFrame, paired: pd.DataFrame) -> tuple[Md, ...]:
    items = [
        Md(
            "Nothing about weights stored on the grid: these runs keep fp32 master weights. Nothing about stochastic "
            "rounding, larger models or longer runs."
        )
        if loader.runs[loader.runs["arm"].isin(table["arm"])]["storage"].eq("master").all()
        else Md(
            "Nothing about fp32 master weights: these runs keep the weights on the grid. Nothing about larger "
            "models or longer runs."
        ),
        Md(
            "No control without quantization for the manifold rule is recorded yet, so a difference cannot be "
            "attributed to the format's geometry alone."
        ),
        md(
            "Equality: an interval that holds zero does not show that two rules are equal; the widest half-width "
            "here is {width} nats.",
            width=common.number(float(((paired["high"] - paired["low"]) / 2).max())),
        ),
    ]
    others = {
        (loader.config(row["arm"]).optimizer.other_learning_rate, row["adamw_learning_rate"])
        for row in paired.to_dict("records")
    }
    unequal = sorted({f"{own:g} against {rival:g}" for own, rival in others if own is not None and own != rival})
    if unequal:
        items.append(
            md(
                "What is not quantized (norms and positions) is trained by AdamW in every arm, but at another rate "
                "beside ManifoldAdamW than in the AdamW arms: {rates}. The difference holds this too.",
                rates=", ".join(unequal),
            )
        )
    excluded = table[~table["counts"]]
    if len(excluded):
        items.append(
            md(
                "Not counted, for want of two pairs or because a run of one of the two arms did not finish: {names}.",
                names=", ".join(sorted({f"{row['format']} {row['rule']}" for row in excluded.to_dict("records")})),
            )
        )
    return tuple(items)
