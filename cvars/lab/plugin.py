"""pytest plugin: the fixture ``lab``. Parts are imported only when a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from cvars.lab.lab import Lab

_LABS = pytest.StashKey["Lab"]()


@pytest.fixture(scope="session")
def cvars_lab_hardware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated roots, made once per session: an RSA-4096 key takes seconds."""
    folder = tmp_path_factory.mktemp("cvars-hardware", numbered=True)
    folder.chmod(0o700)
    return folder


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path, cvars_lab_hardware: Path) -> Iterator[Lab]:
    """Broker, component, guest and host in one process, with a clock and randomness of their own.

    ``CVARS_TEST_SEED`` changes the seed. A failing test prints each guest's trace.
    """
    from cvars.lab.lab import Lab  # noqa: PLC0415 - only when asked for

    made = Lab(tmp_path, hardware=cvars_lab_hardware, seed=int(os.environ.get("CVARS_TEST_SEED", "1")))
    request.node.stash[_LABS] = made
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:  # noqa: ANN401, ARG001
    """Show what happened in the lab of a failing test."""
    report = yield
    made = item.stash.get(_LABS, None)
    if report.failed and made is not None:
        for vm_id, events in made.trace.events.items():
            report.sections.append((f"trace of {vm_id}", "\n".join(str(event.as_json()) for event in events)))
    return report
