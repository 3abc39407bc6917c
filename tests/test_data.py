"""A text becomes tokens without being held whole, keeps its validation text apart, and says how much of it was read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from altgrad.cli import main  # noqa: E402
from altgrad.config import ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.runs import RunRecord, read_run  # noqa: E402
from altgrad.training import Corpus, data, load_corpus, load_text, loop, train  # noqa: E402
from altgrad.training.corpus import Prepared, prepared  # noqa: E402
from altgrad.training.loop import Batches  # noqa: E402
from altgrad.training.tokens import FOLDED, decoded, encoded, folded, learn_bpe, lines  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "warmup_steps": 2,
    "eval_every": 2,
    "eval_batches": 2,
    "layers_every": 0,
    "model": {"layers": 1, "dim": 16, "heads": 2, "context": 16},
}
E4M3 = {"quantize": dict.fromkeys(("weight", "activation", "grad_output"), "e4m3")}
TEXT = "Ποιητής, naïve — and a line of words:\n\tthe quick brown fox, the lazy dog\n" * 300


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8", newline="")
    return path


def config(**given: Any) -> ExperimentConfig:
    return parse_config({**SMALL, **given}, source="test")


def corpus(validation: int = 4_000) -> Corpus:
    text = np.random.default_rng(0).integers(0, 96, 8_000 + validation).astype(np.uint8)
    return Corpus(text[:8_000], text[8_000:], {"name": "drawn", "sha256": "0" * 64})


def run(out: Path, text: Corpus, **given: Any) -> RunRecord:
    return read_run(train(config(**given), out, corpus=text, progress=False).path)


class TestFolding:
    """The stream of folded parts is the whole text folded, wherever it was cut."""

    @staticmethod
    def whole(text: str) -> bytes:
        """Folding as one would write it for a text that is held whole."""
        for before, after in {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "•": "*"}.items():
            text = text.replace(before, after)
        for before, after in {"©": "(c)", "®": "(r)", "™": "(tm)", "\r\n": "\n", "\r": "\n"}.items():
            text = text.replace(before, after)
        text = unicodedata.normalize("NFKD", text.expandtabs(4))
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", re.sub(r"[^\n -~]", "", text)))
        return text.strip("\n").encode() + b"\n\n"

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.text(st.sampled_from("ab \n\r\t\u00e9\u2014\u00a9\u00a8\ufb01\u6f22\u0301\ud55c"), max_size=8),
            max_size=8,
        )
    )
    def test_wherever_it_is_cut(self, parts: list[str]) -> None:
        assert b"".join(folded(parts)) == self.whole("".join(parts)) == data.fold("".join(parts))


class TestBytes:
    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=40), st.integers(1, 7))
    def test_a_text_in_blocks_is_what_python_decodes(self, text: str, size: int) -> None:
        raw = text.encode("utf-8")
        blocks = (raw[start : start + size] for start in range(0, len(raw), size))
        assert "".join(decoded(blocks, "text")) == raw.decode("utf-8-sig")

    def test_tokens_are_the_bytes_of_utf8_and_the_split_is_between_characters(self, file: Path) -> None:
        file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
        found = load_text(file, "bytes")
        train, validation = found.train.tobytes(), found.validation.tobytes()
        assert train + validation == TEXT.encode()
        characters = len(train.decode()), len(validation.decode())  # each by itself: no character is cut
        assert 0 <= len(TEXT.encode()) // 10 - len(validation) <= 3
        fingerprint = found.fingerprint
        assert (fingerprint["train_characters"], fingerprint["validation_characters"]) == characters
        assert (fingerprint["train_tokens"], fingerprint["vocabulary"]) == (len(train), 256)
        assert fingerprint["sha256"] == hashlib.sha256(train + b"\xff" + validation).hexdigest()
        assert fingerprint["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


class TestBpe:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tokenizers")

    def test_the_library_decodes_what_was_encoded(self) -> None:
        raw = np.frombuffer(TEXT.encode(), np.uint8)
        bpe = learn_bpe(raw, 300, bytes(range(256)), "text")
        assert bpe.encoder.get_vocab_size() == 300 == len(bpe.lengths)
        other = "never seen: 漢字 \U0001f600\r\n  \t" + TEXT[:500]
        for text in (TEXT, other):
            tokens = np.concatenate(list(encoded(np.frombuffer(text.encode(), np.uint8), bpe)))
            assert bpe.encoder.decode(tokens.tolist()) == text
            assert bpe.lengths[tokens].sum() == len(text)
        assert sum(map(len, encoded(raw, bpe))) < len(TEXT), "merges shorten the text"

    def test_a_prepared_text_is_decoded_by_the_tokenizer_beside_it(self, file: Path, tmp_path: Path) -> None:
        from tokenizers import Tokenizer

        found = load_text(file, "bpe", 300)
        (kept,) = (tmp_path / "cache").rglob("tokenizer.json")
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == found.fingerprint["tokenizer_sha256"]
        decode = Tokenizer.from_file(str(kept)).decode
        texts = [decode(split.tolist()) for split in (found.train, found.validation)]
        assert "".join(texts) == TEXT
        lengths = [found.fingerprint[f"{split}_characters"] for split in ("train", "validation")]
        assert lengths == [len(text) for text in texts]

    def test_blocks_end_with_lines_and_lose_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("altgrad.training.tokens.LINES", 100)
        blocks = list(lines(np.frombuffer((TEXT + "é" * 130).encode(), np.uint8)))
        assert "".join(blocks) == TEXT + "é" * 130
        assert all(block.endswith("\n") for block in blocks[:-3])
        assert max(map(len, blocks)) <= 200

    def test_it_is_learned_from_the_training_text_alone(self, tmp_path: Path) -> None:
        def of(text: str) -> Corpus:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
            path.write_text(text)
            return load_text(path, "bpe", 275)

        learned = "one two three four five six, seven\n" * 300
        learned, held_out, other = learned[:9000], "qqzzxx qqzzxx\n" * 72, "zero is not a one of these" * 39
        first, second = of(learned + held_out[:1000]), of(learned + other[:1000])
        assert first.characters(first.validation) == second.characters(second.validation) == 1000
        names = [text.fingerprint["tokenizer_sha256"] for text in (first, second)]
        assert names[0] == names[1], "what is held out changes nothing"
        assert np.array_equal(first.train, second.train)
        assert of(learned.replace("seven", "eight") + held_out[:1000]).fingerprint["tokenizer_sha256"] != names[0]

    def test_the_licences_begin_with_their_96_characters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [(b"licence %d\n" % index) * 40 + b"\n\n" for index in range(30)]
        split = (b"".join(texts[:27]), b"".join(texts[27:]), 30)
        monkeypatch.setattr(data, "_prepare", lambda most: split)
        monkeypatch.setattr(data, "_installed", lambda package: "1.0")
        found, plain, raw = (load_corpus("licenses", *how) for how in (("bpe", 100), ("characters",), ("bytes",)))
        assert raw.train.tobytes() == split[0]
        assert np.array_equal(plain.validation, data.tokens(split[1]))
        assert len(found.lengths) == 100
        assert len(FOLDED) == 96
        for each in (found, plain, raw):
            assert each.characters(each.train) == len(split[0])
            assert each.fingerprint["validation_characters"] == len(split[1])
            assert each.fingerprint["documents"] == 30
        with pytest.raises(UsageError, match="data: licenses: vocabulary=96, and bpe begins with 96 tokens"):
            load_corpus("licenses", "bpe", 96)
        assert len({each.fingerprint["sha256"] for each in (found, plain, raw)}) == 3


class TestSympy:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        sympy = pytest.importorskip("sympy")
        if sympy.__version__ != data.SYMPY:
            pytest.skip(f"sympy is not {data.SYMPY}")

    def test_its_sources_follow_one_another_in_the_order_of_their_names(self) -> None:
        import sympy

        found, root = load_corpus("sympy", "bytes"), Path(sympy.__file__).parent
        paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
        text = b"".join(path.read_bytes() for path in paths)
        assert len(text) > 20e6
        assert found.train.tobytes() + found.validation.tobytes() == text
        assert found.fingerprint["documents"] == len(paths)
        assert found.fingerprint["package"] == "sympy 1.14.0"
        assert found.fingerprint["sha256"] == "5bddadeb709bf743604c8bd98e9f76be99154434051dfd158398a0c348d2505d"

    def test_another_version_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data.metadata, "version", lambda name: "1.13.3")
        with pytest.raises(UsageError, match=r"sympy 1\.13\.3 is installed.* run: pip install sympy==1\.14\.0"):
            load_corpus("sympy")


LIMITED = """
import re, resource, sys
from pathlib import Path
from altgrad.training import load_text
held = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (held + (24 << 20),) * 2)
if sys.argv[2] == "whole":
    Path(sys.argv[1]).read_bytes()
else:
    found = load_text(Path(sys.argv[1]), sys.argv[2])
    print(found.train.size + found.validation.size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are told from /proc")
def test_a_text_larger_than_the_memory_is_prepared(tmp_path: Path) -> None:
    line = b"a line of forty characters, no more, ok\n"
    path = tmp_path / "large.txt"
    path.write_bytes(line * 1_000_000)

    def limited(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED.replace("\\\\", "\\"), str(path), how]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert "MemoryError" in limited("whole").stderr, "the limit is one"
    done = limited("bytes")
    assert done.stdout.strip() == str(len(line) * 1_000_000), done.stderr


def test_the_slower_of_two_processes_takes_what_the_faster_one_prepared(tmp_path: Path) -> None:
    text, built = np.arange(90, dtype=np.uint8), []

    def build(file: BinaryIO) -> Prepared:
        built.append(file.name)
        if len(built) == 1:
            assert np.array_equal(prepared("text", "key", build).train, text[:80])  # the other one, meanwhile
        file.write(text.tobytes())
        return Prepared(80, np.ones(96, np.int64), {"name": "text"})

    found = prepared("text", "key", build)
    assert len(built) == 2
    assert np.array_equal(found.validation, text[80:])
    assert len(list((tmp_path / "cache" / "altgrad").iterdir())) == 1
    assert found.fingerprint["sha256"] == hashlib.sha256(bytes(range(80)) + b"\xff" + bytes(range(80, 90))).hexdigest()
    prepared("text", "key", build)
    assert len(built) == 2, "it is read from the cache"


def test_a_cache_that_cannot_be_written_costs_the_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_text(file, "bytes")
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    found = load_text(file, "bytes")
    assert found.fingerprint == kept.fingerprint
    assert np.array_equal(found.train, kept.train)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UsageError, match=r"No space left on device.*XDG_CACHE_HOME"):
        load_text(file, "bytes")


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (None, ["tokenizer=bytes"], "text.txt: no such file"),
        (b"", ["tokenizer=bytes"], "text.txt: 0 bytes are all of it; give a text of at least 1000"),
        (b"", [], "are left when it is folded"),
        (b"fine " * 999 + b"\xff", ["tokenizer=bpe", "vocabulary=512"], "text.txt: not UTF-8 text .byte 4995"),
        (
            b"fine\n" * 999,
            ["tokenizer=bpe", "vocabulary=512"],
            "text.txt: its training text gives .* vocabulary=512; make",
        ),
        (
            b"fine\n" * 999,
            ["tokenizer=bpe", "vocabulary=256"],
            "text.txt: vocabulary=256, and bpe begins with 256 tokens",
        ),
        (b"fine\n" * 999, ["tokenizer=bpe"], "vocabulary is the number of tokens of tokenizer 'bpe'"),
        (b"fine\n" * 999, ["vocabulary=512"], "vocabulary is the number of tokens of tokenizer 'bpe'"),
        (b"fine\n" * 999, ["tokenizer=words"], "tokenizer"),
    ],
)
def test_a_mistake_is_one_line_before_there_is_a_record(
    content: bytes | None, keys: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if any("bpe" in key for key in keys):
        pytest.importorskip("tokenizers")
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    arguments = ["train", str(ROOT / "experiments/configs/defaults.yaml"), "--data", str(tmp_path / "text.txt")]
    arguments += ["--out", str(tmp_path / "runs"), *(word for key in keys for word in ("--set", key))]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_of_tokenizers_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise data.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.metadata, "version", missing)
    with pytest.raises(UsageError, match=r"bpe needs the package tokenizers; run: pip install 'altgrad\[bpe\]'"):
        load_text(file, "bpe", 300)


def test_data_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bytes gives 256 tokens, and the data has 96"):
        run(tmp_path / "runs", corpus(), tokenizer="bytes")
    assert not (tmp_path / "runs").exists()


class TestFinalEvaluation:
    """The last evaluation reads more of the held-out text, once, and nothing else of a run is changed by it."""

    @settings(max_examples=200, deadline=None)
    @given(st.integers(20, 3000), st.integers(1, 5), st.integers(2, 17), st.integers(1, 3000))
    def test_its_windows_are_even_disjoint_and_enough(self, size: int, batch: int, context: int, wanted: int) -> None:
        model = SMALL["model"] | {"context": context}
        asked = config(batch_size=batch, model=model, final_eval_characters=wanted)
        starts = Batches(corpus(size), asked, torch.device("cpu")).final
        read = [set(range(start + 1, start + context + 1)) for start in starts.tolist()]
        assert starts.size % batch == 0
        assert min(map(min, read)) == 1
        assert max(map(max, read)) <= size - 1
        fit = (size - 1) // (context * batch)  # whole batches of windows that do not overlap
        if fit:
            assert len(set().union(*read)) == starts.size * context, "each character is read once"
            assert starts.size // batch == min(fit, -(-wanted // (batch * context)))
            gaps = np.diff(starts)
            assert not len(gaps) or gaps.max() - gaps.min() <= 1
        else:
            assert starts.size == batch

    @pytest.mark.parametrize("quantized", [{}, E4M3], ids=["fp32", "e4m3"])
    def test_it_is_the_loss_over_these_windows(
        self, quantized: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built: list[GPT] = []
        original = loop.build_model
        monkeypatch.setattr(loop, "build_model", lambda *given: built.append(original(*given)) or built[-1])
        text = corpus()
        record = run(tmp_path, text, final_eval_characters=1_000, **quantized)
        losses = []
        count, last = 64, 4_000 - 16 - 1  # 16 batches of 4 windows of 16
        starts = [(number * last) // (count - 1) for number in range(count)]
        for first in range(0, count, 4):
            rows = np.array([text.validation[start : start + 17] for start in starts[first : first + 4]], np.int64)
            with torch.no_grad():
                losses.append(float(built[0].loss(torch.tensor(rows[:, :-1]), torch.tensor(rows[:, 1:]))))
        summary, history = record.run["summary"], record.history
        assert summary["val_loss"] == sum(losses) / len(losses)
        assert history["final_val_loss"].dropna().tolist() == [summary["val_loss"]]
        assert history.loc[history["final_val_loss"].notna(), "step"].tolist() == [6]
        assert (summary["evaluated_characters"], summary["evaluated_tokens"]) == (1_024, 1_024)
        assert "val_loss_per_token" not in summary

    def test_everything_else_is_as_without_it(self, tmp_path: Path) -> None:
        plain, asked = (run(tmp_path / str(size), corpus(), final_eval_characters=size, **E4M3) for size in (0, 1_000))
        drop = ["seconds", "final_val_loss"]
        assert asked.history.drop(columns=drop).equals(plain.history.drop(columns="seconds"))
        assert "final_val_loss" not in plain.history
        assert plain.run["summary"]["evaluated_characters"] == 2 * 4 * 16
        assert asked.id != plain.id
        assert config().identity() == config(final_eval_characters=0, tokenizer="characters").identity()
        assert not {"final_eval_characters", "tokenizer", "vocabulary"} & {*config().identity()}

    def test_a_run_that_stops_early_has_it_too(self, tmp_path: Path) -> None:
        given = {"max_steps": 40, "optimizer": {"learning_rate": 1e-9}, "stability": {"patience": 2}}
        record = run(tmp_path, corpus(), final_eval_characters=1_000, **given)
        last = record.history.iloc[-1]
        assert last["step"] == record.run["summary"]["stopped_early"] < 40
        assert last["final_val_loss"] == record.run["summary"]["val_loss"] != last["val_loss"]

    def test_a_resumed_run_has_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = {"final_eval_characters": 1_000, "checkpoint": {"every": 3}, **E4M3}
        whole = run(tmp_path / "whole", corpus(), **given)
        evaluate = loop._Run.evaluate

        def killed(self: loop._Run, final: bool = False) -> float:
            if final:
                raise KeyboardInterrupt
            return evaluate(self, final)

        monkeypatch.setattr(loop._Run, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", corpus(), **given)
        monkeypatch.setattr(loop._Run, "evaluate", evaluate)
        train(config(**given), tmp_path / "killed", corpus=corpus(), progress=False, resume=True)
        (folder,) = (path for path in (tmp_path / "killed").iterdir() if (path / "run.json").exists())
        again = read_run(folder)
        assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
        assert again.run["summary"]["val_loss"] == whole.run["summary"]["val_loss"]


def test_a_loss_is_told_by_character_and_by_token(file: Path, tmp_path: Path) -> None:
    found = load_text(file, "bytes")
    given = {"tokenizer": "bytes", "final_eval_characters": 600}
    record = run(tmp_path / "runs", found, **given)
    starts = Batches(found, config(**given), torch.device("cpu")).final
    read = [found.validation[start + 1 : start + 17].tobytes() for start in starts.tolist()]
    characters = sum(1 for byte in b"".join(read) if byte & 0xC0 != 0x80)
    summary = record.run["summary"]
    assert summary["evaluated_characters"] == characters >= 600
    assert summary["evaluated_tokens"] == 16 * len(read) > characters
    per_token = summary["val_loss"] * characters / (16 * len(read))
    assert summary["val_loss_per_token"] == pytest.approx(per_token, rel=1e-12)
    assert summary["perplexity"] == pytest.approx(np.exp(per_token))
    assert per_token < 1.2 * np.log(256)
    assert summary["parameters"] - run(tmp_path / "c", corpus()).run["summary"]["parameters"] == 2 * 16 * (256 - 96)


def test_the_command_says_both_losses(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    keys = {"max_steps": 2, "batch_size": 2, "eval_batches": 1, "final_eval_characters": 100, "tokenizer": "bpe"}
    keys |= {"vocabulary": 300, "model": "{layers: 1, dim: 8, heads: 1, context: 8}"}
    arguments = ["train", str(ROOT / "experiments/configs/fp32.yaml"), "--data", str(file), "--out", str(tmp_path)]
    assert main([*arguments, *(word for key in keys for word in ("--set", f"{key}={keys[key]}"))]) == 0
    printed = io.StringIO(capsys.readouterr().out).readline()
    per_character, per_token = map(float, re.findall(r"loss (\S+) nats per character \((\S+) per token\)", printed)[0])
    (record,) = (read_run(path.parent) for path in tmp_path.glob("*/run.json"))
    summary, about = record.run["summary"], record.run["data"]
    assert per_token / per_character == pytest.approx(
        summary["evaluated_characters"] / summary["evaluated_tokens"], rel=1e-3
    )
    assert (about["tokenizer"], about["vocabulary"]) == ("bpe", 300)
    assert about["train_tokens"] < about["train_characters"]
    assert json.dumps(about)


def test_all_licences_are_more_than_the_default_and_as_well_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve texts a cap takes some and no cap takes all; no word is in both splits."""
    files = []
    for number in range(12):
        path = tmp_path / f"{number}.LICENSE"
        path.write_text(" ".join(f"w{word}" for word in range(1000 + 200 * number, 1200 + 200 * number)))
        files.append(SimpleNamespace(name=path.name, match=lambda _: True, locate=lambda path=path: path))
    monkeypatch.setattr(data.metadata, "files", lambda _: files)
    monkeypatch.setattr(data, "VALIDATION_SHARE", 0.9)  # a group of a tenth of it may be held out
    capped, every = data._prepare(3000), data._prepare(None)
    assert (capped[2], every[2]) == (3, 12)
    train_words, held_words = ({*split.split()} for split in every[:2])
    assert len(train_words) + len(held_words) == 12 * 200
    assert held_words
