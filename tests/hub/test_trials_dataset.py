"""The trials of a search as a data set: loaded in two lines, linked with the model, refused where
somebody else's files are."""

import re

import pytest
from hub_fixtures import commit_titles, upload_models
from huggingface_hub import CommitOperationAdd
from pyarrow import parquet
from refusals import refused

from hf_evomerge.errors import HubError


def test_the_trials_go_up_as_a_data_set_that_its_card_loads(
    hybrid_search, lfs_api, program, push, published_text
):
    """Model and data set link to each other, and the card's own code reads a row for each trial."""
    pushed = push(hybrid_search, trials=True)
    assert pushed.trials is not None
    assert pushed.trials.url == f"{lfs_api.endpoint}/datasets/local/merge"
    card = published_text(repo_type="dataset")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert "[local/merge](https://huggingface.co/local/merge)" in card
    assert "(https://huggingface.co/datasets/local/merge)" in published_text()
    shown = program(code[1] + "print(len(trials), sorted(trials['stage']) != [])")
    assert shown.split() == ["16", "True"]


def test_the_card_describes_every_column(hybrid_search, lfs_api, push, published_text):
    """Each column of the published table has its meaning on the card."""
    push(hybrid_search, trials=True)
    file = lfs_api.hf_hub_download("local/merge", "trials.parquet", repo_type="dataset")
    described = set(
        re.findall(r"`(\w+)`", published_text(repo_type="dataset").split("| --- | --- |")[1])
    )
    assert set(parquet.read_table(file).column_names) <= described


def test_a_dry_run_says_what_of_the_trials_goes_up(hybrid_search, lfs_api, preview):
    """The plan names the data set's files, and makes none."""
    plan = str(preview(hybrid_search, trials=True))
    assert "data set local/merge: trials.parquet, README.md" in plan
    assert not lfs_api.repo_exists("local/merge", repo_type="dataset")


def test_pushed_again_the_model_still_links_to_its_trials(
    hybrid_search, lfs_api, push, published_text
):
    """A later push without the trials keeps the link, and the data set has one commit of ours."""
    push(hybrid_search, trials=True)
    push(hybrid_search, about="Sums.")
    assert "(https://huggingface.co/datasets/local/merge)" in published_text()
    titles = lfs_api.list_repo_commits("local/merge", repo_type="dataset")
    assert len(titles) == 2
    assert len(commit_titles(lfs_api)) == 3


@pytest.mark.parametrize("private", [False, True])
def test_a_data_set_of_somebody_else_is_refused_before_anything_is_sent(
    private, hybrid_search, lfs_api, push
):
    """Other files, or a public data set for a private push, are no place for the trials."""
    lfs_api.create_repo("local/merge", repo_type="dataset")
    file = CommitOperationAdd("trials.parquet" if private else "own.csv", b"x")
    lfs_api.create_commit("local/merge", [file], commit_message="x", repo_type="dataset")
    complaint = "the data set exists and is public" if private else r"not pushed \(own.csv\)"
    with refused(HubError, complaint):
        push(hybrid_search, trials=True, private=private)
    assert not lfs_api.repo_exists("local/merge")


def test_a_model_without_a_search_has_no_trials(plain, tiny, lfs_api, push):
    """A merge by hand is refused with what to leave out."""
    upload_models(lfs_api, tiny / "a", tiny / "b")
    with refused(HubError, "no trials; leave out --trials"):
        push(plain, trials=True)


def test_the_command_says_where_the_trials_are(hybrid_search, command):
    """`push --trials` prints the address of the data set."""
    done = command("push", hybrid_search, "local/merge", "--trials")
    assert done.returncode == 0, done
    assert "datasets/local/merge" in done.stdout
