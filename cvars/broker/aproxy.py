"""COCONUT-SVSM's attestation proxy protocol in front of a KBS (key-release 5.7).

Between SVSM and proxy: a stream of messages, each an 8-byte little-endian length and that many bytes of JSON. The
proxy is untrusted, as the host that runs it is: it carries a challenge in, evidence out, and a JWE's parts back.
Anything that is not one of the two messages, too large or too slow, closes the connection.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from cvars.errors import CvarsError, OutsideFailure, UsageMistake
from cvars.release.answers import cookie_of, object_of, read_object, rule_of, text_of
from cvars.release.encoding import Malformed, b64, b64_decode, b64url, b64url_decode, strict_json
from cvars.release.transport import Http

MAX_MESSAGE: Final = 64 * 1024  # bytes
STEP_S: Final = 10.0
VSOCK_PORT: Final = 1995
VSOCK_PORT_ANY: Final = 0xFFFFFFFF  # VMADDR_PORT_ANY: a port that nobody would find
COORDINATE: Final = 66  # bytes of a P-521 coordinate
VERSION: Final = [0, 1, 0]
PARAMETERS: Final = ["EcPublicKeyBytes", "Challenge"]
log = structlog.get_logger("cvars.aproxy")


class Closed(Exception):
    """The conversation is over; why."""


def read_message(stream: socket.socket) -> dict[str, Any]:
    """One message. Raises ``Closed``."""
    size = int.from_bytes(_exactly(stream, 8), "little")
    if not 0 < size <= MAX_MESSAGE:
        raise Closed(f"a message of {size} bytes")
    try:
        document = strict_json(_exactly(stream, size))
    except Malformed as error:
        raise Closed(str(error)) from None
    if not isinstance(document, dict):
        raise Closed("not an object")
    return document


def _exactly(stream: socket.socket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        try:
            part = stream.recv(size - len(out))
        except OSError as error:
            raise Closed(f"nothing came: {type(error).__name__}") from None
        if not part:
            raise Closed("the peer closed")
        out += part
    return bytes(out)


def write_message(stream: socket.socket, document: Mapping[str, Any]) -> None:
    """Send one message. Raises ``Closed``."""
    data = json.dumps(document, separators=(",", ":")).encode()
    try:
        stream.sendall(len(data).to_bytes(8, "little") + data)
    except OSError as error:
        raise Closed(f"not sent: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Proxy:
    """Speaks to SVSM on one side and to the KBS behind ``http`` on the other."""

    http: Http
    resource: str = "default/sample/test"

    def converse(self, stream: socket.socket) -> None:
        """One negotiation and one attestation. Raises ``Closed``."""
        stream.settimeout(STEP_S)
        first = read_message(stream)
        if set(first) != {"version", "tee"} or first["version"] != VERSION or first["tee"] != "snp":
            raise Closed("not a negotiation of version 0.1.0 for snp")
        answer = self._post("/kbs/v0/auth", {"version": "0.4.0", "tee": "snp", "extra-params": ""}, "")
        if answer.status != 200:
            raise Closed(f"the KBS gives no challenge: {rule_of(answer)}")
        nonce, cookie = text_of(read_object(answer), "nonce"), cookie_of(answer)
        write_message(stream, {"challenge": nonce, "params": PARAMETERS})
        write_message(stream, self._attest(read_message(stream), nonce, cookie))

    def _attest(self, request: Mapping[str, Any], nonce: str, cookie: str) -> dict[str, Any]:
        """The answer to evidence: the parts that SVSM decrypts with, or ``success: false``."""
        try:
            if set(request) != {"tee", "evidence", "challenge", "key"} or request["challenge"] != nonce:
                raise Closed("not the evidence for this challenge")
            report = request["evidence"]["Snp"]
            key = {n: b64url(b64_decode(request["key"][n]).rjust(COORDINATE, b"\0")) for n in ("x", "y")}
            b64_decode(report["report"])
            primary = {"snp-report": report["report"], "certs-buf": report.get("certs_buf")}
        except (Malformed, KeyError, TypeError, AttributeError):
            raise Closed("malformed evidence") from None
        jwk = {"kty": "EC", "crv": "P-521", "alg": "ECDH-ES+A256KW"} | key
        body = {
            "runtime-data": {"nonce": nonce, "tee-pubkey": jwk},
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": ""},
        }
        answer = self._post("/kbs/v0/attest", body, cookie)
        if answer.status != 200:
            log.info("refused", step="attest", rule=rule_of(answer))
            return {"success": False}
        token = text_of(read_object(answer), "token")
        path = f"/kbs/v0/resource/{self.resource}"
        answer = self.http("GET", path, {"cookie": f"kbs-session-id={cookie}"}, b"")
        if answer.status != 200:
            log.info("refused", step="resource", rule=rule_of(answer))
            return {"success": False, "token": {"Jwt": token}}
        return {"success": True} | _parts(read_object(answer)) | {"token": {"Jwt": token}}

    def _post(self, path: str, document: Mapping[str, Any], cookie: str) -> Any:  # noqa: ANN401 - Response
        headers = {"content-type": "application/json"} | ({"cookie": f"kbs-session-id={cookie}"} if cookie else {})
        return self.http("POST", path, headers, json.dumps(document).encode())


def _parts(jwe: Mapping[str, Any]) -> dict[str, Any]:
    """The JWE as SVSM takes it: standard base64, the associated data ready-made."""

    def part(name: str) -> str:
        return b64(b64url_decode(text_of(jwe, name)))

    protected = text_of(jwe, "protected")
    header = strict_json(b64url_decode(protected))
    epk = object_of(header, "epk")
    return {
        "secret": part("ciphertext"),
        "decryption": {
            "epk": {n: b64(b64url_decode(text_of(epk, n))) for n in ("x", "y")},
            "wrapped_cek": part("encrypted_key"),
            "aad": b64(protected.encode()),
            "iv": part("iv"),
            "tag": part("tag"),
        },
    }


def listen(where: str) -> socket.socket:
    """A listening socket: ``unix:PATH``, ``vsock`` or ``vsock:PORT``.

    Raises ``OutsideFailure`` or ``UsageMistake``.
    """
    kind, _, rest = where.partition(":")
    try:
        if kind == "unix" and rest:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(rest)
        elif kind == "vsock" and (not rest or (rest.isdecimal() and int(rest) < VSOCK_PORT_ANY)):
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            listener.bind((socket.VMADDR_CID_ANY, int(rest or VSOCK_PORT)))  # a larger one would be cut to 32 bits
        else:
            raise UsageMistake(f"--listen is unix:PATH, vsock or vsock:PORT, not {where}")
        listener.listen(16)
    except (OSError, AttributeError) as error:
        raise OutsideFailure(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}") from None
    return listener


def serve(listener: socket.socket, proxy: Proxy, *, stopped: Callable[[], bool]) -> None:
    """Serve connections, each in a thread, until ``stopped``."""
    listener.settimeout(0.2)
    while not stopped():
        try:
            stream, _ = listener.accept()
        except TimeoutError:
            continue
        threading.Thread(target=_one, args=(stream, proxy), daemon=True).start()


def _one(stream: socket.socket, proxy: Proxy) -> None:
    with contextlib.closing(stream):
        try:
            proxy.converse(stream)
        except Closed as error:
            log.info("closed", why=str(error))
        except CvarsError as error:
            log.warning("closed", why=error.message)
