"""The trusted side's own edits of a store: validated like a guest's, authenticated by nobody (R122, R123, R89).

Pure: takes the stored variables and the edits, gives back the journal to commit. A write that bypasses
authentication must be asked for by name, and is named in the outcome, so that the caller logs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cvars.errors import CvarsError, ExitCode, VariableError
from cvars.variables import siglist, uefi
from cvars.variables.initial import initial_state
from cvars.variables.limits import Limits, name_size, overhead
from cvars.variables.model import Delete, Journal, Key, Put, Variable
from cvars.variables.modes import OFF, STORED
from cvars.variables.names import (
    APPEND,
    AT,
    AW,
    BS,
    ENH,
    HR,
    KEY_STORES,
    MOR_LOCK,
    NV,
    PK,
    READ_ONLY,
    RT,
    VENDOR_KEYS_STORED,
    is_private,
)
from cvars.variables.placeholder import placeholder
from cvars.variables.profile import Profile
from cvars.variables.refusals import InvalidParameter
from cvars.variables.storage import check_room
from cvars.variables.table import is_hidden


class ManagementRefused(CvarsError):
    """A management edit was refused (R122)."""

    reason = "management.refused"
    exit_code = ExitCode.NO


@dataclass(frozen=True, slots=True)
class Edited:
    """``bypassed``: keys that were changed without the authentication that a guest would need."""

    variables: Mapping[Key, Variable]
    journal: Journal
    bypassed: tuple[Key, ...] = ()
    warnings: tuple[str, ...] = ()


def edit(
    variables: Mapping[Key, Variable],
    edits: Mapping[Key, Variable | None],
    *,
    profile: Profile,
    limits: Limits,
    bypass_authentication: bool = False,
    guest_is_running: bool = False,
    allows_running_guest: bool = False,
) -> Edited:
    """Apply ``edits`` (None deletes) to the stored ``variables``, all or nothing.

    Raises:
        ManagementRefused: a guest runs, an edit needs the bypass, or a value that no guest could write (R123).
    """
    if guest_is_running and not allows_running_guest:
        raise ManagementRefused("a guest is running", hint="stop it first")  # R122
    after = dict(variables)
    journal: list[Put | Delete] = []
    bypassed: list[Key] = []
    warnings: list[str] = []
    for key, variable in edits.items():
        old = variables.get(key)
        if _needs_authentication(key, variable) or (old is not None and _needs_authentication(key, old)):
            if not bypass_authentication:
                raise ManagementRefused(
                    f"{key.name!a} is authenticated",
                    where=str(key.vendor_guid),
                    hint="a write without its signature must be asked for explicitly",
                )  # R122
            bypassed.append(key)
        if variable is None:
            if old is None:
                raise ManagementRefused(f"{key.name!a} does not exist", where=str(key.vendor_guid))
            del after[key]
            journal.append(Delete(key))
        else:
            warnings += check(key, variable, profile=profile, limits=limits)
            after[key] = variable
            journal.append(Put(key, variable))
    if any(key in KEY_STORES for key in bypassed):  # R89: no longer the vendor's keys
        flag = Variable(STORED, OFF)
        if after.get(VENDOR_KEYS_STORED) != flag:
            after[VENDOR_KEYS_STORED] = flag
            journal.append(Put(VENDOR_KEYS_STORED, flag))
    try:
        before = initial_state(variables, profile=profile, limits=limits)
        check_room(before, initial_state(after, profile=profile, limits=limits))  # R122
    except VariableError as error:
        raise ManagementRefused(f"no room: {error}") from None
    return Edited(after, tuple(journal), tuple(bypassed), tuple(warnings))


def written(old: Variable | None, attributes: int, data: bytes, *, append: bool) -> Variable:
    """What a write over ``old`` leaves: its time stays, so that nothing signed before comes back (P10)."""
    if old is None:
        return Variable(attributes, data)
    if append:
        return replace(old, data=old.data + data)
    kept = old if old.attributes == attributes else replace(old, attributes=attributes, signer=None)
    return replace(kept, data=data)


def check(key: Key, variable: Variable, *, profile: Profile, limits: Limits) -> list[str]:
    """Hold a value to what a guest's write would be held to; what is unusual and kept comes back (R123).

    Raises:
        ManagementRefused: R9, R33..R41, R73, R114..R117.
    """
    attributes = variable.attributes
    problem = _problem(key, variable, profile)
    if not problem and (words := placeholder(key, variable.data)):
        problem = f'a placeholder key: its certificate says "{words}"'  # P20
    size = name_size(key) + len(variable.data)
    if not problem and size > limits.class_limit(attributes) - overhead(attributes):
        problem = f"{size} bytes of name and data are above the limit"
    warnings: list[str] = []
    if not problem:
        try:
            uefi.check(key, attributes, variable.data)
            if key in KEY_STORES:
                warnings = _check_database(key, variable.data, profile)
        except InvalidParameter as error:
            problem = str(error)
    if problem:
        raise ManagementRefused(f"{key.name!a}: {problem}", where=str(key.vendor_guid))
    return warnings


def _problem(key: Key, variable: Variable, profile: Profile) -> str:
    """What is wrong with a name or its attributes, or nothing."""
    attributes = variable.attributes
    if not key.name or "\0" in key.name:
        return "not a variable's name"
    if is_hidden(key) or key == MOR_LOCK or key in READ_ONLY:
        return "maintained by the service"
    if attributes & (APPEND | AW) or attributes & ~0xFF or (attributes & ENH and not profile.enhanced):
        return f"attributes {attributes:#x} cannot be stored"
    if (
        not attributes & NV
        or attributes == NV
        or attributes & (RT | BS) == RT
        or (attributes & AT and attributes & ENH)
    ):
        return f"attributes {attributes:#x} are no stored variable's"
    if attributes & HR and attributes & (NV | BS | RT) != NV | BS | RT:
        return "an error record is NV BS RT HR"
    pinned = is_private(key, attributes) or bool(attributes & ENH)
    if pinned != (variable.signer is not None):
        return "a private authenticated variable needs its signer pin" if pinned else "a pin that nothing needs"
    return "" if variable.data else "a value of no bytes deletes"


def _check_database(key: Key, data: bytes, profile: Profile) -> list[str]:
    """R73, except that lists of unknown type come in with a warning (R59, R81, R123)."""
    lists = siglist.parse(data)
    known = b"".join(one.encode() for one in lists if one.type in siglist.DATA_BYTES)
    siglist.check(known, is_pk=key == PK, profile=profile)
    return [
        f"{key.name}: {len(one.entries)} entries of unknown type {one.type} are kept"
        for one in lists
        if one.type not in siglist.DATA_BYTES
    ]


def _needs_authentication(key: Key, variable: Variable | None) -> bool:
    return key in KEY_STORES or (variable is not None and bool(variable.attributes & (AT | ENH)))
