"""`cvars replay`: recorded traffic against a fresh service, every reply compared."""

# ruff: noqa: PLC0415 - the rooms are imported when the command runs: `cvars --help` stays fast

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cvars.cli.output import SPEECH, JsonOption, QuietOption, VerboseOption, answer, emit, say, table
from cvars.errors import BadInput, OutsideFailure, UsageMistake

SCHEMA: Final = "cvars.replay/1"
PCAP_MAGICS: Final = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")


@dataclass(slots=True)
class Tally:
    """What one run found, over all files."""

    judgements: list[Any] = field(default_factory=list)
    left: list[Any] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # of a scenario


def command(
    files: Annotated[
        list[str], typer.Argument(help="Captures (.pcap, link type 302) or vectors (.jsonl); - is standard input.")
    ],
    profile: Annotated[str, typer.Option(help="Choice points: spec, edk2, qemu, sct.")] = "spec",
    from_: Annotated[
        Path | None, typer.Option("--from", help="Variables to start with (JSON, as QEMU writes it).")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Report one step: its number, or SCENARIO:NUMBER of vectors.")
    ] = None,
    write_replies: Annotated[
        Path | None, typer.Option(help="Write what we answered, one JSON object per line.")
    ] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Send each recorded request to a fresh service and compare each reply.

    Vectors are compared under the rules of their README (labels, sizes, walks). Captures are compared byte for
    byte; in one that another implementation answered, what its configuration decides is set aside and counted.
    Ends 0 when every difference is explained, 1 when one is not.

    Example: cvars replay boot.pcap --from vars.json --only 207 -v
    """
    from cvars.lab import comparing, foreign, replaying
    from cvars.variables.profile import profile_named

    chosen = profile_named(profile)
    store = replaying.load_store(_read(str(from_)), str(from_)) if from_ is not None else {}
    tally = Tally()
    for file in files:
        raw = _read(file)
        if raw[:4] in PCAP_MAGICS:
            from cvars.formats.pcap import read_capture

            capture = read_capture(raw, where=file)
            played = list(replaying.play_capture(capture, _scenario(file), chosen, store))
            tally.left += [p for p in played if isinstance(p, replaying.Left)]
            tally.judgements += foreign.judge_capture(p for p in played if isinstance(p, replaying.Exchange))
            tally.files[_scenario(file)] = file
        else:
            from cvars.formats.vectors import read_scenarios

            for scenario in read_scenarios(_lines(raw, file), where=file):
                played_scenario = replaying.play_scenario(scenario, chosen, store)
                tally.judgements += comparing.judge_scenario(played_scenario)
                tally.files[scenario.name] = file
    if not tally.judgements and not tally.left:
        raise BadInput("nothing to replay", where=" ".join(files))
    if write_replies is not None:
        _write_replies(write_replies, tally)
    if only is not None:
        _select(tally, only)
    _report(tally, _repeat(profile, from_))


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except IsADirectoryError:
        raise UsageMistake(f"{file} is a folder") from None
    except FileNotFoundError:
        raise UsageMistake(f"no such file: {file}") from None
    except OSError as error:
        raise OutsideFailure(f"cannot read {file}: {error.strerror}") from None


def _lines(raw: bytes, file: str) -> list[str]:
    try:
        return raw.decode().split("\n")
    except UnicodeDecodeError:
        raise BadInput("neither a pcap nor a text file", where=file) from None


def _scenario(file: str) -> str:
    return Path(file).name if file != "-" else "standard input"


def _repeat(profile: str, from_: Path | None) -> str:
    """The options that a repetition of one step needs."""
    return (f" --profile {profile}" if profile != "spec" else "") + (f" --from {from_}" if from_ else "")


def _select(tally: Tally, only: str) -> None:
    scenario, _, number = only.rpartition(":")
    if not number.isdecimal():
        raise UsageMistake(f"--only {only}: wanted a number, or SCENARIO:NUMBER")
    step = int(number)
    tally.judgements = [
        j for j in tally.judgements if j.exchange.step == step and scenario in ("", j.exchange.scenario)
    ]
    tally.left = [left for left in tally.left if left.step == step]
    if not tally.judgements and not tally.left:
        raise UsageMistake(f"--only {only}: there is no such request")


def _write_replies(path: Path, tally: Tally) -> None:
    try:
        with path.open("w") as out:
            for judgement in tally.judgements:
                exchange = judgement.exchange
                row = {
                    "scenario": exchange.scenario,
                    "step": exchange.step,
                    "device_status": exchange.device,
                    "reply": exchange.ours.hex(),
                }
                out.write(json.dumps(row) + "\n")
    except OSError as error:
        raise OutsideFailure(f"cannot write {path}: {error.strerror}") from None


def _report(tally: Tally, repeat: str) -> None:
    from cvars.lab.comparing import Verdict, by_label, counts

    differences = [j for j in tally.judgements if not j.verdict.explained]
    found = counts(tally.judgements)
    labels = by_label(tally.judgements)
    compared, equal = len(tally.judgements), found[Verdict.EQUAL]
    say(f"{compared} requests, {equal} replies equal")
    explained = [f"{n} {kind}" for kind, n in sorted(found.items()) if kind != Verdict.EQUAL]
    if explained:
        say("  " + ", ".join(explained))
    if tally.left:
        say(f"{len(tally.left)} not compared")
        for left in tally.left if SPEECH.verbose else tally.left[:5]:
            say(f"  {left.scenario} #{left.step}  {left.why}")
    if labels:
        _print_labels(labels)
    for judgement in differences:
        _print_difference(judgement, tally.files[judgement.exchange.scenario], repeat)
    if SPEECH.verbose and compared == 1 and not differences:
        _print_bytes(tally.judgements[0])
    emit(
        SCHEMA,
        {
            "compared": compared,
            "equal": equal,
            "skipped": len(tally.left),
            "verdicts": dict(sorted(found.items())),
            "labels": {label: dict(row) for label, row in sorted(labels.items())},
            "left": [{"scenario": x.scenario, "step": x.step, "why": x.why} for x in tally.left],
            "differences": [_as_json(j) for j in differences],
        },
    )
    answer(yes=not differences)


def _print_labels(labels: dict[str, Counter[str]]) -> None:
    head = ("as edk2", "as recorded", "by rule", "neither")
    say()
    table(
        ("ID", "AS EDK2", "AS RECORDED", "BY RULE", "NEITHER"),
        [(label, *(row[kind] for kind in head)) for label, row in sorted(labels.items())],
    )
    say()


def _print_difference(judgement: Any, file: str, repeat: str) -> None:  # noqa: ANN401 - a Judgement, imported late
    from cvars.lab.replaying import Message

    exchange = judgement.exchange
    is_capture = exchange.scenario == _scenario(file)
    where = f"#{exchange.step}" if is_capture else f"{exchange.scenario} #{exchange.step}"
    label = f"   {exchange.label.id}: {exchange.label.edk2}" if exchange.label else ""
    title = Message(exchange.request).title
    expected, got = _outcome(judgement, ours=False), _outcome(judgement, ours=True)
    say(f"{where} {title}   expected {expected}   got {got}{label}")
    step = str(exchange.step) if is_capture else f"{exchange.scenario}:{exchange.step}"
    say(f"     cvars replay {file}{repeat} --only {step} -v")
    if SPEECH.verbose:
        _print_bytes(judgement)


def _print_bytes(judgement: Any) -> None:  # noqa: ANN401 - a Judgement, imported late
    exchange = judgement.exchange
    pairs = (("request", exchange.request), ("recorded", exchange.recorded), ("ours", exchange.ours))
    for name, raw in pairs:
        say(f"     {name:9} {raw[:256].hex()}{'…' if len(raw) > 256 else ''}")
    length = max(len(exchange.recorded), len(exchange.ours))
    at = [i for i in range(length) if exchange.recorded[i : i + 1] != exchange.ours[i : i + 1]]
    if at:
        say(f"     {len(at)} bytes differ, the first at offset {at[0]:#x}")


def _outcome(judgement: Any, *, ours: bool) -> str:  # noqa: ANN401 - a Judgement, imported late
    from cvars.lab.replaying import Message, status_name

    exchange = judgement.exchange
    device = exchange.device if ours else exchange.recorded_device
    if device:
        return f"device status {device:#x}"
    message = Message(exchange.ours if ours else exchange.recorded)
    size = f" ({len(message.data)} bytes)" if message.function == 1 and message.status == 0 else ""
    return status_name(message.status) + size


def _as_json(judgement: Any) -> dict[str, Any]:  # noqa: ANN401 - a Judgement, imported late
    from cvars.lab.replaying import Message

    exchange = judgement.exchange
    return {
        "scenario": exchange.scenario,
        "step": exchange.step,
        "request": Message(exchange.request).title,
        "expected": _outcome(judgement, ours=False),
        "got": _outcome(judgement, ours=True),
        "label": exchange.label.id if exchange.label else None,
        "verdict": judgement.verdict.value,
    }
