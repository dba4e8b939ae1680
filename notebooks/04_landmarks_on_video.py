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
# # 4 · Landmarks on video: points that hold still
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: landmarks.](maps/04.svg)
#
# **The question.** A detector that looks at one frame at a time trembles on a film, even where it is accurate. How do its
# points come to hold still?
#
# **You need** [notebook 1](01_affine_flows.ipynb) for the hourglass and [notebook 3](03_unsupervised_keypoints.ipynb)
# for the soft-argmax. **Time:** 40 minutes to read, one to run.
#
# **Afterwards you can**
# - write a stacked hourglass that finds 74 landmarks, and read its heatmaps by their mean;
# - write a step of Lucas-Kanade, and follow points from frame to frame;
# - teach a detector by unlabelled film to agree with itself, and measure how much it still trembles.
#
# **Papers.** *Sparse to Dense Motion Transfer for Face Image Animation* (**S2D**,
# [arXiv 2109.00471](https://arxiv.org/abs/2109.00471), section 3.3). It animates a photo by nothing but landmarks, so a
# point that trembles shakes the face. Its two remedies are **DSNT**, which reads a heatmap by its mean, and the
# **registration loss** of *Supervision-by-Registration* (**SBR**, CVPR 2018).

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import FloatSlider
from matplotlib.patches import Rectangle
from torch import nn

from minimodel import landmarks as package  # shipped weights, and what this notebook builds, to compare with
from minimodel import show
from minimodel.blocks import ConvBlock, Hourglass  # of notebook 1
from minimodel.data import synthetic  # the renderer
from minimodel.evaluation import metrics
from minimodel.keypoints import gaussian_heatmaps, soft_argmax  # of notebooks 1 and 3
from minimodel.warping import identity_grid, to_pixels

SIZE = 128
faces = synthetic.Faces(synthetic.sample_identities(1, seed=12), synthetic.animate_states(40, seed=5))
clean, truth = synthetic.render(faces, SIZE), synthetic.landmarks(faces)  # (40, 3, 128, 128), (40, 74, 2)


def grainy(frames, seed):
    """Frames with some grain, as a camera adds it."""
    return (frames + 0.03 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def in_pixels(points):
    return to_pixels(points, (SIZE, SIZE))


film = grainy(clean, 1)

# %% [markdown]
# ## The 74 points
#
# Our film shows somebody whom the shipped detector's training hasn't seen, with some grain. The renderer knows its landmarks. 68 of them are
# those of the iBUG annotation. S2D adds six and names two, the pupils (**paper**). Our other four are the middles of the
# lids (**ours**). Right and left are the subject's.

# %% jupyter={"source_hidden": true}
NOSE, CORNER, PUPIL = 30, 48, 68
groups = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68), "pupils": (68, 70)}
groups["lids"] = (70, 74)
portrait = synthetic.render(faces[:1], 320)[0].permute(1, 2, 0)
figure, axes = plt.subplots(1, 2, figsize=(8, 4))
for axis, size in zip(axes, (9, 26)):
    axis.imshow(portrait, interpolation="bilinear")
    for name, (first, last) in groups.items():
        show.dots(axis, truth[0, first:last], (320, 320), s=size, label=name, linewidths=0.3)
    axis.set_axis_off()
x, y = to_pixels(truth[0, 36:68], (320, 320)).T
axes[1].set(xlim=(x.min() - 25, x.max() + 25), ylim=(y.max() + 15, y.min() - 35))
axes[0].legend(fontsize=8, loc="lower left")
figure.tight_layout(pad=0.3)
show.crisp(figure, photographs=True)

# %% [markdown]
# ## The network, whole
#
# The network makes one small picture of logits $Z$ for each point, 32 × 32 for a photo of 128 × 128. In training the
# wanted heatmap is a Gaussian around the true place $p$:
#
# $$H(z) = \exp\left(-\tfrac{1}{2v} \|z - p\|^2\right).$$
#
# `HeatmapNetwork` is two hourglasses in a row, the plan of FAN, the *face alignment network* that S2D starts from (**paper**; FAN
# stacks four). The picture, in $[0, 1]$, is scaled to $[-1, 1]$. All 4 × 4 pixels of a place enter as channels (**ours**,
# `nn.PixelUnshuffle`), and a block makes 48 of them. Each hourglass (base 24, three levels, at most 96 channels) has a head, a
# 1 × 1 convolution to 74 logits. Features and logits of the first, in this order, pass a 1 × 1 convolution back to 48 channels,
# which is added to what the first hourglass got: the input of the second. Both heads have a loss in training; the second one's
# heatmaps are read. Attributes have the package's names:


# %%
class HeatmapNetwork(nn.Module):
    def __init__(self, points=74, scale=4, width=48, base=24, levels=3, maximum=96, stacks=2):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(scale), ConvBlock(3 * scale**2, width, norm="batch"))
        sizes = dict(base=base, levels=levels, maximum=maximum, norm="batch")
        self.hourglasses = nn.ModuleList(Hourglass(width, **sizes) for _ in range(stacks))
        channels = base + width  # an hourglass ends with its input beside its own features
        self.heads = nn.ModuleList(nn.Conv2d(channels, points, 1) for _ in range(stacks))
        self.merges = nn.ModuleList(nn.Conv2d(channels + points, width, 1) for _ in range(stacks - 1))

    def forward(self, image):  # (B, 3, 128, 128), in [0, 1]
        x = self.stem(2 * image - 1)  # (B, 48, 32, 32)
        answers = []
        for i, (hourglass, head) in enumerate(zip(self.hourglasses, self.heads)):
            features = hourglass(x)  # (B, 72, 32, 32)
            answers.append(head(features))  # (B, 74, 32, 32): logits
            if i < len(self.merges):
                told = torch.cat([features, answers[-1]], dim=1)  # (B, 146, 32, 32)
                x = x + self.merges[i](told)  # (B, 48, 32, 32)
        return answers


shipped = package.LandmarkDetector.load()  # its part `face` is this network
network = HeatmapNetwork().eval()
network.load_state_dict(shipped.face.state_dict())  # every name and every shape fits, or this raises an error
with torch.no_grad():
    Z = network(film)[-1]
    agree = torch.allclose(Z, shipped.stages(film)[-1], atol=1e-4)
print("the same heatmaps as the package's:", agree)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the comparison above; the wanted heatmap in loops.
assert agree
wanted = gaussian_heatmaps(truth[:1], (32, 32), (2 / 32) ** 2)[0, NOSE]
grid = identity_grid(32, 32)
for i, j in ((10, 12), (17, 16), (20, 15)):
    assert torch.allclose(
        wanted[i, j], torch.exp(-(grid[:, i, j] - truth[0, NOSE]).square().sum() / (2 * (2 / 32) ** 2))
    )

# %% [markdown]
# What the network makes of the first frame for three points, with the photo dimly behind. Each map is scaled to its own
# maximum:

# %% jupyter={"source_hidden": true}
heatmaps = soft_argmax(Z)[1]
figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.4))
for axis, k, name in zip(axes, (NOSE, CORNER, PUPIL), ("tip of the nose", "corner of the mouth", "pupil")):
    axis.imshow(film[0].permute(1, 2, 0) * 0.6, extent=(0, 1, 1, 0), interpolation="bilinear")
    axis.imshow(heatmaps[0, k], extent=(0, 1, 1, 0), alpha=0.55, interpolation="nearest")
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()
figure.tight_layout(pad=0.3)
show.crisp(figure, photographs=True)

# %% [markdown]
# ## Reading it: the highest pixel
#
# The usual way takes the pixel where the heatmap is highest. FAN then moves it a quarter of a pixel towards the higher
# neighbour (**published code**). Slide a point slowly to the right, draw the perfect heatmap for it, and read it:


# %%
def argmax(heatmaps):  # (B, K, h, w) -> (B, K, 2)
    grid = identity_grid(*heatmaps.shape[2:]).flatten(1).T  # (h w, 2)
    return grid[heatmaps.flatten(2).argmax(-1)]


PIXEL = 2 / 32  # a heatmap's pixel, normalised
slide = torch.linspace(0.01, 3.99, 200)  # in heatmap pixels
places = torch.stack([(slide - 2) * PIXEL, torch.full_like(slide, 0.01)], dim=-1)[:, None]
perfect = gaussian_heatmaps(places, (32, 32), PIXEL**2)
readings = {
    "maximum": argmax(perfect),
    "and a quarter": package.argmax(perfect, quarter=True),
    "mean": soft_argmax(perfect.clamp_min(1e-12).log())[0],
}
worst = {name: ((points - places).abs()[..., 0].max() / PIXEL).item() for name, points in readings.items()}
show.table({name: [4 * value] for name, value in worst.items()}, ["largest error, pixels of the photo"], digits=1)

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(5.5, 2.8))
for (name, points), style in zip(readings.items(), ("tab:orange", "tab:olive", "tab:red")):
    axis.plot(slide, points[:, 0, 0] / PIXEL + 2, color=style, label=name)
axis.set(xlabel="true place, heatmap pixels", ylabel="place read,\nheatmap pixels")
axis.legend(fontsize=8)
show.crisp(figure)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the mean is exact, the maximum a staircase; the package reads the same maximum.
assert worst["mean"] < 0.01 < 0.2 < worst["and a quarter"] < worst["maximum"]
assert torch.equal(argmax(perfect), package.argmax(perfect))

# %% [markdown]
# The maximum is a staircase whose steps are four pixels of the photo high. A point that moves slowly stands still,
# jumps, stands still. At a step's edge the faintest grain decides between two places, so the point trembles even on a
# face that doesn't move.
#
# ## Reading it: the mean (DSNT)
#
# A softmax makes a distribution of $Z$, and the point is where it lies on average:
#
# $$\hat H(z) = \frac{e^{Z(z)}}{\sum_y e^{Z(y)}}, \qquad p = \sum_z \hat H(z)\, z .$$
#
# That is the soft-argmax of notebook 3 with temperature 1. It has no steps, no parameters, and a derivative everywhere
# (**paper**). Try where it fails: when the hill is much narrower than a pixel, or reaches beyond the picture's edge.


# %% jupyter={"source_hidden": true}
def draw_reading(right, sigma):
    place = torch.tensor([[[right * 2 / 9, 0.0]]])
    heatmap = gaussian_heatmaps(place, (9, 9), (sigma * 2 / 9) ** 2)
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    axis.imshow(heatmap[0, 0], cmap="gray")
    mean = soft_argmax(heatmap.clamp_min(1e-12).log())[0]
    show.dots(axis, place[0], (9, 9), facecolors="none", edgecolors="lime", linewidths=1.5, label="true", s=120)
    for points, name, color in ((argmax(heatmap), "maximum", "tab:orange"), (mean, "mean", "tab:red")):
        show.dots(axis, points[0], (9, 9), color=color, label=name, s=40)
    axis.legend(fontsize=7)
    axis.set_axis_off()
    return figure


sliders = dict(right=FloatSlider(0.4, min=-2, max=2, step=0.1), sigma=FloatSlider(1.0, min=0.3, max=3))
show.playground(draw_reading, **sliders)

# %% [markdown]
# **Break it.** The mean of two hills lies in the valley between them. A loss on points alone accepts that, and the
# heatmap then says nothing. So training keeps the wanted heatmap in the loss, as a cross entropy with $\hat H$ (**ours**;
# the DSNT paper uses another divergence). For a point in the middle:

# %%
middle, inside = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
two = gaussian_heatmaps(torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]]), (32, 32), PIXEL**2).sum(1, keepdim=True)
costs = {}
for name, hills in (("one hill", gaussian_heatmaps(middle, (32, 32), PIXEL**2)), ("two hills", two)):
    logits = hills.clamp_min(1e-9).log()
    distance = package.point_loss(soft_argmax(logits)[0], middle, inside).item()
    costs[name] = distance, package.heatmap_loss(logits, middle, inside).item()
show.table(costs, ["distance of points", "loss of heatmaps"], digits=1)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the distance can't tell, the heatmaps can.
assert max(distance for distance, _ in costs.values()) < 0.01
assert costs["two hills"][1] > 2 * costs["one hill"][1]

# %% [markdown]
# ## How much does it tremble?
#
# S2D measures how far each point is from the middle between where it was and where it will be. $l^t$ are the landmarks
# of frame $t$ (the paper writes $D_{lm}^t$):
#
# $$SMS = \frac{1}{T} \sum_{t=1}^{T} \left| \tfrac{1}{2}\left(l^{t-1} + l^{t+1}\right) - l^t \right| . \tag{9}$$
#
# Steady motion costs nothing. The paper leaves the norm open. We take the distance in the plane, summed over points, and
# the mean over the frames that have both neighbours (**ours**).
#
# Real heads accelerate, so the truth's own SMS isn't zero. The renderer allows a sharper question: the SMS of *found
# minus true*, which is zero for a detector that is steadily wrong. **Bias** is that steady part: the length of a
# point's mean error over the film.


# %%
def sms_naive(points):  # (T, K, 2), pixels
    total = 0.0
    for t in range(1, len(points) - 1):
        for k in range(points.shape[1]):
            total += ((points[t - 1, k] + points[t + 1, k]) / 2 - points[t, k]).square().sum().sqrt()
    return total / (len(points) - 2)


def judge(points):
    """SMS, SMS of the error, bias and mean error, in pixels."""
    found, error = in_pixels(points), in_pixels(points) - in_pixels(truth)
    bias, distance = error.mean(0).norm(dim=-1).mean(), error.norm(dim=-1).mean()
    return [value.item() for value in (metrics.sms(found), metrics.sms(error), bias, distance)]


# %%
p_max, p_mean = argmax(heatmaps), soft_argmax(Z)[0]
read = {"maximum": p_max, "and a quarter": package.argmax(heatmaps, quarter=True), "mean": p_mean, "truth": truth}
scores = {name: judge(points) for name, points in read.items()}
columns = ["SMS", "SMS of the error", "bias", "mean error"]
show.table(scores, columns, digits=dict(zip(columns, (0, 0, 1, 1))))

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: loops agree; the mean trembles less and is nearer to the truth.
assert torch.allclose(metrics.sms(in_pixels(p_max)), sms_naive(in_pixels(p_max)), rtol=1e-4)
assert scores["mean"][0] < 0.6 * scores["maximum"][0] and scores["mean"][3] < 0.7 * scores["maximum"][3]

# %% [markdown]
# **The same heatmaps, read by their mean, tremble far less.** One corner of the mouth, frame by frame:

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(8, 2.8))
styles = {"maximum": "tab:orange", "mean": "tab:red", "truth": "k"}
for name, color in styles.items():
    axis.plot(in_pixels(read[name])[:, CORNER, 1], color=color, label="mean (DSNT)" if name == "mean" else name)
distances = {name: (in_pixels(read[name]) - in_pixels(truth)).norm(dim=-1) for name in ("maximum", "mean")}
nearer = distances["maximum"] < distances["mean"]
for t in nearer[:, CORNER].nonzero().flatten().tolist():
    axis.axvspan(t - 0.5, t + 0.5, color="tab:orange", alpha=0.15, linewidth=0)
axis.set(xlabel="frame (shaded: the maximum is nearer to the truth)", ylabel="y in pixels")
axis.legend(fontsize=8)
show.crisp(figure)
print(f"the maximum is nearer at this point in {nearer[:, CORNER].float().mean():.0%} of the frames,")
print(f"over all points and frames in {nearer.float().mean():.0%}")

# %% [markdown]
# **The mean isn't always nearer to the truth.** In frames 3 to 7 this corner is at 85, and the heatmap's hill lies at 87.
# The mean passes the hill's place on. The maximum rounds it to a pixel's centre, 85.5, and is nearer by luck. So the mean
# doesn't mend a hill that lies in the wrong place: that is the bias of the table. Its gain is that the error stays the
# same from frame to frame, while the maximum's jumps.
#
# ## One step of Lucas-Kanade
#
# The second remedy needs something that knows where a point moves without being told. A face changes little in 1/25 of a
# second. So cut a patch around the point $p$ in frame $I_t$, and look for the shift $d$ that makes the next frame look
# the same:
#
# $$\min_d \sum_{u} \big( I_{t+1}(p + d + u) - I_t(p + u) \big)^2 .$$
#
# Here $u$ runs over the patch. For a small step the picture is about linear. With the patch's gradient $J(u)$ and the
# difference $r(u)$ inside the sum, least squares gives
#
# $$d \leftarrow d - \Big(\sum_u J J^\top + \varepsilon I\Big)^{-1} \sum_u J\, r .$$
#
# The damping $\varepsilon$ is there for a patch without texture: its sum of $J J^\top$ has no inverse. With the damping the
# patch stays where it is, as its sum of $J r$ is zero.


# %%
def patches(image, points, radius):  # (B, C, H, W), (B, K, 2) -> (B, C, K, n, n) with n = 2 radius + 1
    offset = torch.arange(-radius, radius + 1.0)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    extent = torch.tensor([image.shape[3], image.shape[2]])
    where = points[:, :, None] + torch.stack([x, y], dim=-1).flatten(0, 1) * 2 / extent  # (B, K, n n, 2)
    cut = F.grid_sample(image, where, padding_mode="border", align_corners=False)  # (B, C, K, n n)
    return cut.unflatten(3, (len(offset), len(offset)))


def lucas_kanade_step(start, end, points, moved, radius=4, damping=0.01):
    wide = patches(start, points, radius + 1)  # (B, C, K, n + 2, n + 2)
    right = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2  # (B, C, K, n, n)
    down = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    J = torch.stack([right, down])  # (2, B, C, K, n, n)
    r = patches(end, moved, radius) - wide[..., 1:-1, 1:-1]  # (B, C, K, n, n)
    matrix = torch.einsum("xbckij,ybckij->bkxy", J, J) + damping * torch.eye(2)  # (B, K, 2, 2)
    vector = torch.einsum("xbckij,bckij->bkx", J, r)  # (B, K, 2)
    extent = torch.tensor([start.shape[3], start.shape[2]])
    return moved - torch.linalg.solve(matrix, vector) * 2 / extent  # pixels -> normalised


# %% [markdown]
# One step, drawn: the outer corner of an eye, between two neighbouring frames in which it moves about one pixel.

# %%
EYE = 36
moves = in_pixels(truth)[:, EYE].diff(dim=0).norm(dim=-1)
t = int((moves - 1).abs().argmin())
start, end, p = clean[t : t + 1], clean[t + 1 : t + 2], truth[t : t + 1, EYE : EYE + 1]
stepped = lucas_kanade_step(start, end, p, p)
then, same_place, after = (patches(*view, radius=4)[0, :, 0] for view in ((start, p), (end, p), (end, stepped)))

# %% jupyter={"source_hidden": true}
figure = plt.figure(figsize=(9, 4.6), layout="constrained")
grid = figure.add_gridspec(2, 12)
places = [grid[0, 0:4], grid[0, 4:6], grid[0, 6:8], grid[0, 8:10], grid[0, 10:12]]
places += [grid[1, 0:4], grid[1, 4:6], grid[1, 6:8], grid[1, 8:10], grid[1, 10:12]]
axes = [figure.add_subplot(place) for place in places]
(x, y), (x_new, y_new) = in_pixels(p)[0, 0].tolist(), in_pixels(stepped)[0, 0].tolist()
(x_true, y_true) = in_pixels(truth)[t + 1, EYE].tolist()
for axis, picture, title in ((axes[0], start, f"frame {t}"), (axes[5], end, f"frame {t + 1}")):
    axis.imshow(picture[0].permute(1, 2, 0), interpolation="bilinear")
    axis.add_patch(Rectangle((x - 4.5, y - 4.5), 9, 9, fill=False, color="white", linestyle="--", linewidth=1.5))
    axis.set(xlim=(x - 12, x + 12), ylim=(y + 9, y - 9))
    axis.set_title(title, fontsize=9)
axes[0].plot(x, y, "o", color="white", markersize=6)
axes[5].add_patch(Rectangle((x_new - 4.5, y_new - 4.5), 9, 9, fill=False, color="yellow", linewidth=2))
axes[5].annotate(
    "", (x_new, y_new), (x, y), arrowprops=dict(arrowstyle="-|>", color="yellow", linewidth=2, shrinkA=0, shrinkB=0)
)
axes[5].plot(x_true, y_true, "+", color="lime", markersize=11, markeredgewidth=2)
axes[5].set_title(f"frame {t + 1}: the step (yellow), truth (+)", fontsize=9)
wide = patches(start, p, 5)[0, :, 0].mean(0)
gradients = (wide[1:-1, 2:] - wide[1:-1, :-2]) / 2, (wide[2:, 1:-1] - wide[:-2, 1:-1]) / 2
before_step, after_step = (same_place - then).mean(0), (after - then).mean(0)
limit = float(torch.stack([*gradients, before_step]).abs().max())
for axis, picture, title in (
    (axes[1], then, "patch, then"),
    (axes[2], same_place, "same place, now"),
    (axes[3], after, "one step on, now"),
):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(title, fontsize=9)
axes[4].set_visible(False)
for axis, values, title in (
    (axes[6], gradients[0], "$J$ along x"),
    (axes[7], gradients[1], "$J$ along y"),
    (axes[8], before_step, "$r$ before the step"),
    (axes[9], after_step, "$r$ after it"),
):
    drawn = axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(title, fontsize=9)
for axis in axes:
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes[6:], shrink=0.7, location="bottom", label="mean of the three colours")
show.crisp(figure)
far = [(in_pixels(q)[0, 0] - in_pixels(truth)[t + 1, EYE]).norm() for q in (p, stepped)]
print(f"distance from the truth: {far[0]:.1f} pixels before the step, {far[1]:.1f} after it")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the patch after the step is more like the old one, the place nearer to the truth.
assert (after - then).square().sum() < 0.7 * (same_place - then).square().sum() and far[1] < 0.7 * far[0]
assert torch.allclose(patches(start, p, 3), package.patches(start, p, 3), atol=1e-5)

# %% [markdown]
# The step shifts the patch along the gradient that explains most of $r$, and most of $r$ is gone. Repeat it from where
# it ends, and from coarse pictures to fine ones (**ours**: three levels, five steps each). To know whom to believe, carry
# each point to the next frame and from there *back*. A point that doesn't return to within half a pixel isn't believed
# (**SBR**; the half pixel is **ours**): a lid that shuts takes its patch away.


# %%
def lucas_kanade(start, end, points, levels=3, iterations=5):
    moved = points
    for level in reversed(range(levels)):
        coarse = [F.avg_pool2d(frame, 2**level) for frame in (start, end)]
        for _ in range(iterations):
            moved = lucas_kanade_step(*coarse, points, moved)
    return moved


def track(start, end, points):
    moved = lucas_kanade(start, end, points)  # (B, K, 2)
    back = lucas_kanade(end, start, moved)
    home = ((back - points) * SIZE / 2).norm(dim=-1) < 0.5
    return moved, home & (points.abs() < 1).all(-1) & (moved.abs() < 1).all(-1)  # (B, K)


with torch.no_grad():
    carried, believed = track(film[:-1], film[1:], truth[:-1])
off = (in_pixels(carried) - in_pixels(truth[1:])).norm(dim=-1)
still = (in_pixels(truth[:-1]) - in_pixels(truth[1:])).norm(dim=-1)
rows = {"standing still": still, "carried, believed": off[believed], "carried, not believed": off[~believed]}
show.table({name: [value.mean().item()] for name, value in rows.items()}, ["mean distance from the truth"], digits=1)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: carrying beats standing still, the way back means something, the package agrees.
assert off[believed].mean() < 0.75 * still.mean() and off[~believed].mean() > 1.5 * off[believed].mean()
theirs, their_belief = package.track(film[:4], film[1:5], truth[:4])
assert torch.allclose(carried[:4], theirs, atol=1e-3) and (believed[:4] == their_belief).float().mean() > 0.98

# %% [markdown]
# ## The registration loss
#
# Find the points in two neighbouring frames. Carry those of the first to the second. The detector should find them
# there:
#
# $$\mathcal{L}_{reg} = \frac{1}{\sum_k \beta_k} \sum_k \beta_k \left\| l_k^{t+1} - LK_{t \to t+1}(l_k^t) \right\|, \qquad \beta_k \in \{0, 1\} \text{: believed or not.}$$
#
# The formula is SBR's; S2D names the loss only (**paper**). No label is in it, so any film will do. It has a gradient in
# both detections, through Lucas-Kanade as well.


# %%
def registration_loss(start, end, found_start, found_end):
    carried, believed = track(start, end, found_start)
    distance = ((found_end - carried).square().sum(-1) + 1e-8).sqrt()  # (B, K)
    return (distance * believed).sum() / believed.sum().clamp_min(1)


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the package's loss is the same.
ours = registration_loss(film[:1], film[1:2], p_mean[:1], p_mean[1:2])
assert torch.allclose(ours, package.registration_loss(film[:1], film[1:2], p_mean[:1], p_mean[1:2])[0], atol=1e-4)

# %% [markdown]
# ## Teach it, with labels and without
#
# 48 other rendered faces have labels. The film's landmarks aren't used in training, only to
# measure. Three copies of the shipped network
# learn for thirty steps each: from labels alone, from labels and film, from film alone. Points are found in frames with
# new grain each time, and carried over in the film as it is.

# %%
others = synthetic.Faces.sample(48, seed=77)
labelled, labels = synthetic.render(others, SIZE, supersample=1), synthetic.landmarks(others)


def teach(*, with_labels, with_film, steps=30):
    network = HeatmapNetwork().train()
    network.load_state_dict(shipped.face.state_dict())
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(network.parameters(), lr=3e-4)
    for step in range(steps):
        t, n = (torch.randint(last, (4,), generator=generator) for last in (len(clean) - 1, len(others)))
        start, end = clean[t], clean[t + 1]
        frames = grainy(torch.cat([start, end, labelled[n]]), 100 + step)
        found = soft_argmax(network(frames)[-1])[0]  # (12, 74, 2)
        loss = torch.zeros(())
        if with_film:
            loss = loss + 2 * registration_loss(start, end, found[:4], found[4:8])
        if with_labels:
            loss = loss + 2 * package.point_loss(found[8:], labels[n], torch.ones(4, 74, dtype=torch.bool))
        optimizer.param_groups[0]["lr"] = 3e-4 * min(1, 2 - 2 * step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


# %%
# NBVAL_IGNORE_OUTPUT
# The last digits of a training depend on the processor.
networks = {
    "before": network,
    "labels alone": teach(with_labels=True, with_film=False),
    "labels and film": teach(with_labels=True, with_film=True),
    "film alone": teach(with_labels=False, with_film=True),
}
fresh = grainy(clean, 2)  # grain that no training saw
with torch.no_grad():
    found = {name: soft_argmax(some(fresh)[-1])[0] for name, some in networks.items()}
taught = {name: judge(points) for name, points in (found | {"truth": truth}).items()}
show.table(taught, columns, digits=1)

# %% jupyter={"source_hidden": true}
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
for axis, k, name in zip(axes, (NOSE, CORNER, 19), ("tip of the nose", "corner of the mouth", "brow")):
    axis.axhline(0, color="black", linewidth=0.8)
    for which, color in (("before", "grey"), ("labels and film", "tab:red"), ("film alone", "tab:purple")):
        error = in_pixels(found[which]) - in_pixels(truth)
        axis.plot(error[:, k, 1], color=color, label=which, linewidth=1.3)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("frame")
axes[0].set_ylabel("y found minus y true, pixels")
axes[0].legend(fontsize=7)
figure.tight_layout()
show.crisp(figure)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the film calms the points; without labels the error grows.
assert taught["labels and film"][1] < 0.97 * min(taught["before"][1], taught["labels alone"][1])
assert taught["labels and film"][3] < 0.8 * taught["film alone"][3]

# %% [markdown]
# **The film calms the points; labels alone don't.** Both are measured on this film, with grain that no training saw. The
# gain is small, since the shipped network has been through both
# losses already. **The film alone calms them most and leads them astray**: the registration loss only asks that two
# detections agree. Labels say where. It is the collapse of notebook 3 again: a loss of agreement needs a second loss
# that says what the points are.
#
# What both remedies are worth in a whole training, as SMS: on six films that the shipped detector never saw, 161 by the
# maximum, 90 by the mean, 81 after two thousand steps with the registration loss. S2D reports 115, 61, 51 for other
# points and films (its Table 5).
#
# ## What else the shipped detector does
#
# - It looks twice at the eyes (**ours**). A pupil is hardly wider than a heatmap's pixel, so a smaller network of the same
#   kind reads a close-up of each eye. `LandmarkDetector.look_closer` does it.
# - It knows when there is no face (**ours**): `confidence` is how much of each heatmap's sum lies
#   within two heatmap pixels of its point.
# - It was trained on faces that were moved, mirrored, covered and blurred, see
#   [`training/landmarks.py`](../minimodel/training/landmarks.py). `minimodel find-landmarks film.mp4` writes the points of
#   your own film.
#
# ## In five lines
#
# - **You can now** build a detector of 74 landmarks, follow points by Lucas-Kanade, and teach by unlabelled film.
# - **The paper says** FAN plus DSNT plus the registration loss lower the SMS from 115 to 61 to 51.
# - **Its code**: we know of none for S2D. FAN's code moves the maximum by a quarter of a pixel.
# - **We chose** a small FAN on 128 pixels, a cross entropy of heatmaps, the close-ups of the eyes.
# - **We measured** that the mean trembles little more than half as much as the maximum, but keeps a bias, and that film alone isn't enough.
#
# | Equation | Cell | Module |
# |---|---|---|
# | stacked hourglasses (S2D 3.3) | *The network, whole* | [`landmarks.HeatmapNetwork`](../minimodel/landmarks.py) |
# | DSNT (S2D 3.3, unnumbered) | *Reading it: the mean* | [`keypoints.soft_argmax`](../minimodel/keypoints.py) |
# | S2D Eq. 9 | *How much does it tremble?* | [`metrics.sms`](../minimodel/evaluation/metrics.py) |
# | Lucas-Kanade (SBR) | *One step of Lucas-Kanade* | [`landmarks.lucas_kanade`](../minimodel/landmarks.py) |
# | registration loss (SBR) | *The registration loss* | [`landmarks.registration_loss`](../minimodel/landmarks.py) |
# | S2D Eq. 3 and 7 | [notebook 5](05_landmark_motion.ipynb) | [`landmark_motion`](../minimodel/landmark_motion.py) |
# | S2D Eq. 4 to 6 and 8 | [notebook 9a](09a_what_a_loss_sees.ipynb) | [`losses`](../minimodel/losses.py) |
#
# **Open.** Why do some hills lie beside the truth, and could training move them? A longer training on film would show how
# far the SMS of the error can fall.
#
# ## Exercises
#
# **1 (easy).** Take the mean near the maximum only: pixels of the heatmap within 2.5 pixels of the highest one. Write it
# for heatmaps $(B, K, h, w)$. Is it still a staircase?


# %%
def local_mean(heatmaps):  # (B, K, h, w) -> (B, K, 2)
    """Your code."""


# %% jupyter={"source_hidden": true}
def check_1():
    answer = local_mean(perfect)
    if answer is None:
        return "exercise 1: not written yet"
    error = ((answer - places).abs()[..., 0].max() / PIXEL).item()
    return f"exercise 1: {'right, hardly a step is left' if error < 0.2 else 'still a staircase'}"


print(check_1())

# %% [markdown]
# **2 (medium).** Smooth the maximum over five frames instead of reading the mean. Set `smooth` to the points. What
# happens to the SMS of the error, and what to the lids (points 70 to 73) in frames 12 to 17, where the eyes shut?

# %%
smooth = None  # made of p_max, (40, 74, 2)


# %% jupyter={"source_hidden": true}
def check_2():
    if smooth is None:
        return "exercise 2: not made yet"
    lids = [(in_pixels(x) - in_pixels(truth))[12:18, 70:74].norm(dim=-1).mean().item() for x in (p_max, p_mean, smooth)]
    calm = judge(smooth)[1] < scores["maximum"][1] / 2
    return f"exercise 2: {'calm' if calm else 'not calm'}; lids off by {lids[0]:.1f} (maximum), {lids[1]:.1f} (mean), {lids[2]:.1f} (yours)"


print(check_2())

# %% [markdown]
# **3 (hard).** A lamp flickers: one frame is 1.3 times as bright as the one before. Lucas-Kanade explains the change by
# motion. Write `normalise`, which is applied to both frames first, so that it doesn't.


# %%
def normalise(frames):  # (B, 3, H, W) -> (B, 3, H, W)
    return frames


# %% jupyter={"source_hidden": true}
def check_3():
    with torch.no_grad():
        plain = lucas_kanade(clean[:-1], clean[1:], truth[:-1])
        mended = lucas_kanade(normalise(clean[:-1]), normalise(1.3 * clean[1:]), truth[:-1])
    errors = [((in_pixels(x) - in_pixels(truth[1:])).norm(dim=-1)).median() for x in (plain, mended)]
    return f"exercise 3: {'right' if errors[1] < 1.3 * errors[0] else 'the flicker still moves the points'}"


print(check_3())

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. `distance = (identity_grid(*heatmaps.shape[2:]) - argmax(heatmaps)[..., None, None]).norm(dim=2)`, then
#    `near = heatmaps * (distance < 2.5 * 2 / heatmaps.shape[3])`, then `soft_argmax(near.clamp_min(1e-12).log())[0]`.
# 2. `smooth = F.avg_pool1d(p_max.flatten(1).T[None], 5, 1, 2, count_include_pad=False)[0].T.view_as(p_max)`. The
#    trembling falls, and the blink is blurred in time. A filter can't tell trembling from motion. Lucas-Kanade looks at
#    the picture, so it can.
# 3. Divide by the brightness nearby: `frames / F.avg_pool2d(frames, 31, 1, 15, count_include_pad=False)`. A factor
#    cancels.
#
# </details>
#
# **Next:** [5 · Landmark motion](05_landmark_motion.ipynb), a photo that moves by nothing but these points.
