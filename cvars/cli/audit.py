"""``cvars audit``: what an observer on the host can learn."""

from pathlib import Path
from typing import Annotated

import typer

from cvars.cli.later import add_missing
from cvars.cli.output import JsonOption, QuietOption, VerboseOption, answer, emit, say, table
from cvars.cli.places import present, read_bytes
from cvars.errors import OutsideFailure, UsageMistake

app = typer.Typer(no_args_is_help=True, help="What the host can see.")


@app.command("host-view")
def host_view(
    stores: Annotated[list[Path], typer.Argument(help="Store images, or folders of them.", callback=present)],
    out: Annotated[Path | None, typer.Option("--out", help="Write an HTML report.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Say what an observer of the disk learns from store images, without any key.

    Example: cvars audit host-view cvars-demo/host --out report.html
    """
    from cvars.audit.host_view import look  # noqa: PLC0415
    from cvars.audit.report import render  # noqa: PLC0415

    files = [f for path in stores for f in (sorted(path.rglob("*.fd")) if path.is_dir() else [path])]
    view = look({str(file): read_bytes(file) for file in files})
    rows = [
        (s.name, s.seen.image_size, len(s.commits), s.sealed_bytes, s.sealed_entropy or "") for s in view.stores
    ]
    table(("STORE", "BYTES", "LOG RECORDS", "SEALED BYTES", "ENTROPY"), rows)
    strange = [s.name for s in view.stores if not s.seen.creation and not any(b.header for b in s.seen.banks)]
    for name in strange or ([] if files else [str(p) for p in stores]):
        say(f"{name}: no sealed store here: nothing can be said of what it shows")
    if files and not strange:
        say("Clear fields are those above; the rest of each record is sealed and padded to size classes.")
    if out is not None:
        if any(file.exists() and out.exists() and out.samefile(file) for file in files):
            raise UsageMistake(f"{out} is one of the stores: it is left alone", hint="name another: --out FILE")
        try:
            out.write_text(render(view, simulated=False))
        except OSError as error:
            raise OutsideFailure(f"the report cannot be written: {error.strerror}", where=str(out)) from error
        say(f"report: {out}")
    emit("cvars.audit.host-view/1", view.as_json())
    answer(yes=bool(files) and not strange)


add_missing(app, "audit")
