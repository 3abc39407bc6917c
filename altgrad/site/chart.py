"""Charts: matplotlib drawings that are right on paper, in a light palette and in a dark one.

A chart is drawn once, in the fixed colours below. They suit a light background, so the drawing is a finished SVG file
(`fixed_svg`). They are also sentinels: `inline_svg` replaces each by a CSS variable that the site's stylesheet defines
for both palettes. Matplotlib is imported when a chart is drawn, not before.
"""

from __future__ import annotations

import io
import re
from html import escape as escape_html
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from altgrad.site.content import Chart
from altgrad.site.sketch import FOREGROUND, GRID, INCH, MUTED, Sketch
from altgrad.text import visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#296fa5", "#b55447", "#054400", "#723679", "#865802", "#af2256", "#1959bd", "#0a7d70")
"""Eight colours that stay apart with the common colour-vision deficiencies; each at least 4.5:1 on the page."""
HEAT = ("#e9e7d9", "#e8ce90", "#e69e53", "#d1683d", "#9f393c", "#5e2133")
"""Six levels from harmless to worst, ever darker (in the dark palette ever brighter), so that lightness alone tells."""
BACKGROUND = "#fefefe"

_VARIABLES = {
    FOREGROUND: "--md-default-fg-color",
    MUTED: "--chart-muted",
    GRID: "--chart-grid",
    BACKGROUND: "--md-default-bg-color",
    **{colour: f"--chart-{number}" for number, colour in enumerate(PALETTE, start=1)},
    **{colour: f"--heat-{number}" for number, colour in enumerate(HEAT, start=1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "legend.labelcolor"), FOREGROUND),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
    **dict.fromkeys(("axes.grid", "axes.axisbelow", "axes.unicode_minus"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{f"{axis}tick.{kind}.size": 0.0 for axis in "xy" for kind in ("major", "minor")},
}
_TOLD = "told "
"""What the id of a mark begins with that `tell` has given a text."""
_DECORATION = re.compile(
    r"\s*<(metadata|style)\b.*?</\1>|\s*<!--.*?-->|\s*<defs>\s*</defs>|font-family: [^;\"]*; ", re.DOTALL
)


def chart_figure(chart: Chart) -> Figure:
    """The chart as a matplotlib figure in fixed colours, for a notebook or another file format.

    Raises:
        ValueError: the chart is a sketch, drawn without matplotlib.
    """
    if chart.draw is None:
        raise ValueError(f"chart {chart.id}: it is drawn as a sketch, without matplotlib; use its SVG")
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=PALETTE)}):
        figure = Figure(figsize=(chart.width, chart.height), layout=None if chart.margins else "constrained")
        figure.patch.set_visible(False)
        axes: Axes = figure.subplots()
        if chart.margins:
            left, right, bottom, top = chart.margins
            across, up = chart.width, chart.height
            figure.subplots_adjust(left / across, bottom / up, 1 - right / across, 1 - top / up)
        axes.set_facecolor("none")
        chart.draw(axes)
    return figure


def fixed_svg(chart: Chart) -> bytes:
    """The chart as a self-contained SVG file in fixed colours on white; the same bytes every time.

    Identifiers in the file start with the chart's id, so that several can stand on one page; there is no style sheet
    and no font beyond the reader's own sans-serif.
    """
    if chart.sketch is not None:
        sketch = Sketch(chart.width * INCH, chart.height * INCH)
        chart.sketch(sketch)
        return (_head(chart, sketch.width, sketch.height) + f"\n{sketch.svg()}\n</svg>\n").encode()
    size, drawn = (chart.id, chart.width, chart.height, chart.margins), _DRAWN.setdefault(chart.draw, {})
    if size not in drawn:
        drawn[size] = _drawn(chart)
    width, height, body = drawn[size]
    return (_head(chart, width, height) + body).encode()


_DRAWN: WeakKeyDictionary[Any, dict[Any, tuple[float, float, str]]] = WeakKeyDictionary()
"""What functions have drawn: a chart whose words alone are others is not drawn again."""


def _drawn(chart: Chart) -> tuple[float, float, str]:
    """Width, height and inside of matplotlib's drawing."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with mpl.rc_context({**_STYLE, "svg.hashsalt": chart.id}):
        canvas: Any = FigureCanvasSVG(chart_figure(chart))
        buffer = io.StringIO()
        # Not `savefig`: it lays the figure out twice, which is a third of the time.
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _own_svg(buffer.getvalue(), chart)


def _own_svg(svg: str, chart: Chart) -> tuple[float, float, str]:
    """Matplotlib's SVG without prologue, global style, fonts and loose ids: its size in points, and its inside."""
    body = svg[svg.index("<svg") :]
    head, body = body.split(">", 1)
    body = _DECORATION.sub("", _DECORATION.sub("", body))  # twice: without its style, a <defs> is empty
    name = f"chart-{chart.id}"
    body = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", body)
    body = re.sub(rf'<g id="{name}-{_TOLD}([^"]*)">', r"<g><title>\1</title>", body)
    box = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', head)
    if box is None:
        raise ValueError(f"chart {chart.id}: matplotlib's drawing has no viewBox")
    return float(box[1]), float(box[2]), body


def _head(chart: Chart, width: float, height: float) -> str:
    """The beginning of a drawing: its size in points, its role and name, its words, its background."""
    name = f"chart-{chart.id}"
    title, description = (escape_html(visible(text)) for text in (chart.title, chart.description))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width:g}pt" '
        f'height="{height:g}pt" viewBox="0 0 {width:g} {height:g}" role="img" font-family="system-ui, sans-serif" '
        f'aria-labelledby="{name}-title {name}-description">\n'
        f'<title id="{name}-title">{title}</title>\n<desc id="{name}-description">{description}</desc>\n'
        f'<rect width="100%" height="100%" fill="white"/>'
    )


def tell(text: str, *marks: Artist) -> None:
    """Have readers who point at marks of a chart read `text`: what they are, and their figures."""
    for mark in marks:
        mark.set_gid(_TOLD + visible(text).replace('"', "”"))  # a quote would change how the attribute is written


def inline_svg(svg: str) -> str:
    """A drawing of `fixed_svg` for the inside of a page: colours become CSS variables, the background and font go.

    Its `width` and `height` give way to the page's own layout; the view box keeps the proportions. At its natural
    width, below which the style sheet lets it scroll, the smallest letters of a light drawing have 12 px, as 9 points
    of others have.
    """
    head, body = svg.split(">", 1)
    natural = re.search(r' width="([0-9.]+)pt"', head)
    head = re.sub(r' (?:width|height|font-family|xmlns(?::xlink)?)="[^"]*"', "", head)
    body = body.replace('<rect width="100%" height="100%" fill="white"/>', "", 1).replace("xlink:href", "href")
    letters = min(map(float, re.findall(r' font-size="([0-9.]+)"', body)), default=9.0)
    head += f' style="--natural: {float(natural[1]) * 9 / letters:.6g}pt"' if natural else ""
    return head + ">" + re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match.group()), body)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour
