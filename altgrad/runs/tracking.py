"""The mirror of a run in W&B: it never stops, slows or prompts; what goes wrong is one line, and the record goes on."""

from __future__ import annotations

import math
import netrc
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from altgrad.config import ExperimentConfig, one_line

CONNECT_SECONDS = 1.5
START_SECONDS = 20.0
FINISH_SECONDS = 30.0


class Tracker:
    """Mirrors history rows to W&B; inert in mode ``disabled`` and after the first thing that goes wrong.

    Attributes:
        url: the run's address as W&B gave it, None when offline or inert.
    """

    def __init__(self, run: Any | None, warn: Callable[[str], None]) -> None:
        self._run = run
        self._warn = warn
        self.url: str | None = None if run is None or run.offline else run.url

    @classmethod
    def start(
        cls, config: ExperimentConfig, run_id: str, directory: Path, warn: Callable[[str], None] | None = None
    ) -> Tracker:
        """Start mirroring as ``config.tracking`` says.

        Args:
            config: the run's config; its `identity()`, name, notes and tags are what W&B gets.
            run_id: used as W&B's run id, so that a run mirrored twice is one run.
            directory: where W&B keeps its files (the run's folder).
            warn: takes one line when tracking is given up (default: printed to stderr).
        """
        warn = warn or _print_warning
        tracking = config.tracking
        if tracking.mode == "disabled":
            return cls(None, warn)
        reason = _missing_package() or (_unreachable() if tracking.mode == "online" else None)
        if reason:
            warn(f"W&B tracking is off: {reason}. The run goes on with its local record.")
            return cls(None, warn)

        def init() -> Any:
            import wandb

            return wandb.init(
                mode=tracking.mode,
                project=tracking.project,
                entity=tracking.entity,
                id=run_id,
                name=run_id,
                group=config.resolved_name,
                notes=config.notes or None,
                tags=list(config.tags),
                dir=str(directory),
                config=config.identity() | {"study": config.study},
                resume="allow" if tracking.mode == "online" else None,
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=START_SECONDS, x_disable_stats=True, disable_git=True,
                    disable_code=True, x_disable_meta=True, host="",
                ),
            )  # fmt: skip

        run = _bounded(init, START_SECONDS + 5, "could not start", warn)
        return cls(run, warn)

    def log(self, row: Mapping[str, float]) -> None:
        """Send one history row; `step` becomes W&B's step. NaN is sent as NaN."""
        if self._run is None:
            return
        try:
            self._run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        except Exception as error:
            self._give_up(error)

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """End the mirrored run; waits at most `FINISH_SECONDS` for what is still to be sent."""
        run, self._run = self._run, None
        if run is None:
            return

        def end() -> None:
            for key, value in {**(summary or {}), "status": status}.items():
                run.summary[key] = value if not isinstance(value, float) or math.isfinite(value) else str(value)
            run.finish(exit_code=0 if status == "finished" else 1)

        _bounded(end, FINISH_SECONDS, "did not take the end of the run", self._warn)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._warn(f"W&B tracking stopped: {_reason(error)}. The run goes on with its local record.")


def _bounded(call: Callable[[], Any], seconds: float, failed: str, warn: Callable[[str], None]) -> Any | None:
    """`call()` in a daemon thread for at most `seconds`; a failure is one line, and None comes back.

    W&B's errors have no common base class (server errors are plain ones), hence the wide net.
    """
    result: list[Any] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            result.append(call())
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # an EOF at a prompt raises KeyboardInterrupt
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if result:
        return result[0]
    reason = _reason(errors[0]) if errors else f"no answer within {seconds:.0f} s"
    warn(f"W&B {failed}: {reason}. The local record is complete.")
    return None


def _missing_package() -> str | None:
    from importlib.util import find_spec

    return None if find_spec("wandb") else "the package wandb is not installed (pip install 'altgrad[wandb]')"


def _unreachable() -> str | None:
    """Why an online run cannot start, found without asking W&B's client (which prompts, or waits for 19 s)."""
    try:
        address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
        host, port = address.hostname or "api.wandb.ai", address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        return f"WANDB_BASE_URL is not an address ({_reason(error)})"
    if not os.environ.get("WANDB_API_KEY") and not _netrc_has(host):
        return "no W&B API key (set WANDB_API_KEY or run 'wandb login')"
    if getproxies().get(address.scheme):
        return None
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot encode
        return f"W&B's server cannot be reached ({_reason(error)})"
    return None


def _netrc_has(host: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _print_warning(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _reason(error: object) -> str:
    return one_line(error)[:200] or type(error).__name__
