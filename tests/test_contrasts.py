"""The one dialect of "is this difference shown": what a row shows, what a family answers, with hand-made rows."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from altgrad.analysis.contrasts import (
    TEST_COLUMNS,
    Judge,
    all_equivalent,
    all_shown,
    below,
    beyond,
    by_seed,
    contrast,
    describe,
    differs,
    equivalent,
    family,
    in_parts,
    judged,
    name_of,
    none_shown,
    none_worse,
    reading,
    refuted,
    same_direction,
    shown,
    within,
)
from altgrad.analysis.hypotheses import HYPOTHESES, Hypothesis
from altgrad.analysis.words import in_short
from altgrad.reports.verdicts import evidence


def row(difference: float, p: float = 0.001, tost: float = 0.9, half: float = 0.005, **more: Any) -> dict[str, Any]:
    """A test of 16 pairs: its difference, adjusted p, p of equivalence and half its interval."""
    low, high = difference - half, difference + half
    figures = {"difference": difference, "low": low, "high": high, "p_holm": p, "p_equivalent": tost}
    return {"contrast": "A − B", "n_pairs": 16, "n_ended_badly": 0, "of": "A", "to": "B"} | figures | more


@pytest.mark.parametrize(
    ("pair", "name", "short"),
    [
        (("E4M3", "FP32"), "E4M3 − FP32", ""),
        (("E0M7 body", "FP32 fresh"), "E0M7 in attention and mlp − FP32", ""),
        (("E4M3 muon fresh", "E4M3 head nearest"), "E4M3 Muon − E4M3 AdamW", "E4M3 Muon − AdamW"),
        (("E4M3 relative fresh", "E4M3 head nearest"), "E4M3 AdamW, relative rate − E4M3 AdamW", ""),
        (("FP32 muon fresh", "FP32 fresh"), "FP32 Muon − FP32 AdamW", "FP32 Muon − AdamW"),
        (("E0M7 square fresh", "E0M7 head nearest"), "E0M7 with one scale per square of 32 x 32 − E0M7", ""),
        (("NVFP4 head nearest", "MXFP4 up head nearest"), "NVFP4 − MXFP4 (scales up)", ""),
        (("E0M7 head nearest", "FP32 fresh"), "E0M7, gradient of the logits rounded to nearest − FP32", ""),
        (
            ("E0M7 head nearest sympy", "E0M7 head wide"),
            "E0M7, gradient of the logits rounded to nearest; source code − E0M7, gradient of the logits not quantized",
            "E0M7, gradient of the logits rounded to nearest; source code − not quantized",
        ),
        (
            ("E0M7 head nearest 512", "FP32 512"),
            "E0M7, gradient of the logits rounded to nearest; 512 tokens − FP32; 512 tokens",
            "E0M7, gradient of the logits rounded to nearest − FP32; 512 tokens",
        ),
        (
            ("E4M3 relative master misscaled", "E4M3 adamw master misscaled"),
            "E4M3 AdamW, relative rate, mis-scaled − E4M3 AdamW, mis-scaled",
            "",
        ),
        (
            ("E4M3 adamw feedback", "E4M3 adamw stochastic"),
            "E4M3 AdamW (grid, error feedback) − E4M3 AdamW (grid, stochastic)",
            "E4M3 AdamW (grid, error feedback − stochastic)",
        ),
        (
            ("E4M3 update master", "E4M3", "FP32 update master", "FP32"),
            "(E4M3 ManifoldAdamW − E4M3 AdamW) − (FP32 ManifoldAdamW − FP32 AdamW)",
            "",
        ),
    ],
)
def test_a_contrast_is_called_by_what_differs(pair: tuple[str, ...], name: str, short: str) -> None:
    assert name_of(*pair) == name
    assert in_short(name) == (short or name)


HIGHER, LOWER, UNDECIDED = row(0.05), row(-0.05), row(0.01, p=0.4, half=0.03)
TIED = row(0.001, p=0.5, tost=0.001)
SMALL = row(0.004, p=0.001, tost=0.001, half=0.002)
"""Shown to be higher, and shown to lie within the margin."""
LOST = row(0.05, p=math.nan, tost=math.nan, n_ended_badly=2)
"""Two runs did not finish: no p-value, whatever the survivors ended at."""
ONE_PAIR = row(math.nan, p=math.nan, tost=math.nan, n_pairs=1)


@pytest.mark.parametrize(
    ("made", "says", "is_judged", "is_higher", "differing", "same"),
    [
        (HIGHER, "higher", True, True, True, False),
        (LOWER, "lower", True, False, True, False),
        (UNDECIDED, "undecided", True, False, False, False),
        (TIED, "equivalent", True, False, False, True),
        (SMALL, "higher, within the margin", True, True, True, True),
        (row(-0.004, tost=0.001), "lower, within the margin", True, False, True, True),
        (LOST, "not judged: 2 runs did not finish", False, False, False, False),
        (row(0.05, n_ended_badly=1), "not judged: 1 run did not finish", False, False, False, False),
        (ONE_PAIR, "undecided", False, False, False, False),
        (row(0.05, n_pairs=1), "undecided", False, False, False, False),
        (row(0.05, p=0.05), "undecided", True, False, False, False),
    ],
)
def test_what_a_row_shows(
    made: dict[str, Any], says: str, is_judged: bool, is_higher: bool, differing: bool, same: bool
) -> None:
    found = (reading(made), judged(made), shown(made, +1), differs(made), equivalent(made))
    assert found == (says, is_judged, is_higher, differing, same)


def test_marks_of_their_own_are_tested_by_themselves_and_counted() -> None:
    """`row` has 16 pairs; the sd is that of half its interval, and scipy tests each mean against the mark."""
    sd = 0.005 * 4 / stats.t.ppf(0.975, 15)
    near, far = (row(difference, sd=sd, p_value=0.001) for difference in (0.008, 0.014))
    for made, passes in ((near, True), (far, False)):
        p = stats.t.sf((0.015 - made["difference"]) * 4 / sd, 15)
        assert (p < 0.05) == passes == equivalent(made, 0.015)
    assert (within(0.015)([near]).answer, within(0.015)([near, far]).answer) == ("yes", "inconclusive")
    assert within(0.015)([near, far]).more["held"] == 1
    assert within(0.015)([row(0.03, sd=sd, p_value=0.001)]).answer == "no"
    assert (below(0.04)([near, row(0.038)]).answer, below(0.04)([near, row(0.038)]).more["held"]) == ("inconclusive", 1)
    assert [below(0.04)([made]).answer for made in (row(0.034), row(0.046), LOST)] == ["yes", "no", "inconclusive"]
    assert evidence(below(0.04)([near]), "outcome") == "1 of 1 shown to be below 0.04"


def test_a_difference_by_which_much_is_claimed_is_no_smaller() -> None:
    assert shown(HIGHER, +1, by=0.04)
    assert not shown(HIGHER, +1, by=0.05)
    assert not shown(LOWER, +1, by=0.0)
    assert shown(row(-0.05), -1, by=0.04)


def test_a_claim_is_refuted_by_its_opposite_or_by_equivalence_and_never_where_it_is_shown() -> None:
    assert refuted(LOWER, +1)
    assert refuted(TIED, +1)
    assert not refuted(SMALL, +1)
    assert refuted(SMALL, +1, by=0.01)
    assert not refuted(UNDECIDED, +1)
    assert refuted(HIGHER, +1, by=0.2), "the interval ends before what is claimed"
    assert refuted(LOWER, -1, by=0.2)
    assert not refuted(HIGHER, +1, by=0.054), "the interval reaches beyond"
    assert not refuted(LOST, +1, by=0.2)
    assert not refuted(LOST, +1)


def test_beyond_is_of_the_whole_interval() -> None:
    assert beyond(HIGHER, 0.04)
    assert not beyond(HIGHER, 0.046)
    assert beyond(LOWER, -0.04)
    assert not beyond(row(0.05, n_ended_badly=1), 0.0)


FIRST = row(-0.05, of="C")
ANSWERS: list[tuple[str, Judge, list[dict[str, Any]], str]] = [
    ("all shown", all_shown(+1), [HIGHER, SMALL], "yes"),
    ("one undecided", all_shown(+1), [HIGHER, UNDECIDED], "inconclusive"),
    ("the opposite", all_shown(+1), [HIGHER, LOWER], "no"),
    ("equivalence only", all_shown(+1), [HIGHER, TIED], "no"),
    ("an arm that did not finish", all_shown(+1), [HIGHER, LOST], "inconclusive"),
    ("an arm that did not finish, and the opposite", all_shown(+1), [LOST, LOWER], "no"),
    ("shown, but not by enough and within the margin", all_shown(+1, by=0.01), [SMALL], "no"),
    ("shown, and not by enough", all_shown(+1, by=0.1), [HIGHER], "no"),
    ("shown, and perhaps by enough", all_shown(+1, by=0.052), [HIGHER], "inconclusive"),
    ("one pair", all_shown(+1), [ONE_PAIR], "inconclusive"),
    ("those that decide", all_shown(+1, of=("A",)), [HIGHER, FIRST], "yes"),
    ("those that decide, the others", all_shown(+1, of=("C",)), [HIGHER, FIRST], "no"),
    ("all within the margin", all_equivalent, [TIED, SMALL], "yes"),
    ("an interval beyond the margin", all_equivalent, [TIED, HIGHER], "no"),
    ("an interval beyond the margin, below", all_equivalent, [LOWER], "no"),
    ("a difference of open size", all_equivalent, [row(0.012)], "inconclusive"),
    ("no run left to be equivalent", all_equivalent, [TIED, LOST], "inconclusive"),
    ("no interval reaches the margin", none_worse, [TIED, LOWER], "yes"),
    ("an interval reaches it", none_worse, [UNDECIDED], "inconclusive"),
    ("an interval lies beyond it", none_worse, [HIGHER], "no"),
    ("an arm that did not finish may be worse", none_worse, [LOST], "inconclusive"),
    ("whatever its survivors ended at", none_worse, [row(-0.05, n_ended_badly=1)], "inconclusive"),
    ("no difference is shown", none_shown(-1), [HIGHER, UNDECIDED, TIED], "yes"),
    ("one is", none_shown(-1), [HIGHER, LOWER], "no"),
    ("one is, within the margin", none_shown(+1), [SMALL], "no"),
    ("not all are judged", none_shown(-1), [HIGHER, LOST], "inconclusive"),
    ("the reported direction is shown", same_direction(+1), [HIGHER, SMALL], "yes"),
    ("the other one is", same_direction(-1), [LOWER, HIGHER], "no"),
    ("neither is, though within the margin", same_direction(-1), [LOWER, TIED], "inconclusive"),
    ("both parts hold", in_parts((1, all_equivalent), (1, all_shown(+1))), [TIED, HIGHER], "yes"),
    ("one part does not hold", in_parts((1, all_equivalent), (1, all_shown(+1))), [HIGHER, HIGHER], "no"),
    ("one part is open", in_parts((1, all_equivalent), (1, all_shown(+1))), [UNDECIDED, HIGHER], "inconclusive"),
    ("one is open, one does not hold", in_parts((1, all_equivalent), (1, all_shown(+1))), [UNDECIDED, LOWER], "no"),
]


@pytest.mark.parametrize(("judge", "rows", "answer"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_what_a_family_answers(judge: Judge, rows: list[dict[str, Any]], answer: str) -> None:
    assert judge(rows).answer == answer


def test_the_size_of_a_shown_difference_is_said_to_be_open_only_where_one_is_shown() -> None:
    assert "its size, not its presence, is open" in evidence(all_equivalent([row(0.012)]))
    assert "open" not in evidence(all_equivalent([UNDECIDED]))


def test_evidence_has_each_figure_or_of_many_their_number_and_the_extremes() -> None:
    few = evidence(all_shown(+1)([HIGHER, LOST]))
    assert few == (
        "A − B: +0.050 nats [+0.045, +0.055], n = 16, adjusted p = 0.001; "
        "A − B: +0.050 nats [+0.045, +0.055], n = 16, no p-value, 2 runs did not finish."
    )
    many = evidence(all_shown(+1)([HIGHER, HIGHER, LOWER, TIED, UNDECIDED, LOST]))
    assert many.startswith("lower in 1 of 6, higher in 2, 1 not judged because runs did not finish; A − B: −0.050 ")
    assert "; A − B: +0.050 " in many
    assert describe(TIED, tost=True).endswith("adjusted p = 0.500, TOST p = 0.001")


def test_in_short_it_has_how_many_went_which_way_and_by_how_much() -> None:
    def short(*rows: dict[str, Any]) -> tuple[str, str]:
        found = all_shown(+1)(rows)
        return evidence(found, "outcome"), evidence(found, "sizes")

    assert short(SMALL) == ("higher loss, shown to be below the margin", "+0.004 (0.002 to 0.006)")
    assert short(HIGHER, LOWER) == (
        "higher loss in 1 of 2, lower loss in 1 of 2",
        "+0.050 (0.045 to 0.055); −0.050 (−0.055 to −0.045)",
    )
    assert short(HIGHER, LOST, TIED, LOWER, UNDECIDED) == (
        "higher loss in 1 of 5, not judged: 2 runs did not finish in 1 of 5, shown to be within the margin in 1 of 5, "
        "lower loss in 1 of 5, unresolved in 1 of 5",
        "−0.050 (−0.055 to −0.045) up to +0.050 (0.045 to 0.055)",
    )
    assert short(LOST, LOST, LOST)[1] == ""


EDGES = [
    ("H12", [HIGHER, UNDECIDED], "yes"),
    ("H12", [HIGHER, TIED], "yes"),
    ("H12", [HIGHER, LOWER], "inconclusive"),  # constant better than S: not what was stated, nor its opposite
    ("H12", [HIGHER, HIGHER], "no"),
    ("H12", [TIED, TIED], "no"),
    ("H12", [UNDECIDED, TIED], "inconclusive"),
    ("H12", [HIGHER, LOST], "inconclusive"),
    ("H12", [LOST, HIGHER], "no"),
    ("H16", [TIED, HIGHER], "yes"),
    ("H16", [TIED, TIED], "no"),
    ("H16", [row(0.012), HIGHER], "inconclusive"),
    ("H18", [row(0.07), LOWER], "yes"),
    ("H18", [row(0.052), LOWER], "inconclusive"),  # its interval holds .05
    ("H18", [row(0.02), LOWER], "no"),
    ("H18", [row(0.07), HIGHER], "no"),
    ("H18", [row(0.07), row(-0.001, p=0.5, tost=0.001)], "no"),
    ("H18", [LOST, LOWER], "inconclusive"),
    ("H18", [row(0.07), LOST], "inconclusive"),
]


@pytest.mark.parametrize(("identity", "rows", "answer"), EDGES)
def test_answers_of_rules_of_one_hypothesis_alone(identity: str, rows: list[dict[str, Any]], answer: str) -> None:
    hypothesis = next(each for each in HYPOTHESES if each.id == identity)
    assert isinstance(hypothesis, Hypothesis)
    assert hypothesis.judge(rows).answer == answer


def runs(losses: dict[int, float], status: str = "finished") -> pd.DataFrame:
    rows = [{"seed": seed, "final_val_loss": loss, "status": status} for seed, loss in losses.items()]
    return pd.DataFrame(rows).assign(arm="arm", run_id=[f"run-{seed}" for seed in losses])


def test_a_contrast_pairs_by_seed_and_is_not_judged_by_survivors() -> None:
    one, other = runs({1: 2.0, 2: 2.5, 3: 2.2}), runs({2: 2.4, 3: 2.0, 4: 9.0})
    whole = contrast("name", one, other)
    assert (whole["n_pairs"], whole["n_ended_badly"]) == (2, 0)
    assert whole["difference"] == pytest.approx(0.15)
    assert whole["p_value"] > 0
    lost = contrast("name", one, pd.concat([other, runs({1: math.nan}, "failed")]))
    assert (lost["n_pairs"], lost["n_ended_badly"]) == (2, 1)
    assert lost["difference"] == pytest.approx(0.15)
    assert math.isnan(lost["p_value"])
    assert math.isnan(lost["p_equivalent"])
    twice = contrast("name", one, other, other, one)
    assert twice["difference"] == pytest.approx(0.30)


def test_of_a_seed_recorded_twice_the_finished_run_counts() -> None:
    twice = pd.concat([runs({1: 2.0}), runs({1: math.nan}, "failed")])
    assert by_seed(twice).to_dict() == by_seed(twice[::-1]).to_dict() == {1: 2.0}


def test_a_family_counts_a_test_without_a_p_value_and_gives_it_none() -> None:
    made = [dict.fromkeys(TEST_COLUMNS, 0.0) | {"p_value": p} for p in (0.01, math.nan, 0.02)]
    assert family(made)["p_holm"].tolist() == pytest.approx([0.03, math.nan, 0.04], nan_ok=True)
    assert family([]).empty
