"""A store at rest in its owner's hands: read with its key, edited on the one audited path (R122).

Mounts and commits through the engine, in place (SS-26); the file's lock keeps a running guest's store out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cvars.errors import UsageMistake, VariableError
from cvars.store import FileMedium, Medium, MemoryMedium, Mode, Store, StoreConfig, mount
from cvars.store.anchor import AnchorPoint
from cvars.store.checking import keys_for
from cvars.store.keyfile import KeyFile
from cvars.store.medium import read_image
from cvars.store.rewriting import open_sound
from cvars.trace import Trace, VariableManaged, silent
from cvars.variables.limits import Limits
from cvars.variables.manage import ManagementRefused, edit
from cvars.variables.model import Key, Variable
from cvars.variables.profile import Profile
from cvars.variables.table import is_hidden


@dataclass(frozen=True, slots=True)
class Managed:
    """``point``: what the anchor must be rebased to, when the store was ``anchored`` (else: mode ``none``)."""

    point: AnchorPoint
    anchored: bool
    bypassed: tuple[Key, ...]
    warnings: tuple[str, ...]


def stored_variables(image: bytes, key_file: KeyFile) -> dict[Key, Variable]:
    """What a sound image holds, by key, without the service's own items. Raises ``StoreError``."""
    held = open_sound(image, key_file).history.variables
    return {k: held[k] for k in sorted(held, key=lambda key: key.sort_bytes) if not is_hidden(k)}


def manage(
    path: Path,
    key_file: KeyFile,
    edits: Callable[[Mapping[Key, Variable]], Mapping[Key, Variable | None]],
    *,
    bypass_authentication: bool,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
    trace: Trace,
) -> Managed:
    """Apply ``edits(stored variables)`` (None deletes) to the store at ``path`` as one commit, or nothing.

    Raises:
        ManagementRefused: no guest could have written that, or an authenticated variable without the bypass.
        StoreError: the image is not sound, the key is not its own, or a guest runs on it.
        UsageMistake: a raw key, which does not say whose store it is.
    """
    if key_file.raw:
        raise UsageMistake("a raw key does not say whose store this is", hint="a key file with store_id and vm_id")
    medium = FileMedium.open(path)
    try:
        image = read_image(medium)
        source = open_sound(image, key_file)
        held = source.history.variables
        keys = keys_for(image, key_file)
        config = StoreConfig(mode=Mode.NONE, suite=source.history.header.suite)

        def mounted(on: Medium, events: Trace) -> Store:
            return mount(
                on, keys=keys, config=config, acquired=None, anchor=None, random=random, clock=clock, trace=events
            )

        geometry = source.history.geometry
        limits = Limits.for_capacity(geometry.capacity, largest=geometry.largest_body)
        wanted = edits(held)
        done = edit(held, wanted, profile=Profile(), limits=limits, bypass_authentication=bypass_authentication)
        rehearsal = mounted(MemoryMedium(image), silent)  # what does not fit is said before a byte is written
        try:
            rehearsal.commit(done.journal)
        except VariableError as error:
            raise ManagementRefused(f"no room: {error}", where=str(path), hint="cvars store resize") from None
        store = mounted(medium, trace)
        store.commit(done.journal)
        for key, new in wanted.items():
            bypassed = key in done.bypassed
            trace(
                VariableManaged(name=key.name, vendor_guid=key.vendor_guid, deleted=new is None, bypassed=bypassed)
            )
        store.close()
        point = store.point
    finally:
        medium.close()
    history = source.history
    modes = {history.header.mode, *(mode for mode, _ in history.modes.values())}
    return Managed(point, modes != {Mode.NONE}, done.bypassed, done.warnings)
