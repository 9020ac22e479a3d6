"""SEV-SNP attestation reports."""
