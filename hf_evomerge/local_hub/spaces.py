"""The endpoints of Spaces: secrets, variables, hardware, runtime. A Space is kept and described, never built or run."""

from __future__ import annotations

import re
from typing import Any

from .call import Call
from .cards import read_card
from .repository import Repository, State, now
from .wire import Refusal, Response

FILES = {"docker": "Dockerfile", "static": "index.html"}
SLEEP_SECONDS = 172_800  # of free hardware


def runtime(call: Call, space: Repository) -> dict[str, Any]:
    """What the Hub would say of a Space: running where the file that its card names is there."""
    tree = space.at("main").tree
    readme = tree.get("README.md")
    card = read_card(call.store.read(readme))[0] if readme and not readme.lfs else {}
    main = str(card.get("app_file") or FILES.get(str(card.get("sdk", space.state.sdk)), "app.py"))
    stage = "PAUSED" if space.state.paused else "RUNNING" if main in tree else "NO_APP_FILE"
    hardware = space.state.hardware
    return {
        "stage": stage,
        "hardware": {"current": hardware if stage == "RUNNING" else None, "requested": hardware},
        "storage": None,
        "gcTimeout": space.state.sleep_seconds if hardware != "cpu-basic" else SLEEP_SECONDS,
        "replicas": {"current": int(stage == "RUNNING"), "requested": 1},
    }


def show_runtime(call: Call, repo_id: str) -> Response:
    """The state of a Space."""
    return Response(200, runtime(call, call.repository("spaces", repo_id)))


def secrets(call: Call, repo_id: str) -> Response:
    """List, set or delete secrets. Their values are not kept: nothing runs that could read them."""
    return _settings(call, repo_id, "secrets")


def variables(call: Call, repo_id: str) -> Response:
    """List, set or delete variables."""
    return _settings(call, repo_id, "variables")


def _settings(call: Call, repo_id: str, which: str) -> Response:
    space = call.repository("spaces", repo_id, write=True)
    kept: dict[str, dict[str, Any]] = getattr(space.state, which)
    if call.request.method != "GET":
        with space.lock:
            if call.request.method == "DELETE":
                kept.pop(call.request.text("key"), None)
            else:
                keep_setting(space.state, which, call.request.json())
            space.save()
    return Response(200, {key: {"key": key, **about} for key, about in list(kept.items())})


def keep_setting(state: State, which: str, item: dict[str, Any]) -> None:
    """Note a secret, without its value, or a variable. The caller saves.

    Raises:
        Refusal: 400, where it has no name or no value.
    """
    key, value = item.get("key"), item.get("value")
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_]\w*", key) or not isinstance(value, str):
        raise Refusal(400, f'"{which}" need a "key" that is a name and a "value" that is a string')
    about: dict[str, Any] = {"description": item.get("description"), "updatedAt": now()}
    getattr(state, which)[key] = {**about, "value": value} if which == "variables" else about


def hardware(call: Call, repo_id: str) -> Response:
    """Ask for hardware, which is had at once."""
    space = call.repository("spaces", repo_id, write=True)
    with space.lock:
        space.state.hardware = call.request.text("flavor")
        space.state.sleep_seconds = _seconds(call.request.json().get("sleepTimeSeconds"), space.state.sleep_seconds)
        space.save()
    return Response(200, runtime(call, space))


def sleep_time(call: Call, repo_id: str) -> Response:
    """Say after how long without visitors a Space sleeps."""
    space = call.repository("spaces", repo_id, write=True)
    with space.lock:
        space.state.sleep_seconds = _seconds(call.request.json().get("seconds"), space.state.sleep_seconds)
        space.save()
    return Response(200, runtime(call, space))


def restart(call: Call, repo_id: str) -> Response:
    """End a pause."""
    return _pause(call, repo_id, False)


def pause(call: Call, repo_id: str) -> Response:
    """Begin a pause."""
    return _pause(call, repo_id, True)


def _pause(call: Call, repo_id: str, paused: bool) -> Response:
    space = call.repository("spaces", repo_id, write=True)
    with space.lock:
        space.state.paused = paused
        space.save()
    return Response(200, runtime(call, space))


def _seconds(value: Any, default: int | None) -> int | None:
    return value if isinstance(value, int) else default
