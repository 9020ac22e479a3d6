"""The store with one named verification removed at a time: a test must fail each time (section 5 item 14).

`python -m tests.mutants.store [FIRST] [NAME…]` copies the tree, applies one mutation, runs the tests that
should notice, and then all of `tests/store` if they did not. Ends 1 when a mutant survives.
"""

import importlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """``old`` occurs exactly once in ``file`` (below cvars/) and becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    tests: str = "parsers reasons damage"


def gone(name: str, file: str, condition: str, tests: str = "parsers reasons damage") -> Mutant:
    """A condition that is never true any more."""
    return Mutant(name, f"store/{file}.py", f"if {condition}", f"if False and ({condition.rstrip(':')}):", tests)


def change(name: str, file: str, old: str, new: str, tests: str = "parsers reasons damage") -> Mutant:
    return Mutant(name, f"store/{file}.py", old, new, tests)


MUTANTS = (
    # header blocks
    gone("header MAC", "survey", "not mac_matches(raw[:HEADER_BYTES], root.header_key):", "damage reasons"),
    change("store id", "survey", "header.store_id != keys.store_id or ", "", "reasons"),
    change("VM binding", "survey", " or header.vm_binding != keys.binding", "", "reasons"),
    gone("major version", "survey", "header.major != MAJOR:", "reasons"),
    change("format floor", "survey", "header.major < floor_format or ", "", "reasons"),
    change("minor version", "survey", " or header.minor > MINOR", "", "reasons"),
    change("feature flags", "survey", " or header.flags:", ":", "reasons"),
    change("known suite", "survey", "header.suite not in SUITES or ", "", "reasons"),
    change("suite floor", "survey", " or header.suite not in floor_suites", "", "reasons"),
    change("image size and frame", "survey", "header.geometry == geometry\n        and ", "", "reasons damage"),
    change("bank offset", "survey", "and header.bank_offset == offset\n", "\n", "reasons damage"),
    change("bank size", "survey", "and header.bank_size == geometry.bank_size\n", "\n", "reasons"),
    change("medium", "survey", "and header.medium <= 1\n", "\n", "reasons"),
    change("mode", "survey", "and header.mode <= Mode.STRICT\n", "\n", "reasons"),
    change("key check under a MAC", "survey", "and header.key_check == root.key_check\n", "\n", "reasons"),
    change("reserved bytes", "survey", "and not any(header.reserved)\n", "\n", "reasons"),
    change("rest of the header block", "survey", "and rest_is_zero(raw)\n", "\n", "damage"),
    change(
        "key check tells wrong keys", "survey", "if header.key_check != root.key_check:", "if False:", "reasons"
    ),
    change(
        "creation image size", "survey", "if header.geometry.image_size != len(image):", "if False:", "reasons"
    ),
    gone(
        "creation checksum",
        "header",
        'crc32c(raw[: HEADER_BYTES - 4]).to_bytes(4, "little") != raw[HEADER_BYTES - 4 :]:',
    ),
    # snapshots
    change("snapshot parts in whole eighths", "snapshot", "or parts % geometry.parts_per_step\n", "\n"),
    change("snapshot length", "snapshot", "or header.snapshot_bytes != geometry.snapshot_bytes(parts)\n", "\n"),
    change(
        "snapshot kind",
        "snapshot",
        "one.kind != (record.SNAPSHOT_END if last else record.SNAPSHOT_PART)\n            or ",
        "",
    ),
    change("snapshot class", "snapshot", "or one.prefix.class_index != (0 if last else PART_CLASS)\n", "\n"),
    change("snapshot part number", "snapshot", "or one.prefix.part != number\n", "\n"),
    change("snapshot session", "snapshot", "or one.prefix.session != header.session\n", "\n"),
    change("snapshot sequence", "snapshot", "or one.prefix.sequence != header.base_sequence\n", "\n"),
    change("snapshot salt", "snapshot", "or one.prefix.salt != (salt or one.prefix.salt)\n", "\n"),
    change("snapshot live bytes", "snapshot", "or (number and one.live != live)\n", "\n"),
    change("snapshot flags", "snapshot", "or one.flags\n", "\n"),
    change("snapshot chain", "snapshot", "or one.previous != chain\n", "\n"),
    gone("snapshot end", "snapshot", "last and (one.count or one.body != record.end_body(parts, counts)):"),
    gone(
        "snapshot parts are full", "snapshot", "bodies and one.body and len(bodies[-1]) != geometry.part_payload:"
    ),
    gone("snapshot digest", "snapshot", "chain != header.snapshot_digest:"),
    change("snapshot total", "snapshot", "total != live or total != len(stream) or ", ""),
    change("snapshot capacity", "snapshot", " or total > geometry.capacity", ""),
    # records
    change("record end in the bank", "record", "if at + size > end:", "if False:"),
    gone("record padding", "record", "plain.count(0, body_end) != len(plain) - body_end:"),
    change(
        "record kind and flags", "record", "if not SESSION <= kind <= CLOSE or flags & ~SECURITY:", "if False:"
    ),
    change("announcement length", "record", "if len(body) != _SESSION_BODY.size:", "if False:"),
    change("announcement mode", "record", "if zero or mode > 4:", "if False:"),
    change(
        "offset in the associated data",
        "record",
        "bytes(raw[at : at + PREFIX_BYTES]) + _OFFSET.pack(offset)",
        "bytes(raw[at : at + PREFIX_BYTES])",
        "life",
    ),
    # operations
    gone("operations end early", "operations", "end - at < OPERATION_BYTES:"),
    change("operation flags", "operations", "elif flags:", "elif False:"),
    gone("append to something", "operations", "old is None or end - data_end < _RESULT.size:"),
    change("append length", "operations", "length != len(data) or ", ""),
    change(
        "append digest", "operations", " or not hmac.compare_digest(digest, hashlib.sha256(data).digest())", ""
    ),
    gone(
        "delete of something", "operations", "old is None or data_bytes or attributes or flags or time != NO_TIME:"
    ),
    gone("bytes behind operations", "operations", "at != end:"),
    gone("names are UCS-2", "operations", "len(raw) % 2 or not raw:"),
    gone("names have no NUL", "operations", '"\\0" in name:'),
    # histories
    gone(
        "record chain",
        "history",
        "one.prefix.sequence != self.point.counter + 1 or one.previous != self.point.root:",
        "damage rollback",
    ),
    change("older session in the log", "history", "one.prefix.part or session < self.session", "one.prefix.part"),
    change("part in the log", "history", "one.prefix.part or session < self.session", "session < self.session"),
    change("announced twice", "history", "session in self.announced or ", ""),
    change("session is open", "history", "elif session != self.session or (", "elif (", "parsers"),
    change("data behind a close record", "history", " or (self.closed and one.kind == record.TRANSACTION)", ""),
    gone("close record is empty", "history", "one.body or one.flags or one.count or self.closed:"),
    change("snapshot record in the log", "history", "elif one.kind != record.SESSION:", "elif False:"),
    change("live bytes", "history", "one.live != self.live or ", ""),
    gone("announcement without operations", "history", "one.flags or one.count:"),
    gone(
        "authentic records behind the end",
        "history",
        "one is not None and one.prefix.session >= history.session:",
        "damage",
    ),
    change("stale records are no damage", "history", "and one.prefix.session >= history.session", "", "rollback"),
    # selection
    gone("session below the epoch", "selection", "named >= acquired.epoch:", "rollback reasons"),
    gone("version below the broker's", "selection", "history.highest_version >= acquired.version:", "rollback"),
    gone(
        "anchor point seen before",
        "selection",
        "history.header.anchored.counter > acquired.point.counter:",
        "rollback",
    ),
    change(
        "history contains the anchored point",
        "selection",
        "return None\n    excess",
        "beyond = ()\n    excess",
        "rollback",
    ),
    gone("excess beyond the point", "selection", "excess:", "freshness rollback"),
    gone(
        "data before its announcement",
        "selection",
        "any(c.kind == record.TRANSACTION for c in beyond[announced:]):",
        "freshness",
    ),
    gone("strict: one commit beyond", "selection", "mode is Mode.STRICT and len(data) > 1:", "freshness"),
    gone("bounded: W commits beyond", "selection", "mode is Mode.BOUNDED and len(data) > window:", "freshness"),
    gone(
        "critical: the last one",
        "selection",
        "mode is Mode.CRITICAL and any(c.security for c in data[:-1]):",
        "freshness",
    ),
    gone("fork by sequence", "selection", "found.counter >= anchored.counter:", "rollback tools"),
    gone(
        "fork inside the ring",
        "selection",
        "found not in ring and any(point in ring for point in history.points):",
        "rollback",
    ),
    change(
        "session 0 has no parent",
        "header",
        "self.base_sequence == 0 or self.session == 0",
        "self.base_sequence == 0",
        "rollback tools",
    ),
    # repair
    gone("repair ends at the anchored root", "escrow", "now.point != acquired.point:", "rollback"),
    gone("escrow header MAC", "escrow", "root is None or not mac_matches(raw, root.header_key):", "rollback"),
    change("escrow parent", "escrow", "header.parent_point != now.point\n        or ", "", "rollback"),
    change("escrow generation", "escrow", "or header.generation <= now.header.generation\n", "\n", "rollback"),
    change(
        "escrow bank",
        "escrow",
        "or header.bank_offset != now.geometry.other(now.header.bank_offset)\n",
        "\n",
        "rollback",
    ),
    change("escrow geometry", "escrow", "or header.geometry != now.geometry\n", "\n", "rollback"),
    gone("escrow snapshot is rebuilt", "escrow", "built.header != header:", "rollback"),
    change("escrow record size", "escrow", " or one.size != len(entry)", "", "rollback"),
    gone("escrow entries", "escrow", "len(entry) != size or sequence_of(entry) is None:", "parsers"),
    # mount
    change(
        "suite that is configured",
        "mounting",
        "and self._config.suite not in acquired.floor_suites",
        "and False",
        "reasons",
    ),
    gone(
        "a used store beside a creation header",
        "mounting",
        "any(c.kind == record.TRANSACTION for c in history.commits) or bank.header.generation > 1:",
        "reasons",
    ),
    gone("creation is granted", "mounting", "not provision:", "life"),
    change(
        "a store that a new anchor never saw",
        "mounting",
        "if acquired is not None and fresh:",
        "if False:",
        "reasons",
    ),
    change(
        "unknown headers beside a creation header",
        "mounting",
        " or (self._acquired is None and found.refused)",
        "",
        "reasons",
    ),
    change(
        "damage in the newest log",
        "mounting",
        "if not behind:\n                    raise tampered(history.damage)",
        "if False:\n                    raise tampered(history.damage)",
        "rollback",
    ),
    change(
        "damage without an anchor",
        "mounting",
        "if history.damage is not None:\n            raise",
        "if False:\n            raise",
        "damage",
    ),
    change(
        "repair may be refused", "mounting", 'if self._config.on_rollback == "refuse":', "if False:", "rollback"
    ),
    change(
        "announcement is anchored",
        "creation",
        "        freshness.advance(patience=config.doubt_s)\n",
        "",
        "freshness",
    ),
    # freshness
    gone("fenced for good", "freshness", "self.fenced:", "freshness"),
    gone("receipt names this session", "freshness", "receipt.epoch != self.epoch:", "freshness"),
    gone("receipt names this point", "freshness", "receipt.point != doubt.to:", "freshness"),
    change(
        "acknowledges for 25 s",
        "freshness",
        "self.acknowledge_until = sent + lease_s * ACKNOWLEDGE_UNTIL",
        'self.acknowledge_until = float("inf")',
        "freshness",
    ),
    change("serves for 30 s", "freshness", "if self.age < self.lease_s:", "if True:", "freshness"),
    change(
        "doubt is settled first",
        "freshness",
        "        if self._doubt is not None:\n            self._settle(patience)\n        if self.head",
        "        if self.head",
        "freshness",
    ),
    change(
        "lease counts from sending",
        "freshness",
        "self._renewed(max(self.sent, sent), receipt",
        "self._renewed(self._clock(), receipt",
        "freshness",
    ),
    # engine
    gone("capacity", "engine", "live > self.capacity and live > self._live:", "capacity"),
    gone("reserved room", "engine", "others > room:", "capacity"),
    change(
        "records of the smallest class",
        "engine",
        "self._smallest = self._geometry.frame - RECORD_OVERHEAD",
        "self._smallest = self._geometry.frame",
        "life",
    ),
    change(
        "largest record",
        "engine",
        "if class_index is None or len(journal) > 0xFFFF:",
        "if len(journal) > 0xFFFF:",
        "capacity",
    ),
    change("strict anchors first", "engine", "self._anchors_all or (", "(", "freshness"),
    change(
        "critical anchors first",
        "engine",
        " or (self._anchors_security and security)",
        "",
        "freshness",
    ),
    change(
        "W of bounded mode",
        "engine",
        "freshness.open_commits >= self._config.window_commits\n            or ",
        "",
        "freshness",
    ),
    change(
        "T of bounded mode",
        "engine",
        "or self._clock() - freshness.oldest >= self._config.window_s",
        "",
        "freshness",
    ),
    change(
        "the lease lasts for the acknowledgement",
        "engine",
        "(self._bounded or self._clock() >= freshness.acknowledge_until)",
        "self._bounded",
        "freshness",
    ),
    change(
        "acknowledgement after a slow write",
        "engine",
        "if self._clock() >= freshness.acknowledge_until:\n                        freshness.renew()",
        "if False:\n                        freshness.renew()",
        "freshness",
    ),
    change(
        "anchor before a compaction",
        "engine",
        "        if self._attached:\n            self._advance(self._config.doubt_s)\n        anchored",
        "        anchored",
        "freshness",
    ),
    change(
        "doubt blocks writes",
        "engine",
        "if self._doubt is not None and not self.read_only:\n            try:\n                self._settle(",
        "if False:\n            try:\n                self._settle(",
        "freshness",
    ),
    change(
        "a closed store",
        "engine",
        "if self._closed:\n            raise NotReady",
        "if False:\n            raise NotReady",
        "freshness",
    ),
    change(
        "journals delete something",
        "engine",
        '        if old is None:\n            raise ValueError("a journal deletes',
        '        if False:\n            raise ValueError("a journal deletes',
        "capacity",
    ),
    change("doubt begins at the barrier", "engine", "        self._doubt = doubt\n", "", "faults freshness"),
    change("no close record in doubt", "engine", "if self._doubt is None and not", "if not", "faults"),
    change("a name costs its units", "operations", " if name.isascii() else len(key.name_bytes)", "", "capacity"),
    gone("journals name variables", "engine", 'not name or "\\0" in name:', "capacity"),
    # writing
    change(
        "barrier behind a record",
        "log",
        "            flush(self._medium)\n        except StoreIoError:\n            self._durable(((",
        "            pass\n        except StoreIoError:\n            self._durable(((",
        "life crash",
    ),
    change(
        "a cut-off record keeps its sequence",
        "log",
        "self.broken = True  # until it is finished",
        "pass  # until it is finished",
        "faults",
    ),
    gone("a record whose write failed is written again", "log", "begun.failed is not None:", "faults"),
    change(
        "barrier behind a record that is written again",
        "log",
        "                    write_all(self._medium, offset, data)\n                    flush(self._medium)",
        "                    write_all(self._medium, offset, data)",
        "life crash",
    ),
    change(
        "barrier before a header",
        "log",
        "        write_all(self._medium, *body)\n        flush(self._medium)\n",
        "        write_all(self._medium, *body)\n",
        "faults crash",
    ),
    gone("a bank left after an error", "log", "self.broken:", "faults"),
    gone("nothing after a cut-off header", "log", "self._stuck:", "faults"),
    change("a cut-off header ends a bank", "log", "= self._stuck = True  # the", "= False  # the", "faults"),
    change("a new generation each time", "log", "        self.highest_generation += 1\n", "", "life"),
    change("NOR cells are erased", "log", "if self.history.header.medium != MEDIUM_FILE:", "if False:", "crash"),
    # media
    gone("size before reading", "medium", "size > LARGEST_IMAGE:", "reasons"),
    change("size after reading", "medium", " or _call(medium.size) != size", "", "faults"),
    change("short transfers", "medium", "if done >= len(data):", "if True:", "faults"),
    change("exclusive lock", "medium", "        if writable:\n            _lock(fd, path)\n", "", "reasons"),
)


def applied(mutant: Mutant, tree: Path) -> None:
    file = tree / "cvars" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {text.count(mutant.old)} places match, wanted one: {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new))


def warm_up() -> None:
    """Import once what every run needs and no mutant changes; runs are then forked from here."""
    for name in ("pytest", "hypothesis.stateful", "construct", "nacl.bindings", "rich.console", "typer"):
        importlib.import_module(name)
    importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")


def killed_by(tree: Path, tests: list[str]) -> str | None:
    """Run ``tests`` of ``tree`` in a child; the first failing test, or None."""
    said = tree / "said.txt"
    child = os.fork()
    if child == 0:
        with said.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os.chdir(tree)
            sys.path.insert(0, str(tree))
            sys.dont_write_bytecode = True
            pytest = importlib.import_module("pytest")
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests])
            sys.stdout.flush()
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    lines = [line for line in said.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0] if lines else f"pytest ended {code}"


def main(wanted: list[str]) -> int:
    first = int(wanted.pop(0)) if wanted and wanted[0].isdigit() else 1
    chosen = [m for m in MUTANTS if not wanted or any(w in m.name for w in wanted)][first - 1 :]
    survivors = []
    warm_up()
    with tempfile.TemporaryDirectory(prefix="cvars-mutants-") as made:
        for number, mutant in enumerate(chosen, 1):
            tree = Path(made) / "tree"
            shutil.rmtree(tree, ignore_errors=True)
            for part in ("cvars", "svsm_bridge", "tests"):
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            applied(mutant, tree)
            start = time.monotonic()
            killer = None
            for name in [*mutant.tests.split(), "checks"]:
                killer = killer or killed_by(tree, ["-k", "not test_any", f"tests/store/test_{name}.py"])
            killer = killer or killed_by(tree, ["tests/store", "tests/model"])
            took = time.monotonic() - start
            print(f"{number:3}/{len(chosen)} {mutant.name:44} {killer or 'SURVIVED'}  ({took:.0f} s)", flush=True)
            if killer is None:
                survivors.append(mutant.name)
    print(f"{len(chosen)} mutants, {len(chosen) - len(survivors)} killed, survivors: {survivors or 'none'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
