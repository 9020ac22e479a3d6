"""A small model of the variable service, written from the rules and not from the code.

It knows plain variables, unsigned key-store writes in setup mode, phases, quotas, exact policies and locks. It
recomputes everything from scratch at every question, and keeps variables as tuples in a list.
"""

NV, BS, RT, HR, AW, AT, APPEND, ENH = (1 << n for n in range(8))
OWN = {"SetupMode": 6, "SignatureSupport": 6, "SecureBoot": 6, "VendorKeys": 6, "CustomMode": 3}
OWN_SIZES = {"SetupMode": 1, "SignatureSupport": 80, "SecureBoot": 1, "VendorKeys": 1, "CustomMode": 1}


class Model:
    def __init__(self, nv_pool, volatile_pool, limits, most):
        self.nv_pool, self.volatile_pool, self.most = nv_pool, volatile_pool, most
        self.limits = limits  # bytes with the header: authenticated, NV, volatile
        self.rows = []  # (name, attributes, data, time)
        self.phase = 0
        self.locks = {}  # name -> (low, high, locked)

    def limit(self, attributes):
        """What name and data of one variable may have."""
        if attributes & AT:
            return self.limits[0] - 92
        return (self.limits[1] if attributes & NV else self.limits[2]) - 60

    def row(self, name):
        found = [r for r in self.rows if r[0] == name]
        assert len(found) <= 1
        return found[0] if found else None

    def drop(self, name):
        self.rows = [r for r in self.rows if r[0] != name]

    def charge(self, volatile):
        total = 0
        for name, attributes, size in [
            *((n, a, OWN_SIZES[n]) for n, a in OWN.items()),
            *((n, a, len(d)) for n, a, d, _ in self.rows),
        ]:
            if bool(attributes & NV) != volatile:
                total += (60 + (32 if attributes & AT else 0) + 2 * len(name) + 2 + size + 3) // 4 * 4
        return total

    def visible(self):
        rows = [(n, a) for n, a, _, _ in self.rows] + list(OWN.items())
        return {n for n, a in rows if self.phase < 3 or a & RT}

    def get(self, name, room):
        row = self.row(name)
        if not name or row is None or (self.phase == 3 and not row[1] & RT):
            return ("NOT_FOUND",)
        if room < len(row[2]):
            return "BUFFER_TOO_SMALL", len(row[2]), row[1]
        return "SUCCESS", row[2], row[1]

    def query(self, attributes):
        if not attributes:
            return "INVALID_PARAMETER"
        if attributes & AW or not attributes & 0x6F:
            return "UNSUPPORTED"
        if attributes & 0x6F == NV or (attributes & RT and not attributes & BS):
            return "INVALID_PARAMETER"
        if self.phase == 3 and not attributes & RT:
            return "INVALID_PARAMETER"
        if attributes & HR:
            return "UNSUPPORTED" if attributes & NV else "INVALID_PARAMETER"
        pool = self.nv_pool if attributes & NV else self.volatile_pool
        left = max(0, pool - self.charge(volatile=not attributes & NV))
        fits = max(0, min(self.limit(attributes), left - (92 if attributes & AT else 60)))
        return left, 0 if len(self.rows) + len(OWN) >= self.most else fits

    def set(self, name, attributes, data, time):
        """``time``: None for a plain write, else the year of an unsigned descriptor."""
        if not name or attributes & ~0xFF or (attributes & AT and attributes & ENH):
            return "INVALID_PARAMETER"
        if attributes & (AW | ENH):
            return "UNSUPPORTED"
        if (attributes & RT and not attributes & BS) or attributes == NV:
            return "INVALID_PARAMETER"
        if attributes & AT and time is None:
            return "SECURITY_VIOLATION"
        if attributes & HR:
            return "INVALID_PARAMETER"
        if 2 * len(name) + 2 + len(data) > self.limit(attributes):
            return "INVALID_PARAMETER"
        append = bool(attributes & APPEND)
        gone = (not data and not append) or not attributes & (BS | RT)
        if not data and append:
            gone = False
        if self.phase and name in self.locks:
            low, high, locked = self.locks[name]
            if not gone and not low <= len(data) <= high:
                return "INVALID_PARAMETER"
            if locked:
                return "WRITE_PROTECTED"
        if name in OWN and name != "CustomMode":
            return "WRITE_PROTECTED"
        row = self.row(name)
        if row is not None:
            if self.phase == 3 and not row[1] & RT:
                return "WRITE_PROTECTED"
            if attributes and attributes & ~APPEND != row[1]:
                return "INVALID_PARAMETER"
        if row is not None and row[1] & AT and not attributes & AT:
            return "WRITE_PROTECTED"
        if attributes & AT:  # nothing here is signed
            return "SECURITY_VIOLATION"
        if row is not None and self.phase == 3 and not row[1] & NV:
            return "WRITE_PROTECTED"
        if not data and append:
            return "SUCCESS"
        if gone:
            if row is None:
                return "NOT_FOUND"
            self.drop(name)
            return "SUCCESS"
        if row is None and self.phase == 3 and not (attributes & NV and attributes & RT):
            return "INVALID_PARAMETER"
        value = (row[2] if row is not None and append else b"") + data
        if 2 * len(name) + 2 + len(value) > self.limit(attributes):
            return "INVALID_PARAMETER"
        before, kept = self.charge(volatile=not attributes & NV), self.rows
        self.drop(name)
        self.rows = [*self.rows, (name, attributes & ~APPEND, value, 0)]
        pool = self.nv_pool if attributes & NV else self.volatile_pool
        after = self.charge(volatile=not attributes & NV)
        if (after > pool and after > before) or (len(self.rows) + len(OWN) > self.most and row is None):
            self.rows = kept
            return "OUT_OF_RESOURCES"
        return "SUCCESS"

    def lock(self, name, low, high, locked):
        if self.phase:
            return "WRITE_PROTECTED"
        if name in self.locks:
            return "ALREADY_STARTED"
        self.locks[name] = (low, high, locked)
        return "SUCCESS"

    def advance(self, phase):
        self.phase = max(self.phase, phase)

    def reset(self):
        self.phase, self.locks = 0, {}
        self.rows = [r for r in self.rows if r[1] & NV]
