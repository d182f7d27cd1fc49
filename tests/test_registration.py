"""The merged model is registered with the Auto classes in whatever order things are imported, and
importing stays light."""

import subprocess
import sys

import pytest
from recipes import path_of
from slowly import slow_beyond

from hf_evomerge.building.build import build_model


@pytest.fixture(scope="module")
def merged(tiny, tmp_path_factory):
    """A built model with a path."""
    recipe = path_of(tiny / "a", hops=["0:0", "0:0-1"])
    return build_model(recipe, tmp_path_factory.mktemp("registered") / "model")


def _run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ORDERS = {
    "transformers first": "from transformers import AutoModelForCausalLM as Auto\nimport hf_evomerge",  # noqa: E501
    "configuration alone": "import hf_evomerge\nfrom transformers import AutoConfig as Auto",
    "configuration alone, first": "from transformers import AutoConfig as Auto\nimport hf_evomerge",
    "package first": (  # something may have looked for the module without importing it
        "import hf_evomerge, importlib.util\n"
        "importlib.util.find_spec('transformers.models.auto.modeling_auto')\n"
        "from transformers import AutoModelForCausalLM as Auto"
    ),
}


@pytest.mark.parametrize("order", slow_beyond(["package first"], ORDERS))
def test_registered_in_any_order(order, merged):
    """A merged model, or its configuration, loads by the Auto classes without trust_remote_code,
    whatever is imported first."""
    program = (
        f"import sys\n{ORDERS[order]}\nprint(type(Auto.from_pretrained(sys.argv[1])).__module__)"
    )
    assert _run(program, str(merged))[-1].startswith("hf_evomerge.modeling.")


def test_what_stands_for_the_configuration():
    """Until one is made, the model type is known and its classes are not imported; transformers'
    own loader stays."""
    program = """if True:
        import sys, hf_evomerge
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
        assert "evo_merged" in CONFIG_MAPPING and "hf_evomerge.modeling" not in sys.modules
        assert sys.modules[AutoConfig.__module__].__spec__.loader.get_source(AutoConfig.__module__)
        config = AutoConfig.for_model("evo_merged")
        assert type(config) is CONFIG_MAPPING["evo_merged"] is hf_evomerge.EvoMergedConfig
        assert AutoModelForCausalLM._model_mapping[type(config)] is hf_evomerge.EvoMergedForCausalLM
    """
    assert _run(program) == []
