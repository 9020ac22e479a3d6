"""The host view as one HTML page: own stylesheet, no script, no address of anybody else (D10)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from jinja2 import Environment, StrictUndefined

from cvars.audit.host_view import HostView
from cvars.trace import SIMULATED_NOTE

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the host saw</title>
<style>
:root { color-scheme: light dark; --line: #8886; --ink: #1d4ed8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
code { font-size: .9em; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--ink); padding-left: .8rem; }
svg { width: 100%; height: 7rem; } svg rect { fill: var(--ink); } svg line { stroke: var(--line); }
</style>
</head>
<body>
<h1>What the host saw</h1>
<p>Sizes and times of writes, and the clear fields below. No names, no values: everything else in these files is
ciphertext, padded to size classes. Nothing here needed a key, and nothing here is authenticated.</p>
{% if note %}<p class="note">{{ note }}</p>{% endif %}

<h2>Writes, as they were seen</h2>
{% if writes %}
<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="Writes over time; height: bytes">
<line x1="0" y1="99.5" x2="1000" y2="99.5"></line>
{% for w in writes %}<rect x="{{ w.x }}" y="{{ 99 - w.h }}" width="4" height="{{ w.h }}"></rect>
{% endfor %}</svg>
<table>
<tr><th>Time (UTC)</th><th class="n">Offset</th><th class="n">Bytes changed</th></tr>
{% for w in writes %}<tr><td>{{ w.at }}</td><td class="n">{{ "%#x"|format(w.offset) }}</td>
<td class="n">{{ w.length }}</td></tr>
{% endfor %}</table>
{% else %}<p>Nobody watched.</p>{% endif %}

<h2>Files</h2>
<table>
<tr><th>File</th><th class="n">Bytes</th><th class="n">Log records</th><th class="n">Sealed bytes</th>
<th class="n">Entropy</th><th>SHA-256</th></tr>
{% for s in view.stores %}<tr><td>{{ s.name }}</td><td class="n">{{ s.seen.image_size }}</td>
<td class="n">{{ s.commits|length }}</td><td class="n">{{ s.sealed_bytes }}</td>
<td class="n">{{ s.sealed_entropy if s.sealed_entropy is not none else "" }}</td>
<td><code>{{ s.sha256 }}</code></td></tr>
{% endfor %}</table>

{% for s in view.stores %}
<h2>{{ s.name }}</h2>
{% if s.seen.creation %}<p>A creation header: no store has been made in it yet.</p>{% endif %}
{% for bank in s.seen.banks if bank.header %}
<p>Bank {{ bank.number }}: generation {{ bank.header.Generation }}, suite {{ bank.header.Suite }}, mode
{{ bank.header.Mode }}, key version {{ bank.header.KeyVersion }},
snapshot of {{ bank.header.SnapshotLength }} bytes,
session {{ bank.header.Session }}; store id <code>{{ bank.header.StoreId }}</code>,
VM binding <code>{{ bank.header.VmBinding }}</code>.</p>
{% endfor %}
{% if s.commits %}<table>
<tr><th class="n">Sequence</th><th class="n">Session</th><th class="n">Offset</th><th class="n">Bytes</th></tr>
{% for c in s.commits %}<tr><td class="n">{{ c.sequence }}</td><td class="n">{{ c.session }}</td>
<td class="n">{{ "%#x"|format(c.offset) }}</td><td class="n">{{ c.size }}</td></tr>
{% endfor %}</table>{% endif %}
{% endfor %}
</body>
</html>
"""


def render(view: HostView, *, simulated: bool, weakened: Sequence[str] = ()) -> str:
    """The page; it says so when simulated evidence was used, and which checks a test left out (``weakened``)."""
    note = SIMULATED_NOTE if simulated else ""
    if weakened:
        note += f" WEAKENED for a test: without {', '.join(weakened)}."
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    return page.render(view=view, writes=_writes(view), note=note)


def _writes(view: HostView) -> list[dict[str, object]]:
    if not view.observations:
        return []
    first = view.observations[0].at
    length = max(view.observations[-1].at - first, 1e-3)
    most = max(o.length for o in view.observations)
    return [
        {
            "at": datetime.fromtimestamp(o.at, UTC).strftime("%H:%M:%S.%f")[:-3],
            "x": round((o.at - first) / length * 990, 1),
            "h": round(max(2.0, o.length / most * 95), 1),
            "offset": o.offset,
            "length": o.length,
        }
        for o in view.observations
    ]
