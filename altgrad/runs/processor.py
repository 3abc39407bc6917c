"""On which processor a run computes: what decides the last digits beside config, seed and versions.

The model, the instructions in use and the library of matrix products are named; never the machine, a user or a path.
Records of earlier versions have none of it: `stated` says so.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.runs.schema import public_line

NOT_STATED = "not stated"
"""What a record, or a foreign run, does not say of itself."""
PROCESSOR = ("processor", "instructions", "blas")
"""The keys of a record's environment that `describe_processor` gives."""


def cores() -> int:
    """The cores this process may use; all of them where the system does not tell (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_processor() -> dict[str, str]:
    """Model, instruction set (AVX2, AVX512, ...) and library of matrix products, `PROCESSOR`, as far as they are known.

    The last two are torch's where it is imported, else NumPy's.
    """
    torch = sys.modules.get("torch")
    found = (_model(), *(_of_torch(torch) if torch is not None else _of_numpy()))
    return {key: public_line(text)[:100] for key, text in zip(PROCESSOR, found, strict=True) if text}


def stated(environment: Mapping[str, Any]) -> str:
    """The processor that a record names, with its instructions, in words; `NOT_STATED` where it names none."""
    if not environment.get("processor"):
        return NOT_STATED
    return ", ".join(str(environment[key]) for key in ("processor", "instructions") if environment.get(key))


def _model() -> str:
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    if sys.platform != "linux":
        return platform.processor()
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return ""
    facts = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", first, re.MULTILINE))
    if "CPU part" in facts:  # ARM has numbers for names
        return f"ARM, implementer {facts.get('CPU implementer', '?')}, part {facts['CPU part']}"
    more = [f"{word} {facts[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in facts]
    name = facts.get("model name", "").strip()
    return f"{name} ({', '.join(more)})" if name and more else name  # in a cloud the name alone says little


def _of_torch(torch: Any) -> tuple[str, str]:
    built = torch.__config__.show()
    library = re.search(r"\bBLAS_INFO=(\w+)", built)
    version = re.search(r"Math Kernel Library Version (\d[\d.]*)", built)
    name = library[1] if library else ""
    return torch.backends.cpu.get_cpu_capability(), f"{name} {version[1]}" if name == "mkl" and version else name


def _of_numpy() -> tuple[str, str]:
    built: Mapping[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    there = " ".join(built.get("SIMD Extensions", {}).get("found", ()))
    kinds = {"AVX512": r"AVX512|X86_V4", "AVX2": r"\bAVX2\b|X86_V3", "SVE": r"\bSVE", "NEON": r"\b(NEON|ASIMD)"}
    blas = built.get("Build Dependencies", {}).get("blas", {})
    library = " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key))
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, there)), ""), library
