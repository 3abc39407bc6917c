"""Whether every number in the data of one built site is in that of another.

    make same-numbers BEFORE=site-of-then AFTER=site

Numbers are those of the CSV files of BEFORE; they may be in any CSV or JSON file of AFTER, since a rewritten page may
lay out its data anew. Two that agree in the first five digits are equal: scripts get rounded ones. Exits with 1 and
names the files whose numbers are gone.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 1e-5


def numbers(path: Path) -> Iterator[float]:
    """The finite numbers in a CSV or JSON file."""
    if path.suffix == ".json":
        yield from _of_json(json.loads(path.read_text("utf-8")))
        return
    with path.open(newline="", encoding="utf-8") as file:
        for cell in (cell for row in csv.reader(file) for cell in row):
            try:
                value = float(cell)
            except ValueError:
                continue
            if math.isfinite(value):
                yield value


def _of_json(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _of_json(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def lost(before: Path, after: Path) -> Counter[str]:
    """How many numbers of each CSV file of `before` no file of `after` has."""
    kept = np.unique(
        [value for path in after.rglob("*") if path.suffix in (".csv", ".json") for value in numbers(path)]
    )
    found = Counter[str]()
    for path in sorted(before.rglob("*.csv")):
        values = np.unique(list(numbers(path)))
        if len(values) and len(kept):
            place = np.searchsorted(kept, values)
            near = np.stack([kept[np.clip(place - 1, 0, None)], kept[np.clip(place, None, len(kept) - 1)]])
            apart = np.abs(near - values).min(axis=0) > DIGITS * np.abs(values)
            found[path.relative_to(before).as_posix()] += int(apart.sum())
        else:
            found[path.relative_to(before).as_posix()] += len(values)
    return +found


def main(before: str, after: str) -> int:
    """Compare two sites; 1 where a number is gone."""
    gone = lost(Path(before), Path(after))
    for name, count in gone.most_common():
        print(f"{name}: {count} numbers are nowhere in {after}")
    files = [*Path(before).rglob("*.csv")]
    print(f"{sum(gone.values())} numbers lost of those in {len(files):,} CSV files")
    return bool(gone) or not files


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
