"""The Explorer and the tensor view in a real browser, against Python's answers to the same questions."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from conftest import _serve, copy_project, mkdocs_build
from test_browser import axe_faults, keep, visit  # noqa: F401

from altgrad.formats import ROUNDINGS, get_format, list_formats
from altgrad.reports.scope import ONE_SCALE
from altgrad.runs import read_run

pytestmark = pytest.mark.browser
CODES = """async () => {
  const { decode, encode, readFormat, ulp } = await import("/javascripts/explorer/format.js");
  const data = await (await fetch("/explorer/formats.json")).json();
  const text = (value) => (Object.is(value, -0) ? "-0" : String(value));
  window.named = new Map(data.formats.map((entry) => [entry.name, readFormat(entry)]));
  window.run = (cases) => cases.map(([name, value, options]) => text(encode(window.named.get(name), value, options)));
  return Object.fromEntries([...window.named].filter(([, fmt]) => fmt.bits === 8).map(([name, fmt]) =>
    [name, Array.from({ length: 256 }, (_, code) => text(decode(fmt, code)))]));
}"""


def number(text: str) -> float:
    return {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}.get(text) or float(text)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site with the Explorer and the tensor view of two short runs."""
    pytest.importorskip("torch")
    from altgrad.config import parse_config
    from altgrad.training import load_corpus, train

    folder = tmp_path_factory.mktemp("explorer")
    operands = ["weight", "activation", "grad_output"]
    telemetry = {"codes_every": 1, "histograms": operands}
    small: dict[str, Any] = {"layers": 1, "dim": 16, "heads": 2, "context": 16}
    common = {"model": small, "max_steps": 3, "eval_batches": 1, "layers_every": 1, "telemetry": telemetry}
    for seed, quantize in enumerate(({}, dict.fromkeys(operands, "e4m3"))):
        given = common | {"seed": seed, "quantize": quantize, "study": "two"}
        path = train(parse_config(given, source="test"), folder, corpus=load_corpus("licenses"), progress=False).path
        assert read_run(path).status == "finished"
    project = copy_project(folder / "project")
    mkdocs_build(project, folder / "site", ALTGRAD_RUNS=str(folder), SOURCE_DATE_EPOCH="1700000000")
    yield from _serve(folder / "site")


def row(page: Any, name: str) -> Any:
    return page.locator(f"tr:has([aria-label='{name}: bits'])")


def test_every_code_of_every_8_bit_format_is_pythons(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/").page
    found = page.evaluate(CODES)
    assert found.keys() == {fmt.name for fmt in list_formats(8)}
    for fmt in list_formats(8):
        for code, text in enumerate(found[fmt.name]):
            assert repr(number(text)) == repr(fmt.decode(code)), (fmt.name, code)


def test_ten_thousand_values_round_as_in_python_in_every_way(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/").page
    page.evaluate(CODES)
    draw = random.Random(11)
    formats = [fmt for fmt in list_formats(8) if fmt.signed] + [get_format(name) for name in ("e2m1", "fp16", "bf16")]
    cases, expected = [], []
    for index in range(10_000):
        fmt = formats[index % len(formats)]
        value = (
            draw.choice([-1, 1]) * draw.random() * 2.0 ** draw.uniform(fmt.quantum_exponent - 2, fmt.max_exponent + 2)
        )
        if index % 3 == 0:  # halfway between two values
            place = draw.randrange(len(fmt.finite_values) - 1)
            value = float(fmt.finite_values[place] + fmt.finite_values[place + 1]) / 2
        for rounding in ROUNDINGS:
            number_drawn = draw.randrange(2**24) / 2**24
            options = {"rounding": rounding, "saturate": bool(draw.getrandbits(1)), "draw": number_drawn}
            cases.append([fmt.name, value, options])
            expected.append(str(fmt.encode(value, **options)))
    assert page.evaluate("(cases) => window.run(cases)", cases) == expected


def test_a_typed_value_shows_pythons_answer_in_every_row(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/").page
    field = page.get_by_label("Value", exact=True)
    for text, value in (("0.1", 0.1), ("-500", -500.0), ("2^-10", 2.0**-10), ("-0", -0.0), ("1e-50", 1e-50)):
        field.fill(text)
        for fmt in (get_format(name) for name in ("e4m3", "e5m2", "e0m7", "e7m0", "fp16", "e2m1", "e4m3fnuz")):
            cells = row(page, fmt.label)
            digits = -(-fmt.bits // 4)
            assert cells.locator(".code").inner_text().endswith(f"0x{fmt.encode(value):0{digits}x}"), (text, fmt.name)
            bits = "".join(cells.locator(".bit").all_inner_texts())
            assert bits == f"{fmt.encode(value):0{fmt.bits}b}"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1e400", "5e-324", "1e-400", "-0"])
def test_extreme_values_have_an_answer_everywhere(visit: Any, address: str, text: str) -> None:  # noqa: F811
    one = visit(f"{address}explorer/?v={text}")
    assert one.complaints == []
    value = float(text)
    fmt = get_format("e5m2")
    assert row(one.page, "E5M2").locator(".code").inner_text().endswith(f"0x{fmt.encode(value):02x}")
    assert ("taken as" in one.page.locator("#x-value-note").inner_text()) == (text in ("1e400", "-1e400", "1e-400"))
    one.page.get_by_label("Beyond the largest").select_option("0")
    code = fmt.encode(value, saturate=False)
    assert row(one.page, "E5M2").locator(".code").inner_text().endswith(f"0x{code:02x}")


def test_bits_click_and_answer_the_keyboard(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/?v=1").page
    bits = row(page, "E4M3").locator(".bit")
    code = get_format("e4m3").encode(1.0)
    for place in (7, 1, 0):
        bits.nth(place).click()
        code ^= 1 << (7 - place)
        assert float(page.get_by_label("Value", exact=True).input_value()) == get_format("e4m3").decode(code)
    assert bits.first.get_attribute("aria-pressed") == "true"
    bits.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    code ^= 1 << 5
    assert f"c=e4m3:{code:02x}" in page.url
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "exponent bit 2"


def test_the_bits_of_a_nan_stay_as_they_were_set(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/?c=e5m2:7d").page
    assert page.get_by_label("Value", exact=True).input_value() == "nan"
    assert row(page, "E5M2").locator(".code").inner_text().endswith("0x7d")


def test_the_address_holds_the_state_and_back_returns(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/").page
    field = page.get_by_label("Value", exact=True)
    field.press("End")
    field.press_sequentially("25")  # behind 0.1: one step of the back button
    page.get_by_label("Rounding").select_option("up")
    page.get_by_label("Axis").select_option("log")
    assert "v=0.125" in page.url
    assert "r=up" in page.url
    again = visit(page.url).page
    for each in (page, again):
        assert each.get_by_label("Value", exact=True).input_value() == "0.125"
        assert each.get_by_label("Rounding").input_value() == "up"
        assert each.get_by_label("Axis").input_value() == "log"
    page.go_back()
    page.go_back()
    assert page.get_by_label("Rounding").input_value() == "nearest_even"
    page.go_back()
    assert field.input_value() == "0.1"


def test_stochastic_rounding_shows_both_values_with_their_chances(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/?v=0.1&r=stochastic").page
    assert (
        row(page, "E4M3")
        .locator(".rounded")
        .inner_text()
        .replace("\n", " ")
        .endswith("0.09375 (20%) or 0.1015625 (80%)")
    )


def test_scale_and_its_faults_are_said(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/?v=500&s=2").page
    assert row(page, "E4M3").locator(".rounded").inner_text().endswith("512")
    page.get_by_label("Scale", exact=True).fill("-1")
    assert page.get_by_label("Scale", exact=True).get_attribute("aria-invalid") == "true"
    assert row(page, "E4M3").locator(".rounded").inner_text().endswith("512")


def test_the_number_line_zooms_moves_and_has_a_table(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/?v=1&on=e2m1").page
    page.get_by_text("The line as a table").click()
    cells = page.locator("details table td")
    assert cells.all_inner_texts()[2:] == ["5", "0, 0.5, 1, 1.5, 2"]
    page.get_by_role("button", name="Zoom in").click()
    assert cells.all_inner_texts()[2:] == ["3", "0.5, 1, 1.5"]
    page.locator(".line-box").focus()
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert cells.all_inner_texts()[2:] == ["8", "−1, −0.5, 0, 0.5, 1, 1.5, 2, 3"]
    page.keyboard.press("0")
    assert "view=" not in page.url
    page.get_by_role("button", name="Move right").click()
    assert cells.all_inner_texts()[2:] == ["4", "0.5, 1, 1.5, 2"]
    page.get_by_role("button", name="Move left").click()
    assert cells.all_inner_texts()[2:] == ["5", "0, 0.5, 1, 1.5, 2"]
    line = page.locator(".line-box").bounding_box()
    page.mouse.move(line["x"] + line["width"] / 2, line["y"] + 20)
    page.mouse.down()
    page.mouse.move(line["x"] + line["width"] / 2 - 300, line["y"] + 20, steps=4)
    page.mouse.up()
    assert float(cells.all_inner_texts()[3].split(",")[0]) > 0, "dragged to the left, the line shows larger values"
    before = page.url
    page.mouse.wheel(0, -300)
    page.wait_for_function("before => location.href !== before", arg=before)
    page.get_by_role("button", name="Follow the value again").click()
    assert cells.all_inner_texts()[2:] == ["5", "0, 0.5, 1, 1.5, 2"]
    page.get_by_label("Axis").select_option("log")
    assert cells.all_inner_texts()[2:] == ["7", "0.5, 1, 1.5, 2, 3, 4, 6"]
    page.get_by_label("Axis").select_option("linear")
    page.get_by_label("E5M2 on the number line", exact=True).check()
    assert "on=e2m1,e5m2" in page.url
    assert page.locator(".line-box svg text.name").all_text_contents() == ["E2M1", "E5M2"]


def test_groups_fold_and_examples_fill_the_value(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "explorer/").page
    fold = page.locator("button.fold", has_text="8-bit splits")
    assert row(page, "E4M3").is_visible()
    fold.click()
    assert not row(page, "E4M3").is_visible()
    assert fold.get_attribute("aria-expanded") == "false"
    assert not row(visit(page.url).page, "E4M3").is_visible(), "the address holds it"
    page.get_by_role("button", name="448", exact=True).click()
    assert page.get_by_label("Value", exact=True).input_value() == "448"
    fold.click()
    page.get_by_label("E4M3 on the number line", exact=True).uncheck()
    assert page.locator(".line-box svg text.name").all_text_contents() == ["E5M2", "E3M4"]


def test_a_broken_address_gives_the_defaults_and_says_what_it_left_out(visit: Any, address: str) -> None:  # noqa: F811
    hostile = "explorer/?v=%3Cimg%20src=x%20onerror=window.pwned=1%3E&c=e9m9:zz&r=sideways&s=0&on=e4m3,%3Cscript%3E"
    one = visit(address + hostile)
    assert one.complaints == []
    assert one.page.evaluate("window.pwned") is None
    refused = {
        "value": "<img src=x onerror=window.pwned=1>",
        "code": "e9m9:zz",
        "rounding": "sideways",
        "scale": "0",
        "format": "<script>",
    }
    assert one.page.locator(".notes p").all_inner_texts() == [
        f"The address says {what} “{text}”, which is not known; it was left out." for what, text in refused.items()
    ]
    assert one.page.get_by_label("Value", exact=True).input_value() == "0.1"
    field = one.page.get_by_label("Value", exact=True)
    field.fill("<img src=x onerror=window.pwned=1>")
    assert field.get_attribute("aria-invalid") == "true"
    assert one.page.evaluate("window.pwned") is None
    assert one.page.locator(".explorer img").count() == 0


@pytest.mark.parametrize("path", ["explorer/", "explorer/?r=stochastic&axis=log&fold=", "tensors/"])
def test_no_accessibility_fault_in_either_palette_and_no_sideways_scroll_on_a_phone(
    visit: Any,  # noqa: F811
    address: str,
    path: str,
) -> None:
    name = path.rstrip("/").replace("/?", "-").replace("&", "-").replace("=", "-")
    for palette, width in (("light", 1280), ("dark", 360)):
        one = visit(address + path, palette=palette, width=width)
        assert one.page.evaluate("window.shifted") < 0.02
        keep(one.page, name, f"{palette}-{width}")  # which resizes the window
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        assert one.complaints == []
        assert axe_faults(one.page) == []


def test_without_javascript_the_pages_say_what_they_are(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for path, link in (("explorer/", "../formats/"), ("tensors/", "../runs/")):
        page.goto(address + path)
        assert "needs JavaScript" in page.locator(".md-content").inner_text()
        assert page.locator(f".md-content noscript a[href='{link}'], .md-content a[href='{link}']").count() >= 1
    context.close()


def test_the_tensor_view_agrees_with_python(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "tensors/").page
    index = page.evaluate("async () => (await fetch('/tensors/index.json')).json()")
    assert len(index["runs"]) == 2
    from altgrad.analysis.tensors import Histogram, outcome

    compared = 0
    for run in index["runs"]:
        tensors = page.evaluate("async (file) => (await fetch('/tensors/' + file)).json()", run["file"])["tensors"]
        assert {each["operand"] for each in tensors} == {"weight", "activation", "grad_output"}
        for operand, policy in (("weight", "amax"), ("activation", "none"), ("grad_output", "amax_exact")):
            each = next(tensor for tensor in tensors if tensor["operand"] == operand)
            assert (each["policy"], each["scaled"]) == ("amax", ONE_SCALE)
            query = f"?run={run['id']}&layer={each['layer']}&operand={operand}&step={each['step']}&scale={policy}"
            page.goto(f"{address}tensors/{query}", wait_until="networkidle")
            histogram = Histogram(
                each["kind"], {key: n for key, n in each["counts"]}, each["zeros"], each["amax"], each["norm"]
            )
            for label in ("E4M3", "E2M1", "E7M0", "FP16"):
                head = page.locator("th[scope=row]", has_text=re.compile(rf"^{label}( \((as )?trained.*\))?$"))
                trained = label.lower() == each["format"]
                note = "as trained" if policy == "amax" else "trained with another scale"
                assert head.inner_text() == (f"{label} ({note})" if trained else label)
                cells = page.locator("tbody tr", has=head).locator("td").all_inner_texts()
                expected = outcome(histogram, get_format(label.lower()), policy)
                assert shown(cells[0]) == pytest.approx(expected.kept, abs=1e-3)
                assert shown(cells[1]) == pytest.approx(expected.flushed, abs=1e-3)
                assert shown(cells[2]) == pytest.approx(expected.clipped, abs=1e-3)
                ratio = "nothing lost" if expected.sqnr_db is None else f"{expected.sqnr_db:.1f}".replace("-", "−")
                assert cells[3].startswith(ratio)
                compared += 1
    assert compared == 24


def shown(text: str) -> float:
    """The part that a cell of the tensor view tells, such as "12.3% (11.0% to 13.5%)"."""
    found = text.split(" (")[0]
    return 0.0 if found in ("0", "<0.01%") else float(found.removesuffix("%")) / 100


def test_run_layer_tensor_step_and_scale_are_chosen_and_kept_in_the_address(visit: Any, address: str) -> None:  # noqa: F811
    page = visit(address + "tensors/").page
    for label, key in (("Run", "run"), ("Layer", "layer"), ("Tensor", "operand"), ("Step", "step"), ("Scale", "scale")):
        before = page.locator("#tensor-view .format-table, #tensor-view .summary").all_inner_texts()
        field = page.get_by_label(label, exact=True)
        values = [each.get_attribute("value") for each in field.locator("option").all()]
        other = next(value for value in values if value != field.input_value())
        field.select_option(other)
        page.wait_for_function(
            "([key, value]) => document.getElementById(`t-${key}`).value === value", arg=[key, other]
        )
        assert dict(parse_qsl(urlsplit(page.url).query))[key] == other
        if key in ("layer", "operand", "scale"):
            assert page.locator("#tensor-view .format-table, #tensor-view .summary").all_inner_texts() != before
    again = visit(page.url).page
    assert again.locator("#tensor-view").inner_text() == page.locator("#tensor-view").inner_text()


def test_the_tensor_view_survives_a_broken_address_and_goes_back(visit: Any, address: str) -> None:  # noqa: F811
    one = visit(address + "tensors/?run=%3Cscript%3E&layer=nowhere&step=x&scale=cubic")
    assert one.complaints == []
    run = one.page.get_by_label("Run").locator("option:checked").inner_text()
    said = one.page.locator(".notes p").all_inner_texts()
    assert said == [
        "There is no run “<script>” with histograms.",
        "This run has no histogram with layer “nowhere”.",
        "This run has no histogram with step “x”.",
        "There is no scale “cubic”.",
    ], run
    one.page.get_by_label("Scale").select_option("amax_exact")
    assert "scale=amax_exact" in one.page.url
    one.page.go_back()
    one.page.wait_for_function("document.getElementById('t-scale').value === 'amax'")
    assert one.page.evaluate("window.pwned") is None


def test_hostile_names_of_runs_and_layers_are_text(browser: Any, address: str) -> None:
    name = "<img src=x onerror=window.pwned=1>"
    run = {"id": name, "arm": "a", "file": "run.json", "kinds": ["codes"], "operands": ["weight"], "label": name}
    tensor = {"layer": name, "operand": "weight", "step": 1, "kind": "codes", "counts": [[0.5, 3]], "zeros": 1}
    tensor |= {"amax": 0.5, "norm": None, "format": name, "recorded": {}}
    context = browser.new_context()
    page = context.new_page()
    index = {"runs": [run], "operands": {"weight": "weights"}, "policies": ["amax"]}
    page.route("**/tensors/index.json", lambda route: route.fulfill(json=index))
    page.route("**/tensors/run.json", lambda route: route.fulfill(json={"id": name, "tensors": [tensor]}))
    page.goto(address + "tensors/", wait_until="networkidle")
    assert page.get_by_label("Layer").locator("option").all_text_contents() == [name]
    assert page.evaluate("window.pwned") is None
    assert page.locator("#tensor-view img").count() == 0
    context.close()


def test_an_empty_store_says_pending(visit: Any, gallery_address: str, gallery: Path) -> None:  # noqa: F811
    assert json.loads((gallery / "tensors/index.json").read_text())["runs"] == []
    one = visit(gallery_address + "tensors/")
    assert "Pending" in one.page.locator("#tensor-view").inner_text()
    assert one.complaints == []
