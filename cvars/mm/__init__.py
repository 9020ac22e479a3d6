"""MM variable and policy messages: bytes to requests, replies to bytes. Source: `mm-protocol`."""
