"""`cvars demo`: a guest keeps its variables on a hostile host, told in ten steps by real processes.

Broker, trusted component and guest are processes of their own; the host is a folder. Each step compares what
was expected with what was observed: exit codes, reasons, traces, the broker's log, the guest's answers.
"""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cvars.audit.host_view import look
from cvars.audit.observer import Observer
from cvars.audit.report import render
from cvars.audit.search import needles, search
from cvars.component.boot import TESTABLE_CHECKS
from cvars.component.hardware import launch_measurement
from cvars.errors import CvarsError, EfiStatus, OutsideFailure, UsageMistake
from cvars.formats.pcap import join_captures
from cvars.host.folder import HostFolder
from cvars.lab.driver import AT, answered_value, is_get, set_attributes, status_of, written_value
from cvars.lab.operator import enrol, operating, set_up_broker, write_key_file
from cvars.lab.processes import Ended, Processes, Running
from cvars.lab.scenario import bundled, read_scenario
from cvars.release.transport import http_transport
from cvars.store.inspecting import LOG, inspect
from cvars.variables.model import Key

GUEST: Final = "web-1"
OTHER: Final = "db-1"
IMAGE_BYTES: Final = 256 * 1024
CHECKS: Final = TESTABLE_CHECKS | {"lease"}
MARK: Final = ".cvars-demo"
_SCENARIOS: Final = ("demo-first-boot", "demo-read-back", "demo-other-guest")


@dataclass(frozen=True, slots=True)
class Step:
    """One step's verdict: ``ok`` when what was observed is what was expected."""

    name: str
    expected: str
    observed: str
    ok: bool
    text: str


@dataclass(slots=True)
class Report:
    """The demo's outcome, and where its pieces are."""

    tee: str
    folder: Path
    weakened: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    searched: int = 0
    plaintext: list[str] = field(default_factory=list)

    @property
    def host_saw(self) -> str:
        """What a search of every byte at the host found."""
        if self.plaintext:
            return f"What the host saw: PLAINTEXT: {self.plaintext[0]}"
        if not self.searched:
            return "What the host saw: not searched, no variable was read back."
        return "What the host saw: sizes and times of writes. No names, no values."

    @property
    def ok(self) -> bool:
        """All ten steps went as expected, and no searched name or value lies at the host."""
        return len(self.steps) == 10 and all(step.ok for step in self.steps) and not self.plaintext

    def as_json(self) -> dict[str, Any]:
        """Members of the JSON object, beside ``schema`` and ``simulated``."""
        return {
            "tee": self.tee,
            "folder": str(self.folder),
            "ok": self.ok,
            "weakened": list(self.weakened),
            "steps": [asdict(s) for s in self.steps],
            "plaintext": {"variables_searched": self.searched, "found": self.plaintext},
        }


@dataclass(frozen=True, slots=True)
class Boot:
    """How one start of the component ended: ``reason`` None when it serves, in ``process``."""

    process: Running
    reason: str | None
    socket: Path
    trace: Path
    events: list[dict[str, Any]]

    def read_trace(self) -> list[dict[str, Any]]:
        """All events of this boot, as far as they have come."""
        return [json.loads(line) for line in self.trace.read_text().splitlines()] if self.trace.exists() else []

    @property
    def outcome(self) -> str:
        """``booted``, or ``boot refused`` and why."""
        return f"boot refused {self.reason}" if self.reason else "booted"

    def event(self, kind: str) -> dict[str, Any] | None:
        """The first event of ``kind`` in this boot's trace."""
        return next((e for e in self.events if e["kind"] == kind), None)


def run(tee: str, folder: Path, *, without: str | None, tell: Callable[[str], None]) -> Report:
    """Run the demo in ``folder`` (made anew).

    ``without``: one of ``CHECKS`` is taken out, to see the matching step fail (tests only).

    Raises:
        CvarsError: a part could not be started; nothing is left behind.
    """
    if without is not None and without not in CHECKS:
        raise UsageMistake(f"no such check: {without}", hint=f"one of {', '.join(sorted(CHECKS))}")
    _make_folder(folder)
    finished = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: nothing is left running or half-made
    try:
        with tempfile.TemporaryDirectory(prefix="cvars-") as sockets:
            demo = _Demo(tee, folder, Path(sockets), without, tell)
            try:
                report = demo.run()
            finally:
                demo.processes.stop_all()
        finished = True
        return report
    finally:
        if not finished:
            with suppress(OSError):
                _empty(folder)
                folder.rmdir()


def _make_folder(folder: Path) -> None:
    """An empty lab folder; an earlier demo's is emptied, anything else is left alone.

    The folder itself stays: it may be where we stand (``.``). A symbolic link is not followed to it.
    """
    try:
        if folder.is_symlink():
            raise UsageMistake(
                f"{folder} is a symbolic link: it is left alone", hint="name the folder itself: --out DIR"
            )
        if folder.exists():
            if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file()):
                raise UsageMistake(
                    f"{folder} is there and is no demo's folder: it is left alone", hint="name another: --out DIR"
                )
            _empty(folder)
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        (folder / MARK).write_text("A demo's lab folder: the next `cvars demo` here replaces it.\n")
    except OSError as error:
        raise OutsideFailure(
            f"the lab folder cannot be made: {error.strerror}", where=str(folder), hint="name another: --out DIR"
        ) from error


def _empty(folder: Path) -> None:
    """Remove what is in ``folder``, its mark last: what is left of a demo can be recognised as one's."""
    for one in sorted(folder.iterdir(), key=lambda path: path.name == MARK):
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink()


class _Demo:
    def __init__(
        self, tee: str, folder: Path, sockets: Path, without: str | None, tell: Callable[[str], None]
    ) -> None:
        self.tee = tee
        self.folder = folder
        self.sockets = sockets
        self.without = without
        self.tell = tell
        self.report = Report(tee, folder, (without,) if without else ())
        self.processes = Processes(folder / "processes")
        self.host = HostFolder(folder / "host")
        self.hardware = folder / "hardware"
        self.boots = 0
        self.values: dict[Key, bytes] = {}
        self.others: dict[Key, bytes] = {}
        self.url = ""

    # --- the story ---------------------------------------------------------------------------------

    def run(self) -> Report:
        measurement = self._prepare()
        broker = self._broker(measurement)
        observer = Observer(self.host.blob(GUEST), clock=time.time).start()
        live = self._first_boot()
        self._variables(live)
        self.host.keep(GUEST, "step-4")
        self._power_off(live)
        sealed = self.host.keep(GUEST, "sealed").read_bytes()
        observations = observer.stop()
        self._flip(sealed)
        live = self._roll_back(sealed)
        self._stop(live)
        sealed = self.host.keep(GUEST, "repaired").read_bytes()
        self._swap(sealed)
        self._clone()
        self._alone()
        code = broker.stop()
        if code != 0:
            raise OutsideFailure(f"the broker ended with {code}", where=str(broker.err))
        self._write(observations)
        return self.report

    def _step(self, name: str, what: str, expected: str, observed: str, note: str = "") -> None:
        ok = expected == observed
        number = len(self.report.steps) + 1
        text = f"{number:2}  {name:<10} {what:<49} {(note if ok else '') or observed}".rstrip()
        text = text if ok else f"{text}   NOT AS EXPECTED: {expected}"
        self.report.steps.append(Step(name, expected, observed, ok, text))
        self.tell(text)

    def _prepare(self) -> bytes:
        """What an operator does once: keys, policy, VMs at the broker, blank flash and init-data at the host."""
        broker = self.folder / "broker"
        set_up_broker(broker, self.hardware, [self.tee])
        if self.without == "lease":
            toml = broker / "broker.toml"
            toml.write_text(toml.read_text().replace('# skip_checks = ["lease"]', 'skip_checks = ["lease"]'))
        with operating(broker) as opened:
            for vm in (GUEST, OTHER):
                store, init_data = self.host.blob(vm), self._init_data(vm)
                record = enrol(opened, vm, store=store, init_data=init_data, image_bytes=IMAGE_BYTES)
                write_key_file(opened, record, broker / f"{vm}.key.json")
        for name in _SCENARIOS:
            (self.folder / "guest").mkdir(exist_ok=True)
            (self.folder / "guest" / f"{name}.jsonl").write_text(bundled(name))
        return launch_measurement(self.tee)

    def _broker(self, measurement: bytes) -> Running:
        broker = self.processes.start(
            "broker", "broker", "serve", "--config", str(self.folder / "broker"), "--simulation",
            "--listen", "127.0.0.1:0",
        )  # fmt: skip
        try:
            line = broker.wait_for("ready on")
        except Ended as ended:
            raise OutsideFailure(str(ended), where=str(broker.err)) from ended
        self.url = line.split("ready on ", 1)[1].split()[0]
        digest = measurement.hex()
        note = f"policy: launch measurement {digest[:4]}…{digest[-4:]}"
        status = http_transport(self.url)("GET", "/readyz", {}, b"").status
        self._step("broker", f"ready on {self.url}", "readyz 200", f"readyz {status}", note)
        return broker

    def _first_boot(self) -> Boot:
        boot = self._boot(GUEST)
        name = "SEV-SNP, VMPL2 firmware, SVSM at VMPL0" if self.tee == "snp" else "TDX, L2 firmware, service in L1"
        audit = self._audit()
        attested = next((line for line in audit if line["action"] == "attest"), {})
        released = next((line for line in audit if line["action"] == "release"), {})
        domain = attested.get("trust_domain", "none")
        signer = "report signed by a simulated VCEK" if self.tee == "snp" else "quote signed by a simulated PCK"
        self._step("guest", name, "trust domain simulated", f"trust domain {domain}", signer)
        allowed = attested.get("decision") == released.get("decision") == "allow"
        verified = boot.event("release.statement_verified") is not None
        observed = "released" if boot.reason is None and allowed and verified else f"refused {boot.reason}"
        self._step(
            "attest", "broker released the store key", "released", observed, "nonce fresh, TCB ok, policy ok"
        )
        return self._must_serve(boot)

    def _variables(self, live: Boot) -> None:
        answers = self._play(live, "demo-first-boot")
        written = authenticated = 0
        for request, reply in answers:
            attributes = set_attributes(request)
            if attributes is not None and status_of(reply) == EfiStatus.SUCCESS:
                written += 1
                authenticated += bool(attributes & AT)
        what = f"{written} written, {authenticated} authenticated"
        self._step("variables", "BootOrder, Boot0001, PK, KEK, db set", "5 written, 3 authenticated", what)

    def _power_off(self, live: Boot) -> None:
        code = live.process.stop()
        seen = inspect(self.host.blob(GUEST).read_bytes())
        log = [r for bank in seen.banks for r in bank.records if r.place == LOG]
        counter = max((r.sequence for r in log), default=0)
        what = f"store sealed: {seen.image_size // 1024} KiB, {len(log)} records, counter {counter}"
        events = live.read_trace()
        anchored = [e["counter"] for e in events if e["kind"] == "anchor.advanced"][-1:] == [counter]
        sealed = "sealed" if anchored and any(e["kind"] == "anchor.sealed" for e in events) else "not sealed"
        self._step("power off", what, "sealed, exit 0", f"{sealed}, exit {code}", " ")

    def _flip(self, sealed: bytes) -> None:
        third = self._log_records(sealed)[2]
        self.host.flip(GUEST, third.offset + third.size // 2)
        self.host.keep(GUEST, "flipped")
        boot = self._boot(GUEST)
        self._refused("flips one bit of record 3", "store.tampered", boot)
        self._end(boot)
        self.host.put_back(GUEST, sealed)

    def _roll_back(self, sealed: bytes) -> Boot:
        old = self.host.kept(GUEST, "step-4").read_bytes()
        self.host.put_back(GUEST, old)
        refused = self._boot(GUEST, "--on-rollback", "refuse")
        self._end(refused)
        self.host.put_back(GUEST, old)
        boot = self._boot(GUEST)
        event = boot.event("store.rolled_back")
        outcome = boot.outcome
        if boot.reason is None and event is not None and event["outcome"] == "repaired":
            outcome = f"repaired {event['kind']}"
        note = f"store.rolled_back ({event['found']} < {event['anchored']}), replayed from escrow" if event else ""
        expected = "repaired store.rolled_back; with refuse boot refused store.rolled_back"
        observed = f"{outcome}; with refuse {refused.outcome}"
        self._host("puts back the store of step 4", expected, observed, note)
        if boot.reason is not None:
            self.host.put_back(GUEST, sealed)
        return boot

    def _swap(self, sealed: bytes) -> None:
        other = self._must_serve(self._boot(OTHER))
        answers = self._play(other, "demo-other-guest")
        self.others = dict(filter(None, (written_value(request, reply) for request, reply in answers)))
        self._stop(other)
        self.host.put_back(GUEST, self.host.blob(OTHER).read_bytes())
        boot = self._boot(GUEST)
        self._refused("swaps in another guest's store", "store.wrong_guest", boot)
        self._end(boot)
        self.host.put_back(GUEST, sealed)

    def _clone(self) -> None:
        live = self._must_serve(self._boot(GUEST))
        clone = self.host.blob(f"{GUEST}-clone")
        clone.write_bytes(self.host.blob(GUEST).read_bytes())
        boot = self._boot(GUEST, store=clone)
        lives = "the guest lives" if live.process.popen.poll() is None else "the guest has ended"
        expected = "boot refused anchor.leased; the guest lives"
        self._host("starts a clone of the live guest", expected, f"{boot.outcome}; {lives}", boot.reason or "")
        self._end(boot)
        self._end(live)  # a clone that ran has fenced it: its exit code is not this step's question

    def _alone(self) -> None:
        boot = self._boot(GUEST)
        same = 0
        if boot.reason is None:
            recorded = {s.request: s.reply for s in read_scenario(bundled("demo-read-back"), "demo-read-back")}
            answers = self._play(boot, "demo-read-back")
            same = sum(is_get(request) and recorded[request] == reply for request, reply in answers)
            self.values = dict(filter(None, (answered_value(request, reply) for request, reply in answers)))
        self._stop(boot)
        kept = f"{same} variables as they were"
        observed = f"booted, {kept}" if boot.reason is None else boot.outcome
        self._host("leaves the store alone", "booted, 5 variables as they were", observed, kept)
        self.host.keep(GUEST, "last")

    # --- processes ---------------------------------------------------------------------------------

    def _boot(self, vm: str, *options: str, store: Path | None = None) -> Boot:
        """Start the component of ``vm`` and wait until it serves or has refused."""
        self.boots += 1
        name = f"boot-{self.boots:02d}-{vm}"
        trace = self.folder / "component" / f"{name}.trace.jsonl"
        trace.parent.mkdir(exist_ok=True)
        socket = self.sockets / f"{self.boots:02d}.sock"
        if self.without in TESTABLE_CHECKS:
            options += ("--test-without", str(self.without))
        process = self.processes.start(
            "component", "guest", "run", "--tee", self.tee, "--store", str(store or self.host.blob(vm)),
            "--broker", self.url, "--init-data", str(self._init_data(vm)), "--listen", f"unix:{socket}",
            "--hardware", str(self.hardware), "--trace", str(trace), "--pcap", str(self._capture(name)),
            "--json", *options,
        )  # fmt: skip
        try:
            process.wait_for('"ready": true')
            reason = None
        except Ended as ended:
            reason = ended.reason
        boot = Boot(process, reason, socket, trace, [])
        boot.events.extend(boot.read_trace())
        return boot

    def _play(self, live: Boot, scenario: str) -> list[tuple[bytes, bytes]]:
        """Be the guest, as a process: recorded requests in, (request, reply) out."""
        steps = self.folder / "guest" / f"{scenario}.jsonl"
        answers = self.folder / "guest" / f"{scenario}.answers.jsonl"
        guest = self.processes.run(
            "guest", "guest", "play", str(steps), "--connect", f"unix:{live.socket}",
            "--answers", str(answers), "--json",
        )  # fmt: skip
        if guest.popen.returncode not in (0, 1):
            raise OutsideFailure(f"the guest ended with {guest.popen.returncode}", where=str(guest.err))
        calls = [step.request for step in read_scenario(steps.read_text(), str(steps)) if step.op == "call"]
        replies = [bytes.fromhex(json.loads(line)["reply"]) for line in answers.read_text().splitlines()]
        return list(zip(calls, replies, strict=True))

    def _must_serve(self, boot: Boot) -> Boot:
        if boot.reason is not None:
            raise CvarsError(
                f"the guest did not boot: {boot.reason}",
                where=str(boot.process.err),
                hint="run the demo again; if it stays so, that is a bug: CONTRIBUTING.md says where to report it",
                reason=boot.reason,
            )
        return boot

    def _refused(self, what: str, reason: str, boot: Boot) -> None:
        self._host(what, f"boot refused {reason}", boot.outcome, boot.reason or "")

    def _host(self, what: str, expected: str, observed: str, note: str) -> None:
        """A step of the host: what it did, how the guest's boot ended."""
        outcome = next((word for word in ("boot refused", "repaired") if observed.startswith(word)), "booted")
        self._step("host", f"{what:<32} -> {outcome}", expected, observed, note or observed)

    def _end(self, boot: Boot) -> None:
        if boot.reason is None:
            boot.process.stop()

    def _stop(self, boot: Boot) -> None:
        if boot.reason is None:
            code = boot.process.stop()
            if code != 0:
                raise OutsideFailure(f"the component ended with {code}", where=str(boot.process.err))

    # --- what lies around --------------------------------------------------------------------------

    def _init_data(self, vm: str) -> Path:
        return self.host.folder / f"{vm}.init-data.toml"

    def _capture(self, name: str) -> Path:
        folder = self.folder / "component"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.pcap"

    def _audit(self) -> list[dict[str, Any]]:
        log = self.folder / "broker" / "audit.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @staticmethod
    def _log_records(image: bytes) -> list[Any]:
        return [r for bank in inspect(image).banks for r in bank.records if r.place == LOG]

    def _write(self, observations: list[Any]) -> None:
        """boot.pcap (all boots of the guest, in order), host-view.html, demo.json."""
        with (self.folder / "boot.pcap").open("wb", buffering=0) as out:
            parts = sorted((self.folder / "component").glob(f"*-{GUEST}.pcap"))
            join_captures([part.read_bytes() for part in parts], out)
        images = {path.name: path.read_bytes() for path in sorted(self.host.folder.rglob("*.fd"))}
        files = [(str(f), f.read_bytes()) for f in sorted(self.host.folder.rglob("*")) if f.is_file()]
        hits = search(files, needles(self.values) + needles(self.others))
        if self.values and self.others:
            self.report.searched = len(self.values) + len(self.others)
        self.report.plaintext = [f"{hit.needle.label} in {hit.source}" for hit in hits]
        view = look(images, observations)
        (self.folder / "host-view.html").write_text(render(view, simulated=True, weakened=self.report.weakened))
        text = json.dumps({"schema": "cvars.demo/1", "simulated": True} | self.report.as_json(), indent=1)
        (self.folder / "demo.json").write_text(text + "\n")
