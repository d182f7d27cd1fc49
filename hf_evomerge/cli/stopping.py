"""Ctrl-C, SIGTERM, SIGHUP: the first ends within seconds what a command is at, the second ends it
now."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0  # seconds for what must be put away: worker processes, threads that upload or write
_HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
_SIGNALS = {signal.SIGINT, signal.SIGTERM, _HANG_UP}


class Stopped(KeyboardInterrupt):
    """A signal has come.

    Attributes:
        status: Exit status of the program: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def stoppable(line: str) -> Iterator[None]:
    """Raise `Stopped` at the first signal; end the process where that has not done so soon, or at
    the next signal.

    A signal that is ignored, as Ctrl-C in a shell's background job, stays so. Outside of the main
    thread nothing changes.

    Args:
        line: What is printed where the process does not end by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)
        stopped = Stopped(number)
        timer = threading.Timer(GRACE, _give_up, (line, stopped.status))
        timer.daemon = True
        timer.start()  # goes on while the interpreter waits for its threads
        raise stopped

    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


def same_command() -> str:
    """The command that this program was called with, as one would write it in a shell."""
    return shlex.join(["hf-evomerge", *sys.argv[1:]])


def _give_up(line: str, status: int) -> None:
    print(line, file=sys.stderr, flush=True)
    os._exit(status)
