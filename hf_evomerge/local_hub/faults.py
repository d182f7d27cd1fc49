"""Faults to order: which request goes wrong, how, and how often. The server asks here before it answers."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["status", "reset", "hang_up", "truncate", "corrupt", "delay"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Args:
        match: A regular expression, searched in `METHOD /path?query`.
        action: What happens:
            `status` answers with `status`, `headers` and `body` in place of the real answer;
            `reset` reads `after_bytes` of the request and then cuts the connection with a TCP reset; `hang_up` ends it without
            an answer. After these three the request is not carried out, unless `carried_out` is set;
            `truncate` sends `after_bytes` of the answer's body and then ends the connection, with a reset where `rst` is set;
            `corrupt` inverts the byte at `at` of the answer's body, by default the one in the middle;
            `delay` waits for `seconds` and then answers as usual.
        times: How many requests it hits; None for all.
        skip: How many matching requests pass before that.
        carried_out: For `status`, `reset` and `hang_up`: whether the request is carried out all the same, so that only its
            answer is lost.
        status: For `status`.
        headers: For `status`.
        body: For `status`.
        after_bytes: For `reset` and `truncate`.
        rst: For `truncate`.
        at: For `corrupt`.
        seconds: For `delay`.

    Example:
        ```py
        fault = hub.faults.add(Fault(r"PUT /lfs/", "reset", after_bytes=100_000))
        api.upload_folder(...)  # retried by the client
        assert fault.hits == 1
        ```
    """

    match: str
    action: Action
    times: int | None = field(default=1, kw_only=True)
    skip: int = field(default=0, kw_only=True)
    carried_out: bool = field(default=False, kw_only=True)
    status: int = field(default=500, kw_only=True)
    headers: dict[str, str] = field(default_factory=dict, kw_only=True)
    body: str = field(default="an injected fault", kw_only=True)
    after_bytes: int = field(default=0, kw_only=True)
    rst: bool = field(default=False, kw_only=True)
    at: int | None = field(default=None, kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)
    hits: int = field(default=0, init=False)

    def damage(self, body: bytes) -> bytes:
        """The body with one byte inverted; a body without bytes stays as it is."""
        if not body:
            return body
        at = len(body) // 2 if self.at is None else min(self.at, len(body) - 1)
        return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


class Faults:
    """The faults of one hub. Safe to use while it serves."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Order a fault. Where several match a request, the one that was added first has it.

        Returns:
            The fault itself; its `hits` says how often it happened.

        Raises:
            re.error: Where `match` is no regular expression.
        """
        re.compile(fault.match)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._faults.clear()

    def take(self, line: str) -> Fault | None:
        """The fault that this request has, counted.

        Args:
            line: `METHOD /path?query`.
        """
        with self._lock:
            for fault in self._faults:
                if fault.times == 0 or not re.search(fault.match, line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times = None if fault.times is None else fault.times - 1
                fault.hits += 1
                return fault
        return None
