"""Rows of a comparison whose models solve given shares of 200 examples."""

from dataclasses import replace

import numpy as np

from hf_evomerge import Scores, SourceRef
from hf_evomerge.search.phases.baselines import alone, average, lora, noise
from hf_evomerge.search.results.table import Against, Row

N = 200


NAMES = {
    "base": "base (tiny)",
    "average": "uniform average",
    "prompt": "maths, 16 examples in the prompt",
    "noise": "noise",
    "lora": "LoRA from maths, rate 0.0003 (best of 4)",
    "together": "LoRA beside the merge",
    "ps": "evolved PS",
}


def row_of(stage, model, right, **more):
    """A model that solves the first share of the examples."""
    correct = np.arange(N) < right * N
    lost = "the validation split chose the other one"
    against = {
        "average": average.against("the plain average"),
        "alone": alone.against(model.removesuffix(" alone"), "ps"),
        "noise": noise.AGAINST,
        "prompt": Against(
            "the prompt", "change it", better="beats the prompt", level="the prompt does as well: "
        ),
        "lora": lora.against(
            model.rpartition(" (")[0], SourceRef(model="tiny", adapter="baselines/lora")
        ),
        "together": Against("the LoRA beside the merge", "", keep="take the merge with LoRA"),
        "ps": Against(model, lost),
        "dfs": Against(model, lost),
    }.get(stage)
    scores = Scores(np.where(correct, -0.5, -2.0), correct=correct)
    return Row(stage, model, scores, against=against, **more)


def rows_with(winner, **shares):
    """Rows of a search whose winner has this share, with a plain average."""
    return rows_of(**{"average": 0.3, "ps": winner, **shares})


def rows_of(retained=None, **shares):
    """Rows of a search with these shares of right answers, by stage or by source."""
    rows = []
    for name, share in {"base": 0.05, "maths": 0.2, "japanese": 0.1, **shares}.items():
        lone = name.startswith("alone_")
        stage = "alone" if lone else name if name in NAMES else "source"
        model = f"{name.removeprefix('alone_')} alone" if lone else NAMES.get(name, name)
        row = row_of(stage, model, share, winner=name == "ps")
        if lone and any(each.stage == "alone" for each in rows):
            row = replace(row, against=None)  # the best comes first
        if retained is not None:
            kept = row_of("source", "", retained.get(name, 0.4)).scores
            row = replace(row, retained={"sums": kept})
        rows.append(row)
    return rows
