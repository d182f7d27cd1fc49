"""transformers' own ``push_to_hub`` on a merged model: strangers load what it leaves on the Hub."""

import json

from transformers import AutoModelForCausalLM, AutoTokenizer

LOAD = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("local/direct", trust_remote_code=True)
plain = AutoTokenizer.from_pretrained("local/direct", trust_remote_code=True)
tokens = model.generate(**plain("w1 w2", return_tensors="pt", return_token_type_ids=False), max_new_tokens=3, do_sample=False)
from huggingface_hub import ModelCard
tags = ModelCard.load("local/direct").data.tags
print(json.dumps([type(model).__module__.split(".")[0], len(model.config.path), tokens.shape[1] > 2, tags]))
"""


def test_push_to_hub_takes_the_code_along(hybrid_search, lfs_api, program):
    """`model.push_to_hub` uploads the files of the class, and a card with its tags; it loads where this package is not."""
    AutoModelForCausalLM.from_pretrained(hybrid_search / "model").push_to_hub("local/direct")
    AutoTokenizer.from_pretrained(hybrid_search / "model").push_to_hub("local/direct")
    module, hops, generated, tags = json.loads(program(LOAD).splitlines()[-1])
    assert module == "transformers_modules"
    assert hops == len(json.loads((hybrid_search / "model" / "config.json").read_text())["path"])
    assert generated
    assert {"merge", "evomerge"} <= set(tags)
