"""The one writer that SQLite has, shared by the threads of a process: one barrier for all who wait.

SQLite lets whoever finds it busy sleep and try again, so that some guests wait for a second while others pass.
Here they take turns, and whoever has the turn commits the work of all who wait, in one transaction.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

from cvars.errors import OutsideFailure

T = TypeVar("T")

PATIENCE_S: Final = 30.0  # with other processes and, for a turn, with other threads
_TOGETHER: Final = 64  # pieces of work in one transaction


class _Job(Generic[T]):
    """A piece of work, and how it ended."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self.work = work
        self.done = False
        self.error: Exception | None = None
        self.value: T


class Writer:
    """``commit`` runs pieces of work in one transaction: all of them are durable when it returns, or none.

    ``down`` makes the error of those whose work may or may not have happened, or whose turn never came.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Callable[[Any], Any]]], Sequence[Any]],
        down: Callable[[str], OutsideFailure],
    ) -> None:
        self._commit, self._down = commit, down
        self._waiting: collections.deque[_Job[Any]] = collections.deque()
        self._writes = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """For a transaction that is not shared. While another process has the database, all give up in time."""
        if not self._writes.acquire(timeout=PATIENCE_S):
            raise self._down("the turn to write did not come")
        try:
            yield
        finally:
            self._writes.release()

    def run(self, work: Callable[[Any], T]) -> T:
        """``work``, durable. It may run twice, from the start: what failed beside it was undone with it."""
        if not self._waiting and self._writes.acquire(blocking=False):
            try:
                done: T = self._commit([work])[0]
            finally:
                self._writes.release()
            return done
        job = _Job(work)
        self._waiting.append(job)
        with self._writes:
            while not job.done:  # nobody took it along
                if not self._waiting:
                    raise self._down("whoever took the work along was cut off")
                self._lead([self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))])
        if job.error is not None:
            raise job.error
        return job.value

    def _lead(self, jobs: Sequence[_Job[Any]]) -> None:
        try:
            values = self._commit([job.work for job in jobs])
        except Exception as error:
            for job in jobs:
                if len(jobs) > 1 and not isinstance(error, OutsideFailure):
                    self._lead([job])
                else:
                    job.error, job.done = error, True
            return
        except BaseException:  # of this thread alone
            for job in jobs:
                job.error, job.done = self._down("whoever took the work along was cut off"), True
            raise
        for job, value in zip(jobs, values, strict=True):
            job.value, job.done = value, True
