"""The paravirtual call boundary between a guest and its SVSM-like trusted component.

Guest memory, the SVSM calling convention, protocols and transports. Knows nothing of UEFI variables:
it hands a protocol handler bytes and takes bytes back. Source: `svsm-calls` rules S.., B.., C...
"""
