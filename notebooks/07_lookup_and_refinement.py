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
# # 7 · Lookup and refinement: correct a flow by the volume
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: lookup, update.](maps/07.svg)
#
# **The question.** The volume of notebook 6 says where each place comes from. How does a network use it to correct the coarse
# flow, and how much better does the flow get?
#
# **You need** notebooks [1](01_affine_flows.ipynb) and [6](06_structure_correlation.ipynb). **Time:** 45 minutes.
# **Afterwards you can**
#
# - write the lookup, the updater and the refinement loop, and load trained weights into them;
# - explain why Eq. 7 replaces Eq. 5;
# - tell a machinery that doesn't work from one that has nothing left to do, by a control.
#
# The paper is *Learning Motion Refinement for Unsupervised Face Animation* (**MRFA**,
# [NeurIPS 2023](https://proceedings.neurips.cc/paper_files/paper/2023/hash/6e566c91d381bd7a45647d9a90838817-Abstract-Conference.html)), section 3.2. Lookup and
# updater come from RAFT ([arXiv 2003.12039](https://arxiv.org/abs/2003.12039)).

# %%
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import IntSlider
from torch import nn

from minimodel import correlation, losses, refinement, show  # `show` draws; the others are there to compare with
from minimodel.correlation import volume  # built in notebook 6
from minimodel.data import synthetic
from minimodel.model import AnimationModel  # where the trained weights come from, and what ours are compared with
from minimodel.warping import flow_from_pixels, flow_to_pixels, identity_grid, resize_flow, sample, to_pixels, warp

torch.manual_seed(0)
SIZE, N = 64, 16  # pixels of the pictures; places along a side of the volume
model = AnimationModel.load("tiny").requires_grad_(False)

# %% [markdown]
# The person of notebook 6 is for the eye, and 64 pairs of strangers are for numbers. With the truth goes what the model finds:
# the source's features, those of the volume, the flows of all stages (the coarse flow first), and the occlusion logits.

# %%
FACE = torch.tensor(
    [synthetic.PARTS.index(part) for part in ("skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth")]
)


class Pairs:
    """Pictures, truth, and what the model finds in them; ``pairs[some]`` is a part of them."""

    def __init__(self, source, driving):
        self.S, self.D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
        self.flow, self.visible = synthetic.flow_between(source, driving, SIZE)
        self.face = torch.isin(synthetic.parsing(driving, SIZE)[:, None], FACE) & (self.visible > 0.5)
        self.marks = synthetic.landmarks(driving, SIZE)  # in pixels
        state, motion = model.encode_source(self.S), model.encode_driving(self.D)
        stages = model.move(state, motion)
        self.features, self.flows, self.logits = state.features, stages.flows, stages.occlusions
        self.g_D, self.g_S = stages.correlation.driving_features, stages.correlation.source_features

    def __getitem__(self, some):
        part = Pairs.__new__(Pairs)
        for name, value in vars(self).items():
            setattr(part, name, [x[some] for x in value] if isinstance(value, list) else value[some])
        return part


identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)
one = Pairs(synthetic.Faces(identity, states[8]), synthetic.Faces(identity, moved))
many = Pairs(*synthetic.sample_pairs(64, torch.Generator().manual_seed(20)))
half, other_half = many[:32], many[32:]


# %%
def distance(flow, pairs):
    """How far each arrow's end is from where it should be, in pixels of the 64-pixel picture: (B, 1, 64, 64)."""
    return (resize_flow(flow, (SIZE, SIZE)) - pairs.flow).norm(dim=1, keepdim=True) * SIZE / 2


def error(flow, pairs, where=None):
    """The mean of `distance` over the visible face, for each pair: (B,)."""
    where = pairs.face if where is None else where
    return (distance(flow, pairs) * where).sum((1, 2, 3)) / where.sum((1, 2, 3))


# %% [markdown]
# ## The answer first
#
# One pair, before and after refinement. The last picture is what counts: where refinement brought the arrow nearer to the truth
# (blue) and where it moved it away (red).

# %% jupyter={"source_hidden": true}
first, last = one.flows[0], one.flows[-1]
longest = one.flow.norm(dim=1).max().item()


def colours(flow):
    return show.flow_colors(resize_flow(flow, (SIZE, SIZE)), largest=longest)[0].permute(1, 2, 0)


def face_only(values, pairs=one):
    return torch.where(pairs.face, values, torch.nan)[0, 0]


figure, axes = plt.subplots(2, 5, figsize=(9.2, 4.2), gridspec_kw=dict(width_ratios=(1, 1, 1, 1, 0.8)))
pictures = [one.D[0].permute(1, 2, 0), colours(one.flow), colours(first), colours(last)]
for axis, picture, title in zip(axes[0], pictures, ("driving", "true flow", "coarse flow $F_0$", "refined flow")):
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)
show.flow_wheel(axes[0, 4], largest=round(longest * SIZE / 2))
axes[1, 0].imshow(one.S[0].permute(1, 2, 0))
axes[1, 0].set_title("source", fontsize=9)
for axis, flow, title in zip(axes[1, 1:3], (first, last), ("error of $F_0$", "error, refined")):
    errors_shown = axis.imshow(face_only(distance(flow, one)), vmin=0, vmax=3)
    axis.set_title(title, fontsize=9)
change = face_only(distance(last, one) - distance(first, one))
changes_shown = axes[1, 3].imshow(change, cmap="RdBu_r", vmin=-0.6, vmax=0.6)
axes[1, 3].set_title("change (blue: better)", fontsize=9)
for axis in [*axes[0, :4], *axes[1, :4]]:
    axis.set(xticks=[], yticks=[])
axes[1, 4].set_axis_off()
for shown, place, label in (
    (errors_shown, (0.05, 0, 0.14, 0.9), "error (pixels)"),
    (changes_shown, (0.6, 0, 0.14, 0.9), "change"),
):
    figure.colorbar(shown, cax=axes[1, 4].inset_axes(place)).set_label(label, fontsize=8)
figure.tight_layout(pad=0.4, h_pad=1.5)
show.crisp(figure)

# %% [markdown]
# ## Lookup
#
# The flow sends driving place $z$ to the source position $z + F(z)$; in pixels of the volume, call it $x$. At each level $l$
# we read $(2r+1)^2$ scores around it, at offsets $d$ counted in pixels *of that level*:
#
# $$C_i(z)[l, d] = C^l\Big(z,\; \frac{x + 1/2}{2^l} - \frac12 + d\Big), \qquad d \in \{-r, \dots, r\}^2 .$$
#
# $C^l$ is the volume whose source places were averaged $l$ times. With $r = 3$ a patch has $7 \times 7$ scores, and there are
# $L = 2$ levels, so each place gets $2 \times 7 \times 7 = 98$ numbers (**paper**). The halves keep a place where it is from
# level to level (**ours**; the **published code** has $x / 2^l$, a quarter of a pixel off at level 1). Positions between pixels
# are read bilinearly. Outside, all is 0. For one driving place, number by number:


# %%
def read(row, x, y):
    """The bilinear value at (x, y) of one row of the volume, (h', w')."""
    value = 0.0
    for i in (int(y // 1), int(y // 1) + 1):
        for j in (int(x // 1), int(x // 1) + 1):
            if 0 <= i < row.shape[0] and 0 <= j < row.shape[1]:
                value += (1 - abs(x - j)) * (1 - abs(y - i)) * row[i, j].item()
    return value


def lookup_naive(row, x, y, radius=3, levels=2):
    """The 98 scores of one driving place, whose flow ends at (x, y)."""
    values = []
    for level in range(levels):
        pooled = F.avg_pool2d(row[None], 2**level)[0]
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                values.append(read(pooled, (x + 0.5) / 2**level - 0.5 + dx, (y + 0.5) / 2**level - 0.5 + dy))
    return torch.tensor(values)


# %% [markdown]
# For all places at once we sample the rows as if they were pictures. Flows come in several sizes, the volume in one. For a
# coarser flow the driving features are averaged down to it; for a finer flow the scores are enlarged afterwards.


# %%
def lookup(g_D, g_S, flow, radius=3, levels=2):  # (B, c, h, w), (B, c, h', w'), (B, 2, any, any)
    size, shared = flow.shape[-2:], tuple(map(min, flow.shape[-2:], g_D.shape[-2:]))
    g_D, flow = resize_flow(g_D, shared), resize_flow(flow, shared)
    x = to_pixels((identity_grid(*shared) + flow).permute(0, 2, 3, 1), g_S.shape[-2:])  # (B, h, w, 2)
    steps = torch.arange(-radius, radius + 1.0)
    d = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2)  # (49, 2): dy outer, dx inner
    values = []
    for level in range(levels):
        C = volume(g_D, F.avg_pool2d(g_S, 2**level))  # (B, h, w, h' / 2^l, w' / 2^l)
        where = ((x + 0.5) / 2**level - 0.5)[..., None, :] + d  # (B, h, w, 49, 2)
        extent = torch.tensor([C.shape[4], C.shape[3]])
        where = (2 * where + 1) / extent - 1  # from pixels to [-1, 1]
        read = sample(C.flatten(0, 2)[:, None], where.flatten(0, 2)[:, :, None], padding="zeros")  # (B h w, 1, 49, 1)
        values.append(read.view(len(C), *shared, -1))  # (B, h, w, 49)
    return resize_flow(torch.cat(values, -1).permute(0, 3, 1, 2), size)  # (B, 98, any, any)


# %%
i, j = 9, 7
scores = lookup(one.g_D, one.g_S, first)
end = to_pixels((identity_grid(N, N) + first[0])[:, i, j], (N, N)).tolist()
torch.testing.assert_close(
    scores[0, :, i, j], lookup_naive(volume(one.g_D, one.g_S)[0, i, j], *end), atol=1e-3, rtol=1e-4
)
held = correlation.Correlation(one.g_D, one.g_S, radius=3, levels=2, hold_volume=True)  # what the model itself uses
for side in (4, 16, 32):  # coarser than the volume, as large, finer
    flow = resize_flow(one.flow, (side, side)) + 0.3 * torch.randn(1, 2, side, side)
    ours = lookup(one.g_D, one.g_S, flow)
    for package in (
        correlation.lookup(one.g_D, one.g_S, flow, radius=3, levels=2),
        correlation.lookup_volume(volume(one.g_D, one.g_S), flow, radius=3, levels=2),
        resize_flow(held(flow), (side, side)),
    ):
        torch.testing.assert_close(ours, package, atol=1e-2, rtol=1e-4)
print("lookup: equal to the loop and to the package's three ways;", tuple(ours.shape))

# %% [markdown]
# The package's `lookup` never makes a volume. Pooling and bilinear reading are weighted sums over source places, and a dot
# product is linear, so the sum can be taken over the features first:
#
# $$\sum_y w_y\, C(z, y) = \frac{g_D(z)}{\sqrt{c}} \cdot \sum_y w_y\, g_S(y).$$
#
# At 1024 pixels that saves the 17 GB of notebook 6. Anything non-linear between product and reading, such as Eq. 8's softmax,
# would forbid it.
#
# ## A patch is a compass
#
# Why read a *patch*, when the flow already says where to look? Because the hill of scores is off centre when the flow is wrong,
# and *which way* it is off is the correction. Here the flow is set to zero. Cross: where it points. Circle: where it should.

# %% jupyter={"source_hidden": true}
marks = one.marks[0]
brow = (marks[19] / SIZE * N).long().flip(0).tolist()
small_truth = resize_flow(one.flow, (N, N))


def draw_patches(axes, scores, off):
    """Both levels' patches around one place; ``off`` is what the flow lacks, in pixels of the volume."""
    for level, (axis, patch) in enumerate(zip(axes, scores.view(2, 7, 7))):
        axis.imshow(patch, extent=(-3.5, 3.5, 3.5, -3.5))
        axis.scatter(0, 0, marker="x", color="tab:red", s=60, linewidths=2)
        for colour, width in (("black", 3.2), ("white", 1.4)):
            axis.scatter(*(off / 2**level), facecolors="none", edgecolors=colour, s=130, linewidths=width)
        axis.set(xlim=(-3.5, 3.5), ylim=(3.5, -3.5), xlabel="pixels of the level")
        axis.set_title(f"level {level}: 7 × 7 scores", fontsize=9)


figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
axes[0].imshow(one.D[0].permute(1, 2, 0), extent=(-0.5, N - 0.5, N - 0.5, -0.5))
axes[0].scatter(brow[1], brow[0], marker="x", color="tab:red", s=60, linewidths=2)
axes[0].set(xticks=[], yticks=[])
axes[0].set_title("driving: the place", fontsize=9)
zero = torch.zeros_like(small_truth)
draw_patches(
    axes[1:], lookup(one.g_D, one.g_S, zero)[0, :, brow[0], brow[1]], small_truth[0, :, brow[0], brow[1]] * N / 2
)
figure.tight_layout(pad=0.5)
show.crisp(figure)

# %% [markdown]
# ### Control 1: repair without any weights
#
# Does the machinery work? Spoil the coarse flow by a shift, the same for all places of a pair, in a direction drawn at random.
# Then follow the compass: take the mean offset under a softmax of the patch (Eq. 8 *inside the patch*), move there, look again.


# %%
def spoilt(flow, pixels, seed=5):
    """A flow shifted by so many pixels of 64, each pair in a direction of its own."""
    angle = 2 * torch.pi * torch.rand(len(flow), 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return flow + torch.cat([angle.cos(), angle.sin()], 1) * pixels * 2 / SIZE


def follow(pairs, flow, steps=3, radius=3):
    """The flow after each step of the compass, on level 0."""
    d = torch.arange(-radius, radius + 1.0)
    dx, dy = d.repeat(len(d)), d.repeat_interleave(len(d))
    flows = [flow]
    for _ in range(steps):
        weights = lookup(pairs.g_D, pairs.g_S, flows[-1], radius=radius, levels=1).softmax(1)  # (B, 49, 16, 16)
        move = torch.stack([torch.einsum("bkhw, k -> bhw", weights, offset) for offset in (dx, dy)], 1)
        flows.append(flows[-1] + move * 2 / N)
    return flows


coarse = half.flows[0]
shifts = (0, 4, 8, 16, 32)
curves = {
    pixels: torch.stack([error(flow, half).mean() for flow in follow(half, spoilt(coarse, pixels))])
    for pixels in shifts
}

# %% jupyter={"source_hidden": true}
figure = plt.figure(figsize=(6.5, 3.2))
for pixels, curve in curves.items():
    plt.semilogy(curve, marker="o", label=f"shifted by {pixels} pixels")
plt.gca().set(xlabel="steps of the compass", ylabel="error on the face (pixels)", xticks=range(4))
plt.gca().set(yticks=[0.5, 1, 2, 4, 8, 16, 32], yticklabels=[0.5, 1, 2, 4, 8, 16, 32])
plt.minorticks_off()
plt.legend(fontsize=8)
plt.title("Every shift within reach is repaired to one floor; an unspoilt flow gets worse", fontsize=9)
show.crisp(figure)

# %%
floor = curves[4][-1].item()
print(f"shifted by 4 pixels: {curves[4][0]:.1f} pixels off, after three steps {floor:.1f}")
print(f"not shifted: {curves[0][0]:.1f} pixels off, after three steps {curves[0][-1]:.1f}")

# %% [markdown]
# **Verdict.** Volume and lookup work: without further weights, one step takes off most of a shift of up to 16 pixels. And they have a floor. The volume's
# cells are four pixels wide, and what it knows by itself is less exact than the coarse flow of this model. So a network that
# reads the patches must *add* the volume's evidence to the coarse flow, where the coarse flow is wrong, and keep the rest. That
# is the updater's task, and with this prior it is a small one.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the compass repairs shifts within its reach, to a floor above the coarse error.
assert (
    curves[4][1] < 0.35 * curves[4][0] and curves[8][-1] < 0.2 * curves[8][0] and curves[16][-1] < 0.2 * curves[16][0]
)
assert curves[0][-1] > curves[0][0] and abs(curves[8][-1] - floor) < 0.1

# %% [markdown]
# ## The updater
#
# One step (Eq. 4): from the current flow, the scores and the source's features warped by the flow, predict a residual flow and
# a residual of the occlusion logits,
#
# $$d\mathcal{F}_i,\; d\mathcal{O}_i = \psi\big(\mathcal{F}^{\uparrow}_{i-1},\; C_i,\; \mathcal{F}^{\uparrow}_{i-1}(f_i)\big). \tag{4}$$
#
# $\psi$ is the updater, $f_i$ the source's features of scale $i$, and $\uparrow$ enlarges the last scale's flow to this one.

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(9.3, 4.1))
axis.set(xlim=(0, 18.6), ylim=(0, 8.2))
axis.set_axis_off()
SHADES = {"in": "#e8eef7", 1: "#fde9c9", 2: "#dff0df", 3: "#f6dfe6", 4: "#e6e0f3", "out": "#e8eef7"}


def box(x, y, width, text, kind, height=1.15):
    axis.add_patch(plt.Rectangle((x, y), width, height, facecolor=SHADES[kind], edgecolor="0.3"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def arrow(*corners, text=""):
    for start, end in pairwise(corners[:-1]):
        axis.plot(*zip(start, end), color="0.3", linewidth=1)
    axis.annotate("", corners[-1], corners[-2], arrowprops=dict(arrowstyle="->", color="0.3"))
    (x0, y0), (x1, y1) = corners[-2:]
    axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.18, text, ha="center", fontsize=7)


box(0, 6.4, 2.6, "scores $C_i$", "in")
box(0, 4.2, 2.6, "flow in pixels", "in")
box(0, 0.6, 2.6, "warped $f_i$", "in")
box(4, 6.4, 3.8, "① correlation_in 1×1\ncorrelation 3×3", 1)
box(4, 4.2, 3.8, "② flow 7×7, 3×3", 2)
box(9.2, 5.3, 2.6, "③ motion 3×3", 3)
box(4, 0.6, 3.8, "context 3×3", 3)
box(13.4, 4.7, 2.8, "④ flow_head\n3×3, 3×3", 4)
box(13.4, 1.7, 2.8, "④ occlusion_head\n3×3, 3×3", 4)
box(17.2, 4.7, 1.3, "$d\\mathcal{F}_i$", "out")
box(17.2, 1.7, 1.3, "$d\\mathcal{O}_i$", "out")
for y, text in ((7, "98"), (4.8, "2"), (1.2, "32")):
    arrow((2.6, y), (4, y), text=text)
arrow((7.8, 7), (8.5, 7), (8.5, 6.1), (9.2, 6.1), text="32")
arrow((7.8, 4.8), (8.5, 4.8), (8.5, 5.6), (9.2, 5.6), text="16")
axis.plot((12.6, 12.6), (1.2, 5.9), color="0.3", linewidth=3)  # what the heads read, laid side by side
axis.text(12.6, 0.7, "80 = 46 + 2 + 32", ha="center", fontsize=7)
arrow((11.8, 5.9), (12.55, 5.9), text="46")
arrow((3.2, 4.8), (3.2, 3.1), (12.55, 3.1), text="2, the flow itself")
arrow((7.8, 1.2), (12.55, 1.2), text="32")
arrow((12.6, 5.3), (13.4, 5.3))
arrow((12.6, 2.3), (13.4, 2.3))
arrow((16.2, 5.3), (17.2, 5.3), text="2")
arrow((16.2, 2.3), (17.2, 2.3), text="1")
axis.set_title("The updater: ① to ④ are the paper's four modules, numbers are channels", fontsize=10)
show.crisp(figure)

# %% [markdown]
# The paper counts four convolution modules. Its text describes ① correlation, ② flow and ④ output, with ③ joining the first two
# to the motion feature between them. The convolution on the warped features and the two heads in place of one output are its
# **published code**'s. Every convolution but a head's last is followed by a ReLU, and the warped features pass one more before
# their convolution. The source's features $f_i$ have 128, 128 and 64 channels; a 1 × 1 convolution a scale, the `projections`,
# first brings them to 32, and these are warped. This is the whole network:


# %%
def head(outputs):
    last = nn.Conv2d(32, outputs, 3, padding=1)
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)  # a fresh updater changes nothing
    return nn.Sequential(nn.Conv2d(80, 32, 3, padding=1), nn.ReLU(), last)


class FlowUpdater(nn.Module):
    def __init__(self):
        super().__init__()
        self.correlation_in = nn.Conv2d(98, 32, 1)
        self.correlation = nn.Conv2d(32, 32, 3, padding=1)
        self.flow = nn.Sequential(nn.Conv2d(2, 16, 7, padding=3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.motion = nn.Conv2d(32 + 16, 46, 3, padding=1)
        self.context = nn.Conv2d(32, 32, 3, padding=1)
        self.flow_head, self.occlusion_head = head(2), head(1)

    def forward(self, flow, scores, warped):  # (B, 2, h, w), (B, 98, h, w), (B, 32, h, w)
        pixels = flow_to_pixels(flow)  # (B, 2, h, w)
        x = self.correlation(self.correlation_in(scores).relu()).relu()  # (B, 32, h, w)
        motion = self.motion(torch.cat([x, self.flow(pixels)], 1)).relu()  # (B, 46, h, w)
        context = self.context(warped.relu()).relu()  # (B, 32, h, w)
        x = torch.cat([motion, pixels, context], 1)  # (B, 80, h, w)
        return flow_from_pixels(self.flow_head(x)), self.occlusion_head(x)  # (B, 2, h, w), (B, 1, h, w)


# %%
print("the paper's channels:", refinement.UpdaterWidths())
print("tiny's:       ", model.config.updater)

# %% [markdown]
# Two decisions are easy to miss.
#
# - **Flows inside are in pixels of the current scale** (**published code**). The same weights serve all scales (**paper**), and
#   a step of one pixel should be the same number at each of them.
# - **The last layers begin as zeros** (**ours**). A fresh updater changes nothing, so training starts from exactly the coarse
#   flow.
#
# ## From Equation 5 to Equation 7
#
# The obvious loop enlarges the flow and adds to it:
#
# $$\mathcal{F}_i = \mathcal{F}^{\uparrow}_{i-1} + d\mathcal{F}_i, \qquad
# \mathcal{F}^{\uparrow}_0 = \mathrm{Downsample}(\mathcal{F}_0, 8). \tag{5, 6}$$
#
# The 8 is for the paper's 256 pixels: $\mathcal{F}_0$ has 64 × 64 places, and the loop begins at 8 × 8. Our pictures have 64
# pixels, $\mathcal{F}_0$ has 16 × 16, and the loop begins at 8 × 8 as well, a factor of 2 (**ours**: the paper's $H/32$ would
# be 2 × 2). Either way the flow passes a bottleneck. Send the *true* flow through it, adding nothing:

# %%
rows, through = {}, {}
for name, side in {"paper's factor, 64 → 8": 64, "ours, 16 → 8": 16}.items():
    flow_0 = resize_flow(one.flow, (side, side))
    equation_5 = resize_flow(flow_0, (8, 8))
    while equation_5.shape[-1] < SIZE:
        equation_5 = resize_flow(equation_5, (2 * equation_5.shape[-2], 2 * equation_5.shape[-1]))  # + dF_i, here 0
    equation_7 = resize_flow(flow_0, (SIZE, SIZE))  # + the sum of all residuals, here 0
    through[name] = equation_5, equation_7
    rows[name] = [error(flow, one).item() for flow in through[name]]
show.table(rows, ["Eq. 5: error (pixels)", "Eq. 7"], digits=1)

# %% jupyter={"source_hidden": true}
equation_5, equation_7 = through["ours, 16 → 8"]
figure, axes = plt.subplots(1, 5, figsize=(9.2, 2.1))
for axis, flow, title in zip(
    axes, (one.flow, equation_5, equation_7), ("true flow", "through 8 × 8 (Eq. 5)", "resized afresh (Eq. 7)")
):
    axis.imshow(colours(flow))
    axis.set_title(title, fontsize=9)
for axis, flow, title in zip(axes[3:], (equation_5, equation_7), ("error, Eq. 5", "error, Eq. 7")):
    drawn = axis.imshow(face_only(distance(flow, one)), vmin=0, vmax=3)
    axis.set_title(title, fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
figure.tight_layout(pad=0.4)
figure.colorbar(drawn, ax=axes, label="pixels", fraction=0.012, pad=0.01)
show.crisp(figure)

# %% [markdown]
# So the paper never lets $\mathcal{F}_0$ pass the bottleneck. At every scale it is resized afresh, and only the *residuals*
# are enlarged and summed:
#
# $$\mathcal{F}_i = \mathrm{Resize}(\mathcal{F}_0) + d\mathcal{F}_i + d\mathcal{F}^{\uparrow}_{i-1}
# + d\mathcal{F}^{\uparrow\uparrow}_{i-2} + \dots \tag{7}$$
#
# The occlusion logits go the same way. The loop, literally. Its first three scales have an update each; the last, of 64 pixels,
# enlarges what came before (**ours**: it costs as much as all others together).


# %%
class MotionRefiner(nn.Module):
    def __init__(self, channels=(128, 128, 64)):
        super().__init__()
        self.updater = FlowUpdater()
        self.projections = nn.ModuleList(nn.Conv2d(c, 32, 1) for c in channels)  # of the source's features f_i

    def forward(self, flow_0, logits_0, g_D, g_S, features):  # (B, 2, 16, 16), (B, 1, 16, 16), ...
        flows, logits, flow_steps, logit_steps = [], [], [], []
        for scale, size in enumerate([(8, 8), (16, 16), (32, 32), (64, 64)]):
            flow_steps = [resize_flow(step, size) for step in flow_steps]  # one more arrow up for each
            logit_steps = [resize_flow(step, size) for step in logit_steps]
            if scale < len(self.projections):
                flow = resize_flow(flow_0, size) + sum(flow_steps)  # (B, 2, h, w): where we are
                scores = lookup(g_D, g_S, flow)  # (B, 98, h, w)
                warped = warp(self.projections[scale](features[scale]), flow)  # (B, 32, h, w)
                step, logit_step = self.updater(flow, scores, warped)  # Eq. 4
                flow_steps.append(step)
                logit_steps.append(logit_step)
            flows.append(resize_flow(flow_0, size) + sum(flow_steps))  # Eq. 7
            logits.append(resize_flow(logits_0, size) + sum(logit_steps))
        return flows, logits


# %%
weights = {name.removeprefix("refiner."): w for name, w in model.state_dict().items() if name.startswith("refiner.")}
refiner = MotionRefiner()
refiner.load_state_dict(weights)


def refine(refiner, pairs, flow=None, foreign=0):
    """All flows and logits from the coarse flow, or from ``flow``. With ``foreign`` = 1 the scores are another pair's."""
    flow = pairs.flows[0] if flow is None else flow
    g_D, g_S = pairs.g_D.roll(foreign, 0), pairs.g_S.roll(foreign, 0)
    return refiner(flow, pairs.logits[0], g_D, g_S, pairs.features)


with torch.no_grad():
    flows, logits = refine(refiner, many)
for ours, package in zip(flows + logits, many.flows[1:] + many.logits[1:], strict=True):
    torch.testing.assert_close(ours, package, atol=1e-3, rtol=1e-3)
print("flows and occlusions equal the package's at", [tuple(flow.shape[-2:]) for flow in flows])

# %% [markdown]
# ## The loss that teaches flows (**ours**)
#
# In the paper the flow learns from the picture alone. Rendered faces know the true flow, so every stage can be asked for it:
#
# $$\mathcal{L}_{flow} = \frac{\sum_i c_i \sum_z w(z)\, \lVert F_i(z) - F(z) \rVert}{\sum_i c_i \sum_z w(z)}, \qquad
# c_0 = 1,\; c_i = 0.6^{\,N - i}.$$
#
# Lengths are in pixels. $w$ is 0 where the place is hidden in the source: no arrow could fetch it. The coarse flow counts as
# much as the last one. Between them each stage counts less the coarser it is, as in RAFT: 8 × 8 arrows can't be right.


# %%
def flow_loss(flows, pairs_flow, weight):  # coarse flow first; (B, 2, 64, 64), (B, 1, 64, 64)
    total, of_all = 0.0, 0.0
    for i, flow in enumerate(flows):
        c = 1.0 if i == 0 else 0.6 ** (len(flows) - 1 - i)
        missed = (resize_flow(flow, (SIZE, SIZE)) - pairs_flow) * SIZE / 2
        length = (missed.square().sum(1, keepdim=True) + 1e-6).sqrt()  # the root alone has no slope at 0
        total, of_all = total + c * (length * weight).sum() / weight.sum(), of_all + c
    return total / of_all


ours = flow_loss(many.flows, many.flow, many.visible)
torch.testing.assert_close(ours, losses.true_flow_loss(many.flows, many.flow, many.visible))

# %% [markdown]
# `tiny` learned from this loss, from the matching loss of notebook 6, from two losses of notebook 8, and from pictures.
#
# Without the truth (**ours**, for `tiny-tps`) `smoothness` asks for less: neighbouring arrows of the residual should differ
# little, in pixels. It makes small texture-matching shifts expensive, so mostly real motion survives.

# %%
added = flow_to_pixels(many.flows[-1] - resize_flow(many.flows[0], (SIZE, SIZE)))  # what refinement added
roughness = added.diff(dim=-1).abs().mean() + added.diff(dim=-2).abs().mean()
torch.testing.assert_close(roughness, losses.smoothness(flow_from_pixels(added)))

# %% [markdown]
# ## What refinement gains in the shipped model
#
# 64 pairs of strangers. Each row changes one thing and refines again: the scores come from another pair, or are zero; or the
# source's features are zero. The paper's Table 4 *retrains* without an input; we only blindfold a trained network, which is
# harsher.


# %%
def near(marks, pixels=6):
    """Pixels close to some landmarks: (B, 1, 64, 64)."""
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="xy"), -1).view(1, -1, 2)
    return (torch.cdist(grid.expand(len(marks), -1, -1).float(), marks) < pixels).any(2).view(-1, 1, SIZE, SIZE)


areas = {
    "face": many.face,
    "mouth": many.face & near(many.marks[:, 48:68]),
    "eyes": many.face & near(many.marks[:, 36:48]),
}
with torch.no_grad():
    results = {"coarse": many.flows[0], "refined": flows[-1]}
    results["another pair's scores"] = refine(refiner, many, foreign=1)[0][-1]
    inputs = many.flows[0], many.logits[0]
    results["scores zero"] = refiner(*inputs, 0 * many.g_D, many.g_S, many.features)[0][-1]
    nothing = [0 * f for f in many.features]
    results["source's features zero"] = refiner(*inputs, many.g_D, many.g_S, nothing)[0][-1]
table = {
    name: [error(flow, many, where).nanmean().item() for where in areas.values()] for name, flow in results.items()
}
show.table(
    table, [f"{name} (pixels off)" for name in areas], digits=3, best={f"{name} (pixels off)": "low" for name in areas}
)

# %%
gain = 1 - table["refined"][0] / table["coarse"][0]
foreign = 1 - table["another pair's scores"][0] / table["coarse"][0]
print(f"refinement takes {100 * gain:.0f} % off the error on the face")
print(f"with another pair's scores it takes {'nothing off' if foreign <= 0.005 else f'{100 * foreign:.0f} % off'}")

# %% jupyter={"source_hidden": true}
figure, axes = plt.subplots(1, 2, figsize=(9, 2.9), sharey=True)
before = error(results["coarse"], many)
for axis, name in zip(axes, ("refined", "another pair's scores")):
    change = (error(results[name], many) - before).sort().values
    axis.bar(range(len(change)), change, color=["tab:blue" if c < 0 else "tab:red" for c in change])
    axis.set_title(f"{name}: better in {int((change < 0).sum())} of {len(change)} pairs", fontsize=9)
    axis.set(xlabel="pairs, sorted", xticks=[])
axes[0].set_ylabel("change of the error (pixels)")
figure.tight_layout(pad=0.5)
show.crisp(figure)

# %% [markdown]
# **Verdict.** In the shipped model refinement is real and small: some hundredths of the error, in most pairs. The volume does it,
# for with another pair's scores little or nothing is gained. It can't be much more, because control 1 says that the volume alone
# knows less than the coarse flow. `tools/measure_parts.py` measures the same on 512 pairs; the model's card has its numbers.
#
# The paper measures pictures rather than flows. With refinement its PSNR rises by 0.4 to 0.5 dB (Table 3). Its Table 6 refines
# up to $H/8$, $H/4$, $H/2$ and $H$: AKD falls from 1.164 to 1.156 and 1.151, and the last step, to the full size, gains nothing
# (1.155). [Notebook 11](11_train_a_full_model.ipynb) compares models that were trained with and without refinement.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: refinement gains something, and the volume is the cause.
assert 0.005 < gain < 0.3 and foreign < 0.5 * gain

# %% [markdown]
# ## Control 2: an updater that has something to do
#
# The shipped updater has hardly ever seen a coarse flow that was far off, so it never learned to repair one. Teach ours for some
# seconds: spoil the coarse flow of one half of the pairs by shifts of up to eight pixels, and ask for the true flow. The other half is the test.

# %%
taught = MotionRefiner()
taught.load_state_dict(weights)
optimizer = torch.optim.Adam(taught.updater.parameters(), lr=2e-3)
generator = torch.Generator().manual_seed(9)
for step in range(90):
    lesson = other_half[torch.randint(32, (8,), generator=generator)]
    start = spoilt(lesson.flows[0], 8 * torch.rand(8, 1, 1, 1, generator=generator), seed=step)
    found = refine(taught, lesson, start)[0]
    loss = flow_loss([start, *found[:3]], lesson.flow, lesson.visible)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# NBVAL_IGNORE_OUTPUT
# After ninety steps of training, machines differ in the second digit.
rows = {}
with torch.no_grad():
    for pixels in (0, 4, 8):
        start = spoilt(coarse, pixels)
        repaired = [start, refine(refiner, half, start)[0][-1], refine(taught, half, start)[0][-1]]
        repaired += [refine(taught, half, start, foreign=1)[0][-1]]
        rows[f"shifted by {pixels} pixels"] = [error(flow, half).mean().item() for flow in repaired]
show.table(rows, ["coarse", "shipped updater", "taught to repair", "the same, another pair's scores"], digits=1)

# %% jupyter={"source_hidden": true}
with torch.no_grad():
    start = spoilt(one.flows[0], 8, seed=3)
    repaired = refine(taught, one, start)[0][-1]
figure, axes = plt.subplots(1, 5, figsize=(9.2, 2.1))
for axis, picture, title in zip(
    axes,
    (one.D, warp(one.S, resize_flow(start, (SIZE, SIZE))), warp(one.S, repaired)),
    ("driving", "warped, 8 pixels off", "warped, repaired"),
):
    axis.imshow(picture[0].permute(1, 2, 0))
    axis.set_title(title, fontsize=9)
for axis, flow, title in zip(axes[3:], (start, repaired), ("error, 8 pixels off", "error, repaired")):
    drawn = axis.imshow(face_only(distance(flow, one)), vmin=0, vmax=9)
    axis.set_title(title, fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
figure.tight_layout(pad=0.4)
figure.colorbar(drawn, ax=axes, label="pixels", fraction=0.012, pad=0.01)
show.crisp(figure)

# %% [markdown]
# **Verdict.** After some seconds of lessons the same network repairs most of a shift. With another pair's scores it
# stays about a pixel farther off. What it repairs then, most of a large shift, it reads off the flow itself: a shifted flow moves the wall, and the wall's flow is the same everywhere. The price
# is the unspoilt flow, which this quick pupil makes worse; the shipped updater, trained for long on the real task, doesn't.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: lessons repair most of a shift, better with the right scores; shipped ones don't.
for pixels in (4, 8):
    before, shipped, after, other = rows[f"shifted by {pixels} pixels"]
    assert after < 0.6 * before < 0.95 * before < shipped and other > 1.2 * after

# %% [markdown]
# Look through the updater's eyes: any place, any scale. Left the place, then both patches before that scale's step.


# %%
def look(scale=1, row=marks[54, 1].round().long().item(), column=marks[54, 0].round().long().item()):
    before = [one.flows[0], *flows_of_one][scale - 1]
    size = (8, 8) if scale == 1 else (16, 16)
    before = resize_flow(before, size)
    i, j = row * size[0] // SIZE, column * size[1] // SIZE
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
    axes[0].imshow(one.D[0].permute(1, 2, 0))
    axes[0].scatter(column, row, marker="x", color="tab:red", s=60, linewidths=2)
    axes[0].set(xticks=[], yticks=[])
    off = (resize_flow(one.flow, size) - before)[0, :, i, j] * N / 2
    draw_patches(axes[1:], lookup(one.g_D, one.g_S, before)[0, :, i, j], off)
    return figure


with torch.no_grad():
    flows_of_one = refine(refiner, one)[0]
row, column = (IntSlider(v.item(), min=0, max=SIZE - 1) for v in marks[54].round().long().flip(0))
show.playground(look, scale=IntSlider(1, min=1, max=3), row=row, column=column)

# %% [markdown]
# ## Five lines
#
# - **You can now** write lookup, updater and loop, load trained weights, and run a control that says whether they work.
# - **The paper says** that evidence without a prior, read around the coarse flow from coarse to fine, makes finer motion.
# - **Its code does** pixels inside, a convolution on the warped features and two heads.
# - **We chose** zeros as the last layers' start, an exact centre at each level, three updates for 64 pixels, and a loss on the
#   true flow where it is known.
# - **We measured** that the machinery repairs flows that are pixels off, and that in the shipped model little is left to repair.
#
# | equation | cell above | module |
# |---|---|---|
# | lookup (section 3.2) | Lookup | `correlation.lookup`, `lookup_volume`, `Correlation` |
# | 4 | The updater | `refinement.FlowUpdater`, `UpdaterWidths` |
# | 5, 6 | From Equation 5 to Equation 7 | not used |
# | 7 | From Equation 5 to Equation 7 | `refinement.MotionRefiner` |
# | flow loss, smoothness (ours) | The loss that teaches flows | `losses.true_flow_loss`, `smoothness` |
# | 1 to 3 | [notebook 1](01_affine_flows.ipynb) | `affine`, `dense_motion` |
# | 8 | [notebook 6](06_structure_correlation.ipynb) | `correlation.softmax_flow` |
# | 9, 10 | [notebook 8](08_occlusion_gated_unet.ipynb) | `generator` |
#
# **Open.** A finer volume would have a lower floor: 32 × 32 places cost sixteen times the memory of 16 × 16. Whether the gain
# grows with it isn't measured here. `tools/controls.py` has the longer versions of control 2.
#
# ## Exercises
#
# 1. *(easy)* How many scores does a place get with $r = 2$ and $P = 2$? (The paper counts how often the volume is averaged: $L = P + 1$.)
# 2. *(medium)* The published code centres level $l$ at $x / 2^l$. How far is that from our centre, in pixels of level $l$?
# 3. *(builds)* Write `follow_levels`: the compass on level 1 first, then on level 0. It should repair the shift of 32 pixels
#    better than level 0 alone.


# %%
def scores_of(radius, P):
    return None  # your number


def published_offset(level):
    return None  # your number


def follow_levels(pairs, flow):
    return follow(pairs, flow)[-1]  # your lines


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: your answers.
right = [scores_of(2, 2) == 75 and scores_of(3, 1) == 98]
right += [[published_offset(level) for level in (0, 1, 2)] == [0, 0.25, 0.375]]
right += [bool(error(follow_levels(half, spoilt(coarse, 32)), half).mean() < 0.8 * curves[32][-1])]
print("exercises solved:", *(f"{number}: {'yes' if done else 'not yet'}" for number, done in enumerate(right, 1)))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. `(P + 1) * (2 * radius + 1) ** 2`: 75.
# 2. `0.5 - 0.5 / 2**level`: our centre is $(x + 1/2) / 2^l - 1/2$, which is that much less than $x / 2^l$. A network can learn
#    around a constant shift, which is why such a difference survives in published code.
# 3. ```python
#    d = torch.arange(-3.0, 4.0)
#    dx, dy = d.repeat(7), d.repeat_interleave(7)
#    for _ in range(3):
#        weights = lookup(pairs.g_D, pairs.g_S, flow, levels=2)[:, 49:].softmax(1)
#        move = torch.stack([torch.einsum("bkhw, k -> bhw", weights, offset) for offset in (dx, dy)], 1)
#        flow = flow + move * 2 * 2 / N
#    return follow(pairs, flow)[-1]
#    ```
#
# </details>
#
# **Next:** [8 · The occlusion-gated U-Net](08_occlusion_gated_unet.ipynb), which makes a picture of these flows and occlusions.
# The code of this notebook: [`minimodel/correlation.py`](../minimodel/correlation.py) (lookups),
# [`minimodel/refinement.py`](../minimodel/refinement.py) (updater and loop).
