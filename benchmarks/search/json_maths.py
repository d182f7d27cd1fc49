"""Generated skills for a real pretrained model: looking up and answering in JSON, calculating, and
calculating in JSON.

Knows the texts and nothing of models. No two of the drawn sets share a prompt.
"""

from __future__ import annotations

import random
from typing import Literal, get_args

from hf_evomerge.fitness import Example

Skill = Literal["json", "maths", "both"]
SKILLS: tuple[Skill, ...] = get_args(Skill)

SYSTEM = "Be brief."
NAMES = (
    "Tom", "Anna", "Ben", "Lisa", "Sam", "Nina", "Paul", "Mia", "Max", "Eva", "Leo", "Ida", "Jack", "Ruth", "Omar",  # noqa: E501
    "Lily", "Noah", "Zoe", "Adam", "Kate",
)  # fmt: skip
THINGS = (
    "apples", "pears", "books", "coins", "stamps", "pencils", "marbles", "cards", "shells", "buttons", "eggs",  # noqa: E501
    "cookies", "balloons", "stickers", "keys", "lemons",
)  # fmt: skip
MORE = (
    "{n} gets {b} more.",
    "Then {n} buys {b} more.",
    "A friend gives {n} {b} more.",
    "{n} finds {b} more.",
)
FEWER = (
    "{n} loses {b} of them.",
    "Then {n} sells {b} of them.",
    "{n} gives {b} of them away.",
    "{n} drops {b} of them.",
)


def draw(skill: Skill, count: int, seed: int, avoid: frozenset[str] = frozenset()) -> list[Example]:
    """Different problems of a skill.

    Args:
        skill: ``json`` looks a number up and answers in JSON, ``maths`` adds or subtracts and
            answers in a sentence, ``both`` adds or subtracts and answers in JSON.
        count: How many.
        seed: Of the draw.
        avoid: Prompts that must not come up.
    """
    rng = random.Random(f"{skill}/{seed}")
    found = dict[str, str]()
    while len(found) < count:
        question, number = _look_up(rng) if skill == "json" else _calculate(rng)
        prompt = question if skill == "maths" else f"{question} Reply in JSON."
        if prompt not in avoid:
            found[prompt] = (
                f"The answer is {number}." if skill == "maths" else f'{{"answer": {number}}}'
            )
    return [
        Example(prompt, answer, f"{skill}[{i}]", True, SYSTEM)
        for i, (prompt, answer) in enumerate(found.items())
    ]


def _calculate(rng: random.Random) -> tuple[str, int]:
    """A problem of one addition or subtraction, and its answer."""
    name = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    if rng.random() < 0.5:
        first = rng.randint(2, 20)
        second = rng.randint(2, 20)
        event = rng.choice(MORE)
        answer = first + second
    else:
        first = rng.randint(4, 30)
        second = rng.randint(2, first - 1)
        event = rng.choice(FEWER)
        answer = first - second
    return (
        f"{name} has {first} {thing}. {event.format(n=name, b=second)} How many {thing} now?",
        answer,
    )


def _look_up(rng: random.Random) -> tuple[str, int]:
    """Two or three counts of which one is asked for, and that one."""
    count = rng.randint(2, 3)
    names = rng.sample(NAMES, count)
    things = rng.sample(THINGS, count)
    numbers = rng.sample(range(2, 41), count)
    asked = rng.randrange(count)
    facts = " ".join(
        f"{name} has {number} {thing}."
        for name, number, thing in zip(names, numbers, things, strict=True)
    )
    return f"{facts} How many {things[asked]}?", numbers[asked]
