"""TensorBoard's event files, as SummaryWriter, TensorFlow and Keras write them.

A file is a sequence of records (TFRecord: length, its checksum, the data, its checksum), each an ``Event`` of protocol
buffers. TensorBoard's own reader and those on top of it (tbparse, pandas) bring in TensorBoard and gRPC, and decode
event by event; light ones that are maintained there are none. So the framing and the six fields that matter are read
here. Events of scalars come by the thousand and differ in nothing but time, step and value: all records of one length
are laid out as the rows of a table, checked and read a column at a time, with the first of each kind as the pattern.

The format: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto, summary.proto, tensor.proto.
"""

from __future__ import annotations

import contextlib
import re
import struct
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altgrad.config import UsageError
from altgrad.runs.history import Gathered, History
from altgrad.runs.sources.found import NO_END, Files, Found, clock, config_beside, described, mark_of, version_of

TOOL = "TensorBoard"
PARTS = ("train", "training", "validation", "val", "valid", "eval", "test")
"""Folders within a run's folder that hold its metrics on some data, as Keras and estimators write them."""
_TORCH_HPARAMS = re.compile(r"\d{10}\.\d+")
"""What PyTorch calls the folder in which it writes a run's hyperparameters."""
_MOST_KINDS = 200
_CHUNK = 1 << 22
_STATES = {1: "finished", 2: "failed", 3: "running"}


def find(files: Files) -> list[Found]:
    """The runs: a folder with event files, and the parts that lie in it."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files.take(lambda path: "tfevents" in path.name):
        folders[path.parent].append(path)
    runs: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
    for folder, paths in folders.items():
        run, part = folder, ""
        if folder != files.root and _TORCH_HPARAMS.fullmatch(folder.name) and folder.parent in folders:
            run = folder.parent
        elif folder != files.root and folder.name in PARTS:
            beside = [folder.parent / name for name in PARTS if name != folder.name]
            if folder.parent in folders or any(each in folders for each in beside):
                run, part = folder.parent, f"{folder.name}/"
        runs[run] += [(part, path) for path in paths]
    return [
        Found(TOOL, files.name(run), version_of(path for _, path in parts), _Reader(run, files, parts).read)
        for run, parts in sorted(runs.items())
    ]


@dataclass
class Events:
    """What some event files hold: scalars by tag, in the order in which they were written."""

    scalars: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    others: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    config: dict[str, Any] = field(default_factory=dict)
    state: str | None = None
    first: tuple[float, str] | None = None
    damaged: int = 0
    cut: bool = False


class _Reader(NamedTuple):
    run: Path
    files: Files
    parts: list[tuple[str, Path]]

    def read(self) -> tuple[dict[str, Any], History]:
        found, events = Gathered(), Events()
        for part, path in sorted(self.parts, key=lambda each: (each[0], each[1].name)):
            own = read_events(path)
            events.config |= own.config
            events.state = own.state or events.state
            events.damaged += own.damaged
            events.cut |= own.cut
            events.first = events.first or own.first
            for tag, pieces in own.scalars.items():
                events.scalars[f"{part}{tag}"] += pieces
            for tag, count in own.others.items():
                found.not_a_number(f"{part}{tag}", count)
        if not events.scalars:
            raise UsageError("no scalar in it" + (", and it is damaged" if events.damaged or events.cut else ""))
        columns = {
            tag: tuple(np.concatenate(each) for each in zip(*events.scalars.pop(tag), strict=True))
            for tag in [*events.scalars]
        }
        for tag, (steps, _, values) in columns.items():
            found.add_column(tag, steps, values)
        longest, moments, _ = max(columns.values(), key=lambda each: len(each[0]))
        _, _, found.lines[:0] = clock(moments)
        start = min(float(times.min()) for _, times, _ in columns.values())
        end = max(float(times.max()) for _, times, _ in columns.values())
        if "seconds" not in columns:
            found.add_column("seconds", longest, moments - start)
        del columns  # their times are not needed again
        config, lines = config_beside(self.run)
        state = events.state or "finished"
        if events.cut or events.damaged:
            state = "crashed"
            lines += [f"events: {events.damaged} damaged records are left out"] * (events.damaged > 0)
            lines += ["events: a file ends or is damaged amid a record; what it holds before it is kept"] * events.cut
        elif events.state is None:
            lines.insert(0, NO_END.format(tool=TOOL))
        history = found.history()
        mark = mark_of(TOOL, self.run, events.first)
        name, project = self.files.name(self.run), self.run.parent.name
        return described(
            TOOL, mark, name, project, config={**config, **events.config}, state=state, created=start, ended=end,
            lines=lines, rows=len(history.table),
        ), history  # fmt: skip


def read_events(path: Path) -> Events:
    """The events of one file; damaged records are counted, and a last one that was cut short ends the reading."""
    found, data = Events(), b""
    with open(path, "rb") as file:
        while not found.cut and (more := file.read(_CHUNK)):
            data += more
            begins, lengths, end = _framed(data)
            _add(found, data, begins, lengths)
            data = data[end:]
            found.cut = len(data) >= 12 and not _sound_length(data, 12)
    if found.first is None:
        raise UsageError("not a readable file of TensorBoard" if data else "it is empty")
    found.cut |= bool(data)
    return found


def _add(found: Events, data: bytes, begins: array[int], lengths: array[int]) -> None:
    """The events of some whole records."""
    if not begins:
        return
    view = np.frombuffer(data, np.uint8)
    starts, sizes = np.frombuffer(begins, np.int64), np.frombuffer(lengths, np.int64)
    order: list[tuple[int, str, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
    rest: list[int] = []
    for size in np.unique(sizes).tolist():
        at = np.flatnonzero(sizes == size)
        if size > 4096 or len(at) < 4:
            sound = [each for each in at.tolist() if _sound(data, begins[each], size)]
            found.damaged += len(at) - len(sound)
            rest += sound
            continue
        rows = view[starts[at][:, None] + np.arange(-12, size + 4)]
        sound_rows = (_masked_crc(rows[:, :8]) == _uint32(rows[:, 8:12])) & (
            _masked_crc(rows[:, 12:-4]) == _uint32(rows[:, -4:])
        )
        found.damaged += int((~sound_rows).sum())
        at, rows = at[sound_rows], rows[sound_rows, 12:-4]
        for _ in range(_MOST_KINDS):
            if not len(at):
                break
            kind = _kind(rows[0].tobytes())
            if kind is None:
                rest.append(int(at[0]))
                at, rows = at[1:], rows[1:]
                continue
            alike = (rows[:, kind.fixed] == rows[0, kind.fixed]).all(1) & kind.steps_alike(rows)
            order.append((int(at[0]), kind.tag, at[alike], *kind.read(rows[alike])))
            at, rows = at[~alike], rows[~alike]
        rest += at.tolist()
    scalars: dict[str, list[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]]
    scalars = defaultdict(list)
    for first, tag, at, steps, times, values in order:
        scalars[tag].append((first, at, steps, times, values))
    single: dict[str, list[tuple[int, int, float, float]]] = defaultdict(list)
    for each in sorted(rest):
        for tag, step, time, value in _slowly(data[begins[each] : begins[each] + lengths[each]], found):
            single[tag].append((each, step, time, value))
    for tag, cells in single.items():
        at, steps, times, values = map(np.array, zip(*cells, strict=True))
        scalars[tag].append((cells[0][0], at, steps, times, values))
    for tag, pieces in scalars.items():
        at, steps, times, values = (np.concatenate(part) for part in list(zip(*pieces, strict=True))[1:])
        by_place = np.argsort(at, kind="stable")
        found.scalars[tag].append((steps[by_place], times[by_place], values[by_place]))
    if found.first is None:
        found.first = 0.0, "event"
        with contextlib.suppress(LookupError, ValueError, struct.error):
            event = dict(_fields(data[begins[0] : begins[0] + lengths[0]]))
            found.first = struct.unpack("<d", event[1])[0], "event"


def _framed(data: bytes) -> tuple[array[int], array[int], int]:
    """Where the data of each whole record begins and how long it is, and where the last of them ends."""
    begins, lengths = array("q"), array("q")
    place, end, unpack = 0, len(data), struct.Struct("<Q").unpack_from
    while place + 12 <= end:
        (length,) = unpack(data, place)
        if length > end - place - 16:
            break
        begins.append(place + 12)
        lengths.append(length)
        place += length + 16
    return begins, lengths, place


class _Kind(NamedTuple):
    """Where in the events of one tag and length time, step and value are; all other bytes are equal."""

    tag: str
    fixed: NDArray[np.int64]
    time: int
    step: tuple[int, int]
    value: int
    form: str

    def steps_alike(self, rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
        begin, end = self.step
        if begin == end:
            return np.ones(len(rows), bool)
        return (rows[:, begin : end - 1] >= 128).all(1) & (rows[:, end - 1] < 128)

    def read(self, rows: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        begin, end = self.step
        steps = np.zeros(len(rows), np.uint64)
        for place in range(end - 1, begin - 1, -1):
            steps = (steps << np.uint64(7)) | (rows[:, place] & 127).astype(np.uint64)
        wide = int(self.form[-1])
        times = np.ascontiguousarray(rows[:, self.time : self.time + 8]).view("<f8")[:, 0]
        values = np.ascontiguousarray(rows[:, self.value : self.value + wide]).view(self.form)[:, 0]
        return steps.astype(np.int64), times, values.astype(np.float64)


def _kind(event: bytes) -> _Kind | None:
    """Where the parts of an event are, if it is one scalar; None for any other."""
    try:
        places = {number: (begin, end, wire) for number, begin, end, wire in _places(event, 0, len(event))}
        if set(places) - {1, 2, 5} or 5 not in places or 1 not in places:
            return None
        time = places[1][0]
        step = places[2][:2] if 2 in places else (0, 0)
        values = list(_places(event, *places[5][:2]))
        if len(values) != 1 or values[0][0] != 1:
            return None
        inner = {number: (begin, end, wire) for number, begin, end, wire in _places(event, *values[0][1:3])}
        tag = event[slice(*inner[1][:2])].decode("utf-8", "replace")
        if 2 in inner and 8 not in inner:
            value, form = inner[2][0], "<f4"
        elif 8 in inner and (found := _tensor(event, *inner[8][:2])):
            value, form = found
        else:
            return None
    except (ValueError, IndexError, KeyError):
        return None
    free = {*range(time, time + 8), *range(*step), *range(value, value + int(form[-1]))}
    fixed = np.array([place for place in range(len(event)) if place not in free])
    return _Kind(tag, fixed, time, (step[0], step[1]), value, form)


def _tensor(event: bytes, begin: int, end: int) -> tuple[int, str] | None:
    """Where the number of a scalar's tensor is, and its form."""
    parts = {number: (start, stop, wire) for number, start, stop, wire in _places(event, begin, end)}
    dtype = event[parts[1][0]] if 1 in parts else 0
    if 2 in parts and parts[2][0] != parts[2][1]:
        return None  # it has a shape: a histogram or an image
    form = {1: "<f4", 2: "<f8"}.get(dtype)
    if form is None:
        return None
    for number in (4, {1: 5, 2: 6}[dtype]):
        if number in parts:
            start, stop, wire = parts[number]
            return (start, form) if wire in (1, 5) or stop - start == int(form[-1]) else None
    return None


def _slowly(event: bytes, found: Events) -> Iterator[tuple[str, int, float, float]]:
    """Tag, step, time and value of the scalars of an event, one by one; notes what else it has."""
    try:
        parts = [(number, begin, end) for number, begin, end, _ in _places(event, 0, len(event))]
        fields = {number: event[begin:end] for number, begin, end in parts}
        time = struct.unpack("<d", fields[1])[0] if 1 in fields else 0.0
        step = _varint(fields[2], 0)[0] if 2 in fields else 0
        step -= (step >> 63) << 64
        for number, begin, end in parts:
            if number != 5:
                continue
            for _, first, last, _ in _places(event, begin, end):
                inner = {each: (start, stop, wire) for each, start, stop, wire in _places(event, first, last)}
                tag = event[slice(*inner[1][:2])].decode("utf-8", "replace") if 1 in inner else ""
                if 9 in inner and _hparams(event[slice(*inner[9][:2])], found):
                    continue
                place = (inner[2][0], "<f4") if 2 in inner else _tensor(event, *inner[8][:2]) if 8 in inner else None
                if place is None:
                    if not tag.startswith("_hparams_"):
                        found.others[tag] += 1
                    continue
                yield tag, step, time, float(np.frombuffer(event, place[1], 1, place[0])[0])
    except (ValueError, IndexError, KeyError, struct.error):
        found.damaged += 1


def _hparams(metadata: bytes, found: Events) -> bool:
    """Whether a value is one of the plugin for hyperparameters; notes them, and how the session ended."""
    plugin = dict(_fields(dict(_fields(metadata)).get(1, b"")))
    if plugin.get(1) != b"hparams":
        return False
    content = dict(_fields(plugin.get(2, b"")))
    for number, entry in _fields(content.get(3, b"")):
        if number == 1:
            pair = dict(_fields(entry))
            for kind, value in _fields(pair.get(2, b"")):
                key = pair.get(1, b"").decode("utf-8", "replace")
                found.config[key] = _plain(kind, value)
    if 4 in content:
        status = dict(_fields(content[4])).get(1, b"\0")
        found.state = _STATES.get(status[0], found.state)
    return True


def _plain(kind: int, value: bytes) -> Any:
    """A google.protobuf.Value."""
    if kind == 2:
        number = struct.unpack("<d", value)[0]
        return int(number) if float(number).is_integer() and abs(number) < 2**53 else number
    return value.decode("utf-8", "replace") if kind == 3 else bool(value[0]) if kind == 4 else None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    for number, begin, end, _ in _places(message, 0, len(message)):
        yield number, message[begin:end]


def _places(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, begin, end and wire type of each field of a message of protocol buffers.

    Raises:
        ValueError, IndexError: it is none.
    """
    while place < end:
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 2:
            length, place = _varint(data, place)
            stop = place + length
        elif wire == 0:
            stop = _varint(data, place)[1]
        elif wire in (1, 5):
            stop = place + (8 if wire == 1 else 4)
        else:
            raise ValueError("a group, or no message")
        if stop > end:
            raise ValueError("a field ends beyond its message")
        yield key >> 3, place, stop, wire
        place = stop


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")


def _table() -> NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(0x82F63B78), values >> 1).astype(np.uint32)
    return values


_CRC32C = _table()


def _masked_crc(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The masked CRC-32C of each row, as records have it."""
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crc = _CRC32C[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _uint32(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(rows).view("<u4")[:, 0]


def _sound(data: bytes, begin: int, length: int) -> bool:
    """Whether one record's checksums are right; of long ones only that of the length, which is read on."""
    if not _sound_length(data, begin):
        return False
    if length > 65536:  # an image or a graph, of which nothing is kept
        return True
    body = np.frombuffer(data, np.uint8, length + 4, begin)[None]
    return bool(_masked_crc(body[:, :-4])[0] == _uint32(body[:, -4:])[0])


def _sound_length(data: bytes, begin: int) -> bool:
    head = np.frombuffer(data, np.uint8, 12, begin - 12)[None]
    return bool(_masked_crc(head[:, :8])[0] == _uint32(head[:, 8:])[0])
