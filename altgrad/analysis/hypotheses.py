"""The preregistered hypotheses as data, and what the recorded campaign says of each.

`docs/method/preregistration.md` has the statements, families of tests and what counts as an answer. A hypothesis names
the arms of `altgrad.studies` whose contrasts form its families, and the rule of `altgrad.analysis.contrasts` that
answers. What was not written down beforehand is not a verdict.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.contrasts import (
    NAMED,
    TEST_COLUMNS,
    Answer,
    Judge,
    Judgement,
    Pair,
    Row,
    Rows,
    all_equivalent,
    all_shown,
    beyond,
    by_seed,
    describe,
    differs,
    equivalent,
    family,
    in_parts,
    judged,
    missing,
    named_family,
    none_shown,
    none_worse,
    refuted,
    runs_of,
    shown,
)
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP, MARGIN, paired_difference
from altgrad.analysis.step_rules import StepRuleComparator
from altgrad.config import LAYER_TYPES
from altgrad.studies import ARMS, CLOSE_FORMATS, GRID, RULE_FORMATS, SPLITS, adamw_arm

Family = Sequence[Pair] | Callable[[ExperimentDataLoader], Sequence[Pair]]
"""Contrasts that are adjusted together; of a family that depends on what was found, a function that gives them."""


@dataclass(frozen=True)
class Verdict:
    """What the records say of one hypothesis.

    Attributes:
        id: as in the preregistration, such as "H1".
        study: whose runs decide it.
        statement: the hypothesis in one sentence.
        answer: "yes" where what counts as an answer was seen; "no" where its opposite was, or where a claim of a
            difference is refuted by equivalence; "inconclusive" where neither was; "pending" where runs are missing.
        evidence: one plain sentence with the numbers, intervals and pairs; for "pending", what is missing.
        tests: one row a test of its family, columns `TEST_COLUMNS`; empty while pending.
        limited: whether less was shown than the statement says; the evidence then says what.
    """

    id: str
    study: str
    statement: str
    answer: Answer
    evidence: str
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TEST_COLUMNS)), compare=False)
    limited: bool = False

    @property
    def answered(self) -> str:
        """The answer as pages show it: never a bare "yes" where less was shown than was stated."""
        return f"{self.answer}, with a limit" if self.limited else self.answer


@dataclass(frozen=True)
class Hypothesis:
    """A statement, the contrasts that are its families of tests, and what counts as an answer.

    Attributes:
        id, study, statement: as in `Verdict`.
        families: each adjusted by Holm for itself.
        judge: gives the answer from the rows of all families, in order.
        needs: names of arms that must be recorded besides those of the contrasts.
        limit: says what a "yes" does not show, in a sentence; "" where it shows all that is stated.
    """

    id: str
    study: str
    statement: str
    families: Sequence[Family]
    judge: Judge
    needs: Sequence[str] = ()
    limit: Callable[[ExperimentDataLoader], str] | None = None

    def verdict(self, loader: ExperimentDataLoader) -> Verdict:
        """What the records say of it."""
        answer, evidence, tests = weigh(loader, self.families, self.judge, self.needs)
        limit = self.limit(loader) if self.limit and answer == "yes" else ""
        evidence += f" Limit: {limit}" if limit else ""
        return Verdict(self.id, self.study, self.statement, answer, evidence, tests, bool(limit))


@dataclass(frozen=True)
class Description:
    """A hypothesis without tests of its own: `describe` gives answer, evidence and the tests that are shown beside."""

    id: str
    study: str
    statement: str
    describe: Callable[[ExperimentDataLoader], tuple[Answer, str, pd.DataFrame]]

    def verdict(self, loader: ExperimentDataLoader) -> Verdict:
        """What the records say of it."""
        return Verdict(self.id, self.study, self.statement, *self.describe(loader))


def weigh(
    loader: ExperimentDataLoader, families: Sequence[Family], judge: Judge, needs: Sequence[str] = ()
) -> tuple[Answer, str, pd.DataFrame]:
    """Answer, evidence and tests of some families; "pending" with what is missing, where runs are."""
    stated = [pair for family in families if not callable(family) for pair in family]
    if lacking := missing(loader, [*needs, *itertools.chain.from_iterable(stated)]):
        return "pending", lacking, pd.DataFrame(columns=list(TEST_COLUMNS))
    tables = [named_family(loader, family(loader) if callable(family) else family) for family in families]
    tests = pd.concat([table for table in tables if len(table)], ignore_index=True)
    judgement = judge(tests.to_dict("records"))
    return judgement.answer, judgement.evidence, tests[list(TEST_COLUMNS)]


def verdicts(loader: ExperimentDataLoader, *ids: str) -> tuple[Verdict, ...]:
    """One verdict a hypothesis, in the order of their numbers; of the named ones, such as "H1", or of all."""
    return tuple(verdict for verdict in loader.memo(_verdicts) if not ids or verdict.id in ids)


def _verdicts(loader: ExperimentDataLoader) -> tuple[Verdict, ...]:
    return tuple(hypothesis.verdict(loader) for hypothesis in HYPOTHESES)


# Families and answers of one hypothesis alone


def pairs_of_best(arms: Sequence[str], baseline: str = "FP32") -> Callable[[ExperimentDataLoader], Sequence[Pair]]:
    """Every pair of the arms, with the best subtracted: the one with the smallest gap of those that finished whole."""

    def pairs(loader: ExperimentDataLoader) -> Sequence[Pair]:
        base, gaps = by_seed(runs_of(loader, baseline)), {}
        for arm in arms:
            runs = runs_of(loader, arm)
            if (runs["status"] == "finished").all():
                gaps[arm] = paired_difference(by_seed(runs), base).mean
        best = min(gaps, key=lambda arm: gaps[arm], default=None)
        return list(itertools.combinations(sorted(arms, key=lambda arm: arm == best), 2))

    return pairs


def _between(rows: Rows, one: str, other: str) -> Row:
    return next(row for row in rows if {row["of"], row["to"]} == {one, other})


def _best(rows: Rows) -> str | None:
    """The best arm of `pairs_of_best`; None where none is judged."""
    return rows[-1]["to"] if any(judged(row) for row in rows) else None


def _sweet_spot(rows: Rows) -> Judgement:
    best, two = _best(rows), _between(rows, "E3M4", "E4M3")
    among = best in ("E3M4", "E4M3")
    behind = best is not None and not among and all(differs(_between(rows, best, arm)) for arm in ("E3M4", "E4M3"))
    answer: Answer = "inconclusive"
    if among and equivalent(two):
        answer = "yes"
    elif behind or (differs(two) and not equivalent(two)):
        answer = "no"
    lead = f"The smallest gap is {ARMS[best].label}'s. " if best else "No split has all its runs finished. "
    return Judgement(answer, [two], lead, tost=True)


def _no_own_sweet_spot(rows: Rows) -> Judgement:
    """Whether E4M3 is shown to end above the best in no layer type, by both families that were written down.

    The rows are adjusted over all pairs of a layer type, as amended on 2026-11-24; as first registered, the family is
    the best against the six others.
    """
    answers: tuple[list[Answer], list[Answer]] = ([], [])
    said = []
    for kind in LAYER_TYPES:
        own = [row for row in rows if row["of"].endswith(f" {kind}")]
        best, wanted = _best(own), f"E4M3 {kind}"
        if best is None or best == wanted:
            said.append(f"{kind}: E4M3 is the best" if best else f"{kind}: no split has all its runs finished")
            for given in answers:
                given.append("yes" if best else "inconclusive")
            continue
        others = family([row for row in own if best in (row["of"], row["to"])], (*TEST_COLUMNS, *NAMED))
        both = [_between(each, wanted, best) for each in (own, others.to_dict("records"))]
        for given, row in zip(answers, both, strict=True):
            given.append("no" if differs(row) else "yes" if judged(row) else "inconclusive")
        registered = words.p_equals(both[1]["p_holm"])
        said.append(f"{both[0]['contrast']}: {describe(both[0])} over all pairs, {registered} against the best alone")
    amended, first = (_in_all(given) for given in answers)
    if amended == first:
        return Judgement(amended, (), "; ".join(said))
    disagree = (
        f". The two families of tests disagree: over all pairs, as amended on 2026-11-24, the answer is {amended}; "
        f"over the best against the 6 others, as first registered, it is {first}. The hypothesis claims no difference, "
        "so the amendment made it easier to hold"
    )
    return Judgement("inconclusive", (), "; ".join(said) + disagree)


def _in_all(answers: Sequence[Answer]) -> Answer:
    return "no" if "no" in answers else "inconclusive" if "inconclusive" in answers else "yes"


def _ablations(rows: Rows) -> Judgement:
    shuffled, constant = rows
    answer: Answer = "inconclusive"
    if shown(shuffled, +1) and judged(constant) and not differs(constant):
        answer = "yes"
    elif refuted(shuffled, +1) or shown(constant, +1):
        answer = "no"
    return Judgement(answer, rows)


def _not_by_gradients(rows: Rows) -> Judgement:
    left, helped = rows
    answer: Answer = "inconclusive"
    if beyond(left, FAILURE_GAP) and shown(helped, -1):
        answer = "yes"
    elif (judged(left) and left["high"] < FAILURE_GAP) or refuted(helped, -1):
        answer = "no"
    return Judgement(answer, rows)


def _worst_when_long(rows: Rows) -> Judgement:
    """Four gaps to FP32, and the difference of E0M7 and the arm that ended above it, where one did."""
    gaps = [row for row in rows if row["to"] == "FP32 long"]
    worst = max(gaps, key=lambda row: float(row["difference"]))
    own = next(row for row in gaps if row["of"] == "E0M7 long")
    answer: Answer = "inconclusive"
    if all(judged(row) for row in gaps):
        if worst is own and shown(own, +1) and own["low"] > 0:
            answer = "yes"
        elif refuted(own, +1) or any(shown(row, +1) for row in rows if row["to"] == "E0M7 long"):
            answer = "no"
    return Judgement(answer, [own], f"{ARMS[worst['of']].label} has the highest mean loss; ")


def _above_e0m7(loader: ExperimentDataLoader) -> Sequence[Pair]:
    means = {arm: by_seed(runs_of(loader, arm)).mean() for arm in LONG_ARMS}
    worst = max(means, key=lambda arm: means[arm])
    return [(worst, "E0M7 long")] if worst != "E0M7 long" else []


def _stall_ranks(loader: ExperimentDataLoader) -> tuple[Answer, str, pd.DataFrame]:
    stalls = loader.memo(StepRuleComparator).stalls
    if lacking := " ".join(dict.fromkeys(text for text in stalls["missing"] if text)):
        return "pending", lacking, pd.DataFrame(columns=list(TEST_COLUMNS))
    pairs, above = stalls[stalls["more"].notna()], list(stalls.loc[stalls["spearman"] > RANKS, "format"])
    answer: Answer = "yes" if len(pairs) and not above else "no" if above and pairs.empty else "inconclusive"
    rhos = [f"{row.format} {row.spearman:+.2f} over {row.n_arms:.0f} arms" for row in stalls.itertuples()]
    evidence = f"Spearman's rho of stall ratio and loss: {'; '.join(rhos)}."
    if pairs.empty:
        evidence += " No two arms with a significant difference stall in the other order than they lose."
    else:
        row = pairs.loc[pairs["stall_difference"].idxmax()]
        figures = f"{words.interval(row['low'], row['high'])}, n = {row['n_pairs']:.0f} pairs"
        evidence += (
            f" {row['more']} stalls {100 * row['stall_difference']:.0f} points more than {row['less']} and ends "
            f"{-row['difference']:.3f} nats a character lower ({figures}); such "
            f"a pair is shown in {len(pairs)} of {len(stalls)} formats."
        )
        if above:
            evidence += f" So the ratio is no safe ranking; but rho is above {RANKS:g} in {', '.join(above)}, against "
            evidence += "the statement."
    return answer, evidence, pairs[list(TEST_COLUMNS)].reset_index(drop=True)


RANKS = 0.8
"""Spearman's rho above which the stall ratio would rank arms (preregistered)."""

# What an answer does not show


def _decays_differ(loader: ExperimentDataLoader) -> str:
    codes, adamw = (ARMS[f"E4M3 {rule} stochastic"].config().optimizer.weight_decay for rule in ("code", "adamw"))
    if codes == adamw:
        return ""
    return (
        f"weight decay differs as well, {codes:g} with steps of codes and {adamw:g} with AdamW, so the test does not "
        f"show which of the two costs the loss. Steps of codes with {adamw:g}, or AdamW on the grid with {codes:g}, "
        "would."
    )


def _mostly_gradients(loader: ExperimentDataLoader) -> str:
    pairs = [("E7M0", "FP32"), ("E7M0", "E7M0 E5M2 gradients")]
    whole, removed = (named_family(loader, [pair]).iloc[0] for pair in pairs)
    if not removed["low"] > 0 or removed["difference"] <= whole["difference"] / 2:
        return ""
    return (
        f"E5M2 gradients remove {removed['difference']:.3f} of E7M0's {whole['difference']:.3f} nats, so most of its "
        "loss does come from its gradients, against the first half of the statement. Shown is that the rest does not, "
        "and that stochastic rounding helps."
    )


def _only_one_tested(loader: ExperimentDataLoader) -> str:
    rows = named_family(loader, [(f"{fmt} block", fmt) for fmt in RULE_FORMATS if fmt != "E0M7"]).to_dict("records")
    changes = [f"{row['to']}'s loss by {words.number(row['difference'], sign=True)}" for row in rows]
    return (
        "only that block scales help E0M7 was tested, not that they help it most. They change "
        f"{words.names(changes)}, and the gains were not held against each other."
    )


def _only_the_worst(loader: ExperimentDataLoader) -> str:
    means = {ARMS[arm].format: by_seed(runs_of(loader, arm)).mean() for arm in ("FP32 long", *LONG_ARMS)}
    order = ", ".join(sorted(means, key=lambda name: means[name])[:-1])
    return (
        f"of 8-bit formats {len(LONG_ARMS)} ran, not five, and of their order only the end was tested: that E0M7 is "
        f"above FP32. The order of the others, {order} by their means, was not."
    )


LONG_ARMS = tuple(f"{fmt} long" for fmt in (*CLOSE_FORMATS, "E0M7"))
ULP_PAIRS = tuple(
    (f"{fmt} update {place}", adamw_arm(fmt, place)) for fmt in RULE_FORMATS for place in ("master", *GRID)
)
HYPOTHESES: tuple[Hypothesis | Description, ...] = (
    Hypothesis(
        "H1",
        "formats",
        "With all operands quantized the gap over the splits is U-shaped: E0M7, E6M1 and E7M0 are worse than FP32.",
        [[(fmt, "FP32") for fmt in SPLITS]],
        all_shown(+1, of=("E0M7", "E6M1", "E7M0")),
    ),
    Hypothesis(
        "H2",
        "formats",
        "The sweet spot with all operands lies among E3M4 and E4M3, and the two are equivalent.",
        [pairs_of_best(SPLITS)],
        _sweet_spot,
        needs=("FP32", *SPLITS),
    ),
    Hypothesis(
        "H3",
        "formats",
        "Gradients need range where weights do not: E0M7 costs more with gradients alone than with weights alone.",
        [[("E0M7 gradients", "E0M7 weights")]],
        all_shown(+1, by=MARGIN),
    ),
    Hypothesis(
        "H4",
        "formats",
        "Weights and activations need precision where gradients do not: E7M0 costs more with activations alone than "
        "with gradients alone.",
        [[("E7M0 activations", "E7M0 gradients")]],
        all_shown(+1, by=MARGIN),
    ),
    Hypothesis(
        "H5",
        "layers",
        "No layer type has a sweet spot of its own: in each of the four, E4M3 is among the formats not told from the "
        "best.",
        [pairs_of_best([f"{fmt} {kind}" for fmt in SPLITS]) for kind in LAYER_TYPES],
        _no_own_sweet_spot,
        needs=("FP32", *(f"{fmt} {kind}" for kind in LAYER_TYPES for fmt in SPLITS)),
    ),
    Hypothesis(
        "H6",
        "storage",
        "On the grid under AdamW, rounding to nearest costs loss against stochastic rounding.",
        [[(adamw_arm(fmt, "nearest"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        all_shown(+1),
    ),
    Hypothesis(
        "H7",
        "storage",
        "Error feedback is no worse than stochastic rounding on the grid under AdamW.",
        [[(adamw_arm(fmt, "feedback"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        none_worse,
    ),
    Hypothesis(
        "H8",
        "storage",
        "Steps in ulps do not lower the loss against AdamW, master weights or grid, each at its tuned rate.",
        [ULP_PAIRS],
        none_shown(-1),
    ),
    Hypothesis(
        "H9",
        "storage",
        "The gradient precondition is nearly AdamW: with master weights the two are equivalent.",
        [[("E4M3 gradient master", "E4M3")]],
        all_equivalent,
    ),
    Hypothesis(
        "H10",
        "storage",
        "Whole-code steps are worse than AdamW on the grid with stochastic rounding.",
        [[(f"{fmt} code stochastic", adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        all_shown(+1),
        limit=_decays_differ,
    ),
    Hypothesis(
        "H11",
        "controls",
        "What ulp steps do they do without quantization too: the difference to AdamW is the same (within the margin) "
        "with FP32 weights and the spacing of E4M3.",
        [[(f"E4M3 {rule} master", "E4M3", f"FP32 {rule} master", "FP32") for rule in ("update", "gradient")]],
        all_equivalent,
    ),
    Hypothesis(
        "H12",
        "controls",
        "It matters which weight has which S: S shuffled is worse than S, S constant is not.",
        [[(f"E4M3 {rule} master", "E4M3 update master") for rule in ("shuffled", "constant")]],
        _ablations,
    ),
    Hypothesis(
        "H13",
        "controls",
        "Where tensors begin mis-scaled (by up to 2^6, either way), ulp steps win against AdamW, and AdamW with rates "
        "relative to the tensor wins as well.",
        [
            [
                (f"E4M3 {rule} master misscaled", "E4M3 adamw master misscaled")
                for rule in ("update", "gradient", "relative")
            ]
        ],
        all_shown(-1, of=("E4M3 update master misscaled", "E4M3 relative master misscaled")),
    ),
    Description(
        "H14",
        "storage",
        "The stall ratio does not rank arms: among the arms of one format its rank correlation with the loss is not "
        "above .8.",
        _stall_ranks,
    ),
    Hypothesis(
        "H15",
        "literature",
        "E4M3 forward with E5M2 gradients ends lower than the reverse.",
        [[("E4M3 E5M2 gradients", "E5M2 E4M3 gradients")]],
        all_shown(-1),
    ),
    Hypothesis(
        "H16",
        "literature",
        "MXFP8 (E4M3) is equivalent to BF16; MXFP4 (E2M1) is worse than BF16.",
        [[("MXFP8", "BF16")], [("MXFP4", "BF16")]],
        in_parts((1, all_equivalent), (1, all_shown(+1))),
    ),
    Hypothesis(
        "H17",
        "remedies",
        "E0M7's loss comes from its gradients: rounding them stochastically, or giving them E5M2, lowers the gap.",
        [[("E0M7 stochastic gradients", "E0M7"), ("E0M7 E5M2 gradients", "E0M7")]],
        all_shown(-1),
    ),
    Hypothesis(
        "H18",
        "remedies",
        "E7M0's loss does not come from its gradients: E5M2 gradients leave a gap above .05; stochastic rounding of "
        "activations and gradients lowers it.",
        [[("E7M0 E5M2 gradients", "FP32"), ("E7M0 stochastic both", "E7M0")]],
        _not_by_gradients,
        limit=_mostly_gradients,
    ),
    Hypothesis(
        "H19",
        "scaling",
        "A finer scale helps the fixed-point format most: scales by block lower E0M7's gap.",
        [[(f"{fmt} {finer}", fmt) for fmt in RULE_FORMATS for finer in ("row", "block")]],
        all_shown(-1, of=("E0M7 block",)),
        limit=_only_one_tested,
    ),
    Hypothesis(
        "H20",
        "length",
        "The order of the short runs holds: after 1,500 steps E0M7 is the worst of the five formats, and its gap "
        "excludes zero.",
        [[(arm, "FP32 long") for arm in LONG_ARMS], _above_e0m7],
        _worst_when_long,
        limit=_only_the_worst,
    ),
)


@dataclass(frozen=True)
class Expectation:
    """What was expected of a format or a rule before the runs, with predictions, each under the key of its check.

    Written with earlier pilot figures of this project at hand, so no blind predictions. Each names a check that
    `altgrad.reports` makes from the recorded runs: held, did not hold, or not decided.
    """

    written: str
    statement: str
    predictions: dict[str, str]


E7M0 = Expectation(
    written="2026-11-23",
    statement=(
        "E7M0 has no mantissa bits: neighbouring values differ by a factor of 2, so rounding moves a value by up to a "
        "third, while the range from 2^-62 to 2^64 leaves nothing to overflow or underflow. It fails through rounding "
        "error in every operand, not through range."
    ),
    predictions={
        "no_failed_run": "No run ends in NaN or diverges: the range protects it.",
        "no_range_error": "Overflow and underflow stay below 0.1% of the elements in every operand.",
        "lowest_sqnr": "The SQNR of its weights is the lowest of all recorded 8-bit splits.",
        "largest_gap": "Its loss gap to FP32 is the largest of all recorded 8-bit splits.",
        "no_warning": "No counter of overflow or underflow warns (added with the preregistration, 2026-11-24).",
    },
)

E0M7 = Expectation(
    written="2026-11-24",
    statement=(
        "Gradients need range where weights do not, and E0M7, a fixed-point grid, has none: its loss comes from its "
        "gradients (H3 and H17 of the preregistration)."
    ),
    predictions={
        "gradients": "E0M7 costs more with gradients alone than with weights alone, by more than .01 nats (H3).",
        "remedies": "Rounding its gradients stochastically lowers the gap, and so does giving them E5M2 (H17).",
    },
)

STIFFNESS = Expectation(
    written="2026-11-23",
    statement=(
        "Stiffness preconditioning: the spacing S of the grid at a weight (one ulp) is the natural unit of its steps. "
        "An optimizer that knows S should move more weights across a rounding boundary, stall less, and reach a lower "
        "loss than AdamW at an equally tuned learning rate."
    ),
    predictions={
        "update_loss": "ManifoldAdamW with S on the update ends below AdamW in validation loss.",
        "gradient_loss": "ManifoldAdamW with S on the gradient ends below AdamW in validation loss.",
        "update_stall": "With S on the update the stall ratio is below AdamW's.",
    },
)
