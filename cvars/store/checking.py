"""fsck and dump: verify an image offline, record by record, and say what it holds. Changes nothing (SS-26).

Without an anchor a rollback of the whole image cannot be seen; everything else can. An older bank is not
needed: damage in it is a note, because a torn compaction leaves such a bank.
"""

from dataclasses import dataclass

from cvars.errors import StoreError, StoreNotProvisioned, StoreTampered
from cvars.store.geometry import HEADER_BLOCK
from cvars.store.header import BANK_MAGIC, CreationHeader
from cvars.store.history import History
from cvars.store.keyfile import KeyFile
from cvars.store.keys import StoreKeys
from cvars.store.snapshot import Damage
from cvars.store.survey import Survey, survey

_UNKNOWN_ID = bytes(16)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that makes a store not sound. ``offset`` is in the image, ``record`` counts from the snapshot."""

    offset: int
    record: int | None
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. ``history``: the newest bank, as far as it verifies."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    history: History | None

    @property
    def sound(self) -> bool:
        """Whether everything that a mount relies on verified."""
        return not self.findings


def keys_for(image: bytes, key_file: KeyFile) -> StoreKeys:
    """Keys for ``image``: a raw key takes store id and key version from its first header."""
    half = len(image) // 2
    for offset in (0, half):
        raw = image[offset : offset + 512]
        if raw[:8] == BANK_MAGIC and len(raw) == 512:
            return key_file.keys(store_id=raw[48:64], key_version=int.from_bytes(raw[80:84], "little"))
    return key_file.keys(store_id=_UNKNOWN_ID, key_version=1)


def check(image: bytes, key_file: KeyFile) -> Report:
    """Verify everything in ``image``. Bad bytes are findings, never an exception."""
    findings: list[Finding] = []
    notes: list[str] = []
    try:
        found = survey(image, keys_for(image, key_file), check_binding=not key_file.raw)
    except StoreError as error:
        return Report((Finding(0, None, error.reason, error.message),), (), None)
    findings += _blocks(image, found)
    newest = _banks(found, findings, notes)
    return Report(tuple(findings), tuple(notes), newest)


def _banks(found: Survey, findings: list[Finding], notes: list[str]) -> History | None:
    newest: History | None = None
    for number, bank in enumerate(found.banks):
        at = bank.header.bank_offset
        try:
            history = bank.read()
        except Damage as damage:
            _note(damage, at, number, findings, notes)
            continue
        if history.damage is not None:
            _note(history.damage, at, number, findings, notes)
        if history.remnant and number == 0:
            notes.append(
                f"behind the last record, at {at + history.tail:#x}, lies a {history.remnant} one: an interrupted "
                "write, or damage to the last record"
            )
        newest = newest or history
    return newest


def _note(damage: Damage, at: int, number: int, findings: list[Finding], notes: list[str]) -> None:
    if number == 0:
        findings.append(Finding(at + damage.offset, damage.record_number, StoreTampered.reason, damage.message))
    else:
        notes.append(f"the older bank at {at:#x} is not whole ({damage.message}); it is not needed")


def _blocks(image: bytes, found: Survey) -> list[Finding]:
    """Header blocks that are neither a header that verifies nor blank."""
    findings = [Finding(_where(error, image), None, error.reason, error.message) for error in found.refused]
    if isinstance(found.creation, StoreError):
        findings.append(Finding(0, None, found.creation.reason, found.creation.message))
    half = len(image) // 2
    for number, offset in enumerate((0, half)):
        block = image[offset : offset + HEADER_BLOCK]
        if block[:8] == BANK_MAGIC or (offset == 0 and isinstance(found.creation, CreationHeader)):
            continue
        if block.count(0) != len(block) and block.count(0xFF) != len(block):
            findings.append(
                Finding(offset, None, StoreTampered.reason, f"bank {number}: bytes that are no header")
            )
    if not found.banks and not findings:
        what = "a creation header only" if found.creation else "no store"
        findings.append(Finding(0, None, StoreNotProvisioned.reason, f"the image holds {what}"))
    return findings


def _where(error: StoreError, image: bytes) -> int:
    return len(image) // 2 if error.message.startswith("bank 1") else 0
