from itertools import pairwise

import pytest
import torch
from skimage import data

from minimodel.data import synthetic
from minimodel.data.framing import (
    TRAINED_CENTRE,
    TRAINED_SPREAD,
    Framing,
    Place,
    crop,
    draw_crops,
    find_places,
    frame_film,
    frame_photo,
    middle_square,
    place_of,
    settled_place,
    shift_inside,
    trained_box,
    usual_box,
)
from minimodel.data.tracking import FaceTracker, cut, frame_landmarks
from minimodel.landmarks import LandmarkDetector

HEIGHT, WIDTH, SIDE = 240, 400, 160


@pytest.fixture(scope="module")
def detector():
    return LandmarkDetector.load()


@pytest.fixture(scope="module")
def people():
    """Rendered faces at SIDE pixels and their true places in these pictures."""
    faces = synthetic.Faces.sample(3, seed=11)
    places = [place_of(points, (0, 0, SIDE)) for points in synthetic.landmarks(faces)]
    return (synthetic.render(faces, SIDE) * 255).round().byte(), places


def wall():
    """Something without a face: a smooth pattern."""
    noise = torch.rand(1, 3, 6, 10, generator=torch.Generator().manual_seed(3))
    return (torch.nn.functional.interpolate(noise, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)[0] * 255).byte()


def stand(*faces):
    """A wall, and before it some pictures (3, h, w) at (left, top), which may lie partly outside."""
    scene = torch.nn.functional.pad(wall(), (WIDTH, WIDTH, HEIGHT, HEIGHT))
    for face, left, top in faces:
        height, width = face.shape[-2:]
        scene[:, HEIGHT + top : HEIGHT + top + height, WIDTH + left : WIDTH + left + width] = face
    return scene[:, HEIGHT:-HEIGHT, WIDTH:-WIDTH]


@pytest.mark.parametrize("box", [(20, 10, 200), (20, 10, 40), (-30, 100, 180)])
def test_bytes_are_cut_like_floats(box):
    frame = wall().permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as a decoder lays it out
    assert (crop(frame, box, 64) - crop(frame / 255, box, 64)).abs().max() < 1.01 / 255


def test_boxes_and_places_are_each_others_inverse():
    place = Place(200.0, 120.0, 34.0)
    found = settled_place(usual_box(place))
    assert max(abs(a - b) for a, b in zip(found, place)) < 1
    left, top, side = trained_box(place)
    centre = (place.x - left) / side * 2 - 1, (place.y - top) / side * 2 - 1
    assert centre == pytest.approx(TRAINED_CENTRE, abs=0.01)
    assert 2 * place.spread / side == pytest.approx(TRAINED_SPREAD, abs=0.01)


def test_a_face_in_a_larger_picture_is_framed_as_in_training(people, detector):
    pictures, places = people
    for picture, place in zip(pictures, places):
        framing = frame_photo(stand((picture, 190, 60)) / 255, detector)
        found = framing.face
        assert framing.faces == 1 and framing.note() is None
        assert abs(found.x - 190 - place.x) < 0.25 * place.spread
        assert abs(found.y - 60 - place.y) < 0.25 * place.spread
        assert found.spread == pytest.approx(place.spread, rel=0.15)


def test_a_photograph_is_framed_at_any_size(detector):
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1) / 255
    small = frame_photo(photo, detector)
    large = torch.nn.functional.interpolate(photo[None], scale_factor=3, mode="bilinear")[0]
    assert frame_photo(large, detector).box == pytest.approx([3 * n for n in small.box], abs=15)
    left, top, side = small.box
    assert left < 190 < 260 < left + side and top < 80 < 160 < top + side  # eyes and mouth
    assert 130 < side < 220


def test_of_several_faces_the_largest_is_taken_and_that_is_said(people, detector):
    pictures, places = people
    small = torch.nn.functional.interpolate(pictures[1][None] / 1.0, (110, 110), mode="area")[0].byte()
    scene = stand((small, 10, 90), (pictures[0], 200, 40))
    for framing in (frame_photo(scene / 255, detector), frame_film([scene] * 3, detector)):
        assert framing.faces == 2 and framing.face.x == pytest.approx(200 + places[0].x, abs=8)
        assert "2 faces: the largest is taken" in framing.note()


def test_a_face_that_walks_is_one_face(people, detector):
    pictures, _ = people
    frames = [stand((pictures[0], left, 50)) for left in (0, 60, 120, 180, 240)]
    assert frame_film(frames, detector).faces == 1


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_pictures_without_a_face_are_named(name, detector):
    picture = torch.from_numpy(getattr(data, name)().copy())
    picture = picture.permute(2, 0, 1) if picture.dim() == 3 else picture.expand(3, -1, -1)
    with pytest.raises(ValueError, match="no face found; --crop none takes the middle") as error:
        frame_photo(picture / 255, detector)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no face found"):
        frame_film([picture], detector)
    assert frame_photo(picture / 255, detector, crop="none").box == middle_square(*picture.shape[-2:])


@pytest.mark.parametrize("size", [(8, 8), (9, 24), (24, 8)])
def test_in_the_smallest_pictures_a_face_is_looked_for_as_well(size, detector):
    with pytest.raises(ValueError, match="no face found"):
        frame_photo(torch.full((3, *size), 0.5), detector)


def test_boxes_that_are_given_are_taken_as_they_are(people, detector):
    scene = stand((people[0][0], 190, 60))
    assert frame_photo(scene / 255, detector, crop=(5, -7, 99)).box == (5, -7, 99)
    assert frame_photo(scene / 255, detector, crop="none").box == (80, 0, 240)
    for box in ((400, 0, 50), (0, 0, 0), (-60, 0, 50)):
        with pytest.raises(ValueError, match="shows nothing of 400 x 240 pixels: expected left, top and a side"):
            frame_photo(scene / 255, detector, crop=box)
    watched = frame_film([scene], detector, crop=(150, 0, 240))
    assert watched.face is not None and not watched.follow
    elsewhere = frame_film([scene], detector, crop=(0, 100, 100))
    assert elsewhere.face is None  # nobody is in it: every frame is good


@pytest.mark.parametrize(
    "box, inside",
    [
        ((3, 4, 50), (3, 4, 50)),
        ((-5, 53, 50), (0, 50, 50)),
        ((-30, 4, 50), (-24, 4, 50)),
        ((-5, 0, 120), (-10, -10, 120)),
    ],
)
def test_boxes_are_shifted_into_the_picture_but_not_far(box, inside):
    assert shift_inside(box, 100, 100) == inside


def track(frames, detector, *, size=64, **options):
    tracker = FaceTracker(frame_film(frames[:: max(1, len(frames) // 5)], detector, **options), detector)
    made = list(tracker.crops(iter(frames), size))
    assert len(made) == len(frames) == len(tracker.boxes)
    return tracker, made


def test_a_cut_to_a_wall_is_held_and_said(people, detector):
    pictures, _ = people
    frames = [stand((pictures[0], 120 + n, 50)) for n in range(12)]
    frames[5:9] = [wall()] * 4
    tracker, made = track(frames, detector)
    assert tracker.held == [5, 6, 7, 8]
    assert tracker.note() == "no face in 4 of 12 frames (5 to 8): the last one is held there"
    assert all(torch.equal(frame, made[4]) for frame in made[5:9]) and not torch.equal(made[9], made[8])
    # The squares are known now: the film is cut again without looking for the face, also at another size.
    assert all(map(torch.equal, made, cut(zip(frames, tracker.boxes), 64)))
    assert next(cut(zip(frames, tracker.boxes), 80)).shape == (3, 80, 80)
    points = tracker.landmarks()
    assert points.shape == (12, 74, 2) and torch.equal(points[5:9], points[4].expand(4, -1, -1))
    moved = points[11].mean(0) - points[0].mean(0)
    assert abs(moved[0] - 11) < 3 and abs(moved[1]) < 3
    # In the squares they are where the detector finds them there, within a pixel of 64.
    squares = torch.stack(list(tracker.landmarks_in_squares()))
    found = detector.find(torch.stack(made))
    assert squares.shape == found.shape and ((squares - found) * 32).norm(dim=-1).mean() < 1
    assert torch.equal(squares[5:9], squares[4].expand(4, -1, -1)) and not torch.equal(squares[9], squares[8])


def test_a_film_that_begins_without_the_face_begins_with_its_first_good_frame(people, detector):
    pictures, _ = people
    frames = [wall()] * 11 + [stand((pictures[0], 120 + n, 50)) for n in range(24)]
    tracker, made = track(frames, detector)
    assert tracker.held == list(range(11))
    assert all(torch.equal(frame, made[11]) for frame in made[:11])
    points = tracker.landmarks()
    assert torch.equal(points[:11], points[11].expand(11, -1, -1)) and not torch.equal(points[11], points[12])
    squares = list(tracker.landmarks_in_squares())
    assert len(squares) == len(frames) and all(torch.equal(one, squares[11]) for one in squares[:11])


def test_landmarks_of_any_square_are_framed_as_in_training():
    points = synthetic.landmarks(synthetic.Faces.sample(5, seed=3))
    there = frame_landmarks(0.4 * points + torch.tensor([0.3, -0.5]))
    assert (there - frame_landmarks(points)).abs().max() < 0.01  # wherever they were
    centre = there.mean(1, keepdim=True)
    assert (centre - torch.tensor(TRAINED_CENTRE)).abs().mean() < 0.1
    assert (there - centre).square().sum(-1).mean(1).sqrt().median() == pytest.approx(TRAINED_SPREAD, abs=0.01)


def test_a_face_that_leaves_is_held_before_it_is_cut_in_two(people, detector):
    pictures, places = people
    lefts = [120, 120, 120, *range(120, 420, 12), 420, 420]
    tracker, _ = track([stand((pictures[0], left, 50)) for left in lefts], detector)
    seen = [n for n in range(len(lefts)) if n not in tracker.held]
    assert tracker.held and seen == list(range(len(seen)))  # good until it has gone
    assert 120 < lefts[seen[-1]] + places[0].x < WIDTH + places[0].spread  # half of it was still there
    assert lefts[seen[-1]] + places[0].x > WIDTH - 2.5 * places[0].spread  # and it wasn't given up early


def test_a_cut_to_the_same_face_elsewhere_is_held(people, detector):
    pictures, _ = people
    frames = [stand((pictures[0], 10, 50))] * 10 + [stand((pictures[0], 230, 50))] * 3 + [stand((pictures[0], 14, 50))]
    assert track(frames, detector)[0].held == [10, 11, 12]


def test_the_square_goes_after_a_face_that_walks_and_rests_otherwise(people, detector):
    pictures, places = people
    lefts = [40] * 10 + list(range(40, 220, 3)) + [220] * 30
    frames = [stand((pictures[1], left, 50)) for left in lefts]
    framing = frame_film(frames[:1], detector)
    tracker = FaceTracker(framing, detector)
    boxes = [box for _, box in tracker.track(iter(frames))]
    assert boxes == tracker.boxes and not tracker.held and tracker.note() is None
    assert len(set(boxes[:10])) == 1 and boxes[-1][0] - boxes[0][0] > 120
    assert max(abs(b[0] - a[0]) for a, b in pairwise(boxes)) <= 8  # smoothly
    for left, box in zip(lefts, boxes):
        middle = (left + places[1].x - box[0]) / box[2]
        assert 0.2 < middle < 0.8
    fixed = FaceTracker(Framing(framing.box, framing.face), detector)
    list(fixed.crops(iter(frames[:70]), 32))
    assert fixed.box == framing.box


def test_nobody_watched_means_nothing_held():
    tracker = FaceTracker(Framing((0, 0, 100)), torch.nn.Identity())
    frames = [wall(), wall() // 2]
    made = list(tracker.crops(iter(frames), 100))
    assert not tracker.held and torch.equal(made[1], crop(frames[1], (0, 0, 100), 100))
    assert tracker.landmarks() is None


def test_the_crops_are_drawn(people):
    scene = stand((people[0][0], 190, 60))
    drawn = draw_crops([scene, scene / 255], [(190, 60, 160), (-20, 100, 300)], size=96)
    assert drawn.shape == (3, 192, 192)
    assert torch.equal(drawn[:, 96:, :96], crop(scene, (190, 60, 160), 96))
    whole = crop(scene, (0, -80, 400), 96)
    red = (drawn[:, :96, :96] == torch.tensor([1.0, 0.0, 0.0])[:, None, None]).all(0)
    rows, columns = red.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (34, 71, 46, 83)
    assert torch.equal(drawn[:, :96, :96][:, ~red], whole[:, ~red])


def test_find_places_looks_where_the_cascade_sees_nothing(people, detector, monkeypatch):
    monkeypatch.setattr("minimodel.data.framing.find_faces", lambda *_: [])
    pictures, places = people
    ((found, _), *others) = find_places(detector, [stand((pictures[0], 100, 40))])
    assert not others and found.near(
        Place(100 + places[0].x, 40 + places[0].y, places[0].spread), distance=0.4, ratio=1.2
    )
