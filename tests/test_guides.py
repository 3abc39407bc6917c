"""Guides: code that is run when the site is built, and what it prints, shown as it is."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.config import load_config
from altgrad.runs import record
from altgrad.site.executed import (
    GuideError,
    blocks,
    executed,
    main,
    outputs_path,
    read_outputs,
    torch_outputs,
    write_outputs,
)

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
HOSTILE = (
    "```",
    "````` ```",
    "~~~",
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=alert(1)>",
    "</code></pre><h1>out</h1>",
    "[a](javascript:alert(1)) **bold** {: .x onclick=alert(1) }",
    "| a | b |",
    "&lt;b&gt; &#60;",
    "--8<-- 'x'",
    "\x02wzxhzdk:0\x03",
    "\x1b[31mred\x1b[0m",
    "\u202eright to left",
)
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


def page(*parts: str) -> str:
    """A guide of blocks, each given as "words | code"."""
    text = ["# Title", ""]
    for part in parts:
        words, _, code = part.partition(" | ")
        text += [f"```python {words}", *code.split("\n"), "```", ""]
    return "\n".join(text)


def run(text: str, **outputs: list[str]) -> str:
    return executed(text, outputs, name="g.md")["page.md"].decode()


def printed(shown: str) -> list[str]:
    """The outputs that an executed page shows."""
    found = re.findall(r"^(`{3,}) \{ \.text \.output [^\n]*\n(.*?)\n\1$", shown, re.DOTALL | re.MULTILINE)
    return [content for _, content in found]


def test_blocks_run_in_order_and_share_their_names() -> None:
    shown = run(page("exec | x = [1]\nx", "exec | x.append(2)\nprint(x)", "exec | print(len(x))\nx[-1]"))
    assert printed(shown) == ["[1]", "[1, 2]", "2\n2"]


def test_a_page_without_blocks_stays_as_it_is() -> None:
    text = "# Title\n\n```bash\npython\n```\n\n~~~\n```python exec\n1\n```\n~~~\n"
    assert run(text) == text


def test_the_output_stands_under_its_block_and_is_marked_as_output() -> None:
    assert run("a\n\n```python exec\nprint(1)\n```\n\nb\n") == (
        'a\n\n```python\nprint(1)\n```\n\n``` { .text .output .no-copy title="Output" }\n1\n```\n\nb\n'
    )


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("1 + 1", ["2"]),
        ("'a'", ["'a'"]),
        ("print('a')", ["a"]),
        ("print('a')\n'b'", ["a\n'b'"]),
        ("None", []),
        ("x = 1", []),
        ("1\nx = 1", []),
        ("", []),
        ("print()", []),
        ("print('a   ')\nprint()\nprint('\\tb')\nprint()", ["a\n\n        b"]),
        ("import sys; print('a', file=sys.stderr)", []),
    ],
)
def test_what_a_notebook_would_print_is_printed(code: str, output: list[str]) -> None:
    assert printed(run(page(f"exec | {code}"))) == output


def test_a_hidden_block_shows_only_its_output() -> None:
    shown = run(page("exec hide | secret = 1\nprint('seen')"))
    assert "secret" not in shown
    assert printed(shown) == ["seen"]


def test_a_block_that_is_not_run_is_shown() -> None:
    assert run(page("noexec | raise SystemExit")) == page(" | raise SystemExit").replace("python ", "python")


def test_a_block_in_a_list_keeps_its_indent() -> None:
    text = "- item\n\n    ```python exec\n    if True:\n        print('a')\n    ```\n"
    assert run(text) == (
        "- item\n\n    ```python\n    if True:\n        print('a')\n    ```\n\n"
        '    ``` { .text .output .no-copy title="Output" }\n    a\n    ```\n'
    )


def test_blocks_do_not_inherit_this_files_future_or_names() -> None:
    assert printed(run(page("exec | def f(x: int): ...\nf.__annotations__"))) == ["{'x': <class 'int'>}"]
    with pytest.raises(GuideError, match="NameError: name 'Block'"):
        run(page("exec | Block"))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\n\nraise ValueError('a\\nb')", "block 2, line 10: ValueError: a b"),
        ("def f():\n    return 1 / 0\nf()", "block 2, line 9: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')", "block 2, line 9: JSONDecodeError: Expecting property name"),
        ("x = 1\nx = = 1", "block 2, line 9: SyntaxError: invalid syntax"),
        ("exit(0)", "block 2, line 8: SystemExit: 0"),
        ("raise SystemExit", "block 2, line 8: SystemExit: "),
        ("y", "block 2, line 8: NameError: name 'y' is not defined"),
        ("object()", "block 2, line 7: it prints a memory address"),
        (
            "import torch",
            "block 2, line 8: ModuleNotFoundError: No module named 'torch'; mark a block that needs torch",
        ),
        ("try: import torch.nn\nexcept ImportError: print(1)\nelse: 1 / 0\nz", "line 11: NameError"),
        ("import altgrad.no_such_module", "block 2, line 8: ModuleNotFoundError: No module named 'altgrad.no_such"),
    ],
)
def test_an_error_names_guide_block_and_line_on_one_line(code: str, told: str) -> None:
    with pytest.raises(GuideError) as caught:
        run(page("exec | import sys", f"exec | {code}"))
    assert str(caught.value).startswith("g.md: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "info",
    ["python", "py", "python3 exec", "pycon", "Python exec", "python exec fast", "python noexec torch", "{.python}"],
)
def test_a_python_block_says_whether_it_is_run(info: str) -> None:
    with pytest.raises(GuideError, match=r"g\.md: line 3: mark a Python block `python exec`"):
        run(f"a\n\n```{info}\n1\n```\n")


def test_a_fence_without_an_end_is_an_error() -> None:
    with pytest.raises(GuideError, match=r"g\.md: line 1: this fence has no end"):
        run("```python exec\n1\n````\n")


def test_a_torch_block_is_never_run_by_a_build() -> None:
    text = page("exec torch | raise AssertionError('it ran')")
    (block,) = blocks(text, "g.md")
    assert printed(run(text, **{block.key: ["from the file"]})) == ["from the file"]


@needs_torch
def test_a_block_that_is_not_marked_finds_no_torch_although_it_is_loaded() -> None:
    import torch

    with pytest.raises(GuideError, match="mark a block that needs torch"):
        run(page("exec | import torch"))
    assert sys.modules["torch"] is torch
    assert importlib.import_module("torch.nn") is torch.nn


def test_a_missing_or_stale_output_names_the_block_and_the_command() -> None:
    text = page("exec | x = 1", "exec torch | print(x)", "exec torch | print(2)")
    first, second, third = blocks(text, "g.md")
    fresh = {second.key: ["1"], third.key: ["2"]}
    assert printed(run(text, **fresh)) == ["1", "2"]
    told = r"g\.md: block {}, line {}: .* run `make guides`"
    with pytest.raises(GuideError, match=told.format(2, 7)):
        run(text)
    with pytest.raises(GuideError, match=told.format(3, 11)):
        run(text, **{second.key: ["1"]})
    with pytest.raises(GuideError, match=told.format(2, 7)):
        run(text.replace("x = 1", "x = 3"), **fresh)
    with pytest.raises(GuideError, match=told.format(3, 11)):
        run(text.replace("print(2)", "print(3)"), **fresh)
    with pytest.raises(GuideError, match=r"g\.md: recorded outputs are left .* run `make guides`"):
        run(page("exec | x = 1", "exec torch | print(x)"), **fresh)
    assert first.key not in fresh


def test_prose_blocks_that_are_not_run_and_marks_that_hide_leave_outputs_fresh() -> None:
    text = page("exec | x = 1", "exec torch | print(x)")
    key = blocks(text, "g.md")[1].key
    changed = "More words.\n\n" + text.replace("exec torch", "exec torch hide") + page("noexec | pass")
    assert printed(run(changed, **{key: ["1"]})) == ["1"]


def test_code_cannot_move_between_blocks_unnoticed() -> None:
    keys = {
        blocks(page(*parts), "g.md")[-1].key
        for parts in (("exec | a\nb", "exec torch | c"), ("exec | a", "exec torch | b\nc"), ("exec torch | a\nb\nc",))
    }
    assert len(keys) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": "b"}', '{"a": [1]}', '{"a": null}', "\ufeff{}"])
def test_a_damaged_outputs_file_is_one_line(content: str) -> None:
    with pytest.raises(GuideError, match=r"g\.md: the recorded outputs are damaged; run `make guides`"):
        read_outputs(content, name="g.md")


def test_outputs_come_back_as_they_were_written() -> None:
    outputs = {"b": list(HOSTILE), "a": ["ä"], "c": []}
    content = write_outputs(outputs)
    assert read_outputs(content, name="g.md") == outputs
    assert list(json.loads(content)) == ["b", "a", "c"]


def test_a_name_that_only_a_torch_block_made_is_told() -> None:
    text = page("exec torch | x = 1", "exec | x")
    (key, _) = (block.key for block in blocks(text, "g.md"))
    with pytest.raises(GuideError, match=r"block 2.*NameError.*torch block is marked torch as well"):
        run(text, **{key: []})


def test_a_block_that_a_torch_block_changes_is_told() -> None:
    with pytest.raises(GuideError, match=r"g\.md: block 3, line 11: .* mark it torch as well"):
        torch_outputs(page("exec | x = 1", "exec torch | x = 2", "exec | x"), name="g.md")


def test_only_torch_blocks_are_recorded_and_they_see_the_names_of_the_others() -> None:
    text = page("exec | x = 1\nprint('free')", "exec torch | x + 1", "exec torch | y = 1")
    keys = [block.key for block in blocks(text, "g.md")]
    outputs = torch_outputs(text, name="g.md")
    assert outputs == {keys[1]: ["2"], keys[2]: []}
    assert printed(run(text, **outputs)) == ["free", "2"]


def test_an_error_in_a_torch_block_is_told_when_it_is_recorded() -> None:
    with pytest.raises(GuideError, match=r"g\.md: block 1, line 4: ValueError: no"):
        torch_outputs(page("exec torch | raise ValueError('no')"), name="g.md")


def rendered(markdown_text: str) -> str:
    """HTML of the site's dialect, with the extensions and options that mkdocs.yml has."""
    markdown = pytest.importorskip("markdown")
    yaml = pytest.importorskip("yaml")
    names, options = [], {}
    for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["markdown_extensions"]:
        name, option = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        names.append(name)
        options[name] = option
    html: str = markdown.markdown(markdown_text, extensions=names, extension_configs=options)
    return html


def text_of(html: str) -> str:
    from html import unescape

    return unescape(re.sub(r"<[^>]*>", "", html))


@pytest.mark.parametrize("torch", [False, True])
@pytest.mark.parametrize("hostile", [*HOSTILE, "\n".join(HOSTILE)])
def test_hostile_output_is_shown_as_text_and_is_no_markup(hostile: str, torch: bool) -> None:
    pytest.importorskip("pymdownx")
    from altgrad.site.build import finish_html
    from altgrad.text import visible

    shape = page(f"exec {'torch ' * torch}hide | print({hostile!r})") + "\n## After\n"
    key = blocks(shape, "g.md")[0].key
    shown = run(shape, **({key: hostile.split("\n")} if torch else {}))
    html = rendered(shown)
    assert finish_html(html, lambda address: None) == html
    (block,) = re.findall(r'<div class="output no-copy highlight">(.*?)</div>', html, re.DOTALL)
    assert text_of(block.partition("<pre>")[2]).rstrip("\n") == "\n".join(map(visible, hostile.split("\n"))).rstrip()
    tags = set(re.findall(r"<\s*([a-zA-Z0-9]+)", html))
    assert tags <= {"h1", "h2", "a", "div", "span", "pre", "code"}
    assert html.count("<h1") == html.count("<h2") == 1


@settings(deadline=None)
@given(st.text(alphabet="`~<>&{}[]()|#- \n\t\r\x02\x03a:.\u2028é", max_size=80))
def test_any_output_ends_where_its_block_ends(output: str) -> None:
    pytest.importorskip("pymdownx")
    html = rendered(run(page(f"exec hide | print({output!r})") + "\n## After\n"))
    assert html.count("<h2") == 1
    assert html.count("<h1") == 1
    assert html.count("<pre>") == (1 if output.strip() else 0)


def test_the_committed_guides_build_without_torch_and_the_same_under_any_hash_seed() -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "for name in ('torch', 'mkdocs', 'mkdocs_gen_files', 'wandb'): sys.modules[name] = None\n"
        "from altgrad.site.executed import executed, outputs_path, read_outputs\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    kept = outputs_path(path)\n"
        "    outputs = read_outputs(kept.read_text('utf-8'), name=path.name) if kept.is_file() else {}\n"
        "    shown = executed(path.read_text('utf-8'), outputs, name=path.name)\n"
        "    sys.stdout.buffer.write(b''.join(name.encode() + data for name, data in shown.items()))\n"
    )
    pilots = (str(ROOT / "experiments" / "recorded" / study) for study in ("pilot-formats", "pilot-manifold"))
    records, shown = os.pathsep.join(pilots), set()  # all of them would take minutes: the site's own build reads them
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, GUIDES)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "ALTGRAD_RUNS": records},
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode()
        shown.add(done.stdout)
    assert len(shown) == 1


@needs_torch
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_committed_outputs_are_what_the_torch_blocks_print(path: Path) -> None:
    kept = outputs_path(path)
    outputs = torch_outputs(path.read_text("utf-8"), name=path.name)
    assert kept.is_file() == bool(outputs), "run `make guides`"
    assert_alike(kept.read_text("utf-8") if outputs else "{}\n", write_outputs(outputs))


NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")


def assert_alike(kept: str, made: str) -> None:
    """The same words; numbers may differ as sums do between processors, whose vectors are not equally wide."""
    assert NUMBER.sub("#", kept) == NUMBER.sub("#", made), "run `make guides`"
    for one, other in zip(NUMBER.findall(kept), NUMBER.findall(made), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.04, abs=3 if "." not in one else 0), "run `make guides`"


def test_a_figure_that_is_another_or_another_word_is_no_likeness() -> None:
    assert_alike("weight: sqnr_db 31.62, 12 became zero", "weight: sqnr_db 31.40, 14 became zero")
    for made in ("weight: sqnr_db 25.39, 12 became zero", "bias: sqnr_db 31.62, 12 became zero", "weight: sqnr_db"):
        with pytest.raises(AssertionError):
            assert_alike("weight: sqnr_db 31.62, 12 became zero", made)


def test_every_outputs_file_belongs_to_a_guide() -> None:
    kept = set((ROOT / "docs" / "guides").glob("*.json"))
    assert kept <= {outputs_path(path) for path in GUIDES}


def test_the_command_writes_what_is_stale_removes_what_is_left_and_leaves_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.md").write_text(page("exec | x = 1", "exec torch | x"))
    (tmp_path / "a-b.md").write_text(page("exec | x = 1"))
    (tmp_path / "gone.outputs.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-b.md", "a.md", "a.outputs.json"]
    first = (tmp_path / "a.outputs.json").stat().st_mtime_ns
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "a.outputs.json").stat().st_mtime_ns == first
    capsys.readouterr()
    (tmp_path / "a.md").write_text(page("exec torch | 1 / 0"))
    assert main([str(tmp_path)]) == 1
    assert re.fullmatch(r"error: .*a\.md: block 1, line 4: ZeroDivisionError: .*\n", capsys.readouterr().err)


def commands(text: str) -> list[list[str]]:
    """The training commands in a document's bash blocks, split into words."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if any(word.endswith("run_experiment.py") for word in words):
                found.append(words)
    return found


@pytest.mark.parametrize(
    "path", [*GUIDES, ROOT / "README.md", ROOT / "docs" / "reproduce.md"], ids=lambda path: path.stem
)
def test_every_training_command_in_a_document_has_a_valid_config(path: Path) -> None:
    for words in commands(path.read_text("utf-8")):
        settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
        (config,) = (word for word in words if word.endswith(".yaml"))
        load_config(ROOT / config, settings)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "reproduce.md"], ids=lambda path: path.stem)
def test_the_python_of_readme_and_reproduce_runs(path: Path, tmp_path: Path) -> None:
    found = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    if HAS_TORCH:
        found.insert(0, "import torch; x = torch.ones(3)")  # x is a reader's own tensor
    else:
        found = [block for block in found if "torch" not in block]
    # No records: what runs is the interface, not the analysis of a whole study.
    environment = {**os.environ, "ALTGRAD_RUNS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(found)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_failing_guide_fails_the_site_build_with_one_line(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files")
    project = small_site(tmp_path, page("exec | x = 1", "exec torch | x"))
    done = mkdocs(project)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "guide.md" in line]
    assert len(told) == 1
    assert "docs/guides/guide.md: block 2, line 7: " in told[0]
    assert "run `make guides`" in told[0]
    assert "Traceback" not in done.stderr


def test_a_failing_guide_is_a_box_while_serving_and_leaves_the_others(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files")
    project = small_site(tmp_path, page("exec | 1 / 0"), serving=True)
    (project / "docs/guides/guide-2.md").write_text(page("exec | print('fine')"))
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    assert "docs/guides/guide.md: block 1, line 4: ZeroDivisionError" in (
        text_of((project / "site/guides/guide/index.html").read_text())
    )
    assert "fine" in (project / "site/guides/guide-2/index.html").read_text()


def test_the_site_takes_a_guide_from_the_cache_until_a_byte_changes(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files")
    counter = tmp_path / "runs"
    text = page(f"exec | with open({str(counter)!r}, 'a') as file: _ = file.write('x')")
    project = small_site(tmp_path / "project", text)
    built = []
    for change in (None, None, "More words.\n"):
        if change:
            with open(project / "docs/guides/guide.md", "a") as file:
                file.write(change)
        done = mkdocs(project)
        assert done.returncode == 0, done.stderr
        built.append((counter.read_text(), (project / "site/guides/guide/index.html").read_bytes()))
    assert [runs for runs, _ in built] == ["x", "x", "xx"]
    assert built[0][1] == built[1][1] != built[2][1]
    assert not (project / "site/guides/guide.outputs.json").exists()


def test_the_guides_document_is_a_page_of_a_site_and_what_its_runs_contradict_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files")
    guide = blocks((ROOT / "docs/guides/your-own-page.md").read_text("utf-8"), "guide")
    document, function, _, script = (block.code for block in guide[1:])
    project = small_site(tmp_path, "# Guide\n")
    settings = (project / "mkdocs.yml").read_text().replace("[gen/executed.py]", "[gen/executed.py, gen/losses.py]")
    (project / "mkdocs.yml").write_text(settings)
    (project / "gen/losses.py").write_text(function.rpartition("losses_page(Exp")[0] + script)
    text = ast.literal_eval(document.partition(" = ")[2])
    environment = {"ALTGRAD_RUNS": str(ROOT / "experiments/recorded/pilot-formats")}
    (project / "docs/losses.md").write_text(text)
    done = mkdocs(project, **environment)
    assert done.returncode == 0, done.stderr
    html = (project / "site/losses/index.html").read_text()
    assert "E4M3 ends at 2.172 nats per character, E5M2 at 2.190." in html
    assert html.count('role="img"') == 1
    (project / "docs/losses.md").write_text(text.replace("E4M3", "E0M7"))
    done = mkdocs(project, **environment)
    assert done.returncode != 0
    (told,) = (line for line in done.stderr.splitlines() if "contradict" in line)
    assert 'docs/losses.md:5: the records contradict "E0M7 ends at 2.344' in told
    assert "Traceback" not in done.stderr


def small_site(folder: Path, guide: str, serving: bool = False) -> Path:
    """A site of one guide, with this repository's script and hooks."""
    (folder / "docs/guides").mkdir(parents=True)
    (folder / "gen").mkdir()
    (folder / "docs/index.md").write_text("# Home\n")
    (folder / "docs/guides/guide.md").write_text(guide)
    for name in ("executed", "hooks"):
        (folder / f"gen/{name}.py").write_text((ROOT / f"gen/{name}.py").read_text())
    settings = "site_name: x\nplugins: [{gen-files: {scripts: [gen/executed.py]}}]\nhooks: [gen/hooks.py]\n"
    settings += "markdown_extensions: [attr_list, admonition, tables, pymdownx.superfences]\n"
    settings += "exclude_docs: '*.outputs.json'\n"
    (folder / "mkdocs.yml").write_text(settings + f"extra: {{serving: {str(serving).lower()}}}\n")
    return folder


def mkdocs(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(project / "mkdocs.yml")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_guide_on_findings_runs_with_ones_own_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with record(tmp_path, name="own", config={"lr": 1}) as run:
        run.log(0, loss=1.0, val_loss=1.0)
        run.finish()
    monkeypatch.setenv("ALTGRAD_RUNS", str(tmp_path))
    text = (ROOT / "docs/guides/findings.md").read_text()
    blocks = re.findall(r"```python exec\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python")
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert "1 runs;" in capsys.readouterr().out
