"""What rounding a tensor costs, as a multiple of copying it: ours and what others offer, in one process and one run.

    make bench                                                 measure and record, in a few minutes; on a quiet machine
    .venv/bin/python benchmarks/quantize.py --quick --record trial.json     a trial of the machinery, in seconds
    .venv/bin/python benchmarks/quantize.py --device cuda      add a GPU: bandwidth, and the same bits as the processor

Every figure is the best of several times over the best time of the same number of ``copy_`` calls between them, on the
same tensors, with one thread. Times are the process's own processor time, so that others on the machine cost less. A
peer that is missing or fails stays in the record with the reason. The record is benchmarks/recorded/quantize.json,
which the site's page of benchmarks shows; it names no machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from exhaustive import KERNEL, compare, fallbacks, some_inputs  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from torch import Tensor  # noqa: E402

import altgrad  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.diffusion import diffuse  # noqa: E402
from altgrad.formats import FloatFormat, get_format  # noqa: E402
from altgrad.reports.benchmarks import Accelerator, QuantizeRecord, Scratch, Timing  # noqa: E402
from altgrad.reports.measured import RECORDED, read_record, write_record  # noqa: E402
from altgrad.rounding import compile_quantize, quantize, quantize_counted  # noqa: E402
from altgrad.runs.schema import without_paths  # noqa: E402
from altgrad.scaling import compile_mx, compile_nvfp4, quantize_mx, quantize_nvfp4  # noqa: E402

SEED = 1
PROBES = (464.0, 500.0, float("nan"), 2.0**-10, 3 * 2.0**-10, 0.015, -0.0)
"""Inputs that tell peers' meanings of E4M3 apart: above its maximum, NaN, ties, just below the smallest normal, -0."""
SEVEN_PASSES = (
    "Seven passes over the tensor, each one call from Python: at this size the calls cost as much as the work."
)
GUARDS = "torch.compile checks its guards at every call; at this size that costs as much as the work."
ARITHMETIC = (
    "Bound by its arithmetic more than by memory: from run to run its time stays, and the quicker the run's copy, the "
    "larger the ratio."
)
FIVE_STREAMS = "Reads a third tensor, the values before: five streams through memory, where two copies are four."


@dataclass(frozen=True)
class Entry:
    """One row: what is known of it beforehand, what it is timed against, and how to get the function to time.

    Attributes:
        make: gives the function, whose result is a tensor.
        base: the work that is one unit.
        reference: the values that it should give; None where it need not.
        slow: left out of a quick trial.
        probe: the function of other tensors, for a peer's remark.
    """

    timing: Timing
    make: Callable[[], Callable[[], Tensor]]
    base: Callable[[], object]
    reference: Callable[[], Tensor] | None = None
    slow: bool = False
    probe: Callable[[], Callable[[Tensor], Tensor]] | None = None


class Tensors:
    """The tensors of all rows of one size."""

    def __init__(self, shape: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(shape, generator=generator)
        self.out, self.ulp = torch.empty_like(self.x), torch.empty_like(self.x)
        self.previous = quantize(self.x + 0.01 * torch.randn(shape, generator=generator), get_format("e4m3"))
        self.row_scale = self.x.abs().amax(1, keepdim=True) / get_format("e4m3").max

    def copy(self) -> None:
        """The unit of most rows."""
        self.out.copy_(self.x)

    def two_copies(self) -> None:
        """The unit of what writes two tensors."""
        self.out.copy_(self.x)
        self.ulp.copy_(self.x)

    def cast(self, dtype: torch.dtype) -> Callable[[], Tensor]:
        """torch's cast to 8 bits and back, into memory that is there."""
        narrow = torch.empty(self.x.shape, dtype=dtype)

        def run() -> Tensor:
            narrow.copy_(self.x)
            return self.out.copy_(narrow)

        return run


def our_entries(t: Tensors) -> Iterator[Entry]:
    """Our kernel: plain, stochastic, counted, other formats, scaled."""

    def plain(name: str, label: str, goals: tuple[float | None, float | None], **rest: Any) -> Iterator[Entry]:
        fmt = get_format(name)
        how = {key: rest.pop(key) for key in ("rounding", "draw_version") if key in rest}

        def eager() -> Callable[[], Tensor]:
            return lambda: quantize(t.x, fmt, out=t.out, **how, **rest)

        def compiled() -> Callable[[], Tensor]:
            run = compile_quantize(fmt, **how)
            return lambda: run(t.x, out=t.out, **rest)

        def reference() -> Tensor:
            return quantize(t.x, fmt, **how, **rest)

        for form, make, goal in (("eager", eager, goals[0]), ("compiled", compiled, goals[1])):
            remark = ARITHMETIC if form == "compiled" and goal else ""
            timing = Timing(name=label, group="ours", form=form, format=fmt.label, goal=goal, remark=remark, out=True)
            yield Entry(timing, make, t.copy, reference, slow=form == "compiled" and (name, label) != ("e4m3", "plain"))

    yield from plain("e4m3", "plain", (4, 1.1))
    new = Timing(name="plain, result allocated", group="ours", form="eager", format=get_format("e4m3").label)
    yield Entry(new, lambda: lambda: quantize(t.x, get_format("e4m3")), t.copy)
    drawn: dict[str, Any] = {"rounding": "stochastic", "seed": SEED}
    yield from plain("e4m3", "stochastic", (None, 2.5), **drawn)
    yield from plain("e4m3", "stochastic, draws of version 2", (8, 2.5), draw_version=2, **drawn)
    yield Entry(
        Timing(
            name="diffused along rows, result allocated", group="ours", form="eager", format=get_format("e4m3").label
        ),
        lambda: partial(diffused, t.x, get_format("e4m3")),
        t.copy,
        slow=True,
    )
    yield from block_entries(t)
    yield from counted_entries(t)
    yield from plain("e4m3", "scale per row", (None, None), scale=t.row_scale)
    for name in ("e5m2", "e4m3fnuz", "e7m0", "bf16"):
        yield from plain(name, "plain", (None, None))


def diffused(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Clamped error diffusion along the rows of `x`: both neighbours of each element, the sort and the scan."""
    return diffuse(x, quantize(x, fmt, rounding="down"), quantize(x, fmt, rounding="up"))


def block_entries(t: Tensors) -> Iterator[Entry]:
    """Formats with a scale for each block: the amax, the scales and the elements."""
    e4m3, e2m1 = get_format("e4m3"), get_format("e2m1")
    forms: dict[tuple[str, str], tuple[Callable[..., Tensor], Callable[[], Callable[..., Tensor]], float]] = {
        ("MX, blocks of 32", e4m3.label): (partial(quantize_mx, element_format=e4m3), partial(compile_mx, e4m3), 2.5),
        ("MX, blocks of 32", e2m1.label): (partial(quantize_mx, element_format=e2m1), partial(compile_mx, e2m1), 2.5),
        ("NVFP4, blocks of 16", e2m1.label): (quantize_nvfp4, compile_nvfp4, 3),
    }
    for (label, fmt), (quantizer, compiler, goal) in forms.items():

        def eager(quantizer: Callable[..., Tensor] = quantizer) -> Callable[[], Tensor]:
            return lambda: quantizer(t.x, out=t.out)

        def compiled(compiler: Callable[[], Callable[..., Tensor]] = compiler) -> Callable[[], Tensor]:
            run = compiler()
            return lambda: run(t.x, out=t.out)

        for form, make, most in (("eager", eager, 6.5), ("compiled", compiled, goal)):
            timing = Timing(name=label, group="ours", form=form, format=fmt, goal=most, remark=ARITHMETIC, out=True)
            yield Entry(timing, make, t.copy, partial(quantizer, t.x), slow=form == "compiled")


def counted_entries(t: Tensors) -> Iterator[Entry]:
    """Values, ulp field and counts in one pass, with and without flips, against two copies."""
    fmt = get_format("e4m3")
    for label, previous in (("counted", None), ("counted, with flips", t.previous)):
        extra: dict[str, Any] = {"out": t.out, "ulp_out": t.ulp, "previous": previous}

        def eager(extra: dict[str, Any] = extra) -> Callable[[], Tensor]:
            return lambda: quantize_counted(t.x, fmt, **extra).values

        def compiled(extra: dict[str, Any] = extra) -> Callable[[], Tensor]:
            run = compile_quantize(fmt, counted=True)
            return lambda: run(t.x, **extra).values

        for form, make, goal in (("eager", eager, 7), ("compiled", compiled, 1.35)):
            remark = FIVE_STREAMS if previous is not None else ARITHMETIC if form == "compiled" else ""
            timing = Timing(
                name=label,
                group="ours",
                form=form,
                format=fmt.label,
                unit="two copies",
                goal=goal,
                remark=remark,
                out=True,
            )
            yield Entry(timing, make, t.two_copies, lambda: quantize(t.x, fmt), slow=form == "compiled")


def small_entries(t: Tensors) -> Iterator[Entry]:
    """A small tensor against torch's cast to 8 bits and back: where a call costs as much as its work."""
    for name, dtype in (("e5m2", torch.float8_e5m2), ("e4m3", torch.float8_e4m3fn)):
        fmt = get_format(name)

        def eager(fmt: Any = fmt) -> Callable[[], Tensor]:
            return lambda: quantize(t.x, fmt, out=t.out)

        def compiled(fmt: Any = fmt) -> Callable[[], Tensor]:
            run = compile_quantize(fmt)
            return lambda: run(t.x, out=t.out)

        for form, make in (("eager", eager), ("compiled", compiled)):
            remark = SEVEN_PASSES if form == "eager" else GUARDS
            timing = Timing(
                name="plain",
                group="ours",
                form=form,
                format=fmt.label,
                unit="torch cast",
                small=True,
                goal=1,
                remark=remark,
                out=True,
            )
            yield Entry(timing, make, t.cast(dtype), lambda fmt=fmt: quantize(t.x, fmt), slow=form == "compiled")  # type: ignore[misc]


def peer_entries(t: Tensors) -> Iterator[Entry]:
    """What others offer, each in the fastest form that it has for float32 tensors."""

    def entry(name: str, package: str, make: Callable[[], Callable[[Tensor], Tensor]], **rest: Any) -> Entry:
        fmt = get_format(rest.pop("format", "e4m3"))
        into = rest.pop("out", False)
        timing = Timing(name=name, group="peer", format=fmt.label, version=_version(package), out=into)

        def whole() -> Callable[[], Tensor]:
            run = make()
            return lambda: run(t.x)

        probe = make if fmt.name == "e4m3" else None
        return Entry(timing, whole, t.copy, lambda: quantize(t.x, fmt), probe=probe, **rest)

    def cast(dtype: torch.dtype) -> Callable[[], Callable[[Tensor], Tensor]]:
        def make() -> Callable[[Tensor], Tensor]:
            into = t.cast(dtype)
            return lambda x: into() if x is t.x else x.to(dtype).float()

        return make

    def ml_dtypes() -> Callable[[Tensor], Tensor]:
        dtype = import_module("ml_dtypes").float8_e4m3fn

        def run(x: Tensor) -> Tensor:
            with np.errstate(all="ignore"):
                return torch.from_numpy(x.numpy().astype(dtype).astype(np.float32))

        return run

    def qtorch() -> Callable[[Tensor], Tensor]:
        quant = import_module("qtorch.quant")  # builds its C++ part
        return lambda x: quant.float_quantize(x, exp=4, man=3, rounding="nearest")

    def torchao() -> Callable[[Tensor], Tensor]:
        floatx = import_module("torchao.prototype.custom_fp_utils")
        encode, decode = floatx._f32_to_floatx_unpacked, floatx._floatx_unpacked_to_f32
        return lambda x: decode(encode(x, 4, 3), 4, 3)

    def pychop() -> Callable[[Tensor], Tensor]:
        return import_module("pychop").Chop(exp_bits=4, sig_bits=3, rmode=1)  # type: ignore[no-any-return]

    def gfloat() -> Callable[[Tensor], Tensor]:
        package, fmt = import_module("gfloat"), import_module("gfloat.formats").format_info_ocp_e4m3
        return lambda x: package.round_ndarray(fmt, x, package.RoundMode.TiesToEven, True)

    def qtorch_stochastic() -> Callable[[Tensor], Tensor]:
        quant = import_module("qtorch.quant")
        return lambda x: quant.float_quantize(x, exp=4, man=3, rounding="stochastic")

    def torchao_mx() -> Callable[[Tensor], Tensor]:
        mx, e4m3 = import_module("torchao.prototype.mx_formats.mx_tensor"), torch.float8_e4m3fn

        def run(x: Tensor) -> Tensor:
            scales, codes = mx.to_mx(x, e4m3, 32)
            return mx.to_dtype(codes, scales, e4m3, 32, torch.float32)  # type: ignore[no-any-return]

        return run

    def torchao_nvfp4() -> Callable[[Tensor], Tensor]:
        nvfp4 = import_module("torchao.prototype.mx_formats.nvfp4_tensor").NVFP4Tensor
        # It takes the tensor's scale and does not find it, which costs it less than it costs us.
        outer = t.x.abs().amax() / (448 * 6)
        return lambda x: nvfp4.to_nvfp4(x, per_tensor_scale=outer).dequantize(torch.float32)

    yield entry("torch, cast and back", "torch", cast(torch.float8_e5m2), format="e5m2", out=True)
    yield entry("torch, cast and back", "torch", cast(torch.float8_e4m3fn), out=True)
    yield entry("qtorch, float_quantize", "qtorch", qtorch, slow=True)
    yield entry("ml_dtypes, cast and back", "ml_dtypes", ml_dtypes)
    yield entry("torchao, floatx codes and back", "torchao", torchao)
    yield entry("pychop, Chop", "pychop", pychop)
    yield entry("gfloat, round_ndarray", "gfloat", gfloat)
    for name, package, make, reference in (
        ("qtorch, float_quantize, stochastic", "qtorch", qtorch_stochastic, None),
        ("torchao, MX codes and back", "torchao", torchao_mx, lambda: quantize_mx(t.x, get_format("e4m3"))),
        ("torchao, NVFP4 codes and back", "torchao", torchao_nvfp4, lambda: quantize_nvfp4(t.x)),
    ):
        fmt = get_format("e2m1" if "NVFP4" in name else "e4m3")
        timing = Timing(name=name, group="peer", format=fmt.label, version=_version(package))
        yield Entry(timing, lambda make=make: partial(make(), t.x), t.copy, reference, slow=package == "qtorch")  # type: ignore[misc]


def measure(
    function: Callable[[], object], base: Callable[[], object], *, repeats: int, tries: int, limit: float
) -> dict[str, float]:
    """Best time of `function` over the best time of `base`, called in turns, and the same ratio of every repeat.

    Args:
        repeats: how many times the ratio is taken.
        tries: calls in turns that each ratio is the best of; fewer where they would take more than `limit` seconds.
    """
    calls = [_calls(function), _calls(base)]
    once = _time(function, calls[0]) + _time(base, calls[1])
    tries = max(1, min(tries, int(limit / repeats / once)))
    best: list[tuple[float, float]] = []
    for _ in range(repeats):
        times = [(_time(function, calls[0]) / calls[0], _time(base, calls[1]) / calls[1]) for _ in range(tries)]
        best.append((min(own for own, _ in times), min(unit for _, unit in times)))
    ratios = [own / unit for own, unit in best]
    seconds = min(own for own, _ in best)
    ratio = seconds / min(unit for _, unit in best)
    return {
        "ratio": _round(ratio),
        "low": _round(min(ratio, *ratios)),
        "high": _round(max(ratio, *ratios)),
        "seconds": _round(seconds),
    }


def _calls(function: Callable[[], object]) -> int:
    """How many calls take a millisecond or more; the first call, which may compile, is not counted."""
    function()
    return max(1, int(1e-3 / max(_time(function, 1), 1e-7)))


def _time(function: Callable[[], object], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        function()
    return time.process_time() - start


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def measured(entry: Entry, **effort: Any) -> Timing:
    """The row with its figures, or with the reason why there are none."""
    try:
        with fallbacks() as lines:
            function = entry.make()
            result = function()
        if lines:
            return entry.timing.model_copy(update={"error": "no compiler on this machine: the eager form did the work"})
        found: dict[str, Any] = {}
        if entry.reference is not None:
            found["differing"] = int((result.float() != entry.reference()).sum())
        found |= measure(function, entry.base, **effort)
        if entry.timing.goal is not None:
            found["met"] = found["ratio"] <= entry.timing.goal
        if entry.probe is not None:
            found["remark"] = meaning(entry.probe())
        return entry.timing.model_copy(update=found)
    except ModuleNotFoundError as error:
        return entry.timing.model_copy(update={"error": f"not installed here: {error.name}"})
    except Exception as error:  # whatever a peer does, the others are measured
        reason = without_paths(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return entry.timing.model_copy(update={"error": reason[:200]})


def meaning(run: Callable[[Tensor], Tensor]) -> str:
    """What a peer makes of `PROBES` that is not what the kernel makes of them (saturating E4M3)."""
    x = torch.tensor(PROBES)
    theirs, ours = run(x).float(), quantize(x, get_format("e4m3"))
    told = []
    for value, own, other in zip(PROBES, ours.tolist(), theirs.tolist(), strict=True):
        if str(own) != str(other):
            told.append(f"{value:.6g} becomes {other:.6g} (here {own:.6g})")
    return "; ".join(told)


def scratch_entries(shape: tuple[int, int]) -> list[Scratch]:
    """Memory beside input and output, each measured in a fresh process."""
    size = shape[0] * shape[1] * 4
    found = []
    for name in ("plain", "stochastic", "counted"):
        row: dict[str, Any] = {"name": name, "tensor_bytes": size, "goal_bytes": size // 4}
        command = [sys.executable, __file__, "--scratch", name, "--shape", *map(str, shape)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip().isdigit():
            grown = int(done.stdout)
            row |= {"scratch_bytes": grown, "met": grown <= row["goal_bytes"]}
        else:
            lines = done.stderr.strip().splitlines() or ["no answer"]
            row["error"] = without_paths(lines[-1])[:200]
        found.append(Scratch(**row))
    return found


def scratch_of(name: str, shape: tuple[int, int]) -> int:
    """Bytes by which this process's peak grows while the eager form goes through a tensor."""
    torch.set_num_threads(1)
    x, fmt = torch.randn(shape), get_format("e4m3")
    out, ulp = torch.zeros(shape), torch.zeros(shape)

    def run(x: Tensor, out: Tensor, ulp: Tensor) -> None:
        if name == "counted":
            quantize_counted(x, fmt, out=out, ulp_out=ulp)
        else:
            rounding = {"plain": "nearest_even"}.get(name, name)
            quantize(x, fmt, rounding=rounding, seed=SEED, out=out)

    run(x[0, :1], out[0, :1], ulp[0, :1])
    before = _peak_memory()
    run(x, out, ulp)
    return _peak_memory() - before


def _peak_memory() -> int:
    """Bytes. Linux tells what this program had; elsewhere the system's figure may include its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def accelerator(device: str, elements: int, inputs: int = 1 << 24) -> Accelerator:
    """The compiled kernel on a device: bandwidth against a copy there, and its results against the processor's.

    Args:
        elements: of the tensor that is timed.
        inputs: how many bit patterns each of six kernels is compared on; a power of two.
    """

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    def best(function: Callable[[], object]) -> float:
        times = []
        for _ in range(23):
            wait()
            start = time.perf_counter()
            for _ in range(5):
                function()
            wait()
            times.append((time.perf_counter() - start) / 5)
        return min(times[3:])

    x = torch.randn(elements, device=device)
    out = torch.empty_like(x)
    run = compile_quantize(get_format("e4m3"))
    copy, own = best(lambda: out.copy_(x)), best(lambda: run(x, out=out))
    differing = compared = 0
    patterns = some_inputs(0, inputs, (1 << 32) // inputs)
    there = patterns.to(device)
    cases = [(name, "nearest_even") for name in ("e4m3", "e5m2", "e3m4", "e7m0")]
    for name, rounding in [*cases, ("e4m3", "stochastic"), ("e4m3", "toward_zero")]:
        fmt, seed = get_format(name), SEED if rounding == "stochastic" else None
        theirs = compile_quantize(fmt, rounding=rounding)(there, seed=seed).cpu()
        differing += compare(patterns, quantize(patterns, fmt, rounding=rounding, seed=seed), theirs)[0]
        compared += inputs
    return Accelerator(
        device=torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        torch=torch.__version__,
        elements=elements,
        copy_bandwidth=_round(8 * elements / copy),
        quantize_bandwidth=_round(8 * elements / own),
        compared=compared,
        differing=differing,
        date=_now(),
        altgrad=altgrad.__version__,
        kernel=KERNEL,
    )


def bench(shape: tuple[int, int], small: tuple[int, int], quick: bool, console: Console) -> QuantizeRecord:
    """Everything that the processor does."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    torch.set_num_threads(1)
    # Where pip put ninja, and where what peers compile is kept.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    scratch = scratch_entries(shape)
    large, little = Tensors(shape), Tensors(small)
    entries = [*our_entries(large), *peer_entries(large), *small_entries(little)]
    effort: dict[str, Any] = (
        {"repeats": 2, "tries": 1, "limit": 0.1} if quick else {"repeats": 5, "tries": 7, "limit": 6.0}
    )
    timings: list[Timing] = []
    vectors = {"vectors": torch.backends.cpu.get_cpu_capability()}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    logging.getLogger().addHandler(logging.NullHandler())  # peers' own warnings are not news here
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(entries))
        for entry in entries:
            progress.update(task, description=f"{entry.timing.name}, {entry.timing.format} {entry.timing.form}".strip())
            if quick and entry.slow:
                found = entry.timing.model_copy(update={"error": "left out of a quick trial"})
            else:
                found = measured(entry, **effort)
            timings.append(found.model_copy(update=vectors | {"shape": small if found.small else shape}))
            progress.advance(task)
    copy_seconds = measure(large.copy, large.copy, **effort)["seconds"]
    return QuantizeRecord(
        date=_now(),
        altgrad=altgrad.__version__,
        kernel=KERNEL,
        quick=quick,
        shape=shape,
        small_shape=small,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=load,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **vectors,
        },
        copy_seconds=copy_seconds,
        timings=tuple(timings),
        scratch=tuple(scratch),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record; 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        return _run(_parse(arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the record is as it was", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, metavar="N", help="of the large tensor (4096 4096)")
    parser.add_argument("--small-shape", type=int, nargs=2, metavar="N", help="of the small tensor (256 256)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: add a GPU to the record")
    parser.add_argument("--quick", action="store_true", help="a trial: small tensors, few repeats, one compiled kernel")
    parser.add_argument("--record", type=Path, default=RECORDED / "quantize.json", help="where the figures go")
    parser.add_argument("--scratch", choices=("plain", "stochastic", "counted"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for shape in (options.shape, options.small_shape):
        if shape and min(shape) < 1:
            parser.error(f"a shape of {shape[0]} x {shape[1]}: give two numbers of at least 1")
    if options.quick and options.record == RECORDED / "quantize.json":
        parser.error("a quick trial is not recorded for the site: name another file with --record")
    side = 512 if options.quick else 4096
    options.shape = tuple(options.shape or (side, side))
    options.small_shape = tuple(options.small_shape or (256, 256))
    return options


def _run(options: argparse.Namespace) -> int:
    if options.scratch:
        print(scratch_of(options.scratch, options.shape))
        return 0
    known = read_record(options.record, QuantizeRecord)
    console = Console(stderr=True)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; it needs one, and a CUDA build of torch")
    record = known
    if record is None or options.device == "cpu":
        record = bench(options.shape, options.small_shape, options.quick, console)
        record = record.model_copy(update={"accelerator": known.accelerator if known else None})
        write_record(record, options.record)
        _print_timings(record)
    if options.device == "cuda":
        found = accelerator("cuda", 1 << 28)
        write_record(record.model_copy(update={"accelerator": found}), options.record)
        share = found.quantize_bandwidth / found.copy_bandwidth
        print(
            f"{found.device}: {share:.2f} of a copy's bandwidth, {found.differing:,} of {found.compared:,} bits differ"
        )
        return 1 if found.differing else 0
    return 0


def _print_timings(record: QuantizeRecord) -> None:
    for row in record.timings:
        place = f" {'x'.join(map(str, record.small_shape))}" if row.small else ""
        name = f"{row.name}, {row.format} {row.form}".strip() + place
        if row.ratio is None:
            print(f"{name:48} {row.error}")
            continue
        goal = "" if row.goal is None else f"goal {row.goal:g}: {'met' if row.met else 'missed'}"
        print(f"{name:48} {row.ratio:8.2f} x {row.unit:11} [{row.low:.2f}, {row.high:.2f}] {goal}".rstrip())
    for one in record.scratch:
        print(f"{'scratch, ' + one.name:48} {one.error or f'{(one.scratch_bytes or 0) / 2**20:8.1f} MiB'}")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
