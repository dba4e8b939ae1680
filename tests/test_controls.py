"""Positive controls: shown features that tell which places correspond, lookup and updater correct a flow."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minimodel import losses
from minimodel.correlation import Correlation
from minimodel.motion import CoarseMotion
from minimodel.refinement import MotionRefiner, UpdaterWidths
from minimodel.warping import identity_grid, resize_flow

PATH = Path(__file__).parent.parent / "tools" / "controls.py"
spec = importlib.util.spec_from_file_location("controls", PATH)
controls = sys.modules["controls"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(controls)

SIZE, FEATURES = 16, 32


def place_code(places, waves):
    """Features of places (b, 2, h, w) whose dot products fall off within about a pixel."""
    phase = torch.einsum("bchw,nc->bnhw", places, waves)
    return 3 * torch.cat([phase.sin(), phase.cos()], dim=1)


def random_flow(batch, generator):
    """Smooth random flows of a pixel or two."""
    few = torch.randn(batch, 2, 4, 4, generator=generator) * 2 / SIZE
    return resize_flow(few, (SIZE, SIZE))


def refined_share(tell, steps=240):
    """Train an updater to correct flows that are shifted at random; the share of the error that is left on new ones.
    ``tell`` False shows it the features of another pair."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(FEATURES // 2, 2, generator=generator) * SIZE / 2
    widths = UpdaterWidths((32, 32), (8, 8), 34, (8, 8), 32)
    refiner = MotionRefiner([8], radius=3, levels=2, iterations=1, widths=widths, warped_source=False)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=3e-3)
    grid = identity_grid(SIZE, SIZE)[None]

    def error(batch):
        flow = random_flow(batch, generator)
        start = flow + (torch.rand(batch, 2, 1, 1, generator=generator) - 0.5) * 8 / SIZE  # up to two pixels
        driving = place_code(grid + flow, waves)
        driving = driving if tell else driving.roll(1, 0)
        source = place_code(grid, waves).expand(batch, -1, -1, -1)
        correlation = Correlation(driving, source, radius=3, levels=2, hold_volume=True)
        coarse = CoarseMotion(start, torch.zeros(batch, 1, SIZE, SIZE))
        refined = refiner(coarse, correlation, [], [(SIZE, SIZE)])[0][-1]
        visible = torch.ones(batch, 1, SIZE, SIZE)
        return [losses.true_flow_loss([each], flow, visible) for each in (refined, start)]

    for _ in range(steps):
        loss = error(8)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after, before = error(64)
    return (after / before).item()


def test_lookup_and_updater_correct_a_flow_when_features_say_where_things_are():
    told, misled = refined_share(tell=True), refined_share(tell=False)
    assert told < 0.3
    assert misled > 1.5 * told  # what is left to guess: how far a smooth flow was shifted as a whole


@pytest.mark.parametrize("shown", ["picture", "landmarks", "points"])
def test_a_control_begins_as_the_coarse_flow_and_all_of_it_learns(shown):
    model = controls.AnimationModel.from_preset("tiny-quarter", prior="tokens").eval()
    stream = controls.PairStream([controls.RenderedPairs(64)], 64, torch.device("cpu"), batch=2, seed=0, truth=True)
    batch, coarse = controls.prepare(model, controls.with_landmarks(stream, 0))
    assert torch.equal(batch["source_landmarks"][0], batch["driving_landmarks"][1])
    control = controls.Control(model, shown)
    flows = control(batch, coarse)
    assert [flow.shape[-1] for flow in flows] == [16, 8, 16, 32, 64]
    assert all(torch.equal(flow, resize_flow(coarse, tuple(flow.shape[-2:]))) for flow in flows)
    nn.init.normal_(control.refiner.updater.flow_head[-1].weight, std=0.1)
    flows = control(batch, coarse)
    losses.true_flow_loss(flows, batch["true_flow"], batch["visible"]).backward()
    learns = {name.split(".")[0] for name, p in control.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == {"structure", "context", "refiner"}
    assert not torch.allclose(control(batch, coarse, foreign=True)[-1], flows[-1])


def test_spoiling_moves_turns_and_smooths_each_pair_by_its_own_amount():
    flow = torch.zeros(64, 2, 16, 16)
    flow[:, 0, :, 8:] = 0.2
    spoilt = controls.spoil(flow, torch.Generator().manual_seed(0))
    assert torch.equal(spoilt, controls.spoil(flow, torch.Generator().manual_seed(0)))
    shift = (spoilt - flow).mean((2, 3))
    assert 0.1 < shift.abs().amax() < 0.14 and shift.std(0).min() > 0.05
    step = spoilt[:, 0, 8, 8] - spoilt[:, 0, 8, 7]  # the edge that smoothing wears down
    assert step.min() < 0.1 < 0.15 < step.max()
