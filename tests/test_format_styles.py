"""Colours and lines of formats: fixed, legible in both palettes, and apart for readers who see fewer colours."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from altgrad.formats import SPLITS_8BIT, list_formats
from altgrad.reports.format_styles import FormatStyle, distinct_styles, format_style, styles_value
from altgrad.site import HEAT, MUTED, PALETTE

ROOT = Path(__file__).parents[1]
SEEN_BY = {
    "most": np.eye(3),
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
APART = 15
"""Distance in CIE Lab; about 2 is just noticeable side by side."""
TOGETHER = (*(fmt.label for fmt in SPLITS_8BIT), "FP32", "BF16", "FP16", "E2M1", "E2M3", "E3M2", "E4M3FNUZ", "E5M2FNUZ",
            "E4M3/E4M3/E5M2", "E5M2/E5M2/E4M3", "E0M7/E0M7/E5M2", "E7M0/E7M0/E5M2")  # fmt: skip
"""Formats that stand in one chart of the site, or that a reader can put there."""


def palettes() -> dict[str, dict[str, str]]:
    """The variables of the style sheet, by palette."""
    style = (ROOT / "docs/stylesheets/altgrad.css").read_text()
    light, dark = style.split('[data-md-color-scheme="slate"] {')
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
        for name, part in (("light", light), ("dark", dark))
    }


def linear(colour: str) -> NDArray[np.float64]:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = TO_XYZ @ rgb.clip(0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float((TO_XYZ @ linear(colour))[1]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", ["light", "dark"])
@pytest.mark.parametrize("reader", SEEN_BY)
def test_formats_of_one_chart_differ_in_colour_or_in_line_whoever_reads(reader: str, palette: str) -> None:
    colours = palettes()[palette]
    seen = {
        label: lab(SEEN_BY[reader] @ linear(colours[format_style(label).variable.removeprefix("--")]))
        for label in TOGETHER
    }
    same = [
        (one, other)
        for one, other in itertools.combinations(TOGETHER, 2)
        if np.linalg.norm(seen[one] - seen[other]) < APART and format_style(one).dash == format_style(other).dash
    ]
    assert not same


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_what_is_written_in_a_colour_has_the_contrast_of_text(palette: str) -> None:
    colours = palettes()[palette]
    names = [*(f"chart-{number}" for number in range(1, 9)), "chart-muted", "md-default-fg-color"]
    assert {name: contrast(colours[name], colours["md-default-bg-color"]) >= 4.5 for name in names} == dict.fromkeys(
        names, True
    )


def test_the_style_sheet_has_the_colours_that_charts_are_drawn_in() -> None:
    light = palettes()["light"]
    assert [light[f"chart-{number}"] for number in range(1, 9)] == list(PALETTE)
    assert [light[f"heat-{number}"] for number in range(1, 7)] == list(HEAT)
    assert light["chart-muted"] == MUTED


def test_the_colour_says_how_many_exponent_bits_there_are() -> None:
    for fmt in list_formats():
        bits = fmt.exponent_bits
        assert format_style(fmt.label).number == format_style(fmt.name).number == (bits + 1 if bits < 8 else 0)
    assert [format_style(fmt.label) for fmt in SPLITS_8BIT] == [FormatStyle(number) for number in range(1, 9)]
    assert format_style("E4M3/E4M3/E5M2").number == format_style("E4M3").number
    assert format_style("FP32") == format_style("none that is known")


def test_lines_that_would_be_drawn_alike_get_other_dashes() -> None:
    styles = distinct_styles(["E4M3", "E5M2", "E4M3", "E4M3"])
    assert [style.number for style in styles] == [5, 6, 5, 5]
    assert styles[:2] == [format_style("E4M3"), format_style("E5M2")]
    assert len(set(styles)) == len(styles)


def test_no_page_and_no_script_has_a_colour_of_its_own() -> None:
    drawn = [*(ROOT / "altgrad/reports").glob("*.py"), *(ROOT / "gen").glob("*.py")]
    drawn += [*(ROOT / "docs/stylesheets").glob("*"), *(ROOT / "docs/javascripts").rglob("*.js")]
    drawn = [path for path in drawn if path.parent.name != "vendor"]
    own = {
        (path.name, colour)
        for path in drawn
        if path.name != "altgrad.css"
        for colour in re.findall(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b", path.read_text("utf-8"))
    }
    assert not own
    assert styles_value(["E4M3", "FP32"]) == {"E4M3": ["--chart-5", []], "FP32": ["--chart-muted", [4, 3]]}
