"""Licenses: what follows from the parents', what is left to the user, and what is refused."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from refusals import refused

from hf_evomerge.errors import HubError
from hf_evomerge.hub.licenses import ParentLicense, decide_license, languages_of, license_of
from hf_evomerge.recipes.recipe import SourceRef


def _decide(*licenses, chosen=None):
    return decide_license(
        [ParentLicense(f"user/{i}", license) for i, license in enumerate(licenses)], chosen
    )


@pytest.mark.parametrize("license", ["apache-2.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "llama3"])
def test_equal_parents_keep_their_license(license):
    """Where all parents are under one license, so is the merge."""
    decision = _decide(license, license, license)
    assert (decision.license, decision.name, decision.notices) == (license, None, ())


def test_permissive_parents_give_apache_with_notices():
    """Different permissive licenses give apache-2.0, and the notices of the others are named."""
    decision = _decide("apache-2.0", "mit", "bsd-3-clause")
    assert decision.license == "apache-2.0"
    assert decision.notices == ("user/1: mit", "user/2: bsd-3-clause")


@pytest.mark.parametrize(
    "licenses",
    [
        ("apache-2.0", "cc-by-nc-4.0"),
        ("apache-2.0", "unknown"),
        ("llama3", "gemma"),
        ("apache-2.0", "cc-by-sa-4.0"),
        ("unknown", "unknown"),
        ("other", "other"),
    ],
)
def test_anything_else_is_not_guessed(licenses):
    """Non-commercial, share-alike, vendors' own and unknown licenses give `other`, with every
    parent's license listed."""
    decision = _decide(*licenses)
    assert (decision.license, decision.name) == ("other", "licenses-of-the-parents")
    assert [parent.license for parent in decision.parents] == list(licenses)


def _terms(*parents):
    decision = decide_license([ParentLicense(*parent) for parent in parents])
    return decision.license, decision.name, decision.link


def test_named_licenses_are_the_same_only_with_the_same_name():
    """Two `other` licenses are one where name and address agree, and two where they do not; a link
    to a file leads to the parent's."""
    named = ("other", "qwen-research", "https://example.org/q")
    assert _terms(("a/a", *named), ("b/b", *named)) == named
    different = _terms(("a/a", *named), ("b/b", "other", "own", "https://example.org/b"))
    assert different[1] == "licenses-of-the-parents"
    filed = _terms(("a/a", "other", "own", "LICENSE"), ("b/b", "other", "own", "LICENSE"))
    assert filed == ("other", "own", "https://huggingface.co/a/a/blob/main/LICENSE")


def test_an_identifier_needs_no_name():
    """Parents under one known license agree, also where one gives its address."""
    assert _terms(("a/a", "llama3"), ("b/b", "llama3", "llama3", "LICENSE"))[0] == "llama3"


@pytest.mark.parametrize("status", [503, 429, 404])
def test_a_hub_that_does_not_answer_is_no_license(status):
    """A passing fault must not turn a known license into an unknown one; a repository that is not
    there has none."""
    response = httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1/api"))

    def model_info(repo_id, revision=None):
        raise HfHubHTTPError(f"status {status}", response=response)

    api = SimpleNamespace(model_info=model_info)
    if status == 404:
        assert license_of(SourceRef(model="a/b"), api).license == "unknown"
        return
    with refused(HubError, r"a/b: its license cannot be read: .*try again later"):
        license_of(SourceRef(model="a/b"), api)


@pytest.mark.parametrize(
    ("licenses", "named"),
    [
        (("apache-2.0", "cc-by-nd-4.0"), "user/1 is under cc-by-nd-4.0, which allows no derived"),
        (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), "which allows no derived works"),
        (
            ("cc-by-sa-4.0", "cc-by-nc-4.0"),
            "user/0 is under cc-by-sa-4.0, which derived works must keep, and user/1",
        ),
        (("llama2", "cc-by-nc-sa-4.0"), "user/1 is under cc-by-nc-sa-4.0"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
    ],
)
def test_contradictions_are_refused(licenses, named):
    """Licenses that contradict each other, or forbid merges, are refused, with both sides named and
    a way out."""
    with refused(HubError, f"{named}.*--license"):
        _decide(*licenses)
    decision = _decide(*licenses, chosen="other")
    assert (decision.license, decision.chosen) == ("other", True)


def _stated(**data):
    """The license that a card on the Hub states."""
    info = SimpleNamespace(card_data=ModelCardData(**data))
    api = SimpleNamespace(model_info=lambda repo_id, revision=None: info)
    return license_of(SourceRef(model="a/b"), api)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"license": "MIT"}, {"license": "mit"}),
        (
            {"license": "other", "license_name": "own", "license_link": "https://x.y"},
            {"license": "other", "name": "own", "link": "https://x.y"},
        ),
        ({"license": ["mit", "gpl-3.0"]}, {"note": "its card states several: mit, gpl-3.0"}),
        ({}, {"note": "its card states no license"}),
        ({"license": []}, {"note": "its card states no license"}),
        ({"license": 3}, {"note": "its card states no license"}),
    ],
)
def test_the_license_is_read_from_the_card(data, expected):
    """A parent's license is what its card states; else it is unknown, and a note says why."""
    assert _stated(**data) == ParentLicense("a/b", **expected)


def test_the_license_of_a_folder_is_read_from_its_card(tmp_path):
    """Without a card, or with broken metadata, it is unknown: no error of the YAML library."""
    ref = SourceRef(model=str(tmp_path))
    assert license_of(ref, None).note == "the folder has no README.md"
    for license in ("gemma", "[mit\nx: {"):
        (tmp_path / "README.md").write_text(f"---\nlicense: {license}\n---\n")
        expected = license if license == "gemma" else "unknown"
        assert license_of(ref, None).license == expected


@pytest.mark.parametrize(
    ("stated", "languages"),
    [
        ((["ja", "en"], "en"), ("ja", "en")),
        ((["ja"], None), ()),
        (("japanese",), ()),
        ((["ja", "en", "de"], ["fr", "it"]), ()),
    ],
)
def test_languages_are_the_parents(stated, languages):
    """What all parents state, as codes and a few; nothing where one is silent, or there are
    many."""
    assert languages_of([_stated(language=each) for each in stated]) == languages
