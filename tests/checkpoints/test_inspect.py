"""What a checkpoint is said to be, and how two are said to differ, against numpy's own float64."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints import inspect as inspection
from hf_evomerge.checkpoints.inspect import diff_models, inspect_model
from hf_evomerge.errors import SourceError
from hf_evomerge.recipes.recipe import Recipe

BLOCK = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 24 + 2 * 16  # q, k and v, o, MLP, norms of the tiny Llama
OUTSIDE = 2 * 26 * 16 + 16  # embeddings, head, final norm


def _invoke(*arguments: Any) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def _model(folder: Path, tensors: dict[str, torch.Tensor], **more: Any) -> Path:
    """A checkpoint that consists of the tensors and a config."""
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 11, "vocab_size": 7, **more}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def merged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path of four hops that runs one layer twice and sums two layers once, so five slots over three layers."""
    sources = [{"model": str(tiny / "a")}, {"model": str(tiny / "b")}]
    flow = {"path": ["0:0", "1:1", "0:0*0.5 + 0:1*0.5", "1:1"], "scales": [1, 0.5, 1, 2], "embedding_source": 1}
    recipe = Recipe.model_validate({"sources": sources, "flow": flow})
    return build_model(recipe, tmp_path_factory.mktemp("merged") / "model", progress=False)


def test_a_plain_model(tiny: Path, tiny_half: Path) -> None:
    """Layers, parameters, bytes and dtypes of a plain model are its architecture's, and what is stored is what runs."""
    for folder, dtype, size in ((tiny, "F32", 4), (tiny_half, "BF16", 2)):
        found = inspect_model(folder / "a")
        count = 2 * BLOCK + OUTSIDE
        assert (found.architecture, found.model_type, found.layers) == ("LlamaForCausalLM", "llama", 2)
        assert (found.vocab_size, found.hidden_size, found.tied_head) == (26, 16, False)
        assert found.stored == found.effective == inspection.Size(count, count * size, {dtype: count})
        assert (found.tokenizer, found.chat_template, found.recipe, found.merged) == (True, False, False, None)


def test_a_merged_model(merged: Path, tiny: Path) -> None:
    """A merged model stores each layer once, runs it as often as the path says, and knows path, scales and sources."""
    found = inspect_model(merged)
    assert found.stored.parameters == 3 * BLOCK + OUTSIDE
    assert found.effective.parameters == 5 * BLOCK + OUTSIDE
    assert found.effective.bytes == 4 * found.effective.parameters
    assert (found.architecture, found.model_type, found.layers) == ("EvoMergedForCausalLM", "llama", 5)
    assert (found.recipe, found.tokenizer, found.tied_head) == (True, True, False)
    assert found.merged is not None
    assert found.merged.path == ["0:0", "1:1", "0:0*0.5 + 0:1*0.5", "1:1"]
    assert found.merged.scales == [1, 0.5, 1, 2]
    assert (found.merged.scale_target, found.merged.embedding_source, found.merged.distinct_layers) == ("stream", 1, 3)
    assert [source["model"] for source in found.merged.sources] == [str(tiny / "a"), str(tiny / "b")]


def test_a_tied_head_is_seen_in_plain_and_merged_models(tmp_path: Path) -> None:
    """A head that is the embedding matrix is counted once, also in a merged model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 26, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    recipe = Recipe.model_validate({"sources": [{"model": str(tmp_path / "tied")}], "flow": {"path": ["0:0", "0:0"]}})
    build_model(recipe, tmp_path / "merged", progress=False)
    for name, layers in (("tied", 2), ("merged", 1)):
        found = inspect_model(tmp_path / name)
        assert found.tied_head
        assert found.stored.parameters == layers * BLOCK + OUTSIDE - 26 * 16
        assert not found.tokenizer


def test_integers_and_templates_and_quantised_weights(tmp_path: Path) -> None:
    """Integers are no parameters but take room; a template inside the tokenizer's settings and the quantisation are seen."""
    tensors = {"w": torch.zeros(3, 5, dtype=torch.float16), "ids": torch.zeros(7, dtype=torch.int64), "on": torch.ones(2) > 0}
    folder = _model(tmp_path / "odd", tensors, quantization_config={"quant_method": "gptq", "bits": 4})
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    found = inspect_model(folder)
    assert found.stored == inspection.Size(15, 30 + 56 + 2, {"BOOL": 2, "F16": 15, "I64": 7})
    assert (found.quantization, found.chat_template, found.tokenizer) == ("gptq", True, False)
    assert "gptq" in found.to_text()


def test_inspect_reads_no_weight(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are enough: nothing asks for a tensor."""
    with monkeypatch.context() as patched:
        patched.setattr("hf_evomerge.checkpoints.source.Source.read", lambda *arguments: pytest.fail("a weight was read"))
        assert inspect_model(merged).layers == 5


COMMIT = "c" * 40


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hub as one repository needs; notes how many bytes of each file went out."""

    folder: Path
    sent: dict[str, int]

    def do_GET(self) -> None:
        """Answer about the repository, or with a file or a part of it."""
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/"):
            files = sorted(self.folder.iterdir())
            tree = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "e"} for file in files]
            whole = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
            self._answer(json.dumps(tree if "/tree/" in self.path else whole).encode())
        elif (file := self.folder / name).is_file():
            data = file.read_bytes()
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                data = data[int(wanted[1]) : int(wanted[2]) + 1]
            self._answer(data, 206 if wanted else 200)
            self.sent[name] = self.sent.get(name, 0) + (len(data) if self.command == "GET" else 0)
        else:
            self._answer(b"", 404)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        for key, value in (("Content-Length", len(data)), ("ETag", '"e"'), ("X-Repo-Commit", COMMIT)):
            self.send_header(key, str(value))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def test_a_repository_is_inspected_without_its_weights(tmp_path: Path) -> None:
    """Of a repository on the Hub only the header of the weights is fetched, and what is said is what its folder would say."""
    folder = _model(tmp_path / "folder", {"layers.0.w": torch.ones(200, 1000), "lm_head.weight": torch.ones(3)})
    handler = type("Handler", (_Hub,), {"folder": folder, "sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    program = "from hf_evomerge.cli import app; app()"
    try:
        words = [sys.executable, "-c", program, "inspect", "some/model", "--json"]
        done = subprocess.run(words, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    finally:
        server.shutdown()
        server.server_close()
    assert json.loads(done.stdout) == {**json.loads(inspect_model(folder).to_json()), "model": f"some/model@{COMMIT}"}
    assert handler.sent["model.safetensors"] < 200_000 < (folder / "model.safetensors").stat().st_size


def _expected(x: Any, y: Any) -> dict[str, Any]:
    """Numpy's word on two vectors."""
    x, y = (np.concatenate([part.double().numpy().ravel() for part in parts]) for parts in (x, y))
    both = (x != 0) & (y != 0)
    return {
        "norm_x": np.linalg.norm(x),
        "norm_y": np.linalg.norm(y),
        "relative": np.linalg.norm(y - x) / np.linalg.norm(x),
        "cosine": x @ y / np.linalg.norm(x) / np.linalg.norm(y),
        "equal_signs": np.mean(np.sign(x[both]) == np.sign(y[both])),
    }


@pytest.mark.parametrize("family", ["tiny", "tiny_half"])
def test_the_numbers_are_numpys(family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor, layer group and the whole, with and without a base, in slices that cut tensors, is as numpy has it."""
    monkeypatch.setattr(inspection, "SLICE", 37)
    folder = request.getfixturevalue(family)
    a, b, base = (load_file(folder / name / "model.safetensors") for name in ("a", "b", "base"))
    found = diff_models(folder / "a", folder / "b", base=folder / "base")
    assert found.notes == []
    assert [row.name for row in found.groups] == ["embed", "blocks.0", "blocks.1", "head"]
    groups = {"embed": ["model.embed_tokens.weight"], "head": ["model.norm.weight", "lm_head.weight"], "all": list(a)}
    groups |= {f"blocks.{i}": [name for name in a if f"layers.{i}." in name] for i in range(2)}
    groups |= {name: [name] for name in a}
    rows = [found.total, *found.groups, *found.tensors]
    assert sorted(row.name for row in rows) == sorted(groups)
    for row in rows:
        names = groups[row.name]
        assert row.elements == sum(a[name].numel() for name in names)
        assert vars(row.weights) == pytest.approx(_expected([a[n] for n in names], [b[n] for n in names]), rel=1e-12)
        tasks = ([which[n].double() - base[n].double() for n in names] for which in (a, b))
        assert vars(row.tasks) == pytest.approx(_expected(*tasks), rel=1e-12)
        assert row.base_norm == pytest.approx(math.sqrt(sum(float(base[n].double().square().sum()) for n in names)), rel=1e-12)
    plain = diff_models(folder / "a", folder / "b")
    assert plain.total.weights == found.total.weights
    assert (plain.total.tasks, plain.base, plain.warning) == (None, None, None)


def test_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    """A difference of 5 from a length of 5 is 1, at a right angle; zeros have no sign; blocks come in the order of numbers."""
    a = {"layers.10.w": torch.tensor([3.0, 4.0, 0.0]), "layers.9.w": torch.zeros(2), "lm_head.weight": torch.ones(1)}
    b = {"layers.10.w": torch.tensor([-4.0, 3.0, 0.0]), "layers.9.w": torch.zeros(2), "lm_head.weight": torch.ones(1)}
    found = diff_models(_model(tmp_path / "a", a), _model(tmp_path / "b", b))
    assert [row.name for row in found.groups] == ["blocks.9", "blocks.10", "head"]
    zero, turned, same = (row.weights for row in found.groups)
    assert vars(turned) == {
        "norm_x": 5,
        "norm_y": 5,
        "relative": pytest.approx(math.sqrt(2)),
        "cosine": pytest.approx(0, abs=1e-16),
        "equal_signs": 0.5,
    }
    assert vars(zero) == {"norm_x": 0, "norm_y": 0, "relative": 0, "cosine": None, "equal_signs": None}
    assert vars(same) == {"norm_x": 1, "norm_y": 1, "relative": 0, "cosine": 1, "equal_signs": 1}


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    """Missing tensors, other shapes, integers and values that are not finite are notes, and count for nothing."""
    shared = {
        "w": torch.ones(2),
        "ids": torch.arange(3),
        "embed.weight": torch.ones(2, 2),
        "bad": torch.tensor([1.0, math.inf]),
    }
    a = _model(tmp_path / "a", {**shared, "mine": torch.ones(1), "new": torch.ones(1)})
    b = _model(tmp_path / "b", {**shared, "embed.weight": torch.ones(3, 2), "yours": torch.ones(1), "new": torch.ones(1)})
    base = _model(tmp_path / "base", {"w": torch.zeros(2), "bad": torch.ones(2)})
    found = diff_models(a, b, base=base)
    assert found.notes == [
        "bad: holds values that are not finite numbers",
        "embed.weight: shape [2, 2] in A, [3, 2] in B",
        "ids: I64 in A, I64 in B; only plain floating-point numbers are compared",
        "mine: not in B",
        "task vectors of new: not in the base",
        "yours: not in A",
    ]
    assert [row.name for row in found.tensors] == ["new", "w"]
    assert (found.total.elements, found.total.base_norm) == (3, 0)
    assert found.total.tasks is not None
    assert found.total.tasks.norm_x == pytest.approx(math.sqrt(2))
    json.loads(found.to_json(tensors=True))
    assert "not compared: mine: not in B" in found.to_text()
    nothing = diff_models(a, _model(tmp_path / "other", {"x": torch.ones(1)}))
    assert nothing.total.elements == 0
    assert "no tensor could be compared" in nothing.to_text()
    json.loads(nothing.to_json())


@pytest.mark.parametrize(("noise", "warned"), [(0.1, False), (None, True)], ids=["fine-tunes", "strangers"])
def test_strangers_are_warned_of(noise: float | None, warned: bool, tmp_path: Path) -> None:
    """Task vectors as large as the weights bring one line of warning; those of fine-tunes bring none."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, generator=generator)
    for name in ("a", "b", "base"):
        other = torch.randn(400, generator=generator)
        _model(tmp_path / name, {"w": base if name == "base" else other if noise is None else base + noise * other})
    found = diff_models(tmp_path / "a", tmp_path / "b", base=tmp_path / "base")
    lines = [line for line in found.to_text().splitlines() if line.startswith("warning: ")]
    assert len(lines) == warned == (found.warning is not None)
    assert all("common ancestor" in line for line in lines)


def test_the_commands(merged: Path, tiny: Path, tmp_path: Path) -> None:
    """Both commands print text for people and JSON for machines, with a bar per group as long as its difference."""
    assert json.loads(_invoke("inspect", merged, "--json"))["merged"]["distinct_layers"] == 3
    text = _invoke("inspect", merged)
    assert "4 hops over 3 distinct layers" in text
    assert "hop   1  1:1                      scale 0.5000" in text
    assert f"{3 * BLOCK + OUTSIDE:,} parameters" in text
    data = json.loads(_invoke("diff", tiny / "a", tiny / "b", "--base", tiny / "base", "--json"))
    assert "tensors" not in data
    assert 0 < data["total"]["weights"]["relative"] < 2
    every = json.loads(_invoke("diff", tiny / "a", tiny / "b", "--json", "--tensors"))
    assert len(every["tensors"]) == 21
    assert "model.layers.1.mlp.up_proj.weight" in _invoke("diff", tiny / "a", tiny / "b", "--tensors")
    for name, change in (("a", [1.0, 1.0]), ("b", [2.0, 1.5])):
        _model(tmp_path / name, {f"layers.{i}.w": torch.full((4,), value) for i, value in enumerate(change)})
    shown = _invoke("diff", tmp_path / "a", tmp_path / "b").splitlines()
    bars = {line.split()[0]: line.count("█") for line in shown if line.startswith("blocks.")}
    assert bars == {"blocks.0": 30, "blocks.1": 15}


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """A wrong folder is one line and status 1, as in the other commands."""
    with pytest.raises(SourceError, match="no such folder"):
        inspect_model(str(tmp_path / "nowhere"))
    for words in (["inspect", "./nowhere"], ["diff", "./nowhere", "./nowhere"]):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 1
        assert result.stderr.splitlines() == [
            "error: ./nowhere: no such folder; give a folder that exists or the id of a repository on the Hub"
        ]
