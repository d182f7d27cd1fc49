"""Executes the notebooks: the quickstart as it stands, for the site, and that for Colab's GPU on
stand-ins of its models.

python website/notebooks.py     # writes build/notebooks/, which website/hooks.py shows
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import torch
from huggingface_hub import HfApi, constants
from nbclient import NotebookClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "support"))

from local_hub import LocalHub  # noqa: E402

OUT = ROOT / "build" / "notebooks"
STAND_INS = (
    "suayptalha/Qwen3-0.6B-Math-Expert",
    "suayptalha/Qwen3-0.6B-Code-Expert",
    "Qwen/Qwen3-0.6B",
)
DATA = "openai/gsm8k"
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "passive",
    "CUDA_VISIBLE_DEVICES": "",
}


def execute(notebook: Any, folder: str, environment: Mapping[str, str] | None = None) -> None:
    """Run the cells of a notebook, one after the other, in a process of its own; an error in a cell
    is raised."""
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
    client.execute(env={**os.environ, **QUIET, **(environment or {})})


def stand_ins(folder: Path) -> None:
    """Save tiny models and a data set under the names that the notebook for Colab has."""
    words = {
        word: number
        for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
    }
    config = Qwen3Config(
        vocab_size=len(words),
        **sizes,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=2,
    )
    for seed, name in enumerate(STAND_INS):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / name)
        (folder / name / "README.md").write_text(
            "---\nlicense: apache-2.0\n---\n", encoding="utf-8"
        )
    (folder / DATA).mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {"question": f"{split} {n} plus 1 ?", "answer": f"{n} and 1 \n#### {n % 10}"}
            for n in range(300)
        ]
        (folder / DATA / f"{split}.jsonl").write_text(
            "\n".join(json.dumps(row) for row in rows), encoding="utf-8"
        )
    files = "".join(f"\n  - {{split: {split}, path: {split}.jsonl}}" for split in ("train", "test"))
    (folder / DATA / "README.md").write_text(
        f"---\nconfigs:\n- config_name: main\n  data_files:{files}\n---\n", encoding="utf-8"
    )


def dry_run(notebook: Any, folder: Path) -> None:
    """Run the notebook for Colab against a Hub on loopback, up to the published model; nothing is
    installed.

    Raises:
        LookupError: A cell did not do what it is there for.
    """
    stand_ins(folder / "stand-ins")
    for cell in notebook.cells:
        cell.source = "\n".join(
            line for line in cell.source.splitlines() if not line.startswith("%pip")
        )
        cell.source = cell.source.replace('PUBLISH_AS = ""', 'PUBLISH_AS = "local/merge"')
    owners = sorted({name.partition("/")[0] for name in (*STAND_INS, DATA)})
    with LocalHub(folder / "hub", orgs=owners) as hub:
        constants.HF_HUB_DISABLE_XET = True  # the hub takes large files by LFS
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for name in (*STAND_INS, DATA):
            kind = "dataset" if name == DATA else "model"
            api.create_repo(name, repo_type=kind)
            api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder / "stand-ins" / name)
        execute(notebook, str(folder), hub.environment(home=folder / "client"))
        if not {"recipe.yaml", "model.safetensors"} <= {*api.list_repo_files("local/merge")}:
            raise LookupError("the notebook did not publish its merge")
        api.space_info("local/merge")
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    if "evolved PS" not in said:
        raise LookupError(f"the notebook shows no result: {said[-2000:]}")


def main() -> None:
    """Execute both; keep what the quickstart prints and shows."""
    OUT.mkdir(parents=True, exist_ok=True)
    notebooks = {
        name: nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for name in ("quickstart", "colab")
    }
    with tempfile.TemporaryDirectory() as folder:
        dry_run(notebooks["colab"], Path(folder))
        print("the notebook for Colab ran on stand-ins", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebooks["quickstart"], folder)
    for cell in notebooks["quickstart"].cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebooks["quickstart"], OUT / "quickstart.ipynb")
    print(f"wrote {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
