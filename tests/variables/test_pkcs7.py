"""PKCS#7 messages made by the openssl command, accepted or refused as R66..R71 say; and every mutation."""

import itertools
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from hypothesis import given
from hypothesis import strategies as st

from cvars.variables import certificates, chain, pkcs7
from cvars.variables.refusals import SecurityViolation
from tests.variables.pki import signed_data, signer, unwrap

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed"),
    pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning"),
]
CONTENT = b"V\0" + bytes(range(40))


class OpenSsl:
    """A folder of keys and certificates, and the command that signs with them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "content").write_bytes(CONTENT)

    def run(self, *words):
        subprocess.run(["openssl", *map(str, words)], cwd=self.folder, check=True, capture_output=True)

    def certificate(self, name, bits=2048, *, issuer=None, ca=True, digest="sha256"):
        if not (self.folder / f"{name}.key").exists():
            self.run("genrsa", "-out", f"{name}.key", bits)
        extension = f"basicConstraints=critical,CA:{'TRUE' if ca else 'FALSE'}"
        words = ["req", "-new", "-x509", "-key", f"{name}.key", "-subj", f"/CN={name}", f"-{digest}", "-days", 1]
        words += ["-addext", extension, "-set_serial", 1 + len(list(self.folder.glob("*.pem")))]
        if issuer:
            words += ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key"]
        self.run(*words, "-out", f"{name}.pem")
        return self

    def sign(self, name, *more, digest="sha256", options=("-noattr",), extra=(), command="smime", detached=True):
        words = [command, "-sign", "-binary", "-in", "content", "-outform", "DER", "-md", digest, "-out", "out"]
        for who in (name, *more):
            words += ["-signer", f"{who}.pem", "-inkey", f"{who}.key"]
        if extra:
            (self.folder / "bag.pem").write_bytes(b"".join((self.folder / f"{e}.pem").read_bytes() for e in extra))
            words += ["-certfile", "bag.pem"]
        if not detached:
            words.append("-nodetach")
        self.run(*words, *options)
        return (self.folder / "out").read_bytes()


@pytest.fixture(scope="module")
def ssl(tmp_path_factory):
    made = OpenSsl(tmp_path_factory.mktemp("openssl"))
    made.certificate("alice").certificate("bob").certificate("carol")
    made.certificate("root").certificate("middle", issuer="root").certificate("leaf", issuer="middle", ca=False)
    return made


def accepts(der, *, content=CONTENT, floor=2048):
    """The signer certificate, or None when the message is refused."""
    try:
        return pkcs7.signer_of(pkcs7.parse(der), content, rsa_floor=floor)
    except SecurityViolation:
        return None


@pytest.mark.rule("R66", "R67", "P14")
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("command", ["smime", "cms"])
@pytest.mark.parametrize("attributes", [False, True])
def test_R66_R67_with_and_without_content_info(ssl, digest, command, attributes):
    der = ssl.sign("alice", digest=digest, options=() if attributes else ("-noattr",), command=command)
    for form in (der, unwrap(der)):
        assert accepts(form) is not None
        assert accepts(form, content=CONTENT + b"x") is None
        for junk in (b"\0", b"\x30\0", form):
            assert accepts(form + junk) is None
        for cut in (1, 2, len(form) // 2):
            assert accepts(form[:-cut]) is None
    if attributes:
        with pytest.raises(SecurityViolation):
            pkcs7.parse(der, allows_signed_attributes=False)


@pytest.mark.rule("R66", "P14")
def test_R66_P14_the_wrapper_is_found_whatever_its_length_form(ssl):
    """A small message has short lengths, a large one needs three bytes."""
    large = ssl.sign("alice", extra=("bob", "carol", "root", "middle", "leaf"))
    assert large[1] == 0x82
    assert accepts(large) is not None
    assert accepts(unwrap(large)) is not None
    for long_form in (b"\x30\x83\x00" + large[2:4] + large[4:], b"\x30\x84\0\0" + large[2:4] + large[4:]):
        assert accepts(long_form) is None  # BER, not DER
    assert accepts(b"\x30\x80" + large[4:] + b"\0\0") is None  # indefinite


@pytest.mark.rule("R67", "R70", "P40")
def test_R67_extra_certificates_in_any_order(ssl):
    pins = set()
    for bag in itertools.permutations(["bob", "middle", "root"]):
        der = ssl.sign("leaf", extra=bag)
        who = accepts(der)
        message = pkcs7.parse(der)
        assert who is not None
        pins.add(certificates.der_of(chain.top_of(who, message.certificates, rsa_floor=2048)))
        root = next(c for c in message.certificates if c.subject.rfc4514_string() == "CN=root")
        assert chain.reaches(who, [certificates.der_of(root)], message.certificates, rsa_floor=2048)
        assert not chain.reaches(
            who,
            [certificates.der_of(root)],
            [c for c in message.certificates if "middle" not in str(c.subject)],
            rsa_floor=2048,
        )
        assert pins == {certificates.der_of(root)}


@pytest.mark.rule("R69")
@pytest.mark.parametrize("bits", [1024, 2048, 3072, 4096])
def test_R69_key_sizes(ssl, bits):
    name = f"rsa{bits}"
    der = ssl.certificate(name, bits).sign(name)
    assert (accepts(der) is not None) == (bits >= 2048)
    assert accepts(der, floor=1024) is not None
    assert (accepts(der, floor=3072) is not None) == (bits >= 3072)


@pytest.mark.rule("R67", "P15")
def test_R67_P15_weak_digests_are_refused_wherever_they_are(ssl):
    for digest in ("sha1", "md5", "sha224"):
        for command in ("smime", "cms"):
            assert accepts(ssl.sign("alice", digest=digest, command=command)) is None
    good = ssl.sign("alice")
    sha256, sha1 = bytes.fromhex("0609608648016503040201"), bytes.fromhex("06052b0e03021a")
    first, second = good.find(sha256), good.rfind(sha256)
    assert first != second
    for at in (first, second):  # in digestAlgorithms alone, in SignerInfo alone
        other = good[: at + 10] + b"\2" + good[at + 11 :]
        assert accepts(other) is None
    assert sha1 not in good
    weak = ssl.certificate("weak", issuer="root", ca=False, digest="sha1").sign("weak")
    who = accepts(weak)
    assert who is not None  # its own signature is not what makes it trusted
    root = pkcs7.parse(ssl.sign("root")).signers[0]
    assert not chain.reaches(who, [certificates.der_of(root)], [], rsa_floor=2048)
    assert chain.reaches(who, [certificates.der_of(who)], [], rsa_floor=2048)


@pytest.mark.rule("R67", "P14")
def test_R67_P14_other_shapes_are_refused(ssl):
    assert accepts(ssl.sign("alice", "bob")) is None  # two signers
    assert accepts(ssl.sign("alice", detached=False)) is None
    assert accepts(ssl.sign("alice", options=("-noattr", "-nocerts"))) is None
    assert accepts(ssl.sign("alice", options=("-noattr", "-keyid"), command="cms")) is None  # version 3
    pss = ("-noattr", "-keyopt", "rsa_padding_mode:pss")
    assert accepts(ssl.sign("alice", options=pss, command="cms")) is None
    assert accepts(ssl.sign("alice", options=("-noattr", "-econtent_type", "1.2.3.4"), command="cms")) is None
    ssl.run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ec.key")
    ssl.certificate("ec")
    assert accepts(ssl.sign("ec")) is None


def rebuilt(der, change):
    """The message decoded, changed, and encoded again."""
    decoded = asn1.decode_der(pkcs7.SignedData, unwrap(der))
    change(decoded)
    return asn1.encode_der(decoded)


def test_R67_one_digest_algorithm_and_version_1(ssl):
    good = ssl.sign("alice")
    assert rebuilt(good, lambda _data: None) == unwrap(good)
    first = asn1.decode_der(pkcs7.SignedData, unwrap(good)).digest_algorithms.as_list()[0]
    second = pkcs7.AlgorithmIdentifier(algorithm=list(pkcs7.DIGESTS)[1], parameters=None)
    for algorithms in ([], [first, second], [second], [first, first]):
        changed = rebuilt(good, lambda d, a=algorithms: setattr(d, "digest_algorithms", asn1.SetOf(a)))
        assert accepts(changed) is None
    for version in (0, 2, 3):
        assert accepts(rebuilt(good, lambda d, v=version: setattr(d, "version", v))) is None

    def signer_version(data):
        info = data.signer_infos.as_list()[0]
        info.version = 3
        data.signer_infos = asn1.SetOf([info])

    assert accepts(rebuilt(good, signer_version)) is None


@pytest.mark.rule("R15", "P09")
def test_R15_P09_signed_attributes_are_bounded(ssl):
    good = ssl.sign("alice", options=())
    assert accepts(good) is not None

    def crowd(number):
        def change(data):
            info = data.signer_infos.as_list()[0]
            one = info.authenticated_attributes.as_list()[0]
            many = [
                pkcs7.Attribute(type=x509.ObjectIdentifier(f"1.2.3.{n}"), values=one.values) for n in range(number)
            ]
            info.authenticated_attributes = asn1.SetOf(many)
            data.signer_infos = asn1.SetOf([info])

        return rebuilt(good, change)

    assert len(pkcs7.parse(crowd(16)).attributes) == 16
    with pytest.raises(SecurityViolation):
        pkcs7.parse(crowd(17))


def test_R67_several_signers_are_a_choice_and_all_must_verify(ssl):
    der = ssl.sign("alice", "bob")
    message = pkcs7.parse(der, one_signer=False)
    who = pkcs7.signer_of(message, CONTENT, rsa_floor=2048)
    assert who in message.signers
    assert len(message.others) == 1
    with pytest.raises(SecurityViolation):
        pkcs7.signer_of(message, CONTENT + b"x", rsa_floor=2048)
    last = der[:-1] + bytes([der[-1] ^ 1])  # one of the two signatures
    with pytest.raises(SecurityViolation):
        pkcs7.signer_of(pkcs7.parse(last, one_signer=False), CONTENT, rsa_floor=2048)
    ssl.certificate("dave").certificate("erin")
    many = ssl.sign("alice", "bob", "carol", "dave", "erin")
    with pytest.raises(SecurityViolation):
        pkcs7.parse(many, one_signer=False)


def test_R67_signed_attributes_are_verified(ssl):
    der = ssl.sign("alice", options=())
    digest = bytes.fromhex("2a864886f70d010904")
    at = der.index(digest) + len(digest) + 4
    assert accepts(der) is not None
    assert accepts(der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]) is None
    kind = der.index(bytes.fromhex("2a864886f70d010903")) + 9 + 4 + 8
    assert accepts(der[:kind] + b"\2" + der[kind + 1 :]) is None


@pytest.mark.rule("R66", "R67", "R68", "P14")
@pytest.mark.parametrize("which", ["bare", "wrapped", "attributes"])
def test_R66_every_single_byte_mutation_is_refused_or_the_same(ssl, which):
    """Each byte of three valid messages, changed in two ways; `make test-exhaustive` tries every value."""
    check_mutations(which, (0x01, 0x80))


@pytest.mark.exhaustive
@pytest.mark.parametrize("which", ["bare", "wrapped", "attributes"])
def test_R66_every_value_of_every_byte_is_refused_or_the_same(which):
    check_mutations(which, range(1, 256))


def check_mutations(which, changes):
    who = signer(0)
    der = signed_data(CONTENT, who, attributes=which == "attributes", wrapped=which != "bare", extra=[signer(1)])
    mutants = accepted = 0
    for at, change in itertools.product(range(len(der)), changes):
        mutated = der[:at] + bytes([der[at] ^ change]) + der[at + 1 :]
        mutants += 1
        found = accepts(mutated)
        if found is not None:
            accepted += 1
            assert found.public_key() == who.certificate.public_key()
            assert accepts(mutated, content=CONTENT[:-1]) is None
    assert mutants == len(changes) * len(der)
    assert accepted < mutants * 0.6  # what is left is in certificates, which a signer check judges by itself


@given(st.binary(max_size=400))
def test_R66_any_bytes_are_refused(raw):
    with pytest.raises(SecurityViolation):
        pkcs7.parse(raw)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_R66_spliced_messages_end_in_a_defined_way(at, junk):
    der = signed_data(CONTENT, signer(0), wrapped=False)
    at %= len(der)
    found = accepts(der[:at] + junk + der[at + len(junk) :])
    assert found is None or found.public_key() == signer(0).certificate.public_key()


@pytest.mark.rule("R15", "P09")
def test_R15_P09_bounds():
    import time

    crowd = [signer(1, f"extra {n}") for n in range(16)]
    assert accepts(signed_data(CONTENT, signer(0), extra=crowd[:15])) is not None
    assert accepts(signed_data(CONTENT, signer(0), extra=crowd)) is None
    deep = b"\x30\x80" * 30_000
    nested = b""
    for _ in range(5000):
        size = len(nested)
        head = bytes([size]) if size < 128 else b"\x83" + size.to_bytes(3, "big")
        nested = b"\x30" + head + nested
    for raw in (deep, nested, b"\x30\x82\xff\xff" + b"\x02\x01\x01" * 20_000, b"\x31" * 65_000):
        start = time.process_time()
        assert accepts(raw) is None
        assert time.process_time() - start < 0.010
