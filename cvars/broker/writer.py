"""The one writer that SQLite has, shared by the threads of a process: one barrier for all who wait.

SQLite lets whoever finds it busy sleep and try again, so that some guests wait for a second while others pass.
Here they queue, and whoever comes first commits the work of all who wait, in one transaction.
"""

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from cvars.errors import OutsideFailure

T = TypeVar("T")

_TOGETHER: Final = 64  # pieces of work in one transaction


class _Job(Generic[T]):
    """A piece of work, and how it ended."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self.work = work
        self.done = False
        self.error: BaseException | None = None
        self.value: T


class Writer:
    """``commit`` runs pieces of work in one transaction: all of them are durable when it returns, or none."""

    def __init__(self, commit: Callable[[Sequence[Callable[[Any], Any]]], Sequence[Any]]) -> None:
        self._commit = commit
        self._waiting: collections.deque[_Job[Any]] = collections.deque()
        #: held by whoever writes, also for a transaction that is not shared
        self.turn = threading.Lock()

    def run(self, work: Callable[[Any], T]) -> T:
        """``work``, durable. It may run twice, from the start: what failed beside it was undone with it."""
        if not self._waiting and self.turn.acquire(blocking=False):
            try:
                done: T = self._commit([work])[0]
            finally:
                self.turn.release()
            return done
        job = _Job(work)
        self._waiting.append(job)
        with self.turn:
            while not job.done:  # nobody took it along
                self._lead([self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))])
        if job.error is not None:
            raise job.error
        return job.value

    def _lead(self, jobs: Sequence[_Job[Any]]) -> None:
        try:
            values = self._commit([job.work for job in jobs])
        except BaseException as error:
            one_of_them = isinstance(error, Exception) and not isinstance(error, OutsideFailure)
            for job in jobs:
                if one_of_them and len(jobs) > 1:
                    self._lead([job])
                else:
                    job.error, job.done = error, True
            return
        for job, value in zip(jobs, values, strict=True):
            job.value, job.done = value, True
