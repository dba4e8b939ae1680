"""Parts of one's own, put together with the package's, without editing it."""

import pytest
import torch
from torch import nn

from minimodel.affine import with_background
from minimodel.data import synthetic
from minimodel.data.pairs import PairSource
from minimodel.evaluation.benchmark import synthetic_clip
from minimodel.evaluation.protocols import evaluate
from minimodel.features import load_features
from minimodel.generator import GatedUNet, Generator
from minimodel.model import AnimationModel
from minimodel.motion import CoarseMotion, Motion
from minimodel.priors import Prior
from minimodel.training.loop import TrainConfig, train

UNET = dict(base=8, levels=2, maximum=16, outer_kernel=3, norm="batch")


class GivenPoints(nn.Module, Prior):
    """Two points that somebody gives by hand: the brightest pixel's place, and the middle; parts move as they do."""

    def detect(self, image):
        grey = image.mean(1).flatten(1).softmax(1).unflatten(1, image.shape[-2:])
        line = torch.linspace(-1, 1, image.shape[-1], device=image.device)
        brightest = torch.stack([(grey.sum(1) * line).sum(1), (grey.sum(2) * line).sum(1)], dim=1)
        return Motion(torch.stack([brightest, torch.zeros_like(brightest)], dim=1))

    def forward(self, source, start, end, correlation=None, *, part_scales=None):
        shift = (start.points - end.points)[..., None, None].expand(-1, -1, -1, *source.shape[-2:])
        flow = with_background(shift).mean(1)
        return CoarseMotion(flow, torch.zeros_like(flow[:, :1]))


class Noise(PairSource):
    """Pairs that show nothing."""

    def draw(self, count, generator):
        return torch.rand(2, count, 3, 32, 32, generator=generator)

    def load(self, samples, slots, device):
        return tuple(samples[:, slots].to(device))


def test_a_prior_and_pairs_of_ones_own(tmp_path):
    model = AnimationModel(prior=GivenPoints(), generator=GatedUNet(**UNET), image_size=32)
    trained = train(
        TrainConfig(tmp_path, steps=3, batch=2, device="cpu", precision="float32"), model=model, sources=[Noise()]
    )
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(3, 0))
    scores = evaluate(trained, [synthetic_clip("a", faces, 32)], load_features())
    assert {"PSNR", "flow, face (px)"} <= scores.rows["model"].keys()
    again = AnimationModel(prior=GivenPoints(), generator=GatedUNet(**UNET), image_size=32)
    again.load_weights(tmp_path / "model.safetensors")
    film = synthetic.render(faces, 32)
    frames = [torch.stack(list(some.animate(film[0], film, mode="standard"))) for some in (trained, again)]
    assert frames[0].shape == (3, 3, 32, 32) and torch.allclose(*frames, atol=1e-5)


class Tinted(nn.Module, Generator):
    """Shows the warped source itself, in colours that it has learnt."""

    scales, feature_channels, step, uses_features = 1, [], 1, False

    def __init__(self):
        super().__init__()
        self.tint = nn.Conv2d(3, 3, 1)

    def encode(self, image):
        return []

    def paint(self, source, stages):
        return torch.sigmoid(self.tint(stages.warped_source)), None


def test_a_generator_of_ones_own(tmp_path):
    config = TrainConfig(tmp_path, steps=3, batch=2, device="cpu", precision="float32")
    model = AnimationModel(prior=GivenPoints(), generator=Tinted(), image_size=32)
    before = model.generator.tint.weight.detach().clone()
    trained = train(config, model=model, sources=[Noise()])
    assert not torch.equal(trained.generator.tint.weight, before)
    output = trained(*torch.rand(2, 1, 3, 40, 40))
    assert output.image.shape == (1, 3, 40, 40) and output.painted is output.image


def test_weights_of_parts_put_together_by_hand_need_the_parts(tmp_path):
    model = AnimationModel(prior=GivenPoints(), generator=Tinted(), image_size=32)
    model.save(tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="holds weights of kind 'composed'"):
        AnimationModel.load(tmp_path / "mine.safetensors")
    other = AnimationModel(prior=GivenPoints(), generator=GatedUNet(**UNET), image_size=32)
    with pytest.raises(ValueError, match="its weights don't fit AnimationModel"):
        other.load_weights(tmp_path / "mine.safetensors")


class Mean(nn.Module):
    """Renders without being an `AnimationModel`: between photo and driving frame."""

    moves_by_landmarks = False

    def encode_source(self, image, *, landmarks=None):
        return image

    def encode_driving(self, image, *, landmarks=None, move_background=False):
        return image

    def render(self, source, motion):
        return type("Picture", (), dict(image=(source + motion) / 2))


def test_any_module_that_renders_is_evaluated_and_gets_its_mode_back():
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(3, 0))
    clip = synthetic_clip("a", faces, 32)
    rows = evaluate(Mean(), [clip], load_features()).rows
    assert rows["copy"]["PSNR"] + 6 < rows["model"]["PSNR"] < rows["copy"]["PSNR"] + 6.1  # half of the difference
    assert "flow, face (px)" not in rows["model"] and "flow, face (px)" in rows["copy"]
    failing = Mean().train()
    failing.render = None
    with pytest.raises(TypeError):
        evaluate(failing, [clip], load_features())
    assert failing.training
