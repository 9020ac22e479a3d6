"""The broker itself, without HTTP: attest, decide, release, anchor. One decision, one audit line."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cvars.broker import record as anchor_rules
from cvars.broker import rego
from cvars.broker.anchors import AnchorStore, Exists
from cvars.broker.attesting import Attesting
from cvars.broker.audit import AuditLog
from cvars.broker.claims import Call, identity_of
from cvars.broker.database import Database
from cvars.broker.policies import PolicySet, Snapshot
from cvars.broker.policy.evaluate import Decision, Facts, attached, decide
from cvars.broker.policy.model import is_part
from cvars.broker.policy_store import PolicyStore
from cvars.broker.problems import Problem
from cvars.broker.record import Change, Record, Refused, live
from cvars.broker.resources import Resources
from cvars.broker.secrets import Keyring
from cvars.broker.sessions import Attested, Session, Sessions
from cvars.broker.tokens import TokenIssuer, TokenRefused
from cvars.broker.verifier import Verifier
from cvars.release import initdata, jwe
from cvars.release.channel import KEY_SIZE
from cvars.release.encoding import b64, b64url_decode, strict_json
from cvars.release.statements import ANCHOR_TYP, RELEASE_TYP, SigningKey

STORE_KEK: Final = "store-kek"


@dataclass(frozen=True, slots=True)
class Released:
    """A secret on its way out: encrypted, and the statement over it."""

    jwe: dict[str, str]
    statement: str


@dataclass
class Broker(Attesting):
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

    # --- release ----------------------------------------------------------------------------------

    def session_for(self, call: Call, *, cookie: str | None, bearer: str | None) -> Session:
        """The attested session of a cookie or of a token that this broker signed."""
        now = self.clock()
        session: Session | None = None
        if bearer is not None:
            try:
                session = self.sessions.by_hash(self.tokens.session_of(bearer, now=now), now=now)
            except (TokenRefused, KeyError, TypeError) as error:
                raise self.refuse(call, Problem(401, "KBS-TOKEN", str(error), kind="TokenVerifierError")) from None
        elif cookie is not None:
            session = self.sessions.find(cookie, now=now)
        if session is None or session.attested is None:
            raise self.refuse(call, Problem(401, "KBS-SESSION", "not attested", kind="TokenNotFound"))
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
                raise self.refuse(
                    call, Problem(404, "RESOURCE-MISSING", kind="PluginNotFound", reason="release.missing")
                )
            versions = session.key_versions if session.epoch == record.epoch else _versions(record)
            keys = self.anchors.store_keys(name, versions)
            if keys is None:
                raise self.refuse(call, Problem(404, "RESOURCE-MISSING", reason="release.missing"))
            secret = b"".join(keys)
        else:
            found = self.resources.get(resource)
            if found is None:
                raise self.refuse(call, Problem(404, "RESOURCE-MISSING", reason="release.missing"))
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
        self.accept(call)
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
            raise self.refuse(
                call, Problem(403, decision.rule or "POL-NONE", decision.detail, reason="release.refused")
            )
        if snapshot.restriction is not None:
            self._restrict(call, attested, path, snapshot)
        if record is not None and record.identity is not None and record.identity != identity_of(attested):
            raise self.refuse(call, Problem(403, "POL-IDENTITY", "not as enrolled", reason="release.refused"))
        return decision

    def _restrict(self, call: Call, attested: Attested, path: str, snapshot: Snapshot) -> None:
        """The Rego text may say no to what the typed policy allowed, never more (3.2)."""
        assert snapshot.restriction is not None
        claims = strict_json(b64url_decode(attested.token.split(".")[1]))
        data = {"plugin": "resource", "resource-path": path.split("/"), "query": {}, "method": "GET"}
        rule = rego.restricts(snapshot.restriction, claims=claims, data=data)
        if rule is not None:
            call.policy = f"{call.policy},rego@{snapshot.restriction_digest[:16]}"
            raise self.refuse(call, Problem(403, rule, "restricted by Rego", reason="release.refused"))

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
            raise self.refuse(call, Problem(403, "PROVISION-LEASE", reason="release.refused"))
        holder, epoch = session.attested.key.thumbprint, session.epoch
        with self.refusals(call):
            return self.anchors.apply(
                record.vm_id, lambda r: anchor_rules.provision(r, epoch=epoch, holder=holder), now=self.clock()
            )

    def _count_uses(self, call: Call, decision: Decision, vm_id: str) -> None:
        for policy in decision.policies:
            limits = policy.document.release
            if limits.rate is not None and not self.policies.within_rate(
                policy.name, vm_id, limits.rate, self.clock()
            ):
                raise self.refuse(
                    call, Problem(403, "POL-RATE", f"more than {limits.rate}", reason="release.refused")
                )
        for policy in decision.policies:
            limits = policy.document.release
            if limits.max_uses is not None and not self.resources.use(policy.name, vm_id, limits.max_uses):
                detail = f"released {limits.max_uses} times"
                raise self.refuse(call, Problem(403, "POL-USES", detail, reason="release.refused"))

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
            raise self.refuse(call, Problem(409, "POL-TAKEOVER", "no takeover by policy", reason="anchor.leased"))
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

        with self.refusals(call):
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
        self.accept(call)
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
            raise self.refuse(
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
            raise self.refuse(
                call, Problem(403, "POL-VMID", f"measured as {attested.vm_id}", reason="release.refused")
            )
        return attested

    def anchor_call(
        self, call: Call, session: Session, vm_id: str, sequence: int, decide_on: Callable[[Record, str], Change]
    ) -> dict[str, Any]:
        """Advance, renew or seal on an authentic channel: a signed receipt bound to this call."""
        attested = self._own(call, session, vm_id)
        if session.channel_vm != vm_id or not self.sessions.take_sequence(session, sequence):
            raise self.refuse(
                call, Problem(401, "ANCHOR-SEQUENCE", "a sequence that was used", reason="anchor.channel")
            )
        holder = attested.key.thumbprint
        with self.refusals(call):
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
        self.accept(call)
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
        with self.refusals(call):
            record = self.anchors.apply(vm_id, change, now=self.clock())
        call.epoch = record.epoch
        self.accept(call)
        return record

    def put_resource(self, path: str, secret: bytes) -> int:
        """Store a secret, bound to the policies that guard it now; returns its version."""
        mine = attached(self.policies.current().policies, path)
        digest = hashlib.sha256(",".join(sorted(p.digest for p in mine)).encode()).hexdigest()
        return self.resources.put(path, secret, policy_digest=digest)


def _versions(record: Record) -> tuple[int, ...]:
    """The key versions of a release, the one to write with first."""
    return tuple(v for v in (record.key_version, record.key_old) if v is not None)
