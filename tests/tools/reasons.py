"""The reasons and event kinds that the code can say, read from its source; `docs/reasons.md` explains each."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORD = re.compile(r"[a-z_]+(\.[a-z_-]+)+|usage|not_yet|internal")


def said(root: Path = ROOT) -> dict[str, str]:
    """Reason or kind -> where it is said."""
    found: dict[str, str] = {}
    for file in sorted((root / "cvars").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for name, value in _pairs(node):
                if name in ("reason", "kind") and WORD.fullmatch(value):
                    found.setdefault(value, f"{file.relative_to(root)}:{node.lineno}")
    return found


def _pairs(node: ast.AST):
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                yield target.id, node.value.value
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
                yield keyword.arg, keyword.value.value


def explained(root: Path = ROOT) -> set[str]:
    """The words in the tables of the page."""
    return set(re.findall(r"^\| `([^`]+)` \|", (root / "docs" / "reasons.md").read_text(), re.MULTILINE))
