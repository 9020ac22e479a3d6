"""`cvars aproxy`: COCONUT-SVSM's attestation proxy protocol in front of a KBS."""

from typing import Annotated

import typer

from cvars.cli.output import JsonOption, QuietOption, VerboseOption, emit, say


def command(
    listen: Annotated[str, typer.Option("--listen", help="unix:PATH, vsock or vsock:PORT (default 1995).")],
    broker: Annotated[
        str, typer.Option("--broker", help="The KBS, http:// or https://.")
    ] = "http://127.0.0.1:8080",
    resource: Annotated[
        str, typer.Option("--resource", help="repository/type/tag to hand out.")
    ] = "default/sample/test",
    ca: Annotated[str | None, typer.Option("--ca", help="CA certificates for https, PEM.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Carry an SVSM's evidence to a KBS and its secret back. Trusted by nobody; runs until SIGTERM.

    Example: cvars aproxy --listen unix:/run/cvars/aproxy.sock --broker http://127.0.0.1:8080
    """
    import signal  # noqa: PLC0415
    import threading  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from cvars.broker import aproxy  # noqa: PLC0415
    from cvars.broker.policy.model import is_part  # noqa: PLC0415
    from cvars.errors import UsageMistake  # noqa: PLC0415
    from cvars.release.transport import http_transport  # noqa: PLC0415

    parts = resource.split("/")
    if len(parts) != 3 or not all(is_part(part) for part in parts):
        raise UsageMistake(f"not repository/type/tag: {resource!r}")
    proxy = aproxy.Proxy(http_transport(broker, verify=ca or True), resource)
    listener = aproxy.listen(listen)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    say(f"aproxy ready on {listen} for {broker}")
    emit("cvars.aproxy/1", {"listen": listen, "broker": broker, "resource": resource}, simulated=None)
    try:
        aproxy.serve(listener, proxy, stopped=done.is_set)
    finally:
        listener.close()
        if listen.startswith("unix:"):
            Path(listen[5:]).unlink(missing_ok=True)
