"""Mandarin sentences whose words lips can tell apart, for the corpus in CNVSRC's layout.

A closed grammar: [time] person verb [number] thing, as in "去年 叔叔 打破 两只 苹果"; what is in
brackets may be left out, so a sentence has 6 to 10 characters, and there are 6,480. The words of
a slot were chosen from about 20 each so that no two look alike on the lips of the drawn face (the
tests measure it on the mouths that are drawn): a low error rate is possible, and means that the
lips were read. Being closed it is far easier than real speech.
"""

import numpy as np

from speechattn.errors import ConfigError
from speechattn.synth.sentences import Sentence, draw_different

# Slot by slot: may it be left out, and its words with their pinyin.
SLOTS: tuple[tuple[bool, dict[str, str]], ...] = (
    (True, {
        "明天": "ming tian", "周末": "zhou mo", "去年": "qu nian", "晚上": "wan shang",
        "刚才": "gang cai"}),
    (False, {
        "爸爸": "ba ba", "妹妹": "mei mei", "叔叔": "shu shu", "老师": "lao shi", "阿姨": "a yi",
        "医生": "yi sheng"}),
    (False, {
        "保护": "bao hu", "打破": "da po", "吃掉": "chi diao", "忘记": "wang ji",
        "拍摄": "pai she"}),
    (True, {
        "五千": "wu qian", "八万": "ba wan", "两只": "liang zhi", "九包": "jiu bao",
        "七把": "qi ba"}),
    (False, {
        "苹果": "ping guo", "飞机": "fei ji", "雨伞": "yu san", "白马": "bai ma", "花猫": "hua mao",
        "木瓜": "mu gua"}),
)  # fmt: skip
CHARACTERS = "".join(sorted({c for _, words in SLOTS for word in words for c in word}))
_CODE = "abcdefghijklmnopqrstuvwxyz"


def make_mandarin(choice: tuple[int | None, ...]) -> Sentence:
    """Make the sentence with the `choice[i]`-th word in slot i, None leaving the slot out."""
    name = "".join("-" if c is None else _CODE[c] for c in choice)
    slots = zip(SLOTS, choice, strict=True)
    words = tuple(list(slot)[c] for (_, slot), c in slots if c is not None)
    return Sentence(name, words, words)


def count_mandarin() -> int:
    """Count the sentences of the grammar."""
    return int(np.prod([len(words) + optional for optional, words in SLOTS]))


def draw_mandarin(count: int, rng: np.random.Generator) -> list[Sentence]:
    """Draw different sentences; the words of a slot, and the four forms, come up equally often.

    Raises:
        ConfigError: `count` is not between 1 and half of the sentences.
    """
    if not 1 <= count <= count_mandarin() // 2:
        raise ConfigError(f"sentences: {count} is not between 1 and {count_mandarin() // 2}")
    optional = [i for i, (left_out, _) in enumerate(SLOTS) if left_out]

    def make(choice: tuple[int, ...]) -> Sentence:
        *words, form = choice
        for bit, slot in enumerate(optional):
            if form >> bit & 1:
                words[slot] = None
        return make_mandarin(tuple(words))

    return draw_different(count, [*(len(w) for _, w in SLOTS), 2 ** len(optional)], make, rng)
