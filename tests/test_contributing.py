"""CONTRIBUTING.md shows the code that the tests run."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_search_on_the_page_is_the_one_that_is_tested():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # tests/decoding/search/test_plugin.py runs it.
    assert code == (ROOT / "tests/plugins/confident_search.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 40


def test_paths_on_the_page_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:speechattn|tests|benchmarks|docs)/[\w/.]+)`", page)
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert len(paths) > 10 and not missing
