"""Clips are counted once, also by a run that is stopped, and opened when their frames are needed."""

import json
import shutil
import warnings

import pytest
import torch

from minimodel.data import index, pairs
from minimodel.data.index import INDEX, index_clips
from minimodel.data.pairs import VideoPairs
from minimodel.data.video import Clip, find_clips
from minimodel.errors import MinimodelError
from tests.test_video import film

FRAMES = {"0.mp4": 3, "1.mp4": 5, "2.mp4": 4}


@pytest.fixture
def folder(tmp_path):
    for name, count in FRAMES.items():
        film(tmp_path / "data" / "train" / name, count=count)
    return tmp_path / "data"


@pytest.fixture
def opened(monkeypatch):
    """The names of the clips that are opened."""
    names = []

    class Watched(Clip):
        def __init__(self, path):
            names.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(index, "Clip", Watched)
    index._opened.cache_clear()
    return names


def counts(folder, **options):
    return {clip.path.name: len(clip) for clip in index_clips(find_clips(folder, "train"), folder, **options)}


def test_a_clip_is_opened_once_and_again_when_it_changes(folder, opened):
    assert counts(folder) == FRAMES and opened == list(FRAMES)
    opened.clear()
    written = (folder / INDEX).stat().st_mtime_ns
    assert counts(folder) == FRAMES and not opened and (folder / INDEX).stat().st_mtime_ns == written
    film(folder / "train" / "1.mp4", count=7)
    film(folder / "train" / "3.mp4", count=2)
    (folder / "train" / "0.mp4").unlink()
    changed = {"1.mp4": 7, "2.mp4": 4, "3.mp4": 2}
    assert counts(folder) == changed and opened == ["1.mp4", "3.mp4"]
    assert sorted(json.loads((folder / INDEX).read_text())["clips"]) == ["train/1.mp4", "train/2.mp4", "train/3.mp4"]


@pytest.mark.parametrize("every", [0, 1000])
def test_what_was_counted_before_a_stop_is_not_counted_again(folder, opened, every, monkeypatch):
    def stopped(path):
        if path.name == "2.mp4":
            if every == 0:  # killed: nothing more is done
                monkeypatch.setattr(index, "write_index", lambda *_: None)
            raise KeyboardInterrupt
        return real(path)

    real = index.open_clip
    with monkeypatch.context() as patch:
        patch.setattr(index, "EVERY", every)
        patch.setattr(index, "open_clip", stopped)
        patch.setattr(index, "write_index", index.write_index)  # is put back afterwards
        with pytest.raises(KeyboardInterrupt):
            counts(folder)
    opened.clear()
    assert counts(folder) == FRAMES and opened == ["2.mp4"]


def test_an_index_that_is_damaged_or_cannot_be_written_is_made_anew(folder, opened):
    counts(folder)
    for text in (
        '{"version": 1, "clips": {"train/0.m',
        '{"version": 9, "clips": {}}',
        '{"version": 1, "clips": [1]}',
        "3",
    ):
        (folder / INDEX).write_text(text)
        opened.clear()
        assert counts(folder) == FRAMES and len(opened) == 3
    (folder / INDEX).unlink()
    (folder / INDEX).mkdir()
    with pytest.warns(UserWarning, match=r"is a directory.*; the clips are counted again at the next start"):
        assert counts(folder) == FRAMES


def test_clips_that_cannot_be_read_are_tried_again(folder, opened):
    (folder / "train" / "1.mp4").write_bytes(b"no film")
    for _ in range(2):
        opened.clear()
        with pytest.warns(UserWarning, match=r"1 of 3 clips left out"):
            assert counts(folder) == {"0.mp4": 3, "2.mp4": 4}
    assert opened == ["1.mp4"]
    with pytest.raises(MinimodelError, match=r"1\.mp4: not a video"):
        counts(folder, strict=True)


def test_pairs_of_many_clips_are_those_of_few_and_start_without_opening_any(folder, opened, monkeypatch):
    few = VideoPairs(folder, 16)
    assert not (folder / INDEX).exists()
    monkeypatch.setattr(pairs, "MANY", 2)
    VideoPairs(folder, 16)
    opened.clear()
    many = VideoPairs(folder, 16)
    assert not opened
    samples, again = (source.draw(6, torch.Generator().manual_seed(0)) for source in (few, many))
    assert all(torch.equal(samples[name], again[name]) for name in samples)
    slots, cpu = torch.arange(6), torch.device("cpu")
    for one, other in zip(few.load(samples, slots, cpu), many.load(again, slots, cpu), strict=True):
        assert torch.equal(one, other)
    assert opened and len(set(opened)) == len(opened)  # each at most once


def test_a_clip_that_breaks_after_it_was_counted_is_replaced(folder, monkeypatch):
    monkeypatch.setattr(pairs, "MANY", 2)
    many = VideoPairs(folder, 16)
    index._opened.cache_clear()
    shutil.copyfile(folder / INDEX, folder / "train" / "0.mp4")
    with pytest.warns(UserWarning, match=r"0\.mp4.*other clips take its place"):
        first = many.cache.several(0, [0, 2])
    with warnings.catch_warnings(action="error"):
        assert torch.equal(first, many.cache.several(1, [0, 2]))
