"""The report as a browser shows it."""

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from speechattn.data.tables import write_table
from speechattn.errors import SpeechattnError
from speechattn.evaluation.report import summary_table, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture
def browser(tmp_path):
    """Run a headless browser on a page; skips where there is none."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip("no browser: apt-get install -y chromium")

    def run(page, *options):
        return subprocess.run(
            [binary, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout

    return run


class Checker(HTMLParser):
    """Collects what a page would load, and whether its tags are balanced."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_self_contained_and_well_formed(experiments, tmp_path):
    page = write_report(experiments, tmp_path / "out" / "report.html", note="a <b>note</b>")
    html = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert all(link.startswith(("#", "data:")) for link in checker.loads)
    assert "@import" not in html and "<script" not in html and "<link" not in html
    assert not re.search(r"url\((?!#)", html)
    anchors = [link[1:] for link in checker.loads if link.startswith("#")]
    assert set(anchors) <= set(checker.ids)
    assert "a &lt;b&gt;note&lt;/b&gt;" in html and "<b>note" not in html
    assert "cnvsrc &lt;video&gt;" in html and "cnvsrc <video>" not in html
    assert "Synthetic data" in html
    assert "2509.18010" in html


def test_synthetic_banner_only_where_it_belongs(experiments, tmp_path):
    page = write_report([experiments["grid_av"]], tmp_path / "report.html")
    assert "Synthetic data" not in page.read_text(encoding="utf-8")


def test_text_is_escaped(tmp_path):
    decode = tmp_path / "exp" / "decode_test"
    write_table(decode / "ref.tsv", {"<i>id": "one <script>alert(1)</script>"})
    write_table(decode / "hyp.tsv", {"<i>id": "<img src=x onerror=alert(2)>"})
    html = write_report([tmp_path / "exp"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<img" not in html and "<i>id" not in html
    assert "&lt;script&gt;" in html and "&lt;img" in html


@pytest.mark.parametrize("missing", ["train", "model", "decode_test", "score.json", "details"])
def test_missing_pieces_are_left_out(experiments, tmp_path, missing):
    folder = Path(shutil.copytree(experiments["grid_audio"], tmp_path / "copy"))
    path = folder / missing if (folder / missing).exists() else folder / "decode_test" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Learning curves" in html) == (missing != "train")
    assert ("Worst utterances" in html) == (missing != "decode_test")
    assert ("What the model saw" in html) == (missing not in ("decode_test", "details"))
    assert ("Nothing has been scored" in html) == (missing in ("decode_test", "score.json"))


def test_no_errors_and_no_folder(tmp_path):
    decode = tmp_path / "exp" / "decode_test"
    for name in ("ref", "hyp"):
        write_table(decode / f"{name}.tsv", {"a": "one"})
    html = write_report([tmp_path / "exp"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "None in 1 utterances." in html
    with pytest.raises(SpeechattnError, match="no such experiment folder"):
        write_report([tmp_path / "absent"], tmp_path / "r.html")


@pytest.fixture(scope="module")
def page(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_report(experiments, folder / "report.html", title="Lips & voices", max_details=1)


@pytest.mark.parametrize("width", [1200, 500])
def test_browser_lays_it_out(page, tmp_path, browser, width):
    # The page has no script of its own; one is added here to measure it.
    measured = tmp_path / "measured.html"
    probe = (
        "<script>const e=document.documentElement;"
        "document.title=`${e.scrollWidth} ${window.innerWidth}`</script></body>"
    )
    html = page.read_text(encoding="utf-8").replace("</body>", probe)
    measured.write_text(html, encoding="utf-8")
    dom = browser(measured, f"--window-size={width},1000", "--dump-dom")
    content, window = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
    assert window == width
    assert content <= window  # nothing scrolls sideways

    results = re.search(r'<section id="results">.*?</table>', dom, re.DOTALL).group(0)
    rows = re.findall(r"<tr>(.*?)</tr>", results, re.DOTALL)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    assert [row[0] for row in cells] == ["grid_av", "grid_audio", "cnvsrc &lt;video&gt;"]
    assert all(re.fullmatch(r"\d+\.\d\d", row[column]) for row in cells for column in (4, 6, 8))
    assert dom.count('class="utt"') == 3 * 8
    assert "Lips &amp; voices" in dom


@pytest.mark.parametrize("width", [1200, 500])
def test_browser_paints_it(page, tmp_path, browser, width):
    shot = tmp_path / "shot.png"
    browser(page, f"--window-size={width},2400", f"--screenshot={shot}")
    pixels = imread(shot)[..., :3]
    assert pixels.shape == (2400, width, 3)
    bands = np.array([band.std() for band in np.split(pixels, 8)])
    assert (bands > 0.02).all()  # something in every part of it
    assert 0.85 < pixels.mean() < 0.995  # a light page with text, not one colour


def test_summary_table(experiments):
    output = io.StringIO()
    Console(file=output, width=100).print(summary_table(experiments))
    lines = [line for line in output.getvalue().split("\n") if " test " in line]
    assert len(lines) == 3
    assert all(re.search(r"60 +\d+\.\d\d \(\d+\.\d–\d+\.\d\) +\d+\.\d\d \(", li) for li in lines)
    assert "audio+video" in lines[0]
