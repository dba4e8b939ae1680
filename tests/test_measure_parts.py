"""The tool that measures a model's parts: a model that gives the truth gets the truth's numbers."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minimodel.data.pairs import RenderedPairs
from minimodel.model import AnimationModel
from minimodel.motion import Output, SourceState, Stages
from minimodel.warping import warp

PATH = Path(__file__).parent.parent / "tools" / "measure_parts.py"
spec = importlib.util.spec_from_file_location("measure_parts", PATH)
measure_parts = sys.modules["measure_parts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measure_parts)


class Oracle(AnimationModel):
    """Moves by the true flow, with true gates, and paints the driving frame itself."""

    def __init__(self, pairs: int):
        small = AnimationModel.from_preset("tiny", refine=False)
        super().__init__(prior=small.prior, generator=small.generator, image_size=64)
        source = RenderedPairs(64)
        drawn = source.draw(pairs, torch.Generator().manual_seed(measure_parts.SEED))
        self.truth = source.truth(drawn, torch.arange(pairs), torch.device("cpu"))
        self.driving = source.load(drawn, torch.arange(pairs), torch.device("cpu"))[1]

    def move(self, source, motion, **_):
        flow, gate = self.truth["true_flow"], 20 * self.truth["visible"] - 10
        coarse = super().move(source, motion).coarse
        return Stages(
            flows=[flow, flow], occlusions=[gate, gate], warped_source=warp(source.image, flow), coarse=coarse
        )

    def paint(self, source: SourceState, stages: Stages, *, gates=None) -> Output:
        return Output(image=self.driving, painted=self.driving, **vars(stages))


def test_the_truth_has_no_errors(monkeypatch):
    monkeypatch.setattr(measure_parts.AnimationModel, "load", lambda name: Oracle(8))
    monkeypatch.setattr(measure_parts, "alone", lambda model, count: {})
    found = measure_parts.measure(measure_parts.Measure("oracle", pairs=8))
    assert found["flow, coarse, face"] == found["flow, refined, mouth"] == 0
    assert found["gates, balanced accuracy"] == 1
    assert found["hidden pixels, error, own gates"] == 0
    assert found["hidden pixels, error, warped source"] == pytest.approx(1)  # by the true flow it is the measure
    assert found["hidden pixels, energy, true gates"] == pytest.approx(1)


class Copies(nn.Module):
    """Renders the source, or with ``follows`` the driving frame."""

    def __init__(self, follows: bool):
        super().__init__()
        self.follows, self.image_size = follows, 64

    def encode_source(self, image):
        return image

    encode_driving = encode_source

    def render(self, source, driving):
        return type("Output", (), dict(image=driving if self.follows else source))


@pytest.mark.parametrize("follows", [True, False])
def test_what_follows_changes_as_much_as_the_truth_and_a_copy_not_at_all(follows):
    found = measure_parts.alone(Copies(follows), 6)
    assert found["alone, lids, share of the change"] == pytest.approx(float(follows), abs=1e-6)
    assert found["alone, lips, share of the change"] == pytest.approx(float(follows), abs=1e-6)
    assert found["alone, gaze, error"] == pytest.approx(float(not follows), abs=1e-6)


def test_another_pairs_lookup_is_that_of_the_pair_before():
    model = AnimationModel.load("tiny")
    source, driving = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = model.encode_source(source)
        own = model.move(state, model.encode_driving(driving)).flows
        foreign = measure_parts.with_foreign_lookup(model, state, source, driving).flows
        again = model.move(state, model.encode_driving(driving)).flows
    assert torch.equal(own[0], foreign[0]) and not torch.equal(own[-1], foreign[-1])
    assert torch.equal(own[-1], again[-1])
