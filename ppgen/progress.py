"""Progress on stderr, and Ctrl-C that keeps what there is."""

from __future__ import annotations

import contextvars
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("ppgen_quiet", default=False)
_SAME_WISH = 1.0  # seconds; a launcher passes Ctrl-C on as a signal of its own
_PLAIN_INTERVAL = 10.0  # seconds between plain lines when stderr is no terminal


@contextmanager
def quiet(enabled: bool = True) -> Iterator[None]:
    """Show no progress inside this block."""
    token = _quiet.set(enabled)
    try:
        yield
    finally:
        _quiet.reset(token)


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere.

    Args:
        label: what is under way.
        total: how many steps there are; None when nobody knows.

    Example:
        >>> with quiet(), Progress("fitting", 3) as progress:
        ...     for _ in range(3):
        ...         progress.advance(elbo=-1.0)
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._bar: Any = None
        self._task: Any = None
        self._last_plain = self._start = time.monotonic()
        self._note = ""

    def __enter__(self) -> Progress:
        if not _quiet.get() and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not _quiet.get() and self.done:
            seconds = time.monotonic() - self._start
            print(f"{self.label}: {self._count()} in {seconds:.1f} s{self._note}", file=sys.stderr)

    def advance(self, steps: int = 1, **numbers: float) -> None:
        """Move on by `steps`; `numbers` stand beside the bar, as ``name value``."""
        self.done += steps
        if numbers:
            self._note = "".join(f"  {name} {value:.4g}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif not _quiet.get() and time.monotonic() - self._last_plain > _PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            print(f"{self.label}: {self._count()}{self._note}", file=sys.stderr)

    def _count(self) -> str:
        return f"{self.done}/{self.total}" if self.total else str(self.done)


class Interrupt:
    """Set by the first Ctrl-C (or SIGTERM); a loop asks it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


_active: list[Interrupt] = []  # the blocks that are open, outermost first


@contextmanager
def noticing() -> Iterator[Interrupt]:
    """Is told of a signal that a loop in here is asked to finish by; it catches none itself."""
    interrupt = Interrupt()
    _active.append(interrupt)
    try:
        yield interrupt
    finally:
        _active.remove(interrupt)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first SIGINT or SIGTERM asks the loop to finish its step; the second stops at once.

    Blocks may be nested: the signal reaches all of them, so that what runs several loops stops
    too. Outside the main thread signals cannot be caught: the flag is then never set.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if interrupt.requested and time.monotonic() - first > _SAME_WISH:
            raise KeyboardInterrupt
        first = first or time.monotonic()
        for one in _active:
            one.requested = True

    _active.append(interrupt)
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        _active.remove(interrupt)
        for number, handler in previous.items():
            signal.signal(number, handler)
