"""Write the three reports as plain markdown, with their charts and data beside them, from the recorded runs.

The pages are the ones that the site shows. Where there is a key for W&B, the project's runs are fetched into the local
records first; without one, or when nothing comes for 6 s, the records that are here are read. Without any runs the
reports say what is pending, and how to fill it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.analysis import ExperimentDataLoader  # noqa: E402
from altgrad.cli import pull_progress  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.reports import ReportGenerator  # noqa: E402
from altgrad.reports.document import document_page  # noqa: E402
from altgrad.reports.format_comparison import headline  # noqa: E402
from altgrad.runs.wandb_access import project_and_entity  # noqa: E402
from altgrad.site.render import Dialect, fragment  # noqa: E402
from altgrad.text import visible  # noqa: E402

SITE_URL = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8")).get("site_url") or ""
DOCUMENTS = {
    path: f"../docs/{path}.md"
    for file in sorted((ROOT / "docs").rglob("*.md"))
    if "{{ " not in file.read_text("utf-8")
    for path in [file.relative_to(ROOT / "docs").with_suffix("").as_posix()]
}
"""Where GitHub shows a page that needs no computing, as seen from the reports."""
SILENCE_SECONDS = 6.0
ANSWER = re.compile(r"(<!-- answer -->\n).*?(<!-- /answer -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        for source in options.runs or ():
            if not source.is_dir():
                raise UsageError(f"--runs {source}: no such folder; give the folder that holds the run records")
        asked = not options.offline and (options.runs is None or options.project is not None)
        project = project_and_entity(options.project, None)[0] if asked else None
        with pull_progress() as progress:
            loader = ExperimentDataLoader(
                options.runs, project=project, entity=options.entity, silence=SILENCE_SECONDS, progress=progress
            )
            _ = loader.pulled
        _say_what_came(loader)
        built = None if os.environ.get("SOURCE_DATE_EPOCH") else datetime.now(UTC)
        written = ReportGenerator(loader, built).write(options.output_dir, options.site_root, DOCUMENTS)
        if options.readme is not None:
            fill_answer(options.readme, loader)
    except OSError as error:
        print(
            f"error: {error.filename or options.output_dir}: {error.strerror}; choose another folder", file=sys.stderr
        )
        return 2
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the runs that were fetched are kept", file=sys.stderr)
        return 130
    _summary(loader, written)
    return 0


def fill_answer(readme: Path, loader: ExperimentDataLoader) -> None:
    """Put docs/sections/readme.md between the markers ``<!-- answer -->`` and ``<!-- /answer -->``.

    Links lead to the reports in ``reports/``.

    Raises:
        UsageError: where the file has no such markers.
    """
    dialect = Dialect(lambda page: f"{page.path}.md" + (f"#{page.anchor}" if page.anchor else ""))
    sentence = fragment(document_page(loader, "sections/readme", headline(loader)), dialect)
    text = readme.read_text(encoding="utf-8")
    if not ANSWER.search(text):
        raise UsageError(f"{readme}: has no '<!-- answer -->' and '<!-- /answer -->' markers; add them")
    readme.write_text(ANSWER.sub(lambda match: f"{match.group(1)}{sentence}\n{match.group(2)}", text), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("reports"), help="where the reports go (default: reports)"
    )
    parser.add_argument(
        "--runs", type=Path, action="append", metavar="DIR",
        help="a folder of run records, instead of experiments/recorded and experiments/runs; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--project", help="of W&B (default: WANDB_PROJECT, else altgrad; with --runs: none, W&B is then not asked)"
    )
    parser.add_argument("--entity", help="that owns the project (default: WANDB_ENTITY, else the key's own)")
    parser.add_argument("--offline", action="store_true", help="use local records only; no network")
    parser.add_argument(
        "--site-root", default=SITE_URL, metavar="URL",
        help="where the site with the arms' pages is published (default: site_url of mkdocs.yml)",
    )  # fmt: skip
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also put the answer between this file's markers")
    return parser


def _say_what_came(loader: ExperimentDataLoader) -> None:
    """What W&B gave, or why the reports are made without it."""
    pulled = loader.pulled
    if pulled is None:
        return
    found = len(loader.run_set.records)
    local = f"Reports are made from the {found} local records." if found else "Generating placeholder reports."
    if pulled.fetched or pulled.unchanged or pulled.recorded_here:
        print(f"W&B: {visible(pulled.in_words)}")
        if pulled.reason:
            print(f"warning: W&B: {visible(pulled.reason)}; what came until then is used", file=sys.stderr)
    else:
        print(f"W&B not configured or no runs found. {local}")
        print(f"  reason: {visible(pulled.reason or 'the project has no runs')}")
    for problem in pulled.problems:
        print(visible(f"warning: W&B run {problem.where}: {problem.reason}"), file=sys.stderr)
    for identity, lines in pulled.reports.items():
        for line in lines:
            print(visible(f"note: {identity}: {line}"))


def _summary(loader: ExperimentDataLoader, written: list[Path]) -> None:
    runs = loader.runs
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().sort_index().items())
    print(f"Read {len(runs)} runs{f' ({counts})' if counts else ''}.")
    for problem in loader.problems:
        print(f"warning: left out {problem.where}: {problem.reason}", file=sys.stderr)
    if runs.empty:
        print("No runs found: the reports are pending and name the commands that fill them.")
    print("Wrote:")
    for path in written:
        print(f"  {path}")


if __name__ == "__main__":
    sys.exit(main())
