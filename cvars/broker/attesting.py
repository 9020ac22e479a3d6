"""From challenge to attested session: version, nonce, key, evidence, init-data (key-release 1.1, 1.2).

Says only whether evidence is authentic and bound. What it is good for is decided at each release, by policy.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cvars.broker.auditing import Auditing
from cvars.broker.claims import Call, claim, is_json, measured_init_data, vm_id_of
from cvars.broker.problems import Problem
from cvars.broker.secrets import Keyring
from cvars.broker.sessions import NONCE_SIZE, Attested, Session, Sessions, TooManySessions
from cvars.broker.tokens import TokenIssuer
from cvars.broker.verifier import TEES, Result, Verifier
from cvars.release import initdata, reportdata, teekey
from cvars.release.encoding import Malformed, b64, compact
from cvars.release.initdata import InitData
from cvars.release.statements import SigningKey


class Attesting(Auditing):
    """The half of the broker that judges evidence."""

    sessions: Sessions
    tokens: TokenIssuer
    signer: SigningKey
    keyring: Keyring
    verifier: Verifier
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    versions: frozenset[str]
    profile_c: bool
    keep_evidence: Callable[[str, dict[str, Any]], None] | None

    def auth(self, call: Call, *, version: str, tee: str) -> tuple[str, str, float]:
        """A challenge: (cookie, nonce, when it ends)."""
        if version not in self.versions:
            raise self.refuse(call, Problem(401, "KBS-VERSION", f"version {version}"))
        if tee not in TEES:
            raise self.refuse(call, Problem(401, "KBS-TEE", f"tee {tee}"))
        nonce = b64(self.random(NONCE_SIZE))
        now = self.clock()
        try:
            cookie = self.sessions.issue(tee=tee, nonce=nonce, source=call.source, now=now)
        except TooManySessions as error:
            raise self.refuse(call, Problem(429, "KBS-SESSIONS", str(error))) from None
        return cookie, nonce, now + 300.0

    def attest(self, call: Call, cookie: str | None, body: Mapping[str, Any]) -> tuple[str, Session]:
        """Judge evidence: (token, session). A failure consumes the nonce (1.2)."""
        now = self.clock()
        session = self.sessions.find(cookie, now=now) if cookie else None
        if session is None:
            raise self.refuse(call, Problem(401, "KBS-SESSION", "no such session"))
        call.session = session
        runtime = body["runtime-data"]
        as_received = json.dumps(runtime, ensure_ascii=True)
        if session.attested is not None:
            if session.attested.runtime_data != as_received:
                raise self.refuse(call, Problem(401, "KBS-REATTEST", "another runtime-data than before"))
            return session.attested.token, session
        if not self.sessions.begin(session):
            raise self.refuse(call, Problem(401, "KBS-CONCURRENT", "another attest is deciding on this session"))
        attested: Attested | None = None
        try:
            attested = self._judge(call, session, body, as_received, now)
        finally:
            self.sessions.settle(session, attested, now=now)
        self.accept(call)
        return attested.token, session

    def abandon(self, cookie: str | None) -> None:
        """A malformed attest consumes the nonce as well."""
        session = self.sessions.find(cookie, now=self.clock()) if cookie else None
        if session is not None and session.attested is None and self.sessions.begin(session):
            self.sessions.settle(session, None, now=self.clock())

    def _judge(
        self, call: Call, session: Session, body: Mapping[str, Any], as_received: str, now: float
    ) -> Attested:
        runtime, evidence = body["runtime-data"], body["tee-evidence"]
        call.evidence = call.evidence or hashlib.sha256(compact(evidence)).hexdigest()
        nonce = runtime["nonce"]
        if not session.knows_nonce(nonce):
            raise self.refuse(call, Problem(401, "KBS-NONCE", "not the nonce of this session"))
        try:
            key = teekey.parse(runtime["tee-pubkey"])
        except Malformed as error:
            raise self.refuse(call, Problem(401, "KBS-TEEKEY", str(error), kind="JweError")) from None
        init = self._init_data(call, body.get("init-data"))
        primary = evidence["primary_evidence"]
        wanted = self._report_data(call, primary, nonce, key, evidence["additional_evidence"])
        tee = TEES[session.tee]
        result = self.verifier.verify(tee, primary, report_data=wanted, at=datetime.fromtimestamp(now, UTC))
        call.trust_domain = result.trust_domain
        if self.keep_evidence is not None:
            kept = {"tee": tee, "evidence": evidence, "report_data": wanted.hex(), "at": now}
            self.keep_evidence(call.evidence, kept)
        if not result.verified:
            raise self.refuse(call, Problem(401, result.rule or "ATTEST", result.detail, reason="attest.refused"))
        self._bind_init_data(call, tee, init, result)
        vm_id = (init.vm_id if init else None) or vm_id_of(tee, result)
        call.vm_id = vm_id
        claims = self._hashed(result.claims.get(tee, {}))
        token = self.tokens.issue(
            now=now,
            session=session.id_hash,
            trust_domain=str(result.trust_domain),
            tee=tee,
            claims=claims,
            runtime_data=runtime,
            report_data=wanted,
            init_data=init.digest if init else measured_init_data(tee, result),
            init_data_claims=dict(init.data) if init and is_json(init.data) else None,
        )
        return Attested(
            tee=tee,
            key=key,
            result=result,
            evidence_digest=call.evidence,
            init_data_digest=init.digest.hex() if init else None,
            init_data=init,
            vm_id=vm_id,
            instance=claim(tee, result, "report_id") if tee == "snp" else None,
            token=token,
            nonce=nonce,
            runtime_data=as_received,
            at=now,
            evidence=primary,
            report_data=wanted,
        )

    def _init_data(self, call: Call, given: Any) -> InitData | None:  # noqa: ANN401
        if given is None:
            return None
        try:
            return initdata.parse(given["body"])
        except Malformed as error:
            raise self.refuse(call, Problem(401, "KBS-INITDATA", str(error), kind="SerdeError")) from None

    def _bind_init_data(self, call: Call, tee: str, init: InitData | None, result: Result) -> None:
        """The digest of the body must be what was measured; a pin for another broker is not for us (K09, K45)."""
        if init is None:
            return
        expected = init.host_data if tee == "snp" else init.mr_config_id
        if measured_init_data(tee, result) != expected:
            rule = "SNP-HOSTDATA" if tee == "snp" else "TDX-MR"
            raise self.refuse(call, Problem(401, rule, "init-data was not measured", reason="attest.refused"))
        if init.broker_keys and self.signer.kid not in init.broker_keys:
            raise self.refuse(
                call, Problem(401, "KBS-PIN", "this guest pins another broker", reason="attest.refused")
            )

    def _report_data(
        self,
        call: Call,
        primary: Any,  # noqa: ANN401
        nonce: str,
        key: teekey.TeePublicKey,
        additional: str,
    ) -> bytes:
        """Profile C if the evidence has its shape and the switch is on, else profile T (K06)."""
        if isinstance(primary, dict) and "snp-report" in primary:
            if not self.profile_c:
                raise self.refuse(call, Problem(401, "KBS-PROFILE", "profile C is not enabled"))
            try:
                return reportdata.profile_c(nonce, key)
            except Malformed as error:
                raise self.refuse(call, Problem(401, "KBS-TEEKEY", str(error), kind="JweError")) from None
        return reportdata.profile_t(nonce, key, additional)

    def _hashed(self, claims: Mapping[str, Any]) -> dict[str, Any]:
        """Claims for the token: what identifies a machine is hashed with this broker's salt (attestation 5)."""
        out = dict(claims)
        for name in ("chip_id", "ppid_hash"):
            if out.get(name):
                out[name] = hashlib.sha256(self.keyring.salt + str(out[name]).encode()).hexdigest()
        return out
