"""The second and third line of an error, where whoever raised it could not say: which command, and what to try."""

from typing import Final

from cvars.errors import CvarsError

#: what to try, by reason; ``{command}`` is the command that was run
WAYS_OUT: Final[dict[str, str]] = {
    "usage": "see: {command} --help",
    "not_yet": "CHANGELOG.md says what is there today",
    "internal": "this is a bug in cvars: see SECURITY.md or CONTRIBUTING.md; -v prints the traceback",
    "input.malformed": "is it the right file, whole and unchanged? see: {command} --help",
    "outside.failed": "mend that and run the command again; nothing is half-made",
    "store.error": "cvars store fsck describes the image; cvars store explain REASON says what a reason means",
    "attest.refused": "cvars attest verify names every rule offline; the broker's log says which one refused",
    "attest.root_refused": "simulated roots need --simulation; real ones are the published files, unchanged",
    "attest.fetch_failed": "give the certificates or collateral with --certs or --collateral, or try again later",
    "release.refused": "the broker's log says which rule refused; cvars broker policy explain tries it offline",
    "release.statement_refused": "is the pin in init-data this broker's, and who answers at that URL?",
    "variable.refused": "cvars vars get shows the variable and its attributes",
    "management.refused": "power the guest off first, and check name and value; see: {command} --help",
    "anchor.unknown": "cvars broker vm list",
    "broker.config": "compare with what `cvars broker init` writes; its comments say what belongs there",
    "broker.database": "is the database there and reachable? the address is `database` in broker.toml",
    "broker.schema": "cvars broker migrate",
    "broker.wrong_master_key": "give the key the database was written under: secrets.master_key or old_keys",
    "broker.master_key_down": "is the key file, token or credential of secrets.master_key there?",
    "policy.malformed": "cvars broker policy check names the line and the key that is wrong",
}


def where_and_hint(error: CvarsError, command: str) -> tuple[str, str]:
    """``error.where`` and ``error.hint``; what is missing is filled in. ``command``: as typed, without options."""
    hint = error.hint
    if not hint:
        from cvars.store.explaining import EXPLANATIONS  # noqa: PLC0415 - most commands start without the store

        if error.reason in EXPLANATIONS:
            hint = f"cvars store explain {error.reason}"
    return error.where or command, hint or WAYS_OUT.get(error.reason, WAYS_OUT["usage"]).format(command=command)
