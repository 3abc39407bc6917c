"""How a format is drawn, on every page and by every script: the one table of its colours and lines.

The colour says how many exponent bits there are, from 0 to 7 those of `altgrad.site.PALETTE`; 8, as in FP32, is grey,
and so is what is no format. The line says which of the formats with these exponent bits it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from altgrad.formats import SPLITS_8BIT, get_format
from altgrad.site import MUTED, PALETTE


class FormatStyle(NamedTuple):
    """A colour by its number in the palette, from 1 (0: grey), and a line by its dashes and gaps (none: solid)."""

    number: int
    dash: tuple[int, ...] = ()

    @property
    def colour(self) -> str:
        """As charts are drawn in."""
        return PALETTE[self.number - 1] if self.number else MUTED

    @property
    def variable(self) -> str:
        """As the style sheet calls it."""
        return f"--chart-{self.number or 'muted'}"

    @property
    def value(self) -> list[Any]:
        """For scripts: [variable, dashes]."""
        return [self.variable, list(self.dash)]

    @property
    def line(self) -> Any:
        """The line style as matplotlib takes it."""
        return (0, self.dash) if self.dash else "-"


UNQUANTIZED = FormatStyle(0, (4, 3))
"""FP32, the baseline of a comparison, and what has no format known here."""

DASHES = ((), (8, 3), (2, 3), (8, 3, 2, 3))
"""For lines that would be drawn alike."""


BY_BITS = {4: (2, 3), 6: (2, 2, 2, 7), 8: (8, 3), 16: (8, 3, 2, 3)}
"""The lines of what is no split of eight bits."""
GREY = (8, 8)
"""The line of a format with eight exponent bits or more, as BF16."""
SEVERAL = (8, 3, 2, 3, 2, 3)
"""The line of a combination of formats."""


@cache
def format_style(label: str) -> FormatStyle:
    """The style of a format by its label or name; of several formats, joined by "/", in the colour of the first."""
    try:
        fmt = get_format(label.split("/")[0])
    except ValueError:
        return UNQUANTIZED
    if fmt.bits > 16:
        return UNQUANTIZED
    number = fmt.exponent_bits + 1 if fmt.exponent_bits < len(PALETTE) else 0
    if "/" in label:
        return FormatStyle(number, SEVERAL)
    if not number:
        return FormatStyle(number, GREY)
    return FormatStyle(number, () if fmt in SPLITS_8BIT else BY_BITS.get(fmt.bits, BY_BITS[8]))


def distinct_styles(labels: Iterable[str]) -> list[FormatStyle]:
    """The style of each line of a chart: of those that would be drawn alike, all but the first get other dashes."""
    found: list[FormatStyle] = []
    for label in labels:
        style = format_style(label)
        others = (FormatStyle(style.number, dash) for dash in DASHES)
        found.append(next((each for each in (style, *others) if each not in found), style))
    return found


def styles_value(labels: Iterable[str]) -> dict[str, list[Any]]:
    """The styles of formats for scripts, by label."""
    return {label: format_style(label).value for label in sorted(set(labels))}
