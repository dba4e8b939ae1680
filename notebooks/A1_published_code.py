# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A1 · Published code: what differs from the papers and from ours, and what each difference costs
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: points, coarse flow, lookup, update, encoder, decoder.](maps/A1.svg)
#
# The public code of **FOMM**, **TPSM**, **MRFA** and **MTIA** computes the papers' equations. Around them it takes a dozen
# decisions that no paper mentions. None ruins a model that was trained with it: a network learns around half a pixel. But
# weights remember. Run by another rule than its own, a network loses from nothing up to as much as its own error, and nothing
# warns its user.
#
# Here each decision is measured. Two cost the most: how a grid is enlarged (2 pixels) and how a picture is made small
# (3 pixels). MRFA's generator has 15.6 million parameters that its paper doesn't show. The centre of MRFA's lookup, which looks
# like a plain mistake, costs nothing that one could see. At the end stand one table, and how to run a checkpoint of your own.
#
# You need notebooks 1, 2, 7 and 8. All that is published here lies in `minimodel.published`, which gives the pictures of the
# published networks to 1e-4; the main course never imports it.

# %%
import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minimodel import affine, show, tps
from minimodel.commands.import_checkpoint import ImportCheckpointConfig, import_published
from minimodel.data import synthetic
from minimodel.dense_motion import contribution_masks, dropout_scales
from minimodel.model import AnimationModel
from minimodel.motion import SourceState, Stages
from minimodel.published import conventions
from minimodel.published.generators import CoarseStreamUNet
from minimodel.published.model import PublishedModel
from minimodel.published.motion import GridMotion
from minimodel.published.names import network_entries
from minimodel.published.networks import handling
from minimodel.published.refinement import PublishedLookup, PublishedRefiner
from minimodel.published.sizes import PublishedConfig
from minimodel.warping import flow_to_pixels, identity_grid, resize_flow, size_of, to_pixels, warp

torch.manual_seed(0)
torch.set_grad_enabled(False)
FULL, COARSE = (256, 256), (64, 64)  # the published sizes of a picture and of a coarse flow


def decibels(picture, other):
    """PSNR of all pictures taken together, so that a few bad ones count."""
    return -10 * (picture - other).square().mean().clamp_min(1e-10).log10().item()


# %% [markdown]
# The four models at their published sizes. On PyTorch's device "meta" they have shapes and no numbers: enough for counting.

# %%
dense = dict(base=64, levels=5, maximum=1024, head_kernel=7)
heatmaps = dict(base=32, levels=5, maximum=1024, head_kernel=7)
resnet = dict(base=64, levels=4, blocks=2, pool=True)
bottleneck = dict(base=64, levels=2, maximum=256, outer_kernel=7, blocks=6)
trunk = dict(stem=64, first_blocks=4, expanded=256, base=32, exchanges=[1, 4], blocks=4)
tokens = dict(trunk=trunk, patch=4, width=192, depth=12, heads=8, hidden=576, places=256)
structure = dict(base=32, levels=5, maximum=512, size=64)
refiner = dict(features=256, structure=structure, radius=3, levels=2)
unet = dict(base=64, levels=5, maximum=512, outer_kernel=7)
SIZES = {
    "FOMM": PublishedConfig("fomm", "affine", 10, heatmaps | dict(matrix_maps=10), dense, bottleneck),
    "TPSM": PublishedConfig(
        "tpsm",
        "tps",
        10,
        detector=resnet,
        dense_motion=dense | dict(finer=2, coarser=1),
        generator=dict(base=64, levels=3, maximum=512, outer_kernel=7),
        background=resnet,
        avd=dict(widths=[256, 512, 1024], shape_code=128, pose_code=128),
    ),
    "MRFA": PublishedConfig("mrfa", "affine", 10, heatmaps | dict(matrix_maps=1), dense, unet, refiner=refiner),
    "MTIA": PublishedConfig("mtia", "tokens", 10, tokens, dense, bottleneck),
}
with torch.device("meta"):
    published = {name: PublishedModel(sizes) for name, sizes in SIZES.items()}

# %% [markdown]
# ## Where is a pixel?
#
# Here a picture spans −1 to 1 from edge to edge (notebook 1). In all four codes the *centres* of the outer pixels lie at −1
# and 1. Either is fine. Mixing them isn't, and the codes mix them in two places:
#
# - PyTorch's `grid_sample` takes −1 for the edge (`align_corners=False`) or for the centre (`True`). Up to version 1.2 it
#   did the latter by default, since then the former. FOMM and MTIA name neither, so today FOMM's old weights are sampled
#   otherwise than they were trained. TPSM and MRFA's refinement name True, MRFA's affine coarse stage False.
# - A grid of 64 × 64 is enlarged to the picture's 256 × 256: with aligned corners in TPSM and MRFA, without in FOMM and MTIA.
#
# What does a motion of *nothing* do then? Take the grid at rest, enlarge it and sample by it as each code does. The curves
# are the displacements along one row.

# %%
ways = {
    "FOMM, MTIA today": (False, False),
    "FOMM as it was trained": (False, True),
    "MRFA without refinement": (True, False),
    "TPSM, refined MRFA, ours": (True, True),
}
assert not handling(SIZES["FOMM"]).features and not handling(SIZES["FOMM"]).resizing
assert handling(replace(SIZES["FOMM"], align_corners=True)).features  # `import-checkpoint --align-corners`
assert handling(SIZES["TPSM"]).features and handling(SIZES["TPSM"]).resizing
assert not handling(SIZES["MRFA"]).features and handling(SIZES["MRFA"]).resizing


def at_rest(resizing, sampling, coarse=COARSE, full=FULL):
    """The flow by which a published code leaves a picture where it is."""
    grid = conventions.resize(conventions.corner_grid(*coarse)[None], full, align_corners=resizing)
    return conventions.flow_from_grid(grid, full, align_corners=sampling)


rest = {name: at_rest(*way) for name, way in ways.items()}
figure, axis = plt.subplots(figsize=(6, 2.6))
for name, flow in rest.items():
    axis.plot(flow_to_pixels(flow)[0, 0, 128], label=name)
axis.set(xlabel="column of a picture of 256", ylabel="displacement (pixels)")
axis.legend(fontsize=8, loc="upper left")
plt.show()
worst = [flow_to_pixels(flow).abs().max().item() for flow in rest.values()]
assert [round(pixels, 1) for pixels in worst] == [2.0, 1.5, 0.5, 0.0]

# %% [markdown]
# FOMM's code as it runs today enlarges every picture by a sixty-fourth: **2 pixels at the border**, 1.5 as it was trained.
# (The hooks at the ends: there an enlarged grid has no neighbour, and repeats its last value.) On a face:

# %%
who = synthetic.sample_identities(1, seed=7)
photo = synthetic.render(synthetic.Faces(who, synthetic.neutral_states(1)), 256)
made = {name: warp(photo, flow) for name, flow in rest.items()}
cost = {name: decibels(picture, photo) for name, picture in made.items()}


def compare(columns, pairs, times, side=2.4, bar=0.2):
    """Pictures, then for each pair the absolute difference, ``times`` as strong, on one scale with a bar."""
    differences = [show.heat((a - b).abs().amax(1, keepdim=True), largest=1 / times) for a, b in pairs]
    names = [f"{name}: difference × {times}" for name in list(columns)[1 : len(pairs) + 1]]
    pictures = torch.cat([*columns.values(), *differences])
    figure = show.draw_pictures({"": pictures}, columns=[*columns, *names], side=side)
    beside = figure.add_axes((1.01, bar, 0.01, 0.6))
    colours = plt.cm.ScalarMappable(plt.Normalize(0, 255 / times), "viridis")
    figure.colorbar(colours, cax=beside).set_label("difference (of 255)", fontsize=8)
    plt.show()


now, then, half, _ = made.values()
compare({"photo": photo, "FOMM today": now, "half a pixel": half}, [(now, photo), (half, photo)], times=5)
print(", ".join(f"{name} {value:.1f} dB" for name, value in cost.items()))
assert 27 < cost["FOMM, MTIA today"] < cost["FOMM as it was trained"] < 32 < 38 < cost["MRFA without refinement"] < 41
assert cost["TPSM, refined MRFA, ours"] > 90

# %% [markdown]
# **At rest, FOMM of today changes a sharp picture by 28 dB**, about as much as a good model errs altogether; half a pixel
# costs 39 dB. The middle stays where it is, the error grows towards the edges. So an imported FOMM file has to know its rule:
# `minimodel import-checkpoint --align-corners` is for files that were trained with True.
#
# ## Outside the picture
#
# All four sample black there; ours repeats the edge. Let the camera pan: both frames are cut from one wide picture, so the
# true flow is a shift by 44 pixels.

# %%
wide = synthetic.render(synthetic.Faces(who, synthetic.neutral_states(1)), 320)[..., 32:288, :]
before_pan, after_pan = wide[..., :256], wide[..., 44:300]
pan = torch.tensor([2 * 44 / 256, 0]).view(1, 2, 1, 1).expand(1, 2, *FULL)
black, edge = warp(before_pan, pan, padding="zeros"), warp(before_pan, pan)
columns = ["source", "driving", "published: black", "ours: edge"]
show.pictures({"": torch.cat([before_pan, after_pan, black, edge])}, columns=columns, side=2.4)
print(f"against the driving frame: black {decibels(black, after_pan):.1f} dB, edge {decibels(edge, after_pan):.1f} dB")
assert decibels(edge, after_pan) > decibels(black, after_pan) + 5

# %% [markdown]
# Black says that nothing is known there. Repeating is the better guess, as long as walls are plain.
#
# ## Points: where does a detector say that something is?
#
# All four bring pictures to a quarter by a Gaussian filter and keep every fourth pixel *from the first one on*; an
# average of 4 × 4 pixels lies in their middle, 1.5 pixels further. In FOMM and MRFA the heads of the detector have no padding:
# 64 × 64 features give a heatmap of 58 × 58, whose outer pixels are called −1 and 1 again.
#
# A perfect detector shows what follows: the picture is one bright spot, and the heatmap is the spot itself. Arrows lead
# from where the spot is to where it is said to be, three times as long as the error.

# %%
places = torch.stack(torch.meshgrid(*[torch.linspace(32, 223, 5)] * 2, indexing="xy"), -1).view(-1, 1, 2)  # pixels
squared = (identity_grid(*FULL).mul(128) + 127.5 - places.view(-1, 2, 1, 1)).square().sum(1, keepdim=True)
spot = torch.exp(-squared / (2 * 6**2))  # (25, 1, 256, 256)


def said(spot, *, small, crop, grid):
    """Pixels of the large picture: the mean position under the small spot, read off ``grid``."""
    heatmap = small(spot)[..., crop : 64 - crop, crop : 64 - crop]
    mean = (heatmap * grid(64 - 2 * crop, 64 - 2 * crop)).sum((2, 3)) / heatmap.sum((2, 3))
    return mean


averaged = to_pixels(said(spot, small=lambda x: F.avg_pool2d(x, 4), crop=0, grid=identity_grid), FULL)
corners = dict(small=lambda x: conventions.downsample(x, 4), grid=conventions.corner_grid)
padded, unpadded = ((said(spot, crop=crop, **corners) + 1) * 255 / 2 for crop in (0, 3))
errors = {"averages, padded (ours)": averaged, "Gaussian": padded, "Gaussian, no padding (FOMM, MRFA)": unpadded}

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
for axis, (name, points) in zip(axes, errors.items()):
    axis.imshow(photo[0].permute(1, 2, 0))
    x, y = places[:, 0].T
    u, v = (points - places[:, 0]).T
    axis.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1 / 3, color="tab:red", width=0.01, zorder=3)
    axis.scatter(x, y, s=6, color="yellow")
    off = (points - places[:, 0]).norm(dim=1).max()
    axis.set(xticks=[], yticks=[], xlim=(-30, 285), ylim=(285, -30), xlabel=f"up to {off:.1f} pixels")
    axis.set_title(name, fontsize=9)
plt.show()
assert (averaged - places[:, 0]).abs().max() < 0.1 and 2 < (padded - places[:, 0]).abs().max() < 3
longer = (unpadded[4] - unpadded[0]).norm() / (places[4] - places[0]).norm()
print(f"a movement is said to be {longer:.2f} times as long")
assert 1.1 < longer < 1.13

# %% [markdown]
# Ours is exact. The Gaussian pulls points down and to the right, the missing padding pushes them outwards, and **every movement
# counts for an eighth more than it is**. A trained detector can put the hills of its heatmaps elsewhere and so make up for it.
# Detectors without heatmaps (TPSM's, MTIA's) have none of this.
#
# What does a *trained* detector make of small pictures of either kind? `tiny-affine` knows averages only.

# %%
pair = synthetic.sample_pairs(4, seed=42)
large_S, large_D = (synthetic.render(faces, 256) for faces in pair)
small_S, small_D, filtered_S, filtered_D = (
    shrink(x, 4) for shrink in (F.avg_pool2d, conventions.downsample) for x in (large_S, large_D)
)
hourglass = AnimationModel.load("tiny-affine")
found, found_filtered = (hourglass.encode_source(x).motion.points for x in (small_S, filtered_S))
moved = 128 * (found_filtered - found)
right, filtered = hourglass(small_S, small_D).image, hourglass(filtered_S, filtered_D).image
compare({"average": small_S[:1], "Gaussian": filtered_S[:1]}, [(filtered_S[:1], small_S[:1])], times=3)
mean, most = moved.norm(dim=-1).mean().item(), moved.norm(dim=-1).max().item()
print(f"the pictures: {decibels(filtered_S, small_S):.1f} dB")
print(f"points, in pixels of 256: {mean:.1f} on average, {most:.1f} at most")
assert 1.5 < mean < 2.6 and most < 5

# %% [markdown]
# The Gaussian is softer, dark at the border (its filter sees black outside) and shifted. The points follow the shift.
#
# ## TPSM: splines that pull to the middle
#
# A spline's system gets 0.01 on its diagonal, against points that nearly coincide. Ours gets it on the kernel block alone
# and fits *displacements* (notebook 2). TPSM's code adds it to all of the bordered matrix and fits *positions*, so the affine
# part is damped, too. Give both points that don't move at all:

# %%
spline_model = AnimationModel.load("tiny-tps")
start = spline_model.encode_source(small_S[:1]).motion.points.unflatten(1, (-1, 5))
theirs = conventions.spline_grids(start, start, FULL) - conventions.corner_grid(*FULL)
in_pixels = flow_to_pixels(theirs).norm(dim=2)  # (1, 10, 256, 256)
ours = tps.part_flows(start, start, FULL)
part = in_pixels.amax((2, 3)).argmax().item()
lined = large_S[:1].clone()
lined[..., 8::16, :] = lined[..., :, 8::16] = 1
columns = ["ours: identical points", "TPSM: identical points", "length of TPSM's flow"]
pulled = [warp(lined, flows[:, part]) for flows in (ours, theirs)]
length = show.heat(in_pixels[:, part : part + 1], largest=in_pixels.max().item())
figure = show.draw_pictures({"": torch.cat([*pulled, length])}, columns=columns, side=2.4)
for axis in figure.axes[:2]:
    show.dots(axis, start[0, part], FULL, color="tab:red")
bar = figure.colorbar(
    plt.cm.ScalarMappable(plt.Normalize(0, in_pixels.max().item()), "viridis"),
    cax=figure.add_axes((1.01, 0.2, 0.01, 0.6)),
)
bar.set_label("pixels of 256", fontsize=8)
plt.show()
print(
    f"no point moves; TPSM's splines move the picture by {in_pixels.mean():.1f} pixels on average, {in_pixels.max():.1f} at most"
)
assert ours.abs().max() < 1e-5 and in_pixels.max() > 5

# %% [markdown]
# **Ours stands still, TPSM's spline doesn't.** The less of the map its five points fix, the further it pulls towards
# the picture's middle. Masks hide most of it, as a part speaks only near its points: under the trained `tiny-tps` the
# published splines change the picture little (below).
#
# TPSM's dropout of parts should divide by $1 - P$, so that what is left counts for more (notebook 2, Equation 7). Its code
# divides the logits *after* taking their exponentials:

# %%
P = 0.3
spline_source, spline_driving = spline_model.encode_source(small_S), spline_model.encode_driving(small_D)
masks = spline_model.move(spline_source, spline_driving).coarse.masks
logits = masks.log()


def published_dropout(logits, scales):
    exponentials = logits.exp() * torch.cat([torch.ones(len(scales), 1), (scales > 0).float()], 1)[..., None, None]
    logits = logits / (1 - P)  # too late: nothing reads it any more
    return exponentials / exponentials.sum(1, keepdim=True)


chance = torch.Generator().manual_seed(0)
draws = [dropout_scales(torch.rand(4, 10, generator=chance), P) for _ in range(100)]
share = {
    "all parts": masks[:, 0].mean().item(),
    "as in Eq. 7": sum(contribution_masks(logits, scales)[:, 0].mean().item() for scales in draws) / 100,
    "TPSM's code": sum(published_dropout(logits, scales)[:, 0].mean().item() for scales in draws) / 100,
}
assert torch.allclose(
    published_dropout(logits, draws[0]), contribution_masks(logits, (draws[0] > 0).float()), atol=1e-6
)
print("share of the background:", ", ".join(f"{name} {value:.2f}" for name, value in share.items()))
assert share["all parts"] < share["as in Eq. 7"] < share["TPSM's code"]

# %% [markdown]
# The division does nothing. In training TPSM's background counts for slightly more than Eq. 7 grants it. Nothing is dropped
# when it animates.
#
# ## MRFA: the generator that the paper doesn't show
#
# In refined models the decoder gets one thing more, at every scale but the finest: the source's features, warped by the
# *coarse* flow, without a gate. Convolutions join them. The baseline without refinement has these layers in its file and
# doesn't use them, so MRFA's comparison "with and without refinement" compares two generators as well.


# %%
def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


with torch.device("meta"):
    our_paper = AnimationModel.from_preset("paper", system="mrfa")
coarse_stream = millions(published["MRFA"].generator.join)
print(f"MRFA published {millions(published['MRFA']):.1f} M, of them the coarse stream {coarse_stream:.2f} M")
print(
    f"our preset `paper` {millions(our_paper):.1f} M; the transformer's trunk of MTIA {millions(published['MTIA'].prior.detector.trunk):.1f} M"
)
assert round(millions(published["MRFA"]), 1) == 116.2 and round(millions(our_paper), 1) == 100.7
assert round(coarse_stream, 2) == 15.64

# %% [markdown]
# What is the stream worth? We have no trained weights with it, and random ones can't say. They can say what it lets
# *through*. With all gates shut, nothing of the source should reach the painted picture (Equations 9 and 10). Two sources, all gates
# shut, random weights:

# %%
flow, shut = torch.zeros(1, 2, 16, 16), [torch.full((1, 1, side, side), -100.0) for side in (16, 16, 32, 64)]
flows = [torch.zeros(1, 2, *size_of(gate)) for gate in shut]
coarse = GridMotion(flow, shut[0], grid=conventions.corner_grid(16, 16)[None])
leak = {}
for streams in (False, True):
    generator = CoarseStreamUNet(base=8, levels=2, maximum=32, streams=streams).eval()
    painted = []
    for picture in (small_S[:1], small_D[1:2]):
        source = SourceState(picture, hourglass.encode_driving(picture), generator.encode(picture))
        still = Stages(flows=flows, occlusions=shut, warped_source=picture, coarse=coarse)
        painted.append(generator.paint(source, still)[0])
    leak[streams] = (painted[0] - painted[1]).abs().max().item()
answers = [
    f"{'yes' if leak[streams] > 1e-3 else 'no'}, {name}" for streams, name in ((False, "without"), (True, "with it"))
]
print("does the picture show which source it is?", "; ".join(answers))
assert leak[False] == 0 and leak[True] > 1e-3

# %% [markdown]
# **The stream goes around the gates.** (`coarse_stream` of `ModelConfig` builds a smaller one, and
# `minimodel ablate matched` compares refinement with one generator on both sides.)
#
# ## MRFA: the lookup's centre
#
# Level 1 of the correlation averages source positions 2 × 2. A place $x$ of level 0, in pixels, lies at
# $(x + 1/2)/2 - 1/2$ of level 1 (notebook 7). The published code reads around $x/2$, a quarter of a pixel to the lower right.
# Here the flow is exactly right, so the scores should be centred in the patch:

# %%
side, radius = 32, 3
at = identity_grid(side, side).flatten(1).T
alike = torch.exp(-(at[:, None] - at).square().sum(-1) / 0.02)  # each place resembles its neighbours
features = rearrange(alike, "n (h w) -> 1 n h w", h=side)
lookup = PublishedLookup(features, features, radius=radius, levels=2)
pixels = rearrange(to_pixels(at, (side, side)), "(h w) c -> 1 c h w", h=side)
read = {"published": lookup(pixels), "ours": lookup(pixels - 0.5)}  # (x - 1/2) / 2 is our centre of level 1
patches = {name: rearrange(values[0, 49:, 16, 16], "(x y) -> y x", x=7) for name, values in read.items()}
offsets = torch.arange(-3.0, 4)
figure, axes = plt.subplots(1, 3, figsize=(8.5, 2.5), width_ratios=(1, 1, 1.3), layout="constrained")
highest = max(patch.max() for patch in patches.values())
for axis, (name, patch) in zip(axes, patches.items()):
    shown = axis.imshow(patch / highest, vmin=0, vmax=1, extent=(-3.5, 3.5, 3.5, -3.5))
    axis.plot(0, 0, "+", color="tab:red", markersize=12)
    axis.set_title(f"{name}: level 1", fontsize=9)
    axis.set(xticks=[-3, 0, 3], yticks=[-3, 0, 3])
    axes[2].plot(offsets, patch[3] / highest, marker="o", markersize=3, label=f"{name}, middle row")
axes[2].set(xlabel="offset in x (pixels of level 1)")
axes[2].legend(fontsize=7)
figure.colorbar(shown, ax=axes[1], label="score")
plt.show()
centre = {name: ((patch.sum(0) / patch.sum()) * offsets).sum().item() for name, patch in patches.items()}
print(", ".join(f"{name} {abs(value):.1f}" for name, value in centre.items()), "pixels of level 1 from the middle")
assert abs(centre["ours"]) < 0.03 and -0.3 < centre["published"] < -0.2

# %% [markdown]
# Of a flow that is right the published patch says "a quarter of a pixel up and to the left". (It also lists x before y, a
# matter of order.)
#
# ## MRFA: flows that grow, and a picture from the last but one
#
# Inside its loop a flow is in pixels of which n − 1 span n, and doubles with each scale. A constant flow, and an updater that
# does nothing (its last layers start at zero):

# %%
loop = PublishedRefiner([4] * 6, radius=3, pyramid_levels=2).eval()
grid = conventions.corner_grid(*COARSE)[None] + 0.1
scales = [8 * 2**i for i in range(6)]
loop_lookup = PublishedLookup(torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 64, 64), radius=3, levels=2)
constant, _, _ = loop(
    GridMotion(grid, torch.zeros(1, 1, 64, 64), grid=grid), loop_lookup, [torch.zeros(1, 4, n, n) for n in scales]
)
stretched = {n: (flow.mean() * n / (n - 1) / 0.1).item() for n, flow in zip(scales, constant)}
print("times as long:", ", ".join(f"{n}: {times:.3f}" for n, times in stretched.items()))
assert abs(stretched[8] - 1.125) < 1e-3 and abs(stretched[64] - 1) < 1e-3 and abs(stretched[256] - 0.988) < 1e-3

# %% [markdown]
# An eighth too long at 8 × 8, a hundredth too short at 256 × 256: the updater has to learn to undo it.
#
# The last step blends the painted picture with the warped source, where that can be trusted. MRFA's code warps it by the flow
# *before* the last update, though its features were warped by the flow after it. Ours takes the last flow for both, as `tiny-unsupervised`
# was trained. Swapped:

# %%
source, driving = synthetic.sample_pairs(16, seed=42)
S, D = synthetic.render(source, 64), synthetic.render(driving, 64)
tiny = AnimationModel.load("tiny-unsupervised")
state, motion = tiny.encode_source(S), tiny.encode_driving(D)
stages = tiny.move(state, motion)
coarse_flow = stages.coarse.flow
before = resize_flow(coarse_flow, (64, 64)) + resize_flow(
    stages.flows[-2] - resize_flow(coarse_flow, (32, 32)), (64, 64)
)
result = tiny.paint(state, stages)
by_last_but_one = tiny.paint(state, replace(stages, warped_source=warp(S, before))).image
update = flow_to_pixels(stages.flows[-1] - before).norm(dim=1)
i = (by_last_but_one - result.image).abs().mean((1, 2, 3)).argmax().item()
row = slice(i, i + 1)
compare(
    {"by the last flow": result.image[row], "by the last but one": by_last_but_one[row], "driving": D[row]},
    [(by_last_but_one[row], result.image[row])],
    times=5,
)
print(f"the last update: {update.mean():.2f} pixels on average, {update.max():.1f} at most")

# %% [markdown]
# Only edges change, where the last update moves something.
#
# ## Generators, norms, sizes
#
# FOMM never blends: what its decoder paints *is* the picture, from features at 1/4 that were gated once.
# MTIA's generator is the same with a gate at each scale and a blended picture. TPSM has instance norms in dense motion and
# inpainting: each channel is normalised by its own mean and spread. Its first features don't notice how bright
# a photo is:

# %%
little_tpsm = replace(SIZES["TPSM"], generator=dict(base=8, levels=3, maximum=32, outer_kernel=7), avd=None)
first_layers = {
    "instance norm": PublishedModel(little_tpsm).eval().generator.first,
    "batch norm": CoarseStreamUNet(base=8, levels=3, maximum=32, streams=False).eval().first,
}
ratios = {name: ((layer(0.5 * S).norm() / layer(S).norm()).item()) for name, layer in first_layers.items()}
print("features of a photo at half its brightness:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
assert abs(ratios["instance norm"] - 1) < 0.02 and abs(ratios["batch norm"] - 0.5) < 0.02

# %%
ours_like = {
    "FOMM": dict(system="fomm"),
    "TPSM": dict(system="tpsm"),
    "MRFA": dict(),
    "MTIA": dict(prior="tokens", refine=False),
}
print(f"{'million parameters':20}{'published':>10}{'`paper`':>9}{'detector':>17}{'generator':>15}")
for name, options in ours_like.items():
    with torch.device("meta"):
        mine = AnimationModel.from_preset("paper", **options)
    both = published[name], mine
    columns = [f"{millions(m.prior.detector):.1f} / " for m in both], [f"{millions(m.generator):.1f} / " for m in both]
    total = f"{millions(both[0]):>10.1f}{millions(mine):>9.1f}"
    print(f"{name:20}{total}", *("".join(column)[:-3].rjust(15) for column in columns))

# %% [markdown]
# (Left of each slash the published one.) So "the published sizes" of our preset `paper` are MRFA's hourglasses, points and
# updater. System `fomm` has MRFA's U-Net there, as in MRFA's Table 3. The coarse stream, FOMM's generator, TPSM's ResNet for the
# background, its wider occlusion heads and its avd network, and MTIA's trunk are in `minimodel.published` alone.
#
# ## What does the wrong rule cost?
#
# Now on one scale. `tiny-unsupervised` (for splines `tiny-tps`, for the Gaussian `tiny-affine`) was trained by our rules. Break one rule at
# a time, and compare with the picture by the right rules. (At 64 pixels half a pixel is four times as much of a face as at 256,
# so for grids take the figures above.)


# %%
def shifted(flow_at_rest):
    """The picture when every flow is off by that of a published grid at rest."""
    flows = [flow + flow_at_rest(size_of(flow)) for flow in stages.flows]
    return tiny.paint(state, replace(stages, flows=flows, warped_source=warp(S, flows[-1]))).image


class PublishedCentre(nn.Module):
    """A trained structure correlation, read around the published centres."""

    def __init__(self, structure):
        super().__init__()
        self.structure = structure

    def forward(self, source, points):
        driving = self.structure.driving_encoder(points, size_of(source))

        def look_up(flow):
            size = min(size_of(flow), size_of(source))
            ends = identity_grid(*size) + resize_flow(flow, size)
            in_source = to_pixels(rearrange(ends, "b c h w -> b h w c"), size_of(source))
            lookup = PublishedLookup(resize_flow(driving, size), source, radius=3, levels=2)
            values = lookup(rearrange(in_source, "b h w c -> b c h w"))
            return rearrange(values, "b (l x y) h w -> b (l y x) h w", x=7, y=7)

        return look_up


class PublishedSplines(nn.Module):
    """A trained spline prior, whose splines are fitted as TPSM's code does."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.structure_points = prior, prior.structure_points

    def forward(self, image, start, end, correlation):
        points = (motion.points.unflatten(1, (-1, 5)) for motion in (start, end))
        displaced = (conventions.spline_grids(*points, COARSE) - conventions.corner_grid(*COARSE)).flatten(0, 1)
        here = identity_grid(32, 32).expand(
            len(displaced), -1, -1, -1
        )  # read where our pixels are: only the fit differs
        flows = conventions.sample(displaced, here, align_corners=True).unflatten(0, (len(image), -1))
        small = F.avg_pool2d(image, 2)
        return self.prior.dense_motion(small, start.points, end.points, affine.with_background(flows))


def render_with(model, name, part, source, driving):
    """The picture of a model in which ``part`` wraps the module ``name``."""
    own = getattr(model, name)
    setattr(model, name, part(own))
    try:
        return model.render(source, driving).image
    finally:
        setattr(model, name, own)


right_rules = result.image
with_centre = render_with(tiny, "structure", PublishedCentre, state, motion)
spline_source, spline_driving = spline_model.encode_source(S), spline_model.encode_driving(D)
own_splines = spline_model.render(spline_source, spline_driving).image
their_splines = render_with(spline_model, "prior", PublishedSplines, spline_source, spline_driving)
in_black = tiny.paint(state, replace(stages, warped_source=warp(S, stages.flows[-1], padding="zeros"))).image
pictures = {
    "small picture by a Gaussian": (filtered, right),
    "grid enlarged, corners not aligned": (shifted(lambda size: at_rest(False, False, (32, 32), size)), right_rules),
    "picture not blended": (result.painted, right_rules),
    "half a pixel (align_corners)": (shifted(lambda size: at_rest(True, False, size, size)), right_rules),
    "black outside": (in_black, right_rules),
    "blended by the last flow but one": (by_last_but_one, right_rules),
    "splines as TPSM fits them": (their_splines, own_splines),
    "lookup's centre": (with_centre, right_rules),
}
apart = {name: decibels(*two) for name, two in pictures.items()}

# %%
own_error = decibels(right_rules, D)
apart = dict(sorted(apart.items(), key=lambda item: item[1]))
figure, axis = plt.subplots(figsize=(6, 3))
axis.bar_label(axis.barh(list(apart), list(apart.values())), fmt="%.0f", fontsize=8, padding=2)
axis.axvline(own_error, color="tab:red", linewidth=1)
axis.text(own_error + 0.5, -0.75, "as far as the model itself is from the truth", color="tab:red", fontsize=8)
axis.set(xlabel="PSNR against the right rules' picture (dB): longer is closer", xlim=(0, 66), ylim=(-1.2, 7.6))
axis.invert_yaxis()
plt.show()
order = list(apart)
assert set(order[:2]) == {"small picture by a Gaussian", "grid enlarged, corners not aligned"}
assert set(order[-2:]) == {"splines as TPSM fits them", "lookup's centre"} and apart["lookup's centre"] > 50
assert abs(apart[order[0]] - own_error) < 2 and apart[order[1]] < 29 and apart[order[2]] > 30

# %% [markdown]
# **The first two move a picture as far as the model's whole error does; the last, nobody sees.** Therefore
# [`conventions.py`](../minimodel/published/conventions.py) keeps grids, sampling, resizing and shrinking in one place, and an
# imported file records which it was trained by.
#
# One difference leaves no trace in a checkpoint: the random bends for the equivariance loss. In all four the control points
# reach the corners (ours end at ±0.8); FOMM, MRFA and MTIA measure distances by L1, with $r^2 \log r$. From the same draws:

# %%
bend = tps.random_transforms(64, torch.Generator().manual_seed(0))
at = rearrange(identity_grid(32, 32), "c h w -> (h w) c")


def bending(control, distance, factor):
    r = distance(at[:, None] - control)  # (1024, 25)
    kernel = factor * r.square() * torch.log(r.clamp_min(1e-6))
    return 128 * (torch.einsum("pn, bni -> bpi", kernel, bend.weights[:, 0])).norm(dim=-1).mean().item()


to_corners = rearrange(conventions.corner_grid(5, 5), "c h w -> (h w) c")
ours_bend = bending(bend.control[0, 0], lambda x: x.norm(dim=-1), 2)
tpsm_bend = bending(to_corners, lambda x: x.norm(dim=-1), 2)
theirs_bend = bending(to_corners, lambda x: x.abs().sum(-1), 1)
print(
    f"mean bend at 256 pixels: ours {ours_bend:.1f}, TPSM {tpsm_bend:.1f}, FOMM, MRFA and MTIA {theirs_bend:.1f} pixels"
)
assert theirs_bend > 1.5 * ours_bend

# %% [markdown]
# ## All of it
#
# | published | who | measured here | in `minimodel/published` |
# |---|---|---|---|
# | outer pixel centres at −1 and 1 | all | a factor of $n/(n-1)$ | [`conventions.py`](../minimodel/published/conventions.py) `corner_grid` |
# | sampled without aligned corners | FOMM and MTIA today, MRFA's affine and token coarse stage, its baseline, its coarse stream | 0.5 pixels, 39 dB at rest | `conventions.sample`, [`networks.py`](../minimodel/published/networks.py) `handling` |
# | grid enlarged without aligned corners | FOMM, MTIA | 2.0 pixels (1.5 as trained), 28 dB at rest (30) | `conventions.resize` |
# | black outside | all | 37 dB under `tiny-unsupervised` | `conventions.sample` |
# | small pictures by a Gaussian | all | points move by 2 pixels, 27 dB under `tiny-affine` | `conventions.downsample` |
# | heads without padding | FOMM, MRFA | movements × 1.12 | [`detectors.py`](../minimodel/published/detectors.py) |
# | splines: the whole diagonal, positions | TPSM, MRFA's splines | with identical points 2 pixels, up to 22; 42 dB under `tiny-tps` | `conventions.spline_grids` |
# | division after the exponential | TPSM | nothing | nowhere: training only |
# | instance norms | TPSM | brightness is lost | `networks.py` |
# | coarse stream | MRFA, refined | 15.64 M, around the gates | [`generators.py`](../minimodel/published/generators.py) |
# | lookup at $x / 2^l$ | MRFA | 1/4 pixel of level 1, 57 dB under `tiny-unsupervised` | [`refinement.py`](../minimodel/published/refinement.py) |
# | flows double with each scale | MRFA | × 1.125 to × 0.988 | `refinement.py` |
# | blended by the flow before the last update | MRFA | 39 dB under `tiny-unsupervised` | `refinement.py` |
# | no blending | FOMM | 33 dB under `tiny-unsupervised` | `generators.py` |
# | HRNet trunk, linear heads | MTIA | 7.7 M | [`hrnet.py`](../minimodel/published/hrnet.py) |
# | L1 in random bends | FOMM, MRFA, MTIA | twice as bent | nowhere: training only |
#
# ## A checkpoint of your own
#
# A real one has hundreds of megabytes, so we make a small one: FOMM's layout, few channels, random weights, written by
# `torch.save` as its code does. The names come from the table that the import reads, used backwards. (In a batch norm,
# the bias of the convolution in front is subtracted from the running mean, as our convolutions have none. We write zeros.)

# %%
torch.manual_seed(0)
few = dict(base=4, levels=5, maximum=32)
little = PublishedConfig(
    "fomm",
    "affine",
    2,
    detector=few | dict(matrix_maps=2, head_kernel=7),
    dense_motion=few | dict(head_kernel=7),
    generator=dict(base=8, levels=2, maximum=32, outer_kernel=7, blocks=2),
)
fomm = PublishedModel(little)
for norm in fomm.modules():
    if isinstance(norm, nn.BatchNorm2d):
        norm.momentum = 1.0  # one look at a pair sets the running means: without it all would be grey
fomm.train()(large_S, large_D)
fomm.eval()
weights = fomm.state_dict()
sections = {"epoch": 99}
for entry in network_entries(little):
    section, name = entry.theirs.split(".", 1)
    value = weights[entry.ours] if entry.ours else conventions.downsampling_kernel(4).expand(3, 1, 13, 13).clone()
    value = torch.zeros_like(value) if entry.role == "bias" else value
    sections.setdefault(section, {})[name] = value
print(*(f"{section}: {len(found)} entries" for section, found in list(sections.items())[1:]), sep=", ")
print(*list(sections["kp_detector"])[:3], sep="\n")

# %% [markdown]
# On the command line: `minimodel import-checkpoint vox.pth.tar --output vox.safetensors`, then
# `minimodel animate --weights vox.safetensors`. Nothing in the file is executed, each name and shape is checked, and a
# card keeps source, checksum and conventions.

# %%
with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    torch.save(sections, "vox.pth.tar")
    import_published(ImportCheckpointConfig(Path("vox.pth.tar"), Path("vox.safetensors")))
    vox = AnimationModel.load("vox.safetensors")
print(vox.card["conventions"])
frame = vox(large_S[:1], large_D[:1]).image
assert torch.equal(frame, fomm(large_S[:1], large_D[:1]).image)
columns = ["photo", "driving", "random weights"]
show.pictures({"": torch.cat([large_S[:1], large_D[:1], frame])}, columns=columns, side=2)

# %% [markdown]
# Random weights paint no face. What the cell shows is that the imported model gives the picture of the model that wrote
# the file, bit for bit.
#
# ## Exercises
#
# 1. By `at_rest`: with a coarse grid of 128 and a picture of 512, how many pixels would today's FOMM be off at the border? Why?
# 2. Half a pixel at the border costs 39 dB on a sharp photo. What does it cost on a blurred one? Guess, then measure.
#
# <details><summary>Solutions</summary>
#
# 1. `flow_to_pixels(at_rest(False, False, (128, 128), (512, 512))).abs().max()`: 2.0 again. It is half a pixel of the *coarse*
#    grid, which is four of the picture's, whatever the two sizes are.
# 2. With `soft = F.avg_pool2d(photo, 5, 1, 2)`, `decibels(warp(soft, rest["MRFA without refinement"]), soft)` is several dB
#    higher: a shift costs as much as a picture changes from pixel to pixel.
#
# </details>
#
# ## Read next
#
# [`minimodel/published/`](../minimodel/published/__init__.py), from `conventions.py` on. Our own versions:
# [1 · Affine flows](01_affine_flows.ipynb), [2 · Thin-plate splines](02_thin_plate_splines.ipynb),
# [7 · Lookup and refinement](07_lookup_and_refinement.ipynb), [8 · The occlusion-gated U-Net](08_occlusion_gated_unet.ipynb).
