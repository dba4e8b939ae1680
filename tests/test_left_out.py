"""Data sets as people have them: broken clips among good ones, folders within folders, nothing held out."""

import json
import shutil
import warnings

import av
import numpy as np
import pytest
import torch

from minimodel.__main__ import main
from minimodel.commands.prepare import PrepareConfig, name_videos, prepare
from minimodel.data import pairs
from minimodel.data.pairs import FrameCache, VideoPairs
from minimodel.data.video import Clip, read_all
from minimodel.data.writer import VideoWriter
from minimodel.errors import MinimodelError
from minimodel.evaluation.benchmark import load_evaluation
from minimodel.model import AnimationModel
from minimodel.training.landmarks import Neighbours
from minimodel.training.loop import train
from tests.test_train import SIZES, face_clips, lines, settings


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Files that are no clips to train on, and a part of what is said about each."""
    folder = tmp_path_factory.mktemp("broken")
    whole = face_clips(folder / "faces", count=1) / "0.mp4"
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("<html>not found</html>")
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with VideoWriter(folder / "one.mp4") as film:
        film.write(torch.rand(3, 32, 32))
    shutil.rmtree(folder / "faces")
    return folder


WHY = {"empty": "the file is empty", "text": "no film of a known kind", "cut": "its end is missing", "one": "one frame"}


def spoil_payload(path, start=0.0, end=1.0):
    """Overwrite a part of the pictures of an .mp4; its index stays whole."""
    data = bytearray(path.read_bytes())
    first = data.find(b"mdat") + 4
    last = first - 8 + int.from_bytes(data[first - 8 : first - 4], "big")
    first, last = (round(first + share * (last - first)) for share in (start, end))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    return path


def ramp(path, count=12, every=3, size=32):
    """Frame n is a grey of its own; all packets are large, so that each can be hit."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.rand(3, size, size, generator=generator)
    with VideoWriter(path, every=every) as film:
        for number in range(count):
            film.write(0.05 + number / count * 0.7 + noise.roll(number, 1))
    return path


def said(caught):
    return [str(warning.message) for warning in caught]


# --------------------------------------------------------------------------------------------------- left out, counted


def use(how, folder, output, strict):
    """Use a folder of clips in one of the ways that there are."""
    if how == "pairs":
        cache = VideoPairs(folder, 16, strict=strict).cache
        return [clip.path.stem for clip in cache.clips]
    if how == "evaluate":
        return [clip.name for clip in load_evaluation(str(folder), 16, strict=strict)]
    written = prepare(PrepareConfig((folder,), output, box=(0, 0, 32), size=32, strict=strict))
    return [path.stem.removesuffix("-000") for path in written]


@pytest.mark.parametrize("how", ["pairs", "evaluate", "prepare"])
@pytest.mark.parametrize("name", WHY)
def test_a_broken_clip_is_left_out_with_its_reason_and_counted(tmp_path, clips_of_faces, broken, name, how, capsys):
    folder = shutil.copytree(clips_of_faces, tmp_path / "clips")
    shutil.copy(broken / f"{name}.mp4", folder / "a.mp4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert use(how, folder, tmp_path / "out", strict=False) == ["0", "1"]
    # prepare sees how many frames there are when it takes a video to pieces.
    lines_said = [*said(caught), *capsys.readouterr().out.splitlines()]
    reasons = [line for line in lines_said if "a.mp4" in line and WHY[name] in line]
    assert len(reasons) == 1 and reasons[0].endswith(("; left out", "; skipped"))
    assert [line for line in lines_said if "1 of 3 clips left out" in line or "1 skipped, 2 clips written" in line]
    with pytest.raises(MinimodelError, match=WHY[name]) as refused:
        use(how, folder, tmp_path / "strict", strict=True)
    assert "a.mp4" in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def clips_of_faces(tmp_path_factory):
    return face_clips(tmp_path_factory.mktemp("left out") / "clips")


@pytest.mark.parametrize("how", ["pairs", "evaluate", "prepare"])
def test_where_no_clip_is_left_that_is_one_line(tmp_path, broken, how):
    shutil.copytree(broken, tmp_path / "clips")
    (tmp_path / "clips" / "one.mp4").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # or there would be more lines
        with pytest.raises(MinimodelError, match=r"cut\.mp4.*; none of the 3 clips can be used"):
            use(how, tmp_path / "clips", tmp_path / "out", strict=False)


def test_at_most_as_many_are_read_as_are_asked_for(tmp_path):
    paths = [tmp_path / name for name in "abcd"]

    def read(path):
        if path.name == "a":
            raise MinimodelError(f"{path}: broken")
        return path.name

    with pytest.warns(UserWarning, match="1 of 3 clips left out"):
        assert read_all(paths, read, most=2) == ["b", "c"]


def test_training_goes_on_without_a_broken_clip_and_strict_refuses(tmp_path, clips_of_faces, broken, capsys):
    folder = shutil.copytree(clips_of_faces, tmp_path / "clips")
    shutil.copy(broken / "cut.mp4", folder / "cut.mp4")
    with pytest.warns(UserWarning, match=r"cut\.mp4: .*; left out"):
        train(settings(tmp_path / "run", folder, data=(str(folder),), steps=1), **SIZES)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1]
    capsys.readouterr()
    words = ["train", "--data", str(folder), "--steps", "1", "--output", str(tmp_path / "strict"), "--strict"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("minimodel: ") and "its end is missing" in err and err.count("\n") == 1
    assert not (tmp_path / "strict").exists()


# ---------------------------------------------------------------------------------------- damaged within, or while used


def drawn(sources, steps=4):
    batches = []
    for step in range(steps):
        samples = sources.draw(4, pairs.step_generator(0, step))
        batches.append(torch.stack(sources.load(samples, torch.arange(4), torch.device("cpu"))))
    return batches


@pytest.mark.filterwarnings("ignore:.*can't be decoded")
def test_the_nearest_frame_stands_in_whatever_was_decoded_before(tmp_path):
    whole = dict(Clip(ramp(tmp_path / "a.mp4")).decode())
    spoil_payload(tmp_path / "a.mp4", 0.4, 0.6)
    good = dict(Clip(tmp_path / "a.mp4").decode())
    lost = set(range(12)) - set(good)
    assert lost and {0, 1, 2, 9, 10, 11} < set(good)
    seen: dict[int, torch.Tensor] = {}
    for order in (range(12), reversed(range(12)), (6, 5, 0, 11)):
        cache = FrameCache([tmp_path / "a.mp4"], 32)
        for index in order:
            frame = cache(0, index)
            assert torch.equal(frame, seen.setdefault(index, frame))
        assert cache.held == 3 * 32 * 32 * len(cache.frames[0])
    assert cache.stand_ins or FrameCache([tmp_path / "a.mp4"], 32)(0, min(lost)) is not None
    for (_, index), near in cache.stand_ins.items():
        assert index in lost and abs(near - index) == min(abs(number - index) for number in good)
        assert torch.equal(seen[index], good[near])
    assert all(torch.equal(seen[index], whole[index]) for index in (0, 1, 2, 9, 10, 11))


@pytest.mark.parametrize("kind", ["pairs", "neighbours"])
def test_a_clip_that_breaks_while_training_is_replaced_by_another(tmp_path, kind):
    for name in "abc":
        ramp(tmp_path / f"{name}.mp4", count=12 if name == "a" else 5)
    first = VideoPairs(tmp_path, 32) if kind == "pairs" else Neighbours((str(tmp_path),))
    again = VideoPairs(tmp_path, 32) if kind == "pairs" else Neighbours((str(tmp_path),))
    spoil_payload(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").unlink()
    if kind == "pairs":
        with pytest.warns(UserWarning) as caught:
            batches = drawn(first)
        assert all(torch.equal(one, other) for one, other in zip(batches, drawn(again)))
        for source, driving in batches:  # of two different frames each
            assert ((source - driving).abs().amax((1, 2, 3)) > 0.05).all()
    else:
        with pytest.warns(UserWarning) as caught:
            one, other = first(16, torch.Generator().manual_seed(0))
        assert ((one - other).abs().amax((1, 2, 3)) > 0.05).all()
    assert sorted(line.split("/")[-1][:5] for line in said(caught) if "take its place" in line) == ["a.mp4", "b.mp4"]
    spoil_payload(tmp_path / "c.mp4")
    cache = FrameCache([tmp_path / "a.mp4", tmp_path / "c.mp4"], 32)
    with pytest.raises(MinimodelError, match="no clip is left"), pytest.warns(UserWarning):
        cache.several(0, [0, 1])
    with pytest.raises(MinimodelError, match="no frame can be decoded"):
        FrameCache([tmp_path / "a.mp4", tmp_path / "c.mp4"], 32, strict=True).several(0, [0, 1])


@pytest.mark.filterwarnings("ignore:.*can't be decoded")
def test_prepare_takes_what_can_be_read_of_a_damaged_film(tmp_path):
    spoil_payload(ramp(tmp_path / "a.mp4", count=60), 0.4, 0.5)
    (made,) = prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", box=(0, 0, 32), size=32))
    assert len(Clip(made)) >= 50
    spoil_payload(tmp_path / "a.mp4")
    with pytest.raises(MinimodelError, match=r"no clip was written: .*a\.mp4: no frame can be decoded"):
        prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "none", box=(0, 0, 32), size=32))


def test_a_disk_that_is_full_is_not_a_broken_video(tmp_path, monkeypatch):
    ramp(tmp_path / "a.mp4", size=32)
    monkeypatch.setattr(VideoWriter, "write", lambda *_: (_ for _ in ()).throw(MinimodelError("out: can't be written")))
    with pytest.raises(MinimodelError, match=r"^out: can't be written"):
        prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", box=(0, 0, 32), size=32))


# ------------------------------------------------------------------------------------------------------------- folders


def test_nested_clips_keep_their_path_in_their_name(tmp_path):
    for name in ("id1/v1/00001.mp4", "id1/v2/00001.mp4", "id2/v1/00001.mkv", "00001.avi", "train/00001.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(tmp_path / "in" / name), "w") as film:
            stream = film.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 32
            for _ in range(3):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            film.mux(stream.encode())
    config = PrepareConfig((tmp_path / "in",), tmp_path / "in" / "made", box=(0, 0, 32), size=32)
    made = sorted(path.name for path in prepare(config))
    expected = ["00001", "id1-v1-00001", "id1-v2-00001", "id2-v1-00001", "train-00001"]
    assert made == [f"{name}-000.mp4" for name in expected]
    # What was made isn't made of again.
    assert sorted(path.name for path in prepare(config)) == made
    shutil.copytree(tmp_path / "in" / "id1", tmp_path / "id1")
    (tmp_path / "id1-v1").mkdir()
    shutil.copy(tmp_path / "in" / "00001.avi", tmp_path / "id1-v1")
    with pytest.raises(MinimodelError, match="would have the same names"):
        name_videos(PrepareConfig((tmp_path / "id1-v1", tmp_path / "in"), tmp_path / "out"))


@pytest.mark.parametrize("box", [(32, 0, 16), (0, 32, 16), (-16, 0, 16), (0, -16, 16)])
def test_a_box_outside_of_the_picture_is_refused(tmp_path, box, capsys):
    ramp(tmp_path / "a.mp4", size=32)
    words = ["prepare", "--videos", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "out"), "--size", "32"]
    assert main([*words, "--box", *map(str, box)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "minimodel:" in line]
    assert f"box {' '.join(map(str, box))} is outside of its 32 x 32 pixels" in line
    assert not list((tmp_path / "out").iterdir())
    inside = [corner - (corner > 0) + (corner < 0) for corner in box[:2]]  # one row or column shows
    assert main([*words, "--box", *map(str, inside), "16"]) == 0


def test_a_folder_with_train_alone_trains_and_says_that_nothing_is_held_out(tmp_path, clips_of_faces):
    shutil.copytree(clips_of_faces, tmp_path / "data" / "train" / "id1")
    data = str(tmp_path / "data")
    config = settings(tmp_path / "run", clips_of_faces, data=(data,), evaluate=None, steps=1)
    with pytest.warns(UserWarning, match="has only train/, nothing is held out"):
        train(config, **SIZES)
    assert AnimationModel.load(tmp_path / "run" / "model.safetensors")
    assert [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == ["train"]
    with pytest.raises(MinimodelError, match="nothing is held out to evaluate on"):
        load_evaluation(data, 32)
