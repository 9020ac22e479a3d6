"""SVSM protocols: core, attestation, UEFI MM."""
