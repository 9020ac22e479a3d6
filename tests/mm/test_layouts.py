"""The declarations have the specification's sizes, and the fast decoders say the same."""

from hypothesis import given
from hypothesis import strategies as st

from cvars.mm import layouts
from cvars.variables import descriptor, policy, siglist


def test_sizes_are_those_of_the_headers():
    assert layouts.EFI_MM_COMMUNICATE_HEADER.sizeof() == 0x18
    assert layouts.SMM_VARIABLE_COMMUNICATE_HEADER.sizeof() == 0x10
    assert layouts.SMM_VARIABLE_COMMUNICATE_ACCESS_VARIABLE.sizeof() == 0x24
    assert layouts.SMM_VARIABLE_COMMUNICATE_GET_NEXT_VARIABLE_NAME.sizeof() == 0x18
    assert layouts.SMM_VARIABLE_COMMUNICATE_QUERY_VARIABLE_INFO.sizeof() == 0x1C
    assert layouts.SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY.sizeof() == 0x30
    assert layouts.VAR_CHECK_POLICY_COMM_HEADER.sizeof() == 0x14
    assert layouts.VAR_CHECK_POLICY_COMM_DUMP_PARAMS.sizeof() == 0x0D
    assert layouts.VAR_CHECK_POLICY_COMM_GET_INFO_PARAMS.sizeof() == 0x44
    assert policy.ENTRY_BYTES == 0x2C
    assert policy.STATE_BYTES == 0x12
    assert descriptor.FIXED == 0x28
    assert siglist.HEADER == 0x1C


@given(st.binary(min_size=64, max_size=64))
def test_fast_decoders_agree_with_the_declarations(raw):
    for declared, fast in layouts.TWINS:
        assert declared.sizeof() == fast.size
        values = tuple(v for k, v in declared.parse(raw).items() if not k.startswith("_"))
        assert values == fast.unpack_from(raw)
    whole = layouts.SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY.parse(raw)
    assert layouts.PROPERTY.unpack_from(raw, layouts.NAME.size) == (
        whole.Revision,
        whole.Property,
        whole.Attributes,
        whole.MinSize,
        whole.MaxSize,
    )
    info = layouts.VAR_CHECK_POLICY_COMM_GET_INFO_PARAMS.parse(raw + bytes(4))
    assert layouts.POLICY_INFO.unpack_from(raw) == (
        info.VendorGuid,
        info.InputVariableNameSize,
        info.OutputVariableNameSize,
    )
    head = descriptor.EFI_VARIABLE_AUTHENTICATION_2.parse(raw)
    assert descriptor._CERTIFICATE.unpack_from(raw, descriptor.TIME) == (
        head.dwLength,
        head.wRevision,
        head.wCertificateType,
        head.CertType,
    )
    assert descriptor.instant(raw) == tuple(
        head.TimeStamp[f] for f in ("Year", "Month", "Day", "Hour", "Minute", "Second")
    )
    siglist_head = siglist.EFI_SIGNATURE_LIST.parse(raw)
    assert siglist._FAST.unpack_from(raw) == tuple(v for k, v in siglist_head.items() if not k.startswith("_"))
