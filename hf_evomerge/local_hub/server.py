"""HTTP on a socket: reads requests, writes answers, keeps connections open, and carries out the faults that were ordered."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from .faults import Fault, Faults
from .wire import Body, Refusal, Request, Response, Slice

logger = logging.getLogger(__name__)
IDLE_SECONDS = 120  # after which a connection that is not used is closed
KEPT_REQUESTS = 10_000
LOCAL_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Seen:
    """A request as it was noted: without its token.

    Attributes:
        method: The method.
        target: Path and query.
        headers: All headers but `Authorization`.
        token: Whether there was an `Authorization` header.
    """

    method: str
    target: str
    headers: dict[str, str]
    token: bool


class Server(ThreadingHTTPServer):
    """Serves requests on a port of this machine that other machines cannot reach.

    Args:
        port: The port; 0 for any that is free.
        respond: Makes the answer to a request.
        faults: What is to go wrong.
    """

    daemon_threads = True

    def __init__(self, port: int, respond: Callable[[Request], Response], faults: Faults) -> None:
        self.respond, self.faults = respond, faults
        self.requests: deque[Seen] = deque(maxlen=KEPT_REQUESTS)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def track(self, connection: socket.socket, *, is_open: bool) -> None:
        """Know which connections are open."""
        with self._lock:
            (self._connections.add if is_open else self._connections.discard)(connection)

    def close(self) -> None:
        """Stop, and end connections that clients keep open: they would be served for ever."""
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a handler did not expect; a client that goes away is not among it."""
        logger.error("a connection failed", exc_info=True)


class _Cut(Exception):  # noqa: N818 - the end of a connection that was ordered
    """The connection is over."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hf-evomerge-hub", ""
    wbufsize = -1  # unbuffered, header and body would be two packets, and the second would wait 40 ms for an acknowledgement
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    server: Server

    def setup(self) -> None:
        """Note the connection."""
        super().setup()
        self.server.track(self.connection, is_open=True)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.track(self.connection, is_open=False)
        with suppress(OSError, ValueError):  # it was cut
            super().finish()

    def handle(self) -> None:
        """Serve requests until either side has enough."""
        try:
            super().handle()
        except (OSError, _Cut):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def _serve(self) -> None:
        try:
            request = self._read()
        except Refusal as refusal:  # where its body ends is not known
            self.close_connection = True
            self._send(refusal.to_response(), None)
            return
        self._note(request)
        fault = self.server.faults.take(f"{request.method} {request.target}")
        if fault and fault.carried_out:
            self.server.respond(request)
        if fault and fault.action == "hang_up":
            with suppress(Refusal):
                request.body.drain()
            raise _Cut
        if fault and fault.action == "reset":
            with suppress(Refusal):
                request.body.drain(fault.after_bytes)
            self._reset()
        if fault and fault.action == "delay":
            time.sleep(fault.seconds)
        if fault and fault.action == "status":
            response = Response(fault.status, {"error": fault.body}, dict(fault.headers))
        else:
            response = self.server.respond(request)
        with suppress(Refusal):
            request.body.drain()
        self.close_connection = self.close_connection or request.body.broken
        self._send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def _read(self) -> Request:
        """The request, if it is meant for this server: another name in `Host` is a page of a browser that was led here."""
        length: int | None
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            length = None
        else:
            text = self.headers.get("Content-Length") or "0"
            if not text.isdecimal():
                raise Refusal(400, "bad Content-Length")
            length = int(text)
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in LOCAL_NAMES:
            raise Refusal(421, f"this server is {' or '.join(LOCAL_NAMES)}")
        return Request(self.command, self.path, self.headers, Body(self.rfile, length))  # type: ignore[arg-type]

    def _note(self, request: Request) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        self.server.requests.append(Seen(request.method, request.target, headers, "Authorization" in self.headers))

    def _send(self, response: Response, fault: Fault | None) -> None:
        payload = response.payload()
        length = payload.length if isinstance(payload, Slice) else len(payload)
        self.send_response(response.status)
        for name, value in response.all_headers().items():
            self.send_header(name, value)
        self.send_header("X-Request-Id", f"Root=1-{uuid.uuid4().hex[:16]}")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.action in ("truncate", "corrupt"):
            self._send_damaged(payload, fault)
        elif isinstance(payload, Slice):
            for piece in payload.pieces():
                self.wfile.write(piece)
        else:
            self.wfile.write(payload)

    def _send_damaged(self, payload: bytes | Slice, fault: Fault) -> None:
        data = b"".join(payload.pieces()) if isinstance(payload, Slice) else payload
        if fault.action == "corrupt":
            self.wfile.write(fault.damage(data))
            return
        self.wfile.write(data[: fault.after_bytes])
        self.wfile.flush()
        time.sleep(0.05)  # so that the client has what was sent before the end reaches it
        if fault.rst:
            self._reset()
        self.connection.shutdown(socket.SHUT_WR)
        raise _Cut

    def _reset(self) -> None:
        """End the connection with a TCP reset: the error that a client sees where a machine on the way gives up."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.track(self.connection, is_open=False)
        os.close(self.connection.detach())
        raise _Cut
