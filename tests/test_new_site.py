"""`altgrad new-site` from an installed wheel, in an empty folder, far from this repository."""

from __future__ import annotations

import json
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


LOGS = {"lr0.1-a": (0.1, 3, 0.5), "lr0.1-b": (0.1, 4, 0.6), "lr0.2-a": (0.2, 3, 0.7), "lr0.2-b": (0.2, 4, 0.9)}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs without a loss: two rates and two seeds under a name of their own."""
    root = tmp_path_factory.mktemp("logs")
    for name, (rate, state, score) in LOGS.items():
        (root / name).mkdir()
        (root / name / "metrics.csv").write_text(f"step,eval/acc,aux\n0,0.1,1\n10,{score},1\n")
        (root / name / "config.json").write_text(json.dumps({"lr": rate, "rng_state": state, "depth": 2}))
    return root


def test_from_logs_to_a_site_in_one_command_styled_under_a_path(installed: Path, tmp_path: Path, logs: Path) -> None:
    """With flags and no terminal; built where the project cannot be written to."""
    pytest.importorskip("mkdocs_gen_files")
    flags = (
        "--loss",
        "eval/acc",
        "--better",
        "higher",
        "--seed",
        "rng_state",
        "--site-url",
        "https://a.example/b/runs",
    )
    made = run(installed, tmp_path, "-m", "altgrad.cli", "new-site", "our-runs", "--from", str(logs), *flags)
    assert made.returncode == 0, made.stderr
    assert "Next: cd our-runs && mkdocs serve" in made.stdout
    project = tmp_path / "our-runs"
    for name in (".cache", "build"):  # a file in their place, so that none can write there, whoever it is
        (project / name).write_text("")
    command = ("-m", "mkdocs", "build", "--strict", "-f", "our-runs/mkdocs.yml", "-d", str(tmp_path / "site"))
    built = run(installed, tmp_path, *command)
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stderr.count("The cache is off") == 1
    overview = (tmp_path / "site/overview/index.html").read_text()
    assert "has the highest eval/acc: 0.8000" in re.sub(r"<[^>]+>", "", overview)
    assert 'href="/b/runs/stylesheets/altgrad.css"' in (tmp_path / "site/404.html").read_text()
    assert "<loc>https://a.example/b/runs/overview/</loc>" in (tmp_path / "site/sitemap.xml").read_text()
    tabs = re.findall(r'class="md-tabs__link">\s*(\w+)', overview)
    assert tabs == ["Home", "Overview", "Effects", "Curves", "Runs"], "no layers were recorded"


def answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: list[str], *words: str
) -> tuple[int, str, list[str]]:
    """Exit code, output, and the questions that were asked on a terminal that gives these answers, then none."""
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        if len(asked) > len(answers):
            raise EOFError
        return answers[len(asked) - 1]

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code = main(["new-site", *words])
    said = capsys.readouterr()
    return code, said.out + said.err, asked


def test_on_a_terminal_what_is_not_known_is_asked(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["nonsense", "eval/acc", "higher", "rng_state", "my site", "https://a.example"]
    code, _, asked = answered(monkeypatch, capsys, answers, str(tmp_path / "one"), "--from", str(logs))
    assert code == 0
    assert asked[0].startswith("By which metric are runs compared? There are aux, eval/acc [aux]")
    assert asked[1].startswith("nonsense: not among aux, eval/acc")
    assert "is lower or higher better?" in asked[2]
    assert "Which key of their config is it? There are rng_state [none]" in asked[3]
    said = yaml.safe_load((tmp_path / "one/altgrad.yaml").read_text())
    assert said == {"loss": "eval/acc", "metrics": {"eval/acc": {"better": "higher"}}, "seed": "rng_state"}
    assert 'site_url: "https://a.example/"' in (tmp_path / "one/mkdocs.yml").read_text()

    code, told, asked = answered(monkeypatch, capsys, [], str(tmp_path / "two"), "--from", str(logs))
    assert (code, len(asked)) == (0, 5), "the end of the input is an answer to each"
    assert yaml.safe_load((tmp_path / "two/altgrad.yaml").read_text()) == {"loss": "aux"}
    assert "aux: lower is taken as better; else --better higher" in told


def test_a_wrong_name_is_one_line_and_the_site_is_there_without_it(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--from", str(logs), "--loss", "eval/ac", "--arms", "lr,depht"]
    assert main(["new-site", str(tmp_path / "one"), *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        "error: --loss eval/ac: no run has it; there are eval/acc; --arms depht: no run has it; there"
    )
    assert error.endswith("one/altgrad.yaml")
    assert len([*(tmp_path / "one/experiments/runs").glob("*/run.json")]) == 4
    assert yaml.safe_load((tmp_path / "one/altgrad.yaml").read_text())["arms"] == ["optimizer.learning_rate"]


def test_a_seed_that_is_known_anyway_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/metrics.csv").write_text("step,val_loss\n0,1\n1,0.5\n")
    (tmp_path / "logs/config.json").write_text('{"lr": 0.1, "seed": 3}')
    words = ["--from", str(tmp_path / "logs"), "--seed", "seed"]
    assert main(["new-site", str(tmp_path / "site"), *words]) == 0
    assert not capsys.readouterr().err
    assert not yaml.safe_load((tmp_path / "site/altgrad.yaml").read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "nowhere"], "nowhere: no such file or folder"),
        (["--seed", "x"], "give --from PATH with them"),
        (["--site-url", "javascript:alert(1)"], "give an address such as"),
        (["--site-url", "https://user:pass@a.example/"], "give an address such as"),
    ],
)
def test_a_mistake_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["new-site", str(tmp_path / "one"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "one").exists()


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
    load = pytest.importorskip("mkdocs.utils").yaml_load
    ours, theirs = (load((folder / "mkdocs.yml").read_text()) for folder in (ROOT, TEMPLATES))
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
    gitlab = yaml.safe_load(made[".gitlab-ci.yml"])
    assert gitlab["pages"]["artifacts"] == {"paths": ["public"]}
    assert gitlab["build"]["variables"]["SITE_URL"] == "$CI_PAGES_URL/"
    assert "mkdocs build --strict --site-dir public" in gitlab["build"]["script"]
    for name in (".github/workflows/site.yml", ".gitlab-ci.yml"):
        assert "wandb" not in made[name].decode().lower()
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
