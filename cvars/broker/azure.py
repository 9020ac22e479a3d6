"""Importer for the Azure Key Vault release-policy grammar (key-release 3.2).

``{"version": "1.0.0", "anyOf": [{"authority": URL, "allOf"|"anyOf": [{"claim": NAME, "equals"|…: VALUE}]}]}``.
Claims are mapped by a documented table; a claim or an operator without a mapping is an error, never left out.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import yaml

from cvars.broker.policy.load import PolicyError
from cvars.release.encoding import Malformed, strict_json

MAX_ALTERNATIVES: Final = 32
ZERO_TCB: Final = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}


def _set(tee: str, *path: str, as_list: bool = False) -> Callable[[dict[str, Any], str, Any], None]:
    """A mapping onto the leaf at ``path``; ``equals`` only."""

    def apply(leaves: dict[str, Any], operator: str, value: Any) -> None:  # noqa: ANN401
        if operator != "equals":
            raise PolicyError(f"only equals can be mapped onto {'.'.join(path)}")
        at = leaves.setdefault(tee, {})
        for step in path[:-1]:
            at = at.setdefault(step, {})
        wanted = [value] if as_list else value
        if path[-1] in at and at[path[-1]] != wanted:
            raise PolicyError(f"two values for {'.'.join(path)}: this can never allow")
        at[path[-1]] = wanted

    return apply


def _at_least(tee: str, *path: str) -> Callable[[dict[str, Any], str, Any], None]:
    """A mapping onto a minimum."""

    def apply(leaves: dict[str, Any], operator: str, value: Any) -> None:  # noqa: ANN401
        steps = {"equals": 0, "greaterOrEquals": 0, "greater": 1}
        if operator not in steps or not isinstance(value, int) or isinstance(value, bool):
            raise PolicyError(
                f"only greater, greaterOrEquals or equals of an integer can be mapped onto {path[-1]}"
            )
        at = leaves.setdefault(tee, {})
        for step in path[:-1]:
            at = at.setdefault(step, {})
        at[path[-1]] = max(at.get(path[-1], 0), value + steps[operator])

    return apply


def _is(wanted: Any, tee: str | None = None) -> Callable[[dict[str, Any], str, Any], None]:  # noqa: ANN401
    """A claim that our rules always demand: only this value makes sense."""

    def apply(leaves: dict[str, Any], operator: str, value: Any) -> None:  # noqa: ANN401
        if operator != "equals" or value != wanted:
            raise PolicyError(f"only equals {wanted!r} can be mapped")
        if tee is not None:
            leaves.setdefault(tee, {})

    return apply


def _flag(tee: str, *path: str) -> Callable[[dict[str, Any], str, Any], None]:
    """A boolean bit; Azure writes "true" and "false" as text or as booleans."""
    setter = _set(tee, *path)

    def apply(leaves: dict[str, Any], operator: str, value: Any) -> None:  # noqa: ANN401
        known = {"true": True, "false": False, True: True, False: False}
        if (isinstance(value, int) and not isinstance(value, bool)) or value not in known:
            raise PolicyError(f"{path[-1]} is true or false")
        setter(leaves, operator, known[value])

    return apply


def _attestation_type(leaves: dict[str, Any], operator: str, value: Any) -> None:  # noqa: ANN401
    kinds = {"sevsnpvm": "snp", "tdxvm": "tdx"}
    if operator != "equals" or value not in kinds:
        raise PolicyError("an attestation type is sevsnpvm or tdxvm")
    leaves.setdefault(kinds[value], {})


_SNP: Final = "x-ms-isolation-tee.x-ms-sevsnpvm-"
_SNP_CLAIMS: Final = {
    "launchmeasurement": _set("snp", "measurement_in", as_list=True),
    "hostdata": _set("snp", "host_data_in", as_list=True),
    "idkeydigest": _set("snp", "id_key_digest_in", as_list=True),
    "authorkeydigest": _set("snp", "author_key_digest_in", as_list=True),
    "familyId": _set("snp", "family_id"),
    "imageId": _set("snp", "image_id"),
    "guestsvn": _at_least("snp", "guest_svn_min"),
    "vmpl": _set("snp", "vmpl", as_list=True),
    "is-debuggable": _flag("snp", "guest_policy", "debug"),
    "migration-allowed": _flag("snp", "guest_policy", "migrate_ma"),
    "smt-allowed": _flag("snp", "guest_policy", "smt"),
    "bootloader-svn": _at_least("snp", "_tcb", "bootloader"),
    "tee-svn": _at_least("snp", "_tcb", "tee"),
    "snpfw-svn": _at_least("snp", "_tcb", "snp"),
    "microcode-svn": _at_least("snp", "_tcb", "microcode"),
}
_TDX: Final = "x-ms-isolation-tee.x-ms-tdx-"
_TDX_CLAIMS: Final = {
    "mrtd": _set("tdx", "mr_td_in", as_list=True),
    "mrconfigid": _set("tdx", "mr_config_id_in", as_list=True),
    "mrowner": _set("tdx", "mr_owner_in", as_list=True),
    "mrownerconfig": _set("tdx", "mr_owner_config_in", as_list=True),
}
#: claim name -> mapping; names with and without the guest-attestation prefix
CLAIMS: Final[Mapping[str, Callable[[dict[str, Any], str, Any], None]]] = (
    {_SNP + name: apply for name, apply in _SNP_CLAIMS.items()}
    | {"x-ms-sevsnpvm-" + name: apply for name, apply in _SNP_CLAIMS.items()}
    | {_TDX + name: apply for name, apply in _TDX_CLAIMS.items()}
    | {"tdx_" + name: apply for name, apply in _TDX_CLAIMS.items()}
    | {f"tdx_rtmr{n}": _set("tdx", "rtmr", str(n), "in", as_list=True) for n in range(4)}
    | {
        "x-ms-isolation-tee.x-ms-attestation-type": _attestation_type,
        "x-ms-attestation-type": _attestation_type,
        "x-ms-isolation-tee.x-ms-compliance-status": _is("azure-compliant-cvm"),
        "x-ms-compliance-status": _is("azure-compliant-cvm"),
    }
)


def convert(text: str, *, name: str, applies_to: list[str], products: list[str]) -> str:
    """A typed policy (YAML) that says what the Azure document says. Raises ``PolicyError``."""
    try:
        document = strict_json(text.encode())
    except (Malformed, UnicodeEncodeError) as error:
        raise PolicyError(f"not a release policy: {error}") from None
    if not isinstance(document, dict) or set(document) != {"version", "anyOf"} or not document["anyOf"]:
        raise PolicyError("a release policy has exactly version and a non-empty anyOf")
    alternatives: list[dict[str, Any]] = []
    for authority in document["anyOf"]:
        if not isinstance(authority, dict) or not isinstance(authority.get("authority"), str):
            raise PolicyError("every member of anyOf names its authority")
        rest = {k: v for k, v in authority.items() if k != "authority"}
        for conditions in _alternatives(rest, 0):
            alternatives.append(_leaf(conditions, products))
    if len(alternatives) > MAX_ALTERNATIVES:
        raise PolicyError(f"more than {MAX_ALTERNATIVES} alternatives")
    tees = {tee for leaf in alternatives for tee in leaf}
    domains = [d for d, tee in (("amd", "snp"), ("intel", "tdx")) if tee in tees]
    policy = {
        "policy": name,
        "version": 1,
        "applies_to": applies_to,
        "trust_domains": domains,
        "any_of": alternatives,
        "release": {"per_vm": False},
    }
    head = "# imported from an Azure Key Vault release policy; the authority is now this broker's own verifier\n"
    return head + yaml.safe_dump(policy, sort_keys=False)


def _alternatives(node: Any, depth: int) -> list[list[dict[str, Any]]]:  # noqa: ANN401
    """Disjunctive normal form: a list of alternatives, each a list of conditions."""
    if depth > 8 or not isinstance(node, dict):
        raise PolicyError("nested too deep, or not an object")
    if "claim" in node:
        return [[node]]
    if len(node) != 1 or next(iter(node)) not in ("allOf", "anyOf"):
        raise PolicyError(f"not allOf, anyOf or a claim: {', '.join(sorted(node))[:80]}")
    kind, members = next(iter(node.items()))
    if not isinstance(members, list) or not members:
        raise PolicyError(f"{kind} is a non-empty list")
    branches = [_alternatives(member, depth + 1) for member in members]
    if kind == "anyOf":
        return [one for branch in branches for one in branch]
    out: list[list[dict[str, Any]]] = [[]]
    for branch in branches:
        out = [left + right for left in out for right in branch]
        if len(out) > MAX_ALTERNATIVES:
            raise PolicyError(f"more than {MAX_ALTERNATIVES} alternatives")
    return out


def _leaf(conditions: list[dict[str, Any]], products: list[str]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for condition in conditions:
        claim = condition.get("claim")
        operators = set(condition) - {"claim"}
        if not isinstance(claim, str) or claim not in CLAIMS or len(operators) != 1:
            raise PolicyError(f"claim cannot be mapped: {json.dumps(condition)[:120]}")
        operator = operators.pop()
        CLAIMS[claim](leaves, operator, condition[operator])
    if len(leaves) != 1:
        raise PolicyError("an alternative is about exactly one kind of evidence")
    tee, leaf = next(iter(leaves.items()))
    if tee == "snp":
        floor = ZERO_TCB | leaf.pop("_tcb", {})
        leaf["product"] = products
        leaf["min_tcb"] = {p: floor | ({"fmc": 0} if p == "Turin" else {}) for p in products}
        leaf.setdefault("measurement_in", "any")
        leaf.setdefault("host_data_in", "any")
    else:
        leaf.setdefault("mr_td_in", "any")
        leaf.setdefault("mr_config_id_in", "any")
        rtmr = leaf.setdefault("rtmr", {})
        for number in "0123":
            rtmr.setdefault(number, "any")
    return {tee: leaf}
