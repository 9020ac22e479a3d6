"""The key broker: verifies evidence, applies policy, releases keys, keeps the freshness anchor."""
