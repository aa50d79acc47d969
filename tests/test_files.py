"""Files that are written whole."""

import os

import pytest

from speechattn.files import remove_partial, replacing, write_bytes, write_text


@pytest.mark.parametrize("sync", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, sync):
    path = tmp_path / "new" / "cuts.jsonl.gz"
    with replacing(path, sync) as part:
        assert part.parent == path.parent and part.suffixes[-2:] == [".jsonl", ".gz"]
        part.write_text("one")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path, sync) as part:
        part.write_text("half of tw")
        raise KeyError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == [path.name]


def test_text_and_bytes(tmp_path):
    write_text(tmp_path / "a", "ü\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\r\n\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\udcff")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\r\n\n"
    write_text(tmp_path / "a", "\udcff", errors="backslashreplace")
    assert (tmp_path / "a").read_bytes() == b"\\udcff"
    write_bytes(tmp_path / "a", b"\0")
    assert (tmp_path / "a").read_bytes() == b"\0"


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        with replacing(folder / "x.tsv") as part:
            part.touch()
            (folder / f"{part.name}.again").touch()  # as a kill leaves one
        (folder / "x.part").touch()
        (folder / ".partly").touch()
    remove_partial(tmp_path)
    for folder in (tmp_path, tmp_path / "sub"):
        assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [
            ".partly",
            "x.part",
            "x.tsv",
        ]
