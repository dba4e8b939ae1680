"""Files of landmarks of every kind that people have: points to move by, or words that help."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from minimodel.data import synthetic
from minimodel.data.landmark_files import read_landmarks
from minimodel.warping import to_pixels

FRAMES = 6


@pytest.fixture(scope="module")
def points():
    """In pixels of a film of 90 x 120, its height and width."""
    true = synthetic.landmarks(synthetic.Faces.sample(FRAMES, seed=1))
    return (to_pixels(true, (90, 90)) + torch.tensor([15.0, 0.0])).numpy()


def write(path, points, **changes):
    held = dict(landmarks=points, size=(90, 120), fps=(24, 1), found=np.ones(len(points), bool)) | changes
    np.savez(path, **{name: value for name, value in held.items() if value is not None})
    return path


def test_what_is_whole_is_read_without_a_word(tmp_path, points, recwarn):
    read, fps = read_landmarks(write(tmp_path / "a.npz", points))
    assert torch.allclose(read, synthetic.landmarks(synthetic.Faces.sample(FRAMES, seed=1)), atol=1e-5) and fps == 24
    without = read_landmarks(write(tmp_path / "b.npz", points, fps=None, found=None))
    assert torch.equal(without[0], read) and without[1] == 25 and not recwarn.list


@pytest.mark.parametrize(
    "fps, expected", [(30.0, 30), ((30000, 1001), Fraction(30000, 1001)), ((12.5,), Fraction(25, 2))]
)
def test_rates_are_read_as_people_write_them(tmp_path, points, fps, expected):
    assert read_landmarks(write(tmp_path / "a.npz", points, fps=fps))[1] == expected


def changed(points, frames, value):
    points = points.copy()
    points[frames] = value
    return points


HELD = [
    (lambda p: dict(points=changed(p, np.s_[2, 3], np.nan)), [2], "landmarks aren't numbers in 1;"),
    (lambda p: dict(points=changed(p, np.s_[0:2], np.nan)), [0, 1], "landmarks aren't numbers in 2;"),
    (lambda p: dict(points=changed(p, np.s_[4, 0, 1], np.inf)), [4], "landmarks aren't numbers in 1;"),
    (lambda p: dict(points=changed(p, np.s_[3, 9], 1e6)), [3], "landmarks lie far outside of 120 x 90 pixels in 1;"),
    (lambda p: dict(points=changed(p, 3, p[3] - 400)), [3], "landmarks lie far outside of 120 x 90 pixels in 1;"),
    (lambda p: dict(points=changed(p, np.s_[1], 45.0)), [1], "all landmarks lie in one place of 120 x 90 pixels in 1;"),
    (lambda p: dict(points=p, found=np.arange(FRAMES) != 4), [4], "no face was found in 1;"),
    (lambda p: dict(points=changed(p, np.s_[5], np.nan), found=np.arange(FRAMES) > 0), [0, 5],
     "no face was found in 1, landmarks aren't numbers in 1;"),
]  # fmt: skip


@pytest.mark.parametrize("make, bad, message", HELD)
def test_where_a_part_is_missing_the_frame_before_is_held_and_that_is_said(tmp_path, points, make, bad, message):
    whole, _ = read_landmarks(write(tmp_path / "whole.npz", points))
    with pytest.warns(UserWarning, match=re.escape(f"a.npz: of 6 frames {message} the landmarks of the frame before")):
        read, _ = read_landmarks(write(tmp_path / "a.npz", **make(points)))
    good = [frame for frame in range(FRAMES) if frame not in bad]
    for frame in range(FRAMES):
        stands_in = max((g for g in good if g <= frame), default=good[0])
        assert torch.equal(read[frame], whole[stands_in])


REFUSED = [
    (lambda p: dict(points=np.full_like(p, np.nan)), "landmarks aren't numbers in 6: none is left to move by"),
    (lambda p: dict(points=p * 1000), "landmarks lie far outside of 120 x 90 pixels in 6: none is left"),
    (lambda p: dict(points=p + 1000), "landmarks lie far outside of 120 x 90 pixels in 6: none is left"),
    (lambda p: dict(points=np.zeros_like(p)), "all landmarks lie in one place of 120 x 90 pixels in 6: none is left"),
    (lambda p: dict(points=(p - 60) / 60), "all landmarks lie in one place of 120 x 90 pixels in 6"),  # normalised
    (lambda p: dict(points=p, found=np.zeros(FRAMES, bool)), "no face was found in 6: none is left to move by"),
    (lambda p: dict(points=p, size=(0, 120)), "its size is 0 x 120, expected the film's height and width in pixels"),
    (lambda p: dict(points=p, size=(-90, 120)), "its size is -90 x 120"),
    (lambda p: dict(points=p, fps=(0, 1)), "its fps is 0/1, expected 0.01 to 1000"),
    (lambda p: dict(points=p, fps=(25, 0)), "its fps is 25/0, expected 0.01 to 1000"),
    (lambda p: dict(points=p, fps=(-25, 1)), "its fps is -25/1"),
    (lambda p: dict(points=p, fps=np.nan), "its fps is nan"),
    (lambda p: dict(points=p, fps=10**9), "its fps is 1e+09"),
    (lambda p: dict(points=p[:, :68]), "not the landmarks of a film"),
    (lambda p: dict(points=p[:0]), "not the landmarks of a film"),
    (lambda p: dict(points=np.concatenate([p, p[..., :1]], -1)), "not the landmarks of a film"),
    (lambda p: dict(points=p, size=None), "not the landmarks of a film"),
    (lambda p: dict(points=p, size=(90,)), "not the landmarks of a film"),
    (lambda p: dict(points=p, found=np.ones(4, bool)), "not the landmarks of a film"),
    (lambda p: dict(points=np.array([["a"]])), "not the landmarks of a film"),
    (lambda p: dict(points=np.array([{"a": 1}])), "not the landmarks of a film"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_what_cannot_move_a_face_is_refused_in_one_line(tmp_path, points, make, message):
    path = write(tmp_path / "a.npz", **make(points))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_landmarks(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize("spoil", [lambda data: data[:900], lambda data: b"", lambda data: data[:300] + data[500:]])
def test_broken_files_are_refused_in_one_line(tmp_path, points, spoil):
    path = write(tmp_path / "a.npz", points)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match="not the landmarks of a film"):
        read_landmarks(path)
