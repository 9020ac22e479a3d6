"""What is launched and measured: the trusted component itself.

The simulated processor measures this image page by page, as the real one measures an SVSM binary. It lists
the source files of the component's rooms with their SHA-256, so that a changed component is another
measurement, and a policy names the one it trusts.
"""

import hashlib
from pathlib import Path
from typing import Final

import cvars
import svsm_bridge

PAGE_BYTES: Final = 4096
_ROOMS: Final = ("component", "mm", "release", "store", "variables")
_FILES: Final = ("__init__.py", "errors.py", "trace.py")


def component_image() -> bytes:
    """The launch image: whole 4 KiB pages, the same bytes for the same sources."""
    lines = [b"cvars trusted component\n"]
    for path, name in sorted(_sources(), key=lambda item: item[1]):
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    image = b"".join(lines)
    return image.ljust(-(-len(image) // PAGE_BYTES) * PAGE_BYTES, b"\0")


def _sources() -> list[tuple[Path, str]]:
    ours = Path(cvars.__file__).parent
    bridge = Path(svsm_bridge.__file__).parent
    files = [(ours / name, f"cvars/{name}") for name in _FILES]
    for room in _ROOMS:
        files += [(p, f"cvars/{p.relative_to(ours).as_posix()}") for p in (ours / room).rglob("*.py")]
    files += [(p, f"svsm_bridge/{p.relative_to(bridge).as_posix()}") for p in bridge.rglob("*.py")]
    return files
