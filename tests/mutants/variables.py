"""Do the tests of the variable rules bite? Negate each condition and swap each status that cites a rule.

    python tests/mutants/variables.py [--list] [WORD…]

A line with a comment such as `# R46` cites a rule. For each such line there are up to three mutants: the innermost
condition around it is negated; the status that it raises is swapped for another; a bare call on it is left out.
Each mutant runs in a forked process, first against the tests that carry one of the line's ids, then against all
tests of the room. Ends 0 when at most 2 % survive, and each survivor is explained in `EXPLAINED`.

WORD: only mutants whose description contains one of them.
"""

import ast
import importlib
import importlib.abc
import importlib.util
import io
import os
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SOURCES = sorted((ROOT / "cvars" / "variables").glob("*.py")) + sorted((ROOT / "cvars" / "mm").glob("*.py"))
SUITES = ["tests/variables", "tests/mm"]
HEAVY = ("test_model.py", "test_vectors.py", "test_pkcs7.py")  # run last
CITED = re.compile(r"#.*?\b(R\d+)\b")
RULE = re.compile(r"\bR\d+\b")
SECONDS = 120
MOST = 0.02

#: survivors that no test can tell apart, by a part of their description, and why
EXPLAINED: dict[str, str] = {}

UNSWAPPED = ("refusal", "InfoTooSmall", "BufferTooSmall")  # their status is not a class alone
COMPOUND = (ast.FunctionDef, ast.ClassDef, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
REFUSALS = "__import__('cvars.variables.refusals').variables.refusals"
SWAPS = defaultdict(lambda: "InvalidParameter", InvalidParameter="WriteProtected")


@dataclass
class Mutant:
    """One change of one file; ``ids`` are the rules its line cites."""

    path: Path
    line: int
    kind: str
    ids: tuple[str, ...]
    text: str
    source: str = field(repr=False)

    @property
    def title(self):
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.kind} {','.join(self.ids)}: {self.text}"

    @property
    def module(self):
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)


def mutants_of(path):
    """All mutants of one file."""
    source = path.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    made, seen = [], set()
    for number, text in enumerate(lines, 1):
        if "#" not in text or not CITED.search(text):
            continue
        ids = tuple(dict.fromkeys(RULE.findall(text[text.index("#") :])))
        statement = _statement(tree, number)
        if statement is None:
            continue
        test = _condition(statement, parents, number)
        if test is not None and ("negate", test.lineno, test.col_offset) not in seen:
            seen.add(("negate", test.lineno, test.col_offset))
            old = ast.get_source_segment(source, test)
            made.append(_mutant(path, source, test, f"(not ({old}))", "negate", ids))
        if isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call):
            name = statement.exc.func
            if (
                isinstance(name, ast.Name)
                and name.id != "refusal"
                and name.id not in ("InfoTooSmall", "BufferTooSmall")
            ):
                made.append(_swap(path, source, name, ids))
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            made.append(_mutant(path, source, statement, "pass", "omit", ids))
    return made


def _statement(tree, number):
    """The innermost statement that ends on this line."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
        and node.lineno <= number <= (node.end_lineno or 0)
        and not isinstance(
            node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match
        )
    ]
    return min(found, key=lambda n: (n.end_lineno or 0) - n.lineno) if found else _header(tree, number)


def _header(tree, number):
    """A compound statement whose header is on this line."""
    return next((n for n in ast.walk(tree) if isinstance(n, ast.If) and n.lineno == number), None)


def _condition(statement, parents, number):
    """The test of the innermost `if` around a statement; a conditional expression or a comparison it returns."""
    if isinstance(statement, ast.If):
        return statement.test
    for node in ast.walk(statement):
        if isinstance(node, ast.IfExp) and node.lineno <= number:
            return node.test
    if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Compare | ast.BoolOp):
        return statement.value
    node = statement
    while node in parents and not isinstance(node, ast.FunctionDef):
        parent = parents[node]
        if isinstance(parent, ast.If) and node in parent.body:
            return parent.test
        node = parent
    return None


def _mutant(path, source, node, new, kind, ids):
    """``source`` with ``node`` replaced by ``new``."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    mutated = (raw[:begin] + new.encode() + raw[end:]).decode()
    text = " ".join((ast.get_source_segment(source, node) or "").split())[:90]
    return Mutant(path, node.lineno, kind, ids, text, mutated)


def _swap(path, source, name, ids):
    other = SWAPS[name.id]
    made = _mutant(
        path, source, name, f"__import__('cvars.variables.refusals').variables.refusals.{other}", "swap", ids
    )
    made.text = f"{name.id} -> {other}"
    return made


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module its mutated source."""

    def __init__(self, mutant):
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name == self.mutant.module:
            return importlib.util.spec_from_file_location(name, self.mutant.path, loader=self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.mutant.source, str(self.mutant.path), "exec"), module.__dict__)


def run(mutant, nodes):
    """Run tests in a forked process under ``mutant``; True when one fails (or the time is up)."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, Loader(mutant))
        try:
            importlib.import_module(mutant.module)  # before pytest, whose own import hook would come first
        except Exception:
            os._exit(1)
        import pytest

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *nodes])
        os._exit(0 if code == 0 else 5 if code == 5 else 1)
    _, status = os.waitpid(pid, 0)
    return not (os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 5))


def tests_by_id():
    """Node ids of the room's tests by rule id, light ones first."""
    from tests.tools.rules import proofs

    ids = {f"R{n}" for n in range(1, 126)}
    out = {}
    for rule, names in proofs(ids).items():
        mine = [f"tests/{name}" for name in names if name.startswith(("variables/", "mm/"))]
        out[rule] = sorted(set(mine), key=lambda node: any(h in node for h in HEAVY))
    return out


def main(words):
    """Run all mutants, print what became of each, and sum up."""
    os.chdir(ROOT)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    made = [m for path in SOURCES for m in mutants_of(path)]
    listing = "--list" in words
    words = [w for w in words if not w.startswith("--")]
    if words:
        made = [m for m in made if any(w in m.title for w in words)]
    if listing:
        for mutant in made:
            print(mutant.title)
        print(f"{len(made)} mutants")
        return 0
    import construct  # noqa: F401 - loaded once, before the forks
    import cryptography.hazmat.primitives.serialization.pkcs7  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    nodes = tests_by_id()
    found = Counter()
    survivors = []
    begun = time.monotonic()
    for mutant in made:
        own = list(dict.fromkeys(node for rule in mutant.ids for node in nodes.get(rule, [])))
        if own and run(mutant, own):
            found["right id"] += 1
            continue
        if run(mutant, SUITES):
            found["another"] += 1
            print(f"another   {mutant.title}", flush=True)
            continue
        survivors.append(mutant)
        why = next((reason for part, reason in EXPLAINED.items() if part in mutant.title), "NOT EXPLAINED")
        print(f"survived  {mutant.title}\n          {why}", flush=True)
    unexplained = [m for m in survivors if not any(part in m.title for part in EXPLAINED)]
    share = len(survivors) / max(1, len(made))
    print(
        f"{len(made)} mutants: {found['right id']} killed by a test of their id, {found['another']} by another, "
        f"{len(survivors)} survived ({share:.1%}), {len(unexplained)} unexplained; "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 0 if share <= MOST and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
