"""Licenses: what follows from the parents', what is left to the user, and what is refused."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_evomerge.errors import HubError
from hf_evomerge.hub.licenses import ParentLicense, decide_license, languages_of, license_of
from hf_evomerge.recipes.recipe import SourceRef


def _decide(*licenses, chosen=None):
    return decide_license(
        [ParentLicense(f"user/{i}", license) for i, license in enumerate(licenses)], chosen
    )


@pytest.mark.parametrize(
    "license", ["apache-2.0", "mit", "cc-by-nc-4.0", "cc-by-sa-4.0", "llama3", "gemma"]
)
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
        ("mit", "llama3"),
        ("llama3", "gemma"),
        ("apache-2.0", "cc-by-sa-4.0"),
        ("mit", "openrail"),
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


def test_named_licenses_are_the_same_only_with_the_same_name():
    """Two `other` licenses are one where name and address agree, and two where they do not."""
    same = [
        ParentLicense(model, "other", "qwen-research", "https://example.org/q")
        for model in ("a/a", "b/b")
    ]
    decision = decide_license(same)
    assert (decision.license, decision.name, decision.link) == (
        "other",
        "qwen-research",
        "https://example.org/q",
    )
    different = [same[0], ParentLicense("b/b", "other", "their-own", "https://example.org/b")]
    assert decide_license(different).name == "licenses-of-the-parents"


def test_an_identifier_needs_no_name():
    """Parents under one known license agree, also where one gives its address; a link to a file
    leads to the parent's."""
    both = [ParentLicense("a/a", "llama3"), ParentLicense("b/b", "llama3", "llama3", "LICENSE")]
    assert decide_license(both).license == "llama3"
    kept = [
        ParentLicense("a/a", "cc-by-sa-4.0"),
        ParentLicense("b/b", "cc-by-sa-4.0", link="https://example.org/sa"),
    ]
    assert decide_license(kept).license == "cc-by-sa-4.0"
    decision = decide_license(
        [ParentLicense(model, "other", "own", "LICENSE") for model in ("a/a", "b/b")]
    )
    assert (decision.license, decision.link) == (
        "other",
        "https://huggingface.co/a/a/blob/main/LICENSE",
    )


def test_a_hub_that_does_not_answer_is_no_license(waits):
    """A passing fault must not turn a known license into an unknown one; a repository that is not
    there has none."""

    def failing(status):
        response = httpx.Response(
            status, request=httpx.Request("GET", "http://127.0.0.1/api/models/a/b")
        )

        def model_info(repo_id, revision=None):
            raise HfHubHTTPError(f"status {status}", response=response)

        return SimpleNamespace(model_info=model_info)

    for status in (503, 429):
        with pytest.raises(HubError, match=r"a/b: its license cannot be read: .*try again later"):
            license_of(SourceRef(model="a/b"), failing(status))
    assert license_of(SourceRef(model="a/b"), failing(404)).license == "unknown"


def test_a_card_that_cannot_be_parsed_states_nothing(tmp_path):
    """Broken metadata in a folder's README are no reason to end with an error of the YAML
    library."""
    (tmp_path / "README.md").write_text("---\nlicense: [mit\nx: {\n---\n")
    assert license_of(SourceRef(model=str(tmp_path)), _api(None)).license == "unknown"


@pytest.mark.parametrize(
    ("licenses", "named"),
    [
        (
            ("apache-2.0", "cc-by-nd-4.0"),
            "user/1 is under cc-by-nd-4.0, which allows no derived works",
        ),
        (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), "which allows no derived works"),
        (
            ("cc-by-sa-4.0", "cc-by-nc-4.0"),
            "user/0 is under cc-by-sa-4.0, which derived works must keep, and user/1",
        ),
        (("llama2", "cc-by-nc-sa-4.0"), "user/1 is under cc-by-nc-sa-4.0"),
        (("agpl-3.0", "gemma"), "user/0 is under agpl-3.0"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
    ],
)
def test_contradictions_are_refused(licenses, named):
    """Licenses that contradict each other, or forbid merges, are refused, with both sides named and
    a way out."""
    with pytest.raises(HubError, match="--license") as caught:
        _decide(*licenses)
    assert named in str(caught.value)
    decision = _decide(*licenses, chosen="other")
    assert (decision.license, decision.chosen) == ("other", True)


def _api(data):
    card = None if data is None else ModelCardData(**data)
    return SimpleNamespace(
        model_info=lambda repo_id, revision=None: SimpleNamespace(card_data=card)
    )


def test_the_license_is_read_from_the_card(tmp_path):
    """A parent's license is what its card states, on the Hub or in a folder; else it is unknown,
    and a note says why."""
    assert license_of(SourceRef(model="a/b"), _api({"license": "MIT"})) == ParentLicense(
        "a/b", "mit"
    )
    named = license_of(
        SourceRef(model="a/b"),
        _api({"license": "other", "license_name": "own", "license_link": "https://x.y"}),
    )
    assert named == ParentLicense("a/b", "other", "own", "https://x.y")
    several = license_of(SourceRef(model="a/b"), _api({"license": ["mit", "gpl-3.0"]}))
    assert several == ParentLicense("a/b", note="its card states several: mit, gpl-3.0")
    for data in (None, {}, {"license": []}, {"license": 3}):
        assert license_of(SourceRef(model="a/b"), _api(data)) == ParentLicense(
            "a/b", note="its card states no license"
        )
    assert (
        license_of(SourceRef(model=str(tmp_path)), _api(None)).note == "the folder has no README.md"
    )
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n# it\n")
    assert license_of(SourceRef(model=str(tmp_path)), _api(None)) == ParentLicense(
        tmp_path.name, "gemma"
    )


def test_languages_are_the_parents():
    """What all parents state, as codes and a few; nothing where one is silent, or there are
    many."""

    def of(*stated):
        return languages_of(
            [
                license_of(SourceRef(model="a/b"), _api({"language": language}))
                for language in stated
            ]
        )

    assert of(["ja", "en"], "en") == ("ja", "en")
    assert of(["ja"], None) == of("japanese") == of(["ja", "en", "de"], ["fr", "it"]) == ()
