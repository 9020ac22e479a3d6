"""cvars: persistent UEFI variables for confidential virtual machines."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cvars")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"
