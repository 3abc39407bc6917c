"""The text that experiments train on, with no network at run time, and what becomes of it before it is tokens.

- ``licenses``: licence texts of the scancode project. The package `licensedcode-data` (data CC-BY-4.0) holds 2,310,
  each a file of YAML front matter and text. About 4 MB of them, chosen by a hash of their names, are folded to 96
  characters (printable ASCII and newline) and split by near-duplicate group: a licence and its variants stay on one
  side, since a random split leaks.
- ``licenses-all``: all of them, in the same way.
- ``sympy``: the sources of the package of that name, one after the other in the order of their names.
- a text file of one's own (`load_text`), of any size.

The last tenth of the latter two is held out. A text becomes characters, bytes or BPE (`altgrad.training.tokens`), and
lies on the disk (`altgrad.training.corpus`).
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from altgrad.config import UsageError
from altgrad.training.corpus import Corpus, Prepared, prepared, write
from altgrad.training.tokens import (
    BLOCK,
    FOLDED,
    decoded,
    encoded,
    fold,
    folded,
    learn_bpe,
    starts_of_characters,
    tokenizers_version,
    tokens,
)

PACKAGE = "licensedcode-data"
SYMPY = "1.14.0"
"""The version of sympy whose sources are a data set."""

CHARACTERS = 4_000_000
VALIDATION_SHARE = 0.1
SHORTEST = 1000  # tokens of a text of one's own
_VERSION = 1  # of the preparation below: raise it when the same source would give other tokens
_SHINGLE_WORDS = 8
_SAME_GROUP = 0.3  # share of the shorter text's shingles that two near-duplicates have in common


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


@dataclass(frozen=True)
class Source:
    """A text before it is tokens.

    Attributes:
        name: of the data.
        where: what an error begins with.
        about: for the fingerprint; but for `name` it decides the content.
        alphabet: the bytes that it may have.
        write: writes its tokens, "characters" or "bytes", the training split first; returns how many each split has,
            and more for the fingerprint.
    """

    name: str
    where: str
    about: dict[str, Any]
    alphabet: bytes
    write: Callable[[BinaryIO, str], tuple[int, int, dict[str, Any]]]


def load_corpus(name: str = "licenses", tokenizer: str = "characters", vocabulary: int | None = None) -> Corpus:
    """The data set called `name`, from the cache or prepared now (some seconds) and cached.

    Args:
        name: "licenses", "licenses-all" or "sympy".
        tokenizer: "characters" (of folded text), "bytes" or "bpe".
        vocabulary: number of tokens of "bpe".

    Raises:
        UsageError: the package with the data is missing or of another version, or the text does not give such tokens.
    """
    if name == "file":
        raise UsageError("data: 'file' is a text of your own; give it with --data FILE, or set data=licenses")
    everything = partial(_licences, "licenses-all", None)
    sources: dict[str, Callable[[], Any]] = {"licenses": _licences, "licenses-all": everything, "sympy": _sympy}
    if name not in sources:
        *others, last = map(repr, sources)
        raise UsageError(f"data: {name!r} is not a data set; use {', '.join(others)} or {last}")
    return _load(sources[name](), tokenizer, vocabulary)


def load_text(path: Path, tokenizer: str = "characters", vocabulary: int | None = None) -> Corpus:
    """A UTF-8 text file as a corpus, read a block at a time, its last tenth held out.

    "characters" are those of the text folded to 96, and the last tenth is of these; "bytes" and "bpe" are of the text
    as it is, without a byte order mark, and the last tenth is of its bytes, from a whole character on.

    The fingerprint has the file's name without its folder, the sha256 of what is trained on and of the file, and for
    "characters" the share that have no ASCII likeness and were left out (`left_out`).

    Raises:
        UsageError: no such file, not UTF-8, fewer than `SHORTEST` characters or bytes are left, or it does not give
            such tokens; one line that names it.
    """
    where = f"--data {path}"

    def blocks() -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
        except FileNotFoundError:
            raise UsageError(f"{where}: no such file; give the path of a UTF-8 text file") from None
        except OSError as error:
            raise UsageError(f"{where}: cannot be read ({error.strerror}); give a UTF-8 text file") from None

    total = hashlib.sha256()
    for block in blocks():
        total.update(block)
    about = {"name": re.sub(r"[^ -~]", "_", path.name)[:80], "file_sha256": total.hexdigest()}
    return _load(_text("file", where, about, blocks), tokenizer, vocabulary)


def _load(source: Source, tokenizer: str, vocabulary: int | None) -> Corpus:
    about = {key: value for key, value in source.about.items() if key != "name"}
    key: list[Any] = [source.name, about, tokenizer, _VERSION]

    def build(file: BinaryIO) -> Prepared:
        train, _, more = source.write(file, tokenizer)
        every = np.arange(256, dtype=np.uint8)
        lengths = starts_of_characters(every) if tokenizer == "bytes" else np.ones(len(FOLDED))
        return Prepared(train, lengths.astype(np.int64), more)

    def build_bpe(file: BinaryIO) -> Prepared:
        text = _load(source, "bytes", None)
        bpe = learn_bpe(text.train, vocabulary or 0, source.alphabet, source.where)
        train, _ = (write(file, encoded(split, bpe)) for split in (text.train, text.validation))
        learned = bpe.encoder.to_str()
        more = {"tokenizer_sha256": hashlib.sha256(learned.encode()).hexdigest()}
        if "documents" in text.fingerprint:
            more["documents"] = text.fingerprint["documents"]
        return Prepared(train, bpe.lengths, more, {"tokenizer.json": learned})

    if tokenizer == "bpe":
        package = {"tokenizer_package": f"tokenizers {tokenizers_version()}"}
        corpus = prepared(f"{source.name}-bpe-{vocabulary}", [*key, vocabulary, package], build_bpe)
    else:
        package = {}
        corpus = prepared(f"{source.name}-{tokenizer}", key, build)
    fingerprint = source.about | corpus.fingerprint
    if tokenizer != "characters":
        sizes = {"train_tokens": int(corpus.train.size), "validation_tokens": int(corpus.validation.size)}
        fingerprint |= {"tokenizer": tokenizer, "vocabulary": len(corpus.lengths), **sizes, **package}
    return replace(corpus, fingerprint=fingerprint)


def _text(name: str, where: str, about: dict[str, Any], blocks: Callable[[], Iterable[bytes]]) -> Source:
    """A text of UTF-8 in blocks, its last tenth held out."""

    def held_out(total: int, what: str) -> int:
        if total < SHORTEST:
            raise UsageError(f"{where}: {total} {what}; give a text of at least {SHORTEST}")
        return int(total * VALIDATION_SHARE)

    def write_characters(file: BinaryIO) -> tuple[int, int, dict[str, Any]]:
        total = visible = kept = 0

        def texts() -> Iterator[str]:
            nonlocal visible
            for text in decoded(blocks(), where):
                visible += len("".join(text.split()))
                yield text

        for part in folded(texts()):
            characters = tokens(part)
            total += write(file, [characters])
            kept += int(np.count_nonzero(characters > 1))
        held = held_out(total, "characters are left when it is folded to ASCII")
        return total - held, held, {"left_out": round(max(1 - kept / max(visible, 1), 0.0), 4)}

    def write_bytes(file: BinaryIO) -> tuple[int, int, dict[str, Any]]:
        total = write(file, (_bytes(text.encode()) for text in decoded(blocks(), where)))
        train = total - held_out(total, "bytes are all of it")
        file.seek(train)
        train += int(np.argmax(starts_of_characters(_bytes(file.read(4)))))
        return train, total - train, {}

    def write_tokens(file: BinaryIO, tokenizer: str) -> tuple[int, int, dict[str, Any]]:
        return write_characters(file) if tokenizer == "characters" else write_bytes(file)

    return Source(name, where, about, bytes(range(256)), write_tokens)


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


def _sympy() -> Source:
    version = _installed("sympy")
    if version != SYMPY:
        other = f"sympy {version} is installed, and the data set is of {SYMPY}"
        raise UsageError(f"data: {other}; run: pip install sympy=={SYMPY}")
    found = [file for file in metadata.files("sympy") or () if file.parts[0] == "sympy" and file.suffix == ".py"]
    paths = [Path(str(file.locate())) for file in sorted(found, key=lambda file: file.as_posix())]

    def blocks() -> Iterator[bytes]:
        try:
            yield from (path.read_bytes() for path in paths)
        except OSError as error:
            gone = f"a source of sympy cannot be read ({error.strerror})"
            raise UsageError(f"data: {gone}; run: pip install --force-reinstall sympy=={SYMPY}") from None

    about = {"name": "sympy", "package": f"sympy {version}", "licence": "BSD-3-Clause", "documents": len(paths)}
    return _text("sympy", "data: sympy", about, blocks)


def _licences(name: str = "licenses", most: int | None = CHARACTERS) -> Source:
    """About `most` characters of licences, or all of them."""
    version = _installed(PACKAGE)

    def write_tokens(file: BinaryIO, tokenizer: str) -> tuple[int, int, dict[str, Any]]:
        *splits, documents = _prepare(most)
        as_tokens = tokens if tokenizer == "characters" else _bytes
        train, validation = (write(file, [as_tokens(split)]) for split in splits)
        return train, validation, {"documents": documents}

    about = {"name": name, "package": f"{PACKAGE} {version}", "licence": "CC-BY-4.0"}
    return Source(name, f"data: {name}", about, FOLDED, write_tokens)


def _installed(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise UsageError(f"data: the package {package} is missing; run: pip install 'altgrad[train]'") from None


def _prepare(most: int | None) -> tuple[bytes, bytes, int]:
    """About `most` characters of licences, folded: training split, validation split, and how many there are."""
    files = [file for file in metadata.files(PACKAGE) or () if file.match("licenses/*.LICENSE")]
    files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
    texts: list[bytes] = []
    total = 0
    for file in files:
        if most is not None and total >= most:
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
    train, validation = (b"".join(split) for split in splits)
    return train, validation, len(texts)
