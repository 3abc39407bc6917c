"""`altgrad new-site` from an installed wheel, in an empty folder, far from this repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from altgrad.cli import main
from altgrad.site.new_site import TEMPLATES, templates

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with a wheel of this checkout unpacked in it, as pip installs it."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("altgrad", "docs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "CITATION.cff"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    for command in (
        [*pip, "wheel", *offline, "-w", str(folder), str(source)],
        [*pip, "install", *offline, "--target", str(folder / "packages")],
    ):
        wheels = [str(path) for path in folder.glob("*.whl")]
        done = subprocess.run([*command, *wheels], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder / "packages"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ALTGRAD", "WANDB"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(installed), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_site_from_the_wheel_builds_strictly_without_and_with_runs(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files")
    where = run(installed, tmp_path, "-c", "import altgrad; print(altgrad.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed), "the wheel is what is tested"
    made = run(installed, tmp_path, "-m", "altgrad.cli", "new-site", "our-runs")
    assert made.returncode == 0, made.stderr
    project = tmp_path / "our-runs"
    listed = run(installed, project, "-m", "altgrad.cli", "runs", "list")
    assert listed.returncode == 0, listed.stderr
    for records in (False, True):
        if records:
            shutil.copytree(
                ROOT / "experiments/recorded/pilot-manifold", project / "experiments/recorded/pilot-manifold"
            )
        # From another folder: the project's own records are found all the same.
        built = run(installed, tmp_path, "-m", "mkdocs", "build", "--strict", "-f", "our-runs/mkdocs.yml")
        assert built.returncode == 0, built.stdout + built.stderr
        home = (project / "site/index.html").read_text()
        assert ("No run is recorded yet" in home) is not records
        assert ('role="img"' in home) is records
    assert len([*(project / "site/runs").glob("*/index.html")]) > 5
    sys.path.insert(0, str(ROOT / "tests/site"))
    from links import faults

    assert faults(project / "site") == []
    private = re.compile(rb"(?<![\w.])/(?:home|root|Users|work|tmp)/[\w.-]")
    for path in (project / "site").rglob("*"):
        assert path.is_dir() or path.suffix in (".gz", ".png") or not private.search(path.read_bytes()), path


def test_a_site_from_before_the_plugin_still_builds_and_is_told_the_new_name_once(
    installed: Path, tmp_path: Path
) -> None:
    """What `altgrad new-site` of version 0.2 laid out, with its copied hooks and imports of `altgrad.pages`."""
    project = shutil.copytree(ROOT / "tests/site/old_site", tmp_path / "old")
    shutil.copytree(ROOT / "experiments/recorded/pilot-manifold", project / "experiments/recorded/pilot-manifold")
    built = run(installed, tmp_path, "-m", "mkdocs", "build", "--strict", "-f", "old/mkdocs.yml")
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stderr.count("altgrad.pages is altgrad.site now") == 1
    assert 'role="img"' in (project / "site/index.html").read_text()
    assert len([*(project / "site/runs").glob("*/index.html")]) > 5


def test_its_scripts_and_settings_are_those_of_this_site_and_it_names_the_plugin() -> None:
    for name in ("executed", "runs"):
        assert (TEMPLATES / f"gen/{name}.py").read_bytes() == (ROOT / f"gen/{name}.py").read_bytes(), (
            f"copy gen/{name}.py"
        )
    ours, theirs = (yaml.safe_load((folder / "mkdocs.yml").read_text()) for folder in (ROOT, TEMPLATES))
    ours["extra_css"].remove("stylesheets/explorer.css")  # of pages that they have not
    for key in ("markdown_extensions", "extra_css", "extra_javascript", "validation"):
        assert ours[key] == theirs[key], key
    assert ours["theme"]["palette"] == theirs["theme"]["palette"]
    assert theirs["plugins"][-1] == "altgrad"
    assert len((ROOT / "gen/hooks.py").read_text().splitlines()) <= 15


def test_it_publishes_with_least_permissions_and_never_asks_wandb() -> None:
    made = dict(templates())
    assert {".gitignore", ".github/workflows/site.yml", "mkdocs.yml", "README.md", "docs/index.md"} <= made.keys()
    workflow = yaml.safe_load(made[".github/workflows/site.yml"])
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "wandb" not in made[".github/workflows/site.yml"].decode().lower()
    assert re.search(rb"^altgrad\[site\]==\d", made["requirements.txt"], re.MULTILINE)


def test_this_repositorys_workflow_lets_only_the_publishing_job_write_and_it_runs_git_alone() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    writing = {name for name, job in jobs.items() if job.get("permissions")}
    assert writing == {"publish"}
    assert jobs["publish"]["permissions"] == {"contents": "write"}
    assert (jobs["publish"]["needs"], jobs["version"]["needs"]) == ("version", "check")
    assert all(jobs[name]["if"].startswith("github.event_name == 'push'") for name in ("publish", "version"))
    commands = [line for step in jobs["publish"]["steps"] for line in step.get("run", "").splitlines()]
    assert commands
    assert all(line.startswith("git ") for line in commands)
    for job in (jobs["check"], jobs["version"]):
        assert job["steps"][0]["with"]["persist-credentials"] is False


def test_every_action_is_pinned_by_the_digest_of_its_commit() -> None:
    texts = [path.read_text() for path in (ROOT / ".github/workflows").iterdir()]
    texts += [data.decode() for name, data in templates() if name.startswith(".github/")]
    used = [line for text in texts for line in re.findall(r"uses: (.*)", text)]
    assert len(used) > 8
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_a_bad_folder_is_one_line_and_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, told in (
        ("full", "the folder is not empty"),
        ("file", "there is a file of this name"),
        ("file/below", "cannot be written (Not a directory)"),
    ):
        assert main(["new-site", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert told in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert main(["new-site", str(tmp_path / "new")]) == 2
        tmp_path.chmod(0o700)
