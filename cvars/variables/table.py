"""The variables of a state: an immutable mapping with its sums and its enumeration order.

Reading is one dictionary lookup; a change copies the dictionary once. Treat what is inside as frozen.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cvars.variables.limits import cost
from cvars.variables.model import Key, Variable
from cvars.variables.names import HR, NV, RT, VENDOR_KEYS_STORED
from cvars.variables.security import PRIVATE, is_security_relevant


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes charged per pool (R30, R120): volatile, NV error records, NV security-relevant, NV others."""

    volatile: int = 0
    errors: int = 0
    security: int = 0
    common: int = 0

    @property
    def nv(self) -> int:
        """Both parts of the common NV pool."""
        return self.security + self.common


def is_hidden(key: Key) -> bool:
    """Service state that no guest sees (R82, R77)."""
    return key.vendor_guid == PRIVATE or key == VENDOR_KEYS_STORED


class Table(Mapping[Key, Variable]):
    """An immutable map from key to variable, in creation order."""

    __slots__ = ("_items", "_next", "usage")

    def __init__(self, items: Iterable[tuple[Key, Variable]] = ()) -> None:
        self._items: dict[Key, Variable] = dict(items)
        self._next: dict[bool, dict[Key, Key | None]] = {}
        self.usage = _counted(self._items)  # R120: recomputed on load

    @classmethod
    def _made(cls, items: dict[Key, Variable], usage: Usage) -> "Table":
        table = cls.__new__(cls)
        table._items = items
        table._next = {}
        table.usage = usage
        return table

    def __getitem__(self, key: Key) -> Variable:
        return self._items[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def find(self, key: Key) -> Variable | None:
        """The variable, or None."""
        return self._items.get(key)

    def changed(self, changes: Mapping[Key, Variable | None]) -> "Table":
        """A new table with ``changes`` applied; None removes."""
        items = self._items.copy()
        usage = self.usage
        for key, variable in changes.items():
            old = items.pop(key, None)
            if old is not None:
                usage = _add(usage, key, old, -1)
            if variable is not None:
                items[key] = variable
                usage = _add(usage, key, variable, 1)
        return Table._made(items, usage)

    def after(self, key: Key | None, *, runtime: bool) -> Key | None:
        """The visible variable after ``key`` (None: the first), or None at the end (R26, R28).

        Raises:
            KeyError: ``key`` is absent or not visible.
        """
        links = self._next.get(runtime)
        if links is None:
            visible = [
                k for k, v in self._items.items() if not is_hidden(k) and (not runtime or v.attributes & RT)
            ]
            links = dict(zip(visible, [*visible[1:], None], strict=False))
            self._next[runtime] = links
        if key is None:
            return next(iter(links), None)
        return links[key]


def pool_of(key: Key, variable: Variable) -> str:
    """The member of `Usage` that ``variable`` is charged to (R119)."""
    if not variable.attributes & NV:
        return "volatile"
    if variable.attributes & HR:
        return "errors"
    return "security" if is_security_relevant(key, variable) else "common"


def _add(usage: Usage, key: Key, variable: Variable, sign: int) -> Usage:
    amount = sign * cost(key, variable)
    match pool_of(key, variable):
        case "volatile":
            return Usage(usage.volatile + amount, usage.errors, usage.security, usage.common)
        case "errors":
            return Usage(usage.volatile, usage.errors + amount, usage.security, usage.common)
        case "security":
            return Usage(usage.volatile, usage.errors, usage.security + amount, usage.common)
    return Usage(usage.volatile, usage.errors, usage.security, usage.common + amount)


def _counted(items: Mapping[Key, Variable]) -> Usage:
    usage = Usage()
    for key, variable in items.items():
        usage = _add(usage, key, variable, 1)
    return usage
