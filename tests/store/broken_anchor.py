"""An anchor whose messages get lost, by number and in either direction."""

from cvars.errors import AnchorUnreachable


class Lossy:
    """Loses requests (never arrived) or answers (arrived, not heard). ``script``: "ok", "request", "answer"."""

    def __init__(self, anchor, script=(), *, default="ok") -> None:
        self.anchor = anchor
        self.script = list(script)
        self.default = default
        self.calls: list[str] = []

    def _call(self, name, arguments):
        self.calls.append(name)
        what = self.script.pop(0) if self.script else self.default
        if what == "request":
            raise AnchorUnreachable("no answer")
        answer = getattr(self.anchor, name)(**arguments)
        if what == "answer":
            raise AnchorUnreachable("no answer")
        return answer

    def advance(self, **arguments):
        return self._call("advance", arguments)

    def renew(self, **arguments):
        return self._call("renew", arguments)

    def seal(self, **arguments):
        return self._call("seal", arguments)
