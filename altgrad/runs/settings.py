"""Anybody's settings as plain ones: whatever a loop has its config in becomes mappings, lists, numbers and text.

`plain_settings` takes mappings (OmegaConf's too), argparse's Namespace, dataclasses, named tuples, pydantic models and
what has a ``to_dict``; enums, paths, dtypes, dates, sets, arrays. What is none of these is recorded by its kind alone,
and said to be: a record never ends a training over its config.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import types
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

from altgrad.config import UsageError, one_line
from altgrad.runs.schema import plain

DEEPEST = 15
"""Levels of settings; what lies deeper is left out."""
_LARGEST = 1000
"""Elements of an array that is recorded element by element."""
_SPACES = (argparse.Namespace, types.SimpleNamespace)
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def plain_settings(given: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings as nested mappings with text for keys, and a line for each that is not there as it was.

    Raises:
        UsageError: `given` is nothing that has settings.
    """
    said: list[str] = []
    items = _items(given)
    if items is None and not isinstance(given, type | str | bytes | Sequence) and not callable(given):
        items = getattr(given, "__dict__", None)
    if items is None:
        raise UsageError(f"config: give a mapping of keys and values, not a {type(given).__name__}")
    return _mapping(items, "config", said, 0), said


def _mapping(items: Mapping[Any, Any], place: str, said: list[str], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items.items():
        name = key.name if isinstance(key, Enum) else str(key)
        name = name.encode(errors="replace").decode() or "(no name)"
        while name in found:
            name += "_"
        found[name] = _plain(value, f"{place}.{name}", said, depth + 1)
    return found


def _plain(value: Any, place: str, said: list[str], depth: int) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > DEEPEST:
        said.append(f"{place[:80]}: nested more than {DEEPEST} deep, and left out")
        return "(nested too deeply)"
    if isinstance(value, Enum):
        return _plain(value.value if _is_plain(value.value) else value.name, place, said, depth + 1)
    if (items := _items(value)) is not None:
        return _mapping(items, place, said, depth)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, Sequence | deque) and not isinstance(value, str):
        return [_plain(each, f"{place}[{at}]", said, depth + 1) for at, each in enumerate(value)]
    if (array := _array(value)) is not None:
        return array
    try:
        return plain(value)
    except Exception:  # of whatever framework
        return _text(value, place, said)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _items(value: Any) -> Mapping[Any, Any] | None:
    """What a value has by names; None where it is no such thing."""
    try:
        if isinstance(value, Mapping):
            return dict(value.items())
        if isinstance(value, type):
            return None
        if isinstance(value, _SPACES):
            return vars(value)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return {name: getattr(value, name) for name in names if hasattr(value, name)}
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return dict(value._asdict())
        for name in ("model_dump", "to_dict", "items"):
            if callable(give := getattr(value, name, None)):
                found = give()
                return found if isinstance(found, Mapping) else dict(found) if name == "items" else None
    except Exception:  # a value of somebody's own kind, whose methods do what they like
        return None
    return None


def _array(value: Any) -> Any:
    """The elements of an array or tensor of any framework, or its shape; None for what is none."""
    try:
        shape, listed = getattr(value, "shape", None), getattr(value, "tolist", None)
        if not shape or not callable(listed):
            return None
        if (count := math.prod(shape)) <= _LARGEST:
            return listed()
        return f"{type(value).__name__} of {' x '.join(map(str, shape))} ({count:,} values)"
    except Exception:
        return None


def _text(value: Any, place: str, said: list[str]) -> str:
    """A value's own text where it is one for people; else what kind of thing it is."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        if callable(value) and (name := getattr(value, "__qualname__", None)):  # a function
            return str(name)
        text = str(value)
    except Exception:
        text = "\n"
    if "\n" in text or len(text) > 200 or _ADDRESS.search(text):
        kind = type(value).__qualname__
        said.append(f"{one_line(place)[:80]}: a {kind} is recorded by its kind alone")
        return kind
    return text
