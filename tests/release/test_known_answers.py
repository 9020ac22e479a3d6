"""The known answers of key-release 1.2, and what the encodings refuse."""

import contextlib
import hashlib
import hmac
import json
import random as random_module

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto import jwe as oracle_jwe
from jwcrypto import jwk as oracle_jwk

from cvars.release import channel, initdata, jwe, reportdata, statements, teekey
from cvars.release.encoding import Malformed, b64url, b64url_decode, compact, strict_json

NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def base_point(crv: str) -> teekey.TeePublicKey:
    curve = teekey.CURVES[crv]
    public = ec.derive_private_key(1, curve.curve).public_key()
    return teekey.parse({"kty": "EC", "crv": crv, "alg": teekey.EC_ALG} | teekey.ec_jwk(public, curve))


def randomness(seed: int = 1):
    return random_module.Random(seed).randbytes


def test_profile_t_known_answers():
    key = base_point("P-256")
    text = rfc8785.dumps({"additional-evidence": "", "nonce": NONCE, "tee-pubkey": dict(key.jwk)})
    assert text.decode() == (
        '{"additional-evidence":"","nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","tee-pubkey":'
        '{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",'
        '"y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}}'
    )
    assert reportdata.profile_t(NONCE, key).hex() == (
        "9edc01b09e997f6578d6bd8f7fc2b28dfaaf4e5417793667b7ece025d50c7cf5b9b0f7d2bbbcebe25d2f53bd33807ce3"
        + "00" * 16
    )
    assert reportdata.device(NONCE, key).hex() == (
        "1f0628a69ac132453783cfa3e29bec54eb45ad7eabd5794753cf0bf05ecbf2cdc01d1820149a324d16a031e1f130788f"
        + "00" * 16
    )
    assert reportdata.profile_t(NONCE, base_point("P-521")).hex() == (
        "7d231c51e91a0e8b5daf2842d3b84cc58bb39b2f2e79ef14c09cc126759c2cf316d4079f95be03a80484dfdf352534f0"
        + "00" * 16
    )


def test_profile_c_known_answer():
    assert reportdata.profile_c(NONCE, base_point("P-521")).hex() == (
        "87780564acc3b4458e56468d83cb531954c8186eaa5499a787cf741e43e467cc"
        "22798e7426214b8613c5e7e9842bb7033b652bdeaf3fedbb1dfb484b75819fdd"
    )
    with pytest.raises(teekey.KeyRefused):
        reportdata.profile_c(NONCE, base_point("P-256"))


@pytest.mark.parametrize("crv", ["P-256", "P-521"])
def test_jwe_opens_for_us_and_for_jwcrypto(crv):
    keys = teekey.generate(randomness(), crv)
    sealed = jwe.encrypt(b"thirty-two bytes of secret stuff", keys.public, randomness(2))
    assert jwe.decrypt(sealed, keys.private) == b"thirty-two bytes of secret stuff"
    header = b64url_decode(sealed["protected"]).decode()
    epk = json.loads(header)["epk"]
    assert header == (
        f'{{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":'
        f'{{"crv":"{crv}","kty":"EC","x":"{epk["x"]}","y":"{epk["y"]}"}}}}'
    )
    assert header == json.dumps(json.loads(header), separators=(",", ":"))  # what clients re-serialise
    oracle = oracle_jwe.JWE()
    oracle.deserialize(json.dumps(sealed), oracle_jwk.JWK.from_pyca(keys.private))
    assert oracle.payload == b"thirty-two bytes of secret stuff"


def test_jwe_reads_jwcrypto_style_tampering_as_refusal():
    keys = teekey.generate(randomness())
    sealed = jwe.encrypt(b"secret", keys.public, randomness(2))
    for name in jwe.MEMBERS:
        raw = b64url_decode(sealed[name])
        broken = sealed | {name: b64url(bytes([raw[0] ^ 1]) + raw[1:])}
        with pytest.raises(Malformed):
            jwe.decrypt(broken, keys.private)
    with pytest.raises(Malformed):
        jwe.decrypt(sealed | {"aad": ""}, keys.private)


def test_K37_algorithm_confusion():
    good = dict(base_point("P-256").jwk)
    for change in (
        {"alg": "RSA-OAEP-256"}, {"alg": "dir"}, {"alg": "RSA1_5"}, {"alg": "none"}, {"crv": "P-384"},
        {"crv": "X25519"}, {"crv": "P-521"}, {"kty": "ec"}, {"kty": "RSA"}, {"kty": "OKP"}, {"kid": "x"},
        {"kty": "AKP", "alg": "ML-KEM-768+A192KW"},
    ):  # fmt: skip
        with pytest.raises(teekey.KeyRefused):
            teekey.parse(good | change)


def test_K38_invalid_points_and_rsa_keys():
    good = dict(base_point("P-256").jwk)
    p = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
    for change in (
        {"x": b64url(bytes(32)), "y": b64url(bytes(32))},
        {"x": b64url(p.to_bytes(32))},
        {"y": b64url((1).to_bytes(32))},
        {"x": b64url(b64url_decode(good["x"])[1:])},
        {"x": good["x"] + "="},
        {"x": 5},
    ):
        with pytest.raises(teekey.KeyRefused):
            teekey.parse(good | change)
    n = (1 << 2047) | 1
    rsa_good = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": b64url(n.to_bytes(256)), "e": "AQAB"}
    assert teekey.parse(rsa_good).alg == "RSA-OAEP-256"
    for change in (
        {"n": b64url(((1 << 1023) | 1).to_bytes(128))},
        {"n": b64url((n - 1).to_bytes(256))},
        {"n": b64url(b"\0" + n.to_bytes(256))},
        {"e": b64url(b"\x01")},
        {"e": b64url(b"\x03")},
        {"alg": "RSA1_5"},
        {"alg": "ECDH-ES+A256KW"},
    ):
        with pytest.raises(teekey.KeyRefused):
            teekey.parse(rsa_good | change)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())])
def test_statements_verify_only_under_their_pin(key):
    signer = statements.SigningKey(key)
    public = key.public_key()
    jws = signer.statement(statements.RELEASE_TYP, {"nonce": "n"})
    good = statements.verify_statement(jws, statements.RELEASE_TYP, [public], {signer.kid})
    assert good == {"nonce": "n"}
    stranger = statements.SigningKey(ed25519.Ed25519PrivateKey.generate())
    head, body, tail = jws.split(".")
    none = b64url(b'{"alg":"none","kid":"' + signer.kid.encode() + b'","typ":"cvars-release+jwt"}')
    for bad, pins in (
        (jws, {stranger.kid}),
        (None, {signer.kid}),
        (f"{head}.{body}.", {signer.kid}),
        (f"{none}.{body}.{tail}", {signer.kid}),
        (f"{head}.{b64url(b'{}')}.{tail}", {signer.kid}),
        (stranger.statement(statements.RELEASE_TYP, {"nonce": "n"}), {signer.kid}),
        (
            stranger.jws({"alg": signer.alg, "kid": signer.kid, "typ": statements.RELEASE_TYP}, {"nonce": "n"}),
            {signer.kid},
        ),
        (signer.statement(statements.ANCHOR_TYP, {"nonce": "n"}), {signer.kid}),
    ):
        with pytest.raises(Malformed):
            statements.verify_statement(bad, statements.RELEASE_TYP, [public, stranger.private.public_key()], pins)


def test_channel_mac_known_answer():
    found = channel.headers(bytes(32), "POST", "/cvars/v1/anchor/vm/renew", 7, b"{}")
    text = b"cvars channel v1\nPOST\n/cvars/v1/anchor/vm/renew\n7\n" + hashlib.sha256(b"{}").hexdigest().encode()
    assert found == {
        "x-cvars-sequence": "7",
        "x-cvars-mac": hmac.new(bytes(32), text, hashlib.sha256).hexdigest(),
    }
    assert channel.sequence_of(found, bytes(32), "POST", "/cvars/v1/anchor/vm/renew", b"{}") == 7
    assert channel.sequence_of(found, bytes(32), "POST", "/cvars/v1/anchor/vm/seal", b"{}") is None
    assert channel.sequence_of(found | {"x-cvars-sequence": "8"}, bytes(32), "POST", "/x", b"{}") is None
    assert channel.sequence_of(found | {"x-cvars-sequence": "٧"}, bytes(32), "POST", "/x", b"{}") is None


def test_init_data_names_the_vm_and_pins_the_broker():
    body = initdata.compose("vm-1", ["ab" * 32, "cd" * 32], freshness="critical")
    found = initdata.parse(body)
    assert (found.vm_id, found.broker_keys, found.freshness) == ("vm-1", ("ab" * 32, "cd" * 32), "critical")
    assert len(found.host_data) == 32
    assert len(found.mr_config_id) == 48
    assert initdata.parse(body + " ").host_data != found.host_data
    for bad in (
        "", "version = 1", 'version="1"\nalgorithm="md5"\n[data]', "\ud800", "x" * 70000,
        'version="1"\nalgorithm="sha256"\n[data]\n"cvars.vm-id"="a/b"',
        'version="1"\nalgorithm="sha256"\n[data]\n"cvars.vm-id"=5',
        'version="1"\nalgorithm="sha256"\n[data]\n"cvars.broker-key"="zz"',
    ):  # fmt: skip
        with pytest.raises(Malformed):
            initdata.parse(bad)


def test_K36_strict_json_refuses_what_clients_never_send():
    for bad in (
        b"[" * 100_000, b'{"a":' * 20 + b"1" + b"}" * 20, b'{"a":1,"a":2}', b"123456789012345678901", b"NaN",
        b'{"a":Infinity}', b'"\xff"', b'"\\ud800"', b"{" + b",".join(b'"%d":1' % i for i in range(5000)) + b"}",
        b"", b"1e999",
    ):  # fmt: skip
        with pytest.raises(Malformed):
            strict_json(bad)
    assert strict_json(b'{"a":"[[[[[[[[[[[[[[[[[[[[[[[[","b":18446744073709551615}')["b"] == 2**64 - 1


@given(
    st.dictionaries(st.text(st.characters(max_codepoint=127)), st.text(st.characters(exclude_categories=["Cs"])))
)
def test_compact_json_of_texts_under_ascii_names_is_canonical(value):
    assert compact(value) == rfc8785.dumps(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(0.001, 1e15)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )
)  # fmt: skip
def test_compact_json_is_spelled_as_the_standard_library_spells_it(value):
    """What chains and logs were written with must be found again, byte by byte."""
    assert compact(value).decode() == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_malformed(raw):
    for read in (strict_json, lambda b: initdata.parse(b.decode("utf-8", "surrogateescape"))):
        with contextlib.suppress(Malformed):
            read(raw)


@given(st.binary(max_size=80))
def test_b64url_has_one_spelling(data):
    text = b64url(data)
    assert b64url_decode(text) == data
    with pytest.raises(Malformed):
        b64url_decode(text + "=")
