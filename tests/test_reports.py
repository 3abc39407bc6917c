"""All three reports from real records, from none and from a mixture; the committed ones are fresh."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import generate_reports
import pytest
from records import config, write_matrix, write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.config import ExperimentConfig, command, load_config
from altgrad.reports import ReportGenerator, arm_pages, home_page, site_key
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]
NAMES = ("format_comparison", "failure_modes", "manifold_comparison")


def reports(tmp_path: Path, *sources: Path) -> dict[str, str]:
    ReportGenerator(ExperimentDataLoader(sources)).write(tmp_path / "out", "../site/")
    return {name: (tmp_path / "out" / f"{name}.md").read_text() for name in NAMES}


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_reports.py"), *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
    )  # fmt: skip


def numbers(text: str) -> list[str]:
    """Decimal figures outside of code blocks, links, the version and the provenance."""
    text = re.sub(r"```.*?```|Version [\d.]+|\([^)]*\)", "", text.split("## Provenance")[0], flags=re.DOTALL)
    return re.findall(r"[-+]?\d+\.\d+", text)


def test_reports_from_none_are_pending_and_hold_no_figures(tmp_path: Path) -> None:
    for name, text in reports(tmp_path, tmp_path / "nothing").items():
        assert text.startswith("# "), name
        assert "## Pending Experiments" in text
        assert "RunPod" in text
        assert "H100" in text
        assert "https://wandb.ai" in text
        assert numbers(text) == [], name


def test_reports_from_the_recorded_runs_answer() -> None:
    texts = {name: (ROOT / "reports" / f"{name}.md").read_text() for name in NAMES}  # fresh, as another test shows
    for text in texts.values():
        assert "## Pending Experiments" not in text, "a section may be pending, a report is not"
        assert "## Traceability" in text
        assert re.search("95% (?:interval|CI)", text)
        assert "[Corrections and limits](corrections.md)" in text
    assert "Sweet-spot format" in texts["format_comparison"]
    assert "Failure Mode" in texts["failure_modes"]
    assert "## E7M0" in texts["failure_modes"]
    assert "ManifoldAdamW" in texts["manifold_comparison"]
    assert "stiffness-preconditioning hypothesis" in texts["manifold_comparison"]
    assert "What cannot be concluded" in texts["manifold_comparison"]


def test_reports_from_a_mixture_count_every_status_and_name_what_was_left_out(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_matrix(runs, seeds=3)
    for seed, status in enumerate(("failed", "crashed", "running", "interrupted")):
        write_run(runs, config("e6m1", seed=seed), 2.0, status=status)
    damaged = write_run(runs, config("e5m2", seed=50))
    (damaged / "run.json").write_text("{")
    texts = reports(tmp_path, runs)
    for text in texts.values():
        assert "21 finished, 1 failed, 1 crashed, 1 interrupted, 1 running" in text
        assert "1 record left out" in text
        assert "not readable JSON" in text
    failures = texts["failure_modes"]
    for word in ("nan_loss", "crashed", "running", "interrupted", "blocks.0.mlp.up.weight", "forward"):
        assert word in failures
    assert "not ranked: a run did not finish" in texts["format_comparison"]
    assert not re.search(r"\bnan\b", " ".join(texts.values()))


def test_only_failed_runs_give_a_pending_report_that_still_lists_them(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", config("e7m0"), math.nan, status="failed")
    texts = reports(tmp_path, tmp_path / "runs")
    assert "Pending Experiments" in texts["failure_modes"]
    assert "nan_loss" in texts["failure_modes"]
    assert "1 of 1 runs failed" in texts["failure_modes"]


def test_one_seed_draws_no_conclusion(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    texts = reports(tmp_path, tmp_path / "runs")
    assert "no answer" in texts["format_comparison"]
    assert "fewer than 3 pairs" in texts["format_comparison"]
    assert "pending" in texts["manifold_comparison"]


def test_hostile_text_from_a_record_is_shown_as_text(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    payload = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) | `"
    write_run(runs, config("fp32", notes=payload), url="javascript:alert(1)")
    write_run(runs, config("e4m3"), url="https://example.org/runs/1")
    loader = ExperimentDataLoader([runs])
    write_folder([home_page(loader), *arm_pages(loader)], tmp_path / "site", site_root="../")
    text = "".join(path.read_text() for path in (tmp_path / "site").glob("*.md"))
    assert "<img src=x" not in text
    assert "](javascript:" not in text
    assert "](https://example.org/runs/1)" in text


def test_every_row_links_to_an_arm_page_and_an_anchor_that_exist(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=2)
    loader = ExperimentDataLoader([tmp_path / "runs"])
    texts = reports(tmp_path, tmp_path / "runs")
    write_folder(arm_pages(loader), tmp_path / "arms", site_root="../")
    found = set()
    for text in texts.values():
        for arm, anchor in re.findall(r"\]\(\.\./site/runs/([^/]+)/index\.html(?:#([^)]+))?\)", text):
            page = (tmp_path / "arms" / f"{arm}.md").read_text()
            assert not anchor or f'id="{anchor}"' in page
            found.add(arm)
    assert found <= set(loader.runs["arm"])
    assert len(found) == 5, "the table of each format, the reference with it"


def test_the_command_on_an_arm_page_gives_the_same_config(tmp_path: Path) -> None:
    defaults = ROOT / "experiments" / "configs" / "defaults.yaml"
    assert load_config(defaults).identity() == ExperimentConfig().identity()
    cfg = config("e4m3", seed=4, lr=0.25, precondition="update", clip_norm=None, scaling={"power_of_two": False})
    words = command(cfg).replace("\\\n", " ").split()
    sets = [words[i + 1].strip("'") for i, word in enumerate(words) if word == "--set"]
    assert load_config(defaults, sets, int(words[words.index("--seed") + 1])).identity() == cfg.identity()


def test_every_config_in_the_repository_is_valid_and_explained() -> None:
    paths = sorted((ROOT / "experiments" / "configs").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        load_config(path)
        assert path.read_text().startswith("# "), path.name


def test_the_script_writes_all_three_and_says_what(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=2)
    done = script("--output-dir", "out", "--offline", "--runs", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Read 14 runs (14 finished)." in done.stdout
    for name in NAMES:
        assert f"{name}.md" in done.stdout
        assert (tmp_path / "out" / f"{name}.md").exists()


def test_the_script_in_an_empty_folder_writes_pending_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert generate_reports.main(["--output-dir", "reports", "--offline", "--runs", "runs"]) == 0
    assert "No runs found" in capsys.readouterr().out
    assert "Pending Experiments" in (tmp_path / "reports" / "format_comparison.md").read_text()


def test_a_missing_runs_folder_and_an_unwritable_output_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for arguments in (["--runs", "nowhere"], ["--runs", "runs", "--output-dir", "file"]):
        assert generate_reports.main(arguments) == 2
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1
        assert told.startswith("error: ")


def test_the_readme_shows_the_chart_of_gaps_with_its_finding() -> None:
    """As the report has it, which is made anew from the records."""
    shown = re.compile(r"!\[([^\]]+)\]\((?:reports/)?(format_comparison\.loss-gap\.svg)\)")
    report = (ROOT / "reports/format_comparison.md").read_text()
    assert shown.findall((ROOT / "README.md").read_text()) == shown.findall(report) != []


COMMITTED = sorted(path.name for path in (ROOT / "reports").glob("*.md"))


def anchors(path: Path) -> set[str]:
    """Where links into a Markdown file may lead on GitHub: its headings and its anchors."""
    text = path.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_report_is_short_and_its_links_lead_somewhere_on_github(name: str) -> None:
    text = (ROOT / "reports" / name).read_text()
    assert text.count("\n") <= 250
    kept = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")]
    assert targets
    for target in targets:
        address, _, anchor = target.partition("#")
        path = (ROOT / "reports" / address).resolve() if address else ROOT / "reports" / name
        assert path.relative_to(ROOT).as_posix() in kept, f"{target} is not committed"
        assert not anchor or anchor in anchors(path), f"{target} has no such place"


def test_a_published_site_is_linked_from_the_reports(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=2)
    loader = ExperimentDataLoader([tmp_path / "runs"])
    ReportGenerator(loader).write(tmp_path / "out", "https://example.org/", {"method": "../docs/method.md"})
    text = (tmp_path / "out" / "format_comparison.md").read_text()
    arm = loader.runs["arm"].iloc[0]
    assert f"](https://example.org/runs/{arm}/index.html)" in text
    assert "](https://example.org/method/index.html)" in text
    ReportGenerator(loader).write(tmp_path / "out", documents={"method": "../docs/method.md"})
    text = (tmp_path / "out" / "format_comparison.md").read_text()
    assert "[Method](../docs/method.md)" in text
    assert "/runs/" not in text


def test_the_reports_old_name_still_works_and_says_the_new_one() -> None:
    sys.modules.pop("altgrad.analysis.reports", None)
    with pytest.warns(FutureWarning, match=r"altgrad\.analysis\.reports is altgrad\.reports now"):
        old = importlib.import_module("altgrad.analysis.reports")
    assert old.site_key is site_key


def test_the_committed_reports_have_a_true_minus_in_their_texts() -> None:
    hyphen = re.compile(r"(?<![\w)\]./-])-\d|\d[eE]-\d")
    for path in sorted((ROOT / "reports").glob("*.md")):
        texts = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", path.read_text("utf-8"), flags=re.DOTALL)
        assert "−" in texts or "**Pending.**" in texts
        assert hyphen.findall(texts) == [], path.name
