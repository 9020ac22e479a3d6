"""PlatformLang and Lang follow each other (R118). Source: UEFI 2.10 3.3; RFC 4646 and ISO 639-2 codes."""

from typing import Final

from cvars.variables.model import Key, Variable
from cvars.variables.names import BS, LANG, LANG_CODES, NV, PLATFORM_LANG, PLATFORM_LANG_CODES, RT
from cvars.variables.refusals import WriteProtected
from cvars.variables.state import Draft, State

ATTRIBUTES: Final = NV | BS | RT
ISO_639_2: Final = 3  # characters of a code in LangCodes


def check_codes(state: State, key: Key) -> None:
    """The lists of supported languages are the firmware's: fixed in Runtime (R118).

    Raises:
        WriteProtected: R118.
    """
    if state.at_runtime and key in (LANG_CODES, PLATFORM_LANG_CODES) and state.profile.couples_languages:
        raise WriteProtected("language codes in Runtime")  # R118


def follow(draft: Draft, key: Key) -> None:
    """After a change of one of the two, set the other to the same language, in the same commit (R118)."""
    if key not in (LANG, PLATFORM_LANG) or not draft.state.profile.couples_languages:
        return
    written, codes, platform = draft.find(key), draft.find(LANG_CODES), draft.find(PLATFORM_LANG_CODES)
    if written is None or codes is None or platform is None:
        return
    iso = _iso(codes.data)
    rfc = _text(platform.data).split(";")
    chosen = _text(written.data)
    if key == PLATFORM_LANG and chosen in rfc:
        other, names = LANG, iso
        index = rfc.index(chosen)
    elif key == LANG and chosen in iso:
        other, names = PLATFORM_LANG, rfc
        index = iso.index(chosen)
    else:
        return
    if index < len(names):
        value = Variable(ATTRIBUTES, names[index].encode("ascii", "replace") + b"\0")
        if draft.find(other) != value:
            draft.put(other, value)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("latin-1")


def _iso(data: bytes) -> list[str]:
    text = _text(data)
    return [text[i : i + ISO_639_2] for i in range(0, len(text) - ISO_639_2 + 1, ISO_639_2)]
