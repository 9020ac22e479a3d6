"""An explicit-state model of the freshness protocol (sealed-store section 4), and a breadth-first search of it.

A history is a tuple of entries; its own content stands for the chain value, so two histories have a common
point exactly when one is a prefix of the other there. The model knows nothing of bytes, banks or keys.

Entries: ("a", session) announcement; ("t", session, uid, value, security) transaction; ("x", session) close.
"""

import contextlib
from collections import deque
from dataclasses import dataclass, replace

NONE, PER_BOOT, BOUNDED, CRITICAL, STRICT = "none", "per-boot", "bounded", "critical", "strict"
WINDOW = 1
RING = 3
LOSSES = ("ok", "request", "answer")


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Inst:
    """A running component: what it wrote, what its disk holds, what it believes is anchored."""

    session: int
    log: tuple
    disk: tuple
    anchored: tuple
    value: int
    stuck: bool = False
    asked: tuple | None = None
    wait: int | str | None = None
    stale: bool = False
    fenced: bool = False


@dataclass(frozen=True)
class State:
    """The world: anchor, instances, images the host has seen, what guests were promised."""

    epoch: int
    point: tuple
    items: tuple
    leased: bool
    last: tuple | None
    insts: tuple
    images: frozenset
    acked: frozenset
    uid: int
    honest: tuple | None
    fresh: bool = False


@dataclass(frozen=True)
class Controls:
    """Defects that the search must find (negative controls)."""

    acknowledge_before_anchor: bool = False
    no_history_check: bool = False
    no_predecessor_check: bool = False
    no_window_check: bool = False
    no_local_lease: bool = False
    repair_from_anywhere: bool = False


class Fenced(Exception):
    pass


class Lost(Exception):
    pass


class Run:
    """Mutable working copy of a state, for one action."""

    def __init__(self, model: "Model", state: State, loss: str) -> None:
        self.model, self.s = model, state
        self.loss = loss
        self.calls = 0

    def set(self, **changes) -> None:
        self.s = replace(self.s, **changes)

    def inst(self, i: int, **changes) -> Inst:
        made = replace(self.s.insts[i], **changes)
        insts = list(self.s.insts)
        insts[i] = made
        self.set(insts=tuple(insts))
        return made

    # --- one message to the anchor ----------------------------------------------------------------

    def arrives(self) -> bool:
        return self.loss == "ok" or (self.loss == "answer" and self.calls == 0)

    def message(self, work):
        arrives = self.arrives()
        answered = self.loss == "ok"
        self.calls += 1
        if not arrives:
            raise Lost
        work()
        if not answered:
            raise Lost

    def cas(self, session: int, start: tuple, to: tuple) -> None:
        """The anchor's advance."""
        if session != self.s.epoch or not self.s.leased:
            raise Fenced
        if self.s.last != (session, start, to):
            if self.s.point != start and not self.model.controls.no_predecessor_check:
                raise Fenced
            items = (*self.s.items, (start, to))
            while len(items) > 1 and sum(len(t) - len(b) for b, t in items) > RING:
                items = items[1:]
            self.set(point=to, items=items, last=(session, start, to))
        self.set(fresh=True)

    # --- what an instance does --------------------------------------------------------------------

    def advance(self, i: int) -> None:
        """Freshness.advance: what is in doubt first, then everything noted."""
        me = self.s.insts[i]
        if me.fenced:
            raise Fenced
        try:
            if me.asked is not None:
                self.message(lambda: self.cas(me.session, me.anchored, me.asked))
                me = self.inst(i, anchored=me.asked, asked=None, stale=False)
            if me.log != me.anchored:
                me = self.inst(i, asked=me.log)
                self.message(lambda: self.cas(me.session, me.anchored, me.log))
                self.inst(i, anchored=me.log, asked=None, stale=False)
        except Fenced:
            self.inst(i, fenced=True)
            raise

    def renew(self, i: int) -> None:
        me = self.s.insts[i]
        if me.asked is not None or me.log != me.anchored:
            self.advance(i)
            return

        def work():
            if me.session != self.s.epoch or not self.s.leased:
                raise Fenced
            self.set(fresh=True)

        try:
            self.message(work)
        except Fenced:
            self.inst(i, fenced=True)
            raise
        self.inst(i, stale=False)

    def require_lease(self, i: int) -> None:
        if self.s.insts[i].fenced:
            raise Fenced
        if self.s.insts[i].stale and not self.model.controls.no_local_lease:
            try:
                self.renew(i)
            except Lost:
                self.inst(i, fenced=True)
                raise Fenced from None

    def append(self, i: int, entry: tuple) -> None:
        me = self.s.insts[i]
        log = (*me.log, entry)
        disk = me.disk if me.stuck else log
        self.inst(i, log=log, disk=disk)
        honest = disk if self.s.honest is not None else None
        self.set(images=self.s.images | {disk}, honest=honest)

    def settle(self, i: int) -> None:
        """Resolve a commit in doubt: anchor it, then take it back."""
        me = self.s.insts[i]
        if me.wait is None:
            return
        self.advance(i)
        if me.wait != "undone":
            self.append(i, ("t", me.session, self.s.uid, me.value, True))
            self.set(uid=self.s.uid + 1)
            self.inst(i, wait="undone")
            self.advance(i)
        self.inst(i, wait=None)


class Model:
    """Actions and invariants for one mode."""

    def __init__(self, mode: str, *, takeover: bool, controls: Controls | None = None, bounds=(4, 4)) -> None:
        self.mode, self.takeover = mode, takeover
        self.controls = controls or Controls()
        self.sessions, self.commits = bounds
        self.outcomes: dict[str, int] = {}

    def start(self) -> State:
        """A store was created and announced by session 1, which crashed; its lease has ended."""
        first = (("a", 1),)
        return State(
            1, first, (((), first),), False, None, (None, None), frozenset({first}), frozenset(), 1, first
        )

    # --- selection --------------------------------------------------------------------------------

    def select(self, s: State, image: tuple) -> tuple[str, tuple]:
        """Outcome and the history that is served: section 4 items 5 and 7."""
        point = s.point
        if image[: len(point)] == point or self.controls.no_history_check:
            beyond = image[len(point) :]
            if not self.controls.no_window_check and not self._allowed(beyond, image, point):
                return "anchor.rolled_back", ()
            data = sum(e[0] == "t" for e in beyond)
            return ("forward" if data else "clean"), image
        base = s.items[0][0]
        if point[: len(image)] == image and (len(image) >= len(base) or self.controls.repair_from_anywhere):
            return "repaired", point
        common = 0
        while common < min(len(image), len(point)) and image[common] == point[common]:
            common += 1
        if len(image) >= len(point) or (common >= len(base) and common != len(image) and common > 0):
            return "store.forked", ()
        return "store.rolled_back", ()

    def _allowed(self, beyond: tuple, image: tuple, point: tuple) -> bool:
        data = [e for e in beyond if e[0] == "t"]
        if not data:
            return True
        seen = False
        for entry in beyond:
            seen = seen or entry[0] == "a"
            if seen and entry[0] == "t":
                return False
        if self.mode == STRICT:
            return len(data) <= 1
        if self.mode == BOUNDED:
            return len(data) <= WINDOW
        if self.mode == CRITICAL:
            return not any(e[4] for e in data[:-1])
        return True

    # --- actions ----------------------------------------------------------------------------------

    def actions(self, s: State):
        for i in (0, 1):
            me = s.insts[i]
            if me is None:
                if s.epoch < self.sessions:
                    for image in sorted(s.images, key=lambda h: (len(h), h)):
                        for loss in LOSSES:
                            yield ("boot", i, image, loss)
                if s.insts[1 - i] is None:
                    break  # the slots are alike
                continue
            if s.uid <= self.commits and not me.fenced:
                for loss in LOSSES:
                    for security in (False, True) if self.mode == CRITICAL else (True,):
                        yield ("commit", i, loss, security)
            if not me.fenced:
                for loss in LOSSES:
                    yield ("tick", i, loss)
                yield ("close", i)
            if not me.stuck:
                yield ("disk stops", i)
            yield ("crash", i)
        yield ("time",)

    def apply(self, s: State, action: tuple) -> tuple[State, str]:
        """Perform ``action``; return the new state and what its caller saw. Raises Violation."""
        name = action[0]
        if name == "boot":
            return self._boot(s, *action[1:])
        if name == "time":
            insts = tuple(None if x is None else replace(x, stale=True) for x in s.insts)
            return replace(s, insts=insts, fresh=False), "ok"
        i = action[1]
        run = Run(self, s, "ok" if name in ("close", "crash", "disk stops") else action[2])
        if name == "crash":
            insts = list(s.insts)
            insts[i] = None
            return replace(s, insts=tuple(insts)), "ok"
        if name == "disk stops":
            run.inst(i, stuck=True)
            run.set(honest=None)
            return run.s, "ok"
        try:
            if name == "commit":
                self._commit(run, i, action[3])
            elif name == "tick":
                run.require_lease(i)
                run.settle(i)
                me = run.s.insts[i]
                if me.asked is not None or self._window_used(me):
                    run.advance(i)
            else:
                self._close(run, i)
        except Fenced:
            return run.s, "fenced"
        except Lost:
            return run.s, "refused"
        return run.s, "ok"

    def _commit(self, run: Run, i: int, security: bool) -> None:
        if run.s.insts[i].fenced:
            raise Fenced
        run.settle(i)
        run.require_lease(i)
        me = run.s.insts[i]
        if self._window_used(me):
            run.advance(i)
        me = run.s.insts[i]
        uid = run.s.uid
        run.set(uid=uid + 1)
        run.append(i, ("t", me.session, uid, uid, security))
        if self.mode == STRICT or (self.mode == CRITICAL and security):
            try:
                if not self.controls.acknowledge_before_anchor:
                    run.advance(i)
            except Lost:
                run.inst(i, wait=uid)
                raise
        run.inst(i, value=uid)
        run.set(acked=run.s.acked | {uid})
        if self.controls.acknowledge_before_anchor:
            with contextlib.suppress(Lost, Fenced):
                run.advance(i)
        self._check_single_writer(run.s, i)

    def _window_used(self, me: Inst) -> bool:
        open_commits = sum(e[0] == "t" for e in me.log[len(me.anchored) :])
        return self.mode == BOUNDED and open_commits >= WINDOW

    def _close(self, run: Run, i: int) -> None:
        run.settle(i)
        run.append(i, ("x", run.s.insts[i].session))
        try:
            run.advance(i)
        finally:
            insts = list(run.s.insts)
            insts[i] = None
            run.set(insts=tuple(insts))
        run.set(leased=False)

    def _boot(self, s: State, i: int, image: tuple, loss: str) -> tuple[State, str]:
        if s.leased and s.fresh and not self.takeover:
            return s, "anchor.leased"
        run = Run(self, s, loss)
        alone = all(x is None for x in s.insts)
        honest = s.honest is not None and image == s.honest and alone
        run.set(epoch=s.epoch + 1, leased=True, fresh=True, last=None)
        outcome, history = self.select(run.s, image)
        if not history:
            if s.honest is not None and honest:
                raise Violation(f"an honest host is locked out: {outcome}")
            with contextlib.suppress(Lost):
                run.message(lambda: run.set(leased=False))
            return run.s, outcome
        session = run.s.epoch
        self._check_promises(run.s, history)
        insts = list(run.s.insts)
        value = next((e[3] for e in reversed(history) if e[0] == "t"), 0)
        # the anchor's point is what this instance advances from
        insts[i] = Inst(session, history, history, run.s.point, value)
        run.set(insts=tuple(insts), images=run.s.images | {history}, honest=history if honest else None)
        run.append(i, ("a", session))
        try:
            run.advance(i)
        except (Lost, Fenced) as error:
            insts = list(run.s.insts)
            insts[i] = None
            run.set(insts=tuple(insts))
            return run.s, "anchor.unreachable" if isinstance(error, Lost) else "fenced"
        self._check_promises(run.s, run.s.insts[i].log)
        return run.s, outcome

    # --- invariants -------------------------------------------------------------------------------

    def _promised(self, s: State) -> set:
        """What may never be lost silently: acknowledged, and anchored where the mode waits for that."""
        anchored = {e[2] for e in s.point if e[0] == "t"}
        if self.mode == STRICT:
            return set(s.acked)
        return set(s.acked) & anchored

    def _check_promises(self, s: State, history: tuple) -> None:
        here = {e[2] for e in history if e[0] == "t"}
        lost = self._promised(s) - here
        if lost:
            raise Violation(f"acknowledged commits {sorted(lost)} are lost, and nothing said so")

    def _check_single_writer(self, s: State, i: int) -> None:
        """Nobody is told success on a state that the anchor has left behind, once a newer session is anchored."""
        me = s.insts[i]
        strict = self.mode == STRICT or (self.mode == CRITICAL and me.log[-1][4])
        newer = any(e[0] == "a" and e[1] > me.session for e in s.point)
        if newer and (strict or not self.takeover):
            raise Violation("an older session acknowledged beside a newer one")


@dataclass(frozen=True)
class Explored:
    """Result of a search: every state with the shortest path to it."""

    states: int
    transitions: int
    outcomes: dict
    paths: list


def explore(model: Model, depth: int, *, keep_every: int = 0) -> Explored:
    """Breadth-first to ``depth`` actions. Raises Violation with the path in its text."""
    start = model.start()
    parents: dict = {start: None}
    frontier = deque([(start, 0)])
    outcomes: dict = {}
    transitions = 0
    kept: list = []
    while frontier:
        state, at = frontier.popleft()
        for action in model.actions(state):
            try:
                after, outcome = model.apply(state, action)
            except Violation as found:
                raise Violation(f"{found}\n  " + "\n  ".join(map(str, [*path(parents, state), action]))) from None
            transitions += 1
            outcomes[action[0], outcome] = outcomes.get((action[0], outcome), 0) + 1
            if keep_every and transitions % keep_every == 0:
                kept.append([*path(parents, state), action])
            if after not in parents:
                parents[after] = (state, action)
                if at + 1 < depth:
                    frontier.append((after, at + 1))
    return Explored(len(parents), transitions, outcomes, kept)


def path(parents: dict, state: State) -> list:
    out = []
    while parents[state] is not None:
        state, action = parents[state]
        out.append(action)
    return out[::-1]
