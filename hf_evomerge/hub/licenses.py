"""License that a merge may go out under, from the licenses of its parents. Decides only what is
plain; not legal advice.

Equal parents keep their license, permissive ones give apache-2.0 with notices. Everything else is
left to the user: the card says ``other`` and lists the parents' licenses. What is known to
contradict itself is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from ..checkpoints.client import ask, status_of
from ..errors import HubError, one_line
from ..pictures.scene import listed
from ..recipes.names import hidden, is_folder, named_folder
from ..recipes.recipe import SourceRef

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Identifiers are those of https://huggingface.co/docs/hub/repositories-licenses
PERMISSIVE = (
    "apache-2.0",
    "mit",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "isc",
    "ncsa",
    "zlib",
    "unlicense",
    "cc0-1.0",
    "postgresql",
)
_SHARE_ALIKE = (
    "cc-by-sa",
    "cc-by-nc-sa",
    "gpl",
    "agpl",
    "lgpl",
    "odbl",
    "osl",
    "eupl",
    "mpl",
    "epl",
    "cdla-sharing",
)
UNKNOWN = "unknown"
OTHER = "other"
NOT_ASKED = "its card was not looked up"
_NO_CARD = (401, 403, 404)  # statuses of a repository that is not there, or closed
_LANGUAGES = 4  # more say little of a merge
_OF_THE_PARENTS = "licenses-of-the-parents"  # the Hub wants a name where the license is `other`


@dataclass(frozen=True)
class ParentLicense:
    """The license and the languages of one parent, as its repository, or a folder, states them.

    Attributes:
        license: The identifier; ``other`` for one with a name of its own, ``unknown`` where nothing
            is stated.
        name, link: The name and address of a license without an identifier.
        note: Reason why nothing is known.
    """

    model: str
    license: str = UNKNOWN
    name: str | None = None
    link: str | None = None
    note: str | None = None
    languages: tuple[str, ...] = field(default=(), compare=False)

    @property
    def title(self) -> str:
        """The license's own name where it has one, its identifier otherwise."""
        return self.name or self.license

    @property
    def terms(self) -> tuple[str, str | None, str | None]:
        """Terms that must be equal for two licenses to be the same; an identifier says it all, but
        for ``other``."""
        return (
            (self.license, self.name, self.link)
            if self.license == OTHER
            else (self.license, None, None)
        )

    @property
    def address(self) -> str | None:
        """Address where it can be read: a link to a file is one to a file of the parent."""
        if self.link is None or "://" in self.link or "/" not in self.model:
            return self.link
        return f"https://huggingface.co/{quote(self.model)}/blob/main/{quote(self.link)}"


@dataclass(frozen=True)
class LicenseDecision:
    """License of the merge: an identifier, ``other`` where the parents' licenses do not settle it;
    and why, in a sentence.

    `name` and `link` are those of a license without an identifier, `chosen` says whether the user
    chose it.
    """

    license: str
    reason: str
    parents: tuple[ParentLicense, ...] = ()
    name: str | None = None
    link: str | None = None
    chosen: bool = False
    notices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The license's own name where it has one, its identifier otherwise."""
        return self.name or self.license


# In this order: the user's choice; a conflict is refused (no derived works; two licenses that both
# bind derived works to themselves); one license for all parents stays; permissive ones together go
# out under Apache 2.0, with the notices of the others kept; anything else is `other`, with the
# terms of all parents. A license that is not known is never taken for a permissive one.
def decide_license(parents: Sequence[ParentLicense], chosen: str | None = None) -> LicenseDecision:
    """Decide under which license a merge may go out, from those of all sources and of the base.

    The user's own choice, a Hub identifier, is taken as it is.

    Raises:
        HubError: The parents' licenses contradict each other, or forbid merges, and the user has
            chosen nothing.

    Example:
        >>> decide_license([ParentLicense("a", "mit"), ParentLicense("b", "apache-2.0")]).license
        'apache-2.0'
    """
    parents = tuple(dict.fromkeys(parents))
    if chosen is not None:
        name = _OF_THE_PARENTS if chosen == OTHER else None
        return LicenseDecision(
            chosen, "The publisher chose this license.", parents, name=name, chosen=True
        )
    if conflict := _conflict(parents):
        raise HubError(
            f"license: {conflict}; ask the authors, then pass --license with what you may use"
        )
    first = parents[0] if parents else ParentLicense("")
    if (
        first.license != UNKNOWN
        and (first.license != OTHER or first.name)
        and len({p.terms for p in parents}) == 1
    ):
        return LicenseDecision(
            first.license, "All parents are under this license.", parents, first.name, first.address
        )
    if parents and all(parent.license in PERMISSIVE for parent in parents):
        notices = tuple(
            f"{parent.model}: {parent.license}"
            for parent in parents
            if parent.license != "apache-2.0"
        )
        reason = "All parents are under permissive licenses, whose notices are kept."
        return LicenseDecision("apache-2.0", reason, parents, notices=notices)
    unknown = [parent.model for parent in parents if parent.license in (UNKNOWN, OTHER)]
    one = f"The license of {listed(unknown)} is"
    many = f"The licenses of {listed(unknown)} are"
    reason = f"{one if len(unknown) == 1 else many} not stated in a known form."
    reason = reason if unknown else "The parents are under different licenses."
    return LicenseDecision(
        OTHER, f"{reason} The terms of all parents apply.", parents, name=_OF_THE_PARENTS
    )


def languages_of(parents: Sequence[ParentLicense]) -> tuple[str, ...]:
    """The languages of a merge: those of its parents where all state theirs as codes and they are
    few; none otherwise."""
    found = dict.fromkeys(code for parent in parents for code in parent.languages)
    known = all(parent.languages for parent in parents) and all(
        re.fullmatch("[a-z]{2,3}", code) for code in found
    )
    return tuple(found) if known and len(found) <= _LANGUAGES else ()


def _conflict(parents: Sequence[ParentLicense]) -> str | None:
    """Describe the first known contradiction, in one sentence."""
    for parent in parents:
        if "-nd-" in f"{parent.license}-":
            return f"{parent.model} is under {parent.license}, which allows no derived works"
    for parent, other in permutations(parents, 2):
        strict = parent.license.startswith(_SHARE_ALIKE) and other.license not in (
            *PERMISSIVE,
            UNKNOWN,
            OTHER,
        )
        if strict and other.terms != parent.terms:
            kept = f"{parent.model} is under {parent.license}, which derived works must keep"
            return f"{kept}, and {other.model} under {other.license}, which says otherwise"
    return None


def license_of(ref: SourceRef, api: HfApi | None) -> ParentLicense:
    """The license that a parent's card states; ``unknown``, with a note, where there is none to
    read. Without a client only folders are read.

    Raises:
        HubError: The Hub does not answer, so that it is not known whether there is one.
    """
    from huggingface_hub import ModelCard

    name = hidden(ref.model)
    try:
        if is_folder(ref.model):
            folder = named_folder(ref.model)
            if not folder.is_dir():
                return ParentLicense(name, note="the folder is not there any more")
            if not (folder / "README.md").is_file():
                return ParentLicense(name, note="the folder has no README.md")
            data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        elif api is None:
            return ParentLicense(name, note=NOT_ASKED)
        else:
            what = f"{ref.model}: its license cannot be read"
            card = ask(what, lambda: api.model_info(ref.model, revision=ref.revision).card_data)
            data = card.to_dict() if card is not None else {}
    except (HubError, OSError, ValueError, yaml.YAMLError) as error:
        cause = error.__cause__ or error
        if isinstance(error, HubError) and status_of(cause) not in _NO_CARD:
            raise
        return ParentLicense(name, note=f"its card cannot be read: {one_line(cause, 120)}")
    stated = data.get("language")
    if not isinstance(stated, list):
        stated = [stated] if stated else []
    return replace(_stated(name, data), languages=tuple(map(str, stated)))


def _stated(name: str, data: dict[str, Any]) -> ParentLicense:
    """The license in the metadata of a card."""
    license = data.get("license")
    if isinstance(license, list):
        if len(license) > 1:
            return ParentLicense(
                name, note=f"its card states several: {', '.join(map(str, license))}"
            )
        license = license[0] if license else None
    if not isinstance(license, str) or not license.strip():
        return ParentLicense(name, note="its card states no license")
    terms = {key: data.get(key) for key in ("license_name", "license_link")}
    texts = {key: text for key, text in terms.items() if isinstance(text, str)}
    return ParentLicense(
        name, license.strip().lower(), texts.get("license_name"), texts.get("license_link")
    )
