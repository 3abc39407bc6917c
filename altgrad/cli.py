"""The command line, ``altgrad COMMAND``. Only the commands that need a model import torch."""

from __future__ import annotations

import argparse
import contextlib
import errno
import html
import importlib.util
import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altgrad import __version__
from altgrad.config import UsageError, load_config, one_line
from altgrad.text import csv, shorten, visible

EXPLAINING = """Say what broke in a recorded run, where and when, as markdown to be read in a terminal.

`failure.md`, beside a record that ended badly, has the same with every special character escaped, to be published.

RUN_FOLDER is the folder of one run: OUT/<run id>, as `altgrad train` prints it. A run that failed, was stopped or was
killed is explained from its record, which stays as it is; one that finished has its warnings, or nothing to explain.

exit codes:
  0 printed   2 there is no readable record; one line says what
"""
if TYPE_CHECKING:
    from altgrad.analysis.question import Question
    from altgrad.config import ExperimentConfig
    from altgrad.runs import Problem, RunSet
    from altgrad.runs.wandb_pull import Pulled

TRAINING_PACKAGES = ("torch", "rich", "safetensors")

NEW_SITE = """Lay out a small project in a new folder: a site that is made of your runs.

With --from the logs in PATH are brought in. What they do not say is asked on a terminal where no option says it;
elsewhere a line tells what was taken. All of it can be changed in DIR/altgrad.yaml.
"""
NEW_SITE_EXAMPLES = """examples:
  altgrad new-site our-runs --from logs/
  altgrad new-site our-runs --from wandb/ --loss eval/accuracy --better higher --seed rng_state
  altgrad new-site our-runs --from mlruns/ --arms lr,width --site-url https://our-name.github.io/our-runs/
"""

TRAINING = """Train one config and record the run.

The record goes to OUT/<run id>/: run.json (config, environment, status, events, summary), history.parquet (a row a
step), layers.parquet (statistics of every layer), failure.md for a run that ended badly (what broke, where and when)
and, where the config has checkpoint.every=N, checkpoints/ (step-<n>, best, anomaly: tensors as safetensors, the rest
as JSON). A finished run is never overwritten; one that did not finish
is kept beside the new one as <run id>.<n>.old, or gone on with (--resume).
"""

EXAMPLES = """examples:
  {command} experiments/configs/e4m3.yaml
  {command} experiments/configs/e4m3.yaml --seed 3 --set max_steps=1000 --set quantize.weight=e5m2
  {command} experiments/configs/fp32.yaml --data my-text.txt --set model.dim=128
  {command} experiments/configs/e4m3.yaml --set checkpoint.every=100            stop it with Ctrl-C, then
  {command} experiments/configs/e4m3.yaml --set checkpoint.every=100 --resume

exit codes:
  0 finished   1 the run failed (NaN, divergence); its record says why   130 Ctrl-C   143 SIGTERM
  2 nothing more could be done: a mistake in the arguments, missing data, a full disk; one line says what
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 for a run that failed, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="altgrad", description="Train in simulated low precision, and explain runs.")
    parser.add_argument("--version", action="version", version=f"altgrad {__version__}")
    raw = partial(argparse.ArgumentParser, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=raw)  # type: ignore[call-overload]
    train = commands.add_parser("train", help="train one config and record the run")
    train.set_defaults(command=run_training)
    add_train_arguments(train, Path("experiments/runs"), "altgrad train")
    add_continue_arguments(commands.add_parser("continue", help="go on with a finished run, to more steps"))
    add_sweep_arguments(commands.add_parser("sweep", help="write the definition of a W&B sweep, whose agents train"))
    add_compare_arguments(commands.add_parser("compare", help="which of some formats costs least: tune, train, answer"))
    explain = commands.add_parser("explain", help="say what broke in a recorded run", description=EXPLAINING)
    explain.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="the folder of one run")
    explain.set_defaults(command=run_explain)
    add_probe_arguments(commands.add_parser("probe", help="predict what formats cost, from one unquantized model"))
    add_evaluate_arguments(commands.add_parser("evaluate", help="what a recorded model loses in formats and recipes"))
    add_export_arguments(commands.add_parser("export-weights", help="write a recorded model's weights as real codes"))
    listed = commands.add_parser("recipes", help="list the recipes that have a name, or one with its settings")
    listed.description = "List the recipes of low-precision training that have a name, or show what one\nof them is."
    listed.add_argument("name", nargs="?", metavar="NAME", help="of a recipe: its settings, source and keys")
    listed.set_defaults(command=run_recipes)
    runs = commands.add_parser("runs", help="list, compare, export, check and remove recorded runs, and fetch some")
    add_runs_commands(runs)
    add_new_site_arguments(commands.add_parser("new-site", help="lay out a project whose site is made of your runs"))
    options = parser.parse_args(arguments)
    return guarded(lambda: int(options.command(options)))


def add_train_arguments(parser: argparse.ArgumentParser, out: Path, command: str) -> None:
    """The arguments of a training run; `out` is where records go by default, `command` what its examples begin with."""
    parser.description, parser.epilog = TRAINING, EXAMPLES.format(command=command)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument(
        "keys", metavar="KEY=VALUE", nargs="*", help="override keys, after CONFIG: what W&B's agents write"
    )
    override = "override a key, e.g. quantize.weight=e4m3; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    parser.add_argument("--seed", type=int, help="replaces the config's seed")
    parser.add_argument("--out", type=Path, default=out, help="folder of the records (default: experiments/runs)")
    _add_resources(parser)


def _add_resources(parser: argparse.ArgumentParser) -> None:
    resume = "go on with this config's interrupted or crashed run from its newest checkpoint, bit for bit; "
    parser.add_argument("--resume", action="store_true", help=f"{resume}from the beginning where there is none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    data = "train on a UTF-8 text of your own, its last tenth held out (default: the data set that the config names)"
    parser.add_argument("--data", type=Path, metavar="FILE", help=data)
    threads = "CPU threads; 1 (default) makes numbers independent of the core count"
    parser.add_argument("--threads", type=int, default=1, help=threads)


def run_training(options: argparse.Namespace) -> int:
    """Train as the options say, print how it ended, and return the exit code.

    Raises:
        UsageError: a user's mistake, or the data missing.
        ModuleNotFoundError: torch or rich are missing.
    """
    return _train(options, lambda: load_config(options.config, [*options.set, *options.keys], options.seed))


SWEEPING = """Write the definition of a W&B sweep over an experiment, as YAML, on standard output.

CONFIG is the YAML file of the experiment; each --over names a key and what it takes. Agents train it: their command is
`altgrad train` with the keys that W&B chose, which leaves a record in OUT and mirrors it. They start where CONFIG is.
"""

SWEEP_EXAMPLES = """example:
  altgrad sweep experiments/configs/e4m3.yaml --over optimizer.learning_rate=0.004,0.008 --over seed=0,1 > sweep.yaml
  wandb sweep sweep.yaml      prints the sweep's name; then, on any number of machines and in any number of terminals
  wandb agent ENTITY/PROJECT/SWEEP
"""


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad sweep``."""
    parser.description, parser.epilog = SWEEPING, SWEEP_EXAMPLES
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    over = "values with commas between, or LOW..HIGH (numbers with a point by their logarithm); may be repeated"
    parser.add_argument("--over", action="append", required=True, metavar="KEY=VALUES", help=over)
    parser.add_argument("--method", choices=("grid", "random", "bayes"), default="grid", help="default: grid")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key for all runs")
    out = Path("experiments/runs")
    parser.add_argument("--out", type=Path, default=out, help=f"folder of the records (default: {out.as_posix()})")
    parser.set_defaults(command=run_sweep)


def run_sweep(options: argparse.Namespace) -> int:
    """Print the definition; every value has been tried in the config.

    Raises:
        UsageError: a key or a value that the config does not take, or a range for a grid.
    """
    import yaml

    from altgrad.config import flat
    from altgrad.runs.wandb_access import project_and_entity

    for name, path in (("CONFIG", options.config), ("--out", options.out)):
        if Path(path).is_absolute():
            raise UsageError(f"{name} {path}: the definition goes to other machines; give a path from this folder")

    def value(key: str, text: str) -> Any:
        found = load_config(options.config, [*options.set, f"{key}={text}"])
        if (one := flat(found.model_dump(mode="json")).get(key, text)) is None:
            raise UsageError(f"--over {key}={text:.80}: agents cannot be given no value; leave the key to the config")
        return one

    parameters: dict[str, dict[str, Any]] = {}
    for key, _, text in (each.partition("=") for each in options.over):
        low, dots, high = text.partition("..")
        if key in parameters:
            raise UsageError(f"--over {key}: given twice; put all its values into one list")
        if not dots:
            parameters[key] = {"values": [value(key, each) for each in text.split(",")]}
            continue
        ends = {"min": value(key, low), "max": value(key, high)}
        if options.method == "grid" or not all(type(end) in (int, float) for end in ends.values()):
            raise UsageError(
                f"--over {key}={text:.80}: a range is of numbers and for --method random or bayes; list values"
            )
        if ends["min"] >= ends["max"]:
            raise UsageError(f"--over {key}={text:.80}: a range goes from the lower to the higher number")
        by = "int_uniform" if {*map(type, ends.values())} == {int} else "log_uniform_values"
        if by == "log_uniform_values" and ends["min"] <= 0:
            by = "uniform"
        parameters[key] = {"distribution": by, **ends}
    config = load_config(options.config, options.set)
    sets = [word for each in ("tracking=online", *options.set) for word in ("--set", each)]
    program = ["${env}", "${interpreter}", "-m", "altgrad.cli", "train", options.config, "${args_no_hyphens}"]
    definition = {
        "name": config.resolved_name,
        "project": project_and_entity(config.tracking.project, None)[0],
        "method": options.method,
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": parameters,
        "command": [*program, *sets, "--out", options.out.as_posix()],
    }
    sys.stdout.write(yaml.safe_dump(definition, sort_keys=False, width=1000))
    return 0


def _train(options: argparse.Namespace, load: Callable[[], ExperimentConfig], **how: Any) -> int:
    config, corpus = load(), None
    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}: give a number of at least 1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
    import torch

    from altgrad.runs.recorder import writes
    from altgrad.runs.writer import REPORT
    from altgrad.training import load_text, train

    if options.data is not None:
        config = config.model_copy(update={"data": "file"})
        corpus = load_text(options.data, config.tokenizer, config.vocabulary)
        if (lost := corpus.fingerprint.get("left_out", 0)) > 0.05:
            notice = f"notice: --data: {lost:.0%} of the characters have no ASCII likeness and are left out"
            print(notice, file=sys.stderr)
    torch.set_num_threads(options.threads)
    result = train(config, options.out, device=options.device, corpus=corpus, resume=options.resume, **how)
    if not writes():  # of several processes one speaks
        return 1 if result.failure else 0
    loss = result.summary["val_loss"]
    early = f" at step {step} (no better since)" if (step := result.summary.get("stopped_early")) else ""
    per_token = f" ({per:.4f} per token)" if (per := result.summary.get("val_loss_per_token")) else ""
    print(f"{result.run_id}: {result.status}{early}, validation loss {loss:.4f} nats per character{per_token}")
    if result.failure:
        where = f" ({result.failure.tensor}, {result.failure.phase})" if result.failure.tensor else ""
        print(f"failure from step {result.failure.step}{where}: {result.failure.message}")
        if (report := result.path / REPORT).exists():
            print(f"report: {report}")
    print(f"record: {result.path}")
    return 1 if result.failure else 0


CONTINUING = """Go on with a finished run, to more steps.

RUN is the folder of a run that finished and has checkpoints. The record of the longer run is a new one, of the run's
config with that many steps: it begins with the rows of RUN, and its event `continued` says whose they are. RUN stays as
it is. With schedule constant the longer run equals one that was planned so, bit for bit. A cosine has ended with RUN:
the further steps have its last rate, min_lr_ratio of the learning rate, and the config says so as schedule_steps.

exit codes: as altgrad train
"""


def add_continue_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad continue``."""
    parser.description = CONTINUING
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run with checkpoints")
    parser.add_argument("--steps", type=int, required=True, help="of the longer run, those of RUN included")
    parser.add_argument("--out", type=Path, help="folder of the records (default: the one that RUN is in)")
    _add_resources(parser)
    parser.set_defaults(command=run_continue)


def run_continue(options: argparse.Namespace) -> int:
    """Train the further steps, print how the run ended, and return the exit code.

    Raises:
        UsageError: a user's mistake, or no run to go on with.
        ModuleNotFoundError: torch or rich are missing.
    """
    _check_run(options.run)
    options.out = options.out or options.run.resolve().parent

    def load() -> ExperimentConfig:
        from altgrad.training.loop import continued_config

        config = continued_config(options.run, options.steps)
        if (end := config.schedule_steps) is not None:
            rate = f"{config.min_lr_ratio * config.optimizer.learning_rate:g}"
            print(f"notice: the cosine ended at step {end}: the further steps have the rate {rate}", file=sys.stderr)
        return config

    return _train(options, load, continued=options.run)


COMPARING = """Which of some formats costs least in an experiment? Tunes, trains the pairs and says what they show.

CONFIG is the YAML file of the experiment; what it quantizes is replaced by each format, for every operand, and by each
recipe. For them and for FP32 the learning rate is tuned on two held-out seeds, further where the best lies at an edge;
then each trains on the same seeds, and the differences to FP32 are stated with their 95% intervals, as in the reports.
Records go to OUT; the same command goes on with what is missing. OUT/compare.md and OUT/compare.json have the answer.
"""

COMPARE_EXAMPLES = """examples:
  altgrad compare experiments/configs/defaults.yaml --formats e4m3,e5m2,mxfp8,nvfp4 --seeds 8 --dry-run
  altgrad compare experiments/configs/defaults.yaml --formats e4m3,mxfp8 --rates 0.008,0.016,0.032 --steps 600
  altgrad compare my.yaml --formats e4m3,nvfp4 --model my_model:build          a model and data of your own

exit codes:
  0 answered   1 a run crashed; its record says why   130 Ctrl-C   143 SIGTERM
  2 a mistake in the arguments, or nothing to compare; one line says what
"""


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad compare``."""
    parser.description, parser.epilog = COMPARING, COMPARE_EXAMPLES
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument("--formats", required=True, metavar="NAMES", help="formats and recipes, separated by commas")
    parser.add_argument("--seeds", type=int, default=8, help="how many each trains on (default: 8)")
    rates = "learning rates of the sweeps, separated by commas (default: half, all and twice the config's)"
    parser.add_argument("--rates", metavar="RATES", help=rates)
    parser.add_argument("--no-tune", action="store_true", help="all at the config's learning rate, and said to be")
    parser.add_argument("--steps", type=int, help="replaces the config's max_steps")
    margin = "differences below it count as none (default: 0.01)"
    parser.add_argument("--margin", type=float, metavar="LOSS", help=margin)
    parser.add_argument("--model", metavar="MODULE:FUNCTION", help="a model and data of your own: see the guide")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a UTF-8 text of your own (default: the config's)")
    out = Path("experiments/compare")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help=f"default: {out.as_posix()}")
    parser.add_argument("--workers", type=int, help="processes, each with a thread (default: cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--dry-run", action="store_true", help="say how many runs there are and how long they take")
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Train what is missing, print and write what the runs show, and return the exit code.

    Raises:
        UsageError: a user's mistake, or a config that cannot be trained.
        ModuleNotFoundError: torch or rich are missing.
    """
    from altgrad.analysis.question import question

    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UsageError("altgrad compare shares out its runs itself (--workers); start it once, without torchrun")
    steps = [] if options.steps is None else [f"max_steps={options.steps}"]
    config = load_config(options.config, [*options.set, *steps])
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}: give a number of at least 1")
    if options.no_tune and options.rates:
        raise UsageError("--rates and --no-tune: give one of them")
    try:
        rates = [] if options.no_tune else [float(rate) for rate in _listed("--rates", options.rates or "0")]
    except ValueError:
        raise UsageError(f"--rates {options.rates:.80}: give numbers with commas between") from None
    names = _listed("--formats", options.formats)
    how: dict[str, Any] = {"rates": None if rates == [0] and not options.rates else rates}
    if options.margin is not None:
        how["margin"] = options.margin
    if options.model and options.data:
        raise UsageError("--model brings its own data; leave out --data")
    if options.data is not None:
        config = config.model_copy(update={"data": "file"})
    asked = question(config, names, options.seeds, **how)  # mistakes, before torch is loaded
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
    import torch

    from altgrad.runs import run_id
    from altgrad.runs.processor import cores
    from altgrad.training import pool
    from altgrad.training.task import code_of, load_task

    torch.set_num_threads(1)
    if options.model:
        load_task(options.model)
        own = {"task": options.model, "code": code_of(options.model)}
        asked = question(config, names, options.seeds, **how, task=own)
    given = {"device": options.device, "text": options.data, "task": options.model}
    data, told = pool.checked(asked.arms, seed=asked.seeds[-1], **given)
    for line in told:
        print(visible(line), flush=True)
    train, workers = partial(pool.train_named, out=options.out, **given), options.workers or cores()

    def identity(config: ExperimentConfig) -> str:
        return run_id(config, data)

    if options.dry_run:
        seconds = sum(pool.seconds_of(config, train) for config in asked.arms.values())
        return _print_plan(asked, identity, options.out, workers, seconds)
    plan = partial(asked.plan, identity=identity)
    crashed = pool.run_planned("compare", plan, train, identity, (options.out,), workers)
    _print_answer(asked, identity, options.out)
    return 1 if crashed else 0


def _print_plan(
    asked: Question, identity: Callable[[ExperimentConfig], str], out: Path, workers: int, seconds: float
) -> int:
    """What `altgrad compare` would run, and about how long that takes."""
    from altgrad.runs.query import ended_losses
    from altgrad.studies import MOST_EXTENSIONS

    losses = ended_losses((out,))
    each = len(asked.rates) * len(asked.held_out)
    wanted = asked.plan(losses, identity)
    done = sum(identity(config) in losses for config in wanted)
    runs = (each + len(asked.seeds)) * len(asked.arms)
    sweeps = f"{len(asked.rates)} learning rates on {len(asked.held_out)} held-out seeds and " if each else ""
    arms = f"{len(asked.arms)} arms ({', '.join(asked.arms)})"
    print(f"{arms}, each with {sweeps}{len(asked.seeds)} seeds: {runs} runs, {done} recorded")
    if each:
        more = MOST_EXTENSIONS * len(asked.held_out)
        print(f"a sweep whose best rate lies at an edge goes on: at most {more} runs more of an arm")
    left = seconds * (each + len(asked.seeds)) * (1 - done / runs) / workers
    length = f"{left / 3600:.1f} h" if left > 5400 else f"{math.ceil(left / 60)} min"
    print(f"about {length} with {workers} workers, by four steps of each")
    return 0


def _print_answer(asked: Question, identity: Callable[[ExperimentConfig], str], out: Path) -> None:
    from altgrad.analysis.comparison import FormatComparator
    from altgrad.analysis.loader import ExperimentDataLoader
    from altgrad.analysis.question import answer, facts
    from altgrad.reports.answer import answer_page
    from altgrad.runs.files import write_text
    from altgrad.runs.query import ended_losses
    from altgrad.site import write_folder

    loader = ExperimentDataLoader((out,))
    found = answer(loader, asked, ended_losses((out,)), identity)
    files = write_folder([answer_page(loader, asked, found)], out)
    spot = FormatComparator.sweet_spot(found.comparison)
    write_text(out / "compare.json", _json(facts(asked, found, spot, identity)) + "\n")
    _print_markdown(files[0].read_text("utf-8").partition("\n## Provenance")[0])
    print(f"answer: {files[0]} and compare.json; records: {out}")


def run_explain(options: argparse.Namespace) -> int:
    """Print why the run in the folder ended badly, and return the exit code.

    Raises:
        UsageError: the folder holds no readable record.
    """
    from altgrad.runs import read_run
    from altgrad.runs.failure_report import failure_report

    folder: Path = options.folder
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder of one run, OUT/<run id>")
    _print_markdown(failure_report(read_run(folder)))
    return 0


def _print_markdown(text: str) -> None:
    """Markdown as people read it in a terminal: each escaped character as itself, and none that would control it."""
    from altgrad.site.blocks import visible_lines

    print(*visible_lines(html.unescape(text)), sep="\n")


def run_recipes(options: argparse.Namespace) -> int:
    """Print all recipes or one, and return the exit code.

    Raises:
        UsageError: there is no such recipe.
    """
    from altgrad.config import scalar
    from altgrad.recipes import EVERYWHERE, RECIPES, recipe_keys, recipe_named

    if options.name is None:
        for each in RECIPES.values():
            print(f"{each.name}\n  {each.what}\n  source: {each.source}\n  differs: {'; '.join(each.differs)}\n")
        print(f"In all of them {'; '.join(EVERYWHERE)}.")
        print(
            "altgrad recipes NAME has the settings; in a config: recipe: NAME, in Python: quantize_model(model, NAME)."
        )
        return 0
    try:
        chosen = recipe_named(options.name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"{chosen.name}: {chosen.what}\n\nsource: {chosen.source}\n\nsettings, with their defaults:")
    for key, value in chosen.settings.items():
        print(f"  {key}: {scalar(list(value) if isinstance(value, tuple) else value)}")
    print("\nwhat differs from the real tool:")
    for line in (*chosen.differs, *EVERYWHERE):
        print(f"  - {line}")
    print("\nas keys of a config:")
    for section, keys in recipe_keys(chosen.name).items():
        print(f"  {section}: {scalar(keys)}")
    return 0


PROBING = """Predict which formats and roundings of the logits' gradient cost least, without training in any of them.

CONFIG is the YAML file of an unquantized experiment, whose model is trained for it, or the folder of an unquantized
run, of which the newest checkpoint is read. Its section `scaling` is how the candidates are scaled. The next batches'
gradients are rounded in each format and by each rounding; class_bias is the size of what that does to the head's weight
gradient over all of them, each class against its own gradient. The smallest is predicted to cost least. Where there are
records of this very experiment with everything in such a format, their gaps stand beside it.
"""

PROBE_EXAMPLES = """examples:
  altgrad probe experiments/configs/defaults.yaml --formats e0m7,e2m5,e3m4,e4m3,e5m2,e6m1,e7m0
  altgrad probe experiments/configs/defaults.yaml --formats e4m3,e2m1 --roundings nearest,stochastic,diffused \\
      --set scaling.kind=mx_rceil --set scaling.axis=contraction

exit codes:
  0 printed   2 a mistake in the arguments or no model to probe; one line says what
"""


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad probe``."""
    parser.description, parser.epilog = PROBING, PROBE_EXAMPLES
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, help="YAML file, or the folder of a run with checkpoints"
    )
    parser.add_argument("--formats", required=True, metavar="NAMES", help="formats, separated by commas")
    roundings = "of nearest, stochastic and diffused, separated by commas (default: nearest)"
    parser.add_argument("--roundings", default="nearest", metavar="NAMES", help=roundings)
    parser.add_argument("--steps", type=int, default=150, help="steps that the model is trained for (default: 150)")
    parser.add_argument("--batches", type=int, default=16, help="batches whose gradients are rounded (default: 16)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--seed", type=int, help="replaces the config's seed")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a UTF-8 text of your own (default: licence texts)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--runs", action="append", metavar="FOLDER", help="records for the gaps")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what was found as JSON, too")
    parser.set_defaults(command=run_probe)


def run_probe(options: argparse.Namespace) -> int:
    """Print what the probe predicts, and what records say of it, and return the exit code.

    Raises:
        UsageError: a user's mistake, or no model to probe.
        ModuleNotFoundError: torch or rich are missing.
    """
    from altgrad.analysis.loader import ExperimentDataLoader
    from altgrad.analysis.probed import rank_correlation, recorded_gaps
    from altgrad.formats import FP32, get_format

    for name in ("steps", "batches", "threads"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: give a number of at least 1")
    sources = _sources(options)
    if options.config.is_dir() and (options.set or options.seed is not None):
        raise UsageError(f"{options.config}: a run has its config; leave out --set and --seed")
    config = None if options.config.is_dir() else load_config(options.config, options.set, options.seed)
    listed = _listed("--formats", options.formats)
    try:
        formats = [get_format(name) for name in listed]
    except ValueError as error:
        raise UsageError(f"--formats: {error}") from None
    import torch

    from altgrad.nn import Operand
    from altgrad.telemetry.probe import ROUNDINGS, probe
    from altgrad.training.probed import recorded, trained

    roundings = _listed("--roundings", options.roundings)
    if unknown := [name for name in roundings if name not in ROUNDINGS]:
        raise UsageError(f"--roundings: must be of {', '.join(ROUNDINGS)}, not {visible(unknown[0])}")
    torch.set_num_threads(options.threads)
    of_run = recorded(options.config, options.batches, options.data) if config is None else None
    config = of_run.config if of_run else config
    assert config is not None
    rule = config.scaling.rule("grad_output")
    for fmt in formats:
        if fmt is FP32 or not fmt.signed:
            raise UsageError(f"--formats: gradients are not rounded to {fmt.name}; leave it out")
        try:
            fmt.require_float64("the probe")
            rule.check("--formats", fmt)
        except ValueError as error:
            raise UsageError(one_line(error)) from None
    probed = of_run or trained(config, options.steps, options.batches, options.data)
    names = {(fmt.name, ROUNDINGS[how]): f"{fmt.label} {how}" for fmt in formats for how in roundings}
    operands = {name: Operand(get_format(key[0]), key[1], rule) for key, name in names.items()}
    try:
        statistics = probe(probed.model, probed.losses, operands, seed=config.seed)
    except ValueError as error:
        raise UsageError(f"{options.config}: {one_line(error)}") from None
    found = {key: statistics[name] for key, name in names.items()}
    if options.save:
        _save_probed(options, probed.config, probed.data, found)
    gaps = recorded_gaps(ExperimentDataLoader(sources), probed.config, probed.data, names)
    _print_probed(names, found, {key: (gap.mean, gap.n) for key, gap in gaps.items()})
    means = {key: estimate.mean for key, estimate in gaps.items()}
    for name in _PROBED:
        rho, n = rank_correlation({key: values[name] for key, values in found.items()}, means)
        if not math.isnan(rho):
            print(f"Rank correlation of {name} with the recorded gaps of this experiment: {rho:+.2f} (n = {n}).")
    if len(means) < 3:
        print("Fewer than three of them have recorded gaps at this experiment: no rank correlation.")
    print("No registered test of such an order is recorded yet: take it as a prediction.")
    return 0


EVALUATING = """Say what a recorded model loses under formats and recipes, without training it.

RUN is the folder of a run, of which the newest checkpoint is read, or that of one checkpoint, RUN/checkpoints/NAME. Its
weights are read under each policy on the held-out text of the run's final loss; GAP is what the loss is higher by than
without any rounding, with the standard error of the differences of single batches. A format is for every operand of
every layer, scaled as the run's section `scaling` says; a recipe has its own scales. CLASS_BIAS is what the probe finds
for the gradient of the logits (see `altgrad probe`); a recipe that leaves it as it is has none.
"""

EVALUATE_EXAMPLES = """examples:
  altgrad evaluate experiments/runs/fp32-adamw-s0-0f3a --formats e4m3,e5m2 --recipes mxfp8,nvfp4,deepseek-v3
  altgrad evaluate experiments/runs/fp32-adamw-s0-0f3a/checkpoints/best --recipes te-delayed

exit codes:
  0 printed   2 a mistake in the arguments or no model to evaluate; one line says what
"""


def _add_recorded_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run with checkpoints, or of a checkpoint")
    data = "the UTF-8 text of your own that the run was trained on (default: the run's data set)"
    parser.add_argument("--data", type=Path, metavar="FILE", help=data)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad evaluate``."""
    parser.description, parser.epilog = EVALUATING, EVALUATE_EXAMPLES
    _add_recorded_model(parser)
    parser.add_argument("--formats", default="", metavar="NAMES", help="formats, separated by commas")
    parser.add_argument("--recipes", default="", metavar="NAMES", help="recipes, separated by commas")
    parser.add_argument("--batches", type=int, default=16, help="batches that the probe reads; 0: none (default: 16)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.set_defaults(command=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Print what a model loses under each policy, and return the exit code.

    Raises:
        UsageError: a user's mistake, or no model to evaluate.
        ModuleNotFoundError: torch or rich are missing.
    """
    if options.threads < 1 or options.batches < 0:
        name, low = ("threads", 1) if options.threads < 1 else ("batches", 0)
        raise UsageError(f"--{name} {getattr(options, name)}: give a number of at least {low}")
    formats, recipes = (
        _listed(f"--{name}", given) if (given := getattr(options, name)) else [] for name in ("formats", "recipes")
    )
    if not formats and not recipes:
        raise UsageError("name formats or recipes to evaluate: --formats e4m3,e5m2 or --recipes mxfp8")
    _check_run(options.run)
    import torch

    from altgrad.training.evaluated import evaluate, policies
    from altgrad.training.probed import checkpointed

    torch.set_num_threads(options.threads)
    kept = checkpointed(options.run, options.data)
    candidates = policies(kept.config, formats, recipes)
    found = evaluate(kept, candidates, options.batches)
    rows = []
    for name, each in sorted(found.items(), key=lambda item: (math.isnan(item[1].gap), item[1].gap)):
        bias = "-" if math.isnan(each.class_bias) else f"{each.class_bias:.4f}"
        error = "-" if math.isnan(each.error) else f"{each.error:.4f}"
        rows.append([name, f"{each.loss:.4f}", f"{each.gap:+.4f}", error, bias])
    _print_table(["POLICY", "LOSS", "GAP", "ERROR", "CLASS_BIAS"], rows, (1, 2, 3, 4))
    print(f"Losses in nats per character at step {kept.step}; the gap is against the same weights without rounding.")
    ranked = sorted((each.class_bias, name) for name, each in found.items() if not math.isnan(each.class_bias))
    if len(ranked) > 1:
        print(f"Predicted to cost least in training, by class bias: {', '.join(name for _, name in ranked)}.")
    return 0


def _check_run(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder of a run, or RUN/checkpoints/NAME")


EXPORTING = """Write the weights of a recorded model as real low-precision tensors, in one safetensors file.

Each quantized weight becomes codes (FP8, MX or NVFP4 tensors, and whole numbers for other formats) and scales, as the
layers read it; the rest is float32. `altgrad.export.read_weights` reads the same values back, bit for bit. Without
--recipe or --format the run's own policy counts.
"""

EXPORT_EXAMPLES = """examples:
  altgrad export-weights experiments/runs/mxfp8-s0-0f3a model.safetensors
  altgrad export-weights experiments/runs/fp32-adamw-s0-0f3a model.safetensors --recipe nvfp4

exit codes:
  0 written   2 a mistake in the arguments, or no weight to write; one line says what
"""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad export-weights``."""
    parser.description, parser.epilog = EXPORTING, EXPORT_EXAMPLES
    _add_recorded_model(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="safetensors file to write")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--recipe", metavar="NAME", help="quantize by this recipe in place of the run's policy")
    chosen.add_argument("--format", metavar="NAME", help="quantize every weight to this format, scaled as the run says")
    parser.set_defaults(command=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Write the file, list what is in it, and return the exit code.

    Raises:
        UsageError: a user's mistake, no model, or no weight that is quantized.
        ModuleNotFoundError: torch or safetensors are missing.
    """
    _check_run(options.run)
    from altgrad.export import export_weights
    from altgrad.nn import quantize_model, quantized_layers
    from altgrad.training.evaluated import policies
    from altgrad.training.probed import checkpointed

    kept = checkpointed(options.run, options.data)
    named = [[name] if name else [] for name in (options.format, options.recipe)]
    for policy in policies(kept.config, *named).values():
        quantize_model(kept.model, policy, seed=kept.config.seed)
        for layer in quantized_layers(kept.model).values():
            layer.grid_scale = None
    try:
        found = export_weights(kept.model, options.file)
    except ValueError as error:
        raise UsageError(f"{options.run}: {one_line(error)}") from None
    rows = [[each.layer, each.format, each.scale, str(each.bytes), str(each.float32_bytes)] for each in found]
    _print_table(["LAYER", "FORMAT", "SCALE", "BYTES", "AS FLOAT32"], rows, (3, 4))
    share = sum(each.bytes for each in found) / sum(each.float32_bytes for each in found)
    print(f"{options.file}: {len(found)} weights in {share:.1%} of their bytes as float32, and the rest as it is")
    return 0


_PROBED = ("class_bias", "row_mass", "class_noise")
_Candidate = tuple[str, str]


def _print_probed(
    names: Mapping[_Candidate, str],
    found: Mapping[_Candidate, Mapping[str, float]],
    gaps: Mapping[_Candidate, tuple[float, int]],
) -> None:
    """A row a candidate, the smallest class bias first."""
    rows = []
    for key in sorted(found, key=lambda key: found[key]["class_bias"]):
        gap = "{:+.3f} (n = {})".format(*gaps[key]) if key in gaps else "-"
        rows.append([*names[key].rsplit(" ", 1), *(f"{found[key][name]:.4f}" for name in _PROBED), gap])
    _print_table(["FORMAT", "ROUNDING", *(name.upper() for name in _PROBED), "RECORDED GAP"], rows, (2, 3, 4, 5))
    print("The first is predicted to cost least.")


def _save_probed(
    options: argparse.Namespace, config: ExperimentConfig, data: str, found: Mapping[_Candidate, Mapping[str, float]]
) -> None:
    """Write every cell, and of what model and data they are."""
    cells = [{"format": fmt, "rounding": how, **values} for (fmt, how), values in found.items()]
    of = {"config": config.arm_identity(), "seed": config.seed, "steps": options.steps, "batches": options.batches}
    text = json.dumps({"data": data, **of, "cells": cells}, indent=1, sort_keys=True)
    try:
        options.save.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--save {options.save}: cannot be written ({error.strerror})") from None


def _listed(option: str, text: str) -> list[str]:
    """The different names of a list with commas."""
    names = [*dict.fromkeys(filter(None, (name.strip().lower() for name in text.split(","))))]
    if not names:
        raise UsageError(f"{option}: name one at least")
    return names


def add_new_site_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``altgrad new-site``."""
    parser.description, parser.epilog = NEW_SITE, NEW_SITE_EXAMPLES
    parser.set_defaults(command=run_new_site)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    logs = "a log, or a folder that holds some: what `altgrad runs import` reads"
    parser.add_argument("--from", dest="logs", type=Path, metavar="PATH", help=logs)
    parser.add_argument(
        "--loss", metavar="NAME", help="the metric by which runs are compared (default: val_loss, test_loss or loss)"
    )
    parser.add_argument("--better", choices=("lower", "higher"), help="which values of it are better")
    parser.add_argument("--seed", metavar="KEY", help="the key of the configs that is the seed")
    parser.add_argument("--arms", metavar="A,B", help="the keys that make an arm (default: all but the seed)")
    parser.add_argument("--project", metavar="NAME", help="the one project of all runs (default: by tool or folder)")
    parser.add_argument("--site-url", metavar="URL", help="the address that the site will have")


def run_new_site(options: argparse.Namespace) -> int:
    """Lay out a project, bring in the logs, say what to do next, and return the exit code.

    Raises:
        UsageError: the folder is not empty or cannot be written, there is no run in the logs, or a name that was given
            is in none of them: then all else is done, and the line says where to put it right.
    """
    from altgrad.site.new_site import lay_out, set_names, set_site_url

    folder: Path = options.folder
    given = {name: getattr(options, name) for name in ("loss", "better", "seed", "arms", "project")}
    if options.logs is None and any(given.values()):
        raise UsageError(
            "--loss, --better, --seed, --arms and --project say what logs mean: give --from PATH with them"
        )
    from altgrad.site.asked import Given, ask_address, ask_on_terminal, find_names, site_address

    address = site_address(options.site_url or "")
    if options.logs is not None:
        from altgrad.runs.sources import find_runs

        find_runs(options.logs)  # nothing is laid out for what holds no run
    written = lay_out(folder)
    print(f"{folder}: {len(written)} files")
    code, mistakes = 0, list[str]()
    if options.logs is not None:
        from altgrad.runs import load_runs

        out = folder / "experiments" / "runs"
        code = _import(options.logs, out)
        if code == 130:
            print(f"what is left: cd {folder} && altgrad runs import {options.logs.resolve()}", file=sys.stderr)
            return code
        names, lines, mistakes = find_names(load_runs([out]).records, Given(**given), ask_on_terminal)
        set_names(folder, names)
        for line in lines:
            print(visible(line))
        address = address or ask_address(ask_on_terminal)
    if address:
        set_site_url(folder, address)
    bring = "" if options.logs else "altgrad runs import PATH && "
    install = "" if importlib.util.find_spec("mkdocs_gen_files") else "pip install -r requirements.txt && "
    print(f"Next: cd {folder} && {install}{bring}mkdocs serve")
    print("README.md has the steps, up to a published site.")
    if mistakes:
        raise UsageError(
            f"{'; '.join(map(visible, mistakes))}. The site is laid out without: correct {folder}/altgrad.yaml"
        )
    return code


RUNS = """Questions to recorded runs.

Without --runs these are the recorded studies and the local runs of the checkout, or the folders that the environment
variable ALTGRAD_RUNS names.
"""

RUNS_EXAMPLES = """examples:
  altgrad runs list --where quantize.weight=e4m3 --where "optimizer.learning_rate<0.01" --where status=finished
  altgrad runs show e4m3-wag-adamw-s0
  altgrad runs diff e4m3-wag-adamw-s0 e5m2-wag-adamw-s0
  altgrad runs export --history --where study=pilot-formats --format parquet --output history.parquet
  altgrad runs verify --runs experiments/runs
  altgrad runs prune --status crashed --older-than 30          shows what would go; --yes removes it
  altgrad runs pull my-project --entity my-team                runs of W&B, as local records
  altgrad runs import logs/                                    logs of W&B, TensorBoard, MLflow, trackio, CSV ...

keys of --where: the fields that `altgrad runs show` lists; config keys as they are, last.METRIC for the last value of a
metric, summary.KEY, environment.KEY; status=finished has runs whose ending is not recorded
too. In list, show and diff, control characters are spelled out; in CSV too, where text that a spreadsheet would run as
a formula has a quote before it.

exit codes:
  0 done   1 verify found something, or single runs could not be fetched or imported
  2 a mistake in the arguments, or W&B gave nothing or not all; one line says what
"""


def add_runs_commands(parser: argparse.ArgumentParser) -> None:
    """The commands of ``altgrad runs``."""
    parser.description, parser.epilog = RUNS, RUNS_EXAMPLES
    commands = parser.add_subparsers(dest="runs_command", required=True, metavar="COMMAND")

    def add_source(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(command=command)
        return added

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = add_source(name, command, text)
        told = "of records, or its address (s3://...); may be repeated"
        added.add_argument("--runs", action="append", metavar="FOLDER", help=told)
        return added

    def add_where(added: argparse.ArgumentParser) -> None:
        added.add_argument("--where", action="append", default=[], metavar="CONDITION", help="KEY=VALUE, KEY<VALUE ...")

    listed = add("list", runs_list, "a table of the runs")
    add_where(listed)
    listed.add_argument("--json", action="store_true", help="every value of every run, as JSON")
    shown = add("show", runs_show, "everything about one run")
    shown.add_argument("id", metavar="ID", help="of a run, or the beginning of it")
    shown.add_argument("--json", action="store_true", help="run.json and the history, as JSON")
    compared = add("diff", runs_diff, "what differs between two runs: config, environment, code, data, last figures")
    compared.add_argument("first", metavar="A")
    compared.add_argument("second", metavar="B")
    compared.add_argument("--json", action="store_true")
    exported = add("export", runs_export, "a table for other programs")
    exported.add_argument("ids", nargs="*", metavar="ID", help="default: all runs")
    add_where(exported)
    exported.add_argument("--format", choices=("csv", "json", "parquet"), default="csv", help="default: csv")
    table = exported.add_mutually_exclusive_group()
    table.add_argument("--history", action="store_true", help="a row a logged step, instead of a row a run")
    exported.add_argument("--columns", metavar="A,B", help="metrics of --history (default: all)")
    table.add_argument("--layers", action="store_true", help="the per-layer tables")
    exported.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    add("verify", runs_verify, "check every record: schema, ids, tables and what proves them, steps, clocks")
    digested = "note what proves the tables of packed studies that have no digests yet, as they are now"
    add("digest", runs_digest, digested)
    pruned = add("prune", runs_prune, "remove local records; shows which, and removes them with --yes")
    add_where(pruned)
    status = "crashed, failed, ... or damaged; may be repeated"
    pruned.add_argument("--status", action="append", default=[], help=status)
    pruned.add_argument("--older-than", type=float, metavar="DAYS", help="that ended longer ago")
    pruned.add_argument("--old", action="store_true", help="earlier attempts that were set aside (<id>.<n>.old)")
    pruned.add_argument("--yes", action="store_true", help="do it")
    linked = add("link", runs_link, "record the address of a run that 'wandb sync' uploaded")
    linked.add_argument("id", metavar="RUN", help="its id, or the beginning of it")
    linked.add_argument("url", metavar="URL", help="as 'wandb sync' printed it")

    pulled = add_source("pull", runs_pull, "fetch the new and changed runs of a W&B project into local records")
    pulled.add_argument("project", nargs="?", metavar="PROJECT", help="default: WANDB_PROJECT, else altgrad")
    pulled.add_argument("--entity", help="that owns the project (default: WANDB_ENTITY, else the key's own)")
    pulled.add_argument("--full", action="store_true", help="fetch unchanged runs again too")
    pulled.add_argument("--threads", type=int, default=6, metavar="N", help="histories at a time, 1 to 8 (default: 6)")
    silence = "end when nothing comes for so long (default: 60)"
    pulled.add_argument("--silence", type=float, default=60.0, metavar="SECONDS", help=silence)
    reads = "make local records of the logs of W&B, TensorBoard, MLflow, trackio, Trainer, CSV or JSON lines"
    imported = add_source("import", runs_import, reads)
    for source in (pulled, imported):
        out = Path("experiments/runs")
        source.add_argument("--out", type=Path, default=out, metavar="FOLDER", help=f"default: {out.as_posix()}")
    imported.add_argument("path", type=Path, metavar="PATH", help="a log, or a folder that holds some")


def runs_list(options: argparse.Namespace) -> int:
    """``altgrad runs list``."""
    from altgrad.analysis.loader import format_label
    from altgrad.runs.query import select, values

    chosen = select(_load(options).records, options.where)
    if options.json:
        _print_json([values(record) for record in chosen])
        return 0
    rows = []
    for record in chosen:
        found = values(record)
        loss = found.get("last.final_val_loss", found.get("last.val_loss"))
        loss = "-" if loss is None else f"{loss:.4f}"
        figures = [_shown(found["seed"]), _shown(found["last.step"]), loss]
        created = str(record.run["created"])[:16].replace("T", " ")
        label = format_label(record.config)
        rows.append([record.id, record.ending, label, *figures, record.config.study, created])
    _print_table(["run", "status", "format", "seed", "step", "val_loss", "study", "created"], rows, right=(3, 4, 5))
    return 0


def runs_show(options: argparse.Namespace) -> int:
    """``altgrad runs show ID``."""
    from altgrad.runs.diagnosis import coverage_of, happened
    from altgrad.runs.query import find, values

    record = find(_load(options), options.id)
    if options.json:
        history = {name: column.tolist() for name, column in record.history.items()}
        _print_json(record.run | {"arm": record.arm, "history": history})
        return 0
    rows = [[key, _shown(value)] for key, value in (values(record) | {"status": record.ending}).items()]
    rows += [["notes", record.config.notes]] if record.config.notes else []
    if record.config.foreign is not None:
        rows.append(["loop", "another than AltGrad's: what is not listed is not known"])
    rows += [["read from its log", line] for line in (record.run.get("origin") or {}).get("report", [])]
    if record.run["message"]:
        rows.append(["message", record.run["message"]])
    if record.run["failure"]:
        rows += [[f"failure.{key}", _shown(value)] for key, value in record.run["failure"].items()]
    if coverage := coverage_of(record):
        rows.append(["quantized", f"{coverage.quantized:.1%} of {coverage.parameters:,} parameters"])
        if coverage.multiply_adds:
            share = f"{coverage.rounded or 0:.1%} of {coverage.multiply_adds:,} multiply-adds"
            rows[-1][1] += f", {share} of the first forward pass"
        rows += [["as it is", f"{each.name}: {each.why}"] for each in coverage.left_out]
    rows += [["event", _shown(event)] for event in happened(record)]
    rows.append(["history", f"{len(record.history)} rows: {', '.join(record.history.columns)}"])
    layers = record.layers
    rows.append(["layers", f"{len(layers)} rows, {layers['layer'].nunique() if len(layers) else 0} layers"])
    _print_table(["key", "value"], rows)
    return 0


def runs_diff(options: argparse.Namespace) -> int:
    """``altgrad runs diff A B``."""
    from altgrad.runs.query import difference, find

    runs = _load(options)
    first, second = find(runs, options.first), find(runs, options.second)
    found = difference(first, second)
    if options.json:
        _print_json({key: [one, two] for key, one, two in found})
    elif not found:
        print("nothing but id and times differs")
    else:
        _print_table(["key", first.id, second.id], [[key, _shown(one), _shown(two)] for key, one, two in found])
    return 0


def runs_export(options: argparse.Namespace) -> int:
    """``altgrad runs export``."""
    from altgrad.runs import read_histories
    from altgrad.runs.files import replacing
    from altgrad.runs.query import find, select, table

    if options.columns and not options.history:
        raise UsageError("--columns belongs to --history: the metrics to export")
    columns = options.columns and options.columns.split(",")
    if options.history and not (options.ids or options.where):  # thousands of runs: without a look at their run.json
        read, problems = read_histories(_sources(options), columns)
        _warn(problems)
        frame = read.to_pandas().astype({"run_id": str})
    else:
        runs = _load(options)
        chosen = [find(runs, prefix) for prefix in dict.fromkeys(options.ids)] if options.ids else list(runs.records)
        what: Any = "history" if options.history else "layers" if options.layers else "runs"
        frame = table(select(chosen, options.where), what, columns)
    if options.format == "parquet" and options.output is None and sys.stdout.isatty():
        raise UsageError("--format parquet: a terminal cannot show it; give --output FILE")
    if options.format == "parquet":
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        data = content.getvalue()
    elif options.format == "json":
        data = (_json(frame.to_dict("records")) + "\n").encode()
    else:
        shown = frame.map(lambda value: visible(value) if isinstance(value, str) else value)
        data = csv(shown.rename(columns=visible))
    if options.output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return 0
    try:
        with replacing(options.output) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UsageError(f"--output {options.output}: cannot be written ({error.strerror}); choose another") from None
    print(f"{options.output}: {len(frame)} rows", file=sys.stderr)
    return 0


def runs_verify(options: argparse.Namespace) -> int:
    """``altgrad runs verify``."""
    from altgrad.runs.query import verify

    count, problems, notes = verify(_sources(options))
    for problem in problems:
        print(visible(f"{problem.where}: {problem.reason}"))
    for note in notes:
        print(visible(f"note: {note}"))
    print(f"{count} records checked, {len(problems) or 'no'} problem{'s' if len(problems) != 1 else ''}")
    return 1 if problems else 0


def runs_digest(options: argparse.Namespace) -> int:
    """``altgrad runs digest``."""
    from altgrad.runs.store import PACKED, record_places
    from altgrad.runs.tables import note_digests

    packed = [(folder, where) for folder, where in record_places(_sources(options)) if (folder / PACKED).exists()]
    new = [where for folder, where in packed if note_digests(folder)]
    for where in new:
        print(visible(f"{where}: digests noted"))
    print(f"{len(packed)} packed studies, {len(new)} without digests until now")
    return 0


def runs_prune(options: argparse.Namespace) -> int:
    """``altgrad runs prune``."""
    from altgrad.runs.query import prunable, prune

    if not (options.status or options.older_than is not None or options.where or options.old):
        raise UsageError("prune: say which records, with --status, --older-than, --where or --old")
    if options.older_than is not None and not 0 <= options.older_than < 1e5:
        raise UsageError(f"--older-than {options.older_than:g}: give a number of days")
    criteria = {"statuses": options.status, "older_than": options.older_than, "conditions": options.where}
    gone = 0
    for each in prunable(_sources(options), old=options.old, **criteria):
        line = visible(f"{each.folder.name} ({each.status}, {each.size / 2**20:.1f} MiB)")
        if each.refused:
            print(f"keep    {line}: {visible(each.refused)}")
            continue
        if options.yes:
            prune(each)
        print(f"{'removed' if options.yes else 'would remove'} {line}")
        gone += 1
    print(f"{gone} records {'removed' if options.yes else 'would be removed; --yes removes them'}")
    return 0


def runs_link(options: argparse.Namespace) -> int:
    """``altgrad runs link``."""
    from altgrad.runs.query import find
    from altgrad.runs.store import record_places
    from altgrad.runs.wandb_records import set_url

    record = find(_load(options), options.id)
    folder = next((folder for folder, _ in record_places(_sources(options)) if folder.name == record.id), None)
    if folder is None:
        raise UsageError(f"{record.id} is part of a packed study, which is not changed; link its own record")
    set_url(folder, options.url)
    print(f"{record.id}: {options.url}")
    return 0


def runs_pull(options: argparse.Namespace) -> int:
    """``altgrad runs pull``; 1 where single runs could not be had, 2 where W&B gave nothing or not all."""
    from altgrad.runs.wandb_pull import pull

    if not 1 <= options.threads <= 8:
        raise UsageError(f"--threads {options.threads}: give a number from 1 to 8; more is refused by W&B")
    if not 0 < options.silence < 86400:
        raise UsageError(f"--silence {options.silence:g}: give a number of seconds")
    how = {"silence": options.silence, "threads": options.threads, "full": options.full}
    try:
        with pull_progress() as progress:
            found = pull(options.out, options.project, options.entity, progress=progress, **how)
    except KeyboardInterrupt:
        print("interrupted; the runs that were fetched are kept, and the next pull goes on from there", file=sys.stderr)
        return 130
    _tell(found)
    if found.reason:
        raise UsageError(f"W&B: {found.reason}; what came is kept, and the next pull goes on from there")
    return 1 if found.problems else 0


@contextlib.contextmanager
def pull_progress(what: str = "W&B runs") -> Iterator[Callable[[Pulled, int], None] | None]:
    """What shows on a terminal how far a pull is; None where stderr is none."""
    if not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda seen, total: bar.update(
            task, total=total or None, completed=len(seen.fetched) + len(seen.problems) + seen.unchanged
        )


def runs_import(options: argparse.Namespace) -> int:
    """``altgrad runs import``; 1 where a file could not be read."""
    return _import(options.path, options.out)


def _import(path: Path, out: Path) -> int:
    from altgrad.runs.sources import import_runs
    from altgrad.runs.wandb_records import summed

    told: list[str] = []

    def tell(seen: Pulled, total: int) -> None:
        for identity in seen.fetched[len(told) :]:
            print(visible(identity), flush=True)
            told.append(identity)
        if progress:
            progress(seen, total)

    try:
        with pull_progress("runs") as progress:
            found = import_runs(path, out, tell)
    except KeyboardInterrupt:
        print("interrupted; the runs that were read are kept, and the next import goes on from there", file=sys.stderr)
        return 130
    for line, count in summed(found.reports.values()).items():
        print(visible(f"  {line}" + (f" ({count} runs)" if count > 1 else "")))
    _warn(found.problems)
    print(visible(found.in_words))
    return 1 if found.problems else 0


def _tell(found: Pulled) -> None:
    """What a pull or an import brought, with everything that was read under another name or could not be kept."""
    for identity in found.fetched:
        print(visible(identity))
        for line in found.reports.get(identity, ()):
            print(visible(f"  {line}"))
    _warn(found.problems)
    print(visible(found.in_words))


def _sources(options: argparse.Namespace) -> tuple[Path, ...]:
    from altgrad.runs import default_sources
    from altgrad.runs.stores import StorePath, located

    given = {each: located(each) for each in options.runs or ()}
    for name, folder in given.items():
        if not folder.is_dir():
            shown = folder.address if isinstance(folder, StorePath) else name
            raise UsageError(f"--runs {shown}: no such folder; give the folder that holds the run records")
    return tuple(given.values()) or default_sources()


def _load(options: argparse.Namespace) -> RunSet:
    from altgrad.runs import load_runs

    runs = load_runs(_sources(options))
    _warn(runs.problems)
    return runs


def _warn(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(visible(f"warning: left out {problem.where}: {problem.reason}"), file=sys.stderr)


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else _json(value, None)


def _json(value: Any, indent: int | None = 1) -> str:
    """Standard JSON: NaN as null, infinities as text."""

    def safe(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {str(key): safe(each) for key, each in inner.items()}
        if isinstance(inner, list | tuple):
            return [safe(each) for each in inner]
        if isinstance(inner, float) and not math.isfinite(inner):
            return None if math.isnan(inner) else "Infinity" if inner > 0 else "-Infinity"
        return inner

    return json.dumps(safe(value), indent=indent, default=str)


def _print_json(value: Any) -> None:
    print(_json(value))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Aligned text; on a terminal a rich table where rich is installed. Nothing in a cell acts as markup or control."""
    cells = [[shorten(visible(cell), 2000) for cell in row] for row in (head, *rows)]
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for place, title in enumerate(cells[0]):
            table.add_column(Text(title), justify="right" if place in right else "left", overflow="fold")
        for row in cells[1:]:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [min(60, max(len(row[place]) for row in cells)) for place in range(len(head))]
    for row in cells:
        sized = enumerate(zip(row, widths, strict=True))
        print("  ".join(f"{cell:{'>' if at in right else '<'}{width}}" for at, (cell, width) in sized).rstrip())


def guarded(command: Callable[[], int]) -> int:
    """`command()`'s exit code; what ends it early is one line on stderr: a mistake 2, Ctrl-C 130, SIGTERM 143."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - closed by whoever started this process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack what a record holds
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_PACKAGES:
            raise
        print(f"error: the package {error.name} is not installed; run: pip install 'altgrad[train]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_KEPT}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        print(f"stopped by SIGTERM; {_KEPT}", file=sys.stderr)
        return 143


_KEPT = "the record so far is kept, and --resume goes on from its last checkpoint where it has one"


if __name__ == "__main__":
    sys.exit(main())
