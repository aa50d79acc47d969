"""Sentences of two closed grammars of six words, 64,000 each: GRID's, and a Mandarin one like it.

English is the grammar of the GRID corpus (Cooke et al. 2006): command, colour, preposition, letter
(without w), digit, adverb, as in "place blue at f nine now"; the name of a sentence is GRID's, one
character a word (`pbaf9n`). Mandarin has as many choices in an order that Mandarin takes: adverb,
verb, place, number, colour, noun, as in "马上 拿走 左边 三个 红色 苹果".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speechattn.errors import ConfigError

_LETTERS = "abcdefghijklmnopqrstuvxyz"
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NOUNS = (
    "苹果 飞机 书包 铅笔 皮球 帽子 面包 葡萄 西瓜 雨伞 手表 电话 牛奶 "
    "火车 小狗 花猫 木马 风车 毛笔 杯子 椅子 词典 鸭梨 月饼 剪刀"
)

# For each language the slots of a sentence: the words, and one character for each in the name.
GRAMMARS: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "en": (
        (("bin", "lay", "place", "set"), "blps"),
        (("blue", "green", "red", "white"), "bgrw"),
        (("at", "by", "in", "with"), "abiw"),
        (tuple(_LETTERS), _LETTERS),
        (_DIGITS, "z123456789"),
        (("again", "now", "please", "soon"), "anps"),
    ),
    "cmn": (
        (("马上", "现在", "今天", "赶快"), "mxjg"),
        (("拿走", "放下", "搬开", "买来"), "nfbm"),
        (("左边", "右边", "上面", "里面"), "zysl"),
        (tuple(c + "个" for c in "十一两三四五六七八九"), "s123456789"),
        (("红色", "绿色", "白色", "蓝色"), "hlbn"),
        (tuple(_NOUNS.split()), _LETTERS),
    ),
}

_SPOKEN = {"en": {"a": "[[eI]]"}, "cmn": {}}  # else eSpeak reads the article


@dataclass(frozen=True)
class Sentence:
    """A sentence."""

    name: str  # one character a word; the file's name
    words: tuple[str, ...]  # what the transcript says
    spoken: tuple[str, ...]  # what the synthesiser is given for each word


def make_sentence(language: str, choice: Sequence[int]) -> Sentence:
    """Make the sentence with the `choice[i]`-th word in slot i."""
    grammar = GRAMMARS[language]
    words = tuple(slot[c] for (slot, _), c in zip(grammar, choice, strict=True))
    name = "".join(code[c] for (_, code), c in zip(grammar, choice, strict=True))
    return Sentence(name, words, tuple(_SPOKEN[language].get(w, w) for w in words))


def draw_sentences(language: str, count: int, rng: np.random.Generator) -> list[Sentence]:
    """Draw different sentences in which the words of a slot come up equally often.

    Raises:
        ConfigError: an unknown language, or more sentences than the grammar has.
    """
    if language not in GRAMMARS:
        raise ConfigError(f"language {language!r}: choose from {sorted(GRAMMARS)}")
    sizes = [len(slot) for slot, _ in GRAMMARS[language]]
    if not 1 <= count <= np.prod(sizes) // 2:
        raise ConfigError(f"utterances: {count} is not between 1 and {np.prod(sizes) // 2}")
    return draw_different(count, sizes, lambda choice: make_sentence(language, choice), rng)


def draw_different(
    count: int,
    sizes: Sequence[int],
    make: Callable[[tuple[int, ...]], Sentence],
    rng: np.random.Generator,
) -> list[Sentence]:
    """Draw different sentences; the choices of a slot, below its size, come up equally often."""
    drawn: dict[str, Sentence] = {}
    while len(drawn) < count:
        # A shuffled deck for every slot, dealt side by side; doubles are dealt again.
        missing = count - len(drawn)
        decks = [deck(size, missing, rng) for size in sizes]
        for sentence in map(make, zip(*decks, strict=True)):
            drawn.setdefault(sentence.name, sentence)
    return list(drawn.values())


def deck(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """Deal `count` shuffled cards of `size` kinds, each kind equally often to within one."""
    cards: list[int] = []
    while len(cards) < count:
        cards.extend(rng.permutation(size).tolist())
    return cards[:count]
