"""What the site costs: cold and warm builds and served edits, against as many empty pages in the same run.

    make bench-site                                                    measure and record; on a quiet machine
    .venv/bin/python benchmarks/site.py --arms 20 --record trial.json  a trial of the machinery

Two sites: the one of this repository, and one of --arms arms of one run each (recorded runs again, under other learning
rates), which then gets one arm more, and ten times the runs. The floor of each has the same number of pages with a
heading and nothing else, the same theme, and all but one out of the navigation. Every build is a process of its own;
the time is from its start to its end, the best of --repeats for those that can be repeated. The record goes to
benchmarks/recorded/site.json, which the site turns into a page.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import altgrad  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402
from altgrad.reports.run_costs import Figure, SiteRecord  # noqa: E402
from altgrad.runs import RunRecord, load_runs, pack_study, run_id  # noqa: E402
from altgrad.site.new_site import lay_out  # noqa: E402

PATIENCE = 120.0
REASONS = {
    "shipped, cold": "Charts, tables and statistics are computed from all runs; the cores share the pages of runs, "
    "reports and guides are made one by one.",
    "shipped, edit": "mkdocs builds all pages again: those that have not changed come from the cache, but each goes "
    "through the theme's templates and the search plugin once more.",
    "shipped, warm": "Every file is written again, and each page goes through the theme's templates.",
    "analysis": "The reports that use the module are found and drawn anew, and the guides that name it run again.",
    "arms, cold": "A page of an arm has charts, tables, and a file of every run, computed from its records; the "
    "content of an empty page is a heading.",
    "arms, warm": "The pages' content and files are read from the cache and compared with what the site has; the "
    "content of an empty page is a heading.",
    "arms, more": "The records of all arms are read, and the pages that show all of them are made again; of the pages "
    "of arms only the new one is made.",
}
"""Why goals are missed where the machine is not busy with something else; told only where one is."""
SHIPPED = ("altgrad", "docs", "gen", "experiments/recorded", "benchmarks/recorded")


class BuildError(Exception):
    """A site that does not build: the end of what mkdocs said."""


def environment() -> dict[str, str]:
    """Of a build: this checkout's library, and the project's own records."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ALTGRAD", "SOURCE_DATE"))}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}


class Time(NamedTuple):
    """Seconds by the clock, and of the processors."""

    wall: float
    processor: float


def build(project: Path) -> Time:
    """Build a project in a fresh process.

    Raises:
        BuildError: mkdocs failed.
    """
    begun, used = time.perf_counter(), _children()
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(project / "mkdocs.yml")]
    done = subprocess.run(command, env=environment(), cwd=project, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stderr.strip()[-500:])
    return Time(time.perf_counter() - begun, _children() - used)


def _children() -> float:
    """Processor seconds of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def best(times: Iterable[Time]) -> Time:
    """Of some times that one with the least of the processors."""
    return min(times, key=lambda each: each.processor)


def cold(project: Path) -> Time:
    """Build without the cache."""
    shutil.rmtree(project / ".cache", ignore_errors=True)
    return build(project)


def pages(project: Path) -> int:
    """How many pages the built site has."""
    return sum(1 for path in (project / "site").rglob("*.html") if path.name != "404.html")


def shipped(folder: Path) -> Path:
    """A copy of what this repository's site is built from."""
    for name in SHIPPED:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def with_arms(folder: Path, arms: int, seeds: int = 1) -> Path:
    """A site of one's own whose records are `arms` arms with `seeds` runs each."""
    lay_out(folder)
    add_arms(folder, "many", range(arms), seeds)
    return folder


def add_arms(folder: Path, study: str, arms: range, seeds: int = 1) -> None:
    """Recorded runs again as a packed study, each arm with a learning rate of its own."""
    shown = load_runs([ROOT / "experiments" / "recorded"]).records
    copies = []
    for arm in arms:
        source = shown[arm % len(shown)]
        optimizer = source.config.optimizer.model_copy(update={"learning_rate": 1e-3 + 1e-6 * arm})
        for seed in range(seeds):
            config = source.config.model_copy(update={"optimizer": optimizer, "seed": seed, "study": study})
            run = source.run | {"config": config.model_dump(mode="json"), "id": run_id(config, source.run["data"])}
            copies.append(RunRecord(run, config, source.arm, source.tables))
    pack_study(copies, folder / "experiments" / "recorded" / study)


def empty(folder: Path, count: int, like: Path) -> Path:
    """A site of `count` empty pages with the theme of another project."""
    (folder / "docs" / "p").mkdir(parents=True)
    (folder / "docs" / "index.md").write_text("# Home\n")
    for number in range(count - 1):
        (folder / "docs" / "p" / f"{number}.md").write_text(f"---\nsearch:\n  exclude: true\n---\n# Page {number}\n")
    settings = yaml.safe_load((like / "mkdocs.yml").read_text())
    kept = {key: settings[key] for key in ("site_name", "site_url", "theme", "markdown_extensions")}
    kept["theme"].pop("custom_dir", None)  # templates of the project's own
    kept |= {"plugins": ["search"], "nav": [{"Home": "index.md"}], "not_in_nav": "/p/*\n"}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(kept))
    return folder


def edits(project: Path, page: str, repeats: int, code: str = "") -> Time:
    """Serve a project and edit a page's file; from the edit until a reader gets it, the best of the repeats.

    Args:
        project: its folder.
        page: the file below docs/ that gets a sentence more.
        repeats: how often.
        code: a file of the library that is edited just before it.

    Raises:
        BuildError: the server ended, or an edit did not show.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mkdocs", "serve", "-q", "-a", address, "-f", str(project / "mkdocs.yml")]
    server = subprocess.Popen(command, env=environment(), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    place = f"http://{address}/" + ("" if page == "index.md" else page.removesuffix(".md") + "/")

    def wait(text: str) -> float:
        begun = time.perf_counter()
        while time.perf_counter() - begun < PATIENCE and server.poll() is None:
            try:
                with urllib.request.urlopen(place, timeout=PATIENCE) as answer:
                    if text in answer.read().decode():
                        return time.perf_counter() - begun
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.02)
        raise BuildError(f"{page} does not show an edit")

    def used() -> float:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    path, found = project / "docs" / page, list[Time]()
    try:
        wait("</html>")
        for number in range(repeats):
            time.sleep(1.0)  # the watcher looks every half second; begin where it is at rest
            before = used()
            if code:
                (project / code).write_text((project / code).read_text() + f"# Edit number {number}.\n")
            edit = f"Edit number {number} of {code or 'a sentence'}."
            path.write_text(path.read_text() + f"\n{edit}\n")
            wall = wait(edit)
            found.append(Time(wall, used() - before))
    finally:
        server.terminate()
        server.wait(timeout=30)
    return best(found)


def figures_of(
    name: str,
    value: Time,
    floor: Time,
    goal: float | None = None,
    ratio: float | None = None,
    wall: float | None = None,
    reason: str = "",
) -> list[Figure]:
    """Seconds of the processors and by the clock beside those of the empty site, with a reason where a goal is missed.

    Args:
        name: what was done.
        value: what it took.
        floor: what empty pages took.
        goal: most seconds of the processors.
        ratio: most seconds of the processors, as a multiple of the floor's.
        wall: most seconds by the clock.
        reason: in `REASONS`.
    """
    found = [
        Figure(name=f"{name}, {what}", value=took, unit="s", goal=aim, floor=least, floor_name="empty pages",
               goal_ratio=times)
        for what, took, least, aim, times in (
            ("processor time", value.processor, floor.processor, goal, ratio),
            ("by the clock", value.wall, floor.wall, wall, None),
        )
    ]  # fmt: skip
    return [
        each.model_copy(update={"reason": REASONS[reason]}) if reason and each.met is False else each for each in found
    ]


def bench(arms: int, repeats: int, show: Callable[[str], None]) -> SiteRecord:
    """Measure everything."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="altgrad-bench-") as name:
        folder = Path(name)
        show("the shipped site")
        project = shipped(folder / "shipped")
        first = cold(project)
        count = pages(project)
        bare = empty(folder / "empty", count, project)
        warm, floor = (best(build(each) for _ in range(repeats)) for each in (project, bare))
        figures = figures_of("The shipped site, cold", first, floor, goal=45, wall=30, reason="shipped, cold")
        figures += figures_of("The shipped site, warm", warm, floor, goal=4, reason="shipped, warm")
        show("edits of the shipped site while it is served")
        floor = edits(bare, "index.md", repeats)
        for name, code, goal, reason in (
            ("a sentence of a report, served", "", 3.0, "shipped, edit"),
            ("code of the trainer, and a sentence", "altgrad/training/loop.py", None, ""),
            ("code of the analysis, and a sentence", "altgrad/analysis/failures.py", 8.0, "analysis"),
        ):
            edit = edits(project, "reports/failure_modes.md", repeats, code)
            figures += figures_of(f"The shipped site, {name}", edit, floor, goal=goal, reason=reason)
        show(f"{arms:,} arms")
        project = with_arms(folder / "many", arms)
        first = cold(project)
        many = pages(project)
        bare = empty(folder / "many-empty", many, project)
        warm, floor = (best(build(each) for _ in range(repeats)) for each in (project, bare))
        add_arms(project, "one-more", range(arms, arms + 1))
        more = build(project)
        figures += figures_of(f"{arms:,} arms, cold", first, floor, goal=0.04 * arms, reason="arms, cold")
        figures += figures_of(f"{arms:,} arms, warm", warm, floor, ratio=1.6, reason="arms, warm")
        figures += figures_of(f"{arms:,} arms, one arm added", more, floor, ratio=2.5, reason="arms, more")
        show(f"{10 * arms:,} runs in {arms:,} arms")
        ten = cold(with_arms(folder / "ten", arms, seeds=10))
        figures.append(
            Figure(
                name=f"{10 * arms:,} runs in {arms:,} arms, cold, processor time",
                value=ten.processor,
                unit="s",
                floor=10 * first.processor,
                floor_name=f"ten times {arms:,} runs",
                goal_ratio=1.0,
            )
        )
    packages = ("mkdocs", "mkdocs-material", "mkdocs-gen-files", "Markdown", "matplotlib", "pandas")
    busy = f"Other programs kept the processors busy: load {load} on {os.cpu_count()} cores."
    if load is not None and load > (os.cpu_count() or 1) / 2:
        figures = [each.model_copy(update={"reason": busy}) if each.met is False else each for each in figures]
    return SiteRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("page"),
        cores=os.cpu_count() or 1,
        load=load,
        versions={package: version(package) for package in packages},
        sizes={"pages of the shipped site": count, "pages of the large one": many},
        figures=tuple(figures),
    )


def main() -> int:
    """Measure and record; 0, 2 where a site could not be built, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=1_000, help="of the large site (1000)")
    parser.add_argument("--repeats", type=int, default=3, help="of warm builds and edits (3)")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/site.json)")
    options = parser.parse_args()
    if options.arms < 2 or options.repeats < 1:
        parser.error("give at least 2 --arms and 1 of --repeats")
    if options.arms != 1_000 and options.record is None:
        parser.error("a trial is not recorded for the site: name another file with --record")
    try:
        found = bench(options.arms, options.repeats, lambda text: print(f"{text} ...", file=sys.stderr))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the record is as it was", file=sys.stderr)
        return 130
    path = options.record or RECORDED / "site.json"
    write_record(found, path)
    for each in found.figures:
        ratio = f"   {each.value / each.floor:.2f} x {each.floor_name}" if each.floor else ""
        result = {True: "   met", False: "   missed", None: ""}[each.met]
        print(f"{each.name:45} {each.value:8.3g} {each.unit}{ratio}{result}")
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
