"""A small stand-in for Grafana's HTTP API: the paths that setup-grafana.sh uses, no more.

Statuses and messages are those of Grafana 12 (pkg/api: datasources.go, dashboard.go, health.go).
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


class Grafana:
    """A running stand-in; its fields say how it behaves and hold what it was given."""

    def __init__(self, *, password: str = "admin", token: str = "a-token") -> None:
        self.accepted = {
            "Basic " + base64.b64encode(f"admin:{password}".encode()).decode(),
            f"Bearer {token}",
        }
        self.starting = 0  # answers of 503 from /api/health before it is up
        self.viewer = False
        self.prometheus_answers = True
        self.broken_dashboards = False
        self.data_sources: dict[str, Json] = {}
        self.dashboards: dict[str, Json] = {}
        self.provisioned: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        # A short poll: `shutdown` waits for the next one.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def writes(self) -> list[tuple[str, str]]:
        """The requests that changed something."""
        return [(method, path) for method, path in self.requests if method != "GET"]

    def answer(self, method: str, path: str, login: str, body: Json) -> tuple[int, Json]:
        """What Grafana says."""
        self.requests.append((method, path))
        if path == "/api/health":
            self.starting -= 1
            return (503 if self.starting >= 0 else 200), {"database": "ok"}
        if login not in self.accepted:
            return 401, {"message": "Invalid username or password"}
        if path == "/api/org":
            return 200, {"id": 1, "name": "Main Org."}
        if path.startswith("/api/datasources"):
            return self._data_source(method, path, body)
        return self._dashboard(method, path, body)

    def _data_source(self, method: str, path: str, body: Json) -> tuple[int, Json]:
        if self.viewer:
            return 403, {"message": "You'll need additional permissions to perform this action."}
        parts = path.split("/")[3:]
        match method, parts:
            case "GET", ["uid", uid] if uid in self.data_sources:
                return 200, self.data_sources[uid]
            case "GET", ["name", name]:
                named = [d for d in self.data_sources.values() if d["name"] == name]
                return (200, named[0]) if named else (404, {"message": "Data source not found"})
            case "GET", ["uid", uid, "health"]:
                if self.prometheus_answers:
                    return 200, {
                        "status": "OK",
                        "message": "Successfully queried the Prometheus API.",
                    }
                return 400, {"status": "ERROR", "message": "connection refused"}
            case "POST", []:
                if any(d["name"] == body["name"] for d in self.data_sources.values()):
                    return 409, {"message": "data source with the same name already exists"}
                self.data_sources[body["uid"]] = body
                return 200, {"datasource": body, "message": "Datasource added"}
            case "PUT", ["uid", uid]:
                self.data_sources[uid] = body
                return 200, {"datasource": body, "message": "Datasource updated"}
        return 404, {"message": "Data source not found"}

    def _dashboard(self, method: str, path: str, body: Json) -> tuple[int, Json]:
        uid = path.rpartition("/")[2]
        if method == "GET" and uid in self.dashboards:
            meta = {"provisioned": uid in self.provisioned}
            return 200, {"dashboard": self.dashboards[uid], "meta": meta}
        if (method, path) != ("POST", "/api/dashboards/db"):
            return 404, {"message": "Dashboard not found"}
        if self.broken_dashboards:
            return 500, {"message": "database is locked"}
        uid = body["dashboard"]["uid"]
        if uid in self.provisioned:
            return 400, {"message": "Cannot save provisioned dashboard"}
        if uid in self.dashboards and not body["overwrite"]:
            return 412, {"message": "The dashboard has been changed by someone else"}
        self.dashboards[uid] = body["dashboard"]
        return 200, {"uid": uid, "status": "success"}

    def _handler(grafana: Grafana) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or b"{}")
                login = self.headers.get("Authorization", "")
                status, answer = grafana.answer(self.command, self.path, login, body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = _any  # noqa: N815

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Nothing: the tests read `requests`."""

        return Handler
