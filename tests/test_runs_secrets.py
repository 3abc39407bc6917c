"""No secret of anybody's config, notes, tags or messages reaches a record, W&B or a page; ordinary names stay."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from planted import BY_NAME, BY_SHAPE, COMMIT, HARMLESS, IN_TEXT, found_in, planted
from records import config as make_config
from records import write_run
from wandb_server import WandbServer, wandb_environment

from altgrad.analysis import ExperimentDataLoader
from altgrad.cli import main
from altgrad.config import LONGEST_NOTES, UsageError, config_keys
from altgrad.reports.arms import arm_pages
from altgrad.runs import Failure, load_runs, read_run, record
from altgrad.runs.foreign import data_fingerprint
from altgrad.runs.query import verify
from altgrad.runs.secrets import LEFT_OUT, left_out, mask, mask_record
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]
HEX = "0fa9" * 10
"""Forty hexadecimal digits: a key of W&B, or a commit."""
SHAPES = {
    "github": "ghp_" + "a1B2" * 9,
    "github app": "gho_" + "Z9y8" * 9,
    "github fine-grained": "github_pat_" + "11AB0cd" * 8,
    "hugging face": "hf_" + "QwErTyUiOp" * 3 + "zXcV",
    "openai": "sk-" + "a1B2" * 12,
    "openai project": "sk-proj-" + "a_1-B2cd" * 6,
    "anthropic": "sk-ant-" + "api03-" + "Ab_9" * 12,
    "slack": "xoxb-" + "1234567890-abcDEF",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws session": "ASIA" + "IOSFODNN7EXAMPLE",
    "gitlab": "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "weights and biases": HEX,
    "weights and biases, new": "wandb_v1_" + "0aZ_" * 20,
    "json web token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w",
    "private key": "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEowIBAAKCAQEA\nx+/y==\n-----END RSA PRIVATE KEY-----",
    "cut private key": "-----BEGIN OPENSSH PRIVATE" + " KEY-----\nb3BlbnNzaC1rZXktdjEA",
}
NAMES = [
    "hf_token", "client_secret", "openai_key", "token", "github_token", "authorization", "bearer", "cookie", "pwd",
    "db_pass", "passphrase", "webhook_url", "api.key", "api_key", "apikey", "apiKey", "API_KEY", "APIkey", "api-key",
    "private_key", "access_key", "ssh_key", "aws_secret_access_key", "credentials", "password", "passwords", "passwd",
    "dsn", "connection_string", "connectionString", "session_id", "sessionid", "PHPSESSID", "hfToken", "HFToken",
    "hftoken", "openAIKey", "X-Api-Key", "token2", "my_token", "token_value", "use_auth_token", "slack.webhook",
    "secrets.wandb", "dbpassword", "clientsecret", "db.pass", "smtp.auth", "GITHUB_PAT", "refresh_token", "id_token",
    "bot_token", "wandb_key", "encryption_key", "account_key", "jwt", "user_pass", "auth.user.token",
]  # fmt: skip
ORDINARY: list[tuple[str, Any]] = [
    ("use_cls_token", True), ("use_cls_token", "yes"), ("max_new_tokens", 128), ("max_new_tokens", "128"),
    ("tokenizer", "gpt2"), ("tokenizer.name", "org/tokenizer"), ("num_tokens", "10B"), ("token_dim", 64),
    ("token_dim", "64"), ("tokens_per_step", "0.5M"), ("pad_token_id", 0), ("pad_token_id", "0"),
    ("eos_token", "</s>"), ("eos_token", "<|endoftext|>"), ("bos_token", "<s>"), ("cls_token", "[CLS]"),
    ("clsToken", "first"), ("token", "<s>"), ("token", 5), ("token", 1.5), ("api_key", None), ("password", False),
    ("password", ""), ("key_dim", 64), ("num_key_value_heads", 4), ("keypoints", "coco17"), ("passes", "two"),
    ("bypass", "gelu"), ("n_pass", "three"), ("forward_pass", "bf16"), ("author", "Jane Doe"),
    ("authors", ["Jane", "Joe"]), ("monkey", "see"), ("hashtag", "x"), ("secretary", "Ann"), ("compass", "north"),
    ("keyboard", "us"), ("key", "attention"), ("image_key", "jpg"), ("sort_key", "loss"), ("keys", ["a", "b"]),
    ("state_key", "model.layers.0.self_attn.q_proj.weight"), ("tokens", "300B"), ("token_type", "bpe"),
    ("token_mixing", "mean"), ("stop_token", "###"), ("special_tokens", ["<a>", "<b>"]), ("auth_method", "oauth"),
    ("passthrough", "on"), ("cookiecutter", "x"), ("attention.key.init", "xavier_uniform"), ("data_revision", HEX),
    ("git_sha", HEX), ("git.commit", HEX), ("model_revision", HEX), ("code.version", HEX), ("sha256", "ab" * 32),
    ("repository", "git@github.com:team/repo.git"), ("remote", "ssh://git@github.com/team/repo"),
    ("data", "https://host.example:8080/a@b/c"), ("mail", "jane@example.com"), ("reply", "mailto:jane@example.com"),
]  # fmt: skip
TEXTS = [
    "python train.py --token={} --lr 1", "python train.py --hf-token {} --lr 1", "HF_TOKEN={} python train.py",
    "env:HF_TOKEN={} x", 'with api_key="{}" and more', "{{'password': '{}', 'lr': 1}}", '{{"api_key": "{}", "lr": 1}}',
    r'{{\"api_key\": \"{}\"}}', "api key: {}\nnext line", "password: {}\nnext line", "Authorization: {}\nnext line",
    "curl -H 'X-Api-Key: {}' https://host.example", "curl -H 'Cookie: {}' https://host.example/a",
    "Server=db;Password={}", "https://host.example/a?token={}&n=1", "https://b.example/x?X-Amz-Signature={}&n=1",
    "https://b.example/x?se=1&sig={}", "token={}", "https://{}@host.example/a/b", "postgres://{}@host.example/db",
    "remote https://{}@host.example:8080/team/repo.git", "Bearer {}", "it said bearer {} was refused",
]  # fmt: skip
PROSE = [
    "next token: prediction of it", "token: a unit of text", "forward pass: 12ms, two passes", "key idea: a small rate",
    "the author: Jane", "sk-learn-random-forest-baseline", "hf_bert_base_uncased", "basic training, bearer of news",
    "--max-new-tokens 128 --tokenizer gpt2 --use-cls-token --eos-token </s> --key-dim 64", "num_tokens=10 passes=2",
    f"at commit {HEX}", f"commit: {HEX}, then on", f"https://github.com/a/b/tree/{HEX}", f"git+https://g.example/b@{HEX}",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_text_under_the_name_of_a_secret_is_left_out(name: str) -> None:
    nested: Any = "hush"
    for part in reversed(name.split(".")):
        nested = [{part: nested}]
    for given_ in ({name: "hush"}, nested, {"a": nested}, {f"a.{name}": ["hush"]}):
        assert "hush" not in json.dumps(mask(given_)), given_
    assert mask({name: 7}) == {name: 7}
    assert left_out(mask({"a": {name: "hush"}})) == [f"a.{name}"]


@pytest.mark.parametrize(("name", "value"), ORDINARY)
def test_what_is_no_secret_stays(name: str, value: Any) -> None:
    assert mask({name: value, "a": [{name: value}]}) == {name: value, "a": [{name: value}]}


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
def test_a_known_shape_is_left_out_of_any_text(secret: str) -> None:
    for text in (
        secret,
        f"see {secret}, then",
        f"({secret})",
        f"x='{secret}'",
        f"a\\n{secret}",
        f"https://a.example/{secret}",
    ):
        found = mask({"width": text, "list": ["a", (text,)]})
        assert secret[:12] not in str(found).replace("BEGIN", "")
        assert secret[-12:] not in str(found)
        assert LEFT_OUT in found["width"]
    assert mask(f"see {secret.split(chr(10))[0]}") != f"see {secret}"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_names_a_secret_keeps_all_but_its_value(text: str) -> None:
    secret = "user:hunter2x9" if "://{}" in text else "hunter2x9"
    assert mask(text.format(secret)) == text.format(LEFT_OUT)


@pytest.mark.parametrize("text", PROSE)
def test_ordinary_text_stays(text: str) -> None:
    assert mask({"notes": text, "tags": [text]}) == {"notes": text, "tags": [text]}


def test_a_secret_beside_its_name_in_a_list_is_left_out() -> None:
    command = ["python", "train.py", "--hf-token", "hush", "--lr", "1", "--eos-token", "</s>", "--password"]
    assert mask({"argv": command})["argv"] == [*command[:3], LEFT_OUT, *command[4:]]
    variables = [{"name": "HF_TOKEN", "value": "hush"}, {"name": "THREADS", "value": "2"}]
    assert mask(variables) == [{"name": "HF_TOKEN", "value": LEFT_OUT}, variables[1]]


def test_a_password_of_digits_and_one_in_a_pair_are_left_out_and_counts_stay() -> None:
    assert mask({"db_password": 83_741_234, "pin": 4821}) == {"db_password": LEFT_OUT, "pin": 4821}
    assert mask([["password", "hunter2xQ"], ["lr", "1e-3"]]) == [["password", LEFT_OUT], ["lr", "1e-3"]]
    assert mask([["password", "username"], ["token", "text"]]) == [["password", "username"], ["token", "text"]]


def test_a_name_that_is_a_secret_is_left_out_and_no_value_is_lost() -> None:
    found = mask({SHAPES["github"]: 1, SHAPES["slack"]: 2})
    assert list(found.values()) == [1, 2]
    assert "ghp_" not in str(found)
    assert left_out(found) == list(found)


words = st.sampled_from(
    [
        *TEXTS[:12],
        *PROSE,
        *SHAPES.values(),
        *NAMES,
        LEFT_OUT,
        "hush",
        "=",
        ": ",
        " ",
        '"',
        "'",
        "--",
        "&",
        "?",
        "@",
        "://",
        ",",
    ]
)
values = st.recursive(
    st.lists(words, max_size=6).map("".join) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(values)
@example(SHAPES["aws"] + SHAPES["github"])
def test_nothing_more_is_left_out_of_what_was_looked_at_before(value: Any) -> None:
    once = mask(value)
    assert mask(once) == once


@given(st.text(), st.sampled_from(sorted({*SHAPES.values()} - {HEX})), st.text())
def test_a_known_shape_is_found_in_whatever_text(before: str, secret: str, after: str) -> None:
    assert secret not in mask(f"{before} {secret}\n{after}")


@pytest.mark.parametrize(
    "part", ["a://b:c", 'token="', r"token=\"", "ab=", "a.b:", "sk-", "eyJ", "-----BEGIN ", "a:b@c.", "key "]
)
def test_a_long_text_made_to_be_slow_takes_no_time(part: str) -> None:
    started = time.process_time()
    mask(part * (50_000 // len(part)))
    assert time.process_time() - started < 5


def test_this_process_s_own_secrets_are_left_out_of_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "no-known-shape-of-any-kind")
    monkeypatch.setenv("SOME_SERVICE_NAME", "the-name-of-a-service")
    found = mask("no-known-shape-of-any-kind was refused by the-name-of-a-service")
    assert found == f"{LEFT_OUT} was refused by the-name-of-a-service"


def test_no_key_of_altgrads_own_config_is_a_secret() -> None:
    texts = dict.fromkeys(config_keys(), "text0with1digits2and3letters")
    assert mask(texts) == texts


def test_every_recorded_run_is_read_as_it_was_recorded() -> None:
    seen = 0
    for path in sorted((ROOT / "experiments" / "recorded").rglob("runs.parquet")):
        for text in pq.read_table(path, columns=["run"])["run"].to_pylist():
            run = json.loads(text)
            assert mask_record(run, own=()) == run
            seen += 1
    assert seen > 2000


PLANTED: dict[str, Any] = {
    "width": 32, "api": {"key": "hushhush1"}, "wandb.password": "hushhush2", "env": {"deep": {"HF_TOKEN": "hushhush3"}},
    "argv": ["train.py", "--token", "hushhush4"], "command": "x --openai-key=hushhush5", "log": [["x", SHAPES["aws"]]],
    "remote": "https://hushhush6:hushhush7@git.example/team/repo", "store": np.array([SHAPES["github"]]),
    "path": Path("/data") / SHAPES["gitlab"], "eos_token": "</s>", "tokenizer": "gpt2", "data_revision": HEX,
    "nested": '{"client_secret": "hushhush8"}', "key": SHAPES["private key"], SHAPES["slack"]: 1,
}  # fmt: skip
HIDDEN = ["hushhush", "IOSFODNN7", "a1B2a1B2", "a1B2c3D4", "abcDEF", "MIIEow", "QwErTy", "Z9y8", "dozjgN"]


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Which planted values are in which files, whatever case they are in."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    assert files
    return [
        (path.name, part)
        for path in files
        for part in HIDDEN
        if part.lower() in f"{path.relative_to(folder)} {path.read_bytes().decode(errors='replace')}".lower()
    ]


def pages_of(root: Path, folder: Path) -> None:
    """The pages of the arms under `root`, with their downloads."""
    write_folder(arm_pages(ExperimentDataLoader([root])), folder, site_root="../")


def plant(root: Path) -> str:
    """A run that crashed, with a secret in everything that its loop can say."""
    more: dict[str, Any] = {
        "notes": f"with {SHAPES['hugging face']}\npassword: hushhush1",
        "tags": ["a", SHAPES["github app"], "token=hushhush0"],
        "data": {"name": "s3://hushhush1:hushhush2@bucket/x", "token": "hushhush3"}, "seed": 1,
        "environment": {"HF_TOKEN": "hushhush1", "python": "3.11", "proxy": "http://hushhush1@proxy.example:80"},
    }  # fmt: skip
    with (
        contextlib.suppress(RuntimeError),
        record(root, name="planted", config=PLANTED, **more) as run,
    ):
        run.log(0, loss=1.0, val_loss=1.0)
        run.event("note", 0, message=f"token=hushhush4, {SHAPES['aws']}", headers={"Authorization": "hushhush5"})
        run.explain(
            Failure(("unknown",), 0, message=f"at {SHAPES['github']}"), f"# Failure\n\n{SHAPES['github']} refused\n"
        )
        first, last = SHAPES["json web token"], SHAPES["github"]
        raise RuntimeError(f"{first} {'x' * (482 - len(first))} {last}")  # a message is cut at 500, in the middle of it
    return run.run_id


def test_no_secret_of_a_foreign_run_is_in_its_record_or_on_its_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = plant(tmp_path / "runs")
    assert leaks(tmp_path / "runs") == []
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[0].startswith(
        f"warning: {identity}: left out of the record, since it looks like a secret: config.notes, "
    )
    for key in ("config.tags", "config.api.key", "config.wandb.password", "config.argv", "config.remote", "and "):
        assert key in told[0]
    assert [line.rpartition(": ")[2] for line in told[1:]] == [
        "events.message, events.headers.Authorization",
        "failure.message, message",
    ]
    (found,) = load_runs([tmp_path / "runs"]).records
    foreign = found.config.foreign
    assert foreign is not None
    assert (foreign["eos_token"], foreign["tokenizer"], foreign["data_revision"], foreign["width"]) == (
        "</s>",
        "gpt2",
        HEX,
        32,
    )
    assert foreign["api.key"] == LEFT_OUT
    assert foreign["argv"] == ("train.py", "--token", LEFT_OUT)
    assert foreign["command"] == f"x --openai-key={LEFT_OUT}"
    assert foreign["remote"] == f"https://{LEFT_OUT}@git.example/team/repo"
    assert found.config.notes == f"with {LEFT_OUT}\npassword: {LEFT_OUT}"
    assert found.config.tags == ("a", LEFT_OUT, f"token={LEFT_OUT}")
    assert found.secrets == ()
    assert verify([tmp_path / "runs"]) == (1, [], [])
    pages_of(tmp_path / "runs", tmp_path / "pages")
    assert leaks(tmp_path / "pages") == []
    for command in (["show", identity, "--json"], ["show", identity], ["list"], ["export", "--format", "json"]):
        assert main(["runs", *command, "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert identity in said
    assert [part for part in HIDDEN if part in said] == []


@pytest.mark.parametrize("text", IN_TEXT)
def test_a_secret_in_a_text_is_left_out_and_what_stands_around_it_stays(text: str) -> None:
    before, _, after = text.format("hush9x7").partition("hush9x7")
    found = mask(text.format("hush9x7"))
    assert "hush9x7" not in found
    assert found.startswith(before[:8])
    assert found.endswith((after[-6:], f"{LEFT_OUT}"))


@pytest.mark.parametrize(("name", "value"), HARMLESS, ids=[name for name, _ in HARMLESS])
def test_a_look_alike_stays(name: str, value: Any) -> None:
    assert mask({name: value}) == {name: value}
    if isinstance(value, str):
        assert mask({"notes": f"we set {name}={value}"}) == {"notes": f"we set {name}={value}"}
    if value != COMMIT:  # without a name it may be a key of W&B
        assert mask({"tags": [value]}) == {"tags": [value]}


def test_eighty_kinds_of_secret_are_in_no_byte_of_a_record_its_pages_or_what_is_said_and_each_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BY_NAME) + len(BY_SHAPE) + len(IN_TEXT) > 80
    assert len(HARMLESS) >= 50
    given_, parts = planted()
    harmless = {f"harmless {name}": {name: value} for name, value in HARMLESS}
    config = given_["config"] | harmless
    with record(tmp_path / "runs", name="planted", **{**given_, "config": config}) as run:
        run.log(0, {"loss": 1.0, f"val_loss/{BY_SHAPE['GitHub']}": 1.0})
        run.event("note", 0, message=f"token=hush-event, {BY_SHAPE['AWS']}")
        run.finish({"api_key": "hush-summary"})
    pages_of(tmp_path / "runs", tmp_path / "pages")
    for folder in (tmp_path / "runs", tmp_path / "pages"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) > 3
        for path in files:
            assert found_in(path.read_bytes(), parts) == [], path.name
    (found,) = load_runs([tmp_path / "runs"]).records
    assert found.secrets == ()
    history = found.history
    assert list(history) == ["step", "loss", f"val_loss/{LEFT_OUT}"]
    run_json = json.loads((run.path / "run.json").read_text())
    left = left_out(run_json)
    for key, value in given_["config"].items():
        assert any(place.startswith(f"config.foreign.{key}") for place in left), (key, value)
    for name, value in HARMLESS:
        kept = run_json["config"]["foreign"][f"harmless {name}.{name}"]
        assert kept == value, name
    for command in (["show", run.run_id], ["list"], ["export"], ["verify"]):
        main(["runs", *command, "--runs", str(tmp_path / "runs")])
    said = capsys.readouterr()
    assert found_in((said.out + said.err).encode(), parts) == []


def test_data_that_differs_in_a_password_is_the_same_data() -> None:
    one, two = (data_fingerprint(f"https://jane:{word}@host.example/text") for word in ("hushhush1", "hushhush2"))
    assert one == two
    assert one["name"] == f"https://{LEFT_OUT}@host.example/text"


def test_a_run_named_by_a_secret_is_refused_and_by_a_commit_it_is_not(tmp_path: Path) -> None:
    for name, given_ in (
        ("name", {"name": "glpat-" + "a1b2c3d4" * 3}),
        ("study", {"name": "a", "study": "hf_" + "a1" * 17}),
    ):
        with pytest.raises(UsageError, match=f"{name}: it looks like a secret"):
            record(tmp_path, config={}, **given_)
    assert list(tmp_path.iterdir()) == []
    with record(tmp_path, name=HEX, config={}) as run:
        run.log(0, loss=1.0)
        run.finish()
    assert [found.config.name for found in load_runs([tmp_path]).records] == [HEX]


def test_notes_and_tags_of_altgrads_own_runs_are_looked_at_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = f"{SHAPES['github']} {'n' * (LONGEST_NOTES - 60)} pwd=a1B2a1B2"
    path = write_run(tmp_path, make_config("e4m3", notes=notes, tags=[SHAPES["slack"], "t"]))
    assert leaks(tmp_path) == []
    assert "config.notes, config.tags" in capsys.readouterr().err
    found = read_run(path)  # although what stands for the secrets is longer than they were
    assert found.config.tags == (LEFT_OUT, "t")
    assert len(found.config.notes) <= LONGEST_NOTES
    assert verify([tmp_path]) == (1, [], [])


def test_what_an_earlier_version_recorded_is_read_without_its_secrets_and_left_as_it_is(tmp_path: Path) -> None:
    with record(tmp_path / "runs", name="earlier", config={"hf_token": "later", "width": 3}) as run:
        run.log(0, val_loss=1.0)
        run.finish()
    file = run.path / "run.json"
    told = json.loads(file.read_text())
    (today,) = load_runs([tmp_path / "runs"]).records
    told["config"] |= {"notes": f"see {SHAPES['github']}", "tags": [SHAPES["slack"]]}
    told["config"]["foreign"]["hf_token"] = "hushhush1"
    told |= {"message": f"ValueError: {SHAPES['aws']}", "environment": {"password": "hushhush2"}}
    file.write_text(json.dumps(told))
    (found,) = load_runs([tmp_path / "runs"]).records
    assert found.config.foreign == {"hf_token": LEFT_OUT, "width": 3}
    assert found.arm == today.arm, "the arm is that of a run that is recorded today"
    places = ["config.foreign.hf_token", "config.notes", "config.tags", "environment.password", "message"]
    assert sorted(found.secrets) == places
    pages_of(tmp_path / "runs", tmp_path / "pages")
    assert leaks(tmp_path / "pages") == []
    assert json.loads(file.read_text()) == told
    count, problems, _ = verify([tmp_path / "runs"])
    assert count == 1
    assert [problem.reason.partition(":")[0] for problem in problems] == [
        "run.json holds what looks like a secret, and is read without it"
    ]
    assert "config.hf_token" in problems[0].reason


def test_a_damaged_config_is_named_without_its_secrets(tmp_path: Path) -> None:
    path = write_run(tmp_path, make_config("e4m3"))
    told = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(
        json.dumps(told | {"config": told["config"] | {SHAPES["github"]: 1, "seed": SHAPES["aws"]}})
    )
    (problem,) = load_runs([tmp_path]).problems
    assert [part for part in HIDDEN if part in problem.reason] == []


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    with WandbServer() as running:
        yield running


@pytest.fixture
def _surroundings(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wandb_environment(server, tmp_path / "home").items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_surroundings")
def test_no_secret_of_a_run_in_w_and_b_is_in_its_record_or_on_its_pages(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: value for key, value in PLANTED.items() if key not in ("store", "path")}
    settings |= {"optimizer": "token=hushhush1", "dataset": "https://hushhush2:hushhush3@host.example/text"}
    settings |= {"steps": [{"name": "a", "api_key": "hushhush4"}, {"name": "HF_TOKEN", "value": "hushhush5"}]}
    server.add(
        "planted", "p1", display_name=f"run {SHAPES['aws']}", config=settings, history=[{"loss": 1, "val_loss": 1}],
        notes=f"{'n' * (LONGEST_NOTES - 33)} {SHAPES['hugging face']}", tags=[SHAPES["github app"], "fine"],
        summary={"token": "hushhush6", "link": f"https://host.example/?sig={SHAPES['github']}", "best": 1},
    )  # fmt: skip
    out = tmp_path / "pulled"
    assert main(["runs", "pull", "planted", "--entity", "team", "--out", str(out)]) == 0
    said = capsys.readouterr()
    (found,) = load_runs([out]).records
    line = next(line for line in said.out.splitlines() if line.startswith("  left out, since it looks like a secret: "))
    for place in ("config.notes, config.tags", "config.api.key"):
        assert place in line
    assert line.strip() in found.run["origin"]["report"]
    assert found.config.tags == (LEFT_OUT, "fine")
    assert found.run["summary"] == {"token": LEFT_OUT, "link": f"https://host.example/?sig={LEFT_OUT}", "best": 1}
    assert found.run["data"]["name"] == f"https://{LEFT_OUT}@host.example/text"
    foreign = found.config.foreign
    assert foreign is not None
    assert json.loads(str(foreign["steps"]))[1] == {"name": "HF_TOKEN", "value": LEFT_OUT}
    assert found.secrets == ()
    assert verify([out]) == (1, [], [])
    pages_of(out, tmp_path / "pages")
    assert leaks(out) == leaks(tmp_path / "pages") == []
    assert [part for part in HIDDEN if part in said.out + said.err] == []


@pytest.mark.usefixtures("_surroundings")
def test_w_and_b_gets_no_secret_of_a_run(server: WandbServer, tmp_path: Path) -> None:
    """In a process of its own: W&B's client keeps the first server that it sees."""
    done = subprocess.run(
        [sys.executable, "-c", _MIRROR, str(tmp_path / "runs"), SHAPES["github"], SHAPES["slack"]],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT / "tests",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (stored,) = server.runs("mirrored").values()
    sent = f"{stored} {server.alerts}"
    assert [part for part in HIDDEN if part in sent] == []
    assert (stored.notes, stored.tags) == (f"with {LEFT_OUT}", [LEFT_OUT, "t"])
    assert sent.count(LEFT_OUT) == 7
    assert leaks(tmp_path / "runs") == []


_MIRROR = """
import sys
from pathlib import Path
from records import DATA, config
from altgrad.runs import RunWriter
from altgrad.runs.tracking import Tracker
root, key, other = Path(sys.argv[1]), *sys.argv[2:]
given = config("e4m3", notes=f"with {key}", tags=[other, "t"], tracking={"mode": "online", "project": "mirrored"})
with RunWriter.create(root, given, data_fingerprint=DATA, environment={"proxy": f"http://{key}@proxy.example"}) as run:
    tracker = Tracker.start(given, run.run, run.path, sys.exit)
    run.log(1, val_loss=1.0)
    tracker.log({"step": 1, "val_loss": 1.0})
    tracker.alert("stall", "mlp", f"x {key}")
    run.event("note", 1, message=f"token={key}")
    run.finish({"link": f"https://host.example/?token={key}"})
    tracker.finish("finished", {"link": f"https://host.example/?token={key}"})
"""
