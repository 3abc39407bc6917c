"""The mirror of a run in W&B: it never stops, slows or prompts; what goes wrong is one line, and the record goes on.

W&B's client is called from a thread of its own: a call that does not come back holds up nobody.

The record is the source: what W&B lacks of a resumed run is sent from it, and what W&B has already is not sent again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from altgrad.config import ExperimentConfig
from altgrad.runs.schema import json_ready
from altgrad.runs.secrets import mask
from altgrad.runs.wandb_access import inspected, missing_package, project_and_entity, reason_of, unusable
from altgrad.runs.writer import read_jsonl

START_SECONDS = 20.0
FINISH_SECONDS = 30.0
CALL_SECONDS = 30.0
"""A log call is given up after so long; it takes a millisecond."""
ALERTS = 10
ALERT_SECONDS = 60.0
MODES: dict[str, Any] = {mode: mode for mode in ("online", "offline", "disabled")}
MODES |= {"run": "online", "dryrun": "offline"}
"""WANDB_MODE, also in the words of older clients, -> ours."""


class Tracker:
    """Mirrors history rows to W&B; inert in mode ``disabled`` and after the first thing that goes wrong.

    Attributes:
        url: the run's address as W&B gave it, None when offline or inert.
    """

    def __init__(
        self, mirror: Any | None, record: Mapping[str, Any], warn: Callable[[str], None], last: int = -1
    ) -> None:
        self._mirror, self._record, self._warn, self._last = mirror, record, warn, last
        self._alerts: list[tuple[str, float]] = []
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._begun: float | None = None  # when the call under way began
        self._sender = threading.Thread(target=self._send, daemon=True)
        if mirror is not None:
            self._sender.start()
        self.url: str | None = None if mirror is None or mirror.offline else mirror.url

    @classmethod
    def start(
        cls,
        config: ExperimentConfig,
        record: Mapping[str, Any],
        directory: Path,
        warn: Callable[[str], None] | None = None,
    ) -> Tracker:
        """Start mirroring as ``config.tracking`` says; where it says nothing, as WANDB_MODE, _PROJECT and _ENTITY say.

        A run that W&B knows by its id is gone on with: rows up to its last step are not sent again, and rows of the
        record beyond it, which a killed process could not send, are sent now.

        Args:
            config: the run's config; its `identity()`, notes and tags are what W&B gets.
            record: the run's record (run.json); its id is W&B's run id, and what W&B gets beside the config.
            directory: the run's folder; W&B keeps its files in its folder ``wandb``.
            warn: takes one line when tracking is given up (default: printed to stderr).
        """
        warn = warn or _print_warning
        tracking = config.tracking
        mode = tracking.mode or MODES.get(asked := os.environ.get("WANDB_MODE") or "disabled")
        if mode == "disabled":
            return cls(None, record, warn)
        reason = f"WANDB_MODE={asked[:40]!r} is none of {', '.join(MODES)}" if mode is None else None
        if reason := reason or (unusable() if mode == "online" else missing_package()):
            warn(f"W&B tracking is off: {reason}. The run goes on with its local record.")
            return cls(None, record, warn)
        project, entity = project_and_entity(tracking.project, tracking.entity)

        def begin() -> tuple[Any, int]:
            os.environ.setdefault("WANDB_SILENT", "true")
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing goes elsewhere than to the user's server
            import wandb

            last = _last_step_in_files(directory) if mode == "offline" else -1
            mirror = wandb.init(
                mode=mode,
                project=project,
                entity=entity,
                id=record["id"],
                name=record["id"],
                group=mask(tracking.group or record["arm"])[:128],
                notes=mask(config.notes) or None,
                tags=[mask(tag)[:64] for tag in config.tags if tag],
                dir=str(directory),
                config=mask(config.identity() | {"study": config.study, "altgrad": _own(record)}),
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=START_SECONDS, x_disable_stats=True, disable_git=True,
                    disable_code=True, x_disable_meta=True, x_save_requirements=False, host="",
                    finish_timeout=FINISH_SECONDS - 5,
                ),
            )  # fmt: skip
            if mode == "online" and mirror.resumed:
                last = mirror.starting_step - 1
            return mirror, last

        begun = _bounded(begin, START_SECONDS + 5, "could not start", warn)
        if begun is None:
            return cls(None, record, warn)
        tracker = cls(begun[0], record, warn, begun[1])
        tracker._catch_up(directory)
        return tracker

    def log(self, row: Mapping[str, float]) -> None:
        """Send one history row in one call; `step` becomes W&B's step. NaN is sent as NaN."""
        if self._mirror is None or int(row["step"]) <= self._last:
            return
        begun = self._begun
        if begun is not None and time.monotonic() - begun > CALL_SECONDS:
            self._give_up(f"its client did not take a row within {CALL_SECONDS:g} s")
            return
        self._calls.put(partial(_log, self._mirror, dict(row)))

    def alert(self, kind: str, where: str, text: str) -> None:
        """Send a warning for people, whom W&B may mail it to.

        `ALERTS` a run at most, and of a kind (such as "stall") one in `ALERT_SECONDS`.
        """
        now = time.monotonic()
        recent = any(sent == kind and now - at < ALERT_SECONDS for sent, at in self._alerts)
        if self._mirror is None or recent or len(self._alerts) >= ALERTS:
            return
        self._alerts.append((kind, now))
        self._calls.put(partial(self._mirror.alert, title=mask(f"{kind}: {where}")[:64], text=mask(text)[:1000]))

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """End the mirrored run; waits at most `FINISH_SECONDS` for what is still to be sent."""
        mirror, self._mirror = self._mirror, None
        if mirror is None:
            return
        self._calls.put(None)

        def end() -> None:
            self._sender.join()
            kept = mask(dict(summary or {}))
            shown = {**kept, "status": status, "altgrad": _ending(self._record, status, kept)}
            for key, value in shown.items():
                mirror.summary[key] = value if not isinstance(value, float) or math.isfinite(value) else str(value)
            begun = time.monotonic()
            mirror.finish(exit_code=0 if status == "finished" else 1)
            if time.monotonic() - begun >= FINISH_SECONDS - 5:  # by its own setting it gives up then, and says nothing
                raise TimeoutError(f"not all was sent within {FINISH_SECONDS - 5:.0f} s")

        remedy = "; 'wandb sync' of the folder wandb in the record sends the rest"
        _bounded(end, FINISH_SECONDS, "did not take the end of the run", self._warn, remedy)

    def _send(self) -> None:
        """Makes the calls in their order, until None comes or one goes wrong."""
        while (call := self._calls.get()) is not None:
            self._begun = time.monotonic()
            try:
                call()
                self._begun = None
            except Exception as error:  # W&B's errors have no common base class
                if self._mirror is not None:
                    self._give_up(reason_of(error))
                return

    def _give_up(self, reason: str) -> None:
        self._mirror = None
        self._warn(f"W&B tracking stopped: {reason}. The run goes on with its local record.")
        _leave_client()

    def _catch_up(self, directory: Path) -> None:
        path, mirror = directory / "history.jsonl", self._mirror
        for row in read_jsonl(path) if path.exists() else ():
            if int(row["step"]) > self._last:
                self._calls.put(partial(_log, mirror, row))


def _log(mirror: Any, row: Mapping[str, float]) -> None:
    mirror.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))


def _leave_client() -> None:
    """At exit end W&B's own process, for which its client would wait without a limit; its file keeps what is unsent.

    There is no public way: where W&B changes these names, the wait is what W&B makes of it. What its threads say when
    they find their process gone is not shown: that it was given up has been told.
    """
    if not isinstance(threading.excepthook, _WithoutWandb):
        threading.excepthook = _WithoutWandb(threading.excepthook)
    threading.excepthook.left |= {thread.ident for thread in threading.enumerate()}
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from wandb.sdk import wandb_setup

        connection = wandb_setup._singleton._connection  # type: ignore[union-attr]
        wandb_setup._singleton = None  # a later run of this process begins anew
        os.environ.pop("WANDB_SERVICE", None)
        connection._cleanup()  # type: ignore[union-attr, misc]
        atexit.register(connection._proc._process.kill)  # type: ignore[union-attr]


class _WithoutWandb:
    """A `threading.excepthook` that leaves out what ends a thread of a client that was given up.

    Attributes:
        left: the threads that lived when it was; of these, those that run a function of W&B's are meant.
    """

    def __init__(self, before: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._before = before
        self.left: set[int | None] = set()

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(args.exc_traceback)]
        started = next((name for name in frames if name != "threading"), "")  # the module whose function the thread ran
        known = args.thread is not None and args.thread.ident in self.left
        if not known or started.partition(".")[0] != "wandb":
            self._before(args)


def _own(record: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B keeps beside the config, so that a pulled run is the record that it was."""
    kept = ("schema", "id", "created", "data", "environment", "code")
    name = record.get("config", {}).get("name")
    return {key: record[key] for key in kept if key in record} | ({"name": name} if name else {})


def _ending(record: Mapping[str, Any], status: str, summary: Mapping[str, Any]) -> str:
    """How the run ended, as one text: W&B adds to a summary what it likes."""
    ending = {
        "status": status,
        "summary": summary,
        "failure": record.get("failure"),
        "events": record.get("events", []),
    }
    return json.dumps(mask(json_ready(ending)))


def _last_step_in_files(directory: Path) -> int:
    """The last step that W&B's offline files of this run hold, -1 without any; an interrupted one leaves them."""
    steps = [-1]
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        done = inspected(path, "--summary", seconds=START_SECONDS)
        if done.returncode == 0:
            steps.append(int(json.loads(done.stdout).get("step") or -1))
    return max(steps)


def _bounded(
    call: Callable[[], Any], seconds: float, failed: str, warn: Callable[[str], None], remedy: str = ""
) -> Any | None:
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
    if not errors:
        _leave_client()
    reason = reason_of(errors[0]) if errors else f"no answer within {seconds:.0f} s"
    warn(f"W&B {failed}: {reason}. The local record is complete{remedy}.")
    return None


def _print_warning(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
