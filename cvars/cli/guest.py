"""``cvars guest``: the trusted component of one guest, and simulated guests that call it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cvars.cli.output import SIMULATED_NOTE, SPEECH, JsonOption, QuietOption, VerboseOption, answer, emit, say
from cvars.cli.places import read_text, runtime_dir, state_dir, unix_path
from cvars.cli.weakened import tests_only, weakened_note
from cvars.errors import UsageMistake

app = typer.Typer(
    no_args_is_help=True, help="Run the trusted component of a guest, or play a guest that calls it."
)

_TEES = ("snp", "tdx")
TeeOption = Annotated[str, typer.Option("--tee", help="snp or tdx (simulated).")]
HardwareOption = Annotated[
    Path | None, typer.Option("--hardware", help="Folder of the simulated hardware (made on first use).")
]


@app.command()
def run(
    tee: TeeOption,
    store: Annotated[Path, typer.Option("--store", help="The pflash blob, as the host keeps it.")],
    broker: Annotated[str, typer.Option("--broker", help="URL of the key broker.")],
    init_data: Annotated[
        Path,
        typer.Option("--init-data", help="Measured; names the VM, pins the broker's key (- for standard input)."),
    ],
    on_rollback: Annotated[
        str, typer.Option("--on-rollback", help="An older image within the broker's ring: repair or refuse.")
    ] = "repair",
    takeover: Annotated[bool, typer.Option("--takeover", help="Ask to fence a live instance.")] = False,
    listen: Annotated[
        str | None, typer.Option("--listen", help="unix:PATH of the call boundary's socket.")
    ] = None,
    pcap: Annotated[Path | None, typer.Option("--pcap", help="Capture every message (link type 302).")] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Write zeros for values in the capture (P38).")] = False,
    trace: Annotated[Path | None, typer.Option("--trace", help="Append events as JSON Lines.")] = None,
    scenario: Annotated[
        Path | None,
        typer.Option("--scenario", help="Play this scenario as the guest, then power off (- for standard input)."),
    ] = None,
    hardware: HardwareOption = None,
    test_without: Annotated[list[str] | None, typer.Option("--test-without", hidden=True)] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Attest, open the store, and serve variable calls until SIGTERM.

    Example: cvars guest run --tee snp --store vm.fd --broker http://127.0.0.1:8080 --init-data vm.toml
    """
    SPEECH.simulated = True
    from cvars.component.boot import TESTABLE_CHECKS, Component  # noqa: PLC0415
    from cvars.component.process import Options, serve  # noqa: PLC0415
    from cvars.lab.guest_process import play_beside  # noqa: PLC0415
    from cvars.lab.scenario import read_scenario  # noqa: PLC0415

    _one_of("--tee", tee, _TEES)
    _one_of("--on-rollback", on_rollback, ("repair", "refuse"))
    without = tests_only(test_without or (), TESTABLE_CHECKS)
    if str(scenario) == str(init_data) == "-":
        raise UsageMistake("standard input can be read once", hint="give one of the files by its name")
    codes: list[int] = []
    played = read_text(scenario) if scenario is not None else None
    if played is not None:
        read_scenario(played, str(scenario))  # a mistake in it must not cost a boot
    socket = unix_path(listen) if listen else runtime_dir() / f"guest-{os.getpid()}.sock"

    def ready(component: Component) -> None:
        say(f"{'SEV-SNP' if tee == 'snp' else 'TDX'}, simulated; {len(component.store.variables)} variables")
        mode = component.claims().secure_boot_mode.name.lower()
        say(f"Secure Boot: {mode} mode" + (", no platform key: nothing is enforced" if mode == "setup" else ""))
        say(f"ready on unix:{socket}")
        say(SIMULATED_NOTE)
        if without:
            say(weakened_note(without))
        emit(
            "cvars.guest.run/1",
            {
                "ready": True,
                "listen": f"unix:{socket}",
                "pid": os.getpid(),
                "counter": component.store.point.counter,
                "secure_boot": mode,
                "weakened": sorted(without),
            },
            simulated=True,
        )
        if played is not None:
            play_beside(socket, played, codes)

    serve(
        Options(
            tee=tee,
            store=store,
            broker=broker,
            init_data=init_data,
            listen=socket,
            hardware=hardware or state_dir() / "hardware",
            on_rollback=on_rollback,
            takeover=takeover,
            pcap=pcap,
            redact=redact,
            trace=trace,
            skip_checks=without,
        ),
        ready,
    )
    if any(codes):
        raise typer.Exit(codes[0])


@app.command()
def play(
    scenario: Annotated[Path, typer.Argument(help="Recorded requests, JSON Lines (- for standard input).")],
    connect: Annotated[str, typer.Option("--connect", help="unix:PATH of the component.")],
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Write what was answered, as JSON Lines.")
    ] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Be the guest: send a scenario's recorded requests through the call boundary.

    Example: cvars guest play boot.jsonl --connect unix:/run/cvars/guest.sock
    Exit code 1: an answer differs from the recorded one.
    """
    SPEECH.simulated = True
    from cvars.lab.guest_process import play_through  # noqa: PLC0415
    from cvars.lab.scenario import read_scenario  # noqa: PLC0415

    steps = read_scenario(read_text(scenario), str(scenario))
    played = play_through(unix_path(connect), steps, answers)
    different = [p for p in played if not p.as_recorded]
    for one in different:
        say(f"step {one.step.number} of {one.step.scenario} ({one.step.note or 'no note'}): another answer")
    say(f"{len(played)} requests, {len(played) - len(different)} answered as recorded")
    emit(
        "cvars.guest.play/1",
        {"requests": len(played), "as_recorded": len(played) - len(different)},
        simulated=True,
    )
    answer(yes=not different)


@app.command()
def measure(
    tee: TeeOption,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Print the launch measurement of this component, for a policy's allow list.

    Example: cvars guest measure --tee snp
    """
    from cvars.component.hardware import launch_measurement  # noqa: PLC0415

    _one_of("--tee", tee, _TEES)
    digest = launch_measurement(tee).hex()
    say(digest)
    emit("cvars.guest.measure/1", {"tee": tee, "measurement": digest})


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageMistake(f"{option} is one of {', '.join(known)}, not {value!r}")


@app.command()
def init(
    vm_id: Annotated[str, typer.Argument(metavar="VM", help="1..128 of A-Z a-z 0-9 . _ -")],
    tee: TeeOption,
    broker: Annotated[Path, typer.Option("--broker", help="Folder of the broker; made when there is none.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the guest's files.")] = Path(),
    size: Annotated[str, typer.Option("--size", help="Image size, with K or M.")] = "1M",
    mode: Annotated[str, typer.Option("--mode", help="none, per-boot, bounded, critical or strict.")] = "critical",
    hardware: HardwareOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Enrol a VM: blank flash and init-data for its host, a record at its broker (simulation only).

    A new broker trusts this machine's simulated hardware and the component as it is installed here.

    Example: cvars guest init web-1 --tee snp --broker ./broker --out ./host
    """
    SPEECH.simulated = True
    from cvars.cli.store import image_size  # noqa: PLC0415
    from cvars.lab.operator import check_tee, check_wishes, enrol, operating, set_up_broker  # noqa: PLC0415

    _one_of("--tee", tee, _TEES)
    image_bytes = image_size(size)
    check_wishes(image_bytes, mode)
    if not (broker / "broker.toml").exists():
        set_up_broker(broker, hardware or state_dir() / "hardware", [tee])
    store, init_data = out / f"{vm_id}.fd", out / f"{vm_id}.toml"
    with operating(broker) as opened:
        check_tee(opened, vm_id, tee)
        out.mkdir(parents=True, exist_ok=True)
        enrol(opened, vm_id, store=store, init_data=init_data, image_bytes=image_bytes, mode=mode)
    say(f"{vm_id}: {store} (blank, {image_bytes} bytes), {init_data} (measured, pins {opened.signer.kid})")
    say(f"next: cvars broker serve --config {broker} --simulation")
    say(
        f"      cvars guest run --tee {tee} --store {store} --init-data {init_data} --broker http://127.0.0.1:8080"
    )
    say(SIMULATED_NOTE)
    emit(
        "cvars.guest.init/1",
        {"vm_id": vm_id, "store": str(store), "init_data": str(init_data), "pin": opened.signer.kid},
        simulated=True,
    )
