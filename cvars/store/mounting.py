"""Mount: read once, verify, select by the anchor, repair, announce, serve. Source: sealed-store section 6.

Every refusal is one `StoreError` with its reason, in the order of section 6 "Reasons"; nothing has been written
by then, except where a repair had already begun.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

from cvars.errors import (
    AnchorError,
    AnchorRolledBack,
    StoreError,
    StoreNotProvisioned,
    StoreRolledBack,
    StoreTampered,
    StoreTooOld,
    StoreWrongGuest,
    StoreWrongKey,
)
from cvars.store import escrow, operations, record, selection
from cvars.store.anchor import Acquired, Anchor, AnchorPoint
from cvars.store.config import SKIP_ANCHOR, SKIP_BINDING, SKIP_RECORD, Boot, Outcome, StoreConfig
from cvars.store.creation import announce, create, zero_first_block
from cvars.store.engine import Store
from cvars.store.freshness import Freshness
from cvars.store.geometry import HEADER_BLOCK
from cvars.store.header import (
    MAJOR,
    CreationHeader,
)
from cvars.store.history import Commit, History
from cvars.store.keys import StoreKeys
from cvars.store.log import Log, erase
from cvars.store.medium import Medium, flush, read_image, write_all
from cvars.store.selection import Mode
from cvars.store.snapshot import Damage
from cvars.store.suites import SUITES
from cvars.store.survey import Bank, Survey, survey
from cvars.trace import (
    StoreMounted,
    StoreRefused,
    StoreRolledBackEvent,
    StoreRolledForward,
    Trace,
)
from cvars.variables.model import Key, Variable

_ORDER: Final = (StoreWrongGuest, StoreWrongKey, StoreTampered)


def mount(
    medium: Medium,
    *,
    keys: StoreKeys,
    config: StoreConfig,
    acquired: Acquired | None,
    anchor: Anchor | None,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
    trace: Trace,
    provision: bool = False,
    initial: Mapping[Key, Variable] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Store:
    """Open the store on ``medium``; create it when a creation header, the anchor and ``provision`` say so.

    ``acquired`` and ``anchor``: the open session at the broker; both None only in mode ``none``. ``initial``:
    content of a created store. ``clock``: monotonic seconds. A refusal hands the lease back.

    Raises StoreError: one of SS-7, the image untouched.
    """
    if (acquired is None) != (anchor is None):
        raise ValueError("an acquired session and its anchor come together")
    if acquired is None and config.mode is not Mode.NONE:
        raise ValueError(f"mode {config.mode.label} needs an anchor")
    started = clock()
    one = _Mount(
        medium,
        keys=keys,
        config=config,
        acquired=acquired,
        anchor=anchor,
        random=random,
        clock=clock,
        trace=trace,
        sleep=sleep,
    )
    try:
        return one.run(provision=provision, initial=initial or {})
    except StoreError as error:
        trace(StoreRefused(reason=error.reason, detail=error.message))
        if acquired is not None and anchor is not None and clock() - started < acquired.lease_s:
            with contextlib.suppress(AnchorError):
                anchor.seal(epoch=acquired.epoch, point=one.anchored or acquired.point)
        raise


class _Mount:
    def __init__(
        self,
        medium: Medium,
        *,
        keys: StoreKeys,
        config: StoreConfig,
        acquired: Acquired | None,
        anchor: Anchor | None,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        trace: Trace,
        sleep: Callable[[float], None],
    ) -> None:
        self._medium = medium
        self._keys = keys
        self._config = config
        self._acquired = acquired
        self._random = random
        self._clock = clock
        self._trace = trace
        self._probe = SKIP_RECORD not in config.skip_checks
        self._enforced = config.mode is not Mode.NONE and SKIP_ANCHOR not in config.skip_checks
        self._freshness = (
            Freshness(
                anchor,
                epoch=acquired.epoch,
                anchored=acquired.point,
                lease_s=acquired.lease_s,
                clock=clock,
                sleep=sleep,
                trace=trace,
            )
            if acquired is not None and anchor is not None
            else None
        )

    @property
    def anchored(self) -> AnchorPoint | None:
        """The point that the anchor holds now."""
        return self._freshness.anchored if self._freshness else None

    def run(self, *, provision: bool, initial: Mapping[Key, Variable]) -> Store:
        acquired = self._acquired
        if acquired is not None and self._config.suite not in acquired.floor_suites:
            raise StoreTooOld(
                f"suite {self._config.suite} is configured, the broker allows {acquired.floor_suites}"
            )
        image = read_image(self._medium)
        found = survey(
            image,
            self._keys,
            floor_format=acquired.floor_format if acquired else MAJOR,
            floor_suites=acquired.floor_suites if acquired else SUITES,
            check_binding=SKIP_BINDING not in self._config.skip_checks,
        )
        fresh = acquired.state == "new" if acquired is not None else not found.banks
        if fresh and (isinstance(found.creation, CreationHeader) or not found.banks):
            return self._create(found, provision=provision, initial=initial)
        if acquired is not None and fresh:
            raise AnchorRolledBack("the image holds a store that the broker has never seen")
        if not found.authentic:
            raise self._no_header(found, fresh=False)
        if acquired is None or not self._enforced:
            history, beyond, boot, attached = self._newest(found)
        else:
            history, beyond, boot = self._select(found, acquired)
            attached = True
        # a creation that lost power at its last step: bank 0 was never used, but its block is not blank
        leftover = history.header.generation == 1 and image[:HEADER_BLOCK].count(image[0]) != HEADER_BLOCK
        return self._serve(found, image, history, beyond, boot, attached=attached, leftover=leftover)

    # --- creation ---------------------------------------------------------------------------------

    def _create(self, found: Survey, *, provision: bool, initial: Mapping[Key, Variable]) -> Store:
        if isinstance(found.creation, StoreError):
            raise found.creation
        if found.creation is None or (self._acquired is None and found.refused):
            raise self._no_header(found, fresh=True)
        for bank in found.banks:
            with contextlib.suppress(Damage):
                history = bank.read()
                if any(c.kind == record.TRANSACTION for c in history.commits) or bank.header.generation > 1:
                    raise AnchorRolledBack("beside the creation header lies a store that was in use")
        if not provision:
            raise StoreNotProvisioned(
                "the image holds a creation header only, and nobody granted the creation",
                hint="enrol the VM at the broker: its first boot creates the store",
            )
        return create(
            self._medium,
            found.creation,
            keys=self._keys,
            config=self._config,
            acquired=self._acquired,
            freshness=self._freshness,
            initial=initial,
            random=self._random,
            clock=self._clock,
            trace=self._trace,
        )

    def _no_header(self, found: Survey, *, fresh: bool) -> StoreError:
        """No header with a valid MAC: the first reason that applies."""
        for wanted in _ORDER:
            for error in found.refused:
                if type(error) is wanted:
                    return error
        if isinstance(found.creation, StoreError):
            return found.creation
        if fresh or self._acquired is None:
            return StoreNotProvisioned(
                "the image holds no store and no creation header",
                hint="cvars store create makes one",
            )
        point = self._acquired.point.counter
        self._trace(StoreRolledBackEvent(found=0, anchored=point, outcome="refused"))
        return StoreRolledBack(f"the image holds no store, anchored is sequence {point}")

    # --- selection --------------------------------------------------------------------------------

    def _newest(self, found: Survey) -> tuple[History, tuple[Commit, ...], Boot, bool]:
        """Without an anchor's word: the newest generation, whole or not at all."""
        if not found.banks:
            raise found.refused[0]
        try:
            history = found.banks[0].read(probe=self._probe)
        except Damage as damage:
            raise tampered(damage) from None
        if history.damage is not None:
            raise tampered(history.damage)
        verdict = None
        if self._acquired is not None:
            with contextlib.suppress(AnchorRolledBack):
                verdict = selection.judge(history, self._acquired)
        anchored = self._acquired.point.counter if self._acquired else 0
        boot = Boot(Outcome.CLEAN, self._config.mode, False, history.point.counter, anchored)
        return history, verdict.beyond if verdict else (), boot, verdict is not None

    def _select(self, found: Survey, acquired: Acquired) -> tuple[History, tuple[Commit, ...], Boot]:
        aside: list[StoreError] = [e for e in found.refused if isinstance(e, StoreTampered)]
        behind: list[tuple[Bank, StoreError]] = []
        for bank in found.banks:
            try:
                history = bank.read(probe=self._probe)
            except Damage as damage:
                aside.append(tampered(damage))
                continue
            if history.damage is not None:
                if not behind:
                    raise tampered(history.damage)
                aside.append(tampered(history.damage))
                continue
            verdict = selection.judge(history, acquired)
            if verdict is not None:
                forward = verdict.rolled_forward
                if forward:
                    self._trace(StoreRolledForward(commits=forward))
                outcome = Outcome.ROLLED_FORWARD if forward else Outcome.CLEAN
                boot = Boot(
                    outcome,
                    self._config.mode,
                    True,
                    history.point.counter,
                    acquired.point.counter,
                    rolled_forward=forward,
                )
                return history, verdict.beyond, boot
            behind.append((bank, selection.refusal(history, acquired, repairable=False)))
        for bank, _ in behind:
            history = bank.read(probe=self._probe)
            at = history.point.counter
            try:
                repair = escrow.plan(history, acquired, self._keys)
            except operations.Malformed:
                repair = None
            if repair is not None:
                return self._repair(repair, at, acquired)
        if aside:
            raise aside[0]
        error = behind[0][1]
        if isinstance(error, StoreRolledBack):
            ends = behind[0][0].read(probe=self._probe).point.counter
            self._trace(StoreRolledBackEvent(found=ends, anchored=acquired.point.counter, outcome="refused"))
        raise error

    def _repair(
        self, repair: escrow.Repair, at: int, acquired: Acquired
    ) -> tuple[History, tuple[Commit, ...], Boot]:
        """Replay the ring, loudly, or refuse (section 4 item 7)."""
        anchored = acquired.point.counter
        if self._config.on_rollback == "refuse":
            self._trace(StoreRolledBackEvent(found=at, anchored=anchored, outcome="refused"))
            raise StoreRolledBack(
                f"the image ends at sequence {at}, anchored is {anchored}; repair is refused by configuration"
            )
        nor = repair.history.header.medium != 0
        for write in repair.writes:
            if nor and write.erases:  # the whole bank
                bank = write.offset - HEADER_BLOCK
                erase(self._medium, bank, repair.history.geometry.bank_size)
            write_all(self._medium, write.offset, write.data)
            flush(self._medium)
        self._trace(StoreRolledBackEvent(found=at, anchored=anchored, outcome="repaired"))
        boot = Boot(Outcome.REPAIRED, self._config.mode, True, at, anchored, commits_repaired=repair.commits)
        return repair.history, (), boot

    # --- announcement -----------------------------------------------------------------------------

    def _serve(
        self,
        found: Survey,
        image: bytes,
        history: History,
        beyond: tuple[Commit, ...],
        boot: Boot,
        *,
        attached: bool,
        leftover: bool,
    ) -> Store:
        """Section 4 item 3: announce the session, anchor that, and only then serve."""
        config, acquired, freshness = self._config, self._acquired, self._freshness
        root = self._keys.root(self._keys.write_version)
        assert root is not None
        epoch = acquired.epoch if acquired else 0
        log = Log(
            self._medium,
            history,
            root=root,
            suite=config.suite,
            session=max(epoch, 0 if attached else history.highest_session + 1),
            salt=self._random(16),
            mode=config.mode,
            window=config.window,
            highest_generation=max(found.highest_generation, history.header.generation),
            random=self._random,
            trace=self._trace,
        )
        log.find_erased(image, repaired=boot.outcome is Outcome.REPAIRED)
        if freshness is not None and attached:
            for commit in beyond:
                freshness.add(
                    commit.point,
                    bytes(commit.raw),
                    data=commit.kind == record.TRANSACTION,
                    key_version=log.key_version,
                )
        history.commits = []
        if leftover:
            zero_first_block(self._medium)
        if (
            history.header.key_version != root.version
            or history.header.suite != config.suite
            or config.rekey_each_boot
            or not log.fits(0)
        ):
            if freshness is not None and attached:
                freshness.advance(patience=config.doubt_s)
            anchored = freshness.anchored if freshness else history.header.anchored
            point, entry = log.compact(history.variables, anchored)
            if freshness is not None and attached:
                freshness.add(point, entry, data=False, key_version=log.key_version)
        announce(log, config, acquired, freshness if attached else None)
        live = log.history
        self._trace(
            StoreMounted(
                generation=live.header.generation,
                session=log.session,
                counter=live.point.counter,
                root=live.point.root,
                variables=len(live.variables),
            )
        )
        return Store(
            log,
            config=config,
            boot=boot,
            freshness=freshness,
            attached=attached,
            clock=self._clock,
            trace=self._trace,
        )


def tampered(damage: Damage) -> StoreTampered:
    """The refusal that damage leads to."""
    return StoreTampered(
        damage.message,
        where=f"at bank offset {damage.offset:#x}",
        hint="cvars store explain store.tampered",
    )
