"""Tiny random vision-language models, with processors, and plain language models that fit their
language part."""

import torch
import transformers
from classes import random_weights
from PIL import Image
from transformers import PreTrainedTokenizerFast
from words import word_tokenizer

WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "user",
    "assistant",
    "what",
    "is",
    "red",
    "blue",
    "it",
    "?",
    "<image>",
    "<video>",
    "<vision_start>",
    "<vision_end>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    *(f"w{number}" for number in range(42)),
]
ID = {word: number for number, word in enumerate(WORDS)}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] "
    "}} {% else %}"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% "
    "endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
IMAGE = {**VISION, "image_size": 8, "patch_size": 4}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
GEMMA = {
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 64,
}
QWEN = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}

# Name: model type of the plain language model, fields of both, and the config and class of the
# vision-language model.
PLAIN = {
    "llava": "mistral",
    "llava_next": "llama",
    "qwen2_5_vl": "qwen2",
    "gemma3": "gemma3_text",
    "smolvlm": "llama",
}
PLAIN["qwen2_vl"] = "qwen2"
SIGHT = ["torchvision"]
NEEDS = {
    "qwen2_vl": SIGHT,
    "qwen2_5_vl": SIGHT,
    "smolvlm": [*SIGHT, "num2words"],
}  # what their processors need
CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
ALL_CLASSES = {
    **CLASSES,
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}  # whose language part is a table's entry of its own


def text_config(name, **fields):
    """The config of the plain language model that fits one of `CLASSES`."""
    given = {**TEXT, **(GEMMA if name == "gemma3" else {}), **fields}
    if name in ("qwen2_vl", "qwen2_5_vl"):
        given.pop("head_dim")
    return transformers.CONFIG_MAPPING[PLAIN[name]](**given)


def vlm_config(name, **fields):
    """The config of one of `CLASSES`; `fields` are its language part's."""
    text = text_config(name, **fields).to_dict()
    kind = transformers.CONFIG_MAPPING[name]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name in ("llava", "llava_next"):
        pinned = {"image_grid_pinpoints": [[8, 8]]} if name == "llava_next" else {}
        vision = {"model_type": "clip_vision_model", **IMAGE}
        return kind(
            text_config=text,
            vision_config=vision,
            image_token_index=ID["<image>"],
            vision_feature_layer=-1,
            **pinned,
        )
    if name in ("qwen2_vl", "qwen2_5_vl"):
        text = {
            key: value
            for key, value in text.items()
            if key not in ("model_type", "rope_parameters")
        } | ROPE
        tokens = {
            f"{kind}_token_id": ID[f"<{kind}>"]
            for kind in ("image", "video", "vision_start", "vision_end")
        }
        more = (
            {"embed_dim": 16, "hidden_size": 32}
            if name == "qwen2_vl"
            else {"fullatt_block_indexes": [1], "window_size": 8}
        )
        return kind(text_config=text, vision_config={**QWEN, **more}, **tokens, **ids)
    if name == "gemma3":
        soft = {
            "image_token_index": ID["<image_soft_token>"],
            "boi_token_index": ID["<start_of_image>"],
        }
        return kind(
            text_config=text,
            vision_config=IMAGE,
            mm_tokens_per_image=4,
            eoi_token_index=ID["<end_of_image>"],
            **soft,
        )
    return kind(
        text_config=text,
        vision_config=IMAGE,
        scale_factor=1,
        image_token_id=ID["<image>"],
        pad_token_id=0,
    )


def random_model(config, seed, kind=None):
    """A model with random weights, norms included."""
    chosen = (
        getattr(transformers, kind)
        if kind
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    )
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
    marks = {"image_token": image, "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    marks |= {
        "video_token": "<video>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    marks |= {"vision_start_token": "<vision_start>", "vision_end_token": "<vision_end>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(vocabulary).backend_tokenizer,
        **{f"{word}_token": f"<{word}>" for word in ("pad", "bos", "eos", "unk")},
        additional_special_tokens=[word for word in vocabulary if word.startswith("<")][4:],
        extra_special_tokens=marks,
    )


def processor(name, vocabulary=WORDS):
    """The processor of one of `CLASSES`, or of Qwen2-VL, with a chat template."""
    words = tokenizer("<image_soft_token>" if name == "gemma3" else "<image>", vocabulary)
    size = {"height": 8, "width": 8}
    if name in ("llava", "llava_next"):
        kinds = {"llava": "CLIPImageProcessor", "llava_next": "LlavaNextImageProcessor"}
        extra = {"image_grid_pinpoints": [[8, 8]]} if name == "llava_next" else {}
        images = getattr(transformers, kinds[name])(
            size={"shortest_edge": 8}, crop_size=size, **extra
        )
        kind = getattr(
            transformers, {"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor"}[name]
        )
        template = TEMPLATE.replace("IMAGE", "<image>")
        return kind(
            images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,  # noqa: E501
            chat_template=template,
        )  # fmt: skip
    if name in ("qwen2_vl", "qwen2_5_vl"):
        images = transformers.Qwen2VLImageProcessor(
            patch_size=4, merge_size=2, min_pixels=64, max_pixels=256
        )
        videos = transformers.Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
        template = TEMPLATE.replace("IMAGE", "<vision_start> <image> <vision_end>")
        kind = (
            transformers.Qwen2VLProcessor
            if name == "qwen2_vl"
            else transformers.Qwen2_5_VLProcessor
        )
        return kind(images, words, videos, chat_template=template)
    if name == "gemma3":
        images = transformers.Gemma3ImageProcessor(size=size, image_seq_length=4)
        return transformers.Gemma3Processor(
            images,
            words,
            image_seq_length=4,
            chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
        )
    images = transformers.SmolVLMImageProcessor(
        size={"longest_edge": 8}, max_image_size={"longest_edge": 8}, do_image_splitting=False
    )
    return transformers.SmolVLMProcessor(
        images,
        words,
        transformers.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )


def picture(color="red"):
    """A square of one colour."""
    return Image.new("RGB", (8, 8), color)


def inputs(name, count=1):
    """What the processor of one of `CLASSES` makes of `what is it ?` and a picture, `count` random
    ones, without it."""
    mark = ID["<image_soft_token>" if name == "gemma3" else "<image>"]
    vision = ("<vision_start>", "<vision_end>")
    around = {
        "qwen2_vl": vision,
        "qwen2_5_vl": vision,
        "gemma3": ("<start_of_image>", "<end_of_image>"),
    }
    around["smolvlm"] = ("<fake_token_around_image>",) * 2
    before, after = ([ID[word]] for word in around.get(name, ("user", "user")))
    places = {"qwen2_vl": 1, "qwen2_5_vl": 1, "llava_next": 10}.get(name, 4)
    ids = torch.tensor(
        [[*before, *[mark] * places, *after, *(ID[word] for word in ("what", "is", "it", "?"))]]
        * count
    )
    pictures = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in ("qwen2_vl", "qwen2_5_vl"):
        grid = torch.tensor([[1, 2, 2]] * count)
        patches = pictures.repeat(1, 2, 1, 1).reshape(count * 4, 96)
        return {
            **found,
            "pixel_values": patches,
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == mark).int(),
        }
    if name == "gemma3":
        found["token_type_ids"] = (ids == mark).long()
    if name == "llava_next":
        found["image_sizes"] = torch.tensor([[8, 8]] * count)
        pictures = pictures[:, None].repeat(1, 2, 1, 1, 1)
    return {**found, "pixel_values": pictures[:, None] if name == "smolvlm" else pictures}
