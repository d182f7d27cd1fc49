"""HTTP on a socket: reads requests, writes answers, keeps connections open."""

import logging
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .wire import Request

logger = logging.getLogger(__name__)
IDLE_SECONDS = 120  # after which a connection that is not used is closed


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "hf-evomerge-hub"
    sys_version = ""
    # unbuffered, header and body would be two packets, and the second would wait 40 ms for an
    # acknowledgement
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS

    def handle(self):
        """Serve requests until either side has enough."""
        try:
            super().handle()
        except OSError:  # the client went away
            self.close_connection = True

    def finish(self):
        """Send what is left, if the client is still there."""
        with suppress(OSError):
            super().finish()

    def log_message(self, format, *args):
        """Nothing on stderr."""

    def serve(self):
        """Answer one request."""
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, self.headers, self.rfile, length)
        response = self.answer(request)
        for _ in request.pieces():
            pass  # the next request begins behind this body
        self.send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - the names that http.server looks for

    def answer(self, request):
        """Make the answer to a request."""
        return self.server.hub.respond(request)

    def send(self, response):
        """Write an answer."""
        payload = response.payload()
        self.send_response(response.status)
        for name, value in response.all_headers().items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD" and payload:
            self.send_body(payload)

    def send_body(self, payload):
        """Write the body of an answer, which is not empty."""
        self.wfile.write(payload if isinstance(payload, bytes) else payload.read())


class Server(ThreadingHTTPServer):
    """Serves requests on a port of this machine that other machines cannot reach.

    Args:
        port: The port; 0 for any that is free.
        hub: Makes the answer to a request, and says what serves a connection.
    """

    daemon_threads = True

    def __init__(self, port, hub):
        self.hub = hub
        self._connections = set()
        super().__init__(("127.0.0.1", port), hub.handler)

    def process_request(self, request, client_address):
        """Serve a connection, and know that it is open."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        """Close a connection, and forget it."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def close(self):
        """Stop, and end connections that clients keep open: they would be served for ever."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Log what a handler did not expect; a client that goes away is not among it."""
        logger.error("a connection failed", exc_info=True)
