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
# # 1 · Affine flows: ten points move a whole face
#
# Can ten moving points say where each pixel of a whole face comes from?
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: coarse flow.](maps/01.svg)
#
# **You need** PyTorch, and [notebook 0](00_start_here.ipynb) for the rendered faces and the letters. **Time:** 40 minutes
# to read, one to run.
#
# **Afterwards you can**
# - warp a picture by a flow, and say where a pixel is without being off by half of one;
# - derive the flow of one part from a point and a 2 × 2 matrix (Equation 1), and mix eleven such flows by masks
#   (Equation 3);
# - write `DenseMotion`, the network that draws the masks, load shipped weights into it, and train it from scratch.
#
# **Papers.** *Learning Motion Refinement for Unsupervised Face Animation* (**MRFA**, section 3.1); its affine parts come
# from *First Order Motion Model for Image Animation* (**FOMM**, [arXiv 2003.00196](https://arxiv.org/abs/2003.00196)).

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import FloatSlider
from matplotlib.patches import ConnectionPatch, FancyArrowPatch, Rectangle
from torch import nn

# The package's versions of what this notebook builds: first to compare with, then to use.
from minimodel import affine, show
from minimodel.data import synthetic
from minimodel.dense_motion import DenseMotion as PackageDenseMotion
from minimodel.model import AnimationModel  # where shipped weights come from
from minimodel.motion import CoarseMotion  # what the package's DenseMotion returns
from minimodel.warping import from_pixels, identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE = 128

# %% [markdown]
# ## The aim: a flow
#
# We want to move a photo as a person in a film moves. All papers of this course do it in one way: they say *where each
# pixel of the new picture comes from in the photo*, and fetch it there. That "where" is a **flow**: two numbers a
# pixel. At 256 × 256 a flow has 131,072 numbers. This notebook makes them from ten points.
#
# Here is one person, drawn twice: the **source** $S$ (the photo) and the **driving** frame $D$ (a frame of the film).
# The renderer also knows the true flow from $D$ back to $S$, and which pixels of $D$ the source shows at all.

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
source = synthetic.Faces(identity, states[8])
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)  # in one light, as in one film
driving = synthetic.Faces(identity, moved)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)


def draw(*pictures, titles, wheel=False):
    """A row of pictures, and the wheel of a flow's colours if there is one."""
    row = torch.cat([*pictures, torch.ones_like(pictures[0])][: len(pictures) + wheel])
    figure = show.draw_pictures({"": row}, columns=titles, side=1.7 if wheel else 1.85)
    if wheel:
        figure.axes[-1].clear()
        show.flow_wheel(figure.axes[-1])
    return figure


pictures = S, D, show.flow_colors(true_flow), visible.expand(-1, 3, -1, -1)
titles = ["source S", "driving D", "true flow", "visible in the source"]
show.crisp(draw(*pictures, titles=titles, wheel=True), photographs=True)

# %% [markdown]
# *The flow to be built.* The hue of a flow is its direction, the strength of the colour its length; white stands still.
# Black in the fourth picture is what the source doesn't show.
#
# ## Where is a pixel?
#
# Half a pixel is the most frequent error in this field. **Ours**: one convention everywhere. A place $z$ is normalised,
# $x$ before $y$, and the picture spans $[-1, 1]$ **from edge to edge**. A pixel is a small square. The *centre* of
# pixel $j$ of $W$ therefore lies at
#
# $$x_j = \frac{2j + 1}{W} - 1 .$$


# %%
def grid_by_hand(height, width):
    """The place of each pixel's centre: channel 0 is x, channel 1 is y."""
    x = (2 * torch.arange(width) + 1) / width - 1  # (w,)
    y = (2 * torch.arange(height) + 1) / height - 1  # (h,)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])  # (2, h, w)


print("x of 4 columns:", grid_by_hand(2, 4)[0, 0].tolist())
print("y of 2 rows:   ", grid_by_hand(2, 4)[1, :, 0].tolist())

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the package's grid is ours; four averaged centres are the larger pixel's centre.
assert torch.equal(grid_by_hand(3, 5), identity_grid(3, 5))
assert torch.allclose(F.avg_pool2d(identity_grid(8, 8), 2), identity_grid(4, 4))

# %% [markdown]
# Two consequences. The same number is the same place at every resolution: a flow is resized *without* being rescaled.
# And averaging 2 × 2 pixels leaves features where they were, because the mean of two neighbouring centres is the centre
# of the larger pixel. `to_pixels` and `from_pixels` convert between places and pixels of a given size: pixel 1 of 4 is
# not pixel 2 of 8, but lies halfway between pixels 2 and 3.

# %%
place = from_pixels(torch.tensor([[1.0, 1.0]]), (4, 4))
print(
    "pixel 1 of 4 is the place", place[0, 0].item(), "and that is pixel", to_pixels(place, (8, 8))[0, 0].item(), "of 8"
)


def resize_by_hand(flow, size):
    """To (h, w): averages when it shrinks, bilinear when it grows. The numbers stay what they are."""
    if flow.shape[-1] > size[1]:
        return F.interpolate(flow, size, mode="area")
    return F.interpolate(flow, size, mode="bilinear", align_corners=False)


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the package's resize_flow does the same, up and down.
for size in ((32, 32), (256, 256)):
    assert torch.allclose(resize_by_hand(true_flow, size), resize_flow(true_flow, size), atol=1e-6)
assert place[0, 0] == -0.25 and to_pixels(place, (8, 8))[0, 0] == 2.5

# %% [markdown]
# ## Warping
#
# A flow $F$ lives on the *driving* grid and points *back* to the source:
#
# $$\hat D(z) = S\big(z + F(z)\big).$$
#
# Backwards, each pixel of the result gets exactly one value; pushing source pixels forwards would leave holes. The place
# $z + F(z)$ falls between pixels, so the four around it are mixed, the nearer the more:


# %%
def warp_naive(image, flow):
    """One pixel at a time; places beyond the edge take the edge's colour."""
    channels, height, width = image.shape
    result = torch.zeros(channels, *flow.shape[1:])
    places = to_pixels((grid_by_hand(*flow.shape[1:]) + flow).permute(1, 2, 0), (height, width))
    for i, line in enumerate(places.tolist()):
        for j, (x, y) in enumerate(line):
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            a, b = x - left, y - top
            four = image[:, top : top + 2, left : left + 2]
            weights = torch.tensor([[(1 - a) * (1 - b), a * (1 - b)], [(1 - a) * b, a * b]])
            result[:, i, j] = (four * weights).sum((1, 2))
    return result


def warp_by_hand(image, flow):
    """The same for a batch, as one call of PyTorch."""
    places = (grid_by_hand(*flow.shape[-2:]) + flow).permute(0, 2, 3, 1)  # (b, h, w, 2)
    return F.grid_sample(image, places, padding_mode="border", align_corners=False)  # (b, c, h, w)


warped = warp_by_hand(S, true_flow)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: loops, grid_sample and the package agree.
assert torch.allclose(warp_naive(S[0], true_flow[0]), warped[0], atol=1e-4)
assert torch.allclose(warp(S, true_flow), warped, atol=1e-6)

# %%
difference = (warped - D).abs().mean(1, keepdim=True)
titles = ["source", "source, warped", "driving", "difference (0 to 0.25)"]
figure = draw(S, warped, D, show.heat(difference, largest=0.25), titles=titles)
for axis, color in ((figure.axes[1], "tab:red"), (figure.axes[3], "white")):
    axis.contour(visible[0, 0], [0.5], colors=color, linewidths=0.8)
show.crisp(figure, photographs=True)
seen = visible > 0.5
flat = [replace(each, state=replace(each.state, ambient=torch.ones(1))) for each in (source, driving)]
flat_S, flat_D = (synthetic.render(faces, SIZE) for faces in flat)
flat_difference = (warp(flat_S, true_flow) - flat_D).abs().mean(1, keepdim=True)
print(
    f"the true flow leaves {difference[seen].mean():.2f} on visible pixels, {difference[~seen].mean():.2f} on hidden ones"
)
print(f"without shading it leaves {flat_difference[seen].mean():.3f} on visible pixels")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: where nothing is hidden and nothing is shaded, a flow is enough.
assert flat_difference[seen].mean() < 0.01 and flat_difference[~seen].mean() > 0.1

# %% [markdown]
# *Even the true flow can't do all.* Inside the outlines it fetches hair for wall: the source never showed that wall.
# Elsewhere the light differs: the head has turned under the lamp, and moving a pixel doesn't relight it. A model that
# *paints* can do both. So the benchmark's line *oracle*, the source warped by the true flow, is no upper bound.
#
# ### Break it: mix two conventions
#
# Many programs put the centres of the outermost pixels at $-1$ and $1$ (`align_corners=True`). Make the grid by one
# convention and read it by the other, with a flow of zeros, fifteen times:


# %%
def warp_mixed(image, flow):
    """Our grid, read by the other convention."""
    places = (grid_by_hand(*flow.shape[-2:]) + flow).permute(0, 2, 3, 1)
    return F.grid_sample(image, places, padding_mode="border", align_corners=True)


still = torch.zeros_like(true_flow)
right, mixed = S, S
for _ in range(15):
    right, mixed = warp(right, still), warp_mixed(mixed, still)
changed = show.heat((mixed - S).abs().mean(1, keepdim=True), largest=0.25)
titles = ["source", "15 times, ours", "15 times, mixed", "mixed: difference (0 to 0.25)"]
show.crisp(draw(S, right, mixed, changed, titles=titles), photographs=True)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: a picture that doesn't move stays what it is, and the mixed one doesn't.
assert torch.allclose(right, S, atol=1e-3) and (mixed - S).abs().mean() > 0.02

# %% [markdown]
# *Each mixed warp enlarges the picture by one pixel in 128 and blurs it.* A network learns to work against that, and
# then its flow is no longer the motion.
#
# ## Equation 1: what one point knows
#
# A detector finds part $k$'s point $p_k^S$ in the source and $p_k^D$ in the driving frame, and for each a 2 × 2 matrix
# $A_k$, which says how the part's surroundings are stretched and turned. Then
#
# $$T_k(z) = p_k^S + A_k^S\,(A_k^D)^{-1}\,(z - p_k^D). \tag{1}$$
#
# Read it from the right. How far is $z$ from the driving point? Undo the driving frame's stretch. Apply the source's.
# Start from the source's point. (MRFA writes $\mathcal{T}^k_{S \leftarrow D}$ for $T_k$, FOMM writes $J_k$ for the
# product of the matrices.)

# %% jupyter={"source_hidden": true}
NOSE = 30  # a landmark
p_D, p_S = (synthetic.landmarks(faces)[0, NOSE] for faces in (driving, source))
c, s = 0.87, 0.5
A_D = torch.tensor([[c, -s], [s, c]]) @ torch.diag(torch.tensor([1.25, 0.7]))
A_S = torch.tensor([[0.8, 0.45], [-0.5, 0.95]]) @ A_D
circle = 0.5 * torch.stack([torch.linspace(0, 6.2832, 100).cos(), torch.linspace(0, 6.2832, 100).sin()])
u = torch.tensor([0.42, -0.15])  # a place in the reference
frames = [(D, p_D, A_D, "driving frame $D$"), (None, 0 * p_D, torch.eye(2), "reference"), (S, p_S, A_S, "source $S$")]
figure, axes = plt.subplots(1, 3, figsize=(8.8, 3.2))
ends = []
for axis, (picture, p, A, title) in zip(axes, frames, strict=True):
    if picture is not None:
        axis.imshow(picture[0].permute(1, 2, 0), extent=(-1, 1, 1, -1))
    axis.plot(*(A @ circle + p[:, None]), color="tab:red", linewidth=2)
    for unit, color in ((torch.tensor([0.5, 0.0]), "tab:orange"), (torch.tensor([0.0, 0.5]), "tab:cyan")):
        axis.annotate(
            "", A @ unit + p, p, arrowprops=dict(arrowstyle="->", color=color, linewidth=2, shrinkA=0, shrinkB=0)
        )
    axis.plot(*p, "o", color="tab:red", markeredgecolor="white")
    axis.plot(*(A @ u + p), "X", color="yellow", markeredgecolor="black", markersize=9)
    axis.set(xlim=(-1, 1), ylim=(1, -1), xticks=[], yticks=[], title=title, aspect="equal")
    ends.append(A @ u + p)
for k, text in enumerate([r"$(A_k^D)^{-1}(z - p_k^D)$", r"$p_k^S + A_k^S\,(\ldots)$"]):
    arrow = dict(arrowstyle="-|>", mutation_scale=16, linewidth=1.6, connectionstyle="arc3,rad=-0.25", color="black")
    figure.add_artist(
        ConnectionPatch(
            ends[k].tolist(), ends[k + 1].tolist(), "data", "data", axesA=axes[k], axesB=axes[k + 1], **arrow
        )
    )
    figure.text(0.385 + 0.275 * k, 0.93, text, ha="center", fontsize=11)
labels = (("$z$", "$p_k^D$"), ("", "0"), ("$T_k(z)$", "$p_k^S$"))
for axis, (at_cross, at_point), (_, p, A, _) in zip(axes, labels, frames, strict=True):
    style = dict(fontsize=12, bbox=dict(boxstyle="round,pad=0.1", facecolor="white", alpha=0.8, linewidth=0))
    axis.text(*(A @ u + p + torch.tensor([0.1, -0.12])), at_cross, **style)
    axis.text(*(p + torch.tensor([-0.32, -0.05])), at_point, **style)
show.crisp(figure, photographs=True)

# %% [markdown]
# *Equation 1 goes from the driving frame to the source by way of a reference that nobody sees.* Each matrix makes the
# reference's circle an ellipse in its own frame, and a place (yellow) keeps its place *inside the ellipse*. Neither
# ellipse means anything alone: deform the reference, and both change, but $A_k^S (A_k^D)^{-1}$ stays. (The paper's text
# says that $A$ maps *to* the reference. Its equation needs *from*.)


# %%
def part_flow_naive(source_point, driving_point, source_affine, driving_affine, size):
    """Equation 1, pixel by pixel, as a displacement: T_k(z) - z."""
    flow, grid = torch.zeros(2, size, size), grid_by_hand(size, size)
    matrix = source_affine @ torch.linalg.inv(driving_affine)
    for i in range(size):
        for j in range(size):
            z = grid[:, i, j]
            flow[:, i, j] = source_point + matrix @ (z - driving_point) - z
    return flow


points = torch.rand(2, 1, 1, 2) - 0.5
matrices = torch.eye(2) + 0.3 * torch.randn(2, 1, 1, 2, 2)
package = affine.part_flows(points[0], points[1], matrices[0], matrices[1], (16, 16))  # (b, K, 2, h, w)
by_hand = part_flow_naive(points[0, 0, 0], points[1, 0, 0], matrices[0, 0, 0], matrices[1, 0, 0], 16)
print("loops and package agree:", torch.allclose(package[0, 0], by_hand, atol=1e-5))

# %% [markdown]
# One point on the tip of the nose moves the *whole* picture. That is why masks will be needed. Below are four settings;
# in a running notebook the sliders choose others.

# %%
nose = synthetic.landmarks(source)[:, 30:31]


def one_part(right, down, turn, stretch):
    """The source, moved as one part: the driving point is beside the source's, turned and stretched."""
    angle = torch.tensor(turn * torch.pi / 180)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 1, 2, 2) * stretch
    moved = nose + torch.tensor([right, down])
    flow = affine.part_flows(nose, moved, torch.eye(2).view(1, 1, 2, 2), matrix, (SIZE, SIZE))[:, 0]
    return warp(S, flow)


settings = {
    "shift right": (0.3, 0, 0, 1),
    "turn": (0, 0, 30, 1),
    "stretch": (0, 0, 0, 1.5),
    "all": (0.3, -0.2, 30, 0.7),
}
pictures = [one_part(*values) for values in settings.values()]
show.crisp(draw(*pictures, titles=list(settings)), photographs=True)


# %%
def draw_part(**setting):
    figure = draw(S, one_part(**setting), titles=["source", "moved"])
    figure.set_dpi(120)
    return figure


ranges = dict(right=(0.15, -0.4, 0.4), down=(0.0, -0.4, 0.4), turn=(20.0, -60, 60), stretch=(1.2, 0.5, 2))
sliders = {name: FloatSlider(value, min=low, max=high) for name, (value, low, high) in ranges.items()}
show.playground(draw_part, **sliders)

# %% [markdown]
# ## Equations 2 and 3: the background, and who owns which pixel
#
# Part 0 is everything that isn't the person. **Paper**: it stands still (notebook 2 lets it move).
#
# $$T_0(z) = z. \tag{2}$$
#
# A mask $M_k(z)$ says how much pixel $z$ belongs to part $k$ of $K = 10$. The masks sum to one, and the coarse flow is
# the mixture
#
# $$F_0(z) + z = \sum_{k=0}^{K} M_k(z)\,T_k(z). \tag{3}$$
#
# The paper mixes *places*. **Ours** mixes *displacements* $f_k(z) = T_k(z) - z$. That is the same, because the masks sum
# to one: $F_0 = \sum_k M_k f_k$.


# %%
def with_background_by_hand(flows):
    """Equation 2 as a displacement: zeros in front of the K part flows (b, K, 2, h, w)."""
    return torch.cat([torch.zeros_like(flows[:, :1]), flows], dim=1)  # (b, K + 1, 2, h, w)


def combine_by_hand(flows, masks):
    """Equation 3: part flows (b, K + 1, 2, h, w) and masks (b, K + 1, h, w)."""
    return (masks[:, :, None] * flows).sum(1)  # (b, 2, h, w)


# %% [markdown]
# In the real model a network finds points, matrices and masks. First we cheat, because rendered faces allow it. Ten of
# the renderer's landmarks are the points. Each matrix is the best fit to the true flow around its point. The masks say
# "the nearest point wins". The error that remains is then due to the *assumption* of ten affine pieces, not to a network.

# %%
NAMES = {2: "left jaw", 8: "chin", 14: "right jaw", 19: "left brow", 24: "right brow", 30: "nose"}
NAMES |= {37: "left eye", 44: "right eye", 48: "left mouth", 54: "right mouth"}  # left and right of the picture
TEN = list(NAMES)
p_S, p_D = (synthetic.landmarks(faces)[:, TEN] for faces in (source, driving))
parsing = synthetic.parsing(driving, SIZE)


def region(*names):
    """Where the driving frame shows these parts of the face, and the source does too."""
    wanted = torch.tensor([synthetic.PARTS.index(name) for name in names])
    return torch.isin(parsing, wanted)[:, None] & visible.bool()


def measured_matrix(point, radius=0.25):
    """The matrix that fits the true flow best around a point: least squares over the pixels of the face near it."""
    grid = grid_by_hand(SIZE, SIZE).flatten(1).T
    near = ((grid - point).norm(dim=1) < radius) & face.flatten()
    here = grid[near]
    there = here + true_flow[0].flatten(1).T[near]
    return torch.linalg.lstsq(torch.cat([here, torch.ones(len(here), 1)], 1), there).solution[:2].T


face = region("skin", "nose", "brows", "eyes", "upper lip", "lower lip")
A_D = torch.eye(2).expand(1, len(TEN), 2, 2)
A_S = torch.stack([measured_matrix(point) for point in p_D[0]])[None]
part_flows = with_background_by_hand(affine.part_flows(p_S, p_D, A_S, A_D, (SIZE, SIZE)))

# %%
alone = warp(S.expand(len(TEN) + 1, -1, -1, -1), part_flows[0])
figure, axes = plt.subplots(3, 4, figsize=(6.8, 5.6), layout="constrained")
titles = ["background", *NAMES.values(), "driving"]
for number, (axis, picture) in enumerate(zip(axes.flat, [*alone, D[0]], strict=True)):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(titles[number], fontsize=9)
    axis.set_axis_off()
    if 1 <= number <= len(TEN):
        show.dots(axis, p_D[0, number - 1 : number], (SIZE, SIZE), color="tab:red", s=40)
show.crisp(figure, photographs=True)

# %% [markdown]
# *Each part flow, used alone, is right around its own point (red) and wrong far away.* The masks choose. Their logits
# fall with the squared distance from the point, a softmax makes them sum to one, and outside the face the background
# takes over. We mix twice: with the measured matrices (*affine*), and with the identity for all of them (*shifts*).

# %%
WIDTH = 0.1


def masks_of(width):
    squared = (grid_by_hand(SIZE, SIZE) - p_D[..., None, None]).square().sum(2)  # (1, K, h, w)
    M = torch.softmax(-squared / (2 * width**2), dim=1) * face
    return torch.cat([1 - M.sum(1, keepdim=True), M], 1)  # (1, K + 1, h, w)


M = masks_of(WIDTH)
shifts = with_background_by_hand(affine.part_flows(p_S, p_D, A_D, A_D, (SIZE, SIZE)))
F_shift, F_affine = combine_by_hand(shifts, M), combine_by_hand(part_flows, M)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: Equations 2 and 3 are the package's.
assert torch.equal(part_flows, affine.with_background(part_flows[:, 1:]))
assert torch.allclose(F_affine, affine.combine(part_flows, M), atol=1e-6)
assert torch.allclose(M.sum(1), torch.ones(1, SIZE, SIZE))


# %%
def pixels_off(flow, truth, where):
    """Mean distance of two flows over the pixels ``where``, in pixels of their own resolution."""
    return map_of_errors(flow, truth)[where].mean().item()


def map_of_errors(flow, truth):
    return ((flow - truth) * flow.shape[-1] / 2).norm(dim=1, keepdim=True)  # (b, 1, h, w)


palette = torch.tensor(plt.colormaps["tab20"].colors)
owners = palette[M.argmax(1)].permute(0, 3, 1, 2)  # the strongest mask at each pixel, as a colour
scale = (true_flow * face).norm(dim=1).max().item()
made = {"nothing moves": still, "shifts": F_shift, "affine": F_affine}
flows = [show.flow_colors(flow * face, largest=scale) for flow in (true_flow, F_shift, F_affine)]
errors = [show.heat(map_of_errors(flow, true_flow) * face, largest=4) for flow in made.values()]
rows = {"flow": torch.cat([owners, *flows, 0 * D + 1]), "error": torch.cat([D, *errors, 0 * D + 1])}
figure = show.draw_pictures(rows, columns=["strongest mask", "true flow", "shifts", "affine", ""], side=1.75)
for axis, name in zip(figure.axes[5:], ("driving", *made)):
    axis.set_title(name, fontsize=9)
figure.subplots_adjust(hspace=0.17)
show.flow_wheel(figure.axes[4])
figure.axes[4].set_visible(True)
bar = plt.cm.ScalarMappable(plt.Normalize(0, 4), "viridis")
figure.colorbar(bar, cax=figure.axes[9].inset_axes([0, 0, 0.08, 1]), label="pixels off, of 128")
figure.axes[9].set(visible=True, frame_on=False)
show.crisp(figure, photographs=True)

# %%
regions = {"whole face": face, "lips": region("upper lip", "lower lip"), "eyes": region("eyes")}
off = {name: [pixels_off(flow, true_flow, where) for where in regions.values()] for name, flow in made.items()}
kept = off["affine"][0] / off["nothing moves"][0]
print(f"Ten affine parts leave {kept:.0%} of the motion of the face. Mean error in pixels of {SIZE}:")
show.table(off, list(regions), digits=1)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: shifts explain most, matrices a good part of the rest, and the gaze escapes both.
assert off["shifts"][0] < 0.3 * off["nothing moves"][0] and off["affine"][0] < 0.7 * off["shifts"][0]
assert off["affine"][2] > 0.3 * off["nothing moves"][2]

# %% [markdown]
# *Ten points explain most of the motion, and their matrices remove a good part of what is left.* The flow of shifts is
# made of plateaus, one a point; matrices give each patch a slope. The eyes are the exception: their points sit on the
# lids, and the eyeballs turn by themselves.
#
# ## The network that draws the masks
#
# Without a renderer, a network must draw the masks: `DenseMotion` (**FOMM**; MRFA keeps it). It gets 4 channels for each
# of 11 parts, the background included: one heatmap (a Gaussian $H_k$ at the driving point minus one at the source point;
# zero for the background) and the source warped by that part alone. The 44 channels enter an hourglass. Two
# convolutions, the heads, turn its output into 11 mask logits and one occlusion logit a pixel. The occlusion says
# whether the source can show the pixel at all (notebook 8 uses it). `DenseMotion` gets no driving image: points and
# matrices are all that travels from one face to the other.
#
# An **hourglass** halves the picture several times, then doubles it again. On the way up each level also gets what the
# way down had at its size, at the end the input itself. For `tiny-affine`:

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(8.8, 3.4))
steps = [
    ("44", 32),
    ("48", 16),
    ("96", 8),
    ("96", 4),
    ("96 + 96", 8),
    ("48 + 48", 16),
    ("24 + 44", 32),
    ("11", 32),
    ("1", 32),
]
centres = [0, 2, 4, 6, 8, 10, 12, 14.2, 16.2]
for (channels, side), x in zip(steps, centres, strict=True):
    color = "tab:orange" if x > 13 else "tab:blue"
    box = (x - 0.45, -side / 20), 0.9, side / 10
    axis.add_patch(Rectangle(*box, facecolor=color, alpha=0.35, edgecolor=color))
    axis.text(x, -side / 20 - 0.12, f"{channels}\n{side} × {side}", ha="center", va="top", fontsize=8)
for first, second in ((0, 6), (1, 5), (2, 4)):  # the skips
    at = [(centres[n], steps[n][1] / 20) for n in (first, second)]
    bend = dict(connectionstyle="arc3,rad=-0.16", arrowstyle="-|>", mutation_scale=10, color="grey")
    axis.add_patch(FancyArrowPatch(*at, **bend))
for n, label in enumerate(
    ("block\n÷ 2", "block\n÷ 2", "block\n÷ 2", "× 2\nblock", "× 2\nblock", "× 2\nblock", "heads")
):
    x = (centres[n] + centres[n + 1]) / 2
    axis.add_patch(FancyArrowPatch((x - 0.45, 0), (x + 0.45, 0), arrowstyle="-|>", mutation_scale=10))
    axis.text(x, 0.13, label, ha="center", va="bottom", fontsize=7)
for x, text in ((0, "evidence"), (12, "features"), (14.2, "masks"), (16.2, "occlusion")):
    axis.text(x, -2.75, text, ha="center", fontsize=9, weight="bold")
axis.set(xlim=(-0.7, 16.9), ylim=(-3.0, 3.2))
axis.set_axis_off()
show.crisp(figure)

# %% [markdown]
# *Channels and side of each tensor; grey are the skips.* The block (**published code**): convolution, batch
# normalisation, ReLU. A level down is a block and an average of 2 × 2 pixels, a level up is a doubling and a block. Doubling
# repeats each pixel (nearest). The Gaussians $H_k$ have height 1 and variance 0.01. Channels are ordered by part: first a
# part's heatmap, then its warped source. The heads are 3 × 3 convolutions. The names of our attributes are the package's, so
# that its weights fit; what `conv_block` builds is `ConvBlock` there, with an average `DownBlock`, behind a doubling `UpBlock`.


# %%
def conv_block(inputs, outputs):
    layers = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers)


class Hourglass(nn.Module):
    def __init__(self, inputs, *, base, levels, maximum):
        super().__init__()
        down = [inputs] + [min(maximum, base * 2 ** (i + 1)) for i in range(levels)]  # 44, 48, 96, 96
        up = [min(maximum, base * 2**i) for i in range(levels)]  # 24, 48, 96
        self.down = nn.ModuleList(conv_block(down[i], down[i + 1]) for i in range(levels))
        self.up = nn.ModuleList()
        for i in reversed(range(levels)):
            rising = down[i + 1] if i == levels - 1 else up[i + 1] + down[i + 1]  # with what the way down had
            self.up.append(conv_block(rising, up[i]))
        self.channels = up[0] + inputs  # 68

    def forward(self, x):  # (b, 44, 32, 32)
        skips = [x]
        for block in self.down:
            skips.append(F.avg_pool2d(block(skips[-1]), 2))  # (b, 48, 16, 16), (b, 96, 8, 8), (b, 96, 4, 4)
        x = skips.pop()
        for block in self.up:
            x = block(F.interpolate(x, scale_factor=2))  # (b, 96, 8, 8), (b, 48, 16, 16), (b, 24, 32, 32)
            x = torch.cat([x, skips.pop()], dim=1)  # (b, 192, 8, 8), (b, 96, 16, 16), (b, 68, 32, 32)
        return x


# %%
def heatmaps(points, size, variance=0.01):  # the variance is the published code's
    """H_k: a Gaussian of height 1 at each point (b, K, 2)."""
    squared = (grid_by_hand(*size) - points[..., None, None]).square().sum(2)  # (b, K, h, w)
    return torch.exp(-squared / (2 * variance))


class DenseMotion(nn.Module):
    def __init__(self, parts, *, base, levels, maximum):
        super().__init__()
        self.hourglass = Hourglass(4 * (parts + 1), base=base, levels=levels, maximum=maximum)
        self.mask_head = nn.Conv2d(self.hourglass.channels, parts + 1, 3, padding=1)
        self.occlusion_head = nn.Conv2d(self.hourglass.channels, 1, 3, padding=1)

    def forward(self, source, source_points, driving_points, part_flows):
        size = source.shape[-2:]  # source (b, 3, 32, 32), points (b, 10, 2), part flows (b, 11, 2, 32, 32)
        H = heatmaps(driving_points, size) - heatmaps(source_points, size)  # (b, 10, 32, 32)
        H = torch.cat([torch.zeros_like(H[:, :1]), H], dim=1)  # (b, 11, 32, 32): the background has no point
        warped = [warp(source, part_flows[:, k]) for k in range(part_flows.shape[1])]  # 11 of (b, 3, 32, 32)
        evidence = torch.cat([H[:, :, None], torch.stack(warped, 1)], dim=2)  # (b, 11, 4, 32, 32)
        features = self.hourglass(evidence.flatten(1, 2))  # (b, 44, 32, 32) -> (b, 68, 32, 32)
        masks = torch.softmax(self.mask_head(features), dim=1)  # (b, 11, 32, 32)
        occlusion = self.occlusion_head(features)  # (b, 1, 32, 32), a logit
        return combine_by_hand(part_flows, masks), masks, occlusion


# %% [markdown]
# The papers' sizes are base 64, 5 levels, at most 1024 channels and 7 × 7 heads, for pictures of 256 pixels and a flow
# of 64 (**published code**). **Ours** for 64 pixels: base 24, 3 levels, at most 96, 3 × 3, a flow of 32. Now the shipped
# weights of `tiny-affine`. Its detector also gives the points and matrices, a black box until
# [notebook 3](03_unsupervised_keypoints.ipynb).

# %%
model = AnimationModel.load("tiny-affine")
ours = DenseMotion(10, base=24, levels=3, maximum=96)
prefix = "prior.dense_motion."
weights = {name.removeprefix(prefix): w for name, w in model.state_dict().items() if name.startswith(prefix)}
ours.load_state_dict(weights)  # every name and shape must fit
ours.eval()


def inputs_of(S64, D64):
    """What DenseMotion gets: the small source, points of both, part flows."""
    with torch.no_grad():
        a, b = model.encode_source(S64).motion, model.encode_driving(D64)
    flows = affine.part_flows(a.points, b.points, a.affine, b.affine, (32, 32))
    return F.avg_pool2d(S64, 2), a.points, b.points, with_background_by_hand(flows)


S64, D64 = synthetic.render(source, 64), synthetic.render(driving, 64)
pair = inputs_of(S64, D64)
with torch.no_grad():
    flow, masks, occlusion = ours(*pair)
    package = model.prior.dense_motion(*pair)
for name, mine, theirs in (
    ("flow", flow, package.flow),
    ("masks", masks, package.masks),
    ("occlusion", occlusion, package.occlusion),
):
    print(f"{name:10} {tuple(mine.shape)!s:18} equals the package's: {torch.allclose(mine, theirs, atol=1e-5)}")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: every weight was used, and the package's class is the one that was compared with.
assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.prior.dense_motion.parameters())
assert isinstance(model.prior.dense_motion, PackageDenseMotion) and isinstance(package, CoarseMotion)
assert torch.allclose(flow, package.flow, atol=1e-5) and torch.allclose(occlusion, package.occlusion, atol=1e-5)

# %%
figure, axes = plt.subplots(1, 5, figsize=(8.8, 1.95), layout="constrained")
for axis, image, points in zip(axes, (S64, D64), pair[1:3]):
    axis.imshow(image[0].permute(1, 2, 0))
    show.dots(axis, points[0], (64, 64), c=range(points.shape[1]), cmap="tab10", s=40)
of_points = torch.cat([torch.ones(1, 3), torch.tensor(plt.colormaps["tab10"].colors)])  # the background is white
axes[2].imshow(of_points[masks.argmax(1)[0]])
axes[3].imshow(show.flow_colors(flow, largest=scale)[0].permute(1, 2, 0))
show.flow_wheel(axes[4])
for axis, title in zip(axes, ("source, its points", "driving, its points", "strongest mask", "coarse flow $F_0$")):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
show.crisp(figure, photographs=True)

# %% [markdown]
# *A mask has its point's colour; white is the background.* The points sit where the detector found them useful. Nobody
# told it what a face is.
#
# ## How masks form
#
# Nobody labels masks. Their only teacher is the picture: the source, warped by $F_0$, should look like the driving
# frame. We train the same network from fresh weights for 100 steps on 64 rendered pairs, with points and matrices held
# fixed, by the mean absolute difference of colours. (The papers compare features instead of colours; notebook 9 says
# why.) The pair above isn't among the 64.

# %%
faces_S, faces_D = synthetic.sample_pairs(64 + 16, 0)
many_S, many_D = synthetic.render(faces_S, 64), synthetic.render(faces_D, 64)
evidence = inputs_of(many_S, many_D)
torch.manual_seed(0)
fresh = DenseMotion(10, base=24, levels=3, maximum=96)
optimizer = torch.optim.Adam(fresh.parameters(), lr=2e-3)


def tested(network):
    """Masks and flow (at 64 pixels) of the pair above, and the flow of the last 16 pairs."""
    network.eval()
    with torch.no_grad():
        flow, masks, _ = network(*pair)
        unseen = network(*(value[64:] for value in evidence))[0]
    network.train()
    return masks, resize_flow(flow, (64, 64)), resize_flow(unseen, (64, 64))


stages = {"step 0": tested(fresh)}
for step in range(1, 101):
    batch = torch.randperm(64)[:8]
    flow, _, _ = fresh(*(value[batch] for value in evidence))
    warped = warp(many_S[batch], resize_flow(flow, (64, 64)))
    loss = (warped - many_D[batch]).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (25, 100):
        stages[f"step {step}"] = tested(fresh)
stages["shipped"] = tested(ours)

# %%
truth, seen64 = synthetic.flow_between(source, driving, 64)
not_wall = (synthetic.parsing(driving, 64) != synthetic.PARTS.index("background"))[:, None] & seen64.bool()
rows = {
    "strongest\nmask": torch.cat([of_points[masks.argmax(1)].permute(0, 3, 1, 2) for masks, _, _ in stages.values()]),
    "source,\nwarped": torch.cat([warp(S64, flow) for _, flow, _ in stages.values()]),
    "error of\nthe flow": torch.cat(
        [show.heat(map_of_errors(f, truth) * not_wall, largest=3) for _, f, _ in stages.values()]
    ),
}
figure = show.draw_pictures(rows, columns=list(stages), side=1.75)
bar = plt.cm.ScalarMappable(plt.Normalize(0, 3), "viridis")
figure.colorbar(bar, cax=figure.axes[-1].inset_axes([1.05, 0, 0.08, 1]), label="pixels off, of 64")
show.crisp(figure, photographs=True)

# %%
# NBVAL_IGNORE_OUTPUT
unseen_truth, unseen_visible = synthetic.flow_between(faces_S[64:], faces_D[64:], 64)
person = (synthetic.parsing(faces_D[64:], 64) != synthetic.PARTS.index("background"))[:, None] & unseen_visible.bool()
off = {"nothing moves": pixels_off(0 * unseen_truth, unseen_truth, person)}
off |= {name: pixels_off(flow, unseen_truth, person) for name, (_, _, flow) in stages.items()}
strongest = {name: masks.amax(1).mean().item() for name, (masks, _, _) in stages.items()}
print(
    f"100 steps remove {1 - off['step 100'] / off['nothing moves']:.0%} of the error, on 16 pairs that they never saw."
)
rows = {name: [value, strongest.get(name, "")] for name, value in off.items()}
show.table(rows, ["flow: pixels off, of 64", "strongest mask, mean"])

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: fresh masks don't decide, trained ones do, and the flow gets better on other pairs.
assert strongest["step 0"] < 0.3 < strongest["step 100"]
assert off["step 100"] < 0.75 * off["step 0"] < off["nothing moves"]
assert off["shipped"] < off["step 0"] / 1.5

# %% [markdown]
# *Masks form within a hundred steps, from pictures alone.* With fresh weights all parts have about the same say
# everywhere, and the flow is their mean. After 25 steps the network tells the person from the wall. After 100 most
# pixels have an owner. `tiny-affine` needed 70 minutes, because it had to find its points as well.
#
# What ten affine parts say badly is *small and soft*: lips, lids, the gaze. Splines ([notebook
# 2](02_thin_plate_splines.ipynb)) and motion refinement ([6](06_structure_correlation.ipynb),
# [7](07_lookup_and_refinement.ipynb)) are two answers.
#
# ## In five lines
#
# - **You can now** turn ten points into a flow of a whole picture, with a network that you wrote.
# - **The paper says** that each part moves affinely (Eq. 1), the background not at all (Eq. 2), and masks mix them (Eq. 3).
# - **Its code does** the same with FOMM's network: 4 channels a part, no driving image, an occlusion beside the masks.
# - **We chose** displacements instead of places, occlusion as a logit, one convention of places for everything.
# - **We measured** what ten perfect affine parts leave of a face's motion, and that masks form in 100 steps.
#
# | equation (MRFA) | section here | module |
# |---|---|---|
# | 1 | Equation 1: what one point knows | `affine.part_flows` |
# | 2, 3 | Equations 2 and 3 | `affine.with_background`, `affine.combine` |
# | none: network of section 3.1 | The network that draws the masks | `blocks.Hourglass`, `dense_motion.DenseMotion` |
# | none: warping | Warping | `warping.warp`, `warping.resize_flow` |
# | 4 to 8, refinement | notebooks [6](06_structure_correlation.ipynb) and [7](07_lookup_and_refinement.ipynb) | `correlation`, `refinement` |
# | 9, 10, generator | [notebook 8](08_occlusion_gated_unet.ipynb) | `generator` |
# | 11 to 13, losses | notebooks [3](03_unsupervised_keypoints.ipynb) and 9 | `losses` |
#
# **Open.** Who finds the points (notebook 3)? What if the wall moves ([A2](A2_numerics.ipynb))? What does half precision
# do to places (A2, too)?
#
# ## Exercises
#
# **1 (builds; medium).** Write Equation 1 for a batch, without a loop. No inverse either: $X = A^S (A^D)^{-1}$ solves
# $X A^D = A^S$, see `torch.linalg.solve(..., left=False)`.


# %%
def my_part_flows(source_points, driving_points, source_affine, driving_affine, size):
    """Points (b, K, 2), matrices (b, K, 2, 2) -> flows (b, K, 2, h, w)."""
    return None  # your turn


# %% jupyter={"source_hidden": true}
def check_1(function):
    points, matrices = torch.rand(2, 3, 10, 2) - 0.5, torch.eye(2) + 0.2 * torch.randn(2, 3, 10, 2, 2)
    given = points[0], points[1], matrices[0], matrices[1], (12, 16)
    answer = function(*given)
    if answer is None:
        return "not yet"
    return "right" if torch.allclose(answer, affine.part_flows(*given), atol=1e-5) else "not equal to the package's"


print("Exercise 1:", check_1(my_part_flows))

# %% [markdown]
# **2 (easy).** Another program gives a backward flow in pixels of its own size, $y$ before $x$. Convert it to ours.


# %%
def my_conversion(flow):
    """(b, 2, h, w) in pixels, y first -> (b, 2, h, w) normalised, x first."""
    return None  # your turn


# %% jupyter={"source_hidden": true}
def check_2(function):
    flow = 0.1 * torch.randn(1, 2, 30, 40)
    answer = function((flow * torch.tensor([20.0, 15.0]).view(2, 1, 1)).flip(1))
    if answer is None:
        return "not yet"
    return (
        "right" if torch.allclose(answer, flow, atol=1e-5) else "wrong: is it the half, the order, or the wrong side?"
    )


print("Exercise 2:", check_2(my_conversion))

# %% [markdown]
# **3 (experiment; easy).** Which of the widths 0.03, 0.1, 0.4 of the masks made by hand (`masks_of`) is best for the
# shifts, which for the affine parts, over `face`? Guess first.

# %%
my_widths = {"shifts": None, "affine": None}


# %% jupyter={"source_hidden": true}
def check_3(widths):
    if None in widths.values():
        return "not yet"
    for name, flows in (("shifts", shifts), ("affine", part_flows)):
        error = {w: pixels_off(combine_by_hand(flows, masks_of(w)), true_flow, face) for w in (0.03, 0.1, 0.4)}
        if widths[name] != min(error, key=error.get):
            return f"not for {name}"
    return "right"


print("Exercise 3:", check_3(my_widths))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. ```python
#    X = torch.linalg.solve(driving_affine, source_affine, left=False)  # (b, K, 2, 2)
#    offset = identity_grid(*size) - driving_points[..., None, None]  # (b, K, 2, h, w)
#    moved = torch.einsum("bkij,bkjhw->bkihw", X, offset)
#    return source_points[..., None, None] + moved - identity_grid(*size)
#    ```
# 2. `flow.flip(1) * 2 / torch.tensor([flow.shape[3], flow.shape[2]]).view(2, 1, 1)`: the picture is 2 wide.
# 3. 0.1 for both. Shifts are off by 2.2, 1.8 and 3.2 pixels, affine parts by 1.0, 0.9 and 2.2. Sharp masks make cliffs
#    between the plateaus of the shifts; affine parts have slopes and hardly mind. Wide masks harm both, because parts
#    then speak far from their points.
#
# </details>
#
# **Next:** [2 · Thin-plate splines](02_thin_plate_splines.ipynb), parts that bend; or
# [3 · Unsupervised keypoints](03_unsupervised_keypoints.ipynb), where the points come from.
