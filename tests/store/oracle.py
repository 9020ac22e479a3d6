"""A second reading of format 1, written from the specification and declared with construct.

Slow and plain: no probing, no anchor. It shares nothing with the engine but the construct layouts of
`cvars.store.inspecting`, which the engine does not use.
"""

import hashlib
import hmac
import struct
from uuid import UUID

from construct import Bytes, GreedyBytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt
from nacl.exceptions import CryptoError

from cvars.store.inspecting import BANK_HEADER, RECORD_PREFIX
from cvars.variables.model import Key, Variable

CLASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 66)
INNER = Struct(
    "Previous" / Bytes(32),
    "Kind" / Int8ul,
    "Flags" / Int8ul,
    "Count" / Int16ul,
    "Length" / Int32ul,
    "Live" / Int64ul,
    "Rest" / GreedyBytes,
)
OPERATION = Struct(
    "Kind" / Int8ul,
    "Flags" / Int8ul,
    "NameLength" / Int16ul,
    "DataLength" / Int32ul,
    "Attributes" / Int32ul,
    "Guid" / Bytes(16),
    "Time" / Bytes(16),
)


def mac512(key, data):
    return hmac.new(key, data, hashlib.sha512).digest()


def mac256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def expand(key, info):
    return mac512(key, info + b"\x01")[:32]


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


class Oracle:
    """Reads the newest bank of ``image``: ``variables``, ``counter``, ``root``; ``points`` in order."""

    def __init__(self, image: bytes, store_id: bytes, vm_id: str, keks: dict[int, bytes]) -> None:
        best = None
        for offset in (0, len(image) // 2):
            raw = image[offset : offset + 512]
            if raw[:8] != b"CVFSBNK1":
                continue
            head = BANK_HEADER.parse(raw)
            prk = mac512(b"CVFS1" + store_id, keks.get(head.KeyVersion, b""))
            if mac512(expand(prk, b"hdr" + u32(head.KeyVersion)), raw[:448]) != raw[448:]:
                continue
            check = mac256(expand(prk, b"check" + u32(head.KeyVersion)), b"cvars key check v1" + store_id)
            assert check == head.KeyCheck
            assert head.VmBinding == hashlib.sha256(b"vm" + vm_id.encode()).digest()[:16]
            assert (head.ImageSize, head.BankOffset) == (len(image), offset)
            if best is None or head.Generation > best[0].Generation:
                best = (head, raw, prk)
        assert best is not None, "no header verifies"
        self.head, raw, prk = best
        head = self.head
        self.bank = image[head.BankOffset : head.BankOffset + head.BankSize]
        self.frame = 1 << head.Log2Frame
        self.key = expand(
            prk,
            b"bank"
            + u32(head.KeyVersion)
            + u64(head.Generation)
            + head.BankSalt
            + bytes([head.Suite, head.Log2Frame])
            + u64(head.ImageSize)
            + u64(head.BankOffset),
        )
        self.chain_key = expand(self.key, b"chain")
        self.root = mac256(self.chain_key, b"bank" + raw[:224] + bytes(32) + raw[256:448])
        self.variables: dict[Key, Variable] = {}
        self.points: list[tuple[int, bytes]] = []
        self._snapshot()
        self._log()
        self.counter = self.points[-1][0]

    def _open(self, at):
        if self.bank[at : at + 4] != b"CVR1":
            return None
        prefix = RECORD_PREFIX.parse(self.bank[at : at + 40])
        raw = self.bank[at : at + CLASSES[prefix.Class] * self.frame]
        aad, sealed = raw[:40] + u64(at), raw[40:]
        key = expand(self.key, b"sess" + u64(prefix.Session) + prefix.SessionSalt)
        try:
            if prefix.Suite == 1:
                nonce = u64(prefix.Sequence) + struct.pack("<H", prefix.Part) + bytes(2)
                plain = AESGCMSIV(key).decrypt(nonce, sealed, aad)
            elif prefix.Suite == 2:
                nonce = prefix.SessionSalt + u64(prefix.Sequence << 16 | prefix.Part)
                plain = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, aad, nonce, key)
            else:
                one = expand(key, b"rec" + u64(prefix.Sequence) + struct.pack("<H", prefix.Part))
                plain = AESGCM(one).decrypt(bytes(12), sealed, aad)
        except (InvalidTag, CryptoError):
            return None
        inner = INNER.parse(plain)
        assert not any(inner.Rest[inner.Length :])
        return prefix, inner, inner.Rest[: inner.Length], raw

    def _take(self, raw, inner):
        assert inner.Previous == self.root
        self.root = mac256(self.chain_key, self.root + raw)

    def _snapshot(self):
        at, stream = 4096, b""
        for number in range(self.head.SnapshotRecords):
            prefix, inner, body, raw = self._open(at)
            self._take(raw, inner)
            assert prefix.Part == number
            assert prefix.Sequence == self.head.BaseSequence
            if number < self.head.SnapshotRecords - 1:
                assert inner.Kind == 3
                stream += body
            else:
                assert inner.Kind == 4
            at += len(raw)
        assert at == 4096 + self.head.SnapshotLength
        assert self.root == self.head.SnapshotDigest
        self._apply(stream)
        self.points.append((self.head.BaseSequence, self.root))
        self.tail = at

    def _log(self):
        while self.tail < len(self.bank):
            opened = self._open(self.tail)
            if opened is None or opened[0].Sequence != self.points[-1][0] + 1 or opened[1].Previous != self.root:
                return
            prefix, inner, body, raw = opened
            self._take(raw, inner)
            if inner.Kind == 2:
                self._apply(body)
            live = sum(
                44 + (32 if v.signer else 0) + 2 * len(k.name) + len(v.data) for k, v in self.variables.items()
            )
            assert inner.Live == live
            self.points.append((prefix.Sequence, self.root))
            self.tail += len(raw)

    def _apply(self, stream):
        while stream:
            op = OPERATION.parse(stream)
            stream = stream[44:]
            signer = None
            if op.Flags & 1:
                signer, stream = stream[:32], stream[32:]
            name, stream = stream[: op.NameLength].decode("utf-16-le", "surrogatepass"), stream[op.NameLength :]
            data, stream = stream[: op.DataLength], stream[op.DataLength :]
            key = Key(UUID(bytes_le=op.Guid), name)
            if op.Kind == 2:
                del self.variables[key]
                continue
            if op.Kind == 3:
                length, digest = struct.unpack("<I32s", stream[:36])
                stream = stream[36:]
                data = self.variables[key].data + data
                assert len(data) == length
                assert hashlib.sha256(data).digest() == digest
            self.variables[key] = Variable(op.Attributes, data, op.Time, signer)
