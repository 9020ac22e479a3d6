"""The component's side of key release: attest, acquire the anchor, receive the store key.

Everything that arrives is the host's until a statement by a pinned broker key covers it: nonce, session key,
VM and ciphertext are checked in the statement before a single byte of plaintext is used (key-release 4, K44).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cvars.errors import (
    AnchorError,
    AnchorFenced,
    CvarsError,
)
from cvars.release import channel, jwe, reportdata, statements, teekey
from cvars.release.answers import (
    COOKIE,
    acquired_of,
    anchor_error,
    cookie_of,
    domain_of,
    kid_of,
    list_of,
    object_of,
    point_of,
    read_object,
    rule_of,
    text_of,
    unavailable,
)
from cvars.release.encoding import Malformed, b64_decode, b64url, unhex
from cvars.release.errors import AttestRefused, ReleaseRefused, StatementRefusedError
from cvars.release.http_anchor import HttpAnchor
from cvars.release.initdata import MODES
from cvars.release.transport import Http, Response
from cvars.store.anchor import Acquired, Receipt
from cvars.trace import (
    AnchorAcquired,
    EvidenceAccepted,
    EvidenceRefused,
    StatementRefused,
    StatementVerified,
    Trace,
)

VERSION: Final = "0.4.0"
STORE_KEY_SIZE: Final = 32


class EvidenceSource(Protocol):
    """Where evidence comes from: hardware, or the simulated kind."""

    tee: str

    def collect(self, report_data: bytes) -> Mapping[str, Any]:
        """Primary evidence (JSON) that carries the 64 bytes of ``report_data``."""
        ...


@dataclass(frozen=True, slots=True)
class ReleaseIdentity:
    """Which release a store key came by, 32 bytes each (svsm-calls 3.2).

    ``release_id``: SHA-256(broker key thumbprint || resource path || KBS session id); ``tee_key``: thumbprint of
    the session's TEE public key.
    """

    release_id: bytes
    tee_key: bytes


@dataclass(slots=True)
class _Session:
    cookie: str
    token: str
    keys: teekey.TeeKeyPair
    broker_keys: tuple[statements.PublicKey, ...]
    channel_key: bytes = b""
    sequence: int = 0


class BrokerClient:
    """One component's conversation with one broker.

    ``pins`` are the hex SHA-256 digests of the SPKIs that measured launch data name. ``http`` may be the host's.
    ``freshness`` is the weakest mode that measured launch data accept.
    """

    def __init__(
        self,
        http: Http,
        *,
        pins: Sequence[str],
        evidence: EvidenceSource,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        trace: Trace,
        crv: str = "P-256",
        freshness: str = "none",
    ) -> None:
        self._http = http
        self._pins = frozenset(pins)
        self._evidence = evidence
        self._random = random
        self._clock = clock
        self._trace = trace
        self._crv = crv
        self._freshness = freshness
        self._session: _Session | None = None
        self._init_data: str | None = None
        self._acquired: Acquired | None = None

    # --- evidence ---------------------------------------------------------------------------------

    def attest(self, init_data: str | None = None) -> str:
        """Prove what runs here, with a fresh session key; returns the attestation token.

        Raises:
            AttestRefused: the broker refused the evidence.
            AnchorUnreachable: no answer.
        """
        self._init_data = init_data
        request = {"version": VERSION, "tee": self._evidence.tee, "extra-params": ""}
        answer = self._send("POST", "/kbs/v0/auth", json.dumps(request).encode())
        if answer.status != 200:
            raise self._refused(answer)
        nonce = text_of(read_object(answer), "nonce")
        cookie = cookie_of(answer)
        keys = teekey.generate(self._random, self._crv)
        evidence = self._evidence.collect(reportdata.profile_t(nonce, keys.public))
        body: dict[str, Any] = {
            "runtime-data": {"nonce": nonce, "tee-pubkey": dict(keys.public.jwk)},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        if init_data is not None:
            body["init-data"] = {"format": "toml", "body": init_data}
        answer = self._send("POST", "/kbs/v0/attest", json.dumps(body).encode(), {"cookie": f"{COOKIE}={cookie}"})
        if answer.status != 200:
            raise self._refused(answer)
        token = text_of(read_object(answer), "token")
        self._session = _Session(cookie, token, keys, self._broker_keys())
        self._trace(EvidenceAccepted(trust_domain=domain_of(token)))
        return token

    def _broker_keys(self) -> tuple[statements.PublicKey, ...]:
        """The keys that the broker names. Unauthenticated: only a pin makes one of them count."""
        found = []
        answer = self._send("GET", "/cvars/v1/identity", b"")
        for text in list_of(read_object(answer), "keys"):
            try:
                found.append(statements.load_public(b64_decode(text)))
            except ValueError:
                continue
        return tuple(found)

    # --- anchor and key ---------------------------------------------------------------------------

    def acquire(self, vm_id: str, *, takeover: bool = False, resume: int | None = None) -> Acquired:
        """Open a session at the anchor (raises the epoch, fences older sessions).

        ``resume``: an epoch whose store is still mounted here; only the same SNP instance may continue it.

        Raises:
            AnchorLeased, AnchorRetired, AnchorFrozen, AnchorError: refused.
            StatementRefusedError: not signed by a pinned key, or for another nonce, key or VM (K53).
        """
        session = self._attested()
        nonce = b64url(self._random(32))
        body: dict[str, Any] = {"nonce": nonce, "takeover": takeover}
        if resume is not None:
            body["resume"] = resume
        answer = self._native("POST", f"/cvars/v1/anchor/{vm_id}/acquire", body)
        if answer.status != 200:
            raise anchor_error(answer)
        document = read_object(answer)
        statement = str(document.get("statement"))
        try:
            claims = self._verified(statement, statements.ANCHOR_TYP, nonce=nonce, vm_id=vm_id)
            escrow = b64_decode(text_of(document, "escrow"))
            sealed = object_of(document, "jwe")
            if unhex(claims["sha256"], size=32) != hashlib.sha256(escrow).digest():
                raise statements.NotTrusted("the escrow is not the one the broker signed")
            if unhex(claims["channel"], size=32) != jwe.ciphertext_sha256(sealed):
                raise statements.NotTrusted("the channel key is not the one the broker signed")
            acquired = acquired_of(claims, escrow, hashlib.sha256(statement.encode()).digest())
        except (Malformed, KeyError, TypeError) as error:
            raise self._untrusted(f"acquire: {error}") from None
        self._trace(StatementVerified(broker_key=kid_of(statement), resource=f"anchor/{vm_id}"))
        self._check_mode(acquired)
        session.channel_key = self._opened(sealed, channel.KEY_SIZE)
        session.sequence = 0
        self._acquired = acquired
        self._trace(
            AnchorAcquired(
                epoch=acquired.epoch,
                counter=acquired.point.counter,
                root=acquired.point.root,
                state=acquired.state,
            )
        )
        return acquired

    def store_key(self, vm_id: str, *, provision: bool = False) -> dict[int, bytes]:
        """The store's keys by version, the one to write with first.

        Raises:
            ReleaseRefused: policy says no.
            StatementRefusedError: nothing was opened (K44).
        """
        acquired = self._acquired
        if acquired is None or acquired.vm_id != vm_id:
            raise ReleaseRefused("a store key needs an acquired anchor", where=vm_id)
        resource = f"vms/{vm_id}/store-kek"
        plaintext, claims = self._release(resource, vm_id, provision=provision)
        if (
            claims.get("epoch") != acquired.epoch
            or claims.get("counter") != acquired.point.counter
            or claims.get("root") != acquired.point.root.hex()
            or claims.get("key_version") != acquired.key_version
            or claims.get("key_old") != acquired.key_old
            or (provision and claims.get("provision") is not True)
        ):
            raise self._untrusted("the release is not for the session that was acquired")
        versions = [v for v in (acquired.key_version, acquired.key_old) if v is not None]
        if len(plaintext) != STORE_KEY_SIZE * len(versions):
            raise self._untrusted(f"{len(plaintext)} key bytes for {len(versions)} versions")
        return {v: plaintext[i * STORE_KEY_SIZE :][:STORE_KEY_SIZE] for i, v in enumerate(versions)}

    def resource(self, resource: str, vm_id: str) -> bytes:
        """Another secret, e.g. ``fleet/web/tls``, under the same statement rules."""
        return self._release(resource, vm_id, provision=False)[0]

    def identity(self, vm_id: str) -> ReleaseIdentity:
        """Which session and broker key the store key of ``vm_id`` came by."""
        session = self._attested()
        broker = next(pin for pin in map(statements.pin_of, session.broker_keys) if pin in self._pins)
        path = f"vms/{vm_id}/store-kek".encode()
        release_id = hashlib.sha256(bytes.fromhex(broker) + path + session.cookie.encode()).digest()
        return ReleaseIdentity(release_id, bytes.fromhex(session.keys.public.thumbprint))

    def anchor(self) -> HttpAnchor:
        """The anchor of the session that was acquired."""
        if self._acquired is None:
            raise AnchorError("no anchor was acquired")
        return HttpAnchor(self, self._acquired)

    def _release(self, resource: str, vm_id: str, *, provision: bool) -> tuple[bytes, dict[str, Any]]:
        nonce = b64url(self._random(32))
        body: dict[str, Any] = {"resource": resource, "nonce": nonce}
        if provision:
            body["provision"] = True
        answer = self._native("POST", "/cvars/v1/release", body)
        if answer.status != 200:
            rule = rule_of(answer)
            if answer.status in (401, 403):
                self._trace(EvidenceRefused(rule=rule))
            raise unavailable(answer) or ReleaseRefused(
                f"the broker does not release {resource}: {rule}", where=f"HTTP {answer.status}"
            )
        document = read_object(answer)
        try:
            statement = document.get("statement")
            claims = self._verified(statement, statements.RELEASE_TYP, nonce=nonce, vm_id=vm_id)
            sealed = object_of(document, "jwe")
            if claims.get("resource") != resource:
                raise statements.NotTrusted("the statement is for another resource")
            if unhex(claims.get("sha256"), size=32) != jwe.ciphertext_sha256(sealed):
                raise statements.NotTrusted("the ciphertext is not the one the broker signed")
        except Malformed as error:
            raise self._untrusted(f"release: {error}") from None
        self._trace(StatementVerified(broker_key=kid_of(str(statement)), resource=resource))
        return self._opened(sealed, None), claims

    def _verified(self, statement: object, typ: str, *, nonce: str, vm_id: str) -> dict[str, Any]:
        session = self._attested()
        claims = statements.verify_statement(statement, typ, session.broker_keys, self._pins)
        wanted = {"aud": session.keys.public.thumbprint, "nonce": nonce, "vm_id": vm_id}
        for name, value in wanted.items():
            if claims.get(name) != value:
                raise statements.NotTrusted(f"the statement is for another {name}")
        return claims

    def _opened(self, sealed: Mapping[str, Any], size: int | None) -> bytes:
        try:
            plaintext = jwe.decrypt(sealed, self._attested().keys.private)
        except Malformed as error:
            raise self._untrusted(str(error)) from None
        if size is not None and len(plaintext) != size:
            raise self._untrusted(f"{len(plaintext)} bytes in a JWE, wanted {size}")
        return plaintext

    def _check_mode(self, acquired: Acquired) -> None:
        if acquired.mode not in MODES or MODES.index(acquired.mode) < MODES.index(self._freshness):
            raise AnchorError(
                f"the anchor's mode {acquired.mode} is weaker than this guest accepts ({self._freshness})",
                where=acquired.vm_id,
            )

    def _untrusted(self, detail: str) -> StatementRefusedError:
        self._trace(StatementRefused(detail=detail))
        return StatementRefusedError(
            f"what arrived is not from the pinned broker: {detail}",
            hint="nothing was opened; the network path or the broker may be hostile",
        )

    # --- calls ------------------------------------------------------------------------------------

    def reattest(self, epoch: int) -> None:
        """After a lost session: new evidence, then continue ``epoch`` if this is the same SNP instance."""
        acquired = self._acquired
        assert acquired is not None
        self.attest(self._init_data)
        again = self.acquire(acquired.vm_id, resume=epoch)
        if again.epoch != epoch:
            raise AnchorFenced(f"epoch {epoch} ended; the broker is at {again.epoch}", where=acquired.vm_id)

    def channel_call(self, path: str, document: Mapping[str, Any]) -> Response:
        """One call with proof of possession; a fresh sequence for every attempt."""
        session = self._attested()
        body = json.dumps(document).encode()
        session.sequence += 1
        proof = channel.headers(session.channel_key, "POST", path, session.sequence, body)
        return self._send("POST", path, body, {"cookie": f"{COOKIE}={session.cookie}"} | proof)

    def receipt(self, answer: Response, *, vm_id: str, epoch: int) -> Receipt:
        """The verified receipt of the last channel call (bound to its sequence: no replay renews a lease)."""
        session = self._attested()
        try:
            claims = statements.verify_statement(
                read_object(answer).get("receipt"), statements.ANCHOR_TYP, session.broker_keys, self._pins
            )
            wanted = {
                "aud": session.keys.public.thumbprint,
                "vm_id": vm_id,
                "epoch": epoch,
                "sequence": session.sequence,
            }
            for name, value in wanted.items():
                if claims.get(name) != value:
                    raise statements.NotTrusted(f"the receipt is for another {name}")
            point = point_of(claims["to"])
            lease = claims["lease_expires"]
            lease_s = 0.0 if lease is None else max(0.0, float(lease) - float(claims["iat"]))
            return Receipt(epoch, point, int(claims["version"]), lease_s)
        except (Malformed, KeyError, TypeError) as error:
            raise self._untrusted(f"receipt: {error}") from None

    def _native(self, method: str, path: str, document: Mapping[str, Any]) -> Response:
        cookie = {"cookie": f"{COOKIE}={self._attested().cookie}"}
        return self._send(method, path, json.dumps(document).encode(), cookie)

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        fixed = {"content-type": "application/json", "accept": "application/json"}
        return self._http(method, path, fixed | dict(headers or {}), body)

    def _attested(self) -> _Session:
        if self._session is None:
            raise AnchorError("not attested yet")
        return self._session

    def _refused(self, answer: Response) -> CvarsError:
        outside = unavailable(answer)
        if outside:
            return outside
        rule = rule_of(answer)
        self._trace(EvidenceRefused(rule=rule))
        return AttestRefused(f"the broker refused the evidence: {rule}", rule=rule, where=f"HTTP {answer.status}")
