"""The demo's little bilingual language and its problems: English and Japanese sentences about
counting things."""
# ruff: noqa: RUF001 (the full-width question mark is Japanese)

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

Language = Literal["en", "ja"]
Split = Literal["search", "validation", "test"]

LARGEST = 10
"""Largest number in a text that calculates; answers therefore lie between 0 and twice as much."""

KANJI = (
    *"零一二三四五六七八九十",
    *("十一", "十二", "十三", "十四", "十五", "十六", "十七", "十八", "十九", "二十"),
)
"""The numbers from 0 as a Japanese answer writes them; texts write them in digits."""


class Phrase(NamedTuple):
    """One meaning in both languages. Fields in braces are filled by `Scene.say`."""

    en: str
    ja: str


PEOPLE = (
    Phrase("emma", "恵美"), Phrase("taro", "太郎"), Phrase("hana", "花"), Phrase("ben", "勉"),
    Phrase("kai", "海"), Phrase("rio", "莉央"), Phrase("naomi", "直美"), Phrase("joe", "丈"),
)  # fmt: skip
THINGS = (
    Phrase("pears", "梨"), Phrase("books", "本"), Phrase("pencils", "鉛筆"), Phrase("balls", "玉"),
    Phrase("stamps", "切手"), Phrase("stones", "石"), Phrase("sweets", "飴"), Phrase("roses", "薔薇"),  # noqa: E501
    Phrase("coins", "小銭"), Phrase("shells", "貝"), Phrase("cups", "茶碗"), Phrase("keys", "鍵"),
)  # fmt: skip
PLACES = (
    Phrase("basket", "籠"), Phrase("drawer", "引出し"), Phrase("kitchen", "台所"),
    Phrase("shed", "小屋"), Phrase("market", "市場"), Phrase("school", "学校"),
)  # fmt: skip

SENTENCES = {
    "owns": Phrase("{who} has {a} {thing} .", "{who} は {thing} を {a} 個 持って います 。"),
    "holds": Phrase("the {place} holds {a} {thing} .", "{place} に {thing} が {a} 個 あります 。"),
    "buys": Phrase("{who} buys {b} more .", "{who} は {b} 個 買い足します 。"),
    "finds": Phrase("{who} finds {b} more .", "{who} は {b} 個 拾います 。"),
    "gives": Phrase("{who} gives {b} away .", "{who} は {b} 個 譲ります 。"),
    "loses": Phrase("{who} loses {b} of them .", "{who} は {b} 個 失くします 。"),
    "also": Phrase(
        "{other} has {b} {thing} too .", "{other} も {thing} を {b} 個 持って います 。"
    ),
    "added": Phrase("{b} more are put there .", "そこ へ {b} 個 入れます 。"),
    "taken": Phrase("{b} are taken from there .", "そこ から {b} 個 出します 。"),
}
QUESTIONS = {
    "now": Phrase(
        "how many {thing} does {who} have now ?", "{who} の {thing} は 今 何個 です か ？"
    ),
    "together": Phrase(
        "how many {thing} do they have together ?", "{thing} は 合わせて 何個 です か ？"
    ),
    "there": Phrase("how many {thing} are there now ?", "{place} の {thing} は 今 何個 です か ？"),
}
PROBLEMS = (
    ("owns", "buys", "now", 1), ("owns", "finds", "now", 1), ("owns", "also", "together", 1),
    ("owns", "gives", "now", -1), ("owns", "loses", "now", -1),
    ("holds", "added", "there", 1), ("holds", "taken", "there", -1),
)  # fmt: skip
"""The kinds of problem: first sentence, second sentence, question, sign of the second number."""

QUESTION_FRAME = Phrase("question : {text} answer :", "問題 : {text} 答え :")
NUMBER_ANSWER = Phrase("the answer is {x}", "答え は {x}")


@dataclass(frozen=True)
class Scene:
    """Who counts what, where, and how many: everything a problem needs besides its language."""

    first: str
    second: str
    question: str
    sign: int
    who: Phrase
    other: Phrase
    thing: Phrase
    place: Phrase
    a: int
    b: int

    @classmethod
    def draw(
        cls, rng: random.Random, smallest: int, largest: int, last: int | None = None
    ) -> Scene:
        """A scene with numbers between two bounds, the second one up to another where that is
        given; none is taken away from a smaller one."""
        first, second, question, sign = rng.choice(PROBLEMS)
        who, other = rng.sample(PEOPLE, 2)
        a = rng.randint(smallest, largest)
        b = rng.randint(smallest, largest if last is None else last)
        if sign < 0:
            a, b = max(a, b), min(a, b)
        return cls(
            first, second, question, sign, who, other, rng.choice(THINGS), rng.choice(PLACES), a, b
        )

    def say(self, phrase: Phrase, language: Language) -> str:
        """A phrase about this scene."""
        names = {
            name: getattr(getattr(self, name), language)
            for name in ("who", "other", "thing", "place")
        }
        return str(getattr(phrase, language)).format(a=self.a, b=self.b, **names)

    def problem(self, language: Language) -> str:
        """The arithmetic problem that this scene is, as a prompt."""
        phrases = (SENTENCES[self.first], SENTENCES[self.second], QUESTIONS[self.question])
        text = " ".join(self.say(phrase, language) for phrase in phrases)
        return str(getattr(QUESTION_FRAME, language)).format(text=text)

    def solution(self, language: Language) -> str:
        """The right answer to the problem."""
        return number_answer(self.a + self.sign * self.b, language)


def number_answer(number: int, language: Language) -> str:
    """A number as an answer says it: in digits in English, in kanji in Japanese."""
    written = KANJI[number] if language == "ja" else str(number)
    return str(getattr(NUMBER_ANSWER, language)).format(x=written)


def problems(
    split: Split, count: int, *, seed: int = 0, text: Language = "ja", answer: Language = "ja"
) -> list[dict[str, str]]:
    """Arithmetic problems that no training text contains, with numbers from 1 on: adding 0 is not
    calculating.

    Args:
        split: which of three sets to draw from; no prompt is in two of them, whatever the seeds.
        count: how many problems, all different.
        seed: another seed draws other problems of the same split.
        text: language of the problem.
        answer: language of the right answer.

    Returns:
        One `{"prompt": ..., "answer": ..., "gloss": ...}` a problem: `"問題 : ... 答え :"`, `"答え は 7"`,
        and that in English.
    """  # noqa: E501
    rng = random.Random(f"{split}/{seed}/{text}")
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        scene = Scene.draw(rng, 1, LARGEST)
        prompt = scene.problem(text)
        if split_of(prompt) == split:
            rows[prompt] = {
                "prompt": prompt,
                "answer": scene.solution(answer),
                "gloss": _gloss(scene),
            }
    return list(rows.values())


def split_of(prompt: str) -> Split | None:
    """The split that owns a problem, None for the five eighths of them that training may use."""
    owners: dict[int, Split] = {5: "search", 6: "validation", 7: "test"}
    return owners.get(zlib.crc32(prompt.encode()) % 8)


def _gloss(scene: Scene) -> str:
    """A problem as English is written: without the words around it, and without spaces before
    stops."""
    before, _, after = QUESTION_FRAME.en.partition("{text}")
    text = (
        f"{scene.problem('en').removeprefix(before).removesuffix(after)} {scene.solution('en')} ."
    )
    names = "|".join(name.en for name in PEOPLE)
    text = re.sub(
        rf"(?:^|(?<=[.?] ))[a-z]|\b(?:{names})\b", lambda word: word[0].capitalize(), text
    )
    return re.sub(r" (?=[.?])", "", text)
