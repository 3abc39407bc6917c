"""Which comparisons pair runs of different machines, or of different days where records do not name their processor.

Equal configs give equal bits on one machine, and may differ in the last digits on another. So a pair of runs that were
recorded on different days, or in different environments, may hold a difference of machines beside that of its arms.
Machines whose canaries (`altgrad.runs.canary`) gave the same bits compute alike, as far as that shows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.runs.canary import Machine, machine_of
from altgrad.runs.processor import NOT_STATED, stated

CROSSING_COLUMNS = ("contrast", "arm", "against", "n_pairs", "n_crossing", "days", "processors", "canary")
Place = tuple[str, Machine]
"""The day on which a run began, and what its record says of its environment."""
Bits = defaultdict[Machine, defaultdict[str, set[str]]]
"""The digests that the canary has on a machine, by the code that trained it."""


def places(loader: ExperimentDataLoader, arm: str) -> dict[int, Place]:
    """Where each seed of an arm was recorded, as far as its records say."""
    runs = loader.runs[(loader.runs["arm"] == arm) & loader.runs["seed"].notna()]
    environments = [loader.records[run_id].run.get("environment") or {} for run_id in runs["run_id"]]
    return {
        seed: (str(created)[:10], machine_of(environment))
        for seed, created, environment in zip(runs["seed"], runs["created"], environments, strict=True)
    }


def crossing(loader: ExperimentDataLoader, comparisons: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """Each comparison once, columns `CROSSING_COLUMNS`: how many of its pairs lie in two places, and in which.

    ``days``, ``processors`` and ``canary`` are about these pairs alone: on which days they were recorded, on which
    processors where both do not state the same one, and whether the canary gave "the same bits" on both, "other bits"
    on some, or is "not stated" for one.

    Args:
        loader: the records.
        comparisons: what a comparison is called, its arm, and the arm that is subtracted.
    """
    rows = []
    bits: Bits = defaultdict(lambda: defaultdict(set))
    for canary in loader.run_set.canaries:
        bits[canary.machine][canary.code].add(canary.digest)
    known: dict[str, dict[int, Place]] = {}
    for name, arm, against in dict.fromkeys(comparisons):
        one, other = (known.setdefault(each, places(loader, each)) for each in (arm, against))
        shared = one.keys() & other.keys()
        apart = [seed for seed in shared if one[seed] != other[seed]]
        days_apart = {(one[seed][0], other[seed][0]) for seed in apart}
        machines = {(one[seed][1], other[seed][1]) for seed in apart}
        processors = {(stated(dict(mine)), stated(dict(theirs))) for mine, theirs in machines}
        unlike = {pair for pair in processors if pair[0] != pair[1]}
        said = NOT_STATED if processors == {(NOT_STATED, NOT_STATED)} else _against(unlike)
        rows.append((name, arm, against, len(shared), len(apart), _against(days_apart), said, _alike(machines, bits)))
    return pd.DataFrame(rows, columns=list(CROSSING_COLUMNS))


def _against(pairs: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{mine} against {theirs}" for mine, theirs in sorted(pairs))


def _alike(machines: Iterable[tuple[Machine, Machine]], bits: Bits) -> str:
    """What the canaries of some pairs of machines say, as far as the same code trained both."""
    found = set()
    for mine, theirs in machines:
        shared = bits[mine].keys() & bits[theirs].keys()
        same = all(len(bits[mine][code] | bits[theirs][code]) == 1 for code in shared)
        found.add(NOT_STATED if not shared else "the same bits" if same else "other bits")
    return next((word for word in ("other bits", NOT_STATED, "the same bits") if word in found), "")
