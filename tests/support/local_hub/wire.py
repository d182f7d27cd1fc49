"""What travels over HTTP: the request that an endpoint reads, the response it gives, and the
refusal it raises."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK = 1 << 20  # bytes that are read at once


class Refusal(Exception):  # noqa: N818 - the word of the protocol: an answer, not a fault of this program
    """An answer that says no, in the shape that the Hub's client understands.

    Args:
        status: The HTTP status.
        message: What is wrong; sent as `error` in the body and as `X-Error-Message`.
        code: `X-Error-Code`, by which the client picks its exception: `RepoNotFound`,
            `RevisionNotFound` or `EntryNotFound`.
        headers: More headers.
        body: More keys of the JSON body.
    """

    def __init__(self, status, message, *, code=None, headers=None, body=None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})

    def to_response(self):
        """Make the answer to send."""
        headers = {
            "X-Error-Message": self.message,
            **({"X-Error-Code": self.code} if self.code else {}),
            **self.headers,
        }
        return Response(self.status, {"error": self.message, **self.body}, headers)


class Request:
    """One request; its body is read once, and never beyond its end.

    Args:
        method: `GET`, `HEAD`, `POST`, `PUT` or `DELETE`.
        target: Path and query as they were sent, quoted.
        headers: The headers; names in any case.
        stream: Where the body comes from.
        length: Bytes of the body.
    """

    def __init__(self, method, target, headers, stream, length):
        self.method = method
        self.target = target
        self.headers = headers
        self._stream = stream
        self._left = length
        self._body = None
        parts = urlsplit(target)
        self.path = parts.path
        self.query = parse_qs(parts.query, keep_blank_values=True)

    def pieces(self):
        """Read what is left of the body, at most `CHUNK` bytes at a time; raises `ConnectionError`
        where it ends early."""
        while self._left:
            piece = self._stream.read(min(self._left, CHUNK))
            if not piece:
                raise ConnectionError("the request ended before its body did")
            self._left -= len(piece)
            yield piece

    def body(self):
        """Read the whole body into memory."""
        if self._body is None:
            self._body = b"".join(self.pieces())
        return self._body

    def flag(self, name):
        """Whether a query parameter says yes."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def json(self):
        """The body as a JSON object; an empty body is an empty object."""
        return dict(json.loads(self.body() or b"{}"))


@dataclass(frozen=True)
class Slice:
    """Bytes `start` to `start + length` of a file."""

    path: Path
    start: int
    length: int

    def __len__(self):
        return self.length

    def read(self):
        """Read these bytes."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


@dataclass
class Response:
    """One answer: status, content and headers. Content that is neither bytes nor a slice of a file
    is sent as JSON."""

    status: int = 200
    content: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self):
        """What is sent as the body."""
        return (
            self.content
            if isinstance(self.content, bytes | Slice)
            else json.dumps(self.content).encode()
        )

    def all_headers(self):
        """The headers, with a content type, fit to be sent: no line breaks, and Latin-1 as HTTP
        wants it."""
        raw = isinstance(self.content, bytes | Slice)
        kind = "application/octet-stream" if raw else "application/json; charset=utf-8"
        headers = {"Content-Type": kind, "X-Content-Type-Options": "nosniff", **self.headers}
        return {name: _one_line(value) for name, value in headers.items()}


def _one_line(value):
    shown = "".join(letter if letter.isprintable() else " " for letter in value)
    return shown.encode("latin-1", "replace").decode("latin-1")
