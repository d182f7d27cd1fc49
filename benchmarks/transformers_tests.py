"""Runs transformers' own tests of models on the merged model, and prints how many pass.

    pip install parameterized accelerate
    python benchmarks/transformers_tests.py

The tests are those of the installed version's source distribution, which pip downloads. It holds
the common tests of models (``tests/test_modeling_common.py``) but neither those of generation nor
those of export: these run too where ``--checkout`` names a git checkout of transformers at the
installed version. Nothing of transformers' tests is kept: they are unpacked into a temporary
folder, beside the testers below.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

# One class of tests per case: architecture, path and scales. Every path has two hops, because
# transformers asks that a tested
# model has at most two layers. Without a path it is transformers' own model, to compare with.
CASES: dict[str, tuple[str, list[str], list[float]]] = {
    "Llama": ("llama", [], []),
    "Identity": ("llama", ["0:0", "0:1"], [1.0, 1.0]),
    "Repeat": ("llama", ["0:0", "0:0"], [1.5, -0.5]),
    "Sum": ("llama", ["0:0", "0:0*0.5 + 0:1*0.25"], [1.0, 0.8]),
    "Experts": ("qwen3_moe", ["0:1", "0:0"], [1.0, 0.8]),
    "Llava": ("llava", [], []),
    "Sight": ("llava", ["0:1", "0:1"], [1.0, 0.8]),
}

# Tests that are left out, and why: "name" in every case, "Case.name" in one.
_EXPERTS = (
    "whether there are experts is asked of the class, but here an instance's source architecture "
    "decides; see Experts"
)
_OLD_NAME = (
    "the cache's old name is taken without a warning, because older transformers know no other"
)
_NORM = "the last norm of the vision tower is no part of LLaVA, so it gets no gradient"
SKIPPED: dict[str, str] = {
    **dict.fromkeys(
        (
            f"{case}.test_bc_cache_name_forward"
            for case in ("Identity", "Repeat", "Sum", "Experts", "Sight")
        ),
        _OLD_NAME,
    ),
    **{
        f"{case}.test_eager_matches_batched_and_grouped_inference_{dtype}": _EXPERTS
        for case in ("Identity", "Repeat", "Sum", "Sight")
        for dtype in ("0_fp16", "1_fp32", "2_bf16")
    },
    **{
        f"{case}.test_training_gradient_checkpointing{how}": _NORM
        for case in ("Llava", "Sight")
        for how in ("", "_use_reentrant_false", "_use_reentrant_true")
    },
    "Sum.test_attention_outputs": "there is one attention per cache slot, so three for two hops",
}

# Modules that transformers' tests import and the source distribution lacks, and what stands for
# them: no tests of that kind.
MISSING = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}

TESTERS = """
import unittest

from hf_evomerge.modeling import EvoMergedConfig, EvoMergedForCausalLM, EvoMergedForImageTextToText, EvoMergedModel
from transformers import CONFIG_MAPPING, LlamaForCausalLM, LlamaModel, LlavaForConditionalGeneration, LlavaModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
)

from .generation.test_utils import GenerationTesterMixin
from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

# by these names the tests know which classes take labels
MODEL_MAPPING_NAMES["evo_merged"] = "EvoMergedModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["evo_merged"] = "EvoMergedForCausalLM"
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["evo_merged"] = "EvoMergedForImageTextToText"
PICTURE = 4  # tokens


class ModelTester:
    batch_size, seq_length, vocab_size, is_training = 13, 7, 99, True
    hidden_size, num_attention_heads, num_hidden_layers = 32, 4, 2

    def __init__(self, architecture, path, scales):
        self.architecture, self.path, self.scales = architecture, path, scales
        self.seq_length += PICTURE if architecture == "llava" else 0

    def get_config(self):
        if self.architecture == "llava":
            return self.get_sight()
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
        text_config = CONFIG_MAPPING[self.architecture](
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, intermediate_size=37, num_attention_heads=4,
            num_key_value_heads=2, num_hidden_layers=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, **(experts if "moe" in self.architecture else {}),
        )
        return EvoMergedConfig.from_sources([text_config], self.path, self.scales) if self.path else text_config

    def get_sight(self):
        sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
        words = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 512}
        config = CONFIG_MAPPING["llava"](
            text_config={"model_type": "llama", "vocab_size": self.vocab_size, "num_key_value_heads": 2, **sizes, **words},
            vision_config={"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **sizes},
            image_token_id=0, image_seq_length=PICTURE, vision_feature_layer=-1,  # a token that small vocabularies have too
        )
        return EvoMergedConfig.from_sources([config], self.path, self.scales) if self.path else config

    def prepare_config_and_inputs_for_common(self):
        if self.architecture == "llava":
            config = self.get_config()
            ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(min=4)
            ids[:, :PICTURE] = config.image_token_id
            pictures = floats_tensor([self.batch_size, 3, 8, 8])
            return config, {"input_ids": ids, "pixel_values": pictures, "attention_mask": ids.ne(1).long()}
        shape = [self.batch_size, self.seq_length]
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": random_attention_mask(shape)}
        return self.get_config(), inputs


class Common(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (EvoMergedModel, EvoMergedForCausalLM)
    case = ()

    def setUp(self):
        self.model_tester = ModelTester(*self.case)

    def test_config(self):
        config = self.model_tester.get_config()
        fields = {"path": config.path, "scales": config.scales} if self.case[1] else {}
        sees = self.case[0] == "llava"
        asked = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
        if not self.case[1]:
            fields = {"image_seq_length": PICTURE} if sees else {"hidden_size": 32}
        asked = list(fields) if sees else asked
        ConfigTester(self, type(config), has_text_modality=not sees, common_properties=asked, **fields).run_common_tests()


for name, (architecture, path, scales) in CASES.items():
    fields = {"case": (architecture, path, scales), "__module__": __name__}
    if architecture == "llava":
        plain = LlavaModel, LlavaForConditionalGeneration
        fields["all_model_classes"] = (EvoMergedModel, EvoMergedForImageTextToText) if path else plain
    elif not path:
        fields["all_model_classes"] = (LlamaModel, LlamaForCausalLM)
    tester = type(name, (Common, unittest.TestCase), fields)
    for test, reason in SKIPPED.items():
        case, _, test = test.rpartition(".")
        if case in ("", name):
            setattr(tester, test, unittest.skip(reason)(lambda self: None))
    globals()[name] = tester
del tester
"""  # noqa: E501


def main() -> None:
    """Download, run, and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkout",
        type=Path,
        help="git checkout of transformers at the installed version, for all its tests",
    )
    parser.add_argument(
        "--only", default="", help="run the tests that match this expression of pytest -k"
    )
    arguments = parser.parse_args()
    if find_spec("parameterized") is None:
        sys.exit("transformers' tests need parameterized: pip install parameterized")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = arguments.checkout or download(folder)
        left_out = write_tests(source / "tests", folder / "run" / "tests")
        report = run(folder / "run", arguments.only)
    for name in left_out:
        print(f"not in the source distribution, not run: tests/{name}")
    sys.exit(print_counts(report))


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers, unpacked."""
    wanted = f"transformers=={version('transformers')}"
    options = [
        "--quiet",
        "--no-binary",
        "transformers",
        "--no-deps",
        "--no-build-isolation",
        "--dest",
        str(folder),
    ]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=True)
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("transformers-*") if path.is_dir())


def write_tests(source: Path, target: Path) -> list[str]:
    """Lay out the package of tests; returns the modules that the source lacks, in whose place
    something empty is put."""
    shutil.copytree(source, target)
    lacking = [name for name in MISSING if not (target / name).exists()]
    for name in lacking:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(MISSING[name], encoding="utf-8")
    for parent in (target, *(target / Path(name).parent for name in MISSING)):
        (parent / "__init__.py").touch()
    settings = f"CASES = {CASES!r}\nSKIPPED = {SKIPPED!r}\n"
    (target / "test_evo_merged.py").write_text(settings + TESTERS, encoding="utf-8")
    return lacking


def run(folder: Path, only: str) -> ElementTree.Element:
    """Run the testers with pytest; returns its report as XML."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    options = [
        "-q",
        "--tb=short",
        "--disable-warnings",
        "-p",
        "no:cacheprovider",
        "--junitxml=report.xml",
    ]
    options += ["-k", only] if only else []
    # offline: whatever these tests fetch is not about the merged model
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/test_evo_merged.py"],
        cwd=folder,
        env=environment,
    )
    return ElementTree.parse(folder / "report.xml").getroot()


def print_counts(report: ElementTree.Element) -> int:
    """Print passed, failed and skipped tests of every case as a Markdown table, and what failed;
    returns the exit status."""
    order = (
        "skipped",
        "passed",
        "failed",
    )  # a test with subtests is what the last of its kinds here says
    kinds: dict[tuple[str, str], str] = {}
    for case in report.iter("testcase"):
        tags = {child.tag for child in case}
        kind = (
            "failed"
            if tags & {"failure", "error"}
            else "skipped"
            if "skipped" in tags
            else "passed"
        )
        key = case.get("classname", "").rpartition(".")[2], case.get("name", "")
        kinds[key] = max(kinds.get(key, kind), kind, key=order.index)
    counts = Counter((name, kind) for (name, _), kind in kinds.items())
    print("| case | passed | failed | skipped |\n| --- | --- | --- | --- |")
    for name in CASES:
        print(
            f"| {name} | {counts[name, 'passed']} | {counts[name, 'failed']} | "
            f"{counts[name, 'skipped']} |"
        )
    for (name, test), kind in kinds.items():
        if kind == "failed":
            print(f"failed: {name}.{test}")
    for reason in dict.fromkeys(SKIPPED.values()):
        print(
            f"left out, {reason}: "
            f"{', '.join(test for test, why in SKIPPED.items() if why == reason)}"
        )
    return int("failed" in kinds.values())


if __name__ == "__main__":
    main()
