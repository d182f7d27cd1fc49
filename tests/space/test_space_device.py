"""The models behind a Space, on a device that stands in for a GPU, answer as on the processor."""

from contextlib import contextmanager

import pytest
import torch
from models import EVOLVED, AnswerJob, Host
from other_device import standing_in
from reading import read
from transformers import PreTrainedModel

PROMPT = "t0 w3 w4 5"
DEVICE = "standin:1"


@contextmanager
def models_there():
    """Let models come from their files to the device, as they come to a GPU."""
    load = PreTrainedModel.from_pretrained.__func__
    moved = classmethod(lambda kind, *given, **more: load(kind, *given, **more).to(DEVICE))
    with standing_in(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", moved)
        yield


def hosted(folder):
    """The models of a Space, loaded."""
    host = Host(read(str(folder)))
    host.load()
    return host


def answers(host, jobs):
    """Answers to jobs, and judgements of examples."""
    written = [host.whole_answer(job).text for job in jobs]
    assert all(written)
    return [written, host.score(jobs[0], host.published.examples)]


def test_a_path_answers_there(dfs):
    """The published path, another one and a parent answer as on the processor."""
    host = hosted(dfs)
    layers = tuple(dict.fromkeys(host.published.path))
    jobs = [
        AnswerJob(EVOLVED, PROMPT, 8),
        AnswerJob(EVOLVED, PROMPT, 8, layers[::-1], (0.5,) * len(layers)),
        AnswerJob("a", PROMPT, 8),
    ]
    wanted = answers(host, jobs)
    with models_there():
        host = hosted(dfs)
        assert answers(host, jobs) == wanted
        assert {host.evolved.model.device, host._parents["a"].model.device} == {
            torch.device(DEVICE)
        }
