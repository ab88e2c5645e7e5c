"""A schema registry in this process, with the requests that confluent-kafka's client makes, and faults on demand.

Its answers are those of Confluent's (API v7), which tests/workers/test_schemas.py compares with a real registry's.
"""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class FakeRegistry:
    """With `status` it answers every request with this HTTP status, with `stray` with a status and a body that another
    server has sent, to paths that begin with `stray_at`. `requests` are the paths of its requests.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.status: int | None = None
        self.stray: tuple[int, bytes] | None = None
        self.stray_at = "/"
        self.user = ""
        self.requests: list[str] = []
        self._schemas: list[dict[str, Any]] = []
        # The ids of each subject's versions.
        self._subjects: dict[str, list[int]] = {}

    def register(self, subject: str, schema: str, kind: str = "AVRO", references: Any = ()) -> int:
        """The id of the schema, which is of a new version of the subject where it has not that one yet."""
        document = {"schema": schema, "schemaType": kind, "references": [*references]}
        if document not in self._schemas:
            self._schemas.append(document)
        number = self._schemas.index(document) + 1
        versions = self._subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def answer(self, method: str, path: str, body: dict[str, Any], authorization: str) -> tuple[int, Any]:
        self.requests.append(path)
        if self.stray is not None and path.startswith(self.stray_at):
            return self.stray
        if self.status is not None:
            return self.status, {"error_code": self.status, "message": "as the test says"}
        if self.user and authorization != f"Basic {base64.b64encode(self.user.encode()).decode()}":
            return 401, {"error_code": 401, "message": "Unauthorized"}
        match method, [unquote(each) for each in path.strip("/").split("/")]:
            case "GET", ["schemas", "ids", number]:
                if not 0 < int(number) <= len(self._schemas):
                    return 404, {"error_code": 40403, "message": f"Schema {number} not found"}
                return 200, self._schemas[int(number) - 1]
            case "GET", ["subjects", subject, "versions", version]:
                versions = self._subjects.get(subject)
                if versions is None:
                    return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
                place = len(versions) if version == "latest" else int(version)
                return 200, self._registered(subject, versions[place - 1])
            case "POST", ["subjects", subject, *rest]:
                document = {
                    "schema": body["schema"],
                    "schemaType": body.get("schemaType", "AVRO"),
                    "references": body.get("references") or [],
                }
                if document["schemaType"] != "PROTOBUF" and not _is_json(document["schema"]):
                    return 422, {"error_code": 42201, "message": "Invalid schema"}
                if rest:
                    made = self.register(subject, document["schema"], document["schemaType"], document["references"])
                    return 200, {"id": made}
                versions = self._subjects.get(subject)
                if versions is None:
                    return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
                found = [each for each in versions if self._schemas[each - 1] == document]
                if not found:
                    return 404, {"error_code": 40403, "message": "Schema not found"}
                return 200, self._registered(subject, found[0])
        return 404, {"message": "HTTP 404 Not Found"}

    def _registered(self, subject: str, number: int) -> dict[str, Any]:
        version = self._subjects[subject].index(number) + 1
        return {"subject": subject, "version": version, "id": number, **self._schemas[number - 1]}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@contextmanager
def fake_registry(port: int = 0, certificate: str = "") -> Iterator[FakeRegistry]:
    """A registry while the block runs, on a free port unless it is said; with TLS if a certificate's file is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, document = registry.answer(
                self.command, urlsplit(self.path).path, json.loads(body or b"{}"), self.headers["Authorization"] or ""
            )
            answer = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            scheme = "https"
        registry = FakeRegistry(f"{scheme}://localhost:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
