"""Place of card templates, the Space's files and examples: in an installed wheel, or in the
repository they are edited in."""

from pathlib import Path

from ..errors import HubError

_PACKAGE = Path(__file__).parents[1]


def bundled(name: str) -> Path:
    """The folder ``model_cards``, ``space_app`` or ``examples``; raises `HubError` where the
    installation lacks it."""
    for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise HubError(f"{name}: not in this installation of hf_evomerge; install it again")
