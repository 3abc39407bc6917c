"""The Explorer's and the tensor view's scripts, run by node, against Python's answers to the same questions."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from altgrad.analysis.tensors import POLICIES, Histogram, outcome
from altgrad.formats import ROUNDINGS, FloatFormat, get_format, list_formats
from altgrad.reports.explorer import GROUPS, formats_json

SCRIPTS = Path(__file__).parent / "site" / "javascript"
VALUES = 10_000


@pytest.fixture(scope="session")
def node() -> str:
    """The command; the test is skipped without one unless ALTGRAD_REQUIRE_BROWSER is set, as in CI."""
    found = shutil.which("node")
    if found is None:
        if os.environ.get("ALTGRAD_REQUIRE_BROWSER"):
            pytest.fail("node is not installed")
        pytest.skip("node is not installed")
    return found


def plain(value: float) -> float | str:
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def hard_values(fmt: FloatFormat, draw: random.Random, count: int) -> list[float]:
    """Values on the grid, halfway, beside both, beyond both ends, and anywhere; the first are the special ones."""
    grid = fmt.finite_values
    found = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -1.7976931348623157e308, fmt.max, -fmt.max]
    while len(found) < count:
        place = draw.randrange(len(grid) - 1)
        low, high = float(grid[place]), float(grid[place + 1])
        base = draw.choice([low, (low + high) / 2, draw.uniform(low, high), fmt.max + fmt.max_ulp / 2, high / 2])
        if draw.random() < 0.4:
            base = math.nextafter(base, draw.choice([-math.inf, math.inf]))
        if draw.random() < 0.1:
            base = math.ldexp(draw.uniform(-2, 2), draw.randint(-1074, 1000))
        found.append(base)
    return found[:count]


def code_of(fmt: FloatFormat, value: float, **options: Any) -> int | None:
    return None if math.isnan(value) and not fmt.has_nan else _encode(fmt, value, **options)


def _encode(fmt: FloatFormat, value: float, **options: Any) -> int | None:
    try:
        return fmt.encode(value, **options)
    except ValueError:  # an unsigned format without NaN: there is none in the catalogue
        raise AssertionError(f"{fmt.name} {value}") from None


def cases() -> dict[str, Any]:
    """All codes of every format; 10,000 values, each under every rounding and saturation, and its spacing."""
    formats = [fmt for group in GROUPS.values() for fmt in group]
    narrow = [fmt for fmt in formats if fmt.bits <= 8 or fmt.name in ("fp16", "bf16")]
    draw = random.Random(9)
    encoded, spacings = [], []
    each = -(-VALUES // len(narrow))
    for fmt in narrow:
        for value in hard_values(fmt, draw, each):
            for rounding in ROUNDINGS:
                number = draw.randrange(2**24) / 2**24
                for saturate in (True, False):
                    code = code_of(fmt, value, rounding=rounding, saturate=saturate, draw=number)
                    encoded.append([fmt.name, plain(value), rounding, saturate, number, code])
            spacings.append([fmt.name, plain(value), plain(fmt.ulp(value))])
    entries = json.loads(formats_json())["formats"]
    every = {fmt.name: fmt for fmt in formats}
    for entry in entries:
        entry["all"] = [plain(value) for value in every[entry["name"]].values.tolist()]
    return {"formats": entries, "encoded": encoded, "spacings": spacings, "outcomes": list(outcomes(formats))}


def outcomes(formats: list[FloatFormat]) -> Iterator[list[Any]]:
    """Three histograms through every format of at most 8 bits and BF16, under every scale policy."""
    draw = random.Random(3)
    codes = {abs(value) * 0.25: float(draw.randint(1, 99)) for value in get_format("e4m3").finite_values if value > 0}
    for histogram in (
        Histogram("binades", {float(e): float(draw.randint(1, 1000)) for e in range(-9, 3)}, 5.0, 6.3, 90.5),
        Histogram("codes", codes, 3.0, 112.0),
        Histogram("binades", {}, 7.0, 0.0),
    ):
        shown = {**asdict(histogram), "counts": [list(each) for each in histogram.counts.items()]}
        for fmt in formats:
            if fmt.signed and (fmt.bits <= 8 or fmt.name == "bf16") and not fmt.name.startswith("p3109"):
                for policy in POLICIES:
                    yield [shown, fmt.name, policy, asdict(outcome(histogram, fmt, policy))]


def test_the_scripts_do_what_python_does(node: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases()))
    done = subprocess.run(
        [node, "--test", *map(str, sorted(SCRIPTS.glob("*.test.js")))],
        env={**os.environ, "ALTGRAD_EXPLORER_CASES": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout
    assert "# tests 0" not in done.stdout


def test_the_file_of_formats_has_every_8_bit_format_and_is_small() -> None:
    entries = {entry["name"]: entry for entry in json.loads(formats_json())["formats"]}
    assert {fmt.name for fmt in list_formats(8)} | {"fp16", "bf16", "e2m1", "e2m3", "e3m2"} <= set(entries)
    assert len(formats_json()) < 100_000
    for name, entry in entries.items():
        assert ("values" in entry) == (entry["bits"] <= 8), name
