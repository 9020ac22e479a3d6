"""UEFI variable semantics: a pure state machine over requests. Source: `uefi-variable-rules` R1..R125."""
