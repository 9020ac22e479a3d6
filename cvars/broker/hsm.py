"""A master key that never leaves its PKCS#11 token (key-release 6).

The key is an AES-256 object on the token, sensitive and not extractable, found by its label. A secret is wrapped
by CKM_AES_GCM on the token: 96-bit nonce from the broker, 128-bit tag, so the format is that of a key from a file.
A token without CKM_AES_GCM is refused at start. What a local key gives by a hash of its bytes (its id, the salt of
claims) is GMAC on the token here: GCM over no plaintext (NIST SP 800-38D section 3), the label as associated data,
under a nonce that belongs to the label alone. It is hashed before it is kept.

A session that was lost is opened again, once for each call. A PIN that was refused is never tried again: tokens
count, and lock.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from cvars.broker.secrets import ID_LABEL, KEY_SIZE, MasterKeyDown, WrongMasterKey

#: a token, session or key of the pkcs11 package, which is an extra and cannot be named here
Object: TypeAlias = Any
_NONCE = 12
_TAG_BITS = 128


class HsmMistake(Exception):
    """What is wrong with the token as configured. ``key``: of [secrets.pkcs11]; None: the label itself."""

    def __init__(self, key: str | None, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.hint = hint


class TokenKey:
    """The key ``label`` on the token ``token`` of ``module``. One session, one operation at a time."""

    def __init__(self, module: Path, token: str, label: str, pin: str) -> None:
        """Log in and look the key over. Raises ``HsmMistake``."""
        try:
            import pkcs11  # noqa: PLC0415 - an extra
        except ImportError:
            raise HsmMistake(
                None, "a key on a PKCS#11 token needs the pkcs11 extra", "pip install 'cvars[pkcs11]'"
            ) from None
        self._p11 = pkcs11
        self._module, self._token, self._label, self._pin = module, token, label, pin
        self._lock = threading.RLock()
        self._session: Object = None
        self._key: Object = None
        try:
            self._login()
            self._id = self._derive(self._key, ID_LABEL)
        except pkcs11.PKCS11Error as error:
            self.close()
            raise HsmMistake(None, f"the token does not encrypt by AES-GCM: {_said(error)}") from None
        except BaseException:
            self.close()
            raise

    def encrypt(self, nonce: bytes, secret: bytes, binding: bytes) -> bytes:
        """AES-256-GCM on the token. Raises ``MasterKeyDown``."""
        try:
            return self._call(lambda key: key.encrypt(secret, **self._gcm(nonce, binding)))
        except WrongMasterKey:
            raise MasterKeyDown(f"the token refuses to encrypt {len(secret)} bytes") from None

    def decrypt(self, nonce: bytes, sealed: bytes, binding: bytes) -> bytes:
        """The opposite. Raises ``WrongMasterKey``, ``MasterKeyDown``."""
        return self._call(lambda key: key.decrypt(sealed, **self._gcm(nonce, binding)))

    def derive(self, label: bytes) -> bytes:
        """SHA-256 over label and GMAC of the label. Raises ``MasterKeyDown``."""
        return self._call(lambda key: self._derive(key, label))

    def close(self) -> None:
        """End the session; the last one of a process on a token logs out."""
        with self._lock:
            session, self._session, self._key = self._session, None, None
            if session is not None:
                with contextlib.suppress(self._p11.PKCS11Error):  # it was lost already
                    session.close()

    def _gcm(self, nonce: bytes, binding: bytes) -> dict[str, Any]:
        return {
            "mechanism": self._p11.Mechanism.AES_GCM,
            "mechanism_param": self._p11.GCMParams(nonce, binding, _TAG_BITS),
        }

    def _derive(self, key: Object, label: bytes) -> bytes:
        nonce = hashlib.sha256(label).digest()[:_NONCE]
        return hashlib.sha256(label + key.encrypt(b"", **self._gcm(nonce, label))).digest()

    def _call(self, action: Callable[[Object], bytes]) -> bytes:
        """Run ``action``. Raises ``WrongMasterKey``, ``MasterKeyDown``.

        A tag that does not match has no error code of its own, so the token is asked for what it gave at start: if
        it still does, the call itself was wrong.
        """
        with self._lock:
            for last in (False, True):
                try:
                    if self._key is not None:
                        return action(self._key)
                except self._p11.PKCS11Error:
                    if self._well():
                        raise WrongMasterKey("a wrapped secret was changed or moved") from None
                if not last:
                    self._again()
            raise MasterKeyDown(f"the PKCS#11 token {self._token!r} does not answer")

    def _well(self) -> bool:
        """Whether the session works, with the key of the start."""
        try:
            return self._derive(self._key, ID_LABEL) == self._id
        except self._p11.PKCS11Error:
            return False

    def _again(self) -> None:
        """Open the session anew. Raises ``MasterKeyDown``."""
        self.close()
        try:
            self._login()
        except HsmMistake as error:
            raise MasterKeyDown(f"the PKCS#11 token {self._token!r}: {error}") from None
        if not self._well():
            self.close()
            raise MasterKeyDown(f"the key {self._label!r} on the PKCS#11 token is not the one of the start")

    def _login(self) -> None:
        """Session and key. Raises ``HsmMistake``."""
        p11 = self._p11
        token = self._find_token()
        if not self._pin:
            raise HsmMistake("pin", f"the PIN of the token {self._token!r} was refused before")
        try:
            try:
                self._session = token.open(user_pin=self._pin)
            except p11.UserAlreadyLoggedIn:  # by another key of this process
                self._session = token.open()
        except (p11.PinIncorrect, p11.PinLocked, p11.PinLenRange, p11.PinInvalid, p11.PinExpired) as error:
            self._pin = ""
            raise HsmMistake(
                "pin",
                f"the token {self._token!r} refuses the PIN ({type(error).__name__})",
                "not tried again: a token locks after a few wrong ones",
            ) from None
        except p11.PKCS11Error as error:
            raise HsmMistake("token", f"the token {self._token!r} cannot be opened: {_said(error)}") from None
        try:
            self._key = self._find_key()
        except p11.PKCS11Error as error:
            raise HsmMistake(None, f"the key {self._label!r} cannot be used: {_said(error)}") from None

    def _find_token(self) -> Object:
        p11 = self._p11
        if not self._module.is_file():
            raise HsmMistake("module", f"no PKCS#11 module at {self._module}")
        try:
            library = p11.lib(str(self._module))
            found = list(library.get_tokens(token_label=self._token))
            present = sorted({str(t.label) for t in library.get_tokens()})
            able = all(p11.Mechanism.AES_GCM in t.slot.get_mechanisms() for t in found)
        except p11.PKCS11Error as error:
            raise HsmMistake("module", f"{self._module} is not a usable PKCS#11 module: {_said(error)}") from None
        if len(found) != 1:
            count = "no token" if not found else f"{len(found)} tokens"
            raise HsmMistake("token", f"{count} with the label {self._token!r}; there are {present}")
        if not able:
            raise HsmMistake("token", f"the token {self._token!r} does not offer CKM_AES_GCM")
        return found[0]

    def _find_key(self) -> Object:
        p11, attribute = self._p11, self._p11.Attribute
        found = list(self._session.get_objects({attribute.LABEL: self._label}))
        keys = [o for o in found if o.object_class == p11.ObjectClass.SECRET_KEY]
        if len(keys) != 1:
            count = "no secret key" if not keys else f"{len(keys)} secret keys"
            raise HsmMistake(None, f"{count} with the label {self._label!r} on the token {self._token!r}")
        key = keys[0]
        bits = key.key_length if key.key_type == p11.KeyType.AES else 0  # others may have no length
        if bits != 8 * KEY_SIZE:
            is_a = f"{bits}-bit AES" if bits else key.key_type.name
            raise HsmMistake(None, f"the key {self._label!r} is {is_a}, wanted AES-256")
        if not (key[attribute.ENCRYPT] and key[attribute.DECRYPT]):
            raise HsmMistake(None, f"the key {self._label!r} may not encrypt and decrypt")
        if key[attribute.EXTRACTABLE] or not key[attribute.SENSITIVE]:
            raise HsmMistake(
                None,
                f"the key {self._label!r} can leave the token",
                "make one that is sensitive and not extractable",
            )
        return key


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
