"""The simulated host: holds the blob, and attacks it."""
