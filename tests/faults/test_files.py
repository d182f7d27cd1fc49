"""Files of strangers, damaged at random: each is read, or refused in one line, soon. The cases are
the same in every run.

`EVOMERGE_FUZZ_SECONDS=600 pytest -s tests/faults/test_files.py` looks on for so many seconds, at
cases that are new in each, or those of `EVOMERGE_FUZZ_SEED`, and says how many there were.
"""

import json
import os
import re
import shutil
import struct
import time
from pathlib import Path

import pytest
import yaml
from classes import read_json
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tiny_adapters import save_adapter

from hf_evomerge.checkpoints.compatibility import check_mergeable, find_warnings
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.lora import Adapter
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.mergekit import from_mergekit, to_mergekit
from hf_evomerge.recipes.limited_yaml import LimitedLoader
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import dump_yaml, parse_yaml
from hf_evomerge.search.file.config import SearchConfig

CASES = {"yaml": 60, "json": 30, "bytes": 30}  # in a run of the tests, per reader
SECONDS = float(os.environ.get("EVOMERGE_FUZZ_SECONDS", "0"))
READERS = 8  # that share the seconds
LONGEST = 10.0  # seconds of the processor that one case may take

ROOT = Path(__file__).parents[2]
PAGES = [
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("recipes.md", "adapters.md")
]
RECIPES = re.findall(r"```yaml\n(.*?)```", "".join(PAGES), re.DOTALL)
SEARCHES = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples").glob("*.yaml"))]
MERGEKIT = [
    file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "tests" / "mergekit" / "configs").glob("*.yml"))
]
ADAPTER = yaml.safe_load("""
peft_type: LORA
r: 2
lora_alpha: 4
rank_pattern: {}
alpha_pattern: {q_proj: 2}
fan_in_fan_out: false
modules_to_save: null
init_lora_weights: true
use_dora: false
target_modules: [q_proj]
""")
TEXTS_OF_STRANGERS = """
../../etc/passwd
/dev/zero
~nobody/x
0:0-4095 x999
1:3
blocks.0-99999
**************************************************
*a*b*
(a+)+$
{{
2024-01-01
no
=
<<
u/a@b@c""".splitlines()
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from(
        [10**7, -(10**20), 10**400, 2**31, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.0]
    ),
    st.sampled_from([*TEXTS_OF_STRANGERS, " ", "x" * 100_000, "\ud800", "é\n\t\x07"]),
    st.text(max_size=8),
    st.recursive(
        st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
)


def _places(data, at=()):
    """The way to every value in plain data."""
    inside = dict(enumerate(data)) if isinstance(data, list) else data
    items = inside.items() if isinstance(inside, dict) else ()
    return [at, *(place for key, value in items for place in _places(value, (*at, key)))]


@st.composite
def damaged(draw, *originals):
    """Plain data of which up to three values are other ones, gone, under another key, or there
    twice."""
    data = json.loads(json.dumps(draw(st.sampled_from(originals))))
    for _ in range(draw(st.integers(1, 3))):
        if not (places := _places(data)[1:]):  # nothing is left of it
            break
        *way, last = draw(st.sampled_from(places))
        holder = data
        for key in way:
            holder = holder[key]
        how = draw(st.integers(0, 3))
        if how == 1 and isinstance(holder, (dict, list)):
            del holder[last]
        elif how == 2 and isinstance(holder, dict):
            holder[draw(st.sampled_from([*holder, "default", "unknown", "model"]))] = holder[last]
        elif how == 3 and isinstance(holder, list):
            holder.extend(holder[:1] * draw(st.sampled_from([1, 40])))
        else:
            holder[last] = draw(ODD)
    return data


@st.composite
def damaged_text(draw, *originals):
    """YAML of damaged data, of which pieces may be cut out, doubled or overwritten with what means
    something to YAML."""
    original = yaml.load(draw(st.sampled_from(originals)), LimitedLoader)
    text = yaml.safe_dump(
        draw(damaged(original)), sort_keys=False, allow_unicode=draw(st.booleans()), width=100
    )
    for _ in range(draw(st.integers(0, 3))):
        first = draw(st.integers(0, len(text)))
        last = min(len(text), first + draw(st.integers(0, 12)))
        marks = ["&a ", "*a", "!!int ", "<<: ", "- ", "? ", ": ", "|\n", *"[{'\"%@\t\0"]
        words = ["", text[first:last] * 2, *marks]
        text = text[:first] + draw(st.sampled_from(words)) + text[last:]
    return text


@st.composite
def damaged_bytes(draw, original):
    """Bytes of which up to three stretches, mostly at the beginning, are other ones."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, 400) | st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data)


def look(strategy, read, cases):
    """Read case after case: each ends soon, in an object or in one line that can be written."""

    looked = 0

    def check(case):
        nonlocal looked
        looked += 1
        begin = time.process_time()
        line = "it was read"
        try:
            read(case)
        except EvoMergeError as error:
            line = str(error)
        assert line.encode()
        assert "\n" not in line
        assert 10 < len(line) < 2000
        assert time.process_time() - begin < LONGEST

    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    if not SECONDS:
        settings(derandomize=True, max_examples=cases, **quiet)(given(strategy)(check))()
    begin = time.monotonic()
    number = int(os.environ.get("EVOMERGE_FUZZ_SEED", time.time_ns()))
    while time.monotonic() - begin < SECONDS / READERS:
        number += 1
        seed(number)(
            settings(max_examples=cases, print_blob=True, **quiet)(given(strategy)(check))
        )()
    if SECONDS:
        print(f"looked at {looked} cases")


def _read_recipe(text):
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def _read_search(text):
    config = parse_yaml(SearchConfig, text, SearchError)
    assert parse_yaml(SearchConfig, dump_yaml(config), SearchError) == config


def _read_mergekit(text):
    to_mergekit(from_mergekit(text).recipe)


TEXTS = {
    "recipe": (damaged_text(*RECIPES), _read_recipe),
    "search": (damaged_text(*SEARCHES), _read_search),
    "mergekit": (damaged_text(*MERGEKIT), _read_mergekit),
}


@pytest.mark.parametrize(("texts", "read"), TEXTS.values(), ids=TEXTS)
def test_yaml(texts, read):
    """A damaged recipe, search file or file of mergekit is read to the same object again, or
    refused in one line."""
    look(texts, read, CASES["yaml"])


@pytest.fixture
def model(tiny, tmp_path):
    """A model folder to damage."""
    return shutil.copytree(tiny / "a", tmp_path / "a")


def _use(model, tiny):
    """Everything that is asked of a source before anything of it is merged."""
    source = open_source(model)
    other = open_source(tiny / "b")
    for name in source.tensors:
        source.read(name).sum()
    find_warnings([source, other])
    check_mergeable([source, other], other)
    source.close()
    str(inspect_model(model))


def test_configs(model, tiny):
    """A damaged config.json is that of a model, or is refused in one line."""
    config = read_json(model / "config.json")
    types = ["llama", "qwen2", "gemma2", "mixtral", "gpt2", "evo_merged", "t5", "clip"]

    def read(case):
        data, kind = case
        if isinstance(data, dict) and kind:
            data["model_type"] = kind
        (model / "config.json").write_text(json.dumps(data))
        _use(model, tiny)

    look(st.tuples(damaged(config), st.sampled_from(["", "", "", *types])), read, CASES["json"])


def test_headers(model, tiny):
    """A damaged safetensors file is read, or refused in one line, whether its header or any of its
    bytes are other ones."""
    file = model / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])

    def read(case):
        text = json.dumps(case).encode() if not isinstance(case, bytes) else b""
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] if text else case)
        _use(model, tiny)

    look(damaged(header) | damaged_bytes(data), read, CASES["bytes"])


def test_indexes(model, tiny):
    """A damaged index of shards is read, or refused in one line."""
    from transformers import AutoModelForCausalLM

    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny / "a").save_pretrained(model, max_shard_size="4KB")
    file = model / "model.safetensors.index.json"
    index = read_json(file)

    def read(case):
        file.write_text(json.dumps(case))
        _use(model, tiny)

    look(damaged(index), read, CASES["json"])


def test_adapters(model, tmp_path):
    """A damaged adapter_config.json is that of an adapter, or is refused in one line."""
    folder = save_adapter(model, tmp_path / "adapter", 0, r=2, target_modules=["q_proj"])
    tensors = open_source(model).tensors

    def read(case):
        (folder / "adapter_config.json").write_text(json.dumps(case))
        Adapter.open(str(folder)).changes(tensors)

    look(damaged(ADAPTER), read, CASES["json"])
