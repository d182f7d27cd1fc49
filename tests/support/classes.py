"""Tiny random models of classes that are no causal language models."""

import json
from contextlib import contextmanager

import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

# Name: class and fields of its config.
CLASSES = yaml.safe_load("""
bert:
  - BertForSequenceClassification
  -
    <<: &sizes
      hidden_size: 16
      intermediate_size: 20
      num_hidden_layers: 2
      num_attention_heads: 2
    id2label: &names {0: red, 1: green, 2: blue}
    label2id: &labels {red: 0, green: 1, blue: 2}
    vocab_size: 32
    max_position_embeddings: 16
vit:
  - ViTForImageClassification
  - {<<: *sizes, id2label: *names, label2id: *labels, image_size: 8, patch_size: 4}
clip:
  - CLIPModel
  - text_config:
      <<: [*sizes, &words {vocab_size: 32, pad_token_id: 0, bos_token_id: 1, eos_token_id: 2}]
      max_position_embeddings: 16
    vision_config: {<<: *sizes, image_size: 8, patch_size: 4}
    projection_dim: 8
t5:
  - T5ForConditionalGeneration
  - {vocab_size: 32, d_model: 16, d_kv: 4, d_ff: 20, num_layers: 1, num_heads: 2}
bart:
  - BartForConditionalGeneration
  - <<: &seq2seq
      <<: *words
      encoder_layers: 1
      encoder_attention_heads: 2
      encoder_ffn_dim: 20
      decoder_layers: 1
      decoder_attention_heads: 2
      decoder_ffn_dim: 20
      d_model: 16
    max_position_embeddings: 16
whisper:
  - WhisperForConditionalGeneration
  - {<<: *seq2seq, num_mel_bins: 8, max_source_positions: 16, max_target_positions: 16}
""")


def random_weights(make, seed, size=0.1):
    """A model that is made with random weights, norms included."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make().eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return model


def random_class(name, seed, **changes):
    """A random model of one of `CLASSES`, with other fields."""
    kind, fields = CLASSES[name]
    return random_weights(
        lambda: getattr(transformers, kind)(
            transformers.CONFIG_MAPPING[name](**{**fields, **changes})
        ),
        seed,
    )


def save_tensors(folder, tensors, **more):
    """A checkpoint that consists of the tensors and a config."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 11,
        "vocab_size": 7,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def read_json(file):
    """The content of a file."""
    return json.loads(file.read_text(encoding="utf-8"))


def edit_json(file, **fields):
    """Change keys of a file; None takes one out."""
    data = {**read_json(file), **fields}
    file.write_text(
        json.dumps({key: value for key, value in data.items() if value is not None}),
        encoding="utf-8",
    )


def tensors_of(folder):
    """What the file of a model holds."""
    return load_file(folder / "model.safetensors")


@contextmanager
def edited(folder, file="model.safetensors"):
    """The tensors of a file, which a block changes."""
    tensors = load_file(folder / file)
    yield tensors
    save_file(tensors, folder / file, {"format": "pt"})
