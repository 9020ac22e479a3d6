"""Other people's files: QEMU JSON, edk2 flash images, captures, signature lists."""
