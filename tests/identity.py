"""An identity provider for the tests of OAUTHBEARER: its key, and a token endpoint that knows one client."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

CLIENT = "orders-service"
SECRET = "correct-horse"
AUDIENCE = "kafka"


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Identity:
    """Signs tokens. Brokers with `broker_properties` and `system_properties` accept them."""

    def __init__(self, directory: Path) -> None:
        self._key = generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256",
            "n": _encode(numbers.n.to_bytes(256, "big")), "e": _encode(numbers.e.to_bytes(3, "big")),
        }  # fmt: skip
        path = directory / "keys.json"
        path.write_text(json.dumps({"keys": [key]}))
        self._keys_url = f"file://{path}"
        # Brokers ask no other address for keys than these.
        self.system_properties = {"org.apache.kafka.sasl.oauthbearer.allowed.urls": self._keys_url}

    def broker_properties(self, listener: str) -> dict[str, str]:
        """The properties of brokers that accept passwords and our tokens at `listener`, and none that has expired."""
        package = "org.apache.kafka.common.security.oauthbearer"
        own = {
            "sasl.jaas.config": f"{package}.OAuthBearerLoginModule required;",
            "sasl.server.callback.handler.class": f"{package}.OAuthBearerValidatorCallbackHandler",
            "sasl.oauthbearer.jwks.endpoint.url": self._keys_url,
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            # So a connection ends with its token, unless the client authenticates again.
            "connections.max.reauth.ms": "3600000",
        }
        mechanisms = "SCRAM-SHA-512,OAUTHBEARER"
        return {
            "sasl.enabled.mechanisms": mechanisms,
            f"{listener}.sasl.enabled.mechanisms": mechanisms,
            **{f"{listener}.oauthbearer.{name}": value for name, value in own.items()},
        }

    def token(self, life_s: float = 3600, audience: str = AUDIENCE) -> str:
        """Return a signed token that is valid for so long."""
        now = int(time.time())
        claims = {"sub": CLIENT, "aud": audience, "iat": now, "exp": int(now + life_s)}
        text = ".".join(_encode(json.dumps(each).encode()) for each in ({"alg": "RS256", "kid": "1"}, claims))
        return f"{text}.{_encode(self._key.sign(text.encode(), PKCS1v15(), SHA256()))}"


class Endpoint:
    """A token endpoint: how it answers may be changed, and `asked` has the form of each request that was granted."""

    def __init__(self, identity: Identity, url: str) -> None:
        self.url = url
        self.identity = identity
        self.secret = SECRET
        self.audience = AUDIENCE
        self.life_s = 3600.0
        self.asked: list[dict[str, list[str]]] = []

    def answer(self, authorization: str, form: str) -> tuple[int, dict[str, object]]:
        """Return the status and the JSON of an answer. Called by the server's threads."""
        expected = base64.b64encode(f"{CLIENT}:{self.secret}".encode()).decode()
        if authorization != f"Basic {expected}":
            return 401, {"error": "invalid_client", "error_description": "wrong client or secret"}
        self.asked.append(parse_qs(form))
        token = self.identity.token(self.life_s, self.audience)
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.life_s}


@contextmanager
def serving(identity: Identity, tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """A token endpoint on loopback, until the end of the `with` block; with the certificate of `tls` for localhost."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, answer = endpoint.answer(self.headers.get("Authorization", ""), form)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        endpoint = Endpoint(identity, f"{scheme}://localhost:{server.server_port}/token")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
