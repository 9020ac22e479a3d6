"""Fuzz the host's certificate table, and the certificates and lists in it."""

import contextlib
import sys

from fuzz_attest_common import hardware, recorded, run

from cvars.attest.certificates import load_any, load_crl
from cvars.attest.der import DerError
from cvars.attest.evidence import FormError
from cvars.attest.snp.leaf import read_leaf
from cvars.attest.snp.table import read_table

SP, _ = hardware()


def target(data: bytes) -> None:
    with contextlib.suppress(FormError):
        for one in read_table(data):
            assert one.data
    with contextlib.suppress(DerError):
        for certificate in load_any(data):
            read_leaf(certificate)
            certificate.public_key()
    with contextlib.suppress(DerError):
        load_crl(data)


if __name__ == "__main__":
    corpus = [SP.launch(bytes(4096)).certificates(), SP.certificate(0), SP.revocation_list((1, 2))]
    sys.exit(run(target, corpus + recorded("snp/*/*.der") + recorded("snp/*/*.pem") + recorded("tdx/*/*crl*.der")))
