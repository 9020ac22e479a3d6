"""Fuzz what reads signed writes: PKCS#7, descriptors, signature lists, certificates, issuer paths.

    python fuzz/fuzz_pkcs7.py [CORPUS] [-max_total_time=600]     under atheris, where it is installed
    python fuzz/fuzz_pkcs7.py --seconds 60                       else: mutations of valid messages

Any bytes are refused with a status, or verify; anything else that escapes is a finding.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.engine import instrumented, run

with instrumented():
    from cvars.variables import certificates, chain, descriptor, enhanced, pins, pkcs7, siglist
    from cvars.variables.model import Key
    from cvars.variables.profile import SPEC
    from cvars.variables.refusals import InvalidParameter, SecurityViolation, Unsupported

from tests.variables import pki
from tests.variables.pki import auth, esl, signed_data, signer

CONTENT = b"content"


def one_input(data: bytes) -> None:
    """Everything that reads such bytes, once."""
    with contextlib.suppress(SecurityViolation):
        message = pkcs7.parse(data)
        for who in message.signers:
            pkcs7.verify(message, CONTENT, who, rsa_floor=2048)
            chain.top_of(who, message.certificates, rsa_floor=2048)
            anchors = [certificates.der_of(c) for c in message.certificates[:1]]
            chain.reaches(who, anchors, message.certificates, rsa_floor=2048)
            for kind in pins.PinKind:
                pins.pin_of(kind, who, message, rsa_floor=2048)
    with contextlib.suppress(SecurityViolation):
        descriptor.check(descriptor.split(data), SPEC)
    with contextlib.suppress(SecurityViolation, Unsupported):
        enhanced.split(data, SPEC)
    with contextlib.suppress(InvalidParameter):
        lists = siglist.check(data, is_pk=False, profile=SPEC)
        siglist.merge(b"", lists, keeps_one=True)
    siglist.certificates(data)
    certificates.load(data)


def corpus() -> list[bytes]:
    """Valid inputs of every kind."""
    root = signer(0, "root")
    leaf = signer(1, "leaf", issuer=root, ca=False)
    return [
        signed_data(CONTENT, leaf, extra=[root]),
        signed_data(CONTENT, leaf, wrapped=False),
        signed_data(CONTENT, leaf, attributes=True),
        auth(leaf, Key(pki.OWNER, "V"), b"payload"),
        esl(root.der) + esl(bytes(32), kind=siglist.SHA256),
        root.der,
    ]


if __name__ == "__main__":
    run(one_input, corpus())
