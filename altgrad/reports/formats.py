"""The number formats: an index of the catalogue, and a page for each format that people train with or read about.

Every figure is computed from `altgrad.formats`; the codes in use and the links come from the recorded runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis import words
from altgrad.analysis.comparison import FormatComparator, is_combination
from altgrad.analysis.failures import FailureAnalyzer, plain_adamw
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.config import OPERANDS, changes
from altgrad.formats import BF16, E8M0, FP16, SPLITS_8BIT, FloatFormat, get_format, list_formats
from altgrad.reports import columns as col
from altgrad.reports import health
from altgrad.reports.document import document_page
from altgrad.reports.format_comparison import weights_chart, weights_held
from altgrad.reports.scope import scope_line
from altgrad.site import (
    BACKGROUND,
    FOREGROUND,
    GRID,
    MUTED,
    PALETTE,
    Axis,
    Chart,
    ChartBlock,
    Column,
    Link,
    Md,
    Page,
    PageRef,
    Sketch,
    Table,
    code,
    join,
    md,
)
from altgrad.site.document import Part
from altgrad.site.sketch import number_text

PAGES: tuple[FloatFormat, ...] = (
    *SPLITS_8BIT,
    *(get_format(name) for name in ("e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2", "e2m3", "e2m1")),
    E8M0,
    FP16,
    BF16,
)
"""The formats with a page of their own: splits of 8 bits (OCP FP8 among them), FNUZ, MX elements and scale, 16 bits."""

DECIMAL = 8
"""Most characters of an exact value in decimal; a longer one is an integer times a power of two."""
FIELDS = {"sign": PALETTE[5], "exponent": PALETTE[0], "mantissa": PALETTE[2]}


def format_pages(loader: ExperimentDataLoader) -> list[Page]:
    """The index, then a page for each of `PAGES`."""
    return [_index(loader), *(_page(loader, fmt) for fmt in PAGES)]


def format_link(fmt: FloatFormat) -> Link | str:
    """A link to the format's page; its label where it has none."""
    return Link(fmt.label, PageRef(f"formats/{fmt.name}")) if fmt in PAGES else fmt.label


FORMAT_ALONE = {
    *(f"quantize.{operand}" for operand in OPERANDS),
    *(f"optimizer.{key}" for key in ("learning_rate", "other_learning_rate", "betas", "eps", "weight_decay")),
}
"""What an arm may quantize and optimize otherwise than the default config and still tell of its formats alone."""
_CATALOGUE = (
    col.of("Format", lambda row: format_link(get_format(row["name"]))),
    col.count("Bits", "bits"),
    col.count("Exponent", "exponent_bits"),
    col.count("Mantissa", "mantissa_bits"),
    col.count("Bias", "bias"),
    col.text("Specials", "specials"),
    col.filled("Largest", "{max}"),
    col.filled("Smallest normal", "{min_normal}"),
    col.filled("Smallest subnormal", "{min_subnormal}"),
    col.count("Distinct finite values", "distinct"),
)


def _arms_columns(loader: ExperimentDataLoader) -> tuple[Column, ...]:
    """An arm by the name that no other arm has, and how much was recorded of it by which studies."""
    return (
        col.named(loader.memo(site_labels)),
        col.text("Quantized", "scope"),
        col.count("Steps", "max_steps"),
        col.count("Runs", "runs"),
        col.text("Studies", "studies"),
    )


def _index(loader: ExperimentDataLoader) -> Page:
    records = [_record(fmt) for fmt in list_formats()]
    values: dict[str, Any] = {
        "splits": _links(SPLITS_8BIT),
        "fnuz": _links(fmt for fmt in PAGES if fmt.specials == "fnuz"),
        "mx": _links(fmt for fmt in PAGES if fmt.bits < 8 or not fmt.signed),
        "wide": _links((FP16, BF16)),
    }
    ranges = [fmt for fmt in PAGES if fmt.bits == 8 and fmt.signed]
    values["widest"] = max(ranges, key=_binades)
    parts: dict[str, Part] = {
        "ranges": [ChartBlock(_ranges(ranges))],
        "catalogue": [col.table(records, _CATALOGUE, f"The {len(records)} formats of the catalogue", "catalogue")],
    }
    return document_page(loader, "formats/index", values, parts, code=__name__)


def _links(formats: Iterable[FloatFormat]) -> Md:
    return join(", ", map(format_link, formats))


def _page(loader: ExperimentDataLoader, fmt: FloatFormat) -> Page:
    (use, arms), spacing = _use(loader, fmt), _spacing(fmt)
    standing = _standing(loader, fmt)
    weights = weights_held({fmt.label: _last_look(loader, use["main"])}) if use["main"] else []
    parts: dict[str, Part] = {
        "layout": [ChartBlock(_layout(fmt))],
        "constants": [_constants(fmt)],
        "number line": [ChartBlock(_number_line(fmt))],
        "spacing": [ChartBlock(_ulp_plot(fmt, spacing))],
        "weights": [ChartBlock(weights_chart(weights))] if weights else [],
        "codes": lambda: [_codes(fmt)],
        "arms": lambda: [col.table(arms, _arms_columns(loader), f"Arms that use {fmt.label}")],
    }
    values = {
        "format": fmt,
        "values": _counts(fmt),
        "spacing": spacing,
        "relations": _relations(fmt),
        "standing": standing,
        **use,
    }
    return document_page(loader, f"formats/{fmt.name}", values, parts, code=__name__, document="formats/_format")


def _standing(loader: ExperimentDataLoader, fmt: FloatFormat) -> dict[str, Any] | None:
    """How the format did in the comparison with the most pairs that has it, and what its layers show; None without one.

    Its place is among the formats of as many bits that have an interval.
    """
    comparator, analyzer = loader.memo(FormatComparator), loader.memo(FailureAnalyzer)
    comparison = next((each for each in comparator.comparisons if fmt.label in set(each.table["format"])), None)
    if comparison is None:
        return None
    row, table = comparison.row(fmt.label), comparison.table
    ranked = [
        each.format
        for each in table[table["n_pairs"] >= 2].itertuples()
        if not is_combination(each.format) and get_format(each.format).bits == fmt.bits
    ]
    failed = analyzer.of_formats(analyzer.leading(analyzer.classified), fmt.name).to_dict("records")
    others = [each | {"steps": loader.config(each["arm"]).max_steps} for each in failed if each["arm"] != row["arm"]]
    others.sort(key=lambda each: each["n_finished"] == each["n_runs"])
    plain = [plain_adamw(loader.config(each["arm"])) for each in others]
    return {
        "row": row,
        "scope": comparison.scope,
        "reach": scope_line(loader, row["arm"], but=""),
        "place": ranked.index(fmt.label) + 1 if fmt.label in ranked else None,
        "ranked": ranked,
        "failure": next((each for each in failed if each["arm"] == row["arm"]), None),
        "elsewhere": [each for each, own in zip(others, plain, strict=True) if own],
        "otherwise": [each for each, own in zip(others, plain, strict=True) if not own],
        "limit": FAILURE_GAP,
    }


def _last_look(loader: ExperimentDataLoader, arm: str) -> pd.DataFrame:
    runs = loader.runs[(loader.runs["arm"] == arm) & (loader.runs["status"] == "finished")]
    return loader.last_look(runs["run_id"])


def _power(exact: tuple[int, int] | None) -> str:
    """An exact constant as ``1.75 x 2^8``; "none" where the format has none."""
    if exact is None:
        return "none"
    significand, exponent = exact
    shift = significand.bit_length() - 1
    factor = significand / 2**shift
    return _two(exponent + shift) if factor == 1 else f"{factor:.10g} x {_two(exponent + shift)}"


def _decimal(exact: tuple[int, int] | None) -> str:
    """The constant in decimal where that is short, else as a power."""
    short = exact is not None and -5 <= math.log10(exact[0]) + exact[1] * math.log10(2) < 7
    return words.figure(math.ldexp(*exact), ".8g") if exact and short else _power(exact)


def _distinct(fmt: FloatFormat) -> int:
    """How many distinct finite values there are, -0 and +0 counted once."""
    return (1 + fmt.signed) * fmt.max_code + 1


def _record(fmt: FloatFormat) -> dict[str, str | int]:
    own = {key: getattr(fmt, key) for key in ("name", "bits", "exponent_bits", "mantissa_bits", "bias", "specials")}
    exact = {key: _decimal(getattr(fmt, f"{key}_exact")) for key in ("max", "min_normal", "min_subnormal")}
    return {**own, **exact, "distinct": _distinct(fmt)}


def _constants(fmt: FloatFormat) -> Table:
    distinct, infinities = _distinct(fmt), 2 * fmt.has_infinity

    def exactly(name: str, value: tuple[int, int] | None) -> tuple[str, str, str]:
        return name, _decimal(value), _power(value)

    rows = (
        ("Bias", fmt.bias, "subtracted from the exponent field"),
        exactly("Largest finite value", fmt.max_exact),
        exactly("Smallest normal value", fmt.min_normal_exact),
        exactly("Smallest subnormal value", fmt.min_subnormal_exact),
        ("eps", words.figure(fmt.eps, ".10g"), "spacing just above 1, where 1 is a normal value"),
        exactly("Spacing at the largest value", (1, fmt.max_ulp_exponent)),
        ("Dynamic range", f"{_binades(fmt):.1f} binades", "log2 of largest over smallest positive value"),
        ("Distinct finite values", distinct, f"of {1 << fmt.bits:,} codes"),
        ("Infinities", infinities, "codes"),
        ("NaN", (1 << fmt.bits) - distinct - fmt.has_negative_zero - infinities, "codes"),
        ("Negative zero", "yes" if fmt.has_negative_zero else "no", "whether −0 has a code of its own"),
    )
    columns = ("Constant", Column("Value", "right"), "Exactly, or what it is")
    return Table(columns, rows, f"Constants of {fmt.label}")


def _binades(fmt: FloatFormat) -> float:
    significand, exponent = fmt.max_exact
    return math.log2(significand) + exponent - fmt.quantum_exponent


def _layout(fmt: FloatFormat) -> Chart:
    """A box a bit, coloured and named by field."""
    fields = [("sign", int(fmt.signed)), ("exponent", fmt.exponent_bits), ("mantissa", fmt.mantissa_bits)]
    fields = [(name, width) for name, width in fields if width]
    data = pd.DataFrame(fields, columns=["field", "bits"])

    def draw(sketch: Sketch) -> None:
        size, place, bit = min(40.0, (sketch.width - 8) / fmt.bits), 4.0, fmt.bits
        for name, width in fields:
            colour, end = FIELDS[name], place + size * width
            for number in range(width):
                bit -= 1
                left = place + number * size
                sketch.rectangles([(left + 1, 22, left + size - 1, 22 + 26)], colour)
                sketch.text(left + size / 2, 40, name[0].upper(), BACKGROUND, anchor="middle", bold=True)
                sketch.text(left + size / 2, 60, str(bit), MUTED, anchor="middle")
            label = f"{name}, {width}" if width * size > 60 else name if width * size > 34 else name[:4]
            sketch.text((place + end) / 2, 14, label, colour, anchor="middle", bold=True)
            place = end

    listed = "; ".join(f"{width} bit{'s' if width > 1 else ''} of {name}" for name, width in fields)
    said = f"From the most significant bit: {listed}."
    return Chart("layout", f"The bits of {fmt.label}, most significant first", said, data, sketch=draw, height=0.92)


def _positive(fmt: FloatFormat) -> NDArray[np.float64]:
    values = fmt.finite_values
    return values[values > 0]


def _normal_from(fmt: FloatFormat) -> float:
    return math.inf if fmt.min_normal is None else fmt.min_normal


def _counts(fmt: FloatFormat) -> dict[str, int]:
    """How many finite values there are, how many positive ones, and how many of these are subnormal."""
    positive = _positive(fmt)
    subnormal = int((positive < _normal_from(fmt)).sum())
    return {"finite": len(fmt.finite_values), "positive": len(positive), "subnormal": subnormal}


def _number_line(fmt: FloatFormat) -> Chart:
    """Every value on a linear and on a logarithmic line; of 16 bits one value a binade."""
    values, positive, marks = fmt.finite_values, _positive(fmt), _positive(fmt)
    shown = "one tick a value"
    if len(positive) > 1000:
        marks = np.unique(2.0 ** np.floor(np.log2(positive)))
        values = np.concatenate([-marks[::-1], [0.0], marks])
        shown = "one tick a binade (power of two)"
    top, normal, subnormal = float(positive[-1]), _normal_from(fmt), _counts(fmt)["subnormal"]

    def draw(sketch: Sketch) -> None:
        left, right = 14.0, sketch.width - 14
        linear = Axis(-top if fmt.signed else 0.0, top, left, right)
        sketch.text(2, 12, f"linear: {shown}", MUTED)
        sketch.line([(left, 42), (right, 42)], GRID, 0.8)
        sketch.ticks((linear(value) for value in values), 22, 42, PALETTE[0], 0.7)
        sketch.text(left, 54, number_text(linear.low), MUTED)
        sketch.text(right, 54, number_text(top), MUTED, anchor="end")
        if fmt.signed:
            sketch.text(linear(0.0), 54, "0", MUTED, anchor="middle")
        log = Axis(float(positive[0]) / 1.3, top * 1.3, left, right, log=True)
        sketch.text(2, 78, "logarithmic, positive values: ", MUTED)
        sketch.text(136, 78, "normal", PALETTE[0], bold=True)
        if subnormal:
            sketch.text(174, 78, "subnormal", PALETTE[1], bold=True)
        sketch.line([(left, 108), (right, 108)], GRID, 0.8)
        sketch.ticks(map(log, marks[marks >= normal]), 86, 108, PALETTE[0], 0.8)
        sketch.ticks(map(log, marks[marks < normal]), 94, 108, PALETTE[1], 1.2)
        for power in _powers(float(positive[0]), top):
            sketch.text(log(2.0**power), 120, _two(power), MUTED, anchor="middle")

    data = pd.DataFrame({"value": values})
    return Chart("number-line", f"The values of {fmt.label} on a number line", "", data, sketch=draw, height=1.75)


def _two(power: int) -> str:
    return f"2^{words.figure(power, 'd')}"


def _powers(low: float, high: float, most: int = 9) -> list[int]:
    """Powers of two from `low` to `high`, evenly spaced."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    return list(range(first, last + 1, max(1, math.ceil((last - first + 1) / most))))


def _spacing(fmt: FloatFormat) -> pd.DataFrame:
    """The spacing of the grid where each binade begins, and relative to the value."""
    binades = np.unique(2.0 ** np.floor(np.log2(_positive(fmt))))
    data = pd.DataFrame({"value": binades, "ulp": [fmt.ulp(float(value)) for value in binades]})
    return data.assign(relative=data["ulp"] / data["value"])


def _ulp_plot(fmt: FloatFormat, data: pd.DataFrame) -> Chart:
    """Spacing of the grid over the value, and the spacing relative to the value."""
    positive = _positive(fmt)
    edges = [*data["value"], float(positive[-1])]

    def draw(sketch: Sketch) -> None:
        middle = sketch.width / 2
        low, high = float(positive[0]) / 1.5, float(positive[-1]) * 1.5
        for left, name, column, colour in (
            (0.0, "ulp (spacing)", "ulp", PALETTE[0]),
            (middle, "ulp relative to the value", "relative", PALETTE[1]),
        ):
            x = Axis(low, high, left + 50, left + middle - 14, log=True)
            y = Axis(float(data[column].min()) / 2, float(data[column].max()) * 2, sketch.height - 32, 24, log=True)
            sketch.text(left + 4, 12, name, colour, bold=True)
            for power in _powers(y.low, y.high, 5):
                place = y(2.0**power)
                sketch.line([(x.start, place), (x.stop, place)], GRID, 0.6)
                sketch.text(x.start - 5, place + 3, _two(power), MUTED, anchor="end")
            for power in _powers(x.low, x.high, 5):
                sketch.text(x(2.0**power), y.start + 13, _two(power), MUTED, anchor="middle")
            points = [
                (x(at), y(ulp if column == "ulp" else ulp / at))
                for (begin, end), ulp in zip(itertools.pairwise(edges), data["ulp"], strict=True)
                for at in (begin, end)
            ]
            sketch.line(points, colour, 1.5)
            if len(points) <= 2 or points[0][0] == points[-1][0]:
                sketch.dots(points[:1], colour)
            sketch.text(x.stop, y.start + 26, "value", MUTED, anchor="end")

    return Chart("ulp", f"The spacing of {fmt.label}", "", data, sketch=draw, height=2.4)


def _relations(fmt: FloatFormat) -> dict[str, Md]:
    """How the other formats with pages lie to this one, by kind of relation; empty text where none does."""
    others = [*(other for other in PAGES if other != fmt), *([get_format("p3109_k8p4")] if fmt.name == "e4m3" else [])]
    relations = [fmt.relation(other) for other in others]

    def of(kind: str) -> Md:
        found = ((str(each).rsplit(" ", 1)[0], format_link(each.second)) for each in relations if each.kind == kind)
        return join("; ", (md("{text} {other}", text=text, other=other) for text, other in found))

    return {kind: of(kind) for kind in ("equal", "subset", "superset")}


def _codes(fmt: FloatFormat) -> Table:
    """All codes: the high half down, the low half across; 16 x 16 for 8 bits."""
    across, digits = 1 << min(4, fmt.bits // 2), max(1, math.ceil(fmt.bits / 4))
    codes = range(1 << fmt.bits)
    data = pd.DataFrame(
        {
            "code": [f"{value:0{digits}x}" for value in codes],
            "bits": [f"{value:0{fmt.bits}b}" for value in codes],
            "value": [f"{value:.17g}" for value in fmt.values.tolist()],
        }
    )
    rows = ({"code": code(f"{first:0{digits}x}"), "values": fmt.values[first:][:across]} for first in codes[::across])

    def plus(at: int) -> Column:
        return col.of(f"+{at:x}", lambda row: exact_text(float(row["values"][at])), right=True, sortable=False)

    columns = (col.of("Code", lambda row: row["code"], sortable=False), *map(plus, range(across)))
    return col.table(rows, columns, id="codes", data=data)


def exact_text(value: float) -> str:
    """The value exactly: in decimal where that is short (`DECIMAL`), else as an integer times a power of two."""
    if math.isnan(value):
        return "NaN"
    sign = "−" if math.copysign(1.0, value) < 0 else ""
    if math.isinf(value):
        return f"{sign}∞"
    size = abs(value)
    decimal = f"{Decimal(size):f}"
    if len(decimal) <= DECIMAL:
        return f"{sign}{decimal}"
    whole, below = size.as_integer_ratio()
    shift = (whole & -whole).bit_length() - 1
    power = _two(shift - (below.bit_length() - 1))
    return f"{sign}{power}" if whole >> shift == 1 else f"{sign}{whole >> shift}·{power}"


def _use(loader: ExperimentDataLoader, fmt: FloatFormat) -> tuple[dict[str, Any], pd.DataFrame]:
    """The codes that the weights of recorded runs used, and the arms that used the format at all."""
    rows = loader.runs
    uses = rows[list(OPERANDS)].map(lambda name: isinstance(name, str) and get_format(name) == fmt).astype(bool)
    using = rows[uses.any(axis=1)]
    report = using[using["role"] == "report"]
    weights = report[uses["weight"][report.index]]
    finished = weights[weights["status"] == "finished"].groupby("arm")["run_id"].agg(list)
    ordered = _main_arms(loader, weights)
    drawn = (
        {"arm": arm, "chart": block}
        for arm in ordered
        for block in health.code_histograms(loader, finished.get(arm, []))
        if block.chart.id == f"codes-{fmt.name}"
    )
    of_arm = report.groupby("arm")
    studies = of_arm["study"].agg(lambda names: ", ".join(sorted(set(names)))).reindex(report["arm"]).to_list()
    arms = report.assign(runs=of_arm["run_id"].transform("size"), studies=studies).drop_duplicates("arm")
    numbers = {"used": len(using), "arms": len(arms), "tuned": len(using) - len(report)}
    found = next(drawn, None)
    return numbers | {"codes_in_use": found, "main": found and found["arm"]}, arms


def _main_arms(loader: ExperimentDataLoader, runs: pd.DataFrame) -> list[str]:
    """Arms by how much they tell of the format alone: nothing else of ours changed, most operands, most runs first."""

    def order(arm: str) -> tuple[bool, int, int, str]:
        config = loader.config(arm)
        changed = {key for key in changes(config) if key.startswith(("quantize.", "scaling.", "optimizer."))}
        plain = config.foreign is None and changed <= FORMAT_ALONE
        return not plain, -len(config.quantize.operands), -counts[arm], arm

    counts = runs["arm"].value_counts()
    return sorted(counts.index, key=order)


def _ranges(formats: list[FloatFormat]) -> Chart:
    """What each 8-bit format reaches: its normal and subnormal binades on one logarithmic line."""
    ordered = sorted(formats, key=lambda fmt: (fmt.exponent_bits, fmt.name))
    data = pd.DataFrame(
        {
            "format": [fmt.label for fmt in ordered],
            "log2_min": [fmt.quantum_exponent for fmt in ordered],
            "log2_min_normal": [fmt.min_normal_exact[1] if fmt.min_normal_exact else None for fmt in ordered],
            "log2_max": [_binades(fmt) + fmt.quantum_exponent for fmt in ordered],
        }
    )

    def draw(sketch: Sketch) -> None:
        x = Axis(float(data["log2_min"].min()), float(data["log2_max"].max()), 84, sketch.width - 12)
        bottom = 18 + 15 * len(ordered)
        for power in range(-60, 61, 20):
            sketch.line([(x(power), 16), (x(power), bottom)], GRID, 0.6)
            sketch.text(x(power), bottom + 12, _two(power), MUTED, anchor="middle")
        for number, (label, low, normal, high) in enumerate(data.itertuples(index=False)):
            top = 18 + 15 * number
            sketch.text(78, top + 10, label, FOREGROUND, anchor="end")
            start = x(high if math.isnan(normal) else normal)
            fmt = ordered[number]
            with sketch.told(f"{label}: {_two(fmt.quantum_exponent)} to {_decimal(fmt.max_exact)}"):
                sketch.rectangles([(x(low), top + 5, start, top + 9)], PALETTE[1])
                sketch.rectangles([(start, top + 2, max(x(high), start + 1), top + 12)], PALETTE[0])
        sketch.text(84, 10, "normal values", PALETTE[0], bold=True)
        sketch.text(156, 10, "subnormal or fixed-point values (the narrow part)", PALETTE[1], bold=True)

    height = (36 + 15 * len(ordered)) / 72
    return Chart("ranges", "What the 8-bit formats reach", "", data, sketch=draw, height=height)
