"""What the recorded runs show beside what others report on low-precision training.

One rule for all claims: a result agrees where ours is shown in the reported direction, or within the margin where none
is reported; it does not where the opposite is shown; all else is not decided.

docs/sections/literature.md says what is reported and in what setting; a `Claim` says by whom, and which of our runs
`findings` holds against it. Comparisons that were not written down beforehand say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from altgrad.analysis.contrasts import Judge, Judgement, all_equivalent, in_parts, none_worse, same_direction
from altgrad.analysis.hypotheses import Family, weigh
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.studies import RULE_FORMATS, STUDIES, adamw_arm, studies_of

AGREEMENTS = {"yes": "agreement", "no": "no agreement"}


@dataclass(frozen=True)
class Claim:
    """A reported result and what of ours is held against it.

    Attributes:
        id: names its section.
        title: the claim in a line.
        references: name and arXiv identifier.
        families: the contrasts of ours, by arms of `altgrad.studies`.
        judge: whether they show what is reported; None for related work, of which no agreement is claimed.
        planned: the hypothesis of the preregistration, "" for a comparison that is not one.
    """

    id: str
    title: str
    references: tuple[tuple[str, str], ...]
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
    """What the records say beside a claim: a value of `AGREEMENTS`, "inconclusive", "pending" or "related work"; what
    that rests on; and the tests behind it.
    """

    claim: Claim
    answer: str
    judgement: Judgement
    tests: pd.DataFrame = field(compare=False)


FP8_FORMATS = ("Micikevicius et al. 2022, FP8 formats", "2209.05433")
FP8_NUMERICS = ("Noune et al. 2022, 8-bit numerical formats", "2206.02915")
FP8_FIRST = ("Wang et al. 2018, 8-bit floating point training", "1812.08011")
BFLOAT16 = ("Zamirai et al. 2020, revisiting BFloat16 training", "2010.06192")
MX = ("Rouhani et al. 2023, microscaling formats", "2310.10537")
MXFP8_RECIPE = ("Mishra et al. 2025, pre-training with MXFP8", "2506.08027")
MXFP4_TRAINING = ("Training LLMs with MXFP4, 2025", "2502.20586")
MXFP4_NVFP4 = ("Chhugani et al. 2026, MXFP4 quantization", "2603.08713")
FP_SCALING = ("Scaling laws for floating-point training, 2025", "2501.02423")
FP8_AFTERWARDS = ("Post-training quantization with FP8, 2023", "2309.14592")
INT_OR_FP = ("INT v.s. FP, 2025", "2510.25602")
BF16_STOCHASTIC = ("Stochastic rounding for LLM training, 2025", "2502.20566")
NVFP4_TRAINING = ("Pre-training with NVFP4, 2025", "2509.25149")
ECO = ("ECO, 2026", "2601.22101")
MADAM = ("Bernstein et al. 2020, Madam", "2006.14560")
LNS_MADAM = ("Zhao et al. 2021, LNS-Madam", "2106.13914")

CLAIMS = (
    Claim(
        "fp8-like-16-bit",
        "FP8 trains like a 16-bit format",
        (FP8_FORMATS, FP8_NUMERICS, FP8_FIRST),
        [[("E4M3 E5M2 gradients", "BF16")]],
        all_equivalent,
    ),
    Claim(
        "fp8-roles",
        "E5M2 suits gradients better than the forward pass",
        (FP8_FORMATS, FP8_NUMERICS),
        [[("E4M3 E5M2 gradients", "E5M2 E4M3 gradients")]],
        same_direction(-1),
        "H15",
    ),
    Claim(
        "best-split",
        "E4M3 is the best 8-bit format for text",
        (FP_SCALING, FP8_AFTERWARDS),
        [[("E4M3", "E3M4")]],
        same_direction(-1),
    ),
    Claim(
        "exponent-bits",
        "Range is worth more than precision",
        (FP_SCALING,),
        [[("E5M2", "E3M4")]],
        same_direction(-1),
    ),
    Claim(
        "integers",
        "Integers are better under fine scales",
        (INT_OR_FP,),
        [[("E0M7", "E4M3"), ("E0M7 block", "E4M3 block")]],
        in_parts((1, same_direction(+1)), (1, same_direction(-1))),
    ),
    Claim(
        "stochastic-rounding",
        "Low-precision weights need stochastic rounding",
        (BFLOAT16, BF16_STOCHASTIC),
        [[(adamw_arm(fmt, "nearest"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        same_direction(+1),
        "H6",
    ),
    Claim(
        "error-feedback",
        "Error feedback can replace master weights",
        (ECO,),
        [[(adamw_arm(fmt, "feedback"), adamw_arm(fmt, "master")) for fmt in RULE_FORMATS]],
        none_worse,
    ),
    Claim("mxfp8", "MXFP8 as specified is as good as BF16", (MX,), [[("MXFP8", "BF16")]], all_equivalent, "H16"),
    Claim(
        "mx-scales-up",
        "MXFP8's scales have to be rounded up",
        (MXFP8_RECIPE,),
        [[("MXFP8 up", "MXFP8"), ("MXFP8 up", "BF16")]],
        in_parts((1, same_direction(-1)), (1, all_equivalent)),
    ),
    Claim("mxfp4", "MXFP4 is worse than BF16", (MXFP4_TRAINING, MX), [[("MXFP4", "BF16")]], same_direction(+1), "H16"),
    Claim("nvfp4", "NVFP4 is better than MXFP4", (MXFP4_NVFP4,), [[("NVFP4", "MXFP4")]], same_direction(-1)),
    Claim(
        "fp4-stochastic",
        "4-bit gradients need stochastic rounding",
        (MXFP4_TRAINING, NVFP4_TRAINING),
        [[(f"{name} stochastic gradients", name) for name in ("NVFP4", "MXFP4", "MXFP4 up")]],
        in_parts((1, same_direction(-1)), (1, same_direction(+1))),
    ),
    Claim(
        "madam",
        "Steps in units of the grid help",
        (MADAM, LNS_MADAM),
        [[(f"{fmt} update stochastic", adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        None,
    ),
)


def findings(loader: ExperimentDataLoader) -> tuple[Finding, ...]:
    """One finding a claim of `CLAIMS`, in their order."""
    return tuple(_finding(loader, claim) for claim in CLAIMS)


def _finding(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    judgement, tests = weigh(loader, claim.families, claim.judge or (lambda rows: Judgement("inconclusive", rows)))
    answer = AGREEMENTS.get(judgement.answer, judgement.answer)
    related = claim.judge is None and len(tests) > 0
    return Finding(claim, "related work" if related else answer, judgement, tests)
