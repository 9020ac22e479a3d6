"""SEV-SNP and TDX evidence: parse, verify, appraise, measure, simulate. Source: `attestation`."""
