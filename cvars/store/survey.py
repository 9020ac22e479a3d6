"""What the header blocks of an image say: verified before anything else is read. Source: sealed-store 6.

MAC first, then meaning (SS-4, T23); format, suite and floor are judged only under a valid MAC or for an
unknown major version (T18).
"""

from dataclasses import dataclass

from cvars.errors import StoreError, StoreTampered, StoreTooOld, StoreWrongGuest, StoreWrongKey
from cvars.store.geometry import HEADER_BLOCK, HEADER_BYTES, Geometry
from cvars.store.header import (
    BANK_MAGIC,
    INIT_MAGIC,
    MAJOR,
    MINOR,
    BankHeader,
    CreationHeader,
    mac_matches,
    rest_is_zero,
)
from cvars.store.history import History, read_bank
from cvars.store.keys import BankKeys, RootKeys, StoreKeys
from cvars.store.selection import Mode
from cvars.store.suites import SUITES


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank whose header has verified."""

    header: BankHeader
    root: RootKeys
    geometry: Geometry
    raw: memoryview

    def read(self, *, probe: bool = True) -> History:
        """Verify snapshot and log. Raises Damage when the snapshot does not verify."""
        return read_bank(self.header, self.keys(), self.geometry, self.raw, probe=probe)

    def keys(self) -> BankKeys:
        """Keys of this bank."""
        return self.root.bank(
            generation=self.header.generation,
            bank_salt=self.header.bank_salt,
            suite=self.header.suite,
            geometry=self.geometry,
            bank_offset=self.header.bank_offset,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What the two header blocks of an image say. ``banks``: newest generation first."""

    banks: tuple[Bank, ...]
    refused: tuple[StoreError, ...]
    creation: CreationHeader | StoreError | None
    authentic: tuple[BankHeader, ...]

    @property
    def highest_generation(self) -> int:
        """Of all authentic headers."""
        return max((h.generation for h in self.authentic), default=0)


def survey(
    image: bytes,
    keys: StoreKeys,
    *,
    floor_format: int = MAJOR,
    floor_suites: tuple[int, ...] = SUITES,
    check_binding: bool = True,
) -> Survey:
    """Verify both headers. Raises StoreTooOld for an authentic header below the floor (T18)."""
    view = memoryview(image)
    banks: list[Bank] = []
    refused: list[StoreError] = []
    authentic: list[BankHeader] = []
    half = len(image) // 2
    for number, offset in enumerate((0, half)):
        raw = view[offset : offset + half]
        if bytes(raw[:8]) != BANK_MAGIC or len(raw) < HEADER_BLOCK:
            continue
        header = BankHeader.parse(raw[:HEADER_BYTES])
        where = f"bank {number}"
        error = _identify(header, raw, keys, where, check_binding=check_binding)
        if error is not None:
            refused.append(error)
            continue
        authentic.append(header)
        if header.major < floor_format or header.minor > MINOR or header.flags:
            raise StoreTooOld(
                f"{where} has format {header.major}.{header.minor}, flags {header.flags:#x}; "
                f"wanted is {floor_format}.0 to {MAJOR}.{MINOR}, no flags"
            )
        if header.suite not in SUITES or header.suite not in floor_suites:
            raise StoreTooOld(f"{where} uses suite {header.suite}; allowed are {list(floor_suites)}")
        geometry = Geometry.of(len(image), 1 << min(header.log2_frame, 31))
        root = keys.root(header.key_version)
        if geometry is None or root is None or not _consistent(header, geometry, offset, raw, root):
            refused.append(
                StoreTampered(
                    f"{where}: its header is authentic but was made for another place: "
                    f"{header.image_size} bytes, bank at {header.bank_offset:#x}; "
                    f"found {len(image)} bytes, bank at {offset:#x}, or bytes behind it"
                )
            )
            continue
        banks.append(Bank(header, root, geometry, raw))
    banks.sort(key=lambda b: b.header.generation, reverse=True)
    return Survey(tuple(banks), tuple(refused), _creation(image), tuple(authentic))


def _identify(
    header: BankHeader, raw: memoryview, keys: StoreKeys, where: str, *, check_binding: bool
) -> StoreError | None:
    """Say why a header does not verify, in the order of section 6; None when its MAC is valid."""
    if header.major != MAJOR:
        raise StoreTooOld(f"{where} has format {header.major}, this engine reads {MAJOR}")
    if check_binding and (header.store_id != keys.store_id or header.vm_binding != keys.binding):
        return StoreWrongGuest(
            f"{where} belongs to store {header.store_id.hex()}, not to {keys.store_id.hex()} of {keys.vm_id}"
        )
    root = keys.root(header.key_version)
    if root is None:
        return StoreWrongKey(
            f"{where} is sealed under key version {header.key_version}; released: {sorted(keys.keks)}"
        )
    if not mac_matches(raw[:HEADER_BYTES], root.header_key):
        if header.key_check != root.key_check:
            return StoreWrongKey(f"{where}: key version {header.key_version} does not open it")
        return StoreTampered(f"{where}: header authentication failed")
    return None


def _consistent(header: BankHeader, geometry: Geometry, offset: int, raw: memoryview, root: RootKeys) -> bool:
    return (
        header.geometry == geometry
        and header.bank_offset == offset
        and header.bank_size == geometry.bank_size
        and header.medium <= 1
        and header.mode <= Mode.STRICT
        and header.key_check == root.key_check
        and not any(header.reserved)
        and rest_is_zero(raw)
    )


def _creation(image: bytes) -> CreationHeader | StoreError | None:
    if image[:8] != INIT_MAGIC:
        return None
    try:
        header = CreationHeader.parse(image[:HEADER_BYTES])
    except ValueError as error:
        return StoreTampered(f"the creation header is damaged: {error}")
    if header.geometry.image_size != len(image):
        return StoreTampered(
            f"the creation header is for {header.geometry.image_size} bytes, the image has {len(image)}"
        )
    return header
