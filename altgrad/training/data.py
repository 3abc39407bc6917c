"""The text that experiments train on: licence texts of the scancode project, with no network at run time.

The package `licensedcode-data` (data CC-BY-4.0) holds 2,310 licence texts, each a file of YAML front matter and text.
About 4 MB of them, chosen by a hash of their names, are folded to 96 characters (printable ASCII and newline) and
split by near-duplicate group: a licence and its variants stay on one side, since a random split leaks.

A text file of one's own can take their place (`load_text`).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad.config import UsageError

VOCABULARY = 96
PACKAGE = "licensedcode-data"
CHARACTERS = 4_000_000
VALIDATION_SHARE = 0.1
SHORTEST = 1000  # characters of a text of one's own
_VERSION = 1  # of the preparation below: raise it when the same package would give other text
_SHINGLE_WORDS = 8
_SAME_GROUP = 0.3  # share of the shorter text's shingles that two near-duplicates have in common


@dataclass(frozen=True)
class Corpus:
    """Characters as uint8 in [0, 96): 0 is newline, 1 to 95 are ASCII 32 to 126.

    Attributes:
        train, validation: [characters]; no near-duplicate of a validation text is in train.
        fingerprint: name, sha256 over both splits, package version, documents, characters and licence of the data.
    """

    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    fingerprint: dict[str, Any]


def fold(text: str) -> bytes:
    """`text` in 96 characters: accents and typographic marks become their ASCII likeness, other characters go."""
    text = text.translate(_TYPOGRAPHY).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    text = unicodedata.normalize("NFKD", text)
    text = re.sub(r"[^\n -~]", "", text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text))
    return text.strip("\n").encode("ascii") + b"\n\n"


def tokens(folded: bytes) -> NDArray[np.uint8]:
    """Folded text as token numbers in [0, 96)."""
    raw = np.frombuffer(folded, dtype=np.uint8)
    return np.where(raw == ord("\n"), 0, raw - 31).astype(np.uint8)


def body(document: str) -> str:
    """A licence file without its YAML front matter (between the first two lines that are ``---``)."""
    parts = re.split(r"^---\s*$", document, maxsplit=2, flags=re.MULTILINE)
    return parts[2] if len(parts) == 3 and not parts[0].strip() else document


def near_duplicate_groups(texts: list[bytes]) -> list[int]:
    """The group of each text: texts that share 30% of the shorter one's 8-word shingles are linked, groups are chains.

    Groups are numbered in the order of their first texts.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links: list[tuple[int, int]] = []
    holders: defaultdict[int, list[int]] = defaultdict(list)
    sizes: list[int] = []
    for index, text in enumerate(texts):
        words = re.findall(rb"[a-z0-9]+", text.lower())
        ends = range(max(len(words) - _SHINGLE_WORDS + 1, 1))
        shingles = {zlib.crc32(b" ".join(words[start : start + _SHINGLE_WORDS])) for start in ends}
        sizes.append(len(shingles))
        shared = Counter(other for shingle in shingles for other in holders[shingle])
        for other, count in shared.items():
            if count >= _SAME_GROUP * min(sizes[index], sizes[other]):
                links.append((index, other))
        for shingle in shingles:
            holders[shingle].append(index)
    ends_of_links = np.array(links, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), tuple(ends_of_links)), shape=(len(texts), len(texts)))
    groups: list[int] = connected_components(graph, directed=False)[1].tolist()
    return groups


def load_corpus(name: str = "licenses") -> Corpus:
    """The data set called `name`, from the cache or prepared now (some seconds) and cached.

    The cache is one file in ``$XDG_CACHE_HOME/altgrad`` (default ``~/.cache/altgrad``); processes may build it at the
    same time. Where the folder cannot be written the data are prepared each time.

    Raises:
        UsageError: the package with the data is not installed, or holds no licence texts.
    """
    if name == "file":
        raise UsageError("data: 'file' is a text of your own; give it with --data FILE, or set data=licenses")
    if name != "licenses":
        raise UsageError(f"data: {name!r} is not a data set; use 'licenses'")
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UsageError(f"data: the package {PACKAGE} is missing; run: pip install 'altgrad[train]'") from None
    path = cache_folder() / f"licenses-{version}-{_VERSION}.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            train, validation, documents = stored["train"], stored["validation"], int(stored["documents"])
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        train, validation, documents = _prepare()
        _store(path, train=train, validation=validation, documents=np.array(documents))
    fingerprint = {
        "name": name,
        "sha256": _digest(train, validation),
        "package": f"{PACKAGE} {version}",
        "licence": "CC-BY-4.0",
        "documents": documents,
        "train_characters": int(train.size),
        "validation_characters": int(validation.size),
    }
    return Corpus(train, validation, fingerprint)


def load_text(path: Path) -> Corpus:
    """A UTF-8 text file as a corpus: folded to 96 characters like the licences, its last tenth held out.

    The fingerprint has the file's name without its folder, the sha256 of what is trained on and of the file, and the
    share of characters that have no ASCII likeness and were left out (`left_out`).

    Raises:
        UsageError: no such file, not UTF-8, or fewer than `SHORTEST` characters are left; one line that names it.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"--data {path}: no such file; give the path of a UTF-8 text file") from None
    except UnicodeDecodeError as error:
        not_text = f"not UTF-8 text (byte {error.start})"
        raise UsageError(f"--data {path}: {not_text}; convert it, for example with iconv") from None
    except OSError as error:
        raise UsageError(f"--data {path}: cannot be read ({error.strerror}); give a UTF-8 text file") from None
    characters = tokens(fold(text))
    if characters.size < SHORTEST:
        short = f"{characters.size} characters are left when it is folded to ASCII"
        raise UsageError(f"--data {path}: {short}; give a text of at least {SHORTEST}")
    visible = sum(not character.isspace() for character in text)
    kept = int(np.count_nonzero(characters > 1))
    train, validation = np.split(characters, [characters.size - int(characters.size * VALIDATION_SHARE)])
    fingerprint = {
        "name": re.sub(r"[^ -~]", "_", path.name)[:80],
        "sha256": _digest(train, validation),
        "file_sha256": hashlib.sha256(raw).hexdigest(),
        "left_out": round(max(1 - kept / max(visible, 1), 0.0), 4),
        "train_characters": int(train.size),
        "validation_characters": int(validation.size),
    }
    return Corpus(train, validation, fingerprint)


def cache_folder() -> Path:
    """Where prepared data lie: ``$XDG_CACHE_HOME/altgrad``, default ``~/.cache/altgrad``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "altgrad"


def _digest(train: NDArray[np.uint8], validation: NDArray[np.uint8]) -> str:
    return hashlib.sha256(train.tobytes() + b"\xff" + validation.tobytes()).hexdigest()


def _prepare() -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    files = [file for file in metadata.files(PACKAGE) or () if file.match("licenses/*.LICENSE")]
    files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
    texts: list[bytes] = []
    total = 0
    for file in files:
        if total >= CHARACTERS:
            break
        text = fold(body(Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")))
        if len(text) > 200:
            texts.append(text)
            total += len(text)
    if not texts:
        raise UsageError(f"data: {PACKAGE} holds no licence texts; run: pip install --force-reinstall {PACKAGE}")
    groups = near_duplicate_groups(texts)
    sizes = Counter[int]()
    for group, text in zip(groups, texts, strict=True):
        sizes[group] += len(text)
    held_out: set[int] = set()
    held_size = 0
    for group in sorted(sizes):  # the order of the hash: no group is favoured; large ones stay in train
        if sizes[group] <= total * VALIDATION_SHARE / 10 and held_size < total * VALIDATION_SHARE:
            held_out.add(group)
            held_size += sizes[group]
    splits: tuple[list[bytes], list[bytes]] = ([], [])
    for group, text in zip(groups, texts, strict=True):
        splits[group in held_out].append(text)
    train, validation = (tokens(b"".join(split)) for split in splits)
    return train, validation, len(texts)


def _store(path: Path, **arrays: NDArray[Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(file.name, path)
    except OSError:
        return


_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "•": "*", "©": "(c)", "®": "(r)", "™": "(tm)"}
)
