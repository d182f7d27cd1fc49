"""Tiny random vision-language models, with processors, and plain language models that fit their
language part."""

import torch
import transformers
import yaml
from classes import random_weights
from PIL import Image
from words import word_tokenizer

_NAMED = """
<pad> <bos> <eos> <unk> user assistant what is red blue it ? <image> <video> <vision_start> <vision_end>
<fake_token_around_image> <global-img> <end_of_utterance> <start_of_image> <end_of_image> <image_soft_token>
"""  # noqa: E501
WORDS = [*_NAMED.split(), *(f"w{number}" for number in range(42))]


ID = {word: number for number, word in enumerate(WORDS)}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] "
    "}} {% else %}"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% "
    "endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
TABLES = yaml.safe_load("""
ids: &ids {pad_token_id: 0, bos_token_id: 1, eos_token_id: 2}
vision: &vision
  hidden_size: 16
  intermediate_size: 20
  num_hidden_layers: 2
  num_attention_heads: 2
text:
  <<: [*ids, *vision]
  hidden_size: 32
  intermediate_size: 40
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 8
  max_position_embeddings: 128
image: {<<: *vision, image_size: 8, patch_size: 4}
rope: {rope_parameters: {rope_type: default, mrope_section: [1, 1, 2], rope_theta: 10000.0}}
gemma:
  query_pre_attn_scalar: 8
  layer_types: [sliding_attention, full_attention]
  sliding_window: 64
qwen:
  hidden_size: 16
  intermediate_size: 20
  depth: 2
  num_heads: 2
  patch_size: 4
  out_hidden_size: 32
# type of the plain language model, beginning of the names of classes, packages that the processor
# needs, words around the places of a picture, how many places
kinds:
  llava: [mistral, Llava, [], [user, user], 4]
  llava_next: [llama, LlavaNext, [], [user, user], 10]
  qwen2_5_vl: [qwen2, Qwen2_5_VL, &sight [torchvision], &vision_marks [<vision_start>, <vision_end>], 1]
  gemma3: [gemma3_text, Gemma3, [], [<start_of_image>, <end_of_image>], 4]
  smolvlm: [llama, SmolVLM, [torchvision, num2words], [&fake <fake_token_around_image>, *fake], 4]
  qwen2_vl: [qwen2, Qwen2VL, *sight, *vision_marks, 1]
""")  # noqa: E501
IDS = TABLES["ids"]
VISION = TABLES["vision"]
TEXT = {**TABLES["text"], "vocab_size": len(WORDS)}
IMAGE = TABLES["image"]
ROPE = TABLES["rope"]
QWEN = TABLES["qwen"]
KINDS = TABLES["kinds"]
QWENS = ("qwen2_vl", "qwen2_5_vl")
NEEDS = {name: kind[2] for name, kind in KINDS.items()}
ALL_CLASSES = {name: f"{kind[1]}ForConditionalGeneration" for name, kind in KINDS.items()}
# Qwen2-VL's language part is a table's entry of its own.
CLASSES = {name: kind for name, kind in ALL_CLASSES.items() if name != "qwen2_vl"}


def text_config(name, **fields):
    """The config of the plain language model that fits one of `CLASSES`."""
    given = {**TEXT, **(TABLES["gemma"] if name == "gemma3" else {}), **fields}
    if name in QWENS:
        given.pop("head_dim")
    return transformers.CONFIG_MAPPING[KINDS[name][0]](**given)


def vlm_config(name, **fields):
    """The config of one of `CLASSES`; `fields` are its language part's."""
    text = text_config(name, **fields).to_dict()
    vision = IMAGE
    if name in ("llava", "llava_next"):
        vision = {"model_type": "clip_vision_model", **IMAGE}
        more = {"image_token_index": ID["<image>"], "vision_feature_layer": -1}
        if name == "llava_next":
            more["image_grid_pinpoints"] = [[8, 8]]
    elif name in QWENS:
        del text["model_type"]
        text |= ROPE
        if name == "qwen2_vl":
            vision = {**QWEN, "embed_dim": 16, "hidden_size": 32}
        else:
            vision = {**QWEN, "fullatt_block_indexes": [1], "window_size": 8}
        marks = ("image", "video", "vision_start", "vision_end")
        more = {**IDS, **{f"{mark}_token_id": ID[f"<{mark}>"] for mark in marks}}
    elif name == "gemma3":
        marks = {"boi": "start_of_image", "eoi": "end_of_image", "image": "image_soft_token"}
        more = {f"{key}_token_index": ID[f"<{mark}>"] for key, mark in marks.items()}
        more["mm_tokens_per_image"] = 4
    else:
        more = {"scale_factor": 1, "image_token_id": ID["<image>"], "pad_token_id": 0}
    return transformers.CONFIG_MAPPING[name](text_config=text, vision_config=vision, **more)


def random_model(config, seed, kind=None):
    """A model with random weights, norms included."""
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    chosen = getattr(transformers, kind) if kind else causal[type(config)]
    return random_weights(lambda: chosen(config), seed)


def save_vlm(folder, name, seed, **fields):
    """Save a vision-language model with its processor; returns the model."""
    model = random_model(vlm_config(name, **fields), seed, ALL_CLASSES[name])
    model.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return model


def save_plain(folder, name, seed, **fields):
    """Save a plain language model that fits the language part of one; returns the model."""
    model = random_model(text_config(name, **fields), seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def tokenizer(image="<image>", vocabulary=WORDS):
    """Words between spaces; `image` stands for a picture."""
    marks = {
        "image_token": image,
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    marks |= {f"{name}_token": f"<{name}>" for name in ("video", "vision_start", "vision_end")}
    return word_tokenizer(
        vocabulary,
        additional_special_tokens=[word for word in vocabulary if word.startswith("<")][4:],
        extra_special_tokens=marks,
    )


def processor(name, vocabulary=WORDS):
    """The processor of one of `CLASSES`, or of Qwen2-VL, with a chat template."""
    words = tokenizer("<image_soft_token>" if name == "gemma3" else "<image>", vocabulary)
    size = {"height": 8, "width": 8}
    mark = "<image>"
    parts = []
    more = {}
    if name in ("llava", "llava_next"):
        given = {"size": {"shortest_edge": 8}, "crop_size": size}
        if name == "llava":
            images = transformers.CLIPImageProcessor(**given)
        else:
            images = transformers.LlavaNextImageProcessor(**given, image_grid_pinpoints=[[8, 8]])
        more = {"patch_size": 4, "vision_feature_select_strategy": "default"}
        more["num_additional_image_tokens"] = 1
    elif name in QWENS:
        patches = {"patch_size": 4, "merge_size": 2}
        images = transformers.Qwen2VLImageProcessor(**patches, min_pixels=64, max_pixels=256)
        parts = [transformers.Qwen2VLVideoProcessor(**patches)]
        mark = "<vision_start> <image> <vision_end>"
    elif name == "gemma3":
        images = transformers.Gemma3ImageProcessor(size=size, image_seq_length=4)
        more = {"image_seq_length": 4}
        mark = "<start_of_image>"
    else:
        edge = {"longest_edge": 8}
        images = transformers.SmolVLMImageProcessor(
            size=edge, max_image_size=edge, do_image_splitting=False
        )
        parts = [transformers.SmolVLMVideoProcessor()]
        more = {"image_seq_len": 4}
    kind = getattr(transformers, f"{KINDS[name][1]}Processor")
    return kind(images, words, *parts, chat_template=TEMPLATE.replace("IMAGE", mark), **more)


def picture(color="red"):
    """A square of one colour."""
    return Image.new("RGB", (8, 8), color)


def inputs(name, count=1):
    """What the processor of one of `CLASSES` makes of `what is it ?` and a picture, `count` random
    ones, without it."""
    mark = ID["<image_soft_token>" if name == "gemma3" else "<image>"]
    *_, around, places = KINDS[name]
    before, after = (ID[word] for word in around)
    asked = [ID[word] for word in ("what", "is", "it", "?")]
    ids = torch.tensor([[before, *[mark] * places, after, *asked]] * count)
    pictures = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in QWENS:
        pictures = pictures.repeat(1, 2, 1, 1).reshape(count * 4, 96)
        found["image_grid_thw"] = torch.tensor([[1, 2, 2]] * count)
        found["mm_token_type_ids"] = (ids == mark).int()
    if name == "gemma3":
        found["token_type_ids"] = (ids == mark).long()
    if name == "llava_next":
        found["image_sizes"] = torch.tensor([[8, 8]] * count)
        pictures = pictures[:, None].repeat(1, 2, 1, 1, 1)
    return {**found, "pixel_values": pictures[:, None] if name == "smolvlm" else pictures}
