"""One history: a cluster comes up, things go wrong while somebody asks for more, then faults end and all must mend.

Only in a process in which `outside.replace` ran before the product was imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import structlog

from controlplane.state.factory import migrate
from tests.simulation.product.cluster import Cluster
from tests.simulation.product.faults import strike
from tests.simulation.product.loop import PROCESS, Unmended, Violation, VirtualLoop

FAULTS_S = 80.0
MENDED_S = 240.0
"""Within which everything is as it should be after the last fault."""
LOOK_S = 5.0


@dataclass
class Outcome:
    """How a history went; `violation` is "" if nothing was violated."""

    seed: int
    violation: str = ""
    is_unsafe: bool = False
    """Whether something happened that never may, rather than that something did not mend."""
    virtual_s: float = 0.0
    step_count: int = 0
    check_count: int = 0
    fault_count: int = 0
    move_count: int = 0
    ack_count: int = 0
    trace: list[str] = field(default_factory=list)


_left: list[Any] = []
"""What histories leave: coroutines that nobody may end, since they would clean up on a loop that is no more."""


def run_history(seed: int, *, is_short: bool = False) -> Outcome:
    """Run one; everything that is raised is a violation.

    Args:
        is_short: only until it has come up, without faults.
    """
    random.seed(seed)
    outcome = Outcome(seed)
    with _directory() as directory:
        database = directory / "state.db"
        shutil.copyfile(_empty_database(), database)
        loop = VirtualLoop(seed)
        cluster = Cluster(loop, directory, database, loop.random.choice((1, 2, 2, 3)), loop.random.choice((3, 4)))
        story = _Story(cluster, outcome)
        _left.extend((loop, cluster, story))
        try:
            loop.run_until_complete(story.play(0.0 if is_short else FAULTS_S))
        except Violation as violation:
            cause = "".join(traceback.format_exception(violation.__cause__)) if violation.__cause__ else ""
            outcome.violation = f"{violation}\n{cause}".strip()
            outcome.is_unsafe = not isinstance(violation, Unmended)
        except Exception:  # noqa: BLE001 - nothing may be raised that the product does not handle
            outcome.violation = f"raised:\n{traceback.format_exc()}"
        outcome.virtual_s, outcome.step_count, outcome.trace = loop.now_s, loop.step_count, loop.trace
        outcome.check_count = cluster.witness.check_count
        outcome.move_count, outcome.ack_count = cluster.witness.failover_count, cluster.operator.ack_count
    return outcome


class _Story:
    def __init__(self, cluster: Cluster, outcome: Outcome) -> None:
        self._cluster, self._outcome = cluster, outcome
        self._asking: set[asyncio.Task[Any]] = set()

    async def play(self, faults_s: float) -> None:
        cluster, draw = self._cluster, self._cluster.loop.random
        cluster.power_on()
        await asyncio.sleep(6.0)
        for _ in range(draw.randint(1, 3)):
            self._ask(cluster.operator.create())
        await asyncio.sleep(8.0)
        ends_s = cluster.loop.now_s + faults_s * draw.uniform(0.3, 1.0)
        only_hosts = draw.random() < 0.6
        pause_s = draw.choice((8.0, 20.0) if only_hosts else (2.0, 5.0, 12.0))
        while cluster.loop.now_s < ends_s:
            if draw.random() < 0.7:
                self._outcome.fault_count += 1
                strike(cluster, only_hosts=only_hosts)
            else:
                self._wish()
            await asyncio.sleep(draw.expovariate(1 / pause_s))
        cluster.mend()
        self._ask(cluster.operator.arm())
        await self._until_mended()

    def _ask(self, wish: Any) -> None:
        self._asking.add(self._cluster.desk.spawn(wish))

    def _wish(self) -> None:
        """Ask for something, or go on to the next if there is nothing to ask that of."""
        operator, draw = self._cluster.operator, self._cluster.loop.random
        wishes: dict[Callable[[], Any], int] = {
            operator.create: 5,
            operator.disarm: 2,
            operator.arm: 2,
        }
        if operator.vm_ids:
            vm_id = draw.choice(operator.vm_ids)
            wishes |= {
                partial(operator.stop, vm_id): 5,
                partial(operator.start, vm_id): 7,
                partial(operator.migrate, vm_id): 5,
                partial(operator.delete, vm_id): 2,
            }
        if off := [host for host in self._cluster.hosts if not host.is_on]:
            wishes[partial(operator.confirm_dead, draw.choice(off))] = 8
        (wish,) = draw.choices(list(wishes), list(wishes.values()))
        self._ask(wish())

    async def _until_mended(self) -> None:
        cluster = self._cluster
        ends_s = cluster.loop.now_s + MENDED_S
        calm_count = 0
        while calm_count < 3:
            await asyncio.sleep(LOOK_S)
            wrong = cluster.witness.unfinished()
            calm_count = calm_count + 1 if not wrong and all(task.done() for task in self._asking) else 0
            if cluster.loop.now_s > ends_s:
                raise Unmended(f"not mended {MENDED_S:g} s after the last fault: {'; '.join(wrong) or 'calls hang'}")
        for task in self._asking:
            task.result()


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="history-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@cache
def _empty_database() -> Path:
    """Make the tables once a process."""
    path = Path(tempfile.mkdtemp(prefix="empty-")) / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


# -- what the product logs

_UNTOLD = frozenset({"event", "exc_info", "storage_path"})
"""Not put into the trace, which is the same each time."""


def listen_to_logs() -> None:
    """Put what the product logs into the trace; an unexpected exception is a violation."""
    structlog.configure(processors=[_take], cache_logger_on_first_use=True)
    root = logging.getLogger()
    root.handlers[:] = [_Ear()]
    root.setLevel(logging.WARNING)


def _take(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    loop = _loop()
    if loop is not None:
        words = " ".join(f"{key}={value}" for key, value in event.items() if key not in _UNTOLD)
        _hear(loop, f"{event.get('event')} {words}", is_unexpected=method == "exception")
    raise structlog.DropEvent


class _Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        loop = _loop()
        if loop is None:
            return
        told = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        _hear(loop, f"{record.getMessage()} {told}", is_unexpected=record.exc_info is not None and record.levelno >= 40)


def _loop() -> VirtualLoop | None:
    loop = asyncio._get_running_loop()
    return loop if isinstance(loop, VirtualLoop) else None


def _hear(loop: VirtualLoop, what: str, *, is_unexpected: bool) -> None:
    process = PROCESS.get()
    loop.note(f"    {process.name if process is not None else 'somebody'}: {what}")
    if is_unexpected and loop.failure is None:
        loop.failure = Violation(f"an exception that nobody expected: {what} {traceback.format_exc()}")
