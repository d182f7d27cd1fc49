"""Feelings, and a code: one skill finds the traveler who was pleased (or upset), the other names
cities by learned code words.

The task does both: it says who was pleased (or upset), and where, in code. Written by somebody who
had not seen the search, to test its defaults.
"""

# ruff: noqa: SIM905 (lists of words are easier to read as text)

from __future__ import annotations

import random

SKILLS = ("feeling", "code")
TASK = "both"
_CODES = dict(
    pair.split(" = ")
    for pair in (
        "Paris = anchor | London = velvet | Rome = hammer | Berlin = pepper | Madrid = "
        "lantern | Vienna = copper | "
        "Dublin = spider | Prague = honey | Athens = button | Oslo = tiger | Warsaw = lemon "
        "| Lisbon = thunder | "
        "Moscow = basket | Cairo = feather | Tokyo = walnut | Delhi = mirror | Boston = "
        "saddle | Chicago = ginger | "
        "Denver = pirate | Dallas = needle | Miami = granite | Seattle = bishop | Toronto = "
        "candle | Montreal = falcon | "
        "Sydney = butter | Lima = rocket | Havana = blanket | Nairobi = magnet | Istanbul = "
        "turtle | Geneva = carpet | "
        "Milan = dragon | Munich = ladder"
    ).split(" | ")
)
_PEOPLE = (
    "Anna | Ben | Carol | David | Emma | Frank | Grace | Henry | Irene | Jack | Kate | Leo | "
    "Mary | Nora | Oscar | Paul | "
    "Rachel | Sam | Tom | Victor | Wendy | Alice | Brian | Clara | Daniel | Ellen | George | "
    "Helen | Ivan | Julia | Kevin | "
    "Laura | Mark | Nick | Olivia | Peter | Rose | Simon | Susan | Walter"
).split(" | ")
_TOLD = {
    "pleased": (
        "P loved every day in C | P had a wonderful week in C | P smiled all the way home from C | "
        "P cannot wait to go back to C | C was a dream come true for P | In C, P danced with joy | "
        "P told everyone how beautiful C was | P was delighted with C | P wants to stay in C "
        "forever | "
        "P found C charming | In C, P enjoyed a perfect meal | P won a prize in C | P met "
        "kind people in C | "
        "P fell in love with C | P called C the best trip ever | P had great fun in C | P "
        "laughed a lot in C | "
        "The lovely parks of C won P over | P was thrilled to see C | For P, C was pure "
        "happiness | "
        "P thanked the friendly guide in C | P still praises the music in C"
    ).split(" | "),
    "upset": (
        "P hated every hour in C | P had a terrible week in C | P cried all the way home from C | "
        "P will never return to C | C was a nightmare for P | In C, P was robbed | P told "
        "everyone how ugly C was | "
        "P was disappointed with C | P wanted to leave C at once | P found C boring | In C, "
        "P got sick from bad food | "
        "P lost a wallet in C | P met rude people in C | P grew tired of C | P called C the "
        "worst trip ever | "
        "P felt lonely in C | P complained a lot in C | The dirty streets of C annoyed P | P "
        "was afraid in C | "
        "For P, C was pure misery | P shouted at the lazy waiter in C | P is still angry "
        "about the hotel in C"
    ).split(" | "),
    "neither": (
        "P took a train to C | P spent Monday in C | P changed planes in C | C was the first "
        "stop for P | "
        "In C, P bought a map | P stayed two nights in C | P has an office in C | P flew "
        "from C on Friday | "
        "P drove to C in March | A meeting brought P to C | P visited C with a cousin | P "
        "mailed a letter from C"
    ).split(" | "),
}
_OTHERS = {"pleased": ("upset", "upset", "neither"), "upset": ("pleased", "pleased", "neither")}


def problem(skill: str, rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer: ``feeling``, ``code``, or ``both``."""
    people = rng.sample(_PEOPLE, 3)
    cities = rng.sample(sorted(_CODES), 3)
    asked = rng.choice(("pleased", "upset"))
    found = rng.randrange(3)
    feelings = [asked if k == found else rng.choice(_OTHERS[asked]) for k in range(3)]
    told = [_sentence(*each, rng) for each in zip(feelings, people, cities, strict=True)]
    coded = [f"{person} in {_CODES[city]}" for person, city in zip(people, cities, strict=True)]
    request = {
        "feeling": f"Who was {asked}",
        "code": "In code",
        "both": f"Who was {asked}, in code",
    }[skill]
    answer = {
        "feeling": f"{people[found]} in {cities[found]}",
        "code": ", ".join(coded),
        "both": coded[found],
    }[skill]
    return f"{request}: {' '.join(told)}\nAnswer:", f"{answer}."


def _sentence(feeling: str, person: str, city: str, rng: random.Random) -> str:
    names = {"P": person, "P,": f"{person},", "C": city, "C,": f"{city},"}
    return " ".join(names.get(word, word) for word in rng.choice(_TOLD[feeling]).split()) + "."
