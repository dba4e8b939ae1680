"""Imported checkpoints through the commands: they are models like any other."""

from itertools import combinations
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from minimodel.__main__ import main
from minimodel.data.video import Clip
from minimodel.model import AnimationModel
from minimodel.published.model import PublishedModel
from tests.published_layouts import LAYOUTS, SMALL, save_checkpoint, weights
from tests.test_video import with_sound

MODES = ("standard", "relative", "avd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    save_checkpoint(folder / "vox.pth.tar", "tpsm-avd")
    assert main(["import-checkpoint", str(folder / "vox.pth.tar"), "--output", str(folder / "vox.safetensors")]) == 0
    iio.imwrite(folder / "photo.png", np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    with_sound(folder / "driving.mp4")
    return folder


def animate_arguments(folder: Path, output: str, *more: str) -> list[str]:
    files = dict(source="photo.png", driving="driving.mp4", weights="vox.safetensors", output=output)
    named = [text for name, file in files.items() for text in (f"--{name}", str(folder / file))]
    return ["animate", *named, "--crop", "none", *more]


@pytest.fixture(scope="module")
def films(folder) -> dict[str, Path]:
    for mode in MODES:
        assert main(animate_arguments(folder, f"{mode}.mp4", "--mode", mode, "--size", "64")) == 0
    return {mode: folder / f"{mode}.mp4" for mode in MODES}


def test_loading_gives_a_published_model(folder):
    model = AnimationModel.load(folder / "vox.safetensors")
    assert isinstance(model, PublishedModel) and not model.training
    assert model.card["source"] == "vox.pth.tar"
    model.save(folder / "again.safetensors")
    again = AnimationModel.load(folder / "again.safetensors")
    assert again.card == model.card and again.sizes == model.sizes
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_animate_takes_it_in_every_mode(folder, films, mode):
    clip = Clip(films[mode])
    assert len(clip) == len(Clip(folder / "driving.mp4")) and clip.fps == 20
    with av.open(str(clip.path)) as container:
        assert container.streams.audio and "Synthetic media" in container.metadata["comment"]


def test_modes_give_different_films(films):
    frames = [torch.stack([frame for _, frame in Clip(film).decode()]) for film in films.values()]
    for first, second in combinations(frames, 2):
        assert not torch.equal(first, second)


def test_evaluate_measures_it(folder, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes((folder / "driving.mp4").read_bytes())
    arguments = ["--weights", str(folder / "vox.safetensors"), "--data", str(clips), "--size", "64"]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "scores.json")]) == 0
    assert "L1" in (tmp_path / "scores.json").read_text()


@pytest.mark.parametrize("layout", ["tpsm-avd", "mrfa-fomm-refined"])
def test_the_bench_times_its_rendering_and_no_training(layout, folder, tmp_path, capsys):
    save_checkpoint(tmp_path / "a.pth.tar", layout)
    file = str(tmp_path / "a.safetensors")
    assert main(["import-checkpoint", str(tmp_path / "a.pth.tar"), "--output", file]) == 0
    capsys.readouterr()
    assert main(["bench", "--weights", file, "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert file in printed and "a driving frame" in printed and "training" not in printed
    assert ("refinement" in printed) == (layout == "mrfa-fomm-refined")


def refused(capsys, *arguments: str) -> str:
    assert main(["import-checkpoint", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("minimodel: ")
    return message


def test_bad_checkpoints_end_in_one_line_and_write_nothing(tmp_path, capsys):
    output = tmp_path / "w.safetensors"
    to = ["--output", str(output)]
    sections = weights(LAYOUTS["fomm"](SMALL))
    del sections["generator"]["final.bias"]
    torch.save(sections, tmp_path / "missing.pth")
    save_checkpoint(tmp_path / "vox.pth", "fomm")
    (tmp_path / "half.pth").write_bytes((tmp_path / "vox.pth").read_bytes()[:5000])
    assert "'generator.final.bias' is missing" in refused(capsys, str(tmp_path / "missing.pth"), *to)
    assert "not a whole checkpoint" in refused(capsys, str(tmp_path / "half.pth"), *to)
    assert "no such file" in refused(capsys, str(tmp_path / "none.pth"), *to)
    assert "expected 'mtia'" in refused(capsys, str(tmp_path / "vox.pth"), *to, "--model", "mtia")
    assert "checkpoint itself" in refused(capsys, str(tmp_path / "vox.pth"), "--output", str(tmp_path / "vox.pth"))
    assert not output.exists() and len(list(tmp_path.iterdir())) == 3
