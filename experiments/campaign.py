"""Runs and packs the studies of `altgrad.studies`.

    python experiments/campaign.py [STUDY ...]              run what is not recorded yet; may be stopped and repeated
    python experiments/campaign.py pack [STUDY ...]         write what is new as a part of experiments/recorded/STUDY/
    python experiments/campaign.py repeat [STUDY ...]       train a run of each study anew: has it the recorded numbers?

Without a name the whole campaign runs, in the order of `studies.CAMPAIGN`. Runs have one thread, one process a core.
A run that failed or crashed is recorded and not repeated: what happened is the result. One whose process was stopped or
killed is. A sweep of learning rates goes on beyond its edge while the best one lies there. With --backend ray the runs
are tasks of the cluster that RAY_ADDRESS names (docs/guides/clusters.md).

A part is small enough to commit, and is never written again: what the parts hold is not trained again, in no clone. At
each start a tiny training, the canary, is kept with the records, by its bits: do two machines compute alike?
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from altgrad.config import ExperimentConfig, UsageError  # noqa: E402

try:
    from altgrad import studies
    from altgrad.studies import ARMS, CAMPAIGN, MOST_EXTENSIONS, PACKED_LOOKS, STUDIES, Arm, Study, mean_loss
except UsageError as error:
    sys.exit(f"error: {error}")
from altgrad.cli import guarded  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd

RUNS = ROOT / "experiments" / "runs"
RECORDED = ROOT / "experiments" / "recorded"
Losses = Mapping[str, float]
"""Run id -> final validation loss of the ended runs; infinite for one that did not finish."""


def configs_of(name: str, losses: Losses) -> list[ExperimentConfig]:
    """The runs of a study, seed by seed: one that was stopped has about as many of each arm.

    Raises:
        UsageError: there is no such study, it waits for something, or a rate that it needs is not tuned yet.
    """
    study = find(name)
    if study.waits:
        raise UsageError(f"STUDY {name!r} waits: {study.waits}")
    if study.sweeps:
        tried = [(ARMS[arm], rate) for arm in study.seeds for rate in sweep(name, ARMS[arm], losses)[0]]
        return [arm.config(seed, name, rate) for arm, rate in tried for seed in study.seeds[arm.name]]
    rates = {arm: tuned(ARMS[arm], losses) for arm in study.seeds}
    seeds = sorted(set().union(*study.seeds.values()))
    return [
        ARMS[arm].config(seed, name, rates[arm]) for seed in seeds for arm in study.seeds if seed in study.seeds[arm]
    ]


def sweep(study: str, arm: Arm, losses: Losses) -> tuple[list[float], float | None]:
    """The rates to try for an arm, and the best of them (`altgrad.studies.sweep`)."""
    found, grows = STUDIES[study], STUDIES[study].sweeps == "grows"

    def mean(rate: float) -> float | None:
        return mean_loss(losses.get(identity(arm.config(seed, study, rate))) for seed in found.seeds[arm.name])

    return studies.sweep(found.rates or arm.swept_rates, mean, MOST_EXTENSIONS if grows else 0)


def tuned(arm: Arm, losses: Losses) -> float:
    """The learning rate of an arm: its own, or what a recorded sweep found.

    Raises:
        UsageError: that is not recorded yet.
    """
    if isinstance(arm.rate, float):
        return arm.rate
    study = next(name for name, study in STUDIES.items() if study.sweeps and arm.rate in study.seeds)
    best = sweep(study, ARMS[arm.rate], losses)[1]
    if best is None:
        raise UsageError(f"{arm.label}: its learning rate is not tuned yet; run STUDY={study} first")
    return best


@cache
def data_fingerprint(data: str, tokenizer: str, vocabulary: int | None) -> Any:
    """What identifies the training data of a config."""
    from altgrad.training import load_corpus

    return load_corpus(data, tokenizer, vocabulary).fingerprint


def identity(config: ExperimentConfig) -> str:
    """The run id of a config."""
    from altgrad.runs import run_id

    return run_id(config, data_fingerprint(config.data, config.tokenizer, config.vocabulary))


def look_around(out: Path, device: str) -> None:
    """What a campaign begins with: recorded runs that cannot be read, and what the canary says of this machine.

    The canary is trained and kept with the records; a machine that is described alike and gave other bits is named.

    Raises:
        UsageError: the device is missing, or the folder cannot be written.
    """
    from altgrad.runs import load_runs
    from altgrad.runs.canary import keep_canary, unlike
    from altgrad.runs.processor import stated
    from altgrad.runs.schema import RecordError
    from altgrad.runs.store import find_canaries
    from altgrad.runs.writer import no_room
    from altgrad.training.canary import run_canary

    own = run_canary(device)
    print(f"canary: {own.digest[:8]} on {stated(own.environment)}")
    known, problems = find_canaries((out,))
    recorded = load_runs((RECORDED,))
    lines = [f"left out {problem.where}: {problem.reason}" for problem in (*recorded.problems, *problems)]
    same = [other for other in (*recorded.canaries, *known) if other.machine == own.machine]
    for line in lines + unlike([*same, own]):
        print(f"warning: {line}", file=sys.stderr)
    try:
        keep_canary(out, own)
    except RecordError:  # it is named above
        pass
    except OSError as error:
        raise no_room(out, error) from None


def run_study(
    study: str,
    out: Path,
    workers: int,
    shard: tuple[int, int] = (1, 1),
    device: str = "cpu",
    until: float = math.inf,
    backend: Callable[..., Iterator[tuple[str, str]]] | None = None,
) -> int:
    """Run what is missing of a study (of every n-th run, with a shard); returns 0, or 1 where one crashed or was lost.

    A sweep whose best rate lies at its edge has then grown, and goes on. What runs at the time `until`
    (`time.monotonic`) is stopped: it goes on from its checkpoint the next time where its config has them.
    """
    from altgrad.training import train
    from altgrad.training.pool import run_planned

    how: dict[str, Any] = {"shard": shard, "until": until, "prepare": _controls, "backend": backend}
    trainer = partial(train, out=out, device=device)
    crashed = run_planned(study, partial(configs_of, study), trainer, identity, (RECORDED, out), workers, **how)
    print(f"records: {out}" + (f"; {crashed} crashed or lost" if crashed else ""))
    return 1 if crashed else 0


def pack(study: str, out: Path) -> int:
    """Write the study's ended runs that no part of any study holds yet as a new part of experiments/recorded/STUDY/.

    Raises:
        UsageError: no run is recorded, or what is packed already is damaged.
    """
    from altgrad.runs import load_runs, pack_part
    from altgrad.runs.query import has_ended, losses_of
    from altgrad.runs.store import Kept, find_canaries, read_place, record_places

    for folder, where in record_places((RECORDED / study,)):
        for problem in read_place(folder, where, Kept())[1]:
            raise UsageError(f"{study}: {problem.reason}")
    held, local = load_runs((RECORDED,)).records, load_runs((out,)).records
    packed = {record.id for record in held}
    wanted = {identity(config) for config in configs_of(study, losses_of([*local, *held]))}
    new = [record for record in local if record.id in wanted - packed and has_ended(record)]
    missing = len(wanted - packed) - len(new)
    if missing == len(wanted):
        raise UsageError(f"{study}: none of its {missing} runs is recorded; run the study first")
    left = f"; {missing} are missing" if missing else ""
    if not new:
        print(f"{study}: nothing new{left}")
        return 0
    seeds = {seed for each in STUDIES[study].seeds.values() for seed in each[: STUDIES[study].whole]}
    how = {"history_every": 10, "layers_every": PACKED_LOOKS, "canaries": find_canaries((out,))[0]}
    if STUDIES[study].whole == 0:  # a sweep, of which the last loss counts
        how |= {"history_every": 50, "layers": False}
    how["last_look"] = {record.id for record in new if record.config.seed not in seeds}
    part = pack_part(new, RECORDED / study, **how)
    size = sum(file.stat().st_size for file in part.iterdir())
    print(f"{study}: {len(new)} runs packed as {part.name}, {size / 1e3:.0f} kB{left}")
    return 0


def repeat(study: str) -> int:
    """Train the first finished run of a study anew and compare all that its part holds; 1 where a number differs.

    Bits depend on the kind of processor: `canary` in a run's environment says whether two compute alike.

    Raises:
        UsageError: no finished run of the study is recorded.
    """
    from tempfile import TemporaryDirectory

    import torch

    from altgrad.runs import load_runs, read_run
    from altgrad.runs.processor import stated
    from altgrad.training import train

    recorded = [record for record in load_runs((RECORDED / study,)).records if record.status == "finished"]
    if not recorded:
        raise UsageError(f"{study}: no finished run is recorded; run the study first")
    old = min(recorded, key=lambda record: record.id)
    torch.set_num_threads(1)
    _controls()
    with TemporaryDirectory() as folder:
        new = read_run(train(old.config, Path(folder), progress=False).path)
        differing = unlike_recorded(old.history, new.history, ["step"])
        differing += unlike_recorded(old.layers, new.layers, ["step", "layer", "operand", "statistic"])
    same = f"{len(old.history)} rows of its history and {len(old.layers)} of its layers are the same, bit by bit"
    print(f"{study}: {old.id}: " + (f"other numbers in {', '.join(differing)}" if differing else same))
    if differing:
        then, now = (stated(record.run["environment"]) for record in (old, new))
        print(f"recorded on {then}; repeated on {now}")
    return 1 if differing else 0


def unlike_recorded(recorded: pd.DataFrame, repeated: pd.DataFrame, keys: list[str]) -> list[str]:
    """The columns in which rows that were recorded are others in a repeat, but for seconds.

    Packed numbers may be narrower, and packed rows fewer: a repeat is compared with what there is, at its precision.
    """
    import numpy as np
    import pandas as pd

    names = [name for name in recorded.columns if name not in keys and not name.startswith("seconds")]
    if lacking := [name for name in names if name not in repeated]:
        return lacking
    rows = recorded[keys].astype(str).merge(repeated.assign(**{key: repeated[key].astype(str) for key in keys}), "left")
    found = []
    for name in names:
        one, other = recorded[name], rows[name]
        if pd.api.types.is_numeric_dtype(one):
            kept, new = one.to_numpy(float), other.to_numpy(float)
            if np.array_equal(kept, narrow := kept.astype(np.float32), equal_nan=True):
                kept, new = narrow, new.astype(np.float32)
            same = (kept == new) | (np.isnan(kept) & np.isnan(new))
        else:
            same = one.astype(str).to_numpy() == other.astype(str).to_numpy()
        if not same.all():
            found.append(name)
    return found


def _packed(study: str, out: Path, named: bool) -> int:
    try:
        return pack(study, out)
    except UsageError as error:
        if named:
            raise
        print(f"left out: {error}")
        return 0


def find(study: str) -> Study:
    """The study called `study`.

    Raises:
        UsageError: there is none.
    """
    if study not in STUDIES:
        raise UsageError(f"STUDY {study!r}: there is no such study; studies are {', '.join(STUDIES)}")
    return STUDIES[study]


def _controls() -> None:
    """What every process of a campaign has beside one thread: the roundings of controls.py."""
    import controls  # noqa: F401


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 1/4, the first of four")
    return int(number), int(total)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Run or pack recorded studies.",
        epilog=f"studies: {', '.join(STUDIES)}; without one, the campaign: {', '.join(CAMPAIGN)}",
    )
    parser.add_argument("words", nargs="*", metavar="[pack | repeat] STUDY")
    parser.add_argument("--out", type=Path, default=RUNS, help="folder of the records (default: experiments/runs)")
    parser.add_argument("--workers", type=int, help="processes (default: cores); on a cluster, runs at most at a time")
    where = "local (default): this machine's cores; ray: the cluster of RAY_ADDRESS, or one of this machine"
    parser.add_argument("--backend", choices=("local", "ray"), default="local", help=where)
    parser.add_argument("--cpus", type=float, default=1, help="what each run asks of a cluster's node (default: 1)")
    parser.add_argument("--gpus", type=float, help="likewise, also a part of one (default: 1 with --device cuda)")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="1/4: the first of four machines that share")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where runs train (default: cpu)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the same command goes on")
    options = parser.parse_args()
    packing, repeating = (options.words[:1] == [word] for word in ("pack", "repeat"))
    recorded = [name for name in STUDIES if (RECORDED / name).is_dir()]
    names = options.words[packing or repeating :] or (recorded if repeating else list(CAMPAIGN))
    if options.workers is not None and options.workers < 1:
        parser.error("--workers: at least one")
    if not 0 <= options.cpus < math.inf:
        parser.error("--cpus: a number of at least 0")
    if options.gpus is not None and (not 0 <= options.gpus < math.inf or (options.gpus > 1 and options.gpus % 1)):
        parser.error("--gpus: a part of one, or a whole number")
    if not options.minutes > 0:
        parser.error("--minutes: more than none")
    until = time.monotonic() + 60 * options.minutes

    def work() -> int:
        for study in names:
            find(study)
        if packing:
            return max(_packed(study, options.out, bool(options.words[1:])) for study in names)
        if repeating:
            return max(repeat(study) for study in names)
        from altgrad.runs.processor import cores
        from altgrad.training import cluster

        many, backend = cores(), None
        if options.backend == "ray":
            gpus = (options.device == "cuda") if options.gpus is None else options.gpus
            needs = {"cpus": options.cpus, "gpus": gpus}
            many, backend = 1000, partial(cluster.results, out=options.out, identity=identity, **needs)
        look_around(options.out, "cpu" if backend else options.device)  # its nodes have the device
        how = (options.out, options.workers or many, options.shard, options.device, until, backend)
        return max((run_study(study, *how) for study in names if time.monotonic() < until), default=0)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
