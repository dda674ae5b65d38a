"""A server on loopback that knows as much of W&B's GraphQL as a report needs, and keeps what it is
sent: projects with their runs, and the reports (views) of a project.

upstream: another server, asked what this one does not know itself, such as one that takes runs.
"""

import base64
import gzip
import http.server
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OURS = {"ProjectViews", "upsertView"}  # what no server but W&B's own answers


@dataclass
class Server:
    """What the server has. runs: of each (entity, project), by id; views: by id."""

    key: str
    entity: str | None = "me"
    upstream: str | None = None
    runs: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add_run(
        self, project: tuple[str, str], run_id: str, group: str, summary: dict[str, Any]
    ) -> None:
        """A run as its tracker has left it."""
        self.runs.setdefault(project, {})[run_id] = {"group": group, "summary": dict(summary)}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of an answer; KeyError for a question that is not known."""
        found = re.search(r"(query|mutation)\s+(\w+)", query)
        name = found[2] if found else ""
        self.asked.append(name)
        if self.upstream and name not in OURS:
            raise KeyError(name)
        return ANSWERS[name](self, given)

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": self.entity, "username": "me", "flags": "{}"}}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        name = (given["entityName"], given["projectName"])
        return {"project": {"id": "p", "internalId": "7"} if name in self.runs else None}

    def _projects(self, given: dict[str, Any]) -> dict[str, Any]:
        names = [project for entity, project in self.runs if entity == given["entity"]]
        nodes = [{"__typename": "Project", "id": n, "name": n, "entityName": given["entity"],
                  "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
                 for n in names]  # fmt: skip
        return {"models": {"pageInfo": PAGE, "edges": [{"node": node} for node in nodes]}}

    def _runs(self, given: dict[str, Any]) -> dict[str, Any]:
        runs = self.runs.get((given["entity"], given["project"]))
        if runs is None:
            return {"project": None}
        wanted = json.loads(given["filters"])
        group, names = wanted.get("group"), wanted.get("name", {}).get("$in", runs)
        nodes = [
            {"id": f"storage-{key}", "name": key, "displayName": key, "projectId": 7, "tags": [],
             "state": "finished", "config": "{}", "group": run["group"], "jobType": "trial",
             "readOnly": False, "createdAt": "2026-01-01T00:00:00", "systemMetrics": "{}",
             "summaryMetrics": json.dumps(run["summary"]), "historyLineCount": 1,
             "user": {"name": "me", "username": "me"}, "historyKeys": None}
            for key, run in runs.items()
            if group in (None, run["group"]) and key in names
        ]  # fmt: skip
        page = {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": PAGE}
        return {"project": {"internalId": "7", "runCount": len(nodes), "runs": page}}

    def _summary(self, given: dict[str, Any]) -> dict[str, Any]:
        key = given["id"].removeprefix("storage-")
        (run,) = [runs[key] for runs in self.runs.values() if key in runs]
        run["summary"] = json.loads(given["summaryMetrics"])
        return {"upsertBucket": {"bucket": {"id": given["id"]}}}

    def _views(self, given: dict[str, Any]) -> dict[str, Any]:
        place = (given["entity"], given["project"])
        nodes = [view for view in self.views.values() if view["place"] == place]
        page = {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": PAGE}
        return {"project": {"allViews": page}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        key = given["id"]
        if key is not None and key not in self.views:
            raise ValueError(f"no view {key}")
        is_new = key is None
        key = key or base64.b64encode(f"View:{len(self.views) + 1}".encode()).decode()
        place = (given["entityName"], given["projectName"])
        view = {name: given[name] for name in ("name", "displayName", "description", "spec")}
        self.views[key] = {**view, "id": key, "type": given["type"], "place": place}
        project = {"id": "p", "name": place[1], "entityName": place[0]}
        shown = {**self.views[key], "project": project, "updatedAt": "2026-01-01T00:00:00"}
        del shown["place"]
        return {"upsertView": {"view": shown, "inserted": is_new}}


PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
ANSWERS = {
    "": lambda server, given: {"__typename": "Query"},
    "Viewer": Server._viewer,
    "GetDefaultEntity": Server._viewer,
    "ProjectInternalId": Server._project,
    "GetProjects": Server._projects,
    "Runs": Server._runs,
    "UpsertBucket": Server._summary,
    "ProjectViews": Server._views,
    "upsertView": Server._upsert,
}


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server on a free port of loopback; without `upstream` it knows one API key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.upstream is None and not self._is_known():
                return self._send(401, b'{"errors": [{"message": "user is not logged in"}]}')
            if self.path != "/graphql":
                return self._forward(body)
            asked = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            try:
                data = server.answer(asked["query"], asked.get("variables") or {})
            except ValueError as error:
                return self._send(200, json.dumps({"errors": [{"message": str(error)}]}).encode())
            except KeyError:
                if server.upstream is None:
                    return self._send(400, b"{}")
                # it takes an empty name for the name of a question
                kept = {name: value for name, value in asked.items() if value != ""}
                return self._forward(json.dumps(kept).encode())
            self._send(200, json.dumps({"data": data}).encode())

        do_GET = do_PUT = do_POST

        def _is_known(self) -> bool:
            expected = base64.b64encode(f"api:{server.key}".encode()).decode()
            is_probe = self.headers.get("User-Agent") == "ddpm"  # it asks without a key
            return is_probe or self.headers.get("Authorization") == f"Basic {expected}"

        def _forward(self, body: bytes) -> None:
            unsent = ("host", "content-length", "accept-encoding", "content-encoding")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in unsent}
            if self.path != "/graphql" and "Content-Encoding" in self.headers:
                headers["Content-Encoding"] = self.headers["Content-Encoding"]
            request = urllib.request.Request(
                f"{server.upstream}{self.path}", body or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    self._send(response.status, response.read())
            except urllib.error.HTTPError as error:
                self._send(error.code, error.read())

        def _send(self, code: int, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{listener.server_address[1]}"
        yield server
        listener.shutdown()
