"""One tiny training a machine, whose bits are kept with the records of a campaign: do two machines compute alike?

`altgrad.training.canary` trains it; a campaign does at each start, and appends what is new to `CANARIES` in the folder
of its records. The parts of a packed study have those of the machines that their runs name.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from altgrad.config import first_mistake
from altgrad.runs.files import read_bytes
from altgrad.runs.processor import stated
from altgrad.runs.schema import RecordError, Time

CANARIES = "canaries.jsonl"
Machine = tuple[tuple[str, str], ...]
"""What a record says of its environment, in an order that it can be compared in."""


class Canary(BaseModel):
    """What one machine made of the canary.

    Attributes:
        environment: as the records of runs on this machine have it.
        code: fingerprint of the code that trained it.
        digest: sha256 over the bits of its losses.
        created: when.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    environment: dict[str, Any]
    code: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    created: Time

    @property
    def machine(self) -> Machine:
        """The machine that it ran on, as far as its environment says."""
        return machine_of(self.environment)

    def repeats(self, other: Canary) -> bool:
        """Whether both say the same of one machine."""
        return (self.machine, self.code, self.digest) == (other.machine, other.code, other.digest)


def machine_of(environment: Any) -> Machine:
    """An environment as one value; runs with equal ones name the same machine in their records."""
    return tuple(sorted((str(key), str(value)) for key, value in (environment or {}).items()))


def read_canaries(folder: Path) -> tuple[Canary, ...]:
    """The canaries of a folder of records or of a packed study, in the order in which they were kept; none without any.

    Raises:
        RecordError: the file is damaged.
    """
    try:
        lines = read_bytes(folder / CANARIES).split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise RecordError(f"{CANARIES}: cannot be read ({error.strerror or error})") from None
    try:
        return tuple(Canary.model_validate_json(line) for line in lines if line.strip())
    except ValidationError as error:
        raise RecordError(f"{CANARIES}: damaged ({first_mistake(error)}); restore or delete the file") from None


def keep_canary(folder: Path, canary: Canary) -> None:
    """Add a canary to those of a folder, unless it says what is there.

    Raises:
        RecordError, OSError: the file is damaged, or cannot be written.
    """
    if not any(canary.repeats(other) for other in read_canaries(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / CANARIES, "ab", buffering=0) as file:  # one write: several machines may share the folder
            file.write(lines_of([canary]))
            os.fsync(file.fileno())


def lines_of(canaries: Iterable[Canary]) -> bytes:
    """Canaries as `CANARIES` has them."""
    return b"".join(json.dumps(canary.model_dump(), sort_keys=True).encode() + b"\n" for canary in canaries)


def unlike(canaries: Iterable[Canary]) -> list[str]:
    """A line for each machine that made different bits of one canary: its description lacks what made a difference."""
    found: dict[tuple[Machine, str], dict[str, Canary]] = defaultdict(dict)
    for canary in canaries:
        found[canary.machine, canary.code].setdefault(canary.digest, canary)
    lines = []
    for several in (list(each.values()) for each in found.values() if len(each) > 1):
        days = ", ".join(f"{each.digest[:8]} on {date.fromisoformat(each.created[:10])}" for each in several)
        where = stated(several[0].environment)
        lines.append(f"the canary gave other bits on machines that are described alike ({where}): {days}")
    return lines
