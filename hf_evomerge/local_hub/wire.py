"""What travels: a request as the handlers see it, the answer they give, and the refusal they raise. Knows no sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

CHUNK = 1 << 20  # bytes that are read or written at once
LARGEST_TEXT = 512 << 20  # a body that is kept in memory: a commit's regular files, in base64


class Refusal(Exception):  # noqa: N818 - the word of the protocol: an answer, not a fault of this program
    """An answer that says no, in the shape that the Hub's client understands.

    Args:
        status: The HTTP status.
        message: What is wrong; sent as `error` in the body and as `X-Error-Message`.
        code: `X-Error-Code`, by which the client picks its exception: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`
            or `GatedRepo`.
        headers: More headers.
        body: More keys of the JSON body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), dict(body or {})

    def to_response(self) -> Response:
        """The answer to send."""
        headers = {"X-Error-Message": self.message, **({"X-Error-Code": self.code} if self.code else {}), **self.headers}
        return Response(self.status, {"error": self.message, **self.body}, headers)


class Body:
    """The body of a request, read once and never beyond its end, whole or in pieces.

    Args:
        stream: Where the bytes come from.
        length: How many there are; None where they come in HTTP chunks.
    """

    def __init__(self, stream: BinaryIO, length: int | None) -> None:
        self._stream, self._left, self._chunked = stream, length or 0, length is None
        self._whole: bytes | None = None
        self.broken = False  # where it ends is not known, so no request can follow it

    def pieces(self) -> Iterator[bytes]:
        """The bytes that are not read yet, at most `CHUNK` at a time."""
        while True:
            if self._chunked and not self._left:
                self._left = self._next_chunk()
            if not self._left:
                return
            piece = self._stream.read(min(self._left, CHUNK))
            if not piece:
                raise ConnectionError("the request ended before its body did")
            self._left -= len(piece)
            if self._chunked and not self._left:
                self._stream.readline()
            yield piece

    def _next_chunk(self) -> int:
        try:
            size = int(self._stream.readline(1024).split(b";")[0], 16)
        except ValueError:
            self.broken, self._chunked = True, False
            raise Refusal(400, "malformed chunk") from None
        if size <= 0:
            self._chunked = False
            while self._stream.readline(65536) not in (b"\r\n", b"\n", b""):
                pass
        return max(size, 0)

    def read(self) -> bytes:
        """All of it, in memory.

        Raises:
            Refusal: 413, where it is larger than `LARGEST_TEXT`.
        """
        if self._whole is None:
            parts, total = [], 0
            for piece in self.pieces():
                total += len(piece)
                if total > LARGEST_TEXT:
                    raise Refusal(413, "the request is too large; send files of this size as LFS or Xet")
                parts.append(piece)
            self._whole = b"".join(parts)
        return self._whole

    def drain(self, limit: int | None = None) -> None:
        """Read and forget the rest, or its first `limit` bytes: a connection is used again only when its request was read."""
        done = 0
        while limit is None or done < limit:
            piece = next(self.pieces(), b"")
            if not piece:
                return
            done += len(piece)


@dataclass
class Request:
    """One request.

    Attributes:
        method: `GET`, `HEAD`, `POST`, `PUT` or `DELETE`.
        target: Path and query as they were sent, quoted.
        headers: The headers; names in any case.
        body: The body, unread.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body
    path: str = field(init=False)
    query: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path, self.query = parts.path, parse_qs(parts.query, keep_blank_values=True)

    def option(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return self.option(name).lower() in ("1", "true")

    def count(self, name: str, default: int, *, low: int = 0, high: int = 10_000) -> int:
        """A query parameter that is a number, held between `low` and `high`."""
        text = self.option(name)
        return max(low, min(int(text), high)) if text.isdecimal() and len(text) < 12 else default

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object.

        Raises:
            Refusal: 400, where it is something else.
        """
        try:
            value = json.loads(self.body.read() or b"{}")
        except (ValueError, RecursionError):
            raise Refusal(400, "the body is not valid JSON") from None
        if not isinstance(value, dict):
            raise Refusal(400, "the body is not a JSON object")
        return value

    def text(self, name: str, *, required: bool = True) -> str:
        """A string in the JSON body.

        Raises:
            Refusal: 400, where it is missing or no string.
        """
        value = self.json().get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value):
            raise Refusal(400, f'"{name}" must be a string')
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """An array of objects in the JSON body; empty where it is missing.

        Raises:
            Refusal: 400, where it is something else.
        """
        value = self.json().get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise Refusal(400, f'"{name}" must be an array of objects')
        return value


@dataclass(frozen=True)
class Slice:
    """Bytes `start` to `start + length` of a file."""

    path: Path
    start: int
    length: int

    def pieces(self) -> Iterator[bytes]:
        """The bytes, at most `CHUNK` at a time."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.length
            while left and (piece := file.read(min(left, CHUNK))):
                left -= len(piece)
                yield piece


@dataclass
class Response:
    """One answer: status, content and headers. Content that is neither bytes nor a slice of a file is sent as JSON."""

    status: int = 200
    content: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> bytes | Slice:
        """What is sent as the body."""
        if isinstance(self.content, bytes | Slice):
            return self.content
        return json.dumps(self.content).encode()

    def all_headers(self) -> dict[str, str]:
        """The headers, with a content type, fit to be sent: no line breaks, and Latin-1 as HTTP wants it."""
        raw = isinstance(self.content, bytes | Slice)
        kind = "application/octet-stream" if raw else "application/json; charset=utf-8"
        headers = {"Content-Type": kind, "X-Content-Type-Options": "nosniff", **self.headers}
        return {name: _one_line(value) for name, value in headers.items()}


def _one_line(value: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in value)
    return shown.encode("latin-1", "replace").decode("latin-1")
