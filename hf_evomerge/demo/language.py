"""The demo's little bilingual language: its words, its tokenizer, its texts and its test problems.

Knows English and Japanese sentences about counting things and how to write texts from them.
Knows nothing of models or of training: which texts a model reads is decided in `train.py`.
"""
# ruff: noqa: RUF001 (the full-width question mark is Japanese)

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Language = Literal["en", "ja"]
Split = Literal["search", "validation", "test"]
Task = Literal["solve", "extract", "recall", "compare", "translate", "count", "story", "word"]

LARGEST = 10
"""Largest number in a text that calculates; answers therefore lie between 0 and twice as much."""


class Phrase(NamedTuple):
    """One meaning in both languages. Fields in braces are filled by `_Scene.say`."""

    en: str
    ja: str


SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

PEOPLE = (
    Phrase("emma", "恵美"), Phrase("taro", "太郎"), Phrase("hana", "花"), Phrase("ben", "勉"),
    Phrase("kai", "海"), Phrase("rio", "莉央"), Phrase("naomi", "直美"), Phrase("joe", "丈"),
)  # fmt: skip
THINGS = (
    Phrase("pears", "梨"), Phrase("books", "本"), Phrase("pencils", "鉛筆"), Phrase("balls", "玉"),
    Phrase("stamps", "切手"), Phrase("stones", "石"), Phrase("sweets", "飴"), Phrase("roses", "薔薇"),
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
    "also": Phrase("{other} has {b} {thing} too .", "{other} も {thing} を {b} 個 持って います 。"),
    "added": Phrase("{b} more are put there .", "そこ へ {b} 個 入れます 。"),
    "taken": Phrase("{b} are taken from there .", "そこ から {b} 個 出します 。"),
}
QUESTIONS = {
    "now": Phrase("how many {thing} does {who} have now ?", "{who} の {thing} は 今 何個 です か ？"),
    "together": Phrase("how many {thing} do they have together ?", "{thing} は 合わせて 何個 です か ？"),
    "there": Phrase("how many {thing} are there now ?", "{place} の {thing} は 今 何個 です か ？"),
    "first": Phrase("what is the first number ?", "初め の 数 は 何 です か ？"),
    "second": Phrase("what is the second number ?", "次 の 数 は 何 です か ？"),
    "change": Phrase("is that more or fewer ?", "増えました か 減りました か ？"),
}
PROBLEMS = (
    ("owns", "buys", "now", 1), ("owns", "finds", "now", 1), ("owns", "also", "together", 1),
    ("owns", "gives", "now", -1), ("owns", "loses", "now", -1),
    ("holds", "added", "there", 1), ("holds", "taken", "there", -1),
)  # fmt: skip
"""The kinds of problem: first sentence, second sentence, question, sign of the second number."""

FRAMES = {
    "question": Phrase("question : {text} answer :", "問題 : {text} 答え :"),
    "translate": Phrase("translate : {text} answer :", "訳 : {text} 答え :"),
    "count": Phrase("count :", "数えて :"),
}
ANSWERS = {
    "number": Phrase("the answer is {x}", "答え は {x}"),
    "more": Phrase("more", "増えました"),
    "fewer": Phrase("fewer", "減りました"),
}


@dataclass(frozen=True)
class TextKind:
    """A kind of text that a model can be trained on.

    Attributes:
        task: what the text asks for. "solve" is the only one that calculates; "extract" asks for one of the
            two numbers, "recall" how many the first sentence counts, the second being about somebody
            else's things; "story" is plain text.
        text: language of the two sentences; "mixed" draws it anew for each of them.
        asked: language of the question and of the words around it.
        answer: language of the answer.
        largest: largest number in the sentences.
        japanese: names of the sentences that may be in Japanese, None for all; the others are
            written in English whatever `text` says.
        smallest: smallest number in the sentences.
    """

    task: Task
    text: Language | Literal["mixed"]
    asked: Language
    answer: Language
    largest: int = LARGEST
    japanese: tuple[str, ...] | None = None
    smallest: int = 0


class Example(NamedTuple):
    """A prompt (may be empty) and what has to follow it, as words between spaces."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class _Scene:
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
    def draw(cls, rng: random.Random, smallest: int, largest: int) -> "_Scene":
        first, second, question, sign = rng.choice(PROBLEMS)
        who, other = rng.sample(PEOPLE, 2)
        a, b = rng.randint(smallest, largest), rng.randint(smallest, largest)
        if sign < 0:
            a, b = max(a, b), min(a, b)
        return cls(first, second, question, sign, who, other, rng.choice(THINGS), rng.choice(PLACES), a, b)

    def say(self, phrase: Phrase, language: Language) -> str:
        names = {name: getattr(getattr(self, name), language) for name in ("who", "other", "thing", "place")}
        return str(getattr(phrase, language)).format(a=self.a, b=self.b, **names)


def vocabulary() -> list[str]:
    """Every word of the language, special tokens first; the position of a word is its token id."""
    phrases = [*PEOPLE, *THINGS, *PLACES]
    for table in (SENTENCES, QUESTIONS, FRAMES, ANSWERS):
        phrases += table.values()
    words = {word for phrase in phrases for text in phrase for word in text.split() if "{" not in word}
    words |= {str(number) for number in range(2 * LARGEST + 1)}
    return [*SPECIAL_TOKENS, *sorted(words)]


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Word-level tokenizer: one token a word, `<bos>` in front, no `<eos>` behind, pads on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(vocabulary())}
    pad, bos, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk,
        padding_side="left", model_max_length=64, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def write(kind: TextKind, rng: random.Random) -> Example:
    """Writes one text of a kind; arithmetic problems that belong to a split of `problems` are left out."""
    if kind.task == "word":
        word = rng.choice((*PEOPLE, *THINGS, *PLACES))
        frame = getattr(FRAMES["translate"], kind.asked)
        return Example(frame.format(text=getattr(word, kind.asked)), getattr(word, kind.answer))
    if kind.task == "count":
        start, step = rng.randint(0, 2 * LARGEST - 4), rng.choice((1, -1))
        numbers = [str(number) for number in range(start, start + 5)][::step]
        return Example(" ".join([getattr(FRAMES["count"], kind.asked), *numbers[:2]]), " ".join(numbers[2:]))
    example = _write_scene(kind, rng)
    while kind.task == "solve" and _split_of(example.prompt) is not None:
        example = _write_scene(kind, rng)
    return example


def mixture(parts: Sequence[tuple[float, TextKind]], rng: random.Random) -> Iterator[Example]:
    """Endless texts; each is of a kind drawn with the weight that stands before it."""
    weights, kinds = [weight for weight, _ in parts], [kind for _, kind in parts]
    while True:
        yield write(rng.choices(kinds, weights)[0], rng)


def problems(
    split: Split, count: int, *, seed: int = 0, text: Language = "ja", answer: Language = "ja"
) -> list[dict[str, str]]:
    """Arithmetic problems that no training text contains, with numbers from 1 on: adding 0 is not calculating.

    Args:
        split: which of three sets to draw from; no prompt is in two of them, whatever the seeds.
        count: how many problems, all different.
        seed: another seed draws other problems of the same split.
        text: language of the problem.
        answer: language of the right answer.

    Returns:
        One `{"prompt": ..., "answer": ..., "gloss": ...}` a problem: `"問題 : ... 答え :"`, `"答え は 7"`, and that in English.
    """
    rng, again = random.Random(f"{split}/{seed}/{text}"), random.Random()
    kind = TextKind("solve", text, text, answer, smallest=1)
    english = TextKind("solve", "en", "en", "en", smallest=1)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        again.setstate(rng.getstate())  # the same scene once more
        prompt, right = _write_scene(kind, rng)
        if _split_of(prompt) == split:
            found[prompt] = {"prompt": prompt, "answer": right, "gloss": _gloss(_write_scene(english, again))}
    return list(found.values())


def _gloss(example: Example) -> str:
    """A problem as English is written: without the words around it, and without spaces before stops."""
    before, _, after = FRAMES["question"].en.partition("{text}")
    text = f"{example.prompt.removeprefix(before).removesuffix(after)} {example.answer} ."
    names = "|".join(name.en for name in PEOPLE)
    text = re.sub(rf"(?:^|(?<=[.?] ))[a-z]|\b(?:{names})\b", lambda found: found[0].capitalize(), text)
    return re.sub(r" (?=[.?])", "", text)


def _split_of(prompt: str) -> Split | None:
    """The split that owns a problem, None for the five eighths of them that training may use."""
    owners: dict[int, Split] = {5: "search", 6: "validation", 7: "test"}
    return owners.get(zlib.crc32(prompt.encode()) % 8)


def _write_scene(kind: TextKind, rng: random.Random) -> Example:
    """Writes a text that is about a scene: all tasks but single words and counting."""
    scene = second = _Scene.draw(rng, kind.smallest, kind.largest)
    names = (scene.first, scene.second)
    if kind.task == "recall":
        names = (scene.first, "owns")
        thing = rng.choice([thing for thing in THINGS if thing != scene.thing])
        second = replace(scene, who=scene.other, a=scene.b, thing=thing)
    sentences = []
    for name, view in zip(names, (scene, second), strict=True):
        language: Language = rng.choice(("en", "ja")) if kind.text == "mixed" else kind.text
        if kind.japanese is not None and name not in kind.japanese:
            language = "en"
        sentences.append(view.say(SENTENCES[name], language))
    if kind.task == "story":
        return Example("", " ".join(sentences))
    if kind.task == "translate":
        phrase = rng.choice((SENTENCES[scene.first], SENTENCES[scene.second], QUESTIONS[scene.question]))
        frame = getattr(FRAMES["translate"], kind.asked)
        return Example(frame.format(text=scene.say(phrase, kind.asked)), scene.say(phrase, kind.answer))
    question, right = scene.question, str(scene.a + scene.sign * scene.b)
    if kind.task == "recall":
        question, right = "there" if scene.first == "holds" else "now", str(scene.a)
    if kind.task == "extract":
        question = rng.choice(("first", "second"))
        right = str(scene.a if question == "first" else scene.b)
    answer = getattr(ANSWERS["number"], kind.answer).format(x=right)
    if kind.task == "compare":
        question, answer = "change", getattr(ANSWERS["more" if scene.sign > 0 else "fewer"], kind.answer)
    text = " ".join([*sentences, scene.say(QUESTIONS[question], kind.asked)])
    return Example(getattr(FRAMES["question"], kind.asked).format(text=text), answer)
