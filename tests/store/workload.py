"""Deterministic workloads that touch every kind of operation."""

import random

from cvars.variables.model import Journal
from tests.store.world import DB, append, delete, put, put_key


def change(rng: random.Random, live: dict, number: int) -> Journal:
    """One plausible commit against ``live`` (name -> data), which it updates."""
    name = f"V{rng.randrange(9)}"
    kind = rng.randrange(8)
    if kind == 0 and name in live:
        del live[name]
        return (delete(name),)
    if kind == 1 and name in live and len(live[name]) < 1200:
        added = rng.randbytes(rng.randrange(1, 200))
        before, live[name] = live[name], live[name] + added
        return (append(name, added, before),)
    if kind == 2:
        return (put_key(DB, rng.randbytes(rng.randrange(100, 900))),)
    if kind == 3:
        live[name], live["Pair"] = rng.randbytes(40), rng.randbytes(20)
        return (put(name, live[name]), put("Pair", live["Pair"], signer=rng.randbytes(32)))
    live[name] = rng.randbytes(rng.choice((1, 8, 64, 300, 900)))
    return (put(name, live[name]),)


def run(store, rng: random.Random, commits: int, live: dict | None = None) -> dict:
    live = {} if live is None else live
    for number in range(commits):
        store.commit(change(rng, live, number))
    return live
