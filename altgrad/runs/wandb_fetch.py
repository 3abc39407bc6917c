"""The process that talks to W&B: ``python -m altgrad.runs.wandb_fetch REQUEST``, started and ended by `wandb_pull`.

W&B's client prompts, waits without a limit, and now and then does not end; here it may, because whoever started this
process ends it after a time of silence. Each line of stdout is a JSON object that says what has come: ``listed`` (a
page of runs), ``rows`` (a part of a history), ``run`` (a run, all of whose rows have come), ``unchanged``, ``local``,
``failed`` (one run), and last ``done`` or ``error``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from altgrad.runs.wandb_access import reason_of

PAGE = 500
MOST = 100_000
"""Runs of a list that are followed."""
AGAIN = 10
"""Runs that a list may have twice, as where one was added meanwhile; one whose pages lead back has more."""
ATTEMPTS = 4
_T = TypeVar("_T")


def main(path: str) -> None:
    """Answer the request in the JSON file `path`: project, entity, known, local, threads, timeout."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    out = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # what the client prints is not for the reader of stdout
    lock = threading.Lock()

    def say(event: str, **what: Any) -> None:
        with lock:
            out.write(json.dumps({"event": event, **what}) + "\n")
            out.flush()

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        _fetch(request, say)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # an EOF at a prompt raises KeyboardInterrupt
        say("error", reason=_explained(error))
    else:
        say("done")


def _end_with_parent(parent: int) -> None:
    """Whoever started this process may have been killed, and then nobody ends it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _fetch(request: dict[str, Any], say: Callable[..., None]) -> None:
    import wandb

    entity, project = request["entity"], request["project"]
    api = _retried(lambda: wandb.Api(timeout=request["timeout"], overrides={"entity": entity} if entity else {}))
    entity = entity or _retried(lambda: api.default_entity)
    if not entity:
        raise ValueError("W&B knows no entity for this key; give one with --entity or WANDB_ENTITY")
    changed, seen, again, cut = [], set[str](), 0, ""
    for run in _listed(api.runs(f"{entity}/{project}", lazy=False, per_page=PAGE), say):
        if run.id in seen:
            again += 1
            if again > AGAIN:
                cut = f"the answer is not W&B's: its list has the run {run.id[:80]!r} twice, and others"
                break
            continue
        if len(seen) == MOST:
            cut = f"its list has more than {MOST:,} runs; the others were not asked for"
            break
        seen.add(run.id)
        listed = len(seen)
        if listed % PAGE == 1:
            say("listed", runs=listed)
        mark = _mark(run)
        if run.id in request["local"]:
            say("local", id=run.id)
        elif request["known"].get(f"{entity}/{project}/{run.id}") == mark:
            say("unchanged", id=run.id)
        else:
            changed.append((run, mark))
    say("listed", runs=len(seen), changed=len(changed), entity=entity)

    def fetch(item: tuple[Any, list[Any]]) -> None:
        run, mark = item
        try:
            _history(run, say)
            say("run", **_described(run, entity, project, mark))
        except Exception as error:
            say("failed", id=run.id, reason=reason_of(error))

    with ThreadPoolExecutor(request["threads"]) as pool:
        list(pool.map(fetch, changed))
    if cut:
        raise ValueError(cut)


def _mark(run: Any) -> list[Any]:
    """What tells whether a run has changed."""
    return [run.heartbeat_at, run.history_line_count, run.state]


def _listed(runs: Any, say: Callable[..., None]) -> Iterator[Any]:
    """The runs of a list; one that the client makes no run of is left out, and said to be."""
    convert = runs.convert_objects

    def each() -> list[Any]:
        page = runs.last_response
        try:
            edges = page["project"]["runs"]["edges"]
        except (LookupError, TypeError):  # no list at all: the client says why
            return convert()  # type: ignore[no-any-return]
        found = []
        for edge in edges or ():
            alone = {**page["project"], "runs": {**page["project"]["runs"], "edges": [edge]}}
            runs.last_response = {**page, "project": alone}
            try:
                found += [run for run in convert() if _mark(run)]
            except Exception as error:
                node = edge.get("node") if isinstance(edge, dict) else None
                name = node.get("name") if isinstance(node, dict) else None
                say(
                    "failed",
                    id=str(name)[:80],
                    reason=reason_of(f"its description cannot be read ({reason_of(error)})"),
                )
        runs.last_response = page
        return found

    runs.convert_objects = each
    at = 0
    while True:
        try:
            yield _retried(lambda: runs[at])  # noqa: B023 - called at once
        except IndexError:
            return
        at += 1


def _history(run: Any, say: Callable[..., None]) -> None:
    """All rows, in parts, so that a long history is heard of while it comes; a new attempt begins from the start."""

    def read() -> None:
        say("rows", id=run.id, first=True, rows=[])
        rows = []
        for row in run.scan_history():
            rows.append(row)
            if len(rows) == PAGE:
                say("rows", id=run.id, rows=rows)
                rows = []
        say("rows", id=run.id, rows=rows)

    _retried(read)


def _described(run: Any, entity: str, project: str, mark: list[Any]) -> dict[str, Any]:
    found = {key: getattr(run, key) for key in ("id", "name", "url", "group", "config")}
    found |= {"notes": run.notes or "", "tags": list(run.tags or ()), "created": run.created_at}
    found |= {"entity": entity, "project": project, "summary": run.summary_metrics}
    return found | dict(zip(("heartbeat", "lines", "state"), mark, strict=True))


def _retried(call: Callable[[], _T]) -> _T:
    """`call()`, again with growing pauses where the server was busy; its client does the same within a request."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            if attempt == ATTEMPTS or not _passing(error):
                raise
            time.sleep(random.uniform(0.5, 1) * 2**attempt)
    raise AssertionError("unreachable")


def _explained(error: BaseException) -> str:
    """Why there is no answer; an answer that is no JSON is most often the sign-in page of a network."""
    no_json = any(sign in str(error) for sign in ("invalid character", "unexpected EOF", "unexpected end of JSON"))
    return f"the answer is not W&B's ({reason_of(str(error).rpartition(': ')[2])})" if no_json else reason_of(error)


def _passing(error: BaseException | None) -> bool:
    """Whether an error is one of load: 429, 5xx, or no answer in time."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "http_status", None)
        if status:
            return bool(status == 429 or status >= 500)
        if any(sign in str(error) for sign in ("did not respond in time", "giving up after", "deadline", "timed out")):
            return True
        error = error.__cause__ or getattr(error, "exc", None)
    return False


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # not by way of the client's own end, which now and then does not come
