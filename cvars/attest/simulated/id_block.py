"""ID block and ID authentication structure of SEV-SNP: signed for tests and the lab, checked as firmware does.

Source: AMD 56860 "ID Block" (96 bytes), "ID Authentication Information Structure" (4096 bytes); `attestation`
6.2. Little-endian, also r, s and the coordinates of keys.
"""

import hashlib
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Padding, Struct
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from cvars.attest.simulated.amd_sp import Identity, LaunchRefused

ID_BLOCK: Final = Struct(
    "ld" / Bytes(48),  # 0x00
    "family_id" / Bytes(16),  # 0x30
    "image_id" / Bytes(16),  # 0x40
    "version" / Int32ul,  # 0x50, 1
    "guest_svn" / Int32ul,  # 0x54
    "policy" / Int64ul,  # 0x58
)  # 96 bytes
ID_AUTH: Final = Struct(
    "id_key_algo" / Int32ul,  # 0x000: 1 = ECDSA P-384 with SHA-384
    "auth_key_algo" / Int32ul,  # 0x004
    Padding(56),
    "id_block_sig" / Bytes(512),  # 0x040
    "id_key" / Bytes(1028),  # 0x240
    Padding(60),
    "id_key_sig" / Bytes(512),  # 0x680
    "author_key" / Bytes(1028),  # 0x880
    Padding(892),
)  # 4096 bytes
PUBLIC_KEY: Final = Struct("curve" / Int32ul, "qx" / Bytes(72), "qy" / Bytes(72), Padding(880))  # 1028 bytes
P384: Final = 2
_ALGORITHM: Final = 1


def public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The 1028 bytes whose SHA-384 is an id_key_digest or author_key_digest."""
    numbers = key.public_key().public_numbers()
    fields = {"curve": P384, "qx": numbers.x.to_bytes(72, "little"), "qy": numbers.y.to_bytes(72, "little")}
    return bytes(PUBLIC_KEY.build(fields))


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")


def make_blocks(
    measurement: bytes,
    *,
    policy: int,
    id_key: ec.EllipticCurvePrivateKey,
    author_key: ec.EllipticCurvePrivateKey | None = None,
    guest_svn: int = 0,
    family_id: bytes = bytes(16),
    image_id: bytes = bytes(16),
) -> tuple[bytes, bytes]:
    """A signed ID block and its authentication structure."""
    fields = {"ld": measurement, "family_id": family_id, "image_id": image_id, "version": 1}
    block = bytes(ID_BLOCK.build(fields | {"guest_svn": guest_svn, "policy": policy}))
    mine = public_key(id_key)
    auth = {
        "id_key_algo": _ALGORITHM,
        "auth_key_algo": _ALGORITHM if author_key else 0,
        "id_block_sig": _sign(id_key, block),
        "id_key": mine,
        "id_key_sig": _sign(author_key, mine) if author_key else bytes(512),
        "author_key": public_key(author_key) if author_key else bytes(1028),
    }
    return block, bytes(ID_AUTH.build(auth))


def check_blocks(block: bytes, auth: bytes) -> Identity:
    """What firmware takes from the blocks once they verify; digest and policy are checked at launch.

    Raises:
        LaunchRefused: sizes, algorithms or signatures are wrong.
    """
    if len(block) != ID_BLOCK.sizeof() or len(auth) != ID_AUTH.sizeof():
        raise LaunchRefused("ID block and authentication structure have 96 and 4096 bytes")
    said, proof = ID_BLOCK.parse(block), ID_AUTH.parse(auth)
    if said.version != 1 or proof.id_key_algo != _ALGORITHM or proof.auth_key_algo not in (0, _ALGORITHM):
        raise LaunchRefused("ID block of another version or algorithm")
    _check(proof.id_key, proof.id_block_sig, block, "ID block")
    has_author = proof.auth_key_algo == _ALGORITHM
    if has_author:
        _check(proof.author_key, proof.id_key_sig, proof.id_key, "ID key")
    return Identity(
        id_key_digest=hashlib.sha384(proof.id_key).digest(),
        author_key_digest=hashlib.sha384(proof.author_key).digest() if has_author else bytes(48),
        author_key_en=has_author,
        guest_svn=said.guest_svn,
        family_id=said.family_id,
        image_id=said.image_id,
        launch_digest=said.ld,
        policy=said.policy,
    )


def _check(raw_key: bytes, signature: bytes, signed: bytes, what: str) -> None:
    fields = PUBLIC_KEY.parse(raw_key)
    x, y = (int.from_bytes(part, "little") for part in (fields.qx, fields.qy))
    r, s = (int.from_bytes(signature[at : at + 72], "little") for at in (0, 72))
    try:
        if fields.curve != P384:
            raise ValueError
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature):
        raise LaunchRefused(f"the signature of the {what} does not verify") from None
