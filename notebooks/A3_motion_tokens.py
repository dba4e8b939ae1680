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
# # A3 · Motion tokens: a transformer that finds points
#
# How does a transformer find points and their matrices, and does it need its attention for that?
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: points.](maps/A3.svg)
#
# *The lit box takes a picture and returns points $p_k$ and matrices $A_k$. Notebook 3 fills it with an hourglass, this appendix with
# a transformer. All that comes after it stays as it is.*
#
# **What you need:** notebooks [1](01_affine_flows.ipynb) and [3](03_unsupervised_keypoints.ipynb). **Minutes:** 30.
#
# **Afterwards you can**
#
# * write multi-head attention and a transformer layer without `nn.MultiheadAttention`;
# * build the detector of this course's model, `tiny`, and load its weights;
# * test whether a network uses its attention, by cutting it.
#
# The tokens come from **MTIA**, *Motion Transformer for Unsupervised Image Animation* (Tao et al., ECCV 2022,
# [arXiv 2209.14024](https://arxiv.org/abs/2209.14024)), which
# MRFA takes as the prior of its best row (MRFA section 4, Table 3). In this appendix, and only here, $q$, $k$ and $v$
# are the questions, keys and values of attention.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

# Built in notebook 1: DownBlock, gaussian_heatmaps and all of warping. Built in notebook 3: soft_argmax. The model is
# where the shipped weights come from, and holds the network to compare with.
from minimodel import show
from minimodel.blocks import DownBlock
from minimodel.data import synthetic
from minimodel.keypoints import gaussian_heatmaps, soft_argmax
from minimodel.model import AnimationModel
from minimodel.warping import identity_grid, resize_flow

# %% [markdown]
# ## Attention
#
# An hourglass decides about a place by what lies around it. A transformer works on a list of vectors, the *tokens*, and
# every token can ask every other. Token $i$ has a question $q_i$, token $j$ a key $k_j$ and a value $v_j$; all three are
# linear functions of the token, $d$ numbers long. Token $i$ receives a mean of all values:
#
# $$\mathrm{out}_i = \sum_j a_{ij} \, v_j, \qquad a_{ij} = \frac{e^{q_i \cdot k_j / \sqrt{d}}}{\sum_l e^{q_i \cdot k_l / \sqrt{d}}}.$$


# %%
def attention_naive(q, k, v):
    """One head, number by number: (N, d) each."""
    out = torch.zeros_like(q)
    for i in range(len(q)):
        weights = [torch.exp(q[i] @ k[j] / q.shape[1] ** 0.5) for j in range(len(k))]
        out[i] = sum(w * v[j] for w, j in zip(weights, range(len(k)))) / sum(weights)
    return out


# %% [markdown]
# As a layer it runs several *heads* side by side, each on its own slice of the numbers. `hidden` is for the experiments
# below: where it is True, token $i$ may not ask token $j$. Attributes have the names of `nn.TransformerEncoderLayer`,
# so that the shipped weights fit.


# %%
class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, hidden=None):  # (B, N, width), (N, N)
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)  # (B, N, width) each
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, d)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, N, N)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(dim=-1)  # a_ij; each row sums to 1
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, N, width)
        return self.out_proj(mixed), weights


class Layer(nn.Module):
    def __init__(self, width, heads, ratio):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x, hidden=None):  # (B, N, width)
        mixed, weights = self.self_attn(self.norm1(x), hidden)
        x = x + mixed  # what the others say is added, not put in place
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)))), weights


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: one head of the layer is the naive loop, and the layer is torch's own.
torch.manual_seed(0)
x = torch.randn(1, 9, 8)
ours, theirs = Layer(8, 1, 2), nn.TransformerEncoderLayer(8, 1, 16, 0.0, "gelu", batch_first=True, norm_first=True)
theirs.load_state_dict(ours.state_dict())
q, k, v = F.linear(x[0], ours.self_attn.in_proj_weight).chunk(3, dim=-1)
assert torch.allclose(ours.self_attn(x)[0][0], ours.self_attn.out_proj(attention_naive(q, k, v)), atol=1e-5)
assert torch.allclose(ours(x)[0], theirs(x), atol=1e-5)

# %% [markdown]
# ## Where a patch is
#
# A sum over all tokens doesn't change when two tokens change places. So each patch of the picture gets its position
# added: sines and cosines of $x$ and of $y$, from slow waves to quick ones. Positions are normalised, and one place has
# the same vector at every resolution. **Ours:** MTIA stores a table for one resolution.


# %%
def sine_positions(height, width, channels):
    frequencies = torch.pi * 2 ** torch.linspace(-1, 3, channels // 4)  # the slowest wave is two pictures long
    angles = frequencies[:, None, None] * identity_grid(height, width)[:, None]  # (2, channels / 4, h, w)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (2, channels / 2, h, w)
    return waves.flatten(0, 1).flatten(1).T  # (h w, channels)


positions = sine_positions(33, 33, 96)
middle, aside = 33 * 16 + 16, 33 * 8 + 24
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3))
for axis, place in zip(axes, (middle, aside)):
    image = axis.imshow((positions @ positions[place]).unflatten(0, (33, 33)) / 48, vmin=-1, vmax=1, cmap="RdBu")
    axis.plot(place % 33, place // 33, "k+")
    axis.set(xticks=[], yticks=[])
figure.colorbar(image, ax=axes, fraction=0.03)
show.crisp(figure)

# %% [markdown]
# *Likeness of the position marked by + to all others, as the cosine of their vectors. A place is most like itself and
# its neighbours. The arms of the cross are places in the same row or column: they share half of their numbers.*
#
# ## The detector
#
# * A trunk of convolutions brings the picture to a quarter of its side. Each 2 × 2 of its features is one patch: 8 × 8
#   patches at 64 pixels.
# * In front of the patches stand $K$ **point tokens** and $K$ **affine tokens**. They belong to no place, and are
#   learned (**paper**: MTIA's motion tokens).
# * In every layer all tokens ask all tokens.
# * An affine token becomes $A_k$ by one linear layer (**paper**). It starts as the identity (**ours**).
# * A point token becomes a question that is compared with a key at every place of the 16 × 16 features. The soft-argmax
#   of the scores is $p_k$ (**ours**). MTIA reads $p_k$ from its token by a linear layer (**published code**).
# * Each point is biased by a wide Gaussian towards an anchor of its own, so that points start apart (**ours**).
#
# Why compare? In a trial on landmarks, 180 steps of 8 faces, the linear layer learnt little more than the average face:
# 2.6 pixels off. Comparison was 1.0 pixels off after 150 steps. The trial was run once.


# %%
class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        norm, conv = nn.BatchNorm2d, nn.Conv2d
        self.body = nn.Sequential(
            *(norm(channels), nn.ReLU(), conv(channels, channels, 3, padding=1)),
            *(norm(channels), nn.ReLU(), conv(channels, channels, 3, padding=1)),
        )

    def forward(self, x):  # (B, C, h, w)
        return x + self.body(x)


def spread_points(count):
    """Anchors within [-0.8, 0.8]: multiples of two irrational steps, modulo 1, keep away from each other."""
    step = torch.tensor([0.7548776662466927, 0.5698402909980532])
    return 1.6 * ((0.5 + torch.arange(count)[:, None] * step) % 1) - 0.8


# %%
class TokenDetector(nn.Module):
    def __init__(self, points, *, base=24, blocks=2, patch=2, width=96, depth=4, heads=4, ratio=2):
        super().__init__()
        downs = DownBlock(3, base, norm="batch"), DownBlock(base, 2 * base, norm="batch")
        self.trunk = nn.Sequential(*downs, *(ResidualBlock(2 * base) for _ in range(blocks)))
        self.embed = nn.Conv2d(2 * base, width, patch, stride=patch)
        self.tokens = nn.Parameter(torch.randn(2 * points, width))
        self.layers = nn.ModuleList(Layer(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.start = nn.Parameter(spread_points(points))  # the anchors
        self.query = nn.Linear(width, width)
        self.fine_key = nn.Conv2d(2 * base, width, 1, bias=False)
        self.coarse_key = nn.Linear(width, width, bias=False)
        self.affine_head = nn.Linear(width, 4, bias=False)
        nn.init.zeros_(self.affine_head.weight)

    def forward(self, image, hidden=None):  # (B, 3, 64, 64)
        features = self.trunk(image)  # (B, 48, 16, 16)
        patches = self.embed(features)  # (B, 96, 8, 8)
        size, count = patches.shape[-2:], len(self.start)
        x = torch.cat([self.tokens.expand(len(image), -1, -1), patches.flatten(2).mT], dim=1)  # (B, 2K + 64, 96)
        places = torch.cat([torch.zeros_like(self.tokens), sine_positions(*size, x.shape[2])])  # (2K + 64, 96)
        self.weights = []  # for the drawings below
        for layer in self.layers:
            x, weights = layer(x + places, hidden)
            self.weights.append(weights)  # (B, heads, 2K + 64, 2K + 64)
        points, matrices, patches = self.norm(x).split([count, count, len(places) - 2 * count], dim=1)
        coarse = self.coarse_key(patches).mT.unflatten(2, size)  # (B, 96, 8, 8)
        keys = self.fine_key(features) + resize_flow(coarse, features.shape[-2:])  # (B, 96, 16, 16)
        scores = torch.einsum("bkc,bchw->bkhw", self.query(points) / keys.shape[1] ** 0.5, keys)  # (B, K, 16, 16)
        near = gaussian_heatmaps(self.start[None], scores.shape[-2:], 0.2).log()  # (1, K, 16, 16)
        found, self.heatmaps = soft_argmax(scores / 0.3 + near)  # (B, K, 2)
        return found, torch.eye(2) + self.affine_head(matrices).unflatten(-1, (2, 2))  # and (B, K, 2, 2)


# %%
theirs = AnimationModel.load("tiny").prior.detector
detector = TokenDetector(len(theirs.start)).eval()
detector.load_state_dict(theirs.state_dict())  # strict: every name and every shape fits

COUNT = 8
people = synthetic.sample_identities(COUNT, seed=40)
at_rest = synthetic.Faces(people, synthetic.neutral_states(COUNT))
speaking = synthetic.Faces(people, synthetic.animate_states(12 * COUNT, seed=7)[::12])
faces = torch.cat([synthetic.render(at_rest, 64), synthetic.render(speaking, 64)])  # (16, 3, 64, 64)
with torch.no_grad():
    points, matrices = detector(faces)
    expected_points, expected_matrices = theirs(faces)
print(f"points: {tuple(points.shape)}, matrices: {tuple(matrices.shape)}")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the network above with the shipped weights is the package's network.
assert torch.allclose(points, expected_points, atol=1e-5) and torch.allclose(matrices, expected_matrices, atol=1e-4)

# %% [markdown]
# ## Where the points sit


# %%
def at(axis, index, which=slice(None), **style):
    """A face with the points that were found in it."""
    axis.imshow(faces[index].permute(1, 2, 0))
    show.dots(axis, points[index][which], (64, 64), **dict(s=26, color="tab:red") | style)
    axis.set(xticks=[], yticks=[])


figure, axes = plt.subplots(1, 4, figsize=(9.4, 2.6))
for axis, index, title in zip(axes, (0, COUNT, 3, COUNT + 3), 2 * ("at rest", "speaking")):
    at(axis, index)
    axis.set_title(title, fontsize=9)
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)
gaps = 32 * torch.cdist(points, points) + 100 * torch.eye(points.shape[1])  # pixels
crowded = (gaps.amin(dim=2) < 1.5).float().mean().item()
print(f"of {points.shape[1]} points, {'more' if crowded > 0.5 else 'less'} than half lie within 1.5 pixels of another")

# %% [markdown]
# *Two people, each at rest and speaking. Most of the points share one place on the bridge of the nose. The others sit on
# brow, forehead, nose, mouth and neck. So the model has twenty points and uses far fewer places. Points in one place
# can still say different things, because each has a matrix of its own.*
#
# ## What attention looks at
#
# Each row shows one point: its face, the last layer's attention of its token to the 64 patches (mean over heads), and
# the scores of the comparison that follows, as a heatmap.

# %%
K = points.shape[1]
index = COUNT + 3
attention = torch.stack([w[:, :, :K, 2 * K :].mean(1) for w in detector.weights])  # (layers, B, K, 64)
spread = [0]  # points as far apart as possible, so that the rows differ
while len(spread) < 3:
    spread.append(int(torch.cdist(points[index], points[index][spread]).amin(1).argmax()))

figure, axes = plt.subplots(3, 3, figsize=(7.6, 6.9))
for row, part in zip(axes, spread):
    at(row[0], index, [part], s=60)
    row[0].set_ylabel(f"point {part}")
    share = attention[-1, index, part] / attention[-1, index, part].sum()
    maps = (share.unflatten(0, (8, 8)), detector.heatmaps[index, part])
    for axis, values, top in zip(row[1:], maps, (4 / 64, None)):
        image = axis.imshow(values, vmin=0, vmax=top, cmap="viridis", extent=(-0.5, 63.5, 63.5, -0.5))
        show.dots(axis, points[index][[part]], (64, 64), s=40, color="tab:red")
        axis.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, fraction=0.046)
for axis, title in zip(axes[0], ("the point", "attention (1/64 = even)", "scores of the comparison")):
    axis.set_title(title, fontsize=9)
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

shares = attention / attention.sum(-1, keepdim=True)
even = (-(shares * (shares + 1e-9).log()).sum(-1)).exp().mean(dim=(1, 2))  # patches that would share it evenly
verdict = "widely spread" if even.min() > 32 else "concentrated"
print(
    f"attention is {verdict}: in each layer it takes in more than {'half' if even.min() > 32 else 'a few'} of the 64 patches"
)

# %% [markdown]
# *Attention takes in much of the picture, and its maximum lies elsewhere than the point. The comparison has its maximum
# at the point.*
#
# ## Break it: cut the attention
#
# Does the detector need its attention at all? We hide tokens from each other, without any training, and measure two
# things. *Shift* is how far points move from where the whole network has them, in pixels. *Share* is how much of the
# points' motion between rest and speech is kept: 1 is all of it.

# %%
N = 2 * K + 64
tokens, patches, itself = slice(0, 2 * K), slice(2 * K, N), torch.eye(N, dtype=torch.bool)


def hide(asking, asked):
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[asking, asked] = True
    return hidden & ~itself


def without(layer):
    """The detector with one linear map set to zero."""
    kept = layer.weight.data.clone()
    layer.weight.data.zero_()
    with torch.no_grad():
        result = detector(faces)[0]
    layer.weight.data = kept
    return result


def measure(found):
    moved, kept = points[COUNT:] - points[:COUNT], found[COUNT:] - found[:COUNT]
    return [32 * (found - points).norm(dim=-1).mean().item(), ((kept * moved).sum() / (moved * moved).sum()).item()]


with torch.no_grad():
    cut = {
        "tokens can't see tokens": measure(detector(faces, hide(tokens, tokens))[0]),
        "tokens can't see patches": measure(detector(faces, hide(tokens, patches))[0]),
        "patches can't see patches": measure(detector(faces, hide(patches, patches))[0]),
        "nothing sees anything": measure(detector(faces, hide(slice(None), slice(None)))[0]),
        "comparison without patches": measure(without(detector.coarse_key)),
        "comparison without convolutions": measure(without(detector.fine_key)),
    }
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
for axis, values, title in zip(axes, zip(*cut.values()), ("shift (pixels)", "share of the motion kept")):
    bars = axis.barh(list(cut), values, color=["tab:blue"] * 4 + ["tab:orange"] * 2)
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set_title(title, fontsize=10)
    axis.set_xlim(0, 1.15 * max(values))
axes[0].invert_yaxis()
figure.tight_layout()
show.crisp(figure)
moved = 32 * (points[COUNT:] - points[:COUNT]).norm(dim=-1).mean().item()
needed = cut["nothing sees anything"][1] < 0.5
print(f"points move by about {moved:.0f} pixels between rest and speech")
print(f"without any attention they {'stand still' if needed else 'still follow'}")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: convolutions carry the points, attention doesn't.
assert cut["nothing sees anything"][1] > 0.7 and cut["comparison without convolutions"][1] < 0.4
assert cut["tokens can't see tokens"][0] < 0.6

# %% [markdown]
# **The detector hardly uses its attention.** With all attention cut, in all layers, points still follow nearly all of the
# motion. Cutting the comparison's local features, `fine_key`, ends it. What was trained as a transformer works as this:
# a fixed question for each point, compared with convolutional features.
#
# Three readings fit, and we haven't told them apart. Rendered faces may be too easy to need context. Training
# may have been too short to learn attention. And our own comparison with local features may offer a way around it that MTIA's
# linear layer doesn't have: there, all that a point knows must come through attention.
#
# ## What differs from MTIA
#
# | | here | MTIA | mark |
# |---|---|---|---|
# | tokens | $K$ for points, $K$ for matrices | the same | **paper** |
# | layers | pre-normed, all to all, positions added before each | the same | **published code** |
# | trunk | two halvings and residual blocks | HRNet-W32, three stages, 7.7 M parameters | **ours** |
# | positions | sines of normalised places, any size | a stored table, resized | **ours** |
# | point | comparison, soft-argmax, anchor | linear layer, sigmoid | **ours** |
# | matrix | linear layer, starts as the identity | linear layer | **ours** |
# | sizes | $K = 20$, width 96, 4 layers, 4 heads | $K = 10$, width 192, 12 layers, 8 heads | **ours** |
#
# ## Exercises
#
# **1 (★).** How many weights $a_{ij}$ has one head of one layer for a picture of 256 pixels, with $K = 20$ and patches
# of 8 pixels?

# %%
weights_at_256 = None  # your answer

# %% jupyter={"source_hidden": true} tags=["check"]
# Check of exercise 1.
print(
    "no answer yet"
    if weights_at_256 is None
    else "right"
    if weights_at_256 == 1_132_096
    else "not yet: all tokens ask all"
)

# %% [markdown]
# **2 (★★).** A patch whose centre lies between two cells needs a position, too. Write the position of any places
# `(n, 2)`. The checker compares it with `sine_positions` at two sizes.


# %%
def positions_at(places, channels):
    return None  # your answer: (n, channels)


# %% jupyter={"source_hidden": true} tags=["check"]
# Check of exercise 2.
grids = [identity_grid(h, w).flatten(1).T for h, w in ((8, 8), (3, 5))]
answers = [positions_at(grid, 96) for grid in grids]
if answers[0] is None:
    print("no answer yet")
else:
    good = all(torch.allclose(a, sine_positions(h, w, 96), atol=1e-4) for a, (h, w) in zip(answers, ((8, 8), (3, 5))))
    print("right" if good else "not yet: sin of x, cos of x, sin of y, cos of y")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. 256 pixels have 32 × 32 patches, and $(40 + 1024)^2 = 1\,132\,096$. At 64 pixels it is $(40 + 64)^2 = 10\,816$.
# 2. `angles = torch.pi * 2 ** torch.linspace(-1, 3, channels // 4) * places[..., None]`, of shape (n, 2, channels / 4);
#    then `return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)`.
#
# </details>
#
# ## Five lines
#
# * **You can now** write a transformer layer, and test whether attention matters by cutting it.
# * **The paper says** (MTIA) that tokens attend to the whole picture and to each other, and so learn better points.
# * **Its code does** so with a linear layer from token to point.
# * **We chose** to compare each point's token with local features, which learns in minutes.
# * **We measured** that with this comparison the attention hardly matters: points follow without it.
#
# | equation | cell | module |
# |---|---|---|
# | attention | *Attention*, `attention_naive`, `Attention` | torch's `nn.TransformerEncoderLayer` |
# | positions | *Where a patch is* | [`tokens.py`](../minimodel/tokens.py), `sine_positions` |
# | points, matrices | *The detector* | [`tokens.py`](../minimodel/tokens.py), `TokenDetector` |
# | MTIA's own detector | left out here | [`published/detectors.py`](../minimodel/published/detectors.py) |
#
# **Open:** whether attention would matter with a linear head, with films instead of rendered faces, or after days of
# training; and why most points gather in one place.
#
# **Next:** back to the core path with [6 · Structure correlation](06_structure_correlation.ipynb), or
# [A1 · Published code](A1_published_code.ipynb), where MTIA's own network is loaded.
