"""prepare_grid in both of its layouts."""

from collections import defaultdict

import numpy as np
import pytest
from lhotse import CutSet, validate

from speechattn.data.corpora import prepare_grid
from speechattn.data.corpora.grid import read_align
from speechattn.data.media import read_audio
from speechattn.errors import ConfigError, SpeechattnError

ALIGN = """0 5000 sil
5000 9000 bin
9000 12000 blue
12000 12000 sp
12000 15000 at
15000 18000 s
18000 21000 two
21000 24000 please
24000 25000 sil
"""


@pytest.fixture
def grid(tmp_path, make):
    """Make the published layout: speakers to numbers of clips."""
    film = make.video(tmp_path / "film.mp4", 1.0).read_bytes()

    def build(speakers: dict[str, int], align="align/{speaker}", video="{speaker}"):
        root = tmp_path / "grid"
        for speaker, count in speakers.items():
            for index in range(count):
                for pattern, suffix, content in (
                    (video, ".mp4", film),
                    (align, ".align", ALIGN.encode()),
                ):
                    file = root / pattern.format(speaker=speaker) / f"clip{index}{suffix}"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        return root

    return build


def read(paths):
    return {name: list(CutSet.from_file(path)) for name, path in paths.items()}


def places(paths) -> dict[str, str]:
    """Cut id to split; no id may be in two."""
    found = {}
    for name, cuts in read(paths).items():
        for cut in cuts:
            assert cut.id not in found
            found[cut.id] = name
    return found


@pytest.mark.parametrize(
    "align, video",
    [
        ("align/{speaker}", "{speaker}"),
        ("{speaker}/align", "{speaker}"),
        ("alignments/{speaker}", "{speaker}/video/mpg_6000"),
    ],
)
def test_published_layout(grid, tmp_path, align, video):
    root = grid({"s1": 3, "s2": 3}, align, video)
    (root / "s1" / "._clip0.mpg").write_bytes(b"macOS leaves these")
    (root / "landmarks" / "s1").mkdir(parents=True)
    (root / "landmarks" / "s1" / "clip0.npz").touch()
    splits = read(prepare_grid(root, tmp_path / "out"))
    cuts = {cut.id: cut for group in splits.values() for cut in group}
    assert set(cuts) == {f"s{s}_clip{c}" for s in (1, 2) for c in range(3)}
    assert (tmp_path / "out" / "failures.tsv").read_text() == "file\tline\treason\n"
    for cut in cuts.values():
        validate(cut, read_data=True)
        (supervision,) = cut.supervisions
        assert supervision.text == "bin blue at s two please"
        assert supervision.language == "en"
        assert supervision.speaker == cut.id[:2]
        words = [(w.symbol, w.start, w.duration) for w in supervision.alignment["word"]]
        assert words[0] == ("bin", 0.2, 0.16)
        assert words[-1] == ("please", 0.84, 0.12)
        assert (cut.video_fps, cut.video_frames) == (25.0, 25)
        np.testing.assert_array_equal(cut.load_audio()[0], read_audio(cut.video))
    with_marks = {i for i, cut in cuts.items() if "landmarks" in cut.custom}
    assert with_marks == {"s1_clip0"}
    assert cuts["s1_clip0"].landmarks == str(root / "landmarks" / "s1" / "clip0.npz")


def test_mpg(make, tmp_path):
    root = tmp_path / "grid"
    make.video(root / "s1" / "a.mpg", 1.0, codec="mpeg1video")
    (root / "align" / "s1").mkdir(parents=True)
    (root / "align" / "s1" / "a.align").write_text(ALIGN)
    (cut,) = read(prepare_grid(root, tmp_path / "out", fractions=(1, 0, 0)))["train"]
    assert cut.video.endswith("s1/a.mpg")
    assert cut.duration == pytest.approx(1.0, abs=0.1)
    assert np.abs(cut.load_audio()).max() > 0.2


def test_split_by_utterance(grid, tmp_path):
    root = grid({"s1": 30, "s2": 20})
    found = places(prepare_grid(root, tmp_path / "a"))
    counts = defaultdict(int)
    for cut, split in found.items():
        counts[cut.split("_")[0], split] += 1
    # 80 / 7 / 13 % of 30 and of 20
    assert counts == {
        ("s1", "train"): 24,
        ("s1", "dev"): 2,
        ("s1", "test"): 4,
        ("s2", "train"): 16,
        ("s2", "dev"): 1,
        ("s2", "test"): 3,
    }
    assert places(prepare_grid(root, tmp_path / "b")) == found
    other = places(prepare_grid(root, tmp_path / "c", seed=1))
    assert other != found and other.keys() == found.keys()
    grid({"s3": 5})  # a further speaker does not move what was there
    more = places(prepare_grid(root, tmp_path / "d"))
    assert {cut: split for cut, split in more.items() if cut[:2] != "s3"} == found
    assert {split for cut, split in more.items() if cut[:2] == "s3"} == {"train", "dev", "test"}


def test_split_by_speaker(grid, tmp_path):
    root = grid({f"s{i}": 2 for i in range(1, 8)})
    found = places(prepare_grid(root, tmp_path / "a", split="speaker"))
    speakers = defaultdict(set)
    for cut, split in found.items():
        speakers[cut.split("_")[0]].add(split)
    assert all(len(splits) == 1 for splits in speakers.values())
    groups = [next(iter(splits)) for splits in speakers.values()]
    assert sorted(groups) == ["dev", "test", *["train"] * 5]

    named = places(
        prepare_grid(root, tmp_path / "b", "speaker", dev_speakers=["s2"], test_speakers=["s1"])
    )
    assert {c[:2]: s for c, s in named.items()} == {
        **{f"s{i}": "train" for i in range(3, 8)},
        "s1": "test",
        "s2": "dev",
    }
    half = places(prepare_grid(root, tmp_path / "c", "speaker", test_speakers=["s1", "s2"]))
    by_speaker = {c[:2]: s for c, s in half.items()}
    assert by_speaker.pop("s1") == by_speaker.pop("s2") == "test"
    assert sorted(by_speaker.values()) == ["dev", *["train"] * 4]


def test_two_speakers(grid, tmp_path):
    root = grid({"s1": 2, "s2": 2})
    with pytest.raises(ConfigError, match="2 speakers .* cannot be held out"):
        prepare_grid(root, tmp_path / "out", split="speaker")
    found = places(
        prepare_grid(root, tmp_path / "out", "speaker", (0.5, 0, 0.5), test_speakers=["s2"])
    )
    assert {c[:2]: s for c, s in found.items()} == {"s1": "train", "s2": "test"}
    found = places(prepare_grid(root, tmp_path / "out2", "speaker", (0.8, 0.0, 0.2)))
    assert sorted({c[:2]: s for c, s in found.items()}.values()) == ["test", "train"]


@pytest.mark.parametrize("copy", ["university", "Zenodo"])
@pytest.mark.parametrize("folder", ["align", "alignments"])
def test_alignments_in_the_folders_of_others(make, tmp_path, copy, folder):
    """Zenodo's copy has them there for some speakers; the names of the files tell."""
    film = make.video(tmp_path / "film.mp4", 1.0).read_bytes()
    zenodo = {"s4": "s4", "s5": "s6", "s6": "s5", "s10": "s13", "s13": "s12", "s20": "s21"}
    root = tmp_path / "grid"
    for speaker, its_folder in zenodo.items():
        aligns = root / folder / (its_folder if copy == "Zenodo" else speaker)
        for file, content in [
            *((root / speaker / f"{speaker}only{i}.mp4", film) for i in range(2)),
            # A sentence that all say: in the wrong folder too there is a file of its name.
            (root / speaker / "all.mp4", film),
            *((aligns / f"{speaker}only{i}.align", b"0 9 bin\n") for i in range(2)),
            (aligns / "all.align", f"0 9 {speaker}\n".encode()),
        ]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    splits = read(prepare_grid(root, tmp_path / "out", fractions=(1, 0, 0)))
    texts = {cut.id: cut.supervisions[0].text for cut in splits["train"]}
    assert len(texts) == 3 * len(zenodo)
    assert all(texts[f"{speaker}_all"] == speaker for speaker in zenodo)


def test_alignments_of_others_are_not_taken_by_chance(grid, tmp_path):
    root = grid({"s5": 4, "s6": 4})
    for index in range(3):
        (root / "align" / "s5" / f"clip{index}.align").unlink()
    (root / "align" / "s6" / "clip2.align").unlink()
    (root / "align" / "s6" / "clip3.align").unlink()
    found = places(prepare_grid(root, tmp_path / "out"))
    assert sorted(found) == ["s5_clip3", "s6_clip0", "s6_clip1"]


def test_bad_clips_are_listed(grid, tmp_path):
    root = grid({"s1": 8})
    (root / "align" / "s1" / "clip0.align").unlink()
    (root / "align" / "s1" / "clip1.align").write_text("0 75000 sil\n")
    (root / "align" / "s1" / "clip2.align").write_text("0 5000 sil\n5000 now\n")
    (root / "s1" / "clip3.mp4").write_bytes(b"")
    (root / "s1" / "again").mkdir()
    (root / "s1" / "again" / "clip4.mp4").write_bytes((root / "s1" / "clip4.mp4").read_bytes())
    before = places(prepare_grid(grid({"s1": 0}), tmp_path / "out"))
    assert sorted(before) == [f"s1_clip{i}" for i in range(4, 8)]
    rows = (tmp_path / "out" / "failures.tsv").read_text().split("\n")[1:-1]
    reasons = {row.split("\t")[0].removeprefix(str(root) + "/"): row for row in rows}
    for file, reason in {
        "s1/clip0.mp4": "no " + str(root / "align" / "s1" / "clip0.align"),
        "s1/clip1.mp4": "empty text",
        "s1/clip2.mp4": "clip2.align: line 2",
        "s1/clip3.mp4": "empty file",
    }.items():
        assert reason in reasons.pop(file)
    ((_, last),) = reasons.items()
    assert "id s1_clip4 is that of" in last


def test_errors(grid, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        prepare_grid(tmp_path / "no", tmp_path / "out")
    (tmp_path / "void").mkdir()
    with pytest.raises(ConfigError, match="not a GRID folder"):
        prepare_grid(tmp_path / "void", tmp_path / "out")
    root = grid({"s1": 1, "s2": 1, "s3": 1})
    with pytest.raises(ConfigError, match="test_speakers: no speaker s9"):
        prepare_grid(root, tmp_path / "out", "speaker", test_speakers=["s9"])
    with pytest.raises(ConfigError, match="s1 is in both"):
        prepare_grid(root, tmp_path / "out", "speaker", dev_speakers=["s1"], test_speakers=["s1"])
    with pytest.raises(ConfigError, match="need split='speaker'"):
        prepare_grid(root, tmp_path / "out", test_speakers=["s1"])
    with pytest.raises(ConfigError, match="fractions"):
        prepare_grid(root, tmp_path / "out", fractions=(0.5, 0.1, 0.1))
    for file in root.rglob("*.align"):
        file.unlink()
    with pytest.raises(SpeechattnError, match="nothing could be prepared .3 failures"):
        prepare_grid(root, tmp_path / "out")


@pytest.mark.parametrize("line", ["1 2", "a 2 now", "9 2 now", "1 2 now then", "-1 2 now"])
def test_broken_align(tmp_path, line):
    file = tmp_path / "x.align"
    file.write_text(f"0 1000 bin\n\n{line}\n")
    with pytest.raises(ConfigError, match="line 3"):
        read_align(file)


def test_folder_with_a_table(data_dir, tmp_path):
    """Real clips: the table's own splits stay."""
    source = data_dir / "grid"
    if not (source / "manifest.tsv").exists():
        pytest.skip("no grid data")
    header, *rows = (source / "manifest.tsv").read_text().split("\n")
    chosen = [
        next(row for row in rows if f"\t{split}\t" in row) for split in ("train", "dev", "test")
    ]
    root = tmp_path / "grid"
    root.mkdir()
    (root / "manifest.tsv").write_text("\n".join([header, *chosen]))
    (root / "video").symlink_to(source / "video")
    splits = read(prepare_grid(root, tmp_path / "out"))
    for row in chosen:
        file, speaker, split, text = row.split("\t")
        (cut,) = splits[split]
        assert cut.id == f"{speaker}_{file.split('/')[1].removesuffix('.mp4')}"
        assert (cut.supervisions[0].text, cut.supervisions[0].language) == (text, "en")
        assert cut.video == str(root / file)
        assert cut.video_fps == 25.0 and cut.video_frames in (74, 75)
        assert cut.recording.sampling_rate == 16000
        np.testing.assert_array_equal(cut.load_audio()[0], read_audio(source / file))
    with pytest.raises(ConfigError, match="brings its own splits"):
        prepare_grid(root, tmp_path / "out", split="speaker")
