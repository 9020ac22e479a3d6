"""Keys that were never meant to protect anything (P20, PKfail, CVE-2024-8105): what enrolment tools refuse.

The service itself does not ask: what a guest enrols is the guest's own business.
"""

from typing import Final

from cvars.variables.model import Key
from cvars.variables.names import DB, DBT, KEK, PK

_TRUSTED: Final = frozenset({PK, KEK, DB, DBT})  # revoking such a key is right: dbx is not here
_WORDS: Final = ("DO NOT TRUST", "DO NOT SHIP")
_ENCODINGS: Final = ("ascii", "utf-16-be")  # PrintableString and UTF8String; BMPString


def placeholder(key: Key, data: bytes) -> str:
    """The words by which ``data`` (signature lists or an update) calls itself a test key; empty without."""
    if key not in _TRUSTED:
        return ""
    shouted = data.upper()  # ASCII letters only: bytes of UTF-16 are reached too
    return next((w for w in _WORDS for encoding in _ENCODINGS if w.encode(encoding) in shouted), "")
