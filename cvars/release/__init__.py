"""Key-release and anchor messages, statements, JWE, and the client. Source: `key-release`."""
