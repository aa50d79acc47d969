"""The text rule, case by case as its docstring states it."""

import pytest

from speechattn.evaluation.text import TextNormalization, has_cjk, normalize, split_units


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ｈｅｌｌｏ　Ｗｏｒｌｄ", "hello world"),
        ("今 天  天　气", "今天天气"),
        ("今天 买 A 股 了", "今天买a股了"),
        ("call  me \t Bob ", "call me bob"),
        ("今天，好", "今天,好"),
        ("ﬁne", "fine"),
        ("don’t", "don't"),
        ("１２３", "123"),
        ("안녕 하세요", "안녕 하세요"),
        ("カタ カナ", "カタカナ"),
        ("\u200bzero\ufeff", "zero"),
        ("E\u0301tude", "\u00e9tude"),
        ("\u3000", ""),
        ("", ""),
    ],
)
def test_rule(given, expected):
    assert normalize(given) == expected
    assert normalize(expected) == expected  # applying it again changes nothing


def test_each_step_can_be_turned_off():
    assert normalize("Ａb 我 们", TextNormalization(nfkc=False)) == "ａb我们"
    assert normalize("Ab", TextNormalization(lower_case=False)) == "Ab"
    assert normalize("我 们", TextNormalization(join_cjk=False)) == "我 们"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("It's a well-known, old song.", "it's a well known old song"),
        ("'quoted' word", "quoted word"),
        ("你好，世界。", "你好世界"),
        ("《书》 and <unk>", "书and <unk>"),
    ],
)
def test_punctuation_removed_on_request(given, expected):
    assert normalize(given, TextNormalization(remove_punctuation=True)) == expected


def test_characters_count_the_space_and_keep_unk_whole():
    assert split_units("ab c", "char") == ["a", "b", " ", "c"]
    assert split_units("a <unk>b", "char") == ["a", " ", "<unk>", "b"]
    assert split_units("", "char") == []


def test_words_take_each_cjk_character_alone():
    assert split_units("hello world", "word") == ["hello", "world"]
    assert split_units("今天买a股", "word") == ["今", "天", "买", "a", "股"]
    assert split_units("𠮷野家", "word") == ["𠮷", "野", "家"]
    chinese = "我们去公园散步"
    assert split_units(chinese, "word") == split_units(chinese, "char")


def test_unknown_unit():
    with pytest.raises(ValueError, match="char, word"):
        split_units("a", "phone")


def test_has_cjk():
    assert has_cjk("a 股")
    assert not has_cjk("abc é 한국")
