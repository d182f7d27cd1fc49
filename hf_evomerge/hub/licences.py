"""Which licence a merge may go out under, from the licences of its parents. Decides only what is plain; not legal advice.

Equal parents keep their licence, permissive ones give apache-2.0 with notices. Everything else is left to the user: the card
says ``other`` and lists the parents' licences. What is known to contradict itself is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import yaml

from ..checkpoints.model_folder import named_folder
from ..errors import HubError
from ..recipes.recipe import SourceRef
from .commit import is_passing, one_line
from .record import hide_folder, is_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Identifiers are those of https://huggingface.co/docs/hub/repositories-licenses
PERMISSIVE: tuple[str, ...] = (
    "apache-2.0",
    "mit",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "isc",
    "ncsa",
    "zlib",
)
PERMISSIVE += ("unlicense", "cc0-1.0", "postgresql")
_SHARE_ALIKE = ("cc-by-sa", "cc-by-nc-sa", "gpl", "agpl", "lgpl", "odbl", "osl", "eupl", "mpl", "epl", "cdla-sharing")
UNKNOWN = "unknown"
OTHER = "other"
_OF_THE_PARENTS = "licences-of-the-parents"  # the Hub wants a name where the licence is `other`


@dataclass(frozen=True)
class ParentLicence:
    """The licence of one parent, as its repository states it.

    Attributes:
        model: The parent's repository, or the name of a folder.
        licence: The identifier; ``other`` for one with a name of its own, ``unknown`` where nothing is stated.
        name, link: The name and address of a licence without an identifier.
        note: Why nothing is known.
    """

    model: str
    licence: str = UNKNOWN
    name: str | None = None
    link: str | None = None
    note: str | None = None

    @property
    def title(self) -> str:
        """The licence's own name where it has one, its identifier otherwise."""
        return self.name or self.licence

    @property
    def terms(self) -> tuple[str, str | None, str | None]:
        """What must be equal for two licences to be the same; an identifier says it all, but for ``other``."""
        return (self.licence, self.name, self.link) if self.licence == OTHER else (self.licence, None, None)

    @property
    def address(self) -> str | None:
        """Where it can be read: a link to a file is one to a file of the parent."""
        if self.link is None or "://" in self.link or "/" not in self.model:
            return self.link
        return f"https://huggingface.co/{quote(self.model)}/blob/main/{quote(self.link)}"


@dataclass(frozen=True)
class LicenceDecision:
    """What the merge goes out under.

    Attributes:
        licence: An identifier; ``other`` where the parents' licences do not settle it.
        name, link: Name and address of a licence without an identifier.
        parents: The parents' licences.
        reason: One sentence that says why.
        chosen: Whether the user chose it.
    """

    licence: str
    reason: str
    parents: tuple[ParentLicence, ...] = ()
    name: str | None = None
    link: str | None = None
    chosen: bool = False
    notices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The licence's own name where it has one, its identifier otherwise."""
        return self.name or self.licence


def decide_licence(parents: Sequence[ParentLicence], chosen: str | None = None) -> LicenceDecision:
    """Decide under which licence a merge may go out.

    Args:
        parents: The licences of all sources and of the base.
        chosen: The user's own choice, as a Hub identifier; it is taken as it is.

    Raises:
        HubError: The parents' licences contradict each other, or forbid merges, and the user has chosen nothing.

    Example:
        >>> decide_licence([ParentLicence("a", "mit"), ParentLicence("b", "apache-2.0")]).licence
        'apache-2.0'
    """
    parents = tuple(dict.fromkeys(parents))
    if chosen is not None:
        name = _OF_THE_PARENTS if chosen == OTHER else None
        return LicenceDecision(chosen, "The publisher chose this licence.", parents, name=name, chosen=True)
    if conflict := _conflict(parents):
        raise HubError(f"licence: {conflict}; ask the authors, then pass --license with what you may use")
    first = parents[0] if parents else ParentLicence("")
    if first.licence != UNKNOWN and (first.licence != OTHER or first.name) and len({p.terms for p in parents}) == 1:
        return LicenceDecision(first.licence, "All parents are under this licence.", parents, first.name, first.address)
    if parents and all(parent.licence in PERMISSIVE for parent in parents):
        notices = tuple(f"{parent.model}: {parent.licence}" for parent in parents if parent.licence != "apache-2.0")
        return LicenceDecision(
            "apache-2.0", "All parents are under permissive licences, whose notices are kept.", parents, notices=notices
        )
    unknown = [parent.model for parent in parents if parent.licence in (UNKNOWN, OTHER)]
    reason = (
        f"The licence of {', '.join(unknown)} is not stated in a known form."
        if unknown
        else "The parents are under different licences."
    )
    return LicenceDecision(OTHER, f"{reason} The terms of all parents apply.", parents, name=_OF_THE_PARENTS)


def _conflict(parents: Sequence[ParentLicence]) -> str | None:
    """What is known to contradict itself, in one sentence."""
    for parent in parents:
        if "-nd-" in f"{parent.licence}-":
            return f"{parent.model} is under {parent.licence}, which allows no derived works"
    for parent in parents:
        if not parent.licence.startswith(_SHARE_ALIKE):
            continue
        for other in parents:
            if other.terms != parent.terms and other.licence not in (*PERMISSIVE, UNKNOWN, OTHER):
                return (
                    f"{parent.model} is under {parent.licence}, which derived works must keep, and {other.model} under "
                    f"{other.licence}, which says otherwise"
                )
    return None


def licence_of(ref: SourceRef, api: HfApi) -> ParentLicence:
    """The licence that a parent's card states; ``unknown``, with a note, where there is none to read.

    Raises:
        HubError: The Hub does not answer, so that it is not known whether there is one.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = named_folder(ref.model)
    try:
        if is_folder(ref.model):
            if not folder.is_dir():
                return ParentLicence(hide_folder(ref).model, note="the folder is not there any more")
            if not (folder / "README.md").is_file():
                return ParentLicence(folder.name, note="the folder has no README.md")
            data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
            name = folder.name
        else:
            card = api.model_info(ref.model, revision=ref.revision).card_data
            data, name = (card.to_dict() if card is not None else {}), ref.model
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, yaml.YAMLError) as cause:
        if is_passing(cause):
            raise HubError(f"{ref.model}: its licence cannot be read: {one_line(cause)}; try again later") from cause
        return ParentLicence(ref.model, note=f"its card cannot be read: {' '.join(str(cause).split())[:120]}")
    licence = data.get("license")
    if isinstance(licence, list):
        if len(licence) > 1:
            return ParentLicence(name, note=f"its card states several: {', '.join(map(str, licence))}")
        licence = licence[0] if licence else None
    if not isinstance(licence, str) or not licence.strip():
        return ParentLicence(name, note="its card states no licence")
    texts = {key: value for key in ("license_name", "license_link") if isinstance(value := data.get(key), str)}
    return ParentLicence(name, licence.strip().lower(), texts.get("license_name"), texts.get("license_link"))
