"""Tiny random diffusion pipelines: SDXL, whose U-Net has attention in some blocks, a DiT, and a
U-Net that draws classes."""

import json
import string
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers", reason='needs diffusers; pip install "hf-evomerge[diffusion]"')

import diffusers
from classes import random_weights
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

SIZE = 8  # pixels of the latents of all of them
_END = "<|endoftext|>"
_START = "<|startoftext|>"
_random = partial(random_weights, size=0.05)


def vae(seed, channels=4):
    """A picture has twice the size of its latents."""
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return _random(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=[4, 4],
            latent_channels=channels,
            norm_num_groups=2,
            layers_per_block=1,
            **blocks,
        ),
        seed,
    )


def unet(seed):
    """A U-Net of SDXL's kind."""
    return _random(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=SIZE, block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2, cross_attention_dim=16,  # noqa: E501
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],  # noqa: E501
            attention_head_dim=[2, 2], use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=4 * 6 + 8,
        ),
        seed,
    )  # fmt: skip


def tokenizer(folder, words=string.ascii_lowercase):
    """Letters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*words, *(f"{letter}</w>" for letter in words), _START, _END]
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


def save_sdxl(folder, seed, words=string.ascii_lowercase):
    """Save a pipeline of SDXL's kind; returns it."""
    words_of = tokenizer(folder.with_name(f"{folder.name}-words"), words)
    text = _text(words_of, 8)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae(seed),
        _random(lambda: CLIPTextModel(text), seed + 1),
        _random(lambda: CLIPTextModelWithProjection(text), seed + 2),
        words_of,
        words_of,
        unet(seed + 3),
        diffusers.EulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def save_dit(folder, seed):
    """Save a class-conditional diffusion transformer of two blocks; returns the pipeline."""
    transformer = _random(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2, sample_size=SIZE,  # noqa: E501
            patch_size=4, num_embeds_ada_norm=1000, norm_num_groups=2,
        ),
        seed,
    )  # fmt: skip
    pipeline = diffusers.DiTPipeline(transformer, vae(seed + 1), diffusers.DDIMScheduler())
    pipeline.save_pretrained(folder)
    return pipeline


def save_sd(folder, seed):
    """Save a pipeline of Stable Diffusion's kind, whose text encoder has the U-Net's width."""
    words = tokenizer(folder.with_name(f"{folder.name}-words"))
    pipeline = diffusers.StableDiffusionPipeline(
        vae(seed),
        _random(lambda: CLIPTextModel(_text(words, 16)), seed + 1),
        words,
        _random(
            lambda: diffusers.UNet2DConditionModel(
                sample_size=SIZE, block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2, cross_attention_dim=16,  # noqa: E501
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],  # noqa: E501
                attention_head_dim=2,
            ),
            seed + 3,
        ),
        diffusers.EulerDiscreteScheduler(steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def save_flux(folder, seed):
    """Save a pipeline of Flux's kind: one double block, one single block, and two text encoders."""
    words = tokenizer(folder.with_name(f"{folder.name}-words"))
    transformer = _random(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,  # noqa: E501
            joint_attention_dim=32, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8],
        ),
        seed,
    )  # fmt: skip
    decoder = vae(seed + 1, 1)
    decoder.register_to_config(shift_factor=0.0)
    t5 = T5Config(
        vocab_size=len(words), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    pipeline = diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(),
        decoder,
        _random(lambda: CLIPTextModel(_text(words, 8)), seed + 2),
        words,
        _random(lambda: T5EncoderModel(t5), seed + 3),
        words,
        transformer,
    )
    pipeline.save_pretrained(folder)
    return pipeline


def _text(words, width):
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,  # noqa: E501
        max_position_embeddings=16, projection_dim=8, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,  # noqa: E501
    )  # fmt: skip


def loaded(folder):
    """What diffusers makes of a folder."""
    return diffusers.DiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    )


def draw(pipeline, prompt="a cat", seed=0):
    """A picture in two steps, as numbers."""
    pipeline.set_progress_bar_config(disable=True)
    chosen = (
        {"class_labels": [1]} if isinstance(pipeline, diffusers.DiTPipeline) else {"prompt": prompt}
    )
    generator = torch.Generator().manual_seed(seed)
    return torch.as_tensor(
        pipeline(**chosen, num_inference_steps=2, generator=generator, output_type="np").images
    )
