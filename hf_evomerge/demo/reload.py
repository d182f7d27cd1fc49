"""Loads built models as a stranger does, without this package, and answers problems:
`python reload.py PROBLEMS MODEL...`.

Runs on its own: it makes the package impossible to import first. Prints one line of JSON for each
model.
"""

import json
import sys

sys.modules["hf_evomerge"] = None  # type: ignore[assignment]  # from here on, importing it is an ImportError

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, file: str, batch_size: int = 50) -> None:
    """Answer every problem of a JSON-lines file greedily, and count the right answers."""
    with open(file, encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, padding_side="left")
    right = 0
    for begin in range(0, len(problems), batch_size):
        batch = problems[begin : begin + batch_size]
        inputs = tokenizer(
            [problem["prompt"] for problem in batch], return_tensors="pt", padding=True
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=8, do_sample=False, trust_remote_code=False
            )
        answers = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            answer.strip() == problem["answer"]
            for answer, problem in zip(answers, batch, strict=True)
        )
    print(
        json.dumps(
            {
                "class": type(model).__name__,
                "problems": len(problems),
                "accuracy": right / len(problems),
            }
        )
    )


if __name__ == "__main__":
    for model in sys.argv[2:]:
        main(model, sys.argv[1])
