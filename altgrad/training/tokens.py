"""Text as tokens, a block at a time: the 96 characters of folded text, the bytes of UTF-8, or byte-pair encoding (BPE).

Nothing here holds a whole text: what takes blocks gives the same tokens however the text is cut into them, but for BPE,
which reads blocks of `LINES` bytes that end with a line.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altgrad.config import UsageError

BLOCK = 1 << 20  # bytes
LINES = 1 << 16  # bytes; `tokenizers` keeps 256 such blocks at a time
Tokens = NDArray[np.uint8] | NDArray[np.uint16]
FOLDED = bytes([10, *range(32, 127)])
"""The 96 characters of folded text, in the order of their tokens."""


def fold(text: str) -> bytes:
    """`text` in 96 characters: accents and typographic marks become their ASCII likeness, other characters go."""
    return b"".join(folded([text]))


def folded(texts: Iterable[str]) -> Iterator[bytes]:
    """The parts of a text folded: together what `fold` makes of the whole, wherever it was cut."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    column, held, begun = 0, "", False
    for text, final in _with_last(texts):
        text = newlines.decode(text, final=final).translate(_TYPOGRAPHY)  # type: ignore[arg-type]
        expanded = ("x" * column + text).expandtabs(4)
        line, text = expanded.rpartition("\n")[2], expanded[column:]
        column = len(line) % 4
        held += re.sub(r"[^\n -~]", "", unicodedata.normalize("NFKD", text))
        end = len(held.rstrip(" \n"))  # what the blanks at the end become, the next part decides
        ready, held = _fewer_blanks(held[:end]), held[end:]
        if ready:
            yield (ready if begun else ready.lstrip("\n")).encode("ascii")
            begun = True
    rest = _fewer_blanks(held).rstrip("\n")
    yield (rest if begun else rest.lstrip("\n")).encode("ascii") + b"\n\n"


def _with_last(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The parts, each with whether it is the last; the last is empty."""
    for text in texts:
        yield text, False
    yield "", True


def _fewer_blanks(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text))


def tokens(folded: bytes) -> NDArray[np.uint8]:
    """Folded text as token numbers in [0, 96)."""
    raw = np.frombuffer(folded, dtype=np.uint8)
    return np.where(raw == ord("\n"), 0, raw - 31).astype(np.uint8)


def decoded(blocks: Iterable[bytes], where: str) -> Iterator[str]:
    """The text of UTF-8 in blocks, without a byte order mark.

    Raises:
        UsageError: it is not UTF-8; one line that begins with `where` and names the first byte that is not.
    """
    decoder, done, begun = codecs.getincrementaldecoder("utf-8")(), 0, False
    for block in _and_the_end(blocks):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            not_text = f"not UTF-8 text (byte {done - waiting + error.start})"
            raise UsageError(f"{where}: {not_text}; convert it, for example with iconv") from None
        done += len(block)
        if text:
            yield text if begun else text.removeprefix("\ufeff")
            begun = True


def _and_the_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield from (block for block in blocks if block)
    yield b""


def kind(vocabulary: int) -> np.dtype[Any]:
    """The dtype of so many tokens."""
    return np.dtype(np.uint8 if vocabulary <= 256 else "<u2")


def starts_of_characters(text: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes of UTF-8 begin a character."""
    return (text & 0xC0) != 0x80


class Bpe(NamedTuple):
    """A `tokenizers.Tokenizer`, and how many characters begin in each of its tokens, [vocabulary]."""

    encoder: Any
    lengths: NDArray[np.int64]


def tokenizers_version() -> str:
    """The version of the package that learns BPE.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        raise UsageError("tokenizer: bpe needs the package tokenizers; run: pip install 'altgrad[bpe]'") from None


def learn_bpe(text: Tokens, vocabulary: int, alphabet: bytes, where: str) -> Bpe:
    """A byte-level BPE of `vocabulary` tokens, learned from the bytes of a training text alone.

    Args:
        text: bytes of UTF-8, [bytes]; may be a memory map.
        vocabulary: number of tokens: those of `alphabet` and one a merge.
        alphabet: the bytes that any text may have.
        where: what an error begins with.

    Raises:
        UsageError: the text does not give so many tokens.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    if vocabulary <= len(alphabet):
        least = f"bpe begins with {len(alphabet)} tokens of one byte each"
        raise UsageError(f"{where}: vocabulary={vocabulary}, and {least}; make vocabulary larger")
    encoder: Any = Tokenizer(BPE())
    encoder.pre_tokenizer, encoder.decoder = ByteLevel(add_prefix_space=False), Decoder()
    letters = _letters()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=[letters[byte] for byte in alphabet],
        special_tokens=[],
        show_progress=False,
    )
    encoder.train_from_iterator(lines(text), trainer)
    if (found := encoder.get_vocab_size()) != vocabulary:
        few = f"its training text gives {found} tokens, fewer than vocabulary={vocabulary}"
        raise UsageError(f"{where}: {few}; make vocabulary smaller")
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    of_token = [bytes(byte_of[letter] for letter in encoder.id_to_token(token)) for token in range(vocabulary)]
    lengths = [int(starts_of_characters(np.frombuffer(each, np.uint8)).sum()) for each in of_token]
    return Bpe(encoder, np.array(lengths, np.int64))


def encoded(text: Tokens, bpe: Bpe) -> Iterator[Tokens]:
    """The tokens of a text of bytes, block by block."""
    for block in lines(text):
        yield np.array(bpe.encoder.encode(block).ids, kind(len(bpe.lengths)))


def lines(text: Tokens) -> Iterator[str]:
    """A text of bytes in blocks of about `LINES` bytes that end with a line, where lines are no longer than that."""
    rest = ""
    for part in decoded((text[start : start + LINES].tobytes() for start in range(0, text.size, LINES)), "text"):
        block = rest + part
        end = block.rfind("\n") + 1 or len(block)
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest


def _letters() -> list[str]:
    """The letter that stands for each byte in a byte-level BPE (GPT-2's table): visible ones stand for themselves."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "•": "*", "©": "(c)", "®": "(r)", "™": "(tm)"}
)
