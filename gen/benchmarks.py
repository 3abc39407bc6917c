"""The benchmarks: rounding, the comparison on every float32 input, a training step, records of runs, the site."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import Page
from altgrad.site.build import build


def pages() -> Iterable[Page]:
    """The pages, from the records. The imports are inside so that an error in them shows as a page while serving."""
    from altgrad.reports.benchmarks import benchmarks_page
    from altgrad.reports.run_costs import gpu_page, runs_costs_page, site_costs_page
    from altgrad.reports.training_cost import training_page

    return [benchmarks_page(), training_page(), gpu_page(), runs_costs_page(), site_costs_page()]


def key() -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.imports import code_fingerprint
    from altgrad.reports import site_key
    from altgrad.reports.benchmarks import benchmarks_key
    from altgrad.reports.document import documents_key

    # a measurement of other code is marked
    return benchmarks_key(site_key() + code_fingerprint("run") + documents_key(*PATHS))


PATHS = tuple(f"benchmarks/{name}" for name in ("index", "training", "gpu", "runs", "site"))
build(pages, *PATHS, key=key)
