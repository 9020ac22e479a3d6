"""The broker itself, without HTTP: attest, decide, release, anchor. One decision, one audit line."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cvars.broker import record as anchor_rules
from cvars.broker import rego
from cvars.broker.anchors import AnchorStore, Exists
from cvars.broker.audit import AuditLog
from cvars.broker.database import Database
from cvars.broker.policies import PolicySet, Snapshot
from cvars.broker.policy.evaluate import Decision, Facts, attached, decide
from cvars.broker.policy.model import is_part
from cvars.broker.policy_store import PolicyStore
from cvars.broker.problems import Problem
from cvars.broker.record import Change, Record, Refused, live
from cvars.broker.resources import Resources
from cvars.broker.secrets import Keyring
from cvars.broker.sessions import NONCE_SIZE, Attested, Session, Sessions, TooManySessions
from cvars.broker.tokens import TokenIssuer, TokenRefused
from cvars.broker.verifier import TEES, Result, Verifier
from cvars.release import initdata, jwe, reportdata, teekey
from cvars.release.channel import KEY_SIZE
from cvars.release.encoding import Malformed, b64, b64url_decode, compact, strict_json
from cvars.release.initdata import InitData
from cvars.release.statements import ANCHOR_TYP, RELEASE_TYP, SigningKey

STORE_KEK: Final = "store-kek"


@dataclass(slots=True)
class Call:
    """What the audit log says about one request; filled in as it becomes known."""

    request_id: str
    action: str
    source: str = ""
    session: Session | None = None
    vm_id: str | None = None
    resource: str | None = None
    policy: str | None = None
    evidence: str | None = None
    trust_domain: str | None = None
    epoch: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """A secret on its way out: encrypted, and the statement over it."""

    jwe: dict[str, str]
    statement: str


@dataclass(slots=True)
class Broker:
    """All parts of one broker process."""

    broker_id: str
    db: Database
    anchors: AnchorStore
    resources: Resources
    keyring: Keyring
    sessions: Sessions
    tokens: TokenIssuer
    signer: SigningKey
    policies: PolicySet
    policy_store: PolicyStore
    verifier: Verifier
    audit: AuditLog
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    versions: frozenset[str] = frozenset({"0.4.0"})
    profile_c: bool = False
    skip_checks: frozenset[str] = frozenset()
    observe: Callable[[str, str, str | None], None] | None = None
    keep_evidence: Callable[[str, dict[str, Any]], None] | None = None

    # --- attestation ------------------------------------------------------------------------------

    def auth(self, call: Call, *, version: str, tee: str) -> tuple[str, str, float]:
        """A challenge: (cookie, nonce, when it ends)."""
        if version not in self.versions:
            raise self._no(call, Problem(401, "KBS-VERSION", f"version {version}"))
        if tee not in TEES:
            raise self._no(call, Problem(401, "KBS-TEE", f"tee {tee}"))
        nonce = b64(self.random(NONCE_SIZE))
        now = self.clock()
        try:
            cookie = self.sessions.issue(tee=tee, nonce=nonce, source=call.source, now=now)
        except TooManySessions as error:
            raise self._no(call, Problem(429, "KBS-SESSIONS", str(error))) from None
        return cookie, nonce, now + 300.0

    def attest(self, call: Call, cookie: str | None, body: Mapping[str, Any]) -> tuple[str, Session]:
        """Judge evidence: (token, session). A failure consumes the nonce (1.2)."""
        now = self.clock()
        session = self.sessions.find(cookie, now=now) if cookie else None
        if session is None:
            raise self._no(call, Problem(401, "KBS-SESSION", "no such session"))
        call.session = session
        runtime = body["runtime-data"]
        as_received = json.dumps(runtime, ensure_ascii=True)
        if session.attested is not None:
            if session.attested.runtime_data != as_received:
                raise self._no(call, Problem(401, "KBS-REATTEST", "another runtime-data on an attested session"))
            return session.attested.token, session
        if not self.sessions.begin(session):
            raise self._no(call, Problem(401, "KBS-CONCURRENT", "another attest is deciding on this session"))
        attested: Attested | None = None
        try:
            attested = self._judge(call, session, body, as_received, now)
        finally:
            self.sessions.settle(session, attested, now=now)
        self._yes(call)
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
            raise self._no(call, Problem(401, "KBS-NONCE", "not the nonce of this session"))
        try:
            key = teekey.parse(runtime["tee-pubkey"])
        except Malformed as error:
            raise self._no(call, Problem(401, "KBS-TEEKEY", str(error), kind="JweError")) from None
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
            raise self._no(call, Problem(401, result.rule or "ATTEST", result.detail, reason="attest.refused"))
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
            init_data_claims=dict(init.data) if init and _plain(init.data) else None,
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
            raise self._no(call, Problem(401, "KBS-INITDATA", str(error), kind="SerdeError")) from None

    def _bind_init_data(self, call: Call, tee: str, init: InitData | None, result: Result) -> None:
        """The digest of the body must be what was measured; a pin for another broker is not for us (K09, K45)."""
        if init is None:
            return
        expected = init.host_data if tee == "snp" else init.mr_config_id
        if measured_init_data(tee, result) != expected:
            rule = "SNP-HOSTDATA" if tee == "snp" else "TDX-MR"
            raise self._no(call, Problem(401, rule, "init-data is not what was measured", reason="attest.refused"))
        if init.broker_keys and self.signer.kid not in init.broker_keys:
            raise self._no(
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
                raise self._no(call, Problem(401, "KBS-PROFILE", "profile C is not enabled"))
            try:
                return reportdata.profile_c(nonce, key)
            except Malformed as error:
                raise self._no(call, Problem(401, "KBS-TEEKEY", str(error), kind="JweError")) from None
        return reportdata.profile_t(nonce, key, additional)

    def _hashed(self, claims: Mapping[str, Any]) -> dict[str, Any]:
        """Claims for the token: what identifies a machine is hashed with this broker's salt (attestation 5)."""
        salt = hashlib.sha256(b"cvars claim salt" + self.keyring.master).digest()
        out = dict(claims)
        for name in ("chip_id", "ppid_hash"):
            if out.get(name):
                out[name] = hashlib.sha256(salt + str(out[name]).encode()).hexdigest()
        return out

    # --- release ----------------------------------------------------------------------------------

    def session_for(self, call: Call, *, cookie: str | None, bearer: str | None) -> Session:
        """The attested session of a cookie or of a token that this broker signed."""
        now = self.clock()
        session: Session | None = None
        if bearer is not None:
            try:
                session = self.sessions.by_hash(self.tokens.session_of(bearer, now=now), now=now)
            except (TokenRefused, KeyError, TypeError) as error:
                raise self._no(call, Problem(401, "KBS-TOKEN", str(error), kind="TokenVerifierError")) from None
        elif cookie is not None:
            session = self.sessions.find(cookie, now=now)
        if session is None or session.attested is None:
            raise self._no(call, Problem(401, "KBS-SESSION", "not attested", kind="TokenNotFound"))
        call.session, call.vm_id = session, session.attested.vm_id
        call.evidence, call.epoch = session.attested.evidence_digest, session.epoch
        call.trust_domain = session.attested.result.trust_domain
        return session

    def release(
        self, call: Call, session: Session, resource: str, *, nonce: str | None = None, provision: bool = False
    ) -> Released:
        """Release a secret under policy, encrypted to the attested key, with a statement over the ciphertext."""
        attested = session.attested
        assert attested is not None
        call.resource = resource
        repository, name, tag = resource.split("/")
        derived = repository == "vms" and tag == STORE_KEK
        record = self.anchors.get(attested.vm_id) if attested.vm_id else None
        decision = self._decide(call, session, resource, record)
        versions: tuple[int, ...] = ()
        if derived:
            if record is None or record.vm_id != name or record.state in ("retired", "frozen"):
                raise self._no(
                    call, Problem(404, "RESOURCE-MISSING", kind="PluginNotFound", reason="release.missing")
                )
            versions = session.key_versions if session.epoch == record.epoch else _versions(record)
            keys = self.anchors.store_keys(name, versions)
            if keys is None:
                raise self._no(call, Problem(404, "RESOURCE-MISSING", reason="release.missing"))
            secret = b"".join(keys)
        else:
            found = self.resources.get(resource)
            if found is None:
                raise self._no(call, Problem(404, "RESOURCE-MISSING", reason="release.missing"))
            secret = found
        if provision:
            record = self._provision(call, session, record, derived=derived)
        self._count_uses(call, decision, attested.vm_id or "")
        sealed = jwe.encrypt(secret, attested.key, self.random)
        statement = self.signer.statement(
            RELEASE_TYP,
            {
                "aud": attested.key.thumbprint,
                "nonce": nonce if nonce is not None else attested.nonce,
                "resource": resource,
                "sha256": jwe.ciphertext_sha256(sealed).hex(),
                "policy": decision.digests,
                "vm_id": attested.vm_id,
                "epoch": record.epoch if record else None,
                "counter": record.point.counter if record else None,
                "root": record.point.root.hex() if record else None,
                "key_version": versions[0] if versions else None,
                "key_old": versions[1] if len(versions) > 1 else None,
                "provision": provision,
                "iat": int(self.clock()),
            },
        )
        if provision:
            call.detail["provision"] = True
        self._yes(call)
        return Released(sealed, statement)

    def _decide(
        self, call: Call, session: Session, path: str, record: Record | None, *, acquiring: bool = False
    ) -> Decision:
        """Policy, on one consistent set of policies (K41)."""
        attested = session.attested
        assert attested is not None
        snapshot = self.policies.current()
        facts = self._facts(session, path, None if acquiring else self._holds(session, record))
        decision = decide(snapshot.policies, facts, self.verifier)
        call.policy = decision.digests or None
        if not decision.allowed:
            raise self._no(
                call, Problem(403, decision.rule or "POL-NONE", decision.detail, reason="release.refused")
            )
        if snapshot.restriction is not None:
            self._restrict(call, attested, path, snapshot)
        if record is not None and record.identity is not None and record.identity != identity_of(attested):
            raise self._no(call, Problem(403, "POL-IDENTITY", "not what was enrolled", reason="release.refused"))
        return decision

    def _restrict(self, call: Call, attested: Attested, path: str, snapshot: Snapshot) -> None:
        """The Rego text may say no to what the typed policy allowed, never more (3.2)."""
        assert snapshot.restriction is not None
        claims = strict_json(b64url_decode(attested.token.split(".")[1]))
        data = {"plugin": "resource", "resource-path": path.split("/"), "query": {}, "method": "GET"}
        rule = rego.restricts(snapshot.restriction, claims=claims, data=data)
        if rule is not None:
            call.policy = f"{call.policy},rego@{snapshot.restriction_digest[:16]}"
            raise self._no(call, Problem(403, rule, "restricted by Rego", reason="release.refused"))

    def _facts(self, session: Session, path: str, lease_held: bool | None) -> Facts:  # noqa: FBT001
        attested = session.attested
        assert attested is not None
        return Facts(
            path=path,
            result=attested.result,
            tee=attested.tee,
            attested_at=attested.at,
            now=self.clock(),
            init_data_digest=attested.init_data_digest,
            measured=self._measured(attested),
            vm_id=attested.vm_id,
            lease_held=lease_held,
        )

    def _measured(self, attested: Attested) -> bytes | None:
        """What host_data or mr_config_id must carry, for SNP-HOSTDATA and TDX-MR; None without init-data."""
        init = attested.init_data
        if init is None:
            return None
        return bytes(init.host_data if attested.tee == "snp" else init.mr_config_id)

    def _holds(self, session: Session, record: Record | None) -> bool:
        assert session.attested is not None
        return (
            record is not None
            and live(record, self.clock())
            and record.lease is not None
            and record.lease.holder == session.attested.key.thumbprint
            and record.epoch == session.epoch
            and record.state in ("new", "active")
        )

    def _provision(self, call: Call, session: Session, record: Record | None, *, derived: bool) -> Record:
        if not derived or record is None or session.attested is None or session.epoch is None:
            raise self._no(call, Problem(403, "PROVISION-LEASE", reason="release.refused"))
        holder, epoch = session.attested.key.thumbprint, session.epoch
        with self._refusals(call):
            return self.anchors.apply(
                record.vm_id, lambda r: anchor_rules.provision(r, epoch=epoch, holder=holder), now=self.clock()
            )

    def _count_uses(self, call: Call, decision: Decision, vm_id: str) -> None:
        for policy in decision.policies:
            limits = policy.document.release
            if limits.rate is not None and not self.policies.within_rate(
                policy.name, vm_id, limits.rate, self.clock()
            ):
                raise self._no(
                    call, Problem(403, "POL-RATE", f"more than {limits.rate}", reason="release.refused")
                )
        for policy in decision.policies:
            limits = policy.document.release
            if limits.max_uses is not None and not self.resources.use(policy.name, vm_id, limits.max_uses):
                detail = f"released {limits.max_uses} times"
                raise self._no(call, Problem(403, "POL-USES", detail, reason="release.refused"))

    # --- anchor -----------------------------------------------------------------------------------

    def acquire(
        self, call: Call, session: Session, vm_id: str, *, nonce: str, takeover: bool, resume: int | None
    ) -> dict[str, Any]:
        """Open a session at the anchor: channel key, escrow ring and the signed statement."""
        attested = self._own(call, session, vm_id)
        record = self.anchors.get(vm_id)
        decision = self._decide(call, session, f"vms/{vm_id}/{STORE_KEK}", record, acquiring=True)
        wants = decision.anchor
        if record is None:
            record = self._enrol(call, session, vm_id, first_use=wants.enrol == "first-use")
        if takeover and wants.takeover != "allow" and live(record, self.clock()):
            raise self._no(call, Problem(409, "POL-TAKEOVER", "policy allows no takeover", reason="anchor.leased"))
        holder, instance = attested.key.thumbprint, attested.instance

        def change(current: Record) -> Change:
            return anchor_rules.acquire(
                current,
                holder=holder,
                instance=instance,
                now=self.clock(),
                takeover=takeover and wants.takeover == "allow",
                max_epoch_gap=wants.max_epoch_gap,
                resume=resume,
                ignore_lease="lease" in self.skip_checks,
            )

        with self._refusals(call):
            after = self.anchors.apply(vm_id, change, now=self.clock())
            current, escrow = self.anchors.read_consistent(vm_id)
            if current.epoch != after.epoch or current.lease is None or current.lease.holder != holder:
                raise Refused(412, "anchor.fenced", "ANCHOR-EPOCH", "another session opened meanwhile")
        key = self.random(KEY_SIZE)
        versions = _versions(current)
        if resume is not None and session.key_versions:
            versions = session.key_versions
        self.sessions.open_channel(session, key=key, vm_id=vm_id, epoch=current.epoch, versions=versions)
        call.epoch = current.epoch
        sealed = jwe.encrypt(key, attested.key, self.random)
        statement = self.signer.statement(
            ANCHOR_TYP, self._acquire_claims(current, attested, nonce, escrow, sealed)
        )
        self._yes(call)
        return {"jwe": sealed, "escrow": b64(escrow), "statement": statement}

    def _acquire_claims(
        self, record: Record, attested: Attested, nonce: str, escrow: bytes, sealed: Mapping[str, str]
    ) -> dict[str, Any]:
        assert record.lease is not None
        return {
            "aud": attested.key.thumbprint,
            "nonce": nonce,
            "vm_id": record.vm_id,
            "store_id": record.store_id.hex(),
            "state": record.state,
            "epoch": record.epoch,
            "counter": record.point.counter,
            "root": record.point.root.hex(),
            "key_version": record.key_version,
            "key_old": record.key_old,
            "version": record.version,
            "floor": {"format": record.floor_format, "suites": list(record.floor_suites)},
            "mode": record.mode,
            "base": {"counter": record.base.counter, "root": record.base.root.hex()},
            "sha256": hashlib.sha256(escrow).hexdigest(),
            "channel": jwe.ciphertext_sha256(sealed).hex(),
            "lease_expires": round(record.lease.expires, 3),
            "iat": round(self.clock(), 3),
        }

    def _enrol(self, call: Call, session: Session, vm_id: str, *, first_use: bool) -> Record:
        if not first_use:
            raise self._no(
                call, Problem(403, "ANCHOR-ENROL", "an operator must add this VM", reason="anchor.unknown")
            )
        assert session.attested is not None
        fresh = Record(vm_id=vm_id, store_id=self.random(16), identity=identity_of(session.attested))
        try:
            return self.anchors.enrol(fresh, now=self.clock(), reason="first use")
        except Exists:
            found = self.anchors.get(vm_id)
            assert found is not None
            return found

    def _own(self, call: Call, session: Session, vm_id: str) -> Attested:
        """``vm_id`` comes from measured data, never from a request alone (5.4)."""
        attested = session.attested
        assert attested is not None
        call.resource = f"anchor/{vm_id}"
        if attested.vm_id is None or attested.vm_id != vm_id:
            raise self._no(
                call, Problem(403, "POL-VMID", f"measured as {attested.vm_id}", reason="release.refused")
            )
        return attested

    def anchor_call(
        self, call: Call, session: Session, vm_id: str, sequence: int, decide_on: Callable[[Record, str], Change]
    ) -> dict[str, Any]:
        """Advance, renew or seal on an authentic channel: a signed receipt bound to this call."""
        attested = self._own(call, session, vm_id)
        if session.channel_vm != vm_id or not self.sessions.take_sequence(session, sequence):
            raise self._no(
                call, Problem(401, "ANCHOR-SEQUENCE", "a sequence that was used", reason="anchor.channel")
            )
        holder = attested.key.thumbprint
        with self._refusals(call):
            after = self.anchors.apply(vm_id, lambda r: decide_on(r, holder), now=self.clock())
        call.detail["counter"] = after.point.counter
        receipt = self.signer.statement(
            ANCHOR_TYP,
            {
                "aud": holder,
                "sequence": sequence,
                "vm_id": vm_id,
                "epoch": after.epoch,
                "to": {"counter": after.point.counter, "root": after.point.root.hex()},
                "version": after.version,
                "lease_expires": round(after.lease.expires, 3) if after.lease else None,
                "iat": round(self.clock(), 3),
            },
        )
        self._yes(call)
        return {"receipt": receipt}

    # --- the operator -----------------------------------------------------------------------------

    def add_vm(self, vm_id: str, *, mode: str, policy: str | None = None, reason: str = "operator") -> Record:
        """An operator's `new` record. Raises ``Exists`` or ``Problem``."""
        if not initdata.VM_ID.fullmatch(vm_id) or not is_part(vm_id):
            raise Problem(400, "ANCHOR-VMID", reason="request.malformed")
        fresh = Record(vm_id=vm_id, store_id=self.random(16), mode=mode, policy=policy)
        return self.anchors.enrol(fresh, now=self.clock(), reason=reason)

    def operate(self, vm_id: str, change: Callable[[Record], Change], call: Call | None = None) -> Record:
        """One of the operator's transitions. Raises ``Refused``; with ``call`` a ``Problem``, and audits."""
        if call is None:
            return self.anchors.apply(vm_id, change, now=self.clock())
        with self._refusals(call):
            record = self.anchors.apply(vm_id, change, now=self.clock())
        call.epoch = record.epoch
        self._yes(call)
        return record

    def put_resource(self, path: str, secret: bytes) -> int:
        """Store a secret, bound to the policies that guard it now; returns its version."""
        mine = attached(self.policies.current().policies, path)
        digest = hashlib.sha256(",".join(sorted(p.digest for p in mine)).encode()).hexdigest()
        return self.resources.put(path, secret, policy_digest=digest)

    # --- audit ------------------------------------------------------------------------------------

    @contextmanager
    def _refusals(self, call: Call) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            problem = Problem(error.status, error.rule, error.detail, reason=error.reason)
            raise self._no(call, problem) from None

    def refuse(self, call: Call, problem: Problem) -> Problem:
        """Write the audit line of a refusal; the caller raises it."""
        return self._no(call, problem)

    def accept(self, call: Call) -> None:
        """Write the audit line of what was done."""
        self._yes(call)

    def _no(self, call: Call, problem: Problem) -> Problem:
        self._line(call, decision="deny", rule=problem.rule, status=problem.status, why=problem.detail or None)
        return problem

    def _yes(self, call: Call) -> None:
        self._line(call, decision="allow")

    def _line(self, call: Call, **members: Any) -> None:  # noqa: ANN401
        if self.observe is not None:
            self.observe(call.action, members["decision"], members.get("rule"))
        self.audit.write(
            request_id=call.request_id,
            action=call.action,
            session=call.session.id_hash[:16] if call.session else None,
            vm_id=call.vm_id,
            resource=call.resource,
            policy=call.policy,
            evidence=call.evidence,
            trust_domain=call.trust_domain,
            epoch=call.epoch,
            **members,
            **call.detail,
        )


def _versions(record: Record) -> tuple[int, ...]:
    """The key versions of a release, the one to write with first."""
    return tuple(v for v in (record.key_version, record.key_old) if v is not None)


def _plain(data: Mapping[str, Any]) -> bool:
    """Whether init-data can be copied into a token (TOML dates cannot)."""
    try:
        json.dumps(data)
    except (TypeError, ValueError):
        return False
    return True


def claim(tee: str, result: Result, name: str) -> str | None:
    """One claim of the evidence (attestation 5), or None."""
    value = result.claims.get(tee, {}).get(name)
    return None if value is None else str(value)


def measured_init_data(tee: str, result: Result) -> bytes:
    """HOST_DATA or MRCONFIGID out of the claims."""
    return bytes.fromhex(claim(tee, result, "host_data" if tee == "snp" else "mr_config_id") or "")


def vm_id_of(tee: str, result: Result) -> str | None:
    """The VM named by the ID block, ``<family id>.<image id>`` in hex, when there is a signed ID block."""
    family, image = claim(tee, result, "family_id") or "", claim(tee, result, "image_id") or ""
    signed = (claim(tee, result, "id_key_digest") or "").strip("0")
    return f"{family}.{image}" if signed and (family + image).strip("0") else None


def identity_of(attested: Attested) -> str:
    """The measured identity that `enrol: first-use` records."""
    names = ("measurement", "id_key_digest") if attested.tee == "snp" else ("mr_td", "rtmr1")
    found = {n: claim(attested.tee, attested.result, n) or "" for n in names}
    return compact({"tee": attested.tee} | found).decode()
