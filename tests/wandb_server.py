"""A W&B server on the loopback: enough of its protocol for the real client to write, sync and read; it can misbehave.

Runs are kept in memory. Every request is counted by its GraphQL operation (or ``file_stream``, ``file``, ``upload``).
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "k" * 40
ENTITY = "team"
_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
_PORTAL = b"<!doctype html><html><body>Sign in to use this network</body></html>"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass
class StoredRun:
    """What the server knows of one run; `history` holds the JSON lines as the client sent them."""

    name: str
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    state: str = "running"
    created: str = field(default_factory=now)
    heartbeat: str = field(default_factory=now)
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    group: str = ""
    parquet: bytes | None = None
    """The exported part of the history; `history` is then the live part."""

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]

    @property
    def last_step(self) -> int:
        return max((int(row.get("_step", -1)) for row in self.rows()), default=-1)


@dataclass
class Fault:
    """How requests are answered instead of well: every one, or the first `times` of an operation that `only` names.

    `kind`: a status code ("401", "404", "429", "500"), "hang", "malformed" (cut JSON) or "portal" (HTML with 200).
    """

    kind: str
    times: int | None = None
    only: str = ""
    retry_after: int = 0


class WandbServer:
    """The server and its state; a context manager. `url` is what WANDB_BASE_URL takes."""

    def __init__(self) -> None:
        self.projects: dict[tuple[str, str], dict[str, StoredRun]] = {}
        self.requests: Counter[str] = Counter()
        self.alerts: list[dict[str, Any]] = []
        self.tunnels: list[str] = []
        self.sweeps: dict[str, str] = {}
        """Name of a sweep -> its definition as it came."""
        self.sweep_runs: list[dict[str, Any]] = []
        """What agents are told to run, one at each heartbeat without a run: id and swept parameters."""
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self.lock = threading.RLock()
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def runs(self, project: str = "altgrad", entity: str = ENTITY) -> dict[str, StoredRun]:
        return self.projects.setdefault((entity, project), {})

    def add(self, project: str, name: str, *, entity: str = ENTITY, **fields: Any) -> StoredRun:
        """A run as other code left it; `config` is plain, `history` a list of rows."""
        rows = fields.pop("history", [])
        config = {key: {"value": value} for key, value in fields.pop("config", {}).items()}
        lines = [json.dumps({"_step": step, **row}) for step, row in enumerate(rows)]
        fields.setdefault("state", "finished")
        run = StoredRun(name, history=lines, config=config, **fields)
        self.runs(project, entity)[name] = run
        return run

    @contextmanager
    def misbehaving(self, kind: str, **how: Any) -> Iterator[None]:
        fault = Fault(kind, **how)
        self.faults.append(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Counts what is asked inside the block."""
        before, found = self.requests.copy(), Counter[str]()
        yield found
        found.update(self.requests - before)

    # What follows answers GraphQL operations: name of the operation -> its data.

    def answer(self, operation: str, given: Mapping[str, Any]) -> dict[str, Any]:
        with self.lock:
            found = getattr(self, f"_{operation}", None)
            return {} if found is None else found(given)

    def _Viewer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": "someone", "email": "", "flags": "{}", "name": "S"}
        return {"viewer": viewer | {"teams": {"edges": [{"node": {"name": ENTITY}}]}}}

    _GetViewer = _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _Runs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        runs = self.projects.get((given["entity"], given["project"]))
        if runs is None:
            return {"project": None}
        first = int(given.get("cursor") or 0)
        names = list(runs)[first : first + int(given["perPage"])]
        edges = [{"node": _node(runs[name]), "cursor": str(first + i + 1)} for i, name in enumerate(names)]
        last = first + len(names)
        page = {"endCursor": str(last), "hasNextPage": last < len(runs)}
        head = {"internalId": "UHJvamVjdDox", "runCount": len(runs), "readOnly": False}
        return {"project": head | {"runs": {"edges": edges, "pageInfo": page}}}

    def _run(self, given: Mapping[str, Any]) -> StoredRun | None:
        name = given.get("name") or given.get("run") or given.get("runName")
        return self.projects.get((given.get("entity") or ENTITY, given["project"]), {}).get(str(name))

    def _Run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(given)
        return {"project": {"run": _node(run) if run else None}}

    _RunState = _QueryRunInfo = _RunHistoryKeys = _Run

    def _HistoryPage(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(given)
        assert run is not None
        first, last = int(given["minStep"]), int(given["maxStep"])
        return {
            "project": {"run": {"history": [line for line in run.history if first <= json.loads(line)["_step"] < last]}}
        }

    def _RunFullHistory(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(given)
        return {"project": {"run": {"history": _sampled(run.history, int(given["samples"])) if run else []}}}

    def _RunSampledHistory(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run, spec = self._run(given), json.loads(given["specs"][0])
        rows = [row for row in (run.rows() if run else []) if all(key in row for key in spec["keys"])]
        kept = [{key: row[key] for key in spec["keys"]} for row in _sampled(rows, int(spec["samples"]))]
        return {"project": {"run": {"sampledHistory": [kept]}}}

    def _RunParquetHistory(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(given)
        assert run is not None
        urls = [f"{self.url}/parquet/{given['entity']}/{given['project']}/{run.name}"] if run.parquet else []
        live = [] if run.parquet and not run.history else [json.loads(line) for line in run.history]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": urls, "liveData": live}}}}

    def _RunResumeStatus(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(given)
        head = {"id": "UHJvamVjdDox", "name": given["project"], "entity": {"id": "RW50aXR5OjE", "name": ENTITY}}
        if run is None:
            return {"model": head | {"bucket": None}}
        tail = {"historyTail": json.dumps(run.history[-1:]), "eventsTail": "[]"}
        counts = {"logLineCount": 0, "eventsLineCount": 0, "wandbConfig": json.dumps({"t": 1})}
        return {"model": head | {"bucket": _node(run) | tail | counts}}

    def _UpsertBucket(self, given: Mapping[str, Any]) -> dict[str, Any]:
        entity, project = given.get("entity") or ENTITY, given.get("project") or "uncategorized"
        runs = self.runs(project, entity)
        name = given.get("name") or ""
        inserted = name not in runs
        run = runs.setdefault(name, StoredRun(name))
        for key, own in (("displayName", "display_name"), ("notes", "notes"), ("tags", "tags"), ("groupName", "group")):
            if given.get(key):
                setattr(run, own, given[key])
        if given.get("config"):
            run.config = json.loads(given["config"])
        run.state, run.heartbeat = given.get("state") or "running", now()
        owner = {"id": "RW50aXR5OjE", "name": entity}
        bucket = _node(run) | {"project": {"id": "UHJvamVjdDox", "name": project, "entity": owner}}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, given: Mapping[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{i}"} for i, name in enumerate(given["files"])]
        return {"createRunFiles": {"runID": "UnVuOjE", "uploadHeaders": [], "files": files}}

    def _UpsertSweep(self, given: Mapping[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = given["config"]
        project = {"id": "UHJvamVjdDox", "name": given["projectName"], "entity": {"id": "RW50aXR5OjE", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = {"id": given["sweep"], "config": self.sweeps[given["sweep"]], "runs": {"edges": []}}
        return {"project": {"sweep": found}}

    def _CreateAgent(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "QWdlbnQ6MQ=="}}}

    def _Heartbeat(self, given: Mapping[str, Any]) -> dict[str, Any]:
        busy = json.loads(given["runState"]) or not self.sweep_runs
        new = [] if busy else [{"type": "run", "program": None, **self.sweep_runs.pop(0)}]
        return {"agentHeartbeat": {"agent": {"id": "QWdlbnQ6MQ=="}, "commands": json.dumps(new)}}

    def _NotifyScriptableRunAlert(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self.alerts.append(dict(given))
        return {"notifyScriptableRunAlert": {"success": True}}

    def stream(self, entity: str, project: str, name: str, body: Mapping[str, Any]) -> None:
        """A POST of the file stream: history lines at an offset, the summary, the end."""
        with self.lock:
            run = self.runs(project, entity).setdefault(name, StoredRun(name))
            run.heartbeat = now()
            for file, part in (body.get("files") or {}).items():
                if file == "wandb-history.jsonl":
                    offset = part["offset"]
                    run.history[offset : offset + len(part["content"])] = [_standard(line) for line in part["content"]]
                if file == "wandb-summary.json":
                    run.summary = json.loads(part["content"][-1], parse_constant=str)
            if body.get("complete"):
                run.state = "finished" if not body.get("exitcode") else "failed"


def _standard(line: str) -> str:
    """The line as W&B gives it back: NaN and infinities are text there."""
    return json.dumps(json.loads(line, parse_constant=str))


def wandb_environment(server: WandbServer, home: Path) -> dict[str, str]:
    """Settings under which the real client knows this server alone.

    Requests for any other host go to it as to a proxy: `WandbServer.tunnels` lists them.
    """
    folders = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    proxies = {"HTTPS_PROXY": server.url, "HTTP_PROXY": server.url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(home), **folders, **proxies}


def _sampled(rows: list[Any], samples: int) -> list[Any]:
    return rows[:: max(1, -(-len(rows) // max(samples, 1)))]


def _node(run: StoredRun) -> dict[str, Any]:
    return {
        "id": base64.b64encode(f"Run:{run.name}".encode()).decode(),
        "name": run.name,
        "displayName": run.display_name or run.name,
        "projectId": "1",
        "tags": run.tags,
        "sweepName": None,
        "state": run.state,
        "config": json.dumps(run.config),
        "group": run.group,
        "jobType": None,
        "commit": None,
        "readOnly": False,
        "createdAt": run.created,
        "heartbeatAt": run.heartbeat,
        "description": None,
        "notes": run.notes,
        "systemMetrics": "{}",
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history),
        "user": {"name": "S", "username": "someone"},
        "historyKeys": {"lastStep": run.last_step, "keys": {}, "sets": []},
    }


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that was killed in the middle of a request is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    state: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, data: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        try:
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was killed, which is what some tests are about
            self.close_connection = True

    def _misbehaved(self, operation: str) -> bool:
        """Answers badly where a fault applies."""
        with self.state.lock:
            applying = (each for each in self.state.faults if each.times != 0 and each.only in ("", operation))
            fault = next(applying, None)
            if fault is None:
                return False
            if fault.times is not None:
                fault.times -= 1
        if fault.kind == "hang":
            self.state.closing.wait(120)
            self.close_connection = True
        elif fault.kind == "malformed":
            self._send(b'{"data": {"viewer": ')
        elif fault.kind == "portal":
            self._send(_PORTAL, kind="text/html")
        else:
            after = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
            self._send(json.dumps({"errors": [{"message": f"status {fault.kind}"}]}).encode(), int(fault.kind), **after)
        return True

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("http"):
            self.state.tunnels.append(self.path)
        stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path)
        query = json.loads(body) if body else {}
        found = _OPERATION.search(query.get("query", ""))
        operation = "file_stream" if stream else found[1] if found else self.path
        with self.state.lock:
            self.state.requests[operation] += 1
        if self._misbehaved(operation):
            return
        if stream:
            self.state.stream(*stream.groups(), query)
            self._send(b'{"exitcode": null, "limits": {}}')
            return
        self._send(json.dumps({"data": self.state.answer(operation, query.get("variables") or {})}).encode())

    def do_CONNECT(self) -> None:
        """Somebody takes the server for a proxy, as `wandb_environment` says: a request for another host."""
        self.state.tunnels.append(self.path)
        self._send(b"", 502)

    def do_GET(self) -> None:
        with self.state.lock:
            self.state.requests["file"] += 1
        if self._misbehaved("file"):
            return
        found = re.fullmatch(r"/parquet/([^/]+)/([^/]+)/([^/]+)", self.path)
        run = self.state.runs(found[2], found[1]).get(found[3]) if found else None
        if run is None or run.parquet is None:
            self._send(b"{}", 404)
            return
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        if first or last:
            size = len(run.parquet)
            begin, end = (int(first), int(last or size - 1)) if first else (size - int(last), size - 1)
            end = min(end, size - 1)
            self._send(run.parquet[begin : end + 1], 206, **{"Content-Range": f"bytes {begin}-{end}/{size}"})
            return
        self._send(run.parquet, kind="application/octet-stream")

    def do_HEAD(self) -> None:
        found = re.fullmatch(r"/parquet/([^/]+)/([^/]+)/([^/]+)", self.path)
        run = self.state.runs(found[2], found[1]).get(found[3]) if found else None
        self.send_response(200 if run and run.parquet else 404)
        self.send_header("Content-Length", str(len(run.parquet or b"") if run else 0))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_PUT(self) -> None:
        self._body()
        with self.state.lock:
            self.state.requests["upload"] += 1
        if not self._misbehaved("upload"):
            self._send(b"{}")


def wait_until(condition: Any, seconds: float = 5.0) -> bool:
    """Whether `condition()` came true within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
