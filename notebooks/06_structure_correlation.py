# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · Structure correlation: every place against every place
#
# The coarse flow of notebook 1 believes that a face is ten stiff pieces. To correct it we need evidence that does *not*
# come from that belief. The main paper (*Learning Motion Refinement for Unsupervised Face Animation*, **MRFA**,
# section 3.2) collects the most general evidence there is: for **every** place in the driving frame, how well does it
# match **every** place in the source?
#
# That is a table with four dimensions. This notebook builds it, looks at its rows, and asks three things of it: what do
# perfect rows look like, can a flow be read from them directly (MRFA's Eq. 8), and what does it cost?

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown, FloatLogSlider, IntSlider

from minimodel import correlation, show
from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.keypoints import gaussian_heatmaps
from minimodel.model import AnimationModel
from minimodel.warping import identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE, N = 64, 32  # pixels of the pictures; places along a side of the table

# %% [markdown]
# The person of notebook 1, at 64 pixels. The table is made at half of that for this size (a quarter at the
# paper's 256 pixels), so we also bring the true flow to 32 × 32.

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)
source, driving = synthetic.Faces(identity, states[8]), synthetic.Faces(identity, moved)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = (resize_flow(x, (N, N)) for x in synthetic.flow_between(source, driving, SIZE))
grid = identity_grid(N, N)[None]
where_true = grid + true_flow  # where in the source each driving place comes from

FACE = torch.tensor(
    [synthetic.PARTS.index(part) for part in ("skin", "nose", "brows", "eyes", "upper lip", "lower lip")]
)
face = torch.isin(synthetic.parsing(driving, N), FACE)[:, None] & (visible > 0.99)

# %% [markdown]
# ## The answer first
#
# Choose one place in the driving frame (red cross). One **row** of the table belongs to it: a score for each place of
# the source, drawn below as brightness. A good row is bright where that part of the face *is* in the source. We know
# that place from the true flow: the circle. These rows come from features that we will make by hand in a moment.


# %%
def fourier(places, peak=25.0, width=0.2, reach=8):
    """Waves of many directions and lengths, read at ``places``: features that are alike only in nearby places."""
    steps = torch.arange(-reach, reach + 1) * torch.pi / 2
    waves = torch.cartesian_prod(steps, steps)[(2 * reach + 1) ** 2 // 2 :]  # half of them: -w says the same as w
    strength = torch.exp(-(width * waves).square().sum(1) / 2)  # short waves are weak, so the match is a smooth hill
    phase = torch.einsum("bchw, kc -> bkhw", places, waves)
    features = torch.cat([phase.cos(), phase.sin()], 1) * (strength / strength.sum()).sqrt().repeat(2)[:, None, None]
    return features * peak**0.5 * features.shape[1] ** 0.25  # so that the volume's largest value is ``peak``


perfect = correlation.volume(fourier(where_true), fourier(grid))


# %%
def draw_row(axis, row, place, *, largest=None):
    """One driving place's scores over the source; cross: the same place, circle: where it truly is."""
    i, j = place
    axis.imshow(row, cmap="viridis", vmax=largest)
    x, y = to_pixels(where_true[0, :, i, j], (N, N)).tolist()
    scale = row.shape[0] / N  # rows of the pyramid are smaller
    here, there = [[(v + 0.5) * scale - 0.5 for v in p] for p in ((j, i), (x, y))]
    axis.scatter(*here, marker="x", color="tab:red", s=30)
    axis.scatter(*there, marker="o", facecolors="none", edgecolors="white", s=60)
    axis.set(xticks=[], yticks=[])


# %%
def draw_place(axis, image, place):
    axis.imshow(image[0].permute(1, 2, 0), extent=(-0.5, N - 0.5, N - 0.5, -0.5))
    axis.scatter(place[1], place[0], marker="x", color="tab:red", s=30)
    axis.set(xticks=[], yticks=[])


# %%
marks = synthetic.landmarks(driving, N)[0]
places = {
    name: marks[k].round().long().flip(0).tolist() for name, k in zip(("eye", "nose", "lips", "jaw"), (39, 30, 54, 6))
}


# %%
def draw_volumes(volumes):
    figure, axes = plt.subplots(1 + len(volumes), len(places), figsize=(7, 1.8 * (1 + len(volumes))))
    for column, (name, (i, j)) in zip(axes.T, places.items()):
        draw_place(column[0], D, (i, j))
        column[0].set_title(name)
        for axis, volume in zip(column[1:], volumes.values()):
            draw_row(axis, volume[0, i, j], (i, j))
    for axis, name in zip(axes[:, 0], ("driving", *volumes)):
        axis.set_ylabel(name)
    figure.tight_layout(pad=0.5)
    plt.show()


draw_volumes({"perfect rows": perfect})

# %% [markdown]
# The arrow from cross to circle is the flow. So a table with such rows *contains* the flow, without any assumption
# about stiff parts. (Each row has its own colour scale, here and below.)
#
# ## Who may look at what?
#
# It would be easy to compare the colours of $D$ with the colours of $S$. But later the driving video shows *another
# person*: their colours would match nothing. So the paper compares **structure**:
#
# - the driving encoder $g_D$ sees only the driving frame's $K$ keypoints;
# - the source encoder $g_S$ sees the source's keypoints *and the source image*, which tells it what lies between them.
#
# A convolution can't read a list of coordinates, so each keypoint $p^k$ enters as a picture, a Gaussian around it:
#
# $$H^k(z) = \exp\left(-\frac{\lVert z - p^k \rVert^2}{2\sigma^2}\right), \qquad \sigma^2 = 0.1 .$$


# %%
def heatmap_naive(point, size, variance):
    heat = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            z = identity_grid(size, size)[:, i, j]
            heat[i, j] = torch.exp(-(z - point).square().sum() / (2 * variance))
    return heat


point = torch.tensor([0.3, -0.2])
assert torch.allclose(gaussian_heatmaps(point[None, None], (8, 8), 0.1)[0, 0], heatmap_naive(point, 8, 0.1))

# %% [markdown]
# Why so wide? $\sigma = 0.32$ is a sixth of the picture's side, which is 2. A place learns where it is by how bright
# *several* Gaussians are there, like a ship that takes bearings from several lighthouses. With the narrow ones of notebook 1
# ($\sigma^2 = 0.01$) much of the face sees hardly any light.

# %%
model = AnimationModel.load("tiny")
with torch.no_grad():
    state, motion = model.encode_source(S), model.encode_driving(D)
heat = {variance: gaussian_heatmaps(motion.points, (N, N), variance) for variance in (0.01, 0.1)}
show.pictures({f"$\\sigma^2$ = {v}": show.heat(h[0, :6, None]) for v, h in heat.items()}, side=1.1)

# %%
# How many of the ten Gaussians are brighter than 0.1, on average over the face?
bearings = {variance: (h > 0.1).sum(1, keepdim=True)[face].float().mean() for variance, h in heat.items()}
assert bearings[0.1] > 2 * bearings[0.01]

# %% [markdown]
# Beside the Gaussians goes a learned **position embedding**, one picture per keypoint that is the same for all inputs: a
# convolution does the same everywhere, and hardly knows where in the picture it is. It is a plain parameter, resized when
# the image has another size. (The paper doesn't mention it; the published code adds one to the Gaussians.)
# The whole `StructureEncoder` is then an hourglass over this stack, and a 1 × 1 convolution to $C$ features:

# %%
sizes = dict(size=N, base=16, levels=3, maximum=64, norm="group")
g_S = correlation.StructureEncoder(10, 32, sees_image=True, **sizes)
g_D = correlation.StructureEncoder(10, 32, sees_image=False, **sizes)
small_S = F.avg_pool2d(S, SIZE // N)
with torch.no_grad():
    f_S = g_S(state.motion.points, (N, N), small_S)
    f_D = g_D(motion.points, (N, N))
    other_size = g_D(motion.points, (40, 24))
print("source features:", list(f_S.shape), "  driving features:", list(f_D.shape))
print("the same encoder for a picture of another shape:", list(other_size.shape))

# %% [markdown]
# The source encoder's answer depends on the image, the driving encoder is not even given one:

# %%
with torch.no_grad():
    f_flipped = g_S(state.motion.points, (N, N), small_S.flip(3))
assert not torch.allclose(f_S, f_flipped, atol=1e-3)

# %% [markdown]
# ## The volume
#
# Now compare everything with everything, by dot products:
#
# $$\mathbf{C}(z, z') = \frac{1}{\sqrt{C}}\; g_D(z) \cdot g_S(z'), \qquad
# \mathbf{C} \in \mathbb{R}^{h \times w \times h \times w} .$$
#
# (A bold $\mathbf{C}$ is the volume, a plain $C$ the number of channels.) The first two dimensions are driving places, the
# last two source places. The paper leaves out the $1/\sqrt{C}$; its code and RAFT, where the idea comes from, have it. We
# will see below why it matters.


# %%
def volume_naive(driving_features, source_features):
    channels, h, w = driving_features.shape
    _, height, width = source_features.shape
    volume = torch.zeros(h, w, height, width, dtype=driving_features.dtype)
    for i in range(h):
        for j in range(w):
            for k in range(height):
                for m in range(width):
                    volume[i, j, k, m] = driving_features[:, i, j] @ source_features[:, k, m] / channels**0.5
    return volume


a, b = torch.randn(1, 7, 4, 5, dtype=torch.float64), torch.randn(1, 7, 6, 3, dtype=torch.float64)
assert torch.allclose(correlation.volume(a, b)[0], volume_naive(a[0], b[0]))

# %% [markdown]
# ## Perfect features, made by hand
#
# What should the two encoders say? Suppose both knew which *point of the face* they are looking at. Name each point by
# its place in the source. Then the source's features are $\varphi(z')$, the driving frame's $\varphi(z + F(z))$ with the
# true flow $F$, and the only thing to choose is $\varphi$: it must be similar in nearby places and different elsewhere.
#
# Waves do that. Let $\varphi(p)$ be the list of $\sqrt{a_\omega} \cos(\omega \cdot p)$ and $\sqrt{a_\omega} \sin(\omega
# \cdot p)$ over many wave vectors $\omega$, each with its strength $a_\omega$. Then
#
# $$\varphi(p) \cdot \varphi(q) = \sum_\omega a_\omega \cos\big(\omega \cdot (p - q)\big),$$
#
# which depends on $p - q$ alone and is largest where $p = q$. That is `fourier` above; short waves are weak there, which
# makes the sum a smooth hill:

# %%
row = perfect[0, places["eye"][0], places["eye"][1]]
peak = torch.stack([row.flatten().argmax() % N, row.flatten().argmax() // N])
truth = to_pixels(where_true[0, :, places["eye"][0], places["eye"][1]], (N, N))
print(
    "largest score at pixel", peak.tolist(), "of the source; the true place is", [round(v, 1) for v in truth.tolist()]
)
assert (peak - truth).abs().max() <= 0.5

# %% [markdown]
# Beside them, the rows of the shipped model. Nobody taught it that rows should be hills at the circle: its encoders
# learned only what helped the *next* network (notebook 7) to correct the flow, and that network looks at small
# neighbourhoods only. So don't expect one hill; ask whether the pattern changes when the place does.

# %%
with torch.no_grad():
    table = model.render(state, motion).correlation
learned = table.volume()

# %% [markdown]
# Drawn as they are, such rows may show mostly which source places have *long* features, and score high or low with
# everybody. So we take from every feature its mean over the picture, on both sides, and scale what is left to length 1. The
# dot product is then a **cosine**, from −1 to 1:


# %%
def centred(features):
    return F.normalize(features - features.mean((2, 3), keepdim=True), dim=1)


channels = table.driving_features.shape[1]
cosine = correlation.volume(centred(table.driving_features), centred(table.source_features)) * channels**0.5
assert cosine.abs().max() < 1 + 1e-4
draw_volumes({"perfect": perfect, "tiny, as it is": learned, "tiny, cosine": cosine})

# %% [markdown]
# Compare the columns of the last line. Where two of them are nearly the same picture, the volume can't tell the two places
# apart; where the bright area is larger than a feature of the face, it knows the region and not the place. That may be
# enough to steer a coarse flow, and is too little for Eq. 8 below. And where the coarse flow is good already, little is
# left for it to say (notebook 7 measures that).
#
# In a running notebook you can move the place yourself. The third choice, *mirrored*, is an experiment for later.

# %%
middle = where_true[0, 0][tuple(places["nose"])]


def mirrored(positions):
    return torch.cat([(positions[:, :1] - middle).abs(), positions[:, 1:]], 1)


confusing = correlation.volume(fourier(mirrored(where_true)), fourier(mirrored(grid)))
volumes = {"perfect": perfect, "tiny, cosine": cosine, "mirrored": confusing}


# %%
def one_row(features="perfect", row=places["eye"][0], column=places["eye"][1]):
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.6))
    draw_place(axes[0], D, (row, column))
    draw_row(axes[1], volumes[features][0, row, column], (row, column))
    axes[2].imshow(S[0].permute(1, 2, 0), extent=(-0.5, N - 0.5, N - 0.5, -0.5))
    axes[2].scatter(*to_pixels(where_true[0, :, row, column], (N, N)), facecolors="none", edgecolors="white", s=60)
    axes[2].set(xticks=[], yticks=[])
    for axis, title in zip(axes, ("driving, the place", "its row", "source, the true place")):
        axis.set_title(title, fontsize=9)
    return figure


# %%
row, column = (IntSlider(value, min=0, max=N - 1) for value in places["eye"])
show.playground(one_row, features=Dropdown(options=list(volumes)), row=row, column=column)

# %% [markdown]
# ## The pyramid
#
# A row of 1024 numbers will later be read through a small window. To see further with the same window, average the
# **source** places 2 × 2, once per level: level $l$, the volume $\mathbf{C}^l$, has $h/2^l \times w/2^l$ of them. The
# driving side stays whole.


# %%
def pool_naive(volume):
    """Average source places 2 x 2."""
    b, h, w, height, width = volume.shape
    pooled = torch.zeros(b, h, w, height // 2, width // 2)
    for k in range(height // 2):
        for m in range(width // 2):
            pooled[..., k, m] = volume[..., 2 * k : 2 * k + 2, 2 * m : 2 * m + 2].mean((-2, -1))
    return pooled


pyramid = [perfect]
for _ in range(3):
    pyramid.append(pool_naive(pyramid[-1]))
print([list(level.shape[1:]) for level in pyramid])

# %%
i, j = places["lips"]
figure, axes = plt.subplots(1, 4, figsize=(8, 2.2))
for level, (axis, volume) in enumerate(zip(axes, pyramid)):
    draw_row(axis, volume[0, i, j], (i, j))
    axis.set_title(f"level {level}")
plt.show()

# %% [markdown]
# Now a small step with large consequences. A dot product is linear in each of its factors, so the average of products is
# the product with the average:
#
# $$\frac14 \sum_{z'} g_D(z) \cdot g_S(z') = g_D(z) \cdot \Big(\frac14 \sum_{z'} g_S(z')\Big).$$
#
# **Pooling the volume is the same as pooling the source features first**: $C$ small maps instead of one map for each of the
# $h \cdot w$ driving places.

# %%
for level, pooled in enumerate(pyramid):
    pooled_first = correlation.volume(fourier(where_true), F.avg_pool2d(fourier(grid), 2**level))
    assert torch.allclose(pooled, pooled_first, atol=1e-4)

# %% [markdown]
# It works because averaging is linear. Keep the *largest* of the four instead of their average, as many networks do, and
# it is no longer true:

# %%
largest_of_volume = F.max_pool2d(perfect[0], 2)
volume_of_largest = correlation.volume(fourier(where_true), F.max_pool2d(fourier(grid), 2))[0]
assert (largest_of_volume - volume_of_largest).abs().max() > 1

# %% [markdown]
# ## Equation 8: a flow straight from the volume
#
# Turn each row into weights that sum to one, and take the weighted mean of the source places:
#
# $$\mathcal{Q}_{S \leftarrow D}(z) = \sum_{i=1}^{h \times w} i \cdot \text{Softmax}(\mathbf{C}^r)[z, i]. \tag{8}$$
#
# $\mathbf{C}^r$ is the volume with its last two dimensions laid out as one, and $i$ stands for a place: the entry of the
# identity grid there. $\mathcal{Q}(z)$ is then a *position* in the source; our flows are displacements, so we subtract
# $z$. With this as the first flow, a model needs no prior at all (NPMR in the paper).


# %%
def softmax_flow_naive(volume):
    h, w, height, width = volume.shape
    flow = torch.zeros(2, h, w)
    sources = identity_grid(height, width).flatten(1)
    for i in range(h):
        for j in range(w):
            weights = volume[i, j].flatten().exp()
            weights = weights / weights.sum()
            flow[:, i, j] = (sources * weights).sum(1) - identity_grid(h, w)[:, i, j]
    return flow


by_hand = softmax_flow_naive(perfect[0])
by_package = correlation.softmax_flow(perfect)
assert torch.allclose(by_hand, by_package[0], atol=1e-4)

# %% [markdown]
# And on perfect features it gives the true flow back, to a hundredth of a pixel on the face. That checks the order of the
# volume's dimensions, and that Eq. 8 lays out places as the features do. (Not the grid itself: a wrong one, used on both
# sides, cancels; that $x$ comes before $y$ is what the largest score above says. Nor the flow: features made from a
# wrong one would give the wrong one back.)

# %%
error = metrics.flow_error(by_package, true_flow, face).item()
still = metrics.flow_error(0 * true_flow, true_flow, face).item()
assert error < 0.01 < 1 < still
scale = true_flow.norm(dim=1).max().item()
rows = [true_flow, by_package]
show.pictures(
    {"": torch.cat([show.flow_colors(x, largest=scale) for x in rows])}, columns=["true flow", "Eq. 8, perfect"]
)

# %% [markdown]
# (The shipped model uses a prior, so its volume was never asked to be read this way, and we don't.)
#
# ## Break it 1: temperature
#
# The softmax has a hidden knob: how large are the scores? Multiply all of them by a factor. Too small, and every row is
# almost flat: the mean of the whole picture is its centre, so every place claims to come from the centre. Too large, and
# one source pixel takes all: the flow snaps to whole pixels, and almost no gradient is left.

# %%
factors = torch.logspace(-2.5, 2.5, 21)
errors = [metrics.flow_error(correlation.softmax_flow(perfect * factor), true_flow, face).item() for factor in factors]
plt.figure(figsize=(5, 2.6))
plt.loglog(factors, errors, marker=".")
plt.axhline(still, color="gray", linestyle=":", label="no motion at all")
plt.gca().set(xlabel="scores × this factor", ylabel="error of Eq. 8 (pixels of 32)")
plt.legend()
plt.show()
assert errors[0] > still and errors[-1] > 0.3 and min(errors) < 0.01

# %%
chosen = {"× 0.01": 0.01, "× 0.1": 0.1, "× 0.3": 0.3, "× 1": 1.0, "× 100": 100.0}
flows = torch.cat([correlation.softmax_flow(perfect * factor) for factor in chosen.values()])
bent = warp(S.expand(len(chosen), -1, -1, -1), resize_flow(flows, (SIZE, SIZE)))
show.pictures({"flow": show.flow_colors(flows, largest=scale), "source, warped": bent}, columns=list(chosen))

# %% [markdown]
# The same on a slider. Left the eye's row after the softmax, then the flow and the source that it warps:


# %%
def temperature(factor=1.0):
    flow = correlation.softmax_flow(perfect * factor)
    i, j = places["eye"]
    weights = torch.softmax((perfect[0, i, j] * factor).flatten(), 0).view(1, 1, N, N)
    pictures = [show.heat(weights / weights.max()), show.flow_colors(flow, largest=scale)]
    pictures.append(warp(S, resize_flow(flow, (SIZE, SIZE))))
    figure, axes = plt.subplots(1, 3, figsize=(6.5, 2.2))
    for axis, picture in zip(axes, pictures):
        axis.imshow(picture[0].permute(1, 2, 0))
        axis.set_axis_off()
    return figure


show.playground(temperature, factor=FloatLogSlider(1.0, base=10, min=-2.5, max=2.5, step=0.25))

# %% [markdown]
# And now $1/\sqrt{C}$. Two random features of $C$ channels have a dot product of size $\sqrt{C}$: more channels, larger
# scores, sharper softmax. A fresh network would begin snapped to random pixels, the more so the wider it is. Divided by
# $\sqrt{C}$, all widths begin alike. (The rows here have 256 places. If all weighed alike, each would have 1/256 = 0.004.)

# %%
print("channels   largest weight of a row: plain, / sqrt(C)")
for channels in (4, 64, 1024):
    a, b = torch.randn(2, 1, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = correlation.volume(a, b).flatten(3)
    top = [v.softmax(-1).amax(-1).mean().item() for v in (scaled * channels**0.5, scaled)]
    print(f"{channels:8}   {'':23} {top[0]:5.3f}, {top[1]:9.3f}")
    assert top[1] < 0.1
assert top[0] > 0.8

# %% [markdown]
# ## Break it 2: pooling too far
#
# Each level of the pyramid says less exactly where the hill is. Reading Eq. 8 from level $l$ instead of level 0:

# %%
by_level = [metrics.flow_error(correlation.softmax_flow(level), true_flow, face).item() for level in pyramid]
print("error in pixels of 32, from levels 0 to 3:", [round(e, 1) for e in by_level])
assert by_level[0] < by_level[1] < by_level[2] < by_level[3]

# %% [markdown]
# So a coarser level may be *added* to level 0, never replace it: fine where the next network looks closely, blurred where
# it looks far. The paper adds one ($P = 1$). It isn't critical: in Table A3 of its supplement none and two do as well.
#
# ## Break it 3: two places that look alike
#
# A face is nearly symmetric, and an encoder might confuse left with right. The *mirrored* features above know how far to
# the side of the nose a place is, but not to which side. Each row has two hills then, and the mean of two hills lies
# **between** them, on the nose, whichever side was meant:

# %%
flow_mirrored = correlation.softmax_flow(volumes["mirrored"])
confused = metrics.flow_error(flow_mirrored, true_flow, face).item()
pictures = [D, show.flow_colors(resize_flow(flow_mirrored, (SIZE, SIZE)), largest=scale)]
pictures.append(warp(S, resize_flow(flow_mirrored, (SIZE, SIZE))))
show.pictures({"": torch.cat(pictures)}, columns=["driving", "Eq. 8, mirrored", "source, warped"])
assert confused > 2

# %%
draw_volumes({"mirrored": volumes["mirrored"]})

# %% [markdown]
# So a mean over the whole picture breaks as soon as there is a second candidate anywhere. (Keypoints and position embedding
# are there to prevent this very confusion.) The better use of the volume is *local*: begin with a coarse flow that
# is about right, and look only at the patch around it. The wrong eye is then out of sight. That is notebook 7, and the
# paper's Table 3 agrees: NPMR alone is its weakest row, a prior plus the volume its strongest.
#
# ## What does it cost?
#
# At a quarter of the side, as in the paper, the volume of a picture of $H \times H$ pixels has $(H/4)^4$ numbers. Twice the
# side is sixteen times the memory. The features that it is made of grow by four only.

# %%
images = [64, 128, 256, 512, 1024]
volume_bytes = [4 * (side // 4) ** 4 for side in images]
feature_bytes = [2 * 4 * 256 * (side // 4) ** 2 for side in images]  # the paper's 256 channels, both encoders
print("image   volume (MB)   features (MB)")
for line in zip(images, volume_bytes, feature_bytes):
    print(f"{line[0]:5}   {line[1] / 1e6:11.1f}   {line[2] / 1e6:13.1f}")
assert 17e9 < volume_bytes[-1] < 18e9

# %%
plt.figure(figsize=(5, 2.6))
plt.loglog(images, volume_bytes, marker="o", label="volume")
plt.loglog(images, feature_bytes, marker="o", label="the features it is made of")
plt.axhline(16e9, color="gray", linestyle=":", label="a laptop")
plt.gca().set(xlabel="image side (pixels)", ylabel="bytes", xticks=images, xticklabels=images)
plt.minorticks_off()
plt.legend()
plt.show()

# %% [markdown]
# At 64 pixels the features weigh *more* than the volume; at 1024 the volume needs 17 GB and the features 134 MB. We have
# seen that pooling may be done on the features. If *reading a patch* may be done on them too, the volume never has to
# exist.
#
# ## Exercises
#
# 1. Swap the arguments: how is `volume(b, a)` related to `volume(a, b)`? What flow would Eq. 8 make of it?
# 2. How many waves does `fourier` need? Lower `reach` to 2 and to 1 (26 and 10 features instead of 290). The rows become
#    broad; look at Eq. 8's error nevertheless. Then lower `peak` to 5 as well. What is going on?
# 3. Why not let the driving encoder see the driving image, at least while training on two frames of the same person?
#
# <details><summary>Solutions</summary>
#
# 1. `volume(b, a)` is `volume(a, b).permute(0, 3, 4, 1, 2)`: the same numbers, rows and columns exchanged. Eq. 8 then
#    says for each *source* place where it went in the driving frame: the forward flow.
# 2. `correlation.volume(fourier(where_true, reach=1), fourier(grid, reach=1))`: most of the picture scores more than half
#    of the peak, and Eq. 8 is still right to a few hundredths of a pixel. The softmax looks at *differences*: a place that
#    scores 2.5 of 25 less than the best gets $e^{-2.5}$, a twelfth, of its weight. Only the tip of the hill counts. With
#    `peak=5` the tip is as blunt as the hill, and the error is near a pixel: temperature again.
# 3. It would learn to match colours and textures of one person with themselves, which is easier than matching structure.
#    At test time the driving person is someone else, and the volume would be nonsense. What an input must not depend on
#    later, it should not see while training.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/correlation.py`](../minimodel/correlation.py). Next:
# [7 · Lookup and refinement](07_lookup_and_refinement.ipynb), where a small network reads patches of this table and
# corrects the coarse flow, from 8 pixels up to the whole picture.
