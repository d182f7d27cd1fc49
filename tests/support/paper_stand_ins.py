"""Stand-ins for what the paper's example files name: tiny models and data sets under the same
names, on a Hub on loopback."""

import torch
from datasets import Dataset
from pipelines import save_sdxl
from safetensors.torch import save_file
from searches import write_lines
from transformers import CONFIG_MAPPING, MistralConfig, MistralForCausalLM
from vlms import IDS, IMAGE, QWEN, ROPE, picture, processor, random_model
from vlms import WORDS as MARKS
from words import word_tokenizer

MODELS = {
    "augmxnt/shisa-gamma-7b-v1": 0,
    "WizardLM/WizardMath-7B-V1.1": 1,  # rows at the end that the others lack
    "GAIR/Abel-7B-002": 2,
    "mistralai/Mistral-7B-v0.1": 0,
}
DATA = {"SakanaAI/gsm8k-ja-test_250-1319": 1069, "juletxara/mgsm": 4}
EXPERTS = [
    f"yongxianwei/Qwen2-VL-7B-{name}" for name in ("OCR", "VQA", "Geometry", "Chart", "Grounding")
]
SIGHT = {  # class, and type of the language part
    "llava-hf/llava-v1.6-mistral-7b-hf": ("llava_next", "mistral"),
    "llava-hf/llama3-llava-next-8b-hf": ("llava_next", "llama"),
    **dict.fromkeys(["Qwen/Qwen2-VL-7B", *EXPERTS], ("qwen2_vl", "qwen2")),
}
PLAIN = ["meta-llama/Meta-Llama-3-8B", "hkust-nlp/dart-math-llama3-8b-prop2diff"]
PICTURES = "SakanaAI/JA-VLM-Bench-In-the-Wild"
PIPELINES = [
    "stabilityai/stable-diffusion-xl-base-1.0",
    "RunDiffusion/Juggernaut-XL-v9",
    "mhdang/dpo-sdxl-text2image-v1",
    "stabilityai/japanese-stable-diffusion-xl",
]
LIGHTNING = "ByteDance/SDXL-Lightning"
ORGS = sorted(
    {
        name.partition("/")[0]
        for name in (*MODELS, *DATA, *SIGHT, *PLAIN, *PIPELINES, LIGHTNING, PICTURES)
    }
)
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789", "答え", "は", "です", "円", "問題"]


def sizes(words):
    """Fields of a language model with these words."""
    return {
        **IDS,
        "vocab_size": len(words),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }


def save_sight(folder):
    """Save the models that see, whose vocabularies have rows at the end that the plain ones lack,
    and plain Llamas."""
    words = [*WORDS, *(mark for mark in MARKS[4:] if mark.startswith("<"))]
    marks = ("image", "video", "vision_start", "vision_end")
    ids = {f"{mark}_token_id": words.index(f"<{mark}>") for mark in marks}
    for seed, (name, (kind, language)) in enumerate(SIGHT.items()):
        if kind == "qwen2_vl":
            text = {**sizes(words), **ROPE}
            more = {"vision_config": {**QWEN, "embed_dim": 16, "hidden_size": 8}, **ids}
            model = "Qwen2VLForConditionalGeneration"
        else:
            text = {**sizes(words), "model_type": language}
            more = {
                "vision_config": {"model_type": "clip_vision_model", **IMAGE},
                "image_token_index": ids["image_token_id"],
                "image_grid_pinpoints": [[8, 8]],
            }
            model = "LlavaNextForConditionalGeneration"
        save(folder / name, CONFIG_MAPPING[kind](text_config=text, **more), seed, model)
        processor(kind, words).save_pretrained(folder / name)
    for seed, name in enumerate(PLAIN):
        save(folder / name, CONFIG_MAPPING["llama"](**sizes(WORDS)), seed, "LlamaForCausalLM")
        word_tokenizer(WORDS).save_pretrained(folder / name)


def save(folder, config, seed, kind):
    """Save a model with random weights."""
    random_model(config, seed, kind).to(torch.bfloat16).save_pretrained(folder)


def save_models(folder):
    """Save the models: two blocks, random weights."""
    for seed, (name, added) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        words = [*WORDS, *(f"[MORE{number}]" for number in range(added))]
        MistralForCausalLM(MistralConfig(**sizes(words))).to(torch.bfloat16).save_pretrained(
            folder / name
        )
        word_tokenizer(words).save_pretrained(folder / name)


def save_data(folder):
    """Save the data sets, with as many problems as the files ask for."""
    for name, count in DATA.items():
        (folder / name).mkdir(parents=True)
        rows = [{"question": f"問題 {name} {n}", "answer_number": n % 10} for n in range(count)]
        write_lines(folder / name / "ja.jsonl", *rows)
        files = "\n  data_files:\n  - {split: test, path: ja.jsonl}"
        config = "ja" if name.endswith("mgsm") else "default"
        (folder / name / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {config}{files}\n---\n", encoding="utf-8"
        )


def save_pictures(folder):
    """Save questions about pictures: a data set of them, and JSON lines beside PNG files."""
    (folder / PICTURES).mkdir(parents=True)
    picture().save(folder / "picture.png")
    image = {"bytes": (folder / "picture.png").read_bytes()}
    rows = [{"question": f"問題 {n}", "answer": " 答え", "image": image} for n in range(4)]
    Dataset.from_list(rows).to_parquet(folder / PICTURES / "test.parquet")
    shown = {"picture": "picture.png"}
    lines = [{"question": f"問題 {n} {n}", "answer": f" {n % 10}", **shown} for n in range(204)]
    write_lines(folder / "pictures.jsonl", *lines)


def save_pipelines(folder):
    """Save the pipelines that draw, the last of them with other words, an adapter of them, and what
    they are asked for."""
    for seed, name in enumerate(PIPELINES):
        save_sdxl(folder / name, 10 * seed, words="abcdefgh"[: 8 - seed])
    (folder / LIGHTNING).mkdir(parents=True)
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    low_rank = {
        f"{module}.lora_down.weight": torch.randn(2, 8),
        f"{module}.lora_up.weight": torch.randn(8, 2),
    }
    save_file(low_rank, folder / LIGHTNING / "sdxl_lightning_4step_lora.safetensors")
    prompts = [{"prompt": f"a garden {number}"} for number in range(4)]
    write_lines(folder / "prompts.jsonl", *prompts)


def publish(api, folder):
    """Push all of them to a hub that has their authors as organisations."""
    save_models(folder)
    save_sight(folder)
    save_data(folder)
    save_pictures(folder)
    save_pipelines(folder)
    for kind, names in (
        ("model", [*MODELS, *SIGHT, *PLAIN, *PIPELINES, LIGHTNING]),
        ("dataset", [*DATA, PICTURES]),
    ):
        for name in names:
            api.create_repo(name, repo_type=kind, exist_ok=True)
            api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder / name)
