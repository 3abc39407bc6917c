"""The Method page says exactly what a run records: each measure once, from the docstring of the function behind it."""

from __future__ import annotations

import html
import importlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from altgrad.reports.measures import MARKER, Measure, MeasureError, measures, method_page
from altgrad.site.html import BODY

ROOT = Path(__file__).resolve().parents[1]
MODULE = '''"""A subject: with a colon. And more."""


def look(x):
    """One thing.

    {header}
        {items}

    Returns:
        what it is.
    """
'''


def written(folder: Path, *items: str, header: str = "Measures (weight, update):") -> tuple[Measure, ...]:
    """The measures of a module with these lines in its section, which begins in line 8."""
    (folder / "some.py").write_text(MODULE.format(header=header, items="\n        ".join(items)))
    return measures(folder)


def test_a_measure_has_a_name_a_unit_a_range_a_formula_and_further_sentences(tmp_path: Path) -> None:
    first, second = written(
        tmp_path,
        "sqnr_db [dB; any]: 10 log10(sum x^2 / sum (q - x)^2).",
        "code_<c> [elements; at least 1]: count(c), for all",
        "    codes. Left out",
        "    where zero. Or NaN.",
    )
    function, subject = "altgrad.telemetry.some.look", "A subject: with a colon"
    formula = "10 log10(sum x^2 / sum (q - x)^2)"
    assert first == Measure("sqnr_db", ("weight", "update"), "dB", "any", formula, "", function, subject)
    assert second.formula == "count(c), for all codes"
    assert second.notes == "Left out where zero. Or NaN."
    assert matches(second, "code_7f")
    assert not matches(second, "code_")
    assert not matches(first, "sqnr_db_more")


def test_methods_and_several_sections_of_one_function_are_read(tmp_path: Path) -> None:
    section = "\n\n        Measures ({0}):\n            {0}_a [ulp; 0 to 1]: x"
    docstring = f"One.{section.format('weight')}{section.format('update')}\n        "
    text = f'class Look:\n    def at(self):\n        """{docstring}"""\n'
    (tmp_path / "some.py").write_text(text)
    assert [(m.name, m.operands) for m in measures(tmp_path)] == [("weight_a", ("weight",)), ("update_a", ("update",))]
    assert {m.function for m in measures(tmp_path)} == {"altgrad.telemetry.some.Look.at"}


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["a [dB; any]: x", "b: y"], 9),
        (["a [dB]: x"], 8),
        (["a [dB; any] x"], 8),
        (["a [dB; any]:"], 8),
        (["A [dB; any]: x"], 8),
        (["a b [dB; any]: x"], 8),
        (["  a [dB; any]: x"], 8),
        (["", "a [dB; any]: x"], 7),
        (["a [dB; any]: x", "", "b [dB; any]: x"], 7),
        (["a [dB; any]: x", "a [dB; any]: y"], 9),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, lines: list[str], line: int) -> None:
    with pytest.raises(MeasureError, match=rf"^some\.py:{line}: "):
        written(tmp_path, *lines)


@pytest.mark.parametrize("header", ["Measures:", "Measures (wieght):", "Measures weight:", "Measures (weight,update):"])
def test_a_section_names_its_operands(tmp_path: Path, header: str) -> None:
    with pytest.raises(MeasureError, match=r"^some\.py:7: .*weight, activation, output, grad_output, gradient, update"):
        written(tmp_path, "a [dB; any]: x", header=header)


def shown(files: dict[str, bytes]) -> tuple[str, str]:
    """The page as mkdocs reads it, and its tables."""
    return files["method.md"].decode(), "\n".join(json.loads(files[f"{BODY}method.md"]))


def test_a_page_has_the_marker_once_and_no_other(tmp_path: Path) -> None:
    known = written(tmp_path, "a [dB; any]: |x| < y^2_i_. *Not* <b>markup</b>.")
    page, tables = shown(method_page(f"before\n\n{MARKER}\n\nafter", known, "page.md"))
    assert page.startswith("before\n\n")
    assert page.endswith("\n\nafter")
    assert "<b>" not in page + tables
    assert "### A subject\n\nWith a colon.\n" in page
    assert "Of weight, update, by <code>altgrad.<wbr>telemetry.<wbr>some.<wbr>look</code>" in tables
    assert tables.count("<td>") == 4
    for text in ("", MARKER * 2, f"{MARKER} <!-- other -->", "<!-- measure -->"):
        with pytest.raises(MeasureError, match=r"^page\.md: "):
            method_page(text, known, "page.md")


def test_the_method_page_shows_every_measure_and_its_function_exists() -> None:
    known = measures()
    page, tables = shown(method_page((ROOT / "docs" / "method.md").read_text(), known, "docs/method.md"))
    assert "<!--" not in page
    found, of = [], ()
    for line in tables.replace("<tr>\n", "<tr>").splitlines():
        if caption := re.fullmatch(r'<p class="table-caption">Of (.+), by <code>(.+)</code></p>', line):
            of = tuple(caption[1].split(", ")), caption[2].replace("<wbr>", "")
        elif of and (row := re.match(r"<tr>(<td>.+?</td>)", line)):
            found.append((read(row[1]), *of))
    assert found == [(measure.name, measure.operands, measure.function) for measure in known]
    pytest.importorskip("torch")
    for function in {measure.function for measure in known}:
        module, _, name = function.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), function


def test_a_run_records_the_measures_of_the_page_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from altgrad.config import parse_config
    from altgrad.runs import read_run
    from altgrad.training import load_corpus, train

    given = {
        "model": {"layers": 1, "dim": 16, "heads": 2, "context": 16},
        "quantize": dict.fromkeys(("weight", "activation", "grad_output"), "e4m3"),
        "max_steps": 4,
        "eval_batches": 2,
        "layers_every": 1,
        "telemetry": {
            "rank_every": 1,
            "codes_every": 1,
            "shadow": True,
            "logits": True,
            "histograms": ["weight", "activation", "grad_output"],
        },
    }
    result = train(parse_config(given, source="test"), tmp_path, corpus=load_corpus("licenses"), progress=False)
    layers = read_run(result.path).layers
    known = measures()
    recorded = set(layers[["operand", "statistic"]].itertuples(index=False, name=None))
    found = {(operand, measure_of(statistic, operand, known).name) for operand, statistic in recorded}
    assert found == {(operand, measure.name) for measure in known for operand in measure.operands}
    for row in layers.itertuples():
        low, high = bounds(measure_of(row.statistic, row.operand, known).range)
        assert low - 1e-9 <= row.value <= high + 1e-9, row


def matches(measure: Measure, statistic: str) -> bool:
    """Whether a recorded statistic is this measure: `<c>` in a name stands for any text."""
    return re.fullmatch(".+".join(map(re.escape, re.split(r"<\w+>", measure.name))), statistic) is not None


def measure_of(statistic: str, operand: str, known: Sequence[Measure]) -> Measure:
    """The measure that a recorded statistic is: the one of its very name, else the one whose pattern it matches."""
    fitting = [measure for measure in known if operand in measure.operands and matches(measure, statistic)]
    (found,) = [measure for measure in fitting if measure.name == statistic] or fitting
    return found


def read(cell: str) -> str:
    """The text of a table cell as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]*>|`", "", cell)).strip()


def bounds(text: str) -> tuple[float, float]:
    """The range of a measure as numbers, as far as it has them."""
    match = re.match(r"(?:at least |above )?(-?\d+)(?: to (-?\d+)$)?", text)
    return (float(match[1]), float(match[2] or math.inf)) if match else (-math.inf, math.inf)


def test_every_name_in_the_telemetry_guides_table_exists() -> None:
    pytest.importorskip("torch")
    from altgrad.config import ExperimentConfig

    text = (ROOT / "docs" / "guides" / "telemetry.md").read_text().partition("## What measures what\n")[2]
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    known = {measure.name for measure in measures()}
    for capability, recorded, where in rows:
        assert set(re.findall(r"`(.+?)`", recorded)) <= known, capability
        names = re.findall(r"`(.+?)`", where)
        assert names, capability
        for name in names:
            module, _, last = name.rpartition(".")
            if name.startswith("altgrad."):
                assert callable(getattr(importlib.import_module(module), last)), name
            else:
                section = getattr(ExperimentConfig(), module) if module else ExperimentConfig()
                assert last in type(section).model_fields, name
