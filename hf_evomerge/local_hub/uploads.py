"""The endpoints that take the contents of large files: LFS whole or in parts, and the tokens of Xet."""

from __future__ import annotations

import time
from typing import Any

from .call import NO_WRITE, Call
from .wire import Refusal, Response

TOKEN_SECONDS = 3600
LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}


def batch(call: Call, kind: str, repo_id: str) -> Response:
    """Say for each content where to upload it; one that is here already needs no upload."""
    call.repository(kind, repo_id)
    call.known_user()  # whoever can see it: a content may be for a pull request, and shows only where a commit names it
    transfers = call.request.json().get("transfers") or []
    if call.request.json().get("operation", "upload") != "upload":
        raise Refusal(422, "of LFS, this hub knows the operation upload")
    answers, parts = [], False
    for item in call.request.objects("objects"):
        oid, size = str(item.get("oid")), item.get("size")
        if not isinstance(size, int) or size < 0:
            raise Refusal(422, f"the size of {oid[:64]} is missing")
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if call.store.objects.size(oid) != size:
            part_size = call.hub.part_size if "multipart" in transfers and size > (call.hub.part_size or size) else None
            parts = parts or part_size is not None
            answer["actions"] = _actions(call, oid, size, part_size)
        answers.append(answer)
    return Response(200, {"transfer": "multipart" if parts else "basic", "objects": answers}, dict(LFS_JSON))


def _actions(call: Call, oid: str, size: int, part_size: int | None) -> dict[str, Any]:
    hub = call.hub
    verify = {"href": hub.endpoint + hub.signer.sign(f"/lfs/{oid}/verify")}
    if part_size is None:
        return {"upload": {"href": hub.content + hub.signer.sign(f"/lfs/{oid}")}, "verify": verify}
    count = -(-size // part_size)
    addresses = {str(part): hub.content + hub.signer.sign(f"/lfs/{oid}/{part}") for part in range(1, count + 1)}
    complete = hub.endpoint + hub.signer.sign(f"/lfs/{oid}/complete")
    return {"upload": {"href": complete, "header": {"chunk_size": str(part_size), **addresses}}, "verify": verify}


def put(call: Call, oid: str) -> Response:
    """Take a whole content."""
    call.hub.signer.check(call.request)
    call.store.objects.receive(oid, call.request.body.pieces())
    return Response(200)


def put_part(call: Call, oid: str, number: str) -> Response:
    """Take one part of a content."""
    call.hub.signer.check(call.request)
    etag = call.store.objects.receive_part(oid, int(number), call.request.body.pieces())
    return Response(200, b"", {"ETag": f'"{etag}"'})


def complete(call: Call, oid: str) -> Response:
    """Make a content of its parts."""
    call.hub.signer.check(call.request)
    parts = call.request.objects("parts")
    if [part.get("partNumber") for part in parts] != list(range(1, len(parts) + 1)):
        raise Refusal(400, '"parts" must be all parts, in their order')
    call.store.objects.join(oid, [str(part.get("etag")).strip('"') for part in parts])
    return Response(200, {})


def verify(call: Call, oid: str) -> Response:
    """Say whether a content has arrived. The client sends its token along, which the signature makes unnecessary."""
    call.hub.signer.check(call.request, token=True)
    if call.store.objects.size(oid) != call.request.json().get("size"):
        raise Refusal(400, "the content is not here, or has another size")
    return Response(200, {})


def xet_write(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """The address of the Xet store, for an upload."""
    found, user = call.repository(kind, repo_id), call.known_user()
    proposes = call.request.flag("create_pr") or revision.startswith("refs/pr/")
    if not proposes and not user.can_write(found.owner):
        raise Refusal(403, NO_WRITE)
    return _xet_token(call)


def xet_read(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """The address of the Xet store, for a download."""
    call.readable(kind, repo_id).resolve(revision)
    return _xet_token(call)


def _xet_token(call: Call) -> Response:
    address, expires = call.store.objects.xet.address, int(time.time()) + TOKEN_SECONDS
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "local", "X-Xet-Token-Expiration": str(expires)}
    return Response(200, {"casUrl": address, "accessToken": "local", "exp": expires}, headers)
