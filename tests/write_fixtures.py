"""What the tools themselves write, two versions of each, for the tests of `altgrad.runs.sources`: ``make fixtures``.

Each tool is installed into an environment of its own (some exclude our pins), writes two short runs below
``tests/fixtures/<tool>-<version>/``, and its own reader says what is in them: ``<tool>-<version>.json`` beside it, with
``runs``: name -> metric -> [[step, value], ...]. Where a tool has no reader (CSV, trainer_state.json) it is what was
logged, as the program that logged it says. Tools on torch use the torch of the environment that runs this script.

    python tests/write_fixtures.py [TOOL ...] [--environments FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

FIXTURES = Path(__file__).parent / "fixtures"


class Tool(NamedTuple):
    """One version of a tool: the program that writes, and what pip installs for it."""

    program: str
    install: str
    torch: bool = False


COMMON = """
import json, math, os, sys
from pathlib import Path
def loss(seed, lr, step): return 2.5 * math.exp(-lr * step) + 0.1 * seed
RUNS = {"first": (0, 0.1), "second": (1, 0.2)}
STEPS = 12
def told(package, runs):
    from importlib.metadata import version
    what = {"tool": package, "version": version(package), "python": sys.version.split()[0], "runs": runs}
    Path("told.json").write_text(json.dumps(what, indent=1) + "\\n")
"""

TENSORBOARD = """
from tensorboardX import SummaryWriter
for name, (seed, lr) in RUNS.items():
    writer = SummaryWriter(name)
    writer.add_hparams({"lr": lr, "seed": seed, "optimizer": "adamw", "bias": True}, {"hparam/last": 1.0}, name="1700000000.25")
    for step in range(STEPS):
        writer.add_scalar("train/loss", loss(seed, lr, step), step)
        writer.add_scalar("wide", math.nan if step == 3 else 1e30 * step, step)
        if step % 4 == 3: writer.add_scalar("val/loss", loss(seed, lr, step) + 0.1, step)
    writer.add_histogram("weights", [1.0, 2.0], 3)
    writer.add_text("note", "hello", 0)
    writer.close()
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
writer = EventFileWriter("second")  # as TensorFlow 2 and Keras write scalars: tensors, in a second file of the run
for step in range(STEPS):
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.5 + step / 16])
    if step % 2:
        import struct
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=struct.pack("<f", 0.5 + step / 16))
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
    value = summary_pb2.Summary.Value(tag="accuracy", tensor=tensor, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))
    writer.add_event(event_pb2.Event(wall_time=1.7e9 + step, step=step, summary=summary_pb2.Summary(value=[value])))
writer.close()
for at, path in enumerate(sorted(Path(".").rglob("events.*"))):  # without the name of this machine
    path.rename(path.with_name(f"events.out.tfevents.{1700000000 + at}.host.1.{at}"))
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
runs = {}
for name in RUNS:
    found = {}
    reader = EventAccumulator(name, size_guidance={"scalars": 0, "tensors": 0}).Reload()
    for tag in reader.Tags()["scalars"]:
        found[tag] = [[each.step, each.value] for each in reader.Scalars(tag)]
    for tag in reader.Tags()["tensors"]:
        if tag == "accuracy":
            found[tag] = [[each.step, float(tensor_util.make_ndarray(each.tensor_proto))] for each in reader.Tensors(tag)]
    runs[name] = found
told("tensorboard", runs)
"""

MLFLOW = """
import warnings; warnings.filterwarnings("ignore")
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", MLFLOW_ALLOW_FILE_STORE="true", LOGNAME="someone", USER="someone")
import logging; logging.disable(logging.WARNING)
import mlflow
from mlflow.tracking import MlflowClient
runs = {}
os.environ["MLFLOW_TRACKING_URI"] = ""
for kind, address in (("files", "mlruns"), ("sqlite", "sqlite:///mlflow.db")):
    mlflow.set_tracking_uri(address)
    client = MlflowClient()
    experiment = client.create_experiment(f"sweep {kind}", artifact_location="artifacts")
    for name, (seed, lr) in RUNS.items():
        with mlflow.start_run(experiment_id=experiment, run_name=f"{kind} {name}") as run:
            mlflow.log_params({"lr": lr, "seed": seed, "optimizer": "adamw", "layers": "[1, 2]"})
            mlflow.set_tag("mlflow.note.content", "what it is for"); mlflow.set_tag("team", "blue")
            for step in range(STEPS):
                mlflow.log_metrics({"loss": loss(seed, lr, step)}, step=step)
                if step % 4 == 3: mlflow.log_metrics({"val/loss": loss(seed, lr, step) + 0.1}, step=step)
            if name == "second": mlflow.end_run("FAILED")
        found = {}
        for metric in client.get_run(run.info.run_id).data.metrics:
            found[metric] = [[each.step, each.value] for each in client.get_metric_history(run.info.run_id, metric)]
        runs[f"{kind} {name}"] = found
told("mlflow-skinny", runs)
"""

TRACKIO = """
os.environ.update(TRACKIO_DIR=str(Path("trackio").absolute()), HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", DO_NOT_TRACK="1", CI="1")
import trackio
for name, (seed, lr) in RUNS.items():
    import inspect
    options = {"embed": False} if "embed" in inspect.signature(trackio.init).parameters else {}
    run = trackio.init(project="sweep", name=name, config={"lr": lr, "seed": seed, "optimizer": {"kind": "adamw"}}, **options)
    for step in range(STEPS):
        row = {"train/loss": loss(seed, lr, step), "nested": {"a": step}}
        if step == 3: row["wide"] = math.inf
        if step % 4 == 3: row["val/loss"] = loss(seed, lr, step) + 0.1
        trackio.log(row)
    trackio.finish()
from trackio.sqlite_storage import SQLiteStorage
runs = {}
for name in RUNS:
    found = {}
    for row in SQLiteStorage.get_logs("sweep", name):
        for key, value in row.items():
            if key not in ("step", "timestamp") and isinstance(value, (int, float)): found.setdefault(key, []).append([row["step"], value])
    runs[name] = found
told("trackio", runs)
"""

WANDB = """
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_CONSOLE="off", WANDB_DISABLE_GIT="true", WANDB_DISABLE_CODE="true", WANDB_ERROR_REPORTING="false")
import wandb
runs = {}
for name, (seed, lr) in RUNS.items():
    settings = wandb.Settings(**{"x_disable_stats": True, "x_disable_meta": True, "host": "host", "root_dir": "."})
    run = wandb.init(project="sweep", entity="team", name=name, id=f"{name}0000", config={"max_learning_rate": lr, "seed": seed, "layers": [1, 2]}, settings=settings, dir=".")
    found = {}
    for step in range(STEPS):
        row = {"train/loss": loss(seed, lr, step)}
        if step % 4 == 3: row["val/loss"] = loss(seed, lr, step) + 0.1
        run.log(row, step=step)
        for key, value in row.items(): found.setdefault(key, []).append([step, value])
    run.finish()
    runs[name] = found
import shutil
for path in list(Path(".").rglob("*")):
    if path.is_file() and path.suffix != ".wandb": path.unlink()
for path in Path(".").rglob("*"):
    if path.is_symlink(): path.unlink()
for path in sorted(Path(".").rglob("*"), reverse=True):
    if path.is_dir() and not any(path.iterdir()): path.rmdir()
told("wandb", runs)
"""

LIGHTNING = """
import warnings; warnings.filterwarnings("ignore")
from lightning.pytorch.loggers import CSVLogger
runs = {}
for name, (seed, lr) in RUNS.items():
    logger = CSVLogger("lightning_logs", name=name, version=0)
    logger.log_hyperparams({"lr": lr, "seed": seed, "optimizer": "adamw"})
    found = {}
    for step in range(STEPS):
        rows = [{"train_loss_step": loss(seed, lr, step), "epoch": step // 4}]
        if step % 4 == 3: rows.append({"val_loss": loss(seed, lr, step) + 0.1, "epoch": step // 4})
        for row in rows:
            logger.log_metrics(row, step)
            for key, value in row.items():
                if [step, value] not in found.setdefault(key, []): found[key].append([step, value])
        if step % 5 == 0: logger.save()
    logger.finalize("success")
    runs[f"{name}/version_0"] = found
told("lightning", runs)
"""

TRAINER = """
os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", WANDB_DISABLED="true")
import warnings; warnings.filterwarnings("ignore")
import torch, transformers
from transformers import Trainer, TrainingArguments
class Data(torch.utils.data.Dataset):
    def __len__(self): return 16
    def __getitem__(self, at): return {"x": torch.full((2,), float(at) / 16), "labels": torch.tensor([float(at) / 8])}
class Model(torch.nn.Module):
    def __init__(self): super().__init__(); self.layer = torch.nn.Linear(2, 1)
    def forward(self, x, labels): out = self.layer(x); return {"loss": ((out - labels) ** 2).mean(), "logits": out}
runs = {}
for name, (seed, lr) in RUNS.items():
    options = dict(output_dir=name, max_steps=STEPS, logging_steps=3, eval_steps=4, save_steps=6, learning_rate=lr, seed=seed, report_to=[], disable_tqdm=True, per_device_train_batch_size=4, use_cpu=True, save_only_model=True, eval_strategy="steps")
    trainer = Trainer(model=Model(), args=TrainingArguments(**options), train_dataset=Data(), eval_dataset=Data())
    trainer.train(); trainer.save_state()
    found = {}
    for row in trainer.state.log_history:
        for key, value in row.items():
            if key != "step": found.setdefault(key, []).append([row["step"], value])
    runs[name] = found
for path in list(Path(".").rglob("*")):
    if path.is_file() and path.name != "trainer_state.json": path.unlink()
told("transformers", runs)
"""

KERAS = """
os.environ.update(KERAS_BACKEND="torch", CUDA_VISIBLE_DEVICES="")
import warnings; warnings.filterwarnings("ignore")
import numpy, keras
runs = {}
for name, (seed, lr) in RUNS.items():
    keras.utils.set_random_seed(seed)
    x = numpy.linspace(-1, 1, 32)[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(lr), "mse", metrics=["mae"])
    done = model.fit(x, x**2, epochs=5, validation_split=0.25, verbose=0, callbacks=[keras.callbacks.CSVLogger(f"{name}.csv")])
    runs[name] = {key: [[epoch, float(value)] for epoch, value in enumerate(values)] for key, values in done.history.items()}
told("keras", runs)
"""

MLFLOW_NEEDS = "sqlalchemy<2.1 alembic"
LIGHTNING_NEEDS = "lightning-utilities torchmetrics fsspec tqdm"
TRAINER_NEEDS = "regex tqdm fsspec filelock psutil requests"
KERAS_NEEDS = "optree ml-dtypes namex h5py absl-py"
OLD = "setuptools<81"
TOOLS = {
    "tensorboard-2.13": Tool(TENSORBOARD, f"tensorboard==2.13.* tensorboardX==2.5.* numpy<2 protobuf<5 {OLD}"),
    "tensorboard-2.20": Tool(TENSORBOARD, f"tensorboard==2.20.* tensorboardX==2.6.4 {OLD}"),
    "mlflow-2.14": Tool(MLFLOW, f"mlflow-skinny==2.14.* {MLFLOW_NEEDS} {OLD}"),
    "mlflow-3": Tool(MLFLOW, f"mlflow-skinny==3.* {MLFLOW_NEEDS}"),
    "trackio-0.5": Tool(TRACKIO, "trackio==0.5.*"),
    "trackio-0.43": Tool(TRACKIO, "trackio==0.43.*"),
    "wandb-0.19": Tool(WANDB, f"wandb==0.19.* {OLD}"),
    "wandb-0.31": Tool(WANDB, "wandb==0.31.*"),
    "lightning-2.2": Tool(LIGHTNING, f"lightning==2.2.* pytorch-lightning==2.2.* {LIGHTNING_NEEDS} {OLD}", True),
    "lightning-2.5": Tool(LIGHTNING, f"lightning==2.5.* pytorch-lightning==2.5.* {LIGHTNING_NEEDS} {OLD}", True),
    "trainer-4.46": Tool(
        TRAINER,
        f"transformers==4.46.* tokenizers==0.20.* huggingface_hub==0.26.* accelerate==1.1.* numpy<2.3 {TRAINER_NEEDS} {OLD}",
        True,
    ),
    "trainer-4.57": Tool(
        TRAINER,
        f"transformers==4.57.* tokenizers==0.22.* huggingface_hub==0.36.* accelerate==1.11.* hf-xet {TRAINER_NEEDS}",
        True,
    ),
    "keras-3.3": Tool(KERAS, f"keras==3.3.* {KERAS_NEEDS}", True),
    "keras-3": Tool(KERAS, f"keras==3.* {KERAS_NEEDS}", True),
}


def environment(folder: Path, tool: Tool) -> Path:
    """The Python of a tool's environment, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        alone = ("--no-deps",) if tool.torch else ()  # what torch needs is there
        subprocess.run([python, "-m", "pip", "install", "-q", *alone, *tool.install.split()], check=True)
        if tool.torch:
            found = subprocess.check_output([sys.executable, "-c", "import torch; print(torch.__path__[0])"], text=True)
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "zz_torch.pth").write_text(f"{Path(found.strip()).parent}\n")
    return python


def write(name: str, environments: Path) -> None:
    """The fixtures of one version of a tool, and what its reader says of them."""
    tool, folder, work = TOOLS[name], FIXTURES / name, Path(tempfile.gettempdir()) / "fixtures-work"
    python = environment(environments / name, tool)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    subprocess.run(
        [python, "-c", COMMON + tool.program], cwd=work, check=True, env=kept | {"HOME": str(work / ".home")}
    )
    shutil.rmtree(work / ".home", ignore_errors=True)
    for path in work.rglob("*.lock"):
        path.unlink()
    for path in work.rglob("*.db"):  # mostly empty pages
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("VACUUM")
        (path.parent / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    (work / "told.json").rename(FIXTURES / f"{name}.json")
    shutil.move(work, folder)
    for path in folder.rglob("*.yaml"):  # where a tool notes where it ran
        path.write_text(path.read_text().replace(str(work), "/fixtures"))
    told = json.loads((FIXTURES / f"{name}.json").read_text())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: {told['tool']} {told['version']}, {len(told['runs'])} runs, {size:,} bytes")
    private = re.compile(rb"/(?:home|root|work)/")
    for path in folder.rglob("*"):
        if path.is_file() and (found := private.search(path.read_bytes())):
            print(f"  {path.relative_to(FIXTURES)} holds {found[0]!r}", file=sys.stderr)


def main() -> None:
    """Write the fixtures of the tools that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"default: all of {', '.join(TOOLS)}")
    parser.add_argument("--environments", type=Path, default=Path("build/fixtures"))
    options = parser.parse_args()
    FIXTURES.mkdir(exist_ok=True)
    for name in options.tools or TOOLS:
        write(name, options.environments)


if __name__ == "__main__":
    main()
