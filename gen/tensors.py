"""What the tensor view loads: the recorded histograms."""

from __future__ import annotations

from altgrad.site.build import build_files


def files() -> dict[str, bytes]:
    """The files, from the recorded runs. The imports are inside so that an error in them shows while serving."""
    from altgrad.analysis.loader import ExperimentDataLoader
    from altgrad.reports.tensors import tensor_files

    return tensor_files(ExperimentDataLoader())


def key() -> str:
    """What the files depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key

    return site_key("altgrad.reports.tensors")


build_files(files, "tensors/data", key=key)
