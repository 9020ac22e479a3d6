"""Images that many tests damage: built once, with everything that decides about them."""

import random
from dataclasses import dataclass, replace
from functools import cache

from cvars.store import Mode
from cvars.store.inspecting import inspect
from cvars.store.memory_anchor import AnchorRecord
from tests.store.workload import run
from tests.store.world import World, state


@dataclass(frozen=True)
class Sample:
    """An image after a run, its anchor, and the states it had. ``states``: by sequence."""

    world: World
    image: bytes
    anchor: AnchorRecord
    states: dict[int, dict]
    last: int

    @property
    def final(self) -> dict:
        return self.states[self.last]

    def fresh(self, **config) -> World:
        """A world of the same VM whose anchor is where it was."""
        world = World(mode=self.world.mode, suite=self.world.suite, **config)
        world.store_id, world.master, world.vm_id = self.world.store_id, self.world.master, self.world.vm_id
        world.anchor.record = replace(self.anchor, leased_until=None)
        return world


@cache
def sample(
    mode: Mode = Mode.CRITICAL,
    *,
    commits: int = 60,
    seed: int = 7,
    size: int = 128 << 10,
    frame: int = 512,
    suite: int = 1,
    sessions: int = 2,
    vm_id: str = "vm-1",
    close: bool = False,
    until_compacted: bool = True,
) -> Sample:
    """Run ``sessions`` sessions; the last one goes on until its log holds a few records after a compaction."""
    world = World(mode=mode, seed=seed, size=size, frame=frame, suite=suite, vm_id=vm_id)
    rng = random.Random(seed)
    live: dict = {}
    states: dict[int, dict] = {}
    for number in range(sessions):
        store = world.boot()
        states[store.point.counter] = state(store)
        for _ in range(commits):
            run(store, rng, 1, live)
            states[store.point.counter] = state(store)
        if number == sessions - 1 and until_compacted:
            generation = store.generation
            while store.generation == generation:
                run(store, rng, 1, live)
                states[store.point.counter] = state(store)
            for _ in range(9):
                run(store, rng, 1, live)
                states[store.point.counter] = state(store)
        if close or number < sessions - 1:
            store.close()
            states[store.point.counter] = state(store)
        else:
            world.clock.now += 11
            store.tick()  # renewed, and so anchored
    return Sample(world, world.image, world.anchor.record, states, store.point.counter)


def places(image: bytes) -> dict[str, list[tuple[int, int]]]:
    """(offset, length) of what an image uses, by kind, from the keyless view."""
    seen = inspect(image)
    out: dict[str, list[tuple[int, int]]] = {"header": [], "prefix": [], "ciphertext": [], "tag": [], "zeros": []}
    newest = max((b for b in seen.banks if b.header), key=lambda b: b.header["Generation"])
    out["header"].append((newest.offset, 512))
    out["zeros"].append((newest.offset + 512, 4096 - 512))
    for one in newest.records:
        out["prefix"].append((one.offset, 40))
        out["ciphertext"].append((one.offset + 40, one.size - 56))
        out["tag"].append((one.offset + one.size - 16, 16))
    free_from = newest.offset + newest.used_to
    out["free"] = [(free_from + seen.frame, newest.offset + len(image) // 2 - free_from - seen.frame)]
    return out
