"""A text as tokens that lie on the disk and are mapped into memory: no run holds its whole text.

Prepared texts are cached in ``$XDG_CACHE_HOME/altgrad`` (default ``~/.cache/altgrad``), each in a folder named after
what decides its content: ``tokens``, training split first, ``about.json``, and of BPE ``tokenizer.json``. A folder is
written under another name and renamed when it is whole; its tokens are checked against their sha256 each time.
Processes may prepare the same text at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from altgrad.config import UsageError, digest
from altgrad.training.tokens import BLOCK, FOLDED, Tokens, kind


@dataclass(frozen=True)
class Corpus:
    """A text as token numbers, uint8 or uint16, in two splits.

    The 96 characters of folded text are 0 for newline and 1 to 95 for ASCII 32 to 126; bytes are themselves.

    Attributes:
        train, validation: [tokens]; no near-duplicate of a validation text of the licences is in train.
        fingerprint: name, sha256 over both splits, source, and size of the data.
        lengths: how many characters begin in each token, [vocabulary].
    """

    train: Tokens
    validation: Tokens
    fingerprint: dict[str, Any]
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.ones(len(FOLDED), np.int64))

    def characters(self, tokens: Tokens) -> int:
        """How many characters begin in some tokens."""
        blocks = (tokens[start : start + BLOCK] for start in range(0, tokens.size, BLOCK))
        return int(sum(int(self.lengths[block].sum()) for block in blocks))


@dataclass
class Prepared:
    """What is prepared, as `build` of `prepared` gives it.

    Attributes:
        train: number of tokens of the training split; the others are the validation split.
        lengths: of `Corpus`.
        about: for the fingerprint.
        files: text to keep beside the tokens, by name.
    """

    train: int
    lengths: NDArray[np.int64]
    about: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)


Build = Callable[[BinaryIO], Prepared]
_DAMAGED = (OSError, ValueError, KeyError, TypeError)
"""What reading a folder raises that is missing, or not what was written."""


def prepared(name: str, key: Any, build: Build) -> Corpus:
    """The text that `key` identifies, from the cache or built now and cached.

    Where the cache cannot be written the text is built anew each time, in the folder for temporary files.

    Args:
        name: in the name of the folder.
        key: what decides the content, JSON-ready.
        build: writes the tokens into a file, training split first, in the dtype of their number (`tokens.kind`).

    Raises:
        UsageError: no folder can be written.
    """
    cache = cache_folder()
    folder = cache / f"{re.sub(r'[^a-z0-9-]', '-', name.lower())[:40]}-{digest(key)[:16]}"
    with suppress(*_DAMAGED):
        return _opened(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = _built(Path(tempfile.mkdtemp(dir=cache, prefix=f"{folder.name}.")), build)
        try:
            temporary.rename(folder)
        except OSError:  # one is there: it is damaged, or another process was faster
            with suppress(*_DAMAGED):
                corpus = _opened(folder)
                shutil.rmtree(temporary)
                return corpus
            shutil.rmtree(folder)
            temporary.rename(folder)
        return _opened(folder)
    except OSError:  # there is no writing into the cache
        pass
    try:
        temporary = _built(Path(tempfile.mkdtemp()), build)
    except OSError as error:
        full = f"the prepared text cannot be written ({os.strerror(error.errno or 0)})"
        raise UsageError(f"{cache}: {full}; make room, or set XDG_CACHE_HOME to another folder") from error
    corpus = _opened(temporary)
    shutil.rmtree(temporary, ignore_errors=True)  # what is mapped stays
    return corpus


def cache_folder() -> Path:
    """Where prepared data lie: ``$XDG_CACHE_HOME/altgrad``, default ``~/.cache/altgrad``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "altgrad"


def write(file: BinaryIO, blocks: Iterable[Tokens]) -> int:
    """Write tokens as they come; returns how many."""
    written = 0
    for block in blocks:
        file.write(block.tobytes())
        written += block.size
    return written


def _built(folder: Path, build: Build) -> Path:
    try:
        with (folder / "tokens").open("w+b") as file:
            found = build(file)
        train = found.train
        sha256 = _digest(folder / "tokens", train * kind(len(found.lengths)).itemsize)
        corpus = _mapped(folder, train, found.lengths, found.about)
        sizes = {f"{name}_characters": corpus.characters(getattr(corpus, name)) for name in ("train", "validation")}
        for name, text in found.files.items():
            (folder / name).write_text(text, "utf-8")
        stored = {"train": train, "lengths": found.lengths.tolist(), "sha256": sha256, "about": found.about | sizes}
        (folder / "about.json").write_text(json.dumps(stored))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _opened(folder: Path) -> Corpus:
    """The text in a folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is none, or it is not what was written.
    """
    stored = json.loads((folder / "about.json").read_text())
    lengths = np.array(stored["lengths"], np.int64)
    if _digest(folder / "tokens", stored["train"] * kind(len(lengths)).itemsize) != stored["sha256"]:
        raise ValueError("not what was written")
    return _mapped(folder, stored["train"], lengths, {"sha256": stored["sha256"], **stored["about"]})


def _mapped(folder: Path, train: int, lengths: NDArray[np.int64], fingerprint: dict[str, Any]) -> Corpus:
    text = np.asarray(np.memmap(folder / "tokens", kind(len(lengths)), "r"))
    return Corpus(text[:train], text[train:], fingerprint, lengths)


def _digest(path: Path, train: int) -> str:
    """Of the tokens of both splits with a byte 255 between them; `train` is in bytes."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(min(BLOCK, train)):
            total.update(part)
            train -= len(part)
        total.update(b"\xff")
        while part := file.read(BLOCK):
            total.update(part)
    return total.hexdigest()
