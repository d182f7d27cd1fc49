"""A process of its own that may be killed, for tests: a fork, which has imported all that this process has."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def status_of_fork(work: Callable[[], object]) -> int:
    """Do something in a fork of this process, and return how that ended: its exit status, or the negative signal."""
    child = os.fork()
    if child == 0:
        try:
            import torch

            torch.set_num_threads(1)  # a fork has none of the other threads
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
