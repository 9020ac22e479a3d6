"""Rego as a restriction: stock texts by meaning, other texts in a worker process with limits (key-release 3.2).

Evaluated after the typed policy, and only ever able to say no: any error, timeout or answer that is not a boolean
denies (K42).
"""

import base64
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from cvars.broker.policy.load import PolicyError

CPU_S: Final = 2  # of one evaluation, once the interpreter is loaded: what else the machine does is not counted
TIMEOUT_S: Final = 30.0  # on the wall, from the worker's start: a worker that hangs without computing
MEMORY_BYTES: Final = 256 * 1024 * 1024  # of the worker, beyond the loaded interpreter
MAX_TEXT: Final = 64 * 1024

#: more workers than processors would only slow each other down to their time limits
_TURNS: Final = threading.BoundedSemaphore(os.cpu_count() or 1)

_HEAD: Final = "package policy default allow = false"
_PLUGIN: Final = _HEAD + ' plugin = data.plugin allow if { plugin == "resource" '
#: normalised text -> meaning
STOCK: Final[Mapping[str, str]] = {
    "package policy default allow = true": "allow_all",
    _HEAD: "deny_all",
    _PLUGIN + "input.trust_context.attestation_summary.verification_result == true }": "default",
    _PLUGIN + 'not input["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"] }': "default",
    _HEAD + " allow if { not any_not_affirming count(input.submods) > 0 } any_not_affirming if {"
    ' some _, submod in input.submods submod["ear.status"] != "affirming" }': "affirming",
}

_COMMENT: Final = re.compile(r'("(?:[^"\\\n]|\\.)*"|`[^`]*`)|#[^\n]*')


def normalised(text: str) -> str:
    """Without comments, imports of the language version and layout."""
    plain = _COMMENT.sub(lambda m: m.group(1) or "", text)
    plain = re.sub(r"^\s*import\s+(rego\.v1|future\.keywords\S*)\s*$", "", plain, flags=re.MULTILINE)
    return " ".join(plain.split())


def stock(text: str) -> str | None:
    """Which of the four stock policies ``text`` is, or None."""
    return STOCK.get(normalised(text))


def available() -> bool:
    """Whether the Rego extra is installed."""
    return importlib.util.find_spec("regopy") is not None


def check(text: str, *, simulation: bool) -> str:
    """``allow_all``, ``deny_all``, ``default``, ``affirming`` or ``rego``. Raises ``PolicyError``."""
    if len(text) > MAX_TEXT:
        raise PolicyError(f"a Rego policy is at most {MAX_TEXT} characters")
    kind = stock(text)
    if kind == "allow_all" and not simulation:
        raise PolicyError("allow_all is refused outside simulation")
    if kind is None and not available():
        raise PolicyError(
            "a Rego text that is none of the stock policies needs the Rego extra", hint="pip install 'cvars[rego]'"
        )
    if kind is None:
        if not normalised(text).startswith("package policy "):
            raise PolicyError("a Rego text is of the package policy", hint="it starts with: package policy")
        if _worker(text, {}, {}) not in (None, "REGO-DENY"):  # it would deny everything: keep the old one (K42)
            raise PolicyError("this Rego text cannot be evaluated: its allow must be true, false or undefined")
    return kind or "rego"


def restricts(text: str, *, claims: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """The rule that denies, or None when this text lets the typed policy's yes stand."""
    kind = stock(text)
    if kind in ("allow_all", "default"):  # a broker release is always plugin "resource" on verified evidence
        return None if data.get("plugin") == "resource" else "REGO-DENY"
    if kind == "deny_all":
        return "REGO-DENY"
    if kind == "affirming":
        submods = claims.get("submods", {})
        good = bool(submods) and all(m.get("ear.status") == "affirming" for m in submods.values())
        return None if good else "REGO-DENY"
    return _worker(text, claims, data)


def _worker(text: str, claims: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    if not available():
        return "REGO-ERROR"
    task = json.dumps({"policy": text, "input": claims, "data": data, "memory": MEMORY_BYTES, "cpu": CPU_S})
    try:
        with _TURNS:
            done = subprocess.run(  # noqa: S603 - our own interpreter, our own module
                [sys.executable, "-I", "-c", _CHILD],
                input=base64.b64encode(task.encode()),
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
                env={"PATH": "/usr/bin:/bin"},
            )
    except subprocess.TimeoutExpired:
        return "REGO-TIMEOUT"
    except OSError:
        return "REGO-ERROR"
    if done.returncode == -signal.SIGXCPU:
        return "REGO-TIMEOUT"
    answer = done.stdout.strip()
    if done.returncode != 0 or answer not in (b"true", b"false"):
        return "REGO-ERROR"
    return None if answer == b"true" else "REGO-DENY"


#: the worker: limits before the query (loading the interpreter takes time and reserves address space, so both are
#: counted from there; the kernel counts whole seconds); prints exactly ``true`` or ``false``
_CHILD: Final = """
import base64, json, math, resource, sys, time
task = json.loads(base64.b64decode(sys.stdin.buffer.read()))
from regopy import Interpreter
rego = Interpreter()
seconds = math.ceil(time.process_time()) + task["cpu"]
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + task["memory"],) * 2)
rego.add_module("policy", task["policy"])
rego.add_data_json(json.dumps(task["data"]))
rego.set_input(task["input"])
text = str(rego.query("data.policy.allow"))
value = False if text == "undefined" else json.loads(text)["expressions"][0]
sys.stdout.write({True: "true", False: "false"}[value] if isinstance(value, bool) else "neither")
"""
