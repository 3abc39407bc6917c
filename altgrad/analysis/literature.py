"""What others report on low-precision training, in our words, and what the recorded runs show beside it.

A `Claim` says what is reported, by whom and at which scale; `findings` holds the campaign's runs against each. H15 and
H16 of the preregistration are among them; the other comparisons were not written down beforehand and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.preregistered import (
    SEEDS,
    TEST_COLUMNS,
    Answer,
    Verdict,
    contrast,
    family,
    in_words,
    missing,
    select,
)
from altgrad.analysis.statistics import ALPHA, MARGIN
from altgrad.config import OPERANDS

Agreement = Literal["agreement", "no agreement", "inconclusive", "pending", "related work"]
Rows = list[dict[Any, Any]]


@dataclass(frozen=True)
class Claim:
    """A reported result and what of ours is held against it.

    Attributes:
        id: names its section.
        question: that it answers.
        reported: what they report, in our words; only what their abstracts say.
        scale: at which it was reported.
        references: name and arXiv identifier.
        ours: which arms are compared, in words.
        differs: why the settings differ, and so why the results may.
        studies: whose runs decide it.
        planned: the hypothesis of the preregistration, "" for a comparison that is not one.
    """

    id: str
    question: str
    reported: str
    scale: str
    references: tuple[tuple[str, str], ...]
    ours: str
    differs: str
    studies: tuple[str, ...]
    planned: str = ""


@dataclass(frozen=True)
class Finding:
    """What the records say beside a claim: the answer, a sentence with the figures, and the tests behind it."""

    claim: Claim
    answer: Agreement
    evidence: str
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TEST_COLUMNS)), compare=False)


FP8_FORMATS = ("Micikevicius et al. 2022, FP8 formats", "2209.05433")
FP8_NUMERICS = ("Noune et al. 2022, 8-bit numerical formats", "2206.02915")
FP8_FIRST = ("Wang et al. 2018, training with 8-bit floating point", "1812.08011")
BFLOAT16 = ("Zamirai et al. 2020, revisiting BFloat16 training", "2010.06192")
MX = ("Rouhani et al. 2023, microscaling formats", "2310.10537")
MXFP8_RECIPE = ("Mishra et al. 2025, pre-training with MXFP8", "2506.08027")
MXFP4_TRAINING = ("Training LLMs with MXFP4, 2025", "2502.20586")
MXFP4_NVFP4 = ("Chhugani et al. 2026, MXFP4 quantization", "2603.08713")
MADAM = ("Bernstein et al. 2020, Madam", "2006.14560")
LNS_MADAM = ("Zhao et al. 2021, LNS-Madam", "2106.13914")

SIMULATED = (
    "Ours is a character model of two layers, trained for a few hundred steps in simulated formats: products "
    "accumulate in 32 bits, and every linear layer is quantized, the head and the embedding's table included."
)
CLAIMS = (
    Claim(
        "fp8-like-16-bit",
        "Does FP8 with E4M3 forward and E5M2 gradients train like a 16-bit format?",
        "Training with E4M3 for weights and activations and E5M2 for gradients matches 16-bit training with the same "
        "hyperparameters.",
        "Image and language models; convolutional, recurrent and transformer networks, the largest of 175 billion "
        "parameters.",
        (FP8_FORMATS, FP8_NUMERICS, FP8_FIRST),
        "E4M3 forward with E5M2 gradients against BF16: equivalent within the margin of the preregistration?",
        SIMULATED + " Theirs are whole training sessions of large models.",
        ("formats", "literature"),
    ),
    Claim(
        "fp8-roles",
        "Is E5M2 for the gradients better than E5M2 forward?",
        "E4M3 is recommended for weights and activations, which need precision, and E5M2 for gradients, which need "
        "range; an independent study of bit widths arrives at the same division.",
        "As above; the second with image classifiers and language models such as BERT.",
        (FP8_FORMATS, FP8_NUMERICS),
        "E4M3 forward with E5M2 gradients against E5M2 forward with E4M3 gradients.",
        SIMULATED + " With a scale for each tensor and step, E4M3 loses little range in gradients of so small a model, "
        "so that the reverse may lose less here than where scales are rare or gradients spread wider.",
        ("literature",),
        planned="H15",
    ),
    Claim(
        "stochastic-rounding",
        "Do weights that are kept in low precision need stochastic rounding?",
        "Rounding weight updates to nearest cancels small updates and costs accuracy; stochastic rounding or Kahan "
        "summation wins it back.",
        "Seven applications of deep learning, weights in bfloat16.",
        (BFLOAT16,),
        "Weights on the grid under AdamW, rounded to nearest against stochastically, each at its tuned rate (the tests "
        "of H6).",
        "Theirs are 16-bit weights, whose grid is finer by far; ours are 8-bit grids with one scale a tensor, and the "
        "optimizer's moments stay in 32 bits. " + SIMULATED,
        ("storage",),
        planned="H6",
    ),
    Claim(
        "mxfp8",
        "Is MXFP8 as good as BF16?",
        "Block-scaled 8-bit formats train as a drop-in replacement; with E4M3 elements for all operands training "
        "matches BF16.",
        "Over two dozen benchmarks; language models of up to 8 billion parameters and 15 trillion tokens.",
        (MX, MXFP8_RECIPE),
        "MXFP8 with E4M3 elements in all operands against BF16: equivalent within the margin?",
        SIMULATED + " The scale of a block is rounded down here, as the specification says; the recipe for "
        "pre-training has a conversion of its own.",
        ("formats", "literature"),
        planned="H16",
    ),
    Claim(
        "mx-scales-up",
        "Do MXFP8's scales have to be rounded up?",
        "The rounding of scales that the specification suggests can make pre-training diverge; with scales rounded "
        "towards infinity, training in MXFP8 matches BF16.",
        "Language models of up to 8 billion parameters and 15 trillion tokens.",
        (MXFP8_RECIPE,),
        "MXFP8 with scales rounded up against MXFP8 with the specification's, rounded down: a lower loss? And against "
        "BF16: equivalent within the margin?",
        SIMULATED + " A scale rounded down clips a block's largest element, which ours shows without divergence.",
        ("formats", "literature", "blocks"),
    ),
    Claim(
        "mxfp4",
        "Is MXFP4 as good as BF16?",
        "Used directly for all products, MXFP4 degrades training noticeably against BF16; special recipes (random "
        "Hadamard transforms, stochastic rounding) win most of it back. Below 8 bits, with block scales, training with "
        "minimal loss is reported as well.",
        "GPT models of up to 6.7 billion parameters.",
        (MXFP4_TRAINING, MX),
        "MXFP4 (E2M1) in all operands, rounded to nearest, against BF16: worse?",
        SIMULATED + " The recipes are not part of it.",
        ("formats", "literature"),
        planned="H16",
    ),
    Claim(
        "nvfp4",
        "Is NVFP4 closer than MXFP4?",
        "MXFP4 lags behind NVFP4, whose blocks are half as long and whose scales have a mantissa.",
        "Inference of several large language models.",
        (MXFP4_NVFP4,),
        "NVFP4 against MXFP4, all operands, rounded to nearest: a lower loss?",
        "Theirs is inference with trained weights, ours is training. " + SIMULATED,
        ("literature",),
    ),
    Claim(
        "fp4-stochastic",
        "Do 4-bit gradients want stochastic rounding?",
        "Unbiased gradients by stochastic rounding are the key to training in MXFP4; applied directly, they vary so "
        "much that convergence suffers, and a random Hadamard transform bounds that.",
        "GPT models of up to 6.7 billion parameters.",
        (MXFP4_TRAINING,),
        "Gradients rounded stochastically against to nearest, without a transform: NVFP4, whose scales clip nothing, a "
        "lower loss, and MXFP4 a higher one? MXFP4 with its scales rounded up stands beside them.",
        SIMULATED + " Theirs is about MXFP4 alone; NVFP4 and scales rounded up show here what clipping has to do with "
        "it.",
        ("literature", "blocks"),
    ),
    Claim(
        "madam",
        "Do steps in units of the grid help?",
        "Multiplicative updates (Madam) train without tuning a learning rate, and on a logarithmic grid of 8 bits "
        "(LNS-Madam) reach about the accuracy of full precision.",
        "Image and language tasks.",
        (MADAM, LNS_MADAM),
        "Steps in ulps, a relative of Madam on floating-point grids, against AdamW: weights on the grid, rounded "
        "stochastically, each at its tuned rate (among the tests of H8).",
        "Not the same method: their updates are multiplicative on a logarithmic grid, ours follow AdamW's direction "
        "with a step of some ulps. So no agreement is claimed either way.",
        ("storage",),
    ),
)


def findings(loader: ExperimentDataLoader) -> tuple[Finding, ...]:
    """One finding a claim of `CLAIMS`, in their order."""
    return tuple(_COMPARED[claim.id](loader, claim) for claim in CLAIMS)


def literature_verdicts(loader: ExperimentDataLoader) -> tuple[Verdict, ...]:
    """What the records say of the preregistered hypotheses on the literature: H15 and H16."""
    return (_h15(loader), _h16(loader))


def _h15(loader: ExperimentDataLoader) -> Verdict:
    statement = "E4M3 forward with E5M2 gradients ends lower than the reverse."
    ours, reverse = _mixed(loader, "e4m3", "e5m2"), _mixed(loader, "e5m2", "e4m3")
    arms = {"E4M3 forward with E5M2 gradients": ours, "E5M2 forward with E4M3 gradients": reverse}
    if lacking := missing(arms, SEEDS):
        return Verdict("H15", "literature", statement, "pending", lacking)
    tests = family([contrast("E4M3 forward with E5M2 gradients − the reverse", ours, reverse)])
    rows = tests.to_dict("records")
    return Verdict("H15", "literature", statement, _differs(rows, -1), _said(rows), tests)


def _h16(loader: ExperimentDataLoader) -> Verdict:
    statement = "MXFP8 (E4M3) is equivalent to BF16; MXFP4 (E2M1) is worse than BF16."
    bf16, mxfp8, mxfp4 = _bf16(loader), _scaled(loader, "e4m3", "mx"), _scaled(loader, "e2m1", "mx")
    if lacking := missing({"BF16": bf16, "MXFP8": mxfp8, "MXFP4": mxfp4}, SEEDS):
        return Verdict("H16", "literature", statement, "pending", lacking)
    # TOST for the first and one test for the second: two families of one each, as the preregistration has them.
    eight, four = family([contrast("MXFP8 − BF16", mxfp8, bf16)]), family([contrast("MXFP4 − BF16", mxfp4, bf16)])
    tests = pd.concat([eight, four], ignore_index=True)
    answer = _both(_equivalent(eight.to_dict("records")), _differs(four.to_dict("records"), +1))
    return Verdict("H16", "literature", statement, answer, _said(tests.to_dict("records")), tests)


def _differs(rows: Rows, sign: int) -> Answer:
    """Whether all differences are shown to have the sign; "no" where one has the other, or is shown to be none."""
    if any(row["n_ended_badly"] for row in rows):
        return "inconclusive"
    if all(row["p_holm"] < ALPHA and sign * row["difference"] > 0 for row in rows):
        return "yes"
    for row in rows:
        told = row["p_holm"] < ALPHA
        if (told and sign * row["difference"] < 0) or (not told and row["p_equivalent"] < ALPHA):
            return "no"
        if told and sign * row["difference"] > 0:
            continue
    return "inconclusive"


def _equivalent(rows: Rows) -> Answer:
    """Whether all differences are shown to lie within the margin; "no" where an interval lies beyond it."""
    if any(row["n_ended_badly"] for row in rows):
        return "inconclusive"
    if all(row["p_equivalent"] < ALPHA for row in rows):
        return "yes"
    return "no" if any(row["low"] > MARGIN or row["high"] < -MARGIN for row in rows) else "inconclusive"


def _both(*answers: Answer) -> Answer:
    """Of a statement in parts: "no" where one does not hold."""
    return "yes" if set(answers) == {"yes"} else "no" if "no" in answers else "inconclusive"


def _said(rows: Rows) -> str:
    return (
        "; ".join(
            f"{row['contrast']}: {in_words(row)}"
            + (f", TOST p = {row['p_equivalent']:.3f}" if row["p_equivalent"] == row["p_equivalent"] else "")
            for row in rows
        )
        + "."
    )


def _finding(
    claim: Claim, arms: dict[str, tuple[pd.DataFrame, pd.DataFrame]], judge: Callable[[Rows], Answer]
) -> Finding:
    """A claim against contrasts that form a family: name -> (runs, runs that are subtracted)."""
    named: dict[str, pd.DataFrame] = {}
    for name, (runs, against) in arms.items():
        first, _, second = name.partition(" − ")
        named |= {first: runs, second: against}
    if lacking := missing(named, SEEDS):
        return Finding(claim, "pending", lacking)
    tests = family([contrast(name, *pair) for name, pair in arms.items()])
    rows: Rows = tests.to_dict("records")
    words: dict[Answer, Agreement] = {"yes": "agreement", "no": "no agreement", "inconclusive": "inconclusive"}
    return Finding(claim, words[judge(rows)], _said(rows), tests)


def _like_16_bit(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    pair = (_mixed(loader, "e4m3", "e5m2"), _bf16(loader))
    return _finding(claim, {"E4M3 forward with E5M2 gradients − BF16": pair}, _equivalent)


def _roles(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    pair = (_mixed(loader, "e4m3", "e5m2"), _mixed(loader, "e5m2", "e4m3"))
    return _finding(claim, {"E4M3 forward with E5M2 gradients − the reverse": pair}, lambda rows: _differs(rows, -1))


def _stochastic(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    arms = {
        f"{name} to nearest − {name} stochastically": (
            _grid(loader, name, "nearest_even"),
            _grid(loader, name, "stochastic"),
        )
        for name in ("E4M3", "E5M2", "E0M7")
    }
    return _finding(claim, arms, lambda rows: _differs(rows, +1))


def _mxfp8(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    return _finding(claim, {"MXFP8 − BF16": (_scaled(loader, "e4m3", "mx"), _bf16(loader))}, _equivalent)


def _scales_up(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    up = _scaled(loader, "e4m3", "mx_rceil", "blocks")
    name = "MXFP8 with scales rounded up"
    arms = {f"{name} − MXFP8": (up, _scaled(loader, "e4m3", "mx")), f"{name} − BF16": (up, _bf16(loader))}
    return _finding(claim, arms, lambda rows: _both(_differs(rows[:1], -1), _equivalent(rows[1:])))


def _mxfp4(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    pair = (_scaled(loader, "e2m1", "mx"), _bf16(loader))
    return _finding(claim, {"MXFP4 − BF16": pair}, lambda rows: _differs(rows, +1))


def _nvfp4(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    pair = (_scaled(loader, "e2m1", "nvfp4"), _scaled(loader, "e2m1", "mx"))
    return _finding(claim, {"NVFP4 − MXFP4": pair}, lambda rows: _differs(rows, -1))


def _stochastic_fp4(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    kinds = {"NVFP4": ("nvfp4", "literature"), "MXFP4": ("mx", "literature"), "MXFP4 scaled up": ("mx_rceil", "blocks")}
    arms = {}
    for name, (kind, study) in kinds.items():
        known = _scaled(loader, "e2m1", kind, "blocks", "stochastic")
        nearest = _scaled(loader, "e2m1", kind, study)
        arms[f"{name} stochastically − {name} to nearest"] = (known, nearest)
    return _finding(claim, arms, lambda rows: _both(_differs(rows[:1], -1), _differs(rows[1:2], +1)))


def _madam(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    arms = {
        f"{name} in ulps − {name} under AdamW": (
            _grid(loader, name, "stochastic", "update"),
            _grid(loader, name, "stochastic"),
        )
        for name in ("E4M3", "E5M2", "E0M7")
    }
    found = _finding(claim, arms, lambda rows: "inconclusive")
    return found if found.answer == "pending" else Finding(claim, "related work", found.evidence, found.tests)


_COMPARED: dict[str, Callable[[ExperimentDataLoader, Claim], Finding]] = {
    "fp8-like-16-bit": _like_16_bit,
    "fp8-roles": _roles,
    "stochastic-rounding": _stochastic,
    "mxfp8": _mxfp8,
    "mx-scales-up": _scales_up,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "fp4-stochastic": _stochastic_fp4,
    "madam": _madam,
}


def _mixed(loader: ExperimentDataLoader, forward: str, backward: str) -> pd.DataFrame:
    return select(loader, "literature", weight=forward, activation=forward, grad_output=backward)


def _scaled(
    loader: ExperimentDataLoader, fmt: str, kind: str, study: str = "literature", gradients: str = "nearest_even"
) -> pd.DataFrame:
    """All operands in one format and kind of scale, with the gradients' rounding."""
    wanted = {"scaling__kind": kind, "quantize__rounding__grad_output": gradients}
    return select(loader, study, **wanted, **dict.fromkeys(OPERANDS, fmt))


def _bf16(loader: ExperimentDataLoader) -> pd.DataFrame:
    return select(loader, "formats", **dict.fromkeys(OPERANDS, "bf16"))


def _grid(loader: ExperimentDataLoader, name: str, rounding: str, precondition: str | None = None) -> pd.DataFrame:
    """Study storage's arm with its weights on the grid: AdamW, or steps in ulps with `precondition` "update"."""
    runs = select(loader, "storage", format=name, storage="grid", rounding=rounding, optimizer__relative=False)
    rule = "adamw" if precondition is None else "manifold"
    runs = runs[runs["step_rule"] == rule]
    return runs if precondition is None else runs[runs["precondition"] == precondition]
