"""Stand-ins for what the paper's example files name: tiny models and data sets under the same names, on a Hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

MODELS = {
    "augmxnt/shisa-gamma-7b-v1": 0,
    "WizardLM/WizardMath-7B-V1.1": 1,  # rows at the end that the others lack
    "GAIR/Abel-7B-002": 2,
    "mistralai/Mistral-7B-v0.1": 0,
}
DATA = {"SakanaAI/gsm8k-ja-test_250-1319": 1069, "juletxara/mgsm": 4}
ORGS = sorted({name.partition("/")[0] for name in (*MODELS, *DATA)})
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789", "答え", "は", "です", "円", "問題"]


def save_models(folder: Path) -> None:
    """Save the models: two blocks, random weights."""
    for seed, (name, added) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        words = [*WORDS, *(f"[MORE{number}]" for number in range(added))]
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
        config = MistralConfig(
            vocab_size=len(words), **sizes, num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
        MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
        ).save_pretrained(folder / name)


def save_data(folder: Path) -> None:
    """Save the data sets, with as many problems as the files ask for."""
    for name, count in DATA.items():
        (folder / name).mkdir(parents=True)
        rows = [{"question": f"問題 {name} {n}", "answer_number": n % 10} for n in range(count)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
        (folder / name / "ja.jsonl").write_text(text, encoding="utf-8")
        files = "\n  data_files:\n  - {split: test, path: ja.jsonl}"
        config = "ja" if name.endswith("mgsm") else "default"
        (folder / name / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}{files}\n---\n", encoding="utf-8")


def publish(api: HfApi, folder: Path) -> None:
    """Push all of them to a hub that has their authors as organisations."""
    save_models(folder)
    save_data(folder)
    for kind, names in (("model", MODELS), ("dataset", DATA)):
        for name in names:
            api.create_repo(name, repo_type=kind, exist_ok=True)
            api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder / name)
