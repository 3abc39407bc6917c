"""Whether W&B can be used from here, found out without its client, which prompts for a key or waits for 19 s.

Settings come from where W&B takes them: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL, netrc
and W&B's settings file. A key is looked for, never kept: `without_key` takes it out of what other programs say.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import netrc
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from altgrad.config import one_line
from altgrad.runs.schema import without_paths
from altgrad.runs.secrets import mask

CONNECT_SECONDS = 1.5
DEFAULT_ADDRESSES = ("https://api.forge.coreweave.com", "https://api.wandb.ai")
"""Where W&B's client of 0.31, and of the versions before it, connects when nothing else is set."""

WITHOUT_PROMPT = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB__GRAPHQL_RETRY_MAX": "3"}

_INSPECT = """
import json, os, sys
from wandb.cli.cli import cli
asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for line in asked:
    path, *written = json.loads(line)
    for place, name in enumerate(written, 1):
        file = os.open(name, os.O_WRONLY)
        os.dup2(file, place)
        os.close(file)
    try:
        cli(["leet", "inspect", "--json", path])
    except SystemExit:
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    print("done", file=answers, flush=True)
"""

_KEY = re.compile(r"\b(?:[0-9a-zA-Z_]+-)?[0-9a-zA-Z_]{40,}\b")


def project_and_entity(project: str | None, entity: str | None) -> tuple[str, str | None]:
    """What is given, else WANDB_PROJECT and WANDB_ENTITY, else the project altgrad of the key's own entity."""
    return (project or os.environ.get("WANDB_PROJECT") or "altgrad", entity or os.environ.get("WANDB_ENTITY") or None)


def not_wanted() -> str | None:
    """Why W&B is not to be asked for runs: WANDB_MODE says so; None where it does not."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    return f"WANDB_MODE={mode} (unset it to ask W&B)" if mode in ("offline", "dryrun", "disabled") else None


def unusable() -> str | None:
    """Why W&B's server cannot be asked, on one line; None where nothing speaks against it. Takes 1.5 s at most."""
    if reason := missing_package():
        return reason
    given = os.environ.get("WANDB_BASE_URL") or _setting("base_url")
    addresses = (given,) if given else DEFAULT_ADDRESSES
    try:
        parts = [urlsplit(address) for address in addresses]
        hosts = [(part.hostname or "", part.port or (443 if part.scheme == "https" else 80)) for part in parts]
    except ValueError as error:
        return f"WANDB_BASE_URL is not an address ({reason_of(error)})"
    if not all(host and part.scheme in ("http", "https") for (host, _), part in zip(hosts, parts, strict=True)):
        return "WANDB_BASE_URL is not an address (write it as https://host)"
    if not _has_key([part.netloc for part in parts] + [host for host, _ in hosts]):
        return "no W&B API key (set WANDB_API_KEY or run 'wandb login')"
    proxies = getproxies()
    if any(proxies.get(part.scheme) and not proxy_bypass(part.netloc) for part in parts):
        return None
    return _connected(hosts)


def missing_package() -> str | None:
    """Why the package wandb cannot be used; None where it is installed. It is not imported."""
    return None if find_spec("wandb") else "the package wandb is not installed (pip install 'altgrad[wandb]')"


def reason_of(error: object) -> str:
    """An error on one line of at most 200 characters, without a key."""
    return without_key(one_line(error))[:200] or type(error).__name__


def inspected(
    path: Path, *options: str, seconds: float, out: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """What W&B's public command says of one of its offline files, lines of JSON, in `out`.

    Raises:
        subprocess.TimeoutExpired: it did not end within `seconds`.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(path)]
    environment = os.environ | WITHOUT_PROMPT
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, timeout=seconds, env=environment
    )


class Inspector:
    """What `inspected` says of many files, from one process: W&B's client takes a second or more to start."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # that reading a file may take
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def __call__(self, path: Path) -> Iterator[tuple[IO[bytes], str]]:
        """The lines of JSON that the command writes of a file, and its last word on what went wrong, "" without one."""
        with tempfile.TemporaryDirectory() as folder:
            out, said = Path(folder) / "out", Path(folder) / "said"
            for each in (out, said):
                each.touch()
            reason = self._ask([str(path), str(out), str(said)])
            words = without_paths(said.read_text("utf-8", "replace")).strip().splitlines()[-1:]
            reason = reason or "".join(reason_of(line.removeprefix("wandb leet inspect: ")) for line in words)
            with open(out, "rb") as lines:
                yield lines, reason

    def _ask(self, files: list[str]) -> str:
        """Why no answer came; "" where one did."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _INSPECT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=os.environ | WITHOUT_PROMPT, text=True, encoding="utf-8",
            )  # fmt: skip
            weakref.finalize(self, self._process.communicate)
        late, (process, self._process) = threading.Event(), (self._process, None)

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, end)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(files), file=process.stdin, flush=True)
            if process.stdout and process.stdout.readline():
                self._process = process
        timer.cancel()
        return "" if self._process else f"did not end within {self.seconds:g} s" if late.is_set() else "ended too early"


def without_key(text: str) -> str:
    """`text` without what looks like a secret: in messages of W&B's client, every word as long as one of its keys."""
    return _KEY.sub("(key)", mask(text))


def _setting(key: str) -> str | None:
    """A key of W&B's settings files, which `wandb login --host` writes; the working directory's comes first."""
    home = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    for path in (Path("wandb") / "settings", Path(home) / "settings"):
        settings = configparser.ConfigParser(interpolation=None)
        try:
            settings.read(path, encoding="utf-8")
            if found := settings.get("default", key, fallback=None):
                return found
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
    return None


def _has_key(hosts: list[str]) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(str(path))
        return any(found.authenticators(host) is not None for host in hosts)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _connected(hosts: list[tuple[str, int]]) -> str | None:
    """None where one of the hosts takes a connection within `CONNECT_SECONDS`.

    A thread each, because the time of a name's resolution has no limit of its own.
    """
    done = threading.Event()
    reasons: list[str] = []

    def connect(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot encode
            reasons.append(reason_of(error))
            if len(reasons) == len(hosts):
                done.set()
        else:
            reached.append(host)
            done.set()

    reached: list[str] = []
    for host, port in hosts:
        threading.Thread(target=connect, args=(host, port), daemon=True).start()
    done.wait(CONNECT_SECONDS)
    if reached:
        return None
    return f"W&B's server cannot be reached ({reasons[0] if reasons else f'no answer within {CONNECT_SECONDS} s'})"
