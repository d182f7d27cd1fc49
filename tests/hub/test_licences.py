"""Licences: what follows from the parents', what is left to the user, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_evomerge.errors import HubError
from hf_evomerge.hub.licences import LicenceDecision, ParentLicence, decide_licence, licence_of
from hf_evomerge.recipes.recipe import SourceRef


def _decide(*licences: str, chosen: str | None = None) -> LicenceDecision:
    return decide_licence([ParentLicence(f"user/{i}", licence) for i, licence in enumerate(licences)], chosen)


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "cc-by-nc-4.0", "cc-by-sa-4.0", "llama3", "gemma"])
def test_equal_parents_keep_their_licence(licence: str) -> None:
    """Where all parents are under one licence, so is the merge."""
    decision = _decide(licence, licence, licence)
    assert (decision.licence, decision.name, decision.notices) == (licence, None, ())


def test_permissive_parents_give_apache_with_notices() -> None:
    """Different permissive licences give apache-2.0, and the notices of the others are named."""
    decision = _decide("apache-2.0", "mit", "bsd-3-clause")
    assert decision.licence == "apache-2.0"
    assert decision.notices == ("user/1: mit", "user/2: bsd-3-clause")


@pytest.mark.parametrize(
    "licences",
    [
        ("apache-2.0", "cc-by-nc-4.0"),
        ("apache-2.0", "unknown"),
        ("mit", "llama3"),
        ("llama3", "gemma"),
        ("apache-2.0", "cc-by-sa-4.0"),
        ("mit", "openrail"),
        ("unknown", "unknown"),
        ("other", "other"),
    ],
)
def test_anything_else_is_not_guessed(licences: tuple[str, ...]) -> None:
    """Non-commercial, share-alike, vendors' own and unknown licences give `other`, with every parent's licence listed."""
    decision = _decide(*licences)
    assert (decision.licence, decision.name) == ("other", "licences-of-the-parents")
    assert [parent.licence for parent in decision.parents] == list(licences)


def test_named_licences_are_the_same_only_with_the_same_name() -> None:
    """Two `other` licences are one where name and address agree, and two where they do not."""
    same = [ParentLicence(model, "other", "qwen-research", "https://example.org/q") for model in ("a/a", "b/b")]
    decision = decide_licence(same)
    assert (decision.licence, decision.name, decision.link) == ("other", "qwen-research", "https://example.org/q")
    different = [same[0], ParentLicence("b/b", "other", "their-own", "https://example.org/b")]
    assert decide_licence(different).name == "licences-of-the-parents"


def test_an_identifier_needs_no_name() -> None:
    """Parents under one known licence agree, also where only one of them gives its address."""
    both = [ParentLicence("a/a", "llama3"), ParentLicence("b/b", "llama3", "llama3", "LICENSE")]
    assert decide_licence(both).licence == "llama3"
    kept = [ParentLicence("a/a", "cc-by-sa-4.0"), ParentLicence("b/b", "cc-by-sa-4.0", link="https://example.org/sa")]
    assert decide_licence(kept).licence == "cc-by-sa-4.0"


def test_a_licence_file_is_the_parents() -> None:
    """A link to a file of the parent's repository leads there, also from the merge, which has no such file."""
    decision = decide_licence([ParentLicence(model, "other", "own", "LICENSE") for model in ("a/a", "b/b")])
    assert (decision.licence, decision.link) == ("other", "https://huggingface.co/a/a/blob/main/LICENSE")


def test_a_hub_that_does_not_answer_is_no_licence() -> None:
    """A passing fault must not turn a known licence into an unknown one; a repository that is not there has none."""

    def failing(status: int) -> Any:
        response = httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1/api/models/a/b"))

        def model_info(repo_id: str, revision: str | None = None) -> Any:
            raise HfHubHTTPError(f"status {status}", response=response)

        return SimpleNamespace(model_info=model_info)

    for status in (503, 429):
        with pytest.raises(HubError, match=r"a/b: its licence cannot be read: .*try again later"):
            licence_of(SourceRef(model="a/b"), failing(status))
    assert licence_of(SourceRef(model="a/b"), failing(404)).licence == "unknown"


def test_a_card_that_cannot_be_parsed_states_nothing(tmp_path: Path) -> None:
    """Broken metadata in a folder's README are no reason to end with an error of the YAML library."""
    (tmp_path / "README.md").write_text("---\nlicense: [mit\nx: {\n---\n")
    assert licence_of(SourceRef(model=str(tmp_path)), _api(None)).licence == "unknown"


@pytest.mark.parametrize(
    ("licences", "named"),
    [
        (("apache-2.0", "cc-by-nd-4.0"), "user/1 is under cc-by-nd-4.0, which allows no derived works"),
        (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), "which allows no derived works"),
        (("cc-by-sa-4.0", "cc-by-nc-4.0"), "user/0 is under cc-by-sa-4.0, which derived works must keep, and user/1"),
        (("llama2", "cc-by-nc-sa-4.0"), "user/1 is under cc-by-nc-sa-4.0"),
        (("agpl-3.0", "gemma"), "user/0 is under agpl-3.0"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
    ],
)
def test_contradictions_are_refused(licences: tuple[str, ...], named: str) -> None:
    """Licences that contradict each other, or forbid merges, are refused, with both sides named and a way out."""
    with pytest.raises(HubError, match="--license") as caught:
        _decide(*licences)
    assert named in str(caught.value)
    decision = _decide(*licences, chosen="other")
    assert (decision.licence, decision.chosen) == ("other", True)


def _api(data: dict[str, Any] | None) -> Any:
    card = None if data is None else ModelCardData(**data)
    return SimpleNamespace(model_info=lambda repo_id, revision=None: SimpleNamespace(card_data=card))


def test_the_licence_is_read_from_the_card(tmp_path: Path) -> None:
    """A parent's licence is what its card states, on the Hub or in a folder; else it is unknown, and a note says why."""
    assert licence_of(SourceRef(model="a/b"), _api({"license": "MIT"})) == ParentLicence("a/b", "mit")
    named = licence_of(SourceRef(model="a/b"), _api({"license": "other", "license_name": "own", "license_link": "https://x.y"}))
    assert named == ParentLicence("a/b", "other", "own", "https://x.y")
    several = licence_of(SourceRef(model="a/b"), _api({"license": ["mit", "gpl-3.0"]}))
    assert several == ParentLicence("a/b", note="its card states several: mit, gpl-3.0")
    for data in (None, {}, {"license": []}, {"license": 3}):
        assert licence_of(SourceRef(model="a/b"), _api(data)) == ParentLicence("a/b", note="its card states no licence")
    assert licence_of(SourceRef(model=str(tmp_path)), _api(None)).note == "the folder has no README.md"
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n# it\n")
    assert licence_of(SourceRef(model=str(tmp_path)), _api(None)) == ParentLicence(tmp_path.name, "gemma")
