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

# What an update replaces: a field that is not sent is empty afterwards. (Secrets stay, though.)
UPDATED: Json = {
    "name": "",
    "type": "",
    "access": "",
    "url": "",
    "user": "",
    "database": "",
    "basicAuth": False,
    "basicAuthUser": "",
    "withCredentials": False,
    "isDefault": False,
    "jsonData": {},
}


def data_source(uid: str = "prometheus", **fields: Any) -> Json:
    """A data source as Grafana shows it; without `fields` it is as the gateway needs it."""
    return {
        "id": 7,
        "uid": uid,
        "orgId": 1,
        **UPDATED,
        "name": "Prometheus",
        "type": "prometheus",
        "typeLogoUrl": "public/app/plugins/datasource/prometheus/img/prometheus_logo.svg",
        "access": "proxy",
        "url": "http://prometheus:9090",
        "jsonData": {"timeInterval": "5s", "httpMethod": "POST", "manageAlerts": True},
        "secureJsonFields": {},
        "version": 3,
        "readOnly": False,
        **fields,
    }


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
        self.data_sources: dict[str, Json] = {}
        self.dashboards: dict[str, Json] = {}
        self.folders: dict[str, str] = {}  # of a dashboard, by its uid
        self.provisioned: set[str] = set()
        # By method and the beginning of the path: a status and a body (text is sent as HTML).
        self.instead: dict[tuple[str, str], tuple[int, Json | list[Json] | str]] = {}
        self.redirect = ""  # where an answer of `instead` leads to
        self.silent: tuple[str, str] | None = None  # a request that gets no answer
        self.requests: list[tuple[str, str]] = []
        self._closed = threading.Event()
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
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def writes(self) -> list[tuple[str, str]]:
        """The requests that changed something."""
        return [(method, path) for method, path in self.requests if method != "GET"]

    def answer(self, method: str, path: str, login: str, body: Json) -> tuple[int, Any]:
        """What Grafana says, or what stands in front of it."""
        self.requests.append((method, path))
        if self.silent == (method, path):
            self._closed.wait(30)
        for (wanted, beginning), answer in self.instead.items():
            if method == wanted and path.startswith(beginning):
                return answer
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
                return self._create(body)
            case "PUT", ["uid", uid] if uid in self.data_sources:
                return self._update(uid, body)
        return 404, {"message": "Data source not found"}

    def _create(self, body: Json) -> tuple[int, Json]:
        for what in "name", "uid":
            if any(d[what] == body[what] for d in self.data_sources.values()):
                return 409, {"message": f"data source with the same {what} already exists"}
        if not (body["name"] and body["type"] and body["access"]):
            return 400, {"message": "bad request data"}
        created = data_source(body["uid"], **UPDATED, version=1)
        created |= {name: body[name] for name in UPDATED if name in body}
        self.data_sources[body["uid"]] = created
        return 200, {"datasource": created, "message": "Datasource added"}

    def _update(self, uid: str, body: Json) -> tuple[int, Json]:
        present = self.data_sources[uid]
        if present["readOnly"]:
            return 403, {"message": "Cannot update read-only data source"}
        if not (body.get("name") and body.get("type") and body.get("access")):
            return 400, {"message": "bad request data"}
        if 0 < body.get("version", 0) < present["version"]:
            return 409, {
                "message": "Datasource has already been updated by someone else. "
                "Please reload and try again"
            }
        updated = {name: body.get(name, empty) for name, empty in UPDATED.items()}
        secrets = present["secureJsonFields"] | dict.fromkeys(body.get("secureJsonData", {}), True)
        version = body.get("version", 0) + 1
        updated = present | updated | {"secureJsonFields": secrets, "version": version}
        self.data_sources[uid] = updated
        return 200, {"datasource": updated, "message": "Datasource updated"}

    def _dashboard(self, method: str, path: str, body: Json) -> tuple[int, Json]:
        uid = path.rpartition("/")[2]
        if method == "GET" and uid in self.dashboards:
            meta = {
                "provisioned": uid in self.provisioned,
                "folderUid": self.folders.get(uid, ""),
            }
            return 200, {"dashboard": self.dashboards[uid], "meta": meta}
        if (method, path) != ("POST", "/api/dashboards/db"):
            return 404, {"message": "Dashboard not found"}
        uid = body["dashboard"]["uid"]
        if uid in self.provisioned:
            return 400, {"message": "Cannot save provisioned dashboard"}
        if uid in self.dashboards and not body["overwrite"]:
            return 412, {"message": "The dashboard has been changed by someone else"}
        self.dashboards[uid] = body["dashboard"]
        self.folders[uid] = body.get("folderUid", "")  # none is the top, whatever it was
        return 200, {"uid": uid, "status": "success"}

    def _handler(grafana: Grafana) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or b"{}")
                login = self.headers.get("Authorization", "")
                status, answer = grafana.answer(self.command, self.path, login, body)
                html = isinstance(answer, str)
                text = (answer if html else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if html else "application/json")
                self.send_header("Content-Length", str(len(text)))
                if grafana.redirect and 300 <= status < 400:
                    self.send_header("Location", grafana.redirect)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = _any  # noqa: N815

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Nothing: the tests read `requests`."""

        return Handler
