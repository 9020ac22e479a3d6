"""`make rules`: which tests prove which rule. Ends 1 when a rule has no test and no reason.

A test proves an id when its name carries it as words (`test_R45_...`, `test_SS_12_...`, `test_SNP_DEBUG_...`)
or when it is marked `@pytest.mark.rule("R45", ...)`. The ids are listed in `tests/rules/*.toml`:
`ids = ["R1", ...]` or `ranges = ["R1..R125"]`, and `untestable = {R5 = "why"}`.
"""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def listed(folder: Path = TESTS / "rules") -> dict[str, dict[str, str | None]]:
    """Rule ids by file stem; the value is why a rule cannot be tested, or None."""
    out: dict[str, dict[str, str | None]] = {}
    for file in sorted(folder.glob("*.toml")):
        data = tomllib.loads(file.read_text())
        ids = list(data.get("ids", []))
        for span in data.get("ranges", []):
            first, last = span.split("..")
            prefix = re.match(r"\D+", first).group(0)
            width = len(first) - len(prefix)
            ids += [
                f"{prefix}{n:0{width}d}" for n in range(int(first[len(prefix) :]), int(last[len(prefix) :]) + 1)
            ]
        untestable = data.get("untestable", {})
        unknown = set(untestable) - set(ids)
        if unknown:
            raise SystemExit(f"{file.name}: untestable names ids that are not listed: {sorted(unknown)}")
        out[file.stem] = {i: untestable.get(i) for i in ids}
    return out


def proofs(ids: set[str], root: Path = TESTS) -> dict[str, list[str]]:
    """Test names by rule id, read from the source of every `test_*.py`."""
    found: dict[str, list[str]] = defaultdict(list)
    words = {i: re.compile(rf"(?:^|_){re.escape(i.replace('-', '_'))}(?=_|$)") for i in ids}
    for file in sorted(root.rglob("test_*.py")):
        module = file.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test"):
                named = {i for i, pattern in words.items() if pattern.search(node.name)}
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("mark.rule"):
                        named |= {a.value for a in decorator.args if isinstance(a, ast.Constant)}
                for i in named:
                    found[i].append(f"{module}::{node.name}")
    return found


def main() -> int:
    """Print rule → tests and count what is missing."""
    families = listed()
    found = proofs({i for ids in families.values() for i in ids})
    missing = 0
    for family, ids in families.items():
        print(f"# {family}")
        for i, why in ids.items():
            tests = found.get(i, [])
            if tests:
                print(f"{i:12} {len(tests):3}  {tests[0]}" + (f" (+{len(tests) - 1})" if tests[1:] else ""))
            elif why:
                print(f"{i:12}   -  not testable: {why}")
            else:
                missing += 1
                print(f"{i:12}   0  NO TEST")
    print(f"{sum(map(len, families.values()))} ids, {missing} without a test")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
