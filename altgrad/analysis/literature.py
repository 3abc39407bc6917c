"""What the recorded runs show beside what others report on low-precision training.

One rule for all claims: a result agrees where ours is shown in the reported direction, or within the margin where none
is reported; it does not where the opposite is shown; all else is not decided.

docs/sections/literature.md says what is reported, by whom and in what setting; a `Claim` says which of our runs
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
        id: names its section, and what docs/sections/literature.md says of it.
        families: the contrasts of ours, by arms of `altgrad.studies`.
        judge: whether they show what is reported; None for related work, of which no agreement is claimed.
        planned: the hypothesis of the preregistration, "" for a comparison that is not one.
    """

    id: str
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


CLAIMS = (
    Claim("fp8-like-16-bit", [[("E4M3 E5M2 gradients", "BF16")]], all_equivalent),
    Claim("fp8-roles", [[("E4M3 E5M2 gradients", "E5M2 E4M3 gradients")]], same_direction(-1), "H15"),
    Claim("best-split", [[("E4M3", "E3M4")]], same_direction(-1)),
    Claim("exponent-bits", [[("E5M2", "E3M4")]], same_direction(-1)),
    Claim(
        "integers",
        [[("E0M7", "E4M3"), ("E0M7 block", "E4M3 block")]],
        in_parts((1, same_direction(+1)), (1, same_direction(-1))),
    ),
    Claim(
        "stochastic-rounding",
        [[(adamw_arm(fmt, "nearest"), adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]],
        same_direction(+1),
        "H6",
    ),
    Claim(
        "error-feedback",
        [[(adamw_arm(fmt, "feedback"), adamw_arm(fmt, "master")) for fmt in RULE_FORMATS]],
        none_worse,
    ),
    Claim("mxfp8", [[("MXFP8", "BF16")]], all_equivalent, "H16"),
    Claim(
        "mx-scales-up",
        [[("MXFP8 up", "MXFP8"), ("MXFP8 up", "BF16")]],
        in_parts((1, same_direction(-1)), (1, all_equivalent)),
    ),
    Claim("mxfp4", [[("MXFP4", "BF16")]], same_direction(+1), "H16"),
    Claim("nvfp4", [[("NVFP4", "MXFP4")]], same_direction(-1)),
    Claim(
        "fp4-stochastic",
        [[(f"{name} stochastic gradients", name) for name in ("NVFP4", "MXFP4", "MXFP4 up")]],
        in_parts((1, same_direction(-1)), (1, same_direction(+1))),
    ),
    Claim("madam", [[(f"{fmt} update stochastic", adamw_arm(fmt, "stochastic")) for fmt in RULE_FORMATS]], None),
)


def findings(loader: ExperimentDataLoader) -> tuple[Finding, ...]:
    """One finding a claim of `CLAIMS`, in their order."""
    return tuple(_finding(loader, claim) for claim in CLAIMS)


def _finding(loader: ExperimentDataLoader, claim: Claim) -> Finding:
    judgement, tests = weigh(loader, claim.families, claim.judge or (lambda rows: Judgement("inconclusive", rows)))
    answer = AGREEMENTS.get(judgement.answer, judgement.answer)
    related = claim.judge is None and len(tests) > 0
    return Finding(claim, "related work" if related else answer, judgement, tests)
