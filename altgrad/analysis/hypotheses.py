"""The preregistered hypotheses as data, and what the recorded campaign says of each.

`docs/method/preregistration.md` has the statements, families of tests and what counts as an answer. A hypothesis names
the arms of `altgrad.studies` whose contrasts form its families, and the rule of `altgrad.analysis.contrasts` that
answers. What was not written down beforehand is not a verdict. docs/sections/evidence.md says a verdict in words.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

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
    below,
    beyond,
    by_seed,
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
    within,
)
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.logits import growth_with_vocabulary
from altgrad.analysis.statistics import FAILURE_GAP, MARGIN, paired_difference
from altgrad.analysis.step_rules import StepRuleComparator
from altgrad.config import LAYER_TYPES
from altgrad.studies import ARMS, CLOSE_FORMATS, COSTLY, FINE_SCALES, GRID, RULE_FORMATS, SPLITS, adamw_arm

Family = Sequence[Pair] | Callable[[ExperimentDataLoader], Sequence[Pair]]
"""Contrasts that are adjusted together; of a family that depends on what was found, a function that gives them."""


@dataclass(frozen=True)
class Verdict:
    """What the records say of one hypothesis.

    Attributes:
        id: as in the preregistration, such as "H1".
        study: whose runs decide it.
        judgement: the answer and what it rests on; of a pending one, what is missing. The answer is "yes" where what
            counts as one was seen; "no" where its opposite was, or where a claim of a difference is refuted by
            equivalence; "inconclusive" where neither was; "pending" where runs are missing.
        tests: one row a test of its family, columns `TEST_COLUMNS`; empty while pending.
    """

    id: str
    study: str
    judgement: Judgement
    tests: pd.DataFrame = field(default_factory=lambda: _no_tests(), compare=False)

    @property
    def answer(self) -> Answer:
        """Of the judgement."""
        return self.judgement.answer

    @property
    def limited(self) -> bool:
        """Whether less was shown than was stated."""
        return "limit" in self.judgement.more

    @property
    def answered(self) -> str:
        """The answer as pages show it: never a bare "yes" where less was shown than was stated."""
        return f"{self.answer}, with a limit" if self.limited else self.answer


@dataclass(frozen=True)
class Hypothesis:
    """The contrasts that are a hypothesis's families of tests, and what counts as an answer.

    Attributes:
        id, study: as in `Verdict`.
        families: each adjusted by Holm for itself.
        judge: gives the answer from the rows of all families, in order.
        needs: names of arms that must be recorded besides those of the contrasts.
        limit: what a "yes" does not show of what was stated, in values; empty where it shows all of it.
    """

    id: str
    study: str
    families: Sequence[Family]
    judge: Judge
    needs: Sequence[str] = ()
    limit: Callable[[ExperimentDataLoader], Mapping[str, Any]] | None = None

    def verdict(self, loader: ExperimentDataLoader) -> Verdict:
        """What the records say of it."""
        judgement, tests = weigh(loader, self.families, self.judge, self.needs)
        if self.limit and judgement.answer == "yes" and (limit := self.limit(loader)):
            judgement = replace(judgement, more={**judgement.more, "limit": limit})
        return Verdict(self.id, self.study, judgement, tests)


@dataclass(frozen=True)
class Description:
    """A hypothesis without tests of its own: `describe` gives a judgement and the tests that are shown beside."""

    id: str
    study: str
    describe: Callable[[ExperimentDataLoader], tuple[Judgement, pd.DataFrame]]

    def verdict(self, loader: ExperimentDataLoader) -> Verdict:
        """What the records say of it."""
        return Verdict(self.id, self.study, *self.describe(loader))


def weigh(
    loader: ExperimentDataLoader, families: Sequence[Family], judge: Judge, needs: Sequence[str] = ()
) -> tuple[Judgement, pd.DataFrame]:
    """The judgement of some families, and their tests; "pending" with what is missing, where runs are."""
    stated = [pair for family in families if not callable(family) for pair in family]
    if lacking := missing(loader, [*needs, *itertools.chain.from_iterable(stated)]):
        return _pending(lacking), _no_tests()
    tables = [named_family(loader, family(loader) if callable(family) else family) for family in families]
    tests = pd.concat([table for table in tables if len(table)], ignore_index=True)
    return judge(tests.to_dict("records")), tests[list(TEST_COLUMNS)]


def _pending(lacking: str) -> Judgement:
    return Judgement("pending", more={"missing": lacking})


def _no_tests() -> pd.DataFrame:
    return pd.DataFrame(columns=list(TEST_COLUMNS))


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
    return Judgement(answer, [two], True, {"smallest": ARMS[best].label if best else None})


def _no_own_sweet_spot(rows: Rows) -> Judgement:
    """Whether E4M3 is shown to end above the best in no layer type, by both families that were written down.

    The rows are adjusted over all pairs of a layer type, as amended on 2026-11-24; as first registered, the family is
    the best against the six others.
    """
    answers: tuple[list[Answer], list[Answer]] = ([], [])
    layers: list[dict[str, Any]] = []
    for kind in LAYER_TYPES:
        own = [row for row in rows if row["of"].endswith(f" {kind}")]
        best, wanted = _best(own), f"E4M3 {kind}"
        if best is None or best == wanted:
            layers.append({"layer": kind, "best": best, "wanted": "E4M3"})
            for given in answers:
                given.append("yes" if best else "inconclusive")
            continue
        others = family([row for row in own if best in (row["of"], row["to"])], (*TEST_COLUMNS, *NAMED))
        both = [_between(each, wanted, best) for each in (own, others.to_dict("records"))]
        for given, row in zip(answers, both, strict=True):
            given.append("no" if differs(row) else "yes" if judged(row) else "inconclusive")
        layers.append({"layer": kind, "amended": both[0], "registered": both[1]})
    amended, first = (_in_all(given) for given in answers)
    more = {"layers": layers, "amended": amended, "registered": first, "others": len(SPLITS) - 1}
    return Judgement(amended if amended == first else "inconclusive", more=more)


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
    return Judgement(answer, [own], more={"highest": ARMS[worst["of"]].label})


def _above_e0m7(loader: ExperimentDataLoader) -> Sequence[Pair]:
    means = {arm: by_seed(runs_of(loader, arm)).mean() for arm in LONG_ARMS}
    worst = max(means, key=lambda arm: means[arm])
    return [(worst, "E0M7 long")] if worst != "E0M7 long" else []


def _runaway_logits(loader: ExperimentDataLoader) -> tuple[Judgement, pd.DataFrame]:
    """Means of the logits at the last look, over the runs of each arm."""
    pairs = [(fmt, how, f"{fmt} head {how}") for fmt in ("E7M0", "NVFP4") for how in ("nearest", "stochastic")]
    if lacking := missing(loader, ["FP32 fresh", *(arm for *_, arm in pairs)]):
        return _pending(lacking), _no_tests()

    def mean(arm: str) -> float:
        last = loader.last_look(runs_of(loader, arm)["run_id"])
        return float(last.loc[last["statistic"] == "logits_mean", "value"].mean())

    fp32, found = mean("FP32 fresh"), [(fmt, how, mean(arm)) for fmt, how, arm in pairs]
    held = [value > RUNAWAY if how == "nearest" else abs(value - fp32) < 1 for _, how, value in found]
    rows = [{"format": fmt, "rounding": how, "mean": value} for fmt, how, value in found]
    answer: Answer = "yes" if all(held) else "no"
    return Judgement(answer, more={"logits": rows, "fp32": fp32}), _no_tests()


def _grows_with_vocabulary(loader: ExperimentDataLoader) -> tuple[Judgement, pd.DataFrame]:
    lacking, tests = growth_with_vocabulary(loader)
    if lacking:
        return _pending(lacking), _no_tests()
    return all_shown(+1)(tests.to_dict("records")), tests[list(TEST_COLUMNS)]


RUNAWAY = 10.0
"""Mean of the logits above which they have run away (second registration)."""


def _stall_ranks(loader: ExperimentDataLoader) -> tuple[Judgement, pd.DataFrame]:
    stalls = loader.memo(StepRuleComparator).stalls
    if lacking := " ".join(dict.fromkeys(text for text in stalls["missing"] if text)):
        return _pending(lacking), _no_tests()
    pairs, above = stalls[stalls["more"].notna()], list(stalls.loc[stalls["spearman"] > RANKS, "format"])
    answer: Answer = "yes" if len(pairs) and not above else "no" if above and pairs.empty else "inconclusive"
    more = {
        "ranks": stalls.to_dict("records"),
        "threshold": RANKS,
        "above": above,
        "pairs": len(pairs),
        "largest": pairs.nlargest(1, "stall_difference").to_dict("records"),
    }
    return Judgement(answer, more=more), pairs[list(TEST_COLUMNS)].reset_index(drop=True)


RANKS = 0.8
"""Spearman's rho above which the stall ratio would rank arms (preregistered)."""

# What an answer does not show


def _decays_differ(loader: ExperimentDataLoader) -> dict[str, Any]:
    codes, adamw = (ARMS[f"E4M3 {rule} stochastic"].config().optimizer.weight_decay for rule in ("code", "adamw"))
    found = {"codes": codes, "adamw": adamw, "decayed": decayed(loader)}
    return {} if codes == adamw else {"decays": found}


def decayed(loader: ExperimentDataLoader) -> list[Row]:
    """Steps of codes with AdamW's decay per step minus AdamW, the family of H35; none while it is not recorded."""
    if missing(loader, itertools.chain.from_iterable(DECAYED)):
        return []
    return list(named_family(loader, DECAYED).to_dict("records"))


DECAYED = [(f"{fmt} decayed fresh", f"{fmt} adamw fresh") for fmt in RULE_FORMATS]


def _mostly_gradients(loader: ExperimentDataLoader) -> dict[str, Any]:
    pairs = [("E7M0", "FP32"), ("E7M0", "E7M0 E5M2 gradients")]
    whole, removed = (named_family(loader, [pair]).to_dict("records")[0] for pair in pairs)
    mostly = removed["low"] > 0 and removed["difference"] > whole["difference"] / 2
    figures = {"of": "E7M0", "with": "E5M2", "whole": whole["difference"], "removed": removed["difference"]}
    return {"gradients": figures} if mostly else {}


def _only_one_tested(loader: ExperimentDataLoader) -> dict[str, Any]:
    pairs = [(f"{fmt} block", fmt) for fmt in RULE_FORMATS if fmt != "E0M7"]
    return {"untested": {"tested": "E0M7", "others": named_family(loader, pairs).to_dict("records")}}


def _only_the_worst(loader: ExperimentDataLoader) -> dict[str, Any]:
    means = {ARMS[arm].format: by_seed(runs_of(loader, arm)).mean() for arm in ("FP32 long", *LONG_ARMS)}
    *others, last = sorted(means, key=lambda name: means[name])
    return {"order": {"formats": len(LONG_ARMS), "others": others, "last": last}}


LONG_ARMS = tuple(f"{fmt} long" for fmt in (*CLOSE_FORMATS, "E0M7"))
ULP_PAIRS = tuple(
    (f"{fmt} update {place}", adamw_arm(fmt, place)) for fmt in RULE_FORMATS for place in ("master", *GRID)
)
HYPOTHESES: tuple[Hypothesis | Description, ...] = (
    Hypothesis(
        "H1",
        "formats",
        [[(fmt, "FP32") for fmt in SPLITS]],
        all_shown(+1, of=("E0M7", "E6M1", "E7M0")),
    ),
    Hypothesis(
        "H2",
        "formats",
        [pairs_of_best(SPLITS)],
        _sweet_spot,
        needs=("FP32", *SPLITS),
    ),
    Hypothesis(
        "H3",
        "formats",
        [[("E0M7 gradients", "E0M7 weights")]],
        all_shown(+1, by=MARGIN),
    ),
    Hypothesis(
        "H4",
        "formats",
        [[("E7M0 activations", "E7M0 gradients")]],
        all_shown(+1, by=MARGIN),
    ),
    Hypothesis(
        "H5",
        "layers",
        [pairs_of_best([f"{fmt} {kind}" for fmt in SPLITS]) for kind in LAYER_TYPES],
        _no_own_sweet_spot,
        needs=("FP32", *(f"{fmt} {kind}" for kind in LAYER_TYPES for fmt in SPLITS)),
    ),
    Hypothesis(
        "H6",
        "storage",
        [[(adamw_arm(fmt, "nearest"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        all_shown(+1),
    ),
    Hypothesis(
        "H7",
        "storage",
        [[(adamw_arm(fmt, "feedback"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        none_worse,
    ),
    Hypothesis(
        "H8",
        "storage",
        [ULP_PAIRS],
        none_shown(-1),
    ),
    Hypothesis(
        "H9",
        "storage",
        [[("E4M3 gradient master", "E4M3")]],
        all_equivalent,
    ),
    Hypothesis(
        "H10",
        "storage",
        [[(f"{fmt} code stochastic", adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        all_shown(+1),
        limit=_decays_differ,
    ),
    Hypothesis(
        "H11",
        "controls",
        [[(f"E4M3 {rule} master", "E4M3", f"FP32 {rule} master", "FP32") for rule in ("update", "gradient")]],
        all_equivalent,
    ),
    Hypothesis(
        "H12",
        "controls",
        [[(f"E4M3 {rule} master", "E4M3 update master") for rule in ("shuffled", "constant")]],
        _ablations,
    ),
    Hypothesis(
        "H13",
        "controls",
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
        _stall_ranks,
    ),
    Hypothesis(
        "H15",
        "literature",
        [[("E4M3 E5M2 gradients", "E5M2 E4M3 gradients")]],
        all_shown(-1),
    ),
    Hypothesis(
        "H16",
        "literature",
        [[("MXFP8", "BF16")], [("MXFP4", "BF16")]],
        in_parts((1, all_equivalent), (1, all_shown(+1))),
    ),
    Hypothesis(
        "H17",
        "remedies",
        [[("E0M7 stochastic gradients", "E0M7"), ("E0M7 E5M2 gradients", "E0M7")]],
        all_shown(-1),
    ),
    Hypothesis(
        "H18",
        "remedies",
        [[("E7M0 E5M2 gradients", "FP32"), ("E7M0 stochastic both", "E7M0")]],
        _not_by_gradients,
        limit=_mostly_gradients,
    ),
    Hypothesis(
        "H19",
        "scaling",
        [[(f"{fmt} {finer}", fmt) for fmt in RULE_FORMATS for finer in ("row", "block")]],
        all_shown(-1, of=("E0M7 block",)),
        limit=_only_one_tested,
    ),
    Hypothesis(
        "H20",
        "length",
        [[(arm, "FP32 long") for arm in LONG_ARMS], _above_e0m7],
        _worst_when_long,
        limit=_only_the_worst,
    ),
    Hypothesis(
        "H21",
        "head",
        [[(f"{fmt} head nearest", f"{fmt} head wide") for fmt in COSTLY]],
        all_shown(+1, by=0.1),
    ),
    Hypothesis(
        "H22",
        "head",
        [[(f"{fmt} head stochastic", f"{fmt} head wide") for fmt in COSTLY]],
        below(0.04),
    ),
    Hypothesis(
        "H23",
        "head",
        [[(f"{fmt} head diffused", f"{fmt} head stochastic") for fmt in (*COSTLY, "E2M5")]],
        within(0.015),
    ),
    Hypothesis(
        "H24",
        "blocks-only",
        [[("E0M7 body", "FP32 fresh")]],
        all_equivalent,
    ),
    Hypothesis(
        "H25",
        "blocks-only",
        [[("NVFP4 body", "MXFP4 up body")]],
        all_shown(-1),
    ),
    Hypothesis(
        "H26",
        "text",
        [[(f"{fmt} head nearest sympy", f"{fmt} head stochastic sympy") for fmt in ("E0M7", "NVFP4")]],
        all_shown(+1, by=0.05),
    ),
    Description(
        "H27",
        "head",
        _runaway_logits,
    ),
    Hypothesis(
        "H28",
        "head-controls",
        [[(f"{fmt} head mean-removed", f"{fmt} head nearest") for fmt in ("E0M7", "E7M0", "MXFP4 up")]],
        all_shown(+1, by=0.3),
    ),
    Hypothesis(
        "H29",
        "head-controls",
        [[(f"{fmt} head residual-on-target", f"{fmt} head wide") for fmt in ("E7M0", "E6M1", "E0M7", "MXFP4 up")]],
        in_parts((2, below(0.03)), (1, all_shown(+1, by=0.1)), (1, all_shown(+1, by=0.3))),
    ),
    Hypothesis(
        "H30",
        "body-operands",
        [[("E7M0 body activations", "E7M0 body gradients")]],
        all_shown(+1),
    ),
    Hypothesis(
        "H31",
        "granularity",
        [[(f"E0M7 {scale} fresh", "E0M7 head nearest") for scale in FINE_SCALES]],
        all_shown(-1),
    ),
    Hypothesis(
        "H32",
        "granularity",
        [[(f"{fmt} tile fresh", "FP32 fresh") for fmt in ("E2M5", "E3M4", "E4M3")]],
        all_equivalent,
    ),
    Hypothesis(
        "H33",
        "rivals",
        [[(f"{fmt} muon fresh", f"{fmt} head nearest") for fmt in RULE_FORMATS]],
        all_shown(-1),
    ),
    Hypothesis(
        "H34",
        "rivals",
        [[(f"{fmt} update fresh", f"{fmt} relative fresh") for fmt in RULE_FORMATS]],
        none_shown(-1),
    ),
    Hypothesis(
        "H35",
        "decay",
        [DECAYED],
        all_shown(+1),
    ),
    Description(
        "H36",
        "vocabulary",
        _grows_with_vocabulary,
    ),
    Hypothesis(
        "H37",
        "vocabulary",
        [[(f"{fmt} head stochastic 2048", f"{fmt} head wide 2048") for fmt in COSTLY]],
        below(0.04),
    ),
)
