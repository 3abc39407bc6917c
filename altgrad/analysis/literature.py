"""What others report on low-precision training, in our words, and what the recorded runs show beside it.

A `Claim` says what is reported, by whom and at which scale; `findings` holds the campaign's runs against each. H15 and
H16 of the preregistration are among them; the other comparisons were not written down beforehand and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from altgrad.analysis.contrasts import TEST_COLUMNS, Answer, Judge, Judgement, Rows, all_equivalent, all_shown, in_parts
from altgrad.analysis.hypotheses import Family, weigh
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.studies import RULE_FORMATS, STUDIES, adamw_arm, studies_of

Agreement = Literal["agreement", "no agreement", "inconclusive", "pending", "related work"]
AGREEMENTS: dict[Answer, Agreement] = {
    "yes": "agreement",
    "no": "no agreement",
    "inconclusive": "inconclusive",
    "pending": "pending",
}


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
        families: the contrasts of ours, by arms of `altgrad.studies`.
        judge: whether they show what is reported; None for related work, of which no agreement is claimed.
        planned: the hypothesis of the preregistration, "" for a comparison that is not one.
    """

    id: str
    question: str
    reported: str
    scale: str
    references: tuple[tuple[str, str], ...]
    ours: str
    differs: str
    families: Sequence[Family]
    judge: Judge | None
    planned: str = ""

    @property
    def studies(self) -> tuple[str, ...]:
        """Whose runs decide it."""
        arms = {arm for family in self.families if not callable(family) for pair in family for arm in pair}
        return tuple(name for name in STUDIES if any(name in studies_of(arm) for arm in arms))


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
        [[("E4M3 E5M2 gradients", "BF16")]],
        all_equivalent,
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
        [[("E4M3 E5M2 gradients", "E5M2 E4M3 gradients")]],
        all_shown(-1),
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
        [[(adamw_arm(fmt, "nearest"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        all_shown(+1),
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
        [[("MXFP8", "BF16")]],
        all_equivalent,
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
        [[("MXFP8 up", "MXFP8"), ("MXFP8 up", "BF16")]],
        in_parts((1, all_shown(-1)), (1, all_equivalent)),
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
        [[("MXFP4", "BF16")]],
        all_shown(+1),
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
        [[("NVFP4", "MXFP4")]],
        all_shown(-1),
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
        [[(f"{name} stochastic gradients", name) for name in ("NVFP4", "MXFP4", "MXFP4 up")]],
        in_parts((1, all_shown(-1)), (1, all_shown(+1))),
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
        [[(f"{fmt} update stochastic", adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        None,
    ),
)


def findings(loader: ExperimentDataLoader) -> tuple[Finding, ...]:
    """One finding a claim of `CLAIMS`, in their order."""
    return tuple(_finding(loader, claim) for claim in CLAIMS)


def _finding(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    answer, evidence, tests = weigh(loader, claim.families, claim.judge or _as_they_are)
    agreement = AGREEMENTS[answer]
    return Finding(claim, "related work" if claim.judge is None and len(tests) else agreement, evidence, tests)


def _as_they_are(rows: Rows) -> Judgement:
    return Judgement("inconclusive", rows)
