"""From YAML text to a policy that can be evaluated, or one sentence with the line that is wrong."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml
from pydantic import ValidationError

from cvars.broker.policy.model import PolicyDocument
from cvars.broker.verifier import Verifier
from cvars.errors import BadInput

MAX_TEXT: Final = 256 * 1024
MAX_NODES: Final = 20_000


class PolicyError(BadInput):
    """A policy that cannot be loaded; the one before it stays active (K42)."""

    reason = "policy.malformed"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One member of ``any_of``, checked by `cvars.attest`."""

    tee: str
    requirements: Any


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded policy; ``digest`` = hex SHA-256 of its text."""

    document: PolicyDocument
    leaves: tuple[Leaf, ...]
    digest: str
    text: str
    references: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that is attached to resources."""
        return self.document.policy


class _Loader(yaml.SafeLoader):
    """Safe, and a key twice is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int) or key in out:
            raise yaml.constructor.ConstructorError(None, None, "a key twice, or not a word", key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_policy(
    text: str, *, verifier: Verifier, references: Mapping[str, Any] | None = None, where: str = ""
) -> Policy:
    """Load one policy. Raises ``PolicyError`` with file, line and key."""
    document = read_yaml(text, where=where)
    try:
        parsed = PolicyDocument.model_validate(document)
    except ValidationError as error:
        raise _explained(error, text, where) from None
    if "simulated" in parsed.trust_domains and not verifier.simulation:
        raise PolicyError("a policy names the simulated trust domain in production", where=where, hint="ROOT-3")
    leaves, used = [], set[str]()
    for number, alternative in enumerate(parsed.any_of):
        tee, raw = ("snp", alternative.snp) if alternative.snp is not None else ("tdx", alternative.tdx)
        assert raw is not None
        used |= refs(raw)
        _no_debug(raw, parsed, tee, where)
        try:
            leaves.append(Leaf(tee, verifier.requirements(tee, raw)))
        except ValidationError as error:
            raise _explained(error, text, where, prefix=("any_of", number, tee)) from None
        except ValueError as error:
            raise PolicyError(f"{tee}: {error}", where=where) from None
    known = references or {}
    if missing := sorted(used - set(known)):
        raise PolicyError(f"no reference value {missing[0]!r}", where=where)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Policy(parsed, tuple(leaves), digest, text, {name: known[name] for name in used})


def read_yaml(text: str, *, where: str = "") -> Any:  # noqa: ANN401
    """YAML without tags, anchors or duplicate keys. Raises ``PolicyError``."""
    if len(text) > MAX_TEXT:
        raise PolicyError(f"a policy is at most {MAX_TEXT} characters", where=where)
    try:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or number > MAX_NODES:
                raise PolicyError("a policy has no anchors, no aliases and a sane size", where=where)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise PolicyError(f"not YAML: {getattr(error, 'problem', error)}", where=f"{where}{line}") from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"not YAML: {error}", where=where) from None


def refs(value: Any) -> set[str]:  # noqa: ANN401
    """The names in every ``{ref: NAME}``."""
    if isinstance(value, dict):
        if set(value) == {"ref"} and isinstance(value["ref"], str):
            return {value["ref"]}
        return {name for v in value.values() for name in refs(v)}
    if isinstance(value, list):
        return {name for v in value for name in refs(v)}
    return set()


def _no_debug(requirements: dict[str, Any], parsed: PolicyDocument, tee: str, where: str) -> None:
    """``debug: true`` in a production trust domain is a load-time error (3.1)."""
    flags = requirements.get("guest_policy" if tee == "snp" else "attributes")
    if (
        isinstance(flags, dict)
        and flags.get("debug", False) is not False
        and parsed.trust_domains != ["simulated"]
    ):
        raise PolicyError("debug cannot be allowed in a production trust domain", where=where)


def _explained(error: ValidationError, text: str, where: str, prefix: tuple[str | int, ...] = ()) -> PolicyError:
    found = error.errors()
    first = next(
        (e for e in found if e["type"] == "extra_forbidden"), found[0]
    )  # a misspelt key explains the rest
    path = (*prefix, *first["loc"])
    line = line_of(text, path)
    key = ".".join(str(p) for p in path)
    return PolicyError(f"{key}: {first['msg']}", where=f"{where}:{line}" if line else where)


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of ``path`` in a YAML text, or of its nearest parent."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line = 1
    for step in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found:
                line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line, found = node.start_mark.line + 1, (node, node)
        if found is None:
            break
    return line
