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
# # 6 · Structure correlation: every place against every place
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: structure.](maps/06.svg)
#
# **The question.** Which place of the source does each place of the driving frame come from, if nobody may assume that a
# face consists of stiff parts?
#
# **You need** notebooks [1](01_affine_flows.ipynb) (grid, warp, hourglass) and [3](03_unsupervised_keypoints.ipynb) (where
# the points come from). **Time:** 30 minutes. **Afterwards you can**
#
# - write the two structure encoders and the correlation volume, and load trained weights into them;
# - say in one number how much a volume knows, and read a flow from it (MRFA's Eq. 8);
# - explain why the volume never has to exist in memory.
#
# The paper is *Learning Motion Refinement for Unsupervised Face Animation* (**MRFA**,
# [NeurIPS 2023](https://proceedings.neurips.cc/paper_files/paper/2023/hash/6e566c91d381bd7a45647d9a90838817-Abstract-Conference.html)), section 3.2. Its volume
# comes from RAFT ([arXiv 2003.12039](https://arxiv.org/abs/2003.12039)), an estimator of optical flow.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown, IntSlider
from torch import nn

from minimodel import correlation, losses, show  # `show` draws; the others are there to compare with
from minimodel.blocks import Hourglass  # built in notebook 1, like the functions of the next two lines
from minimodel.data import synthetic
from minimodel.keypoints import gaussian_heatmaps
from minimodel.model import AnimationModel  # where the trained weights come from, and what ours are compared with
from minimodel.warping import identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE, N = 64, 16  # pixels of the pictures; places along a side of the volume
grid = identity_grid(N, N)[None]

# %% [markdown]
# One pair for the eye: the same person twice, with the true flow $F$. Another 32 pairs of strangers are for numbers. The
# volume has a quarter of the picture's side (**paper**), here 16 × 16 places, so the truth is averaged to that size.

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)
one_pair = synthetic.Faces(identity, states[8]), synthetic.Faces(identity, moved)
many_pairs = synthetic.sample_pairs(32, torch.Generator().manual_seed(20))
FACE = torch.tensor(
    [synthetic.PARTS.index(part) for part in ("skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth")]
)


def truth_of(pair):
    """Pictures S and D, the true flow and the places of the visible face, all of the volume's size."""
    source, driving = pair
    flow, visible = synthetic.flow_between(source, driving, SIZE)
    face = torch.isin(synthetic.parsing(driving, SIZE), FACE)[:, None] & (visible > 0.5)
    face = resize_flow(face.float(), (N, N)) > 0.99  # places that lie on the visible face as a whole
    return synthetic.render(source, SIZE), synthetic.render(driving, SIZE), flow, visible, face


S, D, flow_64, visible_64, face = truth_of(one_pair)
many_S, many_D, many_flow_64, many_visible_64, many_face = truth_of(many_pairs)
true_flow, many_flow = (resize_flow(flow, (N, N)) for flow in (flow_64, many_flow_64))

# %% [markdown]
# ## Who may look at what?
#
# It would be easy to compare the colours of $D$ with the colours of $S$. But later the driving video shows *another
# person*, whose colours match nothing. So MRFA compares **structure** (**paper**):
#
# - the driving encoder $g_D$ sees only the $K$ points of the driving frame;
# - the source encoder $g_S$ sees the $K$ points of the source *and the source's picture* at a quarter of its side, which
#   shows what lies between the points.
#
# The volume is made of all dot products of their features:

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(9, 3.3))
axis.set(xlim=(0, 18), ylim=(0, 6.6))
axis.set_axis_off()


def box(x, y, width, height, text, colour):
    patch = plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="0.3", linewidth=1)
    axis.add_patch(patch)
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(start, end, text="", above=0.25):
    axis.annotate("", end, start, arrowprops=dict(arrowstyle="->", color="0.3"))
    axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, text, ha="center", fontsize=8)


for y, inputs, encoder, symbol in (
    (4.1, "20 Gaussians at $p_k^D$\n20 learned pictures", "hourglass\n1 × 1 convolution", "$g_D$"),
    (0.4, "20 Gaussians at $p_k^S$\n20 learned pictures\n$S$, 3 colours", "hourglass\n1 × 1 convolution", "$g_S$"),
):
    box(0.2, y, 4.2, 2, inputs, "#e8eef7")
    box(6.6, y, 3.2, 2, f"{symbol}: {encoder}", "#fde9c9")
    arrow((4.4, y + 1), (6.6, y + 1), "40 × 16 × 16" if y > 2 else "43 × 16 × 16")
    arrow((9.8, y + 1), (13.2, 3.3 + (0.6 if y > 2 else -0.6)), "32 × 16 × 16", 0.35 if y > 2 else -0.75)
box(13.2, 2.1, 4.4, 2.4, "$C(z, y)$: all dot products\n16 × 16 × 16 × 16", "#dff0df")
axis.set_title("Two encoders, one table: the driving side never sees a picture", fontsize=10)
show.crisp(figure)

# %% [markdown]
# A convolution can't read a list of coordinates. So each point enters as a Gaussian of variance $v = 0.1$ (**published
# code**; the paper says "fixed"):
#
# $$H_k(z) = \exp\left(-\frac{\lVert z - p_k \rVert^2}{2v}\right).$$
#
# Why so wide? A place finds out where it is by how bright *several* Gaussians are there. The picture counts them: the narrow
# Gaussians of notebook 1, with $v = 0.01$, leave most of the face dark. (Many of the twenty points lie on each other.)

# %%
model = AnimationModel.load("tiny")
contrast = AnimationModel.load("tiny-affine")  # trained as in the paper, without any truth; for comparison
with torch.no_grad():
    state, motion = model.encode_source(S), model.encode_driving(D)
    output = model.render(state, motion)
K = motion.points.shape[1]
heat = {v: gaussian_heatmaps(motion.points, (N, N), v) for v in (0.01, 0.1)}  # (1, K, 16, 16)

# %% jupyter={"source_hidden": true}
figure, axes = plt.subplots(1, 3, figsize=(8.2, 2.7))
axes[0].imshow(D[0].permute(1, 2, 0))
show.dots(axes[0], motion.points[0], (SIZE, SIZE), color="tab:red")
axes[0].set_title("driving frame and its points", fontsize=9)
for axis, (v, h) in zip(axes[1:], heat.items()):
    drawn = axis.imshow((h[0] > 0.1).sum(0), vmin=0, vmax=K)
    axis.set_title(f"$v$ = {v}", fontsize=9)
figure.colorbar(drawn, ax=axes, label="Gaussians brighter than 0.1", shrink=0.9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
show.crisp(figure)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: wide Gaussians reach at least twice as many places of the face.
reached = {v: (h > 0.1).sum(1, keepdim=True)[face].float().mean() for v, h in heat.items()}
assert reached[0.1] > 2 * reached[0.01]

# %% [markdown]
# ## The encoder
#
# Beside the Gaussians goes a learned **position embedding**, one picture for each point, the same for all inputs. A
# convolution does the same everywhere, so without it the network hardly knows where in the frame it is. The paper doesn't
# mention it. Its **published code** adds one embedding to the Gaussians of both encoders. We give each encoder its own, as
# channels of their own (**ours**). The embedding has 16 × 16 pixels and is resized where another size is asked for. Gaussians,
# embedding and, for the source, the picture are stacked as channels, in this order. An hourglass (base 16, three levels, at
# most 64 channels) and a 1 × 1 convolution turn the stack into features. This is the whole network:


# %%
class StructureEncoder(nn.Module):
    def __init__(self, points, features, *, sees_image, size=16, base=16, levels=3, maximum=64, norm="batch"):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, points, size, size))
        inputs = 2 * points + (3 if sees_image else 0)
        self.hourglass = Hourglass(inputs, base=base, levels=levels, maximum=maximum, norm=norm)
        self.head = nn.Conv2d(self.hourglass.channels, features, 1)

    def forward(self, points, size, image=None):  # (B, K, 2), (h, w), (B, 3, h, w) or None
        heat = gaussian_heatmaps(points, size, variance=0.1)  # (B, K, h, w)
        position = resize_flow(self.position, size).expand(len(points), -1, -1, -1)  # (B, K, h, w)
        x = torch.cat([heat, position, *([] if image is None else [image])], dim=1)  # (B, 2K or 2K + 3, h, w)
        x = self.hourglass(x)  # (B, 56 or 59, h, w): 16 of its own, and its input once more
        return self.head(x)  # (B, 32, h, w)


# %% [markdown]
# The shipped weights fit, because the attributes have the package's names. `part_of` takes one part's weights from the
# model's; notebooks 7 and 8 use it again.


# %%
def part_of(model, prefix):
    weights = model.state_dict().items()
    return {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}


g_D = StructureEncoder(K, 32, sees_image=False)
g_S = StructureEncoder(K, 32, sees_image=True)
g_D.load_state_dict(part_of(model, "structure.driving_encoder."))
g_S.load_state_dict(part_of(model, "structure.source_encoder."))
g_D.eval(), g_S.eval()  # batch norm uses its stored means

with torch.no_grad():
    source_features = g_S(state.motion.points, (N, N), F.avg_pool2d(S, SIZE // N))
    driving_features = g_D(motion.points, (N, N))
torch.testing.assert_close(source_features, output.correlation.source_features, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(driving_features, output.correlation.driving_features, atol=1e-4, rtol=1e-4)
print("the features equal the package's:", tuple(source_features.shape))

# %% [markdown]
# ## The volume
#
# Now compare every driving place $z$ with every source place $y$:
#
# $$C(z, y) = \frac{1}{\sqrt{c}}\; g_D(z) \cdot g_S(y), \qquad C \in \mathbb{R}^{h \times w \times h \times w}.$$
#
# $c$ is the number of channels. The first two dimensions are driving places, the last two source places (**paper**). The
# factor $1/\sqrt{c}$ isn't in the paper (**published code**, and RAFT): random features of $c$ channels have dot products of
# size $\sqrt{c}$, so without it a fresh network would start with rows that are the sharper the wider it is.


# %%
def volume_naive(driving_features, source_features):  # (c, h, w), (c, h', w')
    c, h, w = driving_features.shape
    volume = torch.zeros(h, w, *source_features.shape[1:], dtype=driving_features.dtype)
    for i in range(h):
        for j in range(w):
            for k in range(volume.shape[2]):
                for m in range(volume.shape[3]):
                    volume[i, j, k, m] = driving_features[:, i, j] @ source_features[:, k, m] / c**0.5
    return volume


def volume(driving_features, source_features):  # (B, c, h, w), (B, c, h', w')
    scaled = driving_features / driving_features.shape[1] ** 0.5
    return torch.einsum("bchw, bcij -> bhwij", scaled, source_features)  # (B, h, w, h', w')


a, b = torch.randn(1, 7, 4, 5, dtype=torch.float64), torch.randn(1, 7, 6, 3, dtype=torch.float64)
torch.testing.assert_close(volume(a, b)[0], volume_naive(a[0], b[0]))
C = volume(driving_features, source_features)
assert isinstance(model.structure, correlation.StructureCorrelation)  # the package's pair of encoders
torch.testing.assert_close(C, output.correlation.volume(), atol=1e-2, rtol=1e-4)
print("the volume equals the package's:", tuple(C.shape))

# %% [markdown]
# ## What a good row looks like
#
# One **row** of the volume belongs to each driving place: a score for every place of the source. A perfect row is a hill with
# its top at the true source place $z + F(z)$.
#
# Such rows can be made by hand. Name each point of the face by its place in the source, and let $\varphi$ be a list of waves
# $\cos(\omega \cdot p)$ and $\sin(\omega \cdot p)$ with weights $a_\omega$. Give the source the features $\varphi(y)$ and the
# driving frame the features $\varphi(z + F(z))$. Then
#
# $$\varphi(p) \cdot \varphi(q) = \sum_\omega a_\omega \cos\big(\omega \cdot (p - q)\big),$$
#
# which depends on $p - q$ alone and is largest where $p = q$.


# %%
def waves(places, peak=25.0, width=0.4, reach=8):
    """Features that are alike only in nearby places; short waves are weak, which makes the hill smooth."""
    steps = torch.arange(-reach, reach + 1) * torch.pi / 2
    omega = torch.cartesian_prod(steps, steps)[(2 * reach + 1) ** 2 // 2 :]  # half of them: -omega says the same
    strength = torch.exp(-(width * omega).square().sum(1) / 2)
    phase = torch.einsum("bchw, kc -> bkhw", places, omega)
    features = torch.cat([phase.cos(), phase.sin()], 1) * (strength / strength.sum()).sqrt().repeat(2)[:, None, None]
    return features * peak**0.5 * features.shape[1] ** 0.25  # the largest score is ``peak``


perfect = volume(waves(grid + true_flow), waves(grid))
with torch.no_grad():
    untaught = contrast.render(contrast.encode_source(S), contrast.encode_driving(D)).correlation.volume()
    untaught = F.avg_pool2d(untaught[0].permute(2, 3, 0, 1), 2).permute(2, 3, 0, 1)  # 32 x 32 driving places -> 16 x 16
    untaught = F.avg_pool2d(untaught, 2)[None]

# %% [markdown]
# ## The key figure: does the shipped volume know?
#
# Circle: the true place. Dot: the largest score. Each row of scores has its own colour scale, from its least to its
# largest value. The last column is a model that was trained as in the paper.

# %% jupyter={"source_hidden": true}
marks = synthetic.landmarks(one_pair[1], N)[0]
places = {
    name: marks[numbers].mean(0).round().long().flip(0).tolist()  # row and column
    for name, numbers in {"eye": [39], "nose": [30], "lips": [54], "cheek": [2, 31]}.items()
}
whole = (-0.5, N - 0.5, N - 0.5, -0.5)


def true_place(place):
    return to_pixels((grid + true_flow)[0, :, place[0], place[1]], (N, N)).tolist()


def circle(axis, place):
    axis.scatter(*true_place(place), facecolors="none", edgecolors="black", s=130, linewidths=3.2)
    axis.scatter(*true_place(place), facecolors="none", edgecolors="white", s=130, linewidths=1.4)


def draw_row(axis, scores, place):
    axis.imshow(scores, extent=whole)
    best = scores.flatten().argmax().item()
    axis.scatter(best % N, best // N, color="tab:red", s=22, edgecolors="white", linewidths=0.7, zorder=5)
    circle(axis, place)


def draw_volumes(volumes, places, side=1.75):
    titles = ["driving: the place", "source: the true place", *volumes]
    figure, axes = plt.subplots(
        len(places), len(titles), figsize=(side * len(titles), side * len(places)), squeeze=False
    )
    for line, (name, place) in zip(axes, places.items()):
        for axis, picture in zip(line, (D, S)):
            axis.imshow(picture[0].permute(1, 2, 0), extent=whole)
        line[0].scatter(place[1], place[0], marker="x", color="tab:red", s=60, linewidths=2)
        circle(line[1], place)
        for axis, scores in zip(line[2:], volumes.values()):
            draw_row(axis, scores[0, place[0], place[1]], place)
        line[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    return figure


columns = {"perfect, by hand": perfect, "tiny": C, "tiny-affine": untaught}
show.crisp(draw_volumes(columns, places), photographs=True)

# %% [markdown]
# One number for it: the **rank** of the true place among all places of its row, 1 at best, averaged over the visible faces of
# 32 pairs of strangers. If the volume knew nothing, the true place would be in the middle.


# %%
@torch.no_grad()
def stages_of(model):
    return model.move(model.encode_source(many_S), model.encode_driving(many_D))


def rank_of_truth(volume, flow_64, face):
    """The mean rank of the true place, and the number of places."""
    h, w = volume.shape[1:3]
    end = identity_grid(h, w) + resize_flow(flow_64, (h, w))
    x, y = to_pixels(end.permute(0, 2, 3, 1), (h, w)).round().long().clamp(0, h - 1).unbind(-1)
    scores = volume.flatten(3)  # (B, h, w, h * w)
    of_truth = scores.gather(3, (y * w + x)[..., None])
    rank = 1 + (scores > of_truth).sum(-1)
    return rank[resize_flow(face.float(), (h, w))[:, 0] > 0.99].float().mean().item(), h * w


taught, as_in_paper = stages_of(model), stages_of(contrast)
volumes = {"tiny": taught.correlation.volume(), "tiny-affine": as_in_paper.correlation.volume()}
ranks = {name: rank_of_truth(v, many_flow_64, many_face) for name, v in volumes.items()}
for name, (rank, among) in ranks.items():
    print(f"{name}: the true place is number {rank:.0f} of {among}; by chance it would be number {among / 2:.0f}")

# %% [markdown]
# **Verdict.** The volume of `tiny` knows nearly every place of the face to its cell of 4 × 4 pixels: its rows are hills
# at the circle. The volume of `tiny-affine` knows the region and not the place: it can't tell an eye from a mouth, for its rows
# of eye and lips have their top within two cells. The encoders are alike. The loss isn't.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the verdict.
assert ranks["tiny"][0] < 0.02 * ranks["tiny"][1]
assert 0.03 * ranks["tiny-affine"][1] < ranks["tiny-affine"][0] < 0.2 * ranks["tiny-affine"][1]
tops = [untaught[0][tuple(places[name])].flatten().argmax().item() for name in ("eye", "lips")]
assert max(abs(tops[0] % N - tops[1] % N), abs(tops[0] // N - tops[1] // N)) <= 2

# %% [markdown]
# ## The loss that makes hills (**ours**)
#
# In the paper nobody asks the volume for hills. Its encoders learn only what helps the updater of notebook 7, and an updater
# that can't use the scores yet learns to ignore them. Rendered faces know better. `matching_loss` takes each row as a guess
# over all source places, and asks for the true one:
#
# $$\mathcal{L}_{match} = -\,\mathrm{mean}_{z\,visible} \sum_y w_z(y)\, \log \mathrm{Softmax}\big(C(z, \cdot)\big)(y).$$
#
# The true place lies between four cells, so $w_z$ shares its weight among them bilinearly. Hidden places have no true place
# and don't count.


# %%
def matching(volume, flow_64, visible_64):  # (B, h, w, h, w), (B, 2, 64, 64), (B, 1, 64, 64)
    h, w = volume.shape[1:3]
    end = to_pixels((identity_grid(h, w) + resize_flow(flow_64, (h, w))).permute(0, 2, 3, 1), (h, w))  # (B, h, w, 2)
    across = (1 - (end[..., :1] - torch.arange(w)).abs()).clamp(min=0)  # (B, h, w, w): a tent around x
    down = (1 - (end[..., 1:] - torch.arange(h)).abs()).clamp(min=0)  # (B, h, w, h)
    weight = down[..., :, None] * across[..., None, :]  # (B, h, w, h, w)
    scores = volume.flatten(3).log_softmax(-1).view_as(volume)
    counts = resize_flow(visible_64, (h, w))[:, 0] > 0.99  # (B, h, w)
    return -(weight * scores).sum((3, 4))[counts].mean()


rows = {}
for name, v in volumes.items():
    cost = matching(v, many_flow_64, many_visible_64)
    torch.testing.assert_close(cost, losses.matching_loss(v, many_flow_64, many_visible_64))
    rows[name] = [cost.item(), torch.tensor(float(v[0, 0, 0].numel())).log().item()]
show.table(rows, ["matching loss", "with equal scores everywhere"], digits=1)

# %% [markdown]
# Move the place yourself. *mirrored* is an experiment of the next section.

# %%
middle = (grid + true_flow)[0, 0][tuple(places["nose"])]


def mirrored(positions):
    """How far to the side of the nose, but not to which side."""
    return torch.cat([(positions[:, :1] - middle).abs(), positions[:, 1:]], 1)


confusing = volume(waves(mirrored(grid + true_flow)), waves(mirrored(grid)))
choices = {"tiny": C, "tiny-affine": untaught, "perfect": perfect, "mirrored": confusing}


def one_row(volume="tiny", row=places["eye"][0], column=places["eye"][1]):
    return draw_volumes({volume: choices[volume]}, {"": (row, column)}, side=2.2)


row, column = (IntSlider(value, min=0, max=N - 1) for value in places["eye"])
show.playground(one_row, volume=Dropdown(options=list(choices)), row=row, column=column)

# %% [markdown]
# ## Equation 8: a flow straight from the volume
#
# Turn each row into weights that sum to one, and take the weighted mean of the source places:
#
# $$\mathcal{Q}_{S \leftarrow D}(z) = \sum_{i=1}^{h \times w} i \cdot \mathrm{Softmax}(C^r)[z, i]. \tag{8}$$
#
# $C^r$ is $C$ with its last two dimensions laid out as one, and $i$ stands for a source place: the entry of the identity grid.
# $\mathcal{Q}(z)$ is a *position*. Our flows are displacements, so we subtract $z$. With this as its first flow a model needs
# no prior at all (the paper's *NPMR*).


# %%
def softmax_flow_naive(volume):  # (h, w, h', w')
    h, w, height, width = volume.shape
    flow, sources = torch.zeros(2, h, w), identity_grid(height, width).flatten(1)  # sources (2, h' * w')
    for i in range(h):
        for j in range(w):
            weights = volume[i, j].flatten().softmax(0)
            flow[:, i, j] = (sources * weights).sum(1) - identity_grid(h, w)[:, i, j]
    return flow


def softmax_flow(volume):  # (B, h, w, h', w')
    weights = volume.flatten(3).softmax(-1)  # (B, h, w, h' * w')
    places = identity_grid(*volume.shape[3:]).flatten(1)  # (2, h' * w')
    return torch.einsum("bhwn, cn -> bchw", weights, places) - identity_grid(*volume.shape[1:3])


torch.testing.assert_close(softmax_flow(perfect)[0], softmax_flow_naive(perfect[0]), atol=1e-5, rtol=1e-5)
torch.testing.assert_close(softmax_flow(C), correlation.softmax_flow(C), atol=1e-5, rtol=1e-5)


# %%
def pixels_off(flow, true_flow, where):
    """Mean distance to the true flow where ``where`` is true, in pixels of the 64-pixel picture."""
    distance = (resize_flow(flow, true_flow.shape[-2:]) - true_flow).norm(dim=1, keepdim=True) * SIZE / 2
    return distance[where].mean().item()


rows = {"no motion": [pixels_off(0 * many_flow, many_flow, many_face)]}
for name, v in {"perfect": volume(waves(grid + many_flow), waves(grid)), **volumes}.items():
    size = v.shape[1:3]
    where = resize_flow(many_face.float(), size) > 0.99
    rows[f"Eq. 8, {name}"] = [pixels_off(softmax_flow(v), resize_flow(many_flow_64, size), where)]
rows["prior of tiny"] = [pixels_off(taught.flows[0], many_flow, many_face)]
show.table(rows, ["error on the face (pixels of 64)"], digits=1)

# %% [markdown]
# **Verdict.** Read by Eq. 8, the perfect volume gives the true flow back, so the order of its dimensions is right. The volume of
# `tiny` gives a usable flow without any stiff parts, though not as good a one as its prior. The volume of `tiny-affine`
# gives one that is worse than no motion at all; the paper, too, finds NPMR alone its weakest row (Table 3).
#
# The first test has two blind spots. A wrong coordinate grid would cancel, because both encoders use it. And it can't show that
# the true flow is right, because we built the features from it.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the table above.
off = [value for (value,) in rows.values()]
assert off[1] < 0.1 and off[4] < off[2] < 0.5 * off[0] and off[3] > off[0]

# %% jupyter={"source_hidden": true}
# Flows by Eq. 8, and the truth.
flows = {"true flow": true_flow, "Eq. 8, perfect": softmax_flow(perfect), "Eq. 8, tiny": softmax_flow(C)}
flows |= {"Eq. 8, mirrored": softmax_flow(confusing)}
longest = true_flow.norm(dim=1).max().item()
figure, axes = plt.subplots(2, len(flows) + 1, figsize=(9, 3.9))
for column, (name, flow) in zip(axes.T, flows.items()):
    column[0].imshow(show.flow_colors(flow, largest=longest)[0].permute(1, 2, 0))
    column[1].imshow(warp(S, resize_flow(flow, (SIZE, SIZE)))[0].permute(1, 2, 0))
    column[0].set_title(name, fontsize=9)
show.flow_wheel(axes[0, -1])
axes[1, -1].imshow(D[0].permute(1, 2, 0))
axes[1, -1].set_xlabel("driving frame", fontsize=9)
axes[0, 0].set_ylabel("flow")
axes[1, 0].set_ylabel("source, warped")
for axis in [*axes[:, :-1].flat, axes[1, -1]]:
    axis.set(xticks=[], yticks=[])
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

# %% [markdown]
# Above the head even the true flow fetches hair: these places are hidden in $S$, and there a flow can only fetch what covers
# them. Notebook 8 paints them.
#
# ### Break it: two places that look alike
#
# The *mirrored* features know how far to the side of the nose a place is, but not to which side. Each row has two hills, and
# the mean of two hills lies between them, on the nose, whichever side was meant: the last warped face above. So a mean over
# the whole picture fails as soon as a second candidate exists anywhere.
#
# The better use of the volume is *local*: begin with a coarse flow that is about right, and read only the patch around its end.
# The wrong eye is then out of sight. That is notebook 7.
#
# ## The pyramid, and why the volume needn't exist
#
# To see further through a small window, average the source places 2 × 2, once a level. The paper adds one level ($P = 1$, so
# $L = 2$ levels in all). The driving side stays whole. A dot product is linear in each factor, so the average of products is
# the product with the average:
#
# $$\frac14 \sum_{y} g_D(z) \cdot g_S(y) = g_D(z) \cdot \Big(\frac14 \sum_{y} g_S(y)\Big).$$
#
# **Pooling the volume is the same as pooling the source's features first.** With *max* pooling it isn't:


# %%
def pool_naive(volume):  # (B, h, w, h', w')
    """Average source places 2 x 2."""
    pooled = torch.zeros(*volume.shape[:3], volume.shape[3] // 2, volume.shape[4] // 2)
    for k in range(pooled.shape[3]):
        for m in range(pooled.shape[4]):
            pooled[..., k, m] = volume[..., 2 * k : 2 * k + 2, 2 * m : 2 * m + 2].mean((-2, -1))
    return pooled


average = (pool_naive(C) - volume(driving_features, F.avg_pool2d(source_features, 2))).abs().max()
largest = (F.max_pool2d(C[0], 2) - volume(driving_features, F.max_pool2d(source_features, 2))[0]).abs().max()
print(f"pool the volume, or the features first? average: {average < 1e-2:d}, maximum: {largest < 1e-2:d} (1: the same)")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the identity holds for averages only.
assert average < 1e-2 and largest > 1

# %% [markdown]
# That saves memory. The volume of a picture of $H \times H$ pixels has $(H/4)^4$ numbers; twice the side is sixteen times the
# memory, while features grow by four. At 64 pixels the volume has 0.26 MB. At 1024 it would have 17 GB, and the two feature
# maps with the paper's 256 channels 134 MB. Notebook 7 shows that reading a patch can be done on the features as well.
#
# ## Break it: temperature
#
# The softmax of Eq. 8 has a hidden knob, the size of the scores. Multiply all of them by a factor:

# %%
factors = torch.logspace(-2.5, 2.5, 21)
error = {
    name: [pixels_off(softmax_flow(v * factor), true_flow, face) for factor in factors]
    for name, v in {"perfect": perfect, "tiny": C}.items()
}
figure = plt.figure(figsize=(6, 3))
for name, values in error.items():
    plt.loglog(factors, values, marker=".", label=name)
plt.axhline(pixels_off(0 * true_flow, true_flow, face), color="gray", linestyle=":", label="no motion")
plt.gca().set(xlabel="scores × this factor", ylabel="error of Eq. 8 (pixels of 64)")
plt.title("Too small: all places come from the centre. Too large: whole cells only", fontsize=9)
plt.legend(fontsize=8)
show.crisp(figure)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: both ends are bad for the perfect volume.
assert error["perfect"][0] > 4 and error["perfect"][-1] > 10 * min(error["perfect"])

# %% [markdown]
# Too small, and every row is flat: its mean is the centre of the picture. Too large, and one cell takes all: the flow snaps to
# cells of four pixels, and almost no gradient is left. That is why $1/\sqrt{c}$ matters.
#
# ## Five lines
#
# - **You can now** write both structure encoders and the volume, load trained weights, and say what a volume knows by one
#   rank.
# - **The paper says** that the volume is evidence about motion that needs no prior, made from points and the source's picture.
# - **Its code does** three things more: a position embedding, the variance 0.1, the factor $1/\sqrt{c}$.
# - **We chose** to ask for matches directly where the truth is known (`matching_loss`), and to hold volumes only while they
#   are small.
# - **We measured** that a volume trained as in the paper knows the region, and that one with this loss knows the cell.
#
# | equation | cell above | module |
# |---|---|---|
# | structure encoders (section 3.2, Fig. 8) | The encoder | `correlation.StructureEncoder` |
# | correlation volume (section 3.2) | The volume | `correlation.volume`, `StructureCorrelation` |
# | pyramid (appendix) | The pyramid | `correlation.Correlation` |
# | 8 | Equation 8 | `correlation.softmax_flow`, `priors.NoPrior` |
# | matching loss (ours) | The loss that makes hills | `losses.matching_loss` |
# | 1 to 3 | [notebook 1](01_affine_flows.ipynb) | `affine`, `dense_motion` |
# | 4 to 7 | [notebook 7](07_lookup_and_refinement.ipynb) | `refinement` |
#
# **Open.** `tiny` was taught on rendered faces only. Whether its volume matches as well on photographs isn't measured.
#
# ## Exercises
#
# 1. *(easy)* How do you get the volume of the exchanged roles, `volume(source_features, driving_features)`, from `C` alone?
# 2. *(medium)* Write a flow that takes the *best* cell of each row instead of the mean. What does the temperature do to it?
# 3. *(builds)* Write `local_flow`, Eq. 8 restricted to source places at most
#    two cells away from `z + flow(z)`. On the mirrored volume, started a cell off, it should beat its start and plain Eq. 8.


# %%
def exchanged(volume):
    return volume  # your line


def best_cell_flow(volume):
    return torch.zeros(len(volume), 2, *volume.shape[1:3])  # your lines


def local_flow(volume, flow):
    return flow  # your lines


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: your answers.
right = [
    exchanged(C).shape == C.shape and torch.allclose(exchanged(C), volume(source_features, driving_features), atol=1e-2)
]
right += [torch.allclose(best_cell_flow(perfect), softmax_flow(perfect * 1e4), atol=1e-3)]
start = true_flow + 0.1
to_beat = min(pixels_off(flow, true_flow, face) for flow in (start, softmax_flow(confusing)))
right += [pixels_off(local_flow(confusing, start), true_flow, face) < 0.6 * to_beat]
print("exercises solved:", *(f"{number}: {'yes' if done else 'not yet'}" for number, done in enumerate(right, 1)))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. `volume.permute(0, 3, 4, 1, 2)`: the same numbers, rows and columns exchanged. Eq. 8 of it is the *forward* flow, where
#    each source place went.
# 2. ```python
#    best = volume.flatten(3).argmax(-1)
#    return identity_grid(*volume.shape[3:]).flatten(1)[:, best].transpose(0, 1) - identity_grid(*volume.shape[1:3])
#    ```
#    Nothing: a positive factor doesn't change which score is largest. It is the right end of the temperature curve, and it has
#    no gradient.
# 3. ```python
#    places = identity_grid(N, N).permute(1, 2, 0)
#    end = (identity_grid(N, N) + flow).permute(0, 2, 3, 1)[:, :, :, None, None]
#    far = (places - end).abs().amax(-1) > 2 * 2 / N
#    return softmax_flow(volume.masked_fill(far, -1e4))
#    ```
#
# </details>
#
# **Next:** [7 · Lookup and refinement](07_lookup_and_refinement.ipynb), where a small network reads patches of this volume and
# corrects the coarse flow. The code of this notebook: [`minimodel/correlation.py`](../minimodel/correlation.py).
