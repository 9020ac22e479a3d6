"""Launch measurements, computed from the bytes that are launched. Source: `attestation` 2.8."""
