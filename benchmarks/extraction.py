"""Reads every answer of MGSM and GSM8K as a response would write it, and counts how often it is
taken for the right one.

MGSM's answers are written as each language writes numbers, with and without groups of thousands,
with a currency, in a sentence and after a calculation; of GSM8K the worked solutions are read as
they are.

    python benchmarks/extraction.py DIR    # with mgsm/mgsm_LANGUAGE.tsv and gsm8k_test.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

from hf_evomerge.fitness import DataSpec, Gsm8kSpec, MgsmSpec, load_examples
from hf_evomerge.fitness.tasks.generation import is_right
from hf_evomerge.fitness.text.numbers import parse_number

SENTENCES = {
    "de": ("Die Antwort ist {}.", "Insgesamt sind das {} €.", "7 + 5 - 12 + {0} = {0}"),
    "en": ("The answer is {}.", "In total she pays ${}.", "7 + 5 - 12 + {0} = {0}"),
    "es": ("La respuesta es {}.", "En total son {} €.", "7 + 5 - 12 + {0} = {0}"),
    "fr": ("La réponse est {}.", "Cela fait {} € en tout.", "7 + 5 - 12 + {0} = {0}"),
    "ja": ("答えは{}です。", "合計で{}円になります。", "7 + 5 - 12 + {0} = {0}"),
    "zh": ("答案是{}。", "一共是{}元。", "7 + 5 - 12 + {0} = {0}"),
}
GROUPS = {"de": (".",), "es": (".", "\N{NO-BREAK SPACE}"), "fr": ("\N{NARROW NO-BREAK SPACE}", " ")}


def main() -> None:
    """Print a line per task."""
    folder = Path(sys.argv[1])
    print(f"{'task':10} {'responses':>9} {'read right':>10} {'as the paper reads':>18}")
    for code, sentences in SENTENCES.items():
        spec = MgsmSpec(language=code)
        data = spec.complete({"data_files": str(folder / "mgsm" / f"mgsm_{code}.tsv")})
        responses = []
        for example in load_examples(DataSpec(**data)):
            number = int(parse_number(example.answer) or 0)
            plain = {
                str(number),
                *(f"{number:,}".replace(",", group) for group in GROUPS.get(code, (",",))),
            }
            responses += [
                (sentence.format(text), example.answer)
                for text in sorted(plain)
                for sentence in sentences
            ]
        show(f"mgsm {code}", responses, spec)
    solutions = load_examples(
        DataSpec(jsonl=str(folder / "gsm8k_test.jsonl"), prompt_field="answer", answer_after="####")
    )
    show("gsm8k", [(example.prompt, example.answer) for example in solutions], Gsm8kSpec())


def show(name: str, responses: list[tuple[str, str]], spec: MgsmSpec | Gsm8kSpec) -> None:
    """One line of the table."""
    paper = spec.model_copy(update={"compat": "paper"})
    right, theirs = (
        sum(is_right(text, answer, each) for text, answer in responses) for each in (spec, paper)
    )
    print(
        f"{name:10} {len(responses):9} {right / len(responses):10.2%} "
        f"{theirs / len(responses):18.2%}"
    )
    for text, answer in [pair for pair in responses if not is_right(*pair, spec)][:3]:
        print(f"  {answer!r} is not read in {text[-60:]!r}")


if __name__ == "__main__":
    main()
