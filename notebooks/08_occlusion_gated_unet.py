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
# # 8 · The occlusion-gated U-Net: fetch what the source shows, paint what it doesn't
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: encoder, gates, decoder.](maps/08.svg)
#
# **The question.** A flow can only *fetch*. If the source's mouth is shut there are no teeth to fetch. Who paints such places, and
# who knows where they are?
#
# **You need** notebooks [1](01_affine_flows.ipynb) and [7](07_lookup_and_refinement.ipynb). **Time:** 40 minutes. **Afterwards
# you can**
#
# - write the gated U-Net and load trained weights into it;
# - measure whether a gate knows what is hidden, and whether a painter paints it;
# - explain why neither is learned from pictures alone.
#
# The paper is *Learning Motion Refinement for Unsupervised Face Animation* (**MRFA**,
# [NeurIPS 2023](https://proceedings.neurips.cc/paper_files/paper/2023/hash/6e566c91d381bd7a45647d9a90838817-Abstract-Conference.html)), section 3.3, Eq. 9 and 10.
# Gates at several scales come from *Thin-Plate Spline Motion Model for Image Animation* (**TPSM**,
# [arXiv 2203.14367](https://arxiv.org/abs/2203.14367)).

# %%
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import FloatSlider
from torch import nn

from minimodel import losses, show  # `losses` is there to compare with, `show` draws
from minimodel.blocks import ConvBlock, DownBlock, UpBlock  # built in notebook 1, like the next line's functions
from minimodel.data import synthetic
from minimodel.generator import InpaintingNetwork, ResidualGenerator, SourceEncoder  # for the last section
from minimodel.model import AnimationModel  # where the trained weights come from, and what ours are compared with
from minimodel.warping import resize_flow, warp

torch.manual_seed(0)
SIZE = 64
SCALES = [(8, 8), (16, 16), (32, 32), (64, 64)]
model = AnimationModel.load("tiny").requires_grad_(False)
contrast = AnimationModel.load("tiny-affine").requires_grad_(False)  # trained as in the paper, without any truth

# %% [markdown]
# Two pairs are for the eye: a head that turns, and a mouth that opens. Another 32 pairs of strangers are for numbers. The
# renderer knows which pixels of the driving frame the source doesn't show.

# %%
person = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
start = states[8]
shut = replace(start, jaw=0 * start.jaw, part=0 * start.part)
opened = replace(shut, jaw=shut.jaw + 0.6, part=shut.part + 0.6)
turned = replace(states[27], light=start.light, ambient=start.ambient)


class Pairs:
    """Pictures, truth, and what a model makes of them."""

    def __init__(self, source, driving):
        self.S, self.D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
        self.flow, self.visible = synthetic.flow_between(source, driving, SIZE)

    def through(self, model):
        """The source's features, and the output with flows, occlusion logits and pictures."""
        state = model.encode_source(self.S)
        return state.features, model.render(state, model.encode_driving(self.D))


few = Pairs(
    synthetic.Faces(person, start) + synthetic.Faces(person, shut),
    synthetic.Faces(person, turned) + synthetic.Faces(person, opened),
)
many = Pairs(*synthetic.sample_pairs(32, torch.Generator().manual_seed(20)))
features, output = few.through(model)
many_features, many_output = many.through(model)
other_features, other_output = many.through(contrast)
flows, logits = output.flows[1:], output.occlusions[1:]  # entry 0 is the coarse stage


# %% [markdown]
# ## The answer first
#
# In the first row the head turns, and the camera pans; in the second the mouth opens. The gate is yellow where the model fetches
# and dark where it paints. The last picture compares errors of colour: blue where the generated picture is nearer to the driving
# frame than the source warped by the same flow, red where it is farther off.


# %% jupyter={"source_hidden": true}
def row_of(axes, pictures, titles=None):
    for axis, picture, title in zip(axes, pictures, titles or [None] * len(pictures)):
        picture = picture.detach().clamp(0, 1)
        axis.imshow(picture.expand(3, -1, -1).permute(1, 2, 0) if len(picture) == 3 else picture[0], vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        if title:
            axis.set_title(title, fontsize=9)


def colour_error(picture, pairs):
    return (picture - pairs.D).abs().mean(1, keepdim=True)


figure, axes = plt.subplots(2, 6, figsize=(9.6, 3.6))
change = colour_error(output.image, few) - colour_error(output.warped_source, few)
for n, line in enumerate(axes):
    gate_n = torch.sigmoid(logits[-1][n])
    pictures = [few.S[n], few.D[n], output.warped_source[n], gate_n, output.image[n]]
    row_of(line, pictures, ["source", "driving", "warped", "gate", "generated"] if n == 0 else None)
    drawn = line[5].imshow(change[n, 0], cmap="RdBu_r", vmin=-0.3, vmax=0.3)
    line[5].set(xticks=[], yticks=[])
axes[0, 5].set_title("change of the error", fontsize=9)
figure.tight_layout(pad=0.4)
figure.colorbar(drawn, ax=axes, fraction=0.012, pad=0.01)
show.crisp(figure, photographs=True)

# %% [markdown]
# Hair and wall beside the turned head are painted, and so is the inside of the opened mouth. Mouth and hair get nearer to the
# driving frame. The wall beside the head becomes a grey shade, and the ear is lost: there the picture gets worse. It gets worse,
# too, where the gate shuts without need, as at the eyes of the second row.
#
# ## Equations 9 and 10
#
# The source runs down an encoder, which leaves features $f_i$ at every scale, $f_1$ the coarsest. Each is warped by the flow of
# its own scale and multiplied by the gate of its own scale, $g_i = \sigma(O_i)$, 1 where the source shows the place. (The paper
# writes $\mathcal{O}_i$ for the gate itself. We keep the logit $O_i$, so that notebook 7 can add to it.)
#
# $$\mathrm{out}_1 = \mathcal{F}_1(f_1) \cdot g_1 \tag{9}$$
#
# $$\mathrm{out}_{i+1} = \underbrace{\mathcal{F}_{i+1}(f_{i+1}) \cdot g_{i+1}}_{\text{fetched}}
# + \underbrace{\mathrm{UpBlock}(\mathrm{ResBlock}(\mathrm{out}_i)) \cdot (1 - g_{i+1})}_{\text{painted, from the scale below}}
# \tag{10}$$
#
# A gate of 1 lets the fetched feature pass and throws the painted one away; a gate of 0 does the reverse.

# %% jupyter={"source_hidden": true}
figure, axis = plt.subplots(figsize=(9, 3.3))
axis.set(xlim=(-0.1, 18.1), ylim=(0, 6.6))
axis.set_axis_off()


def box(x, y, width, text, colour, height=1.3):
    axis.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="0.3"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(*corners, text="", above=0.2):
    for start_of, end_of in pairwise(corners[:-1]):
        axis.plot(*zip(start_of, end_of), color="0.3", linewidth=1)
    axis.annotate("", corners[-1], corners[-2], arrowprops=dict(arrowstyle="->", color="0.3"))
    (x0, y0), (x1, y1) = corners[-2:]
    axis.text((x0 + x1) / 2, (y0 + y1) / 2 + above, text, ha="center", fontsize=8)


box(0, 4.6, 2, "$f_{i+1}$", "#e8eef7")
box(4.7, 4.6, 3.2, "warp by $F_{i+1}$", "#dff0df")
box(0, 0.7, 2, "$\\mathrm{out}_i$", "#e8eef7")
box(4.7, 0.7, 3.2, "ResBlock\nUpBlock (2 ×)", "#fde9c9")
for y, sign in ((5.25, "× $g$"), (1.35, "× $(1 - g)$")):
    axis.text(10.9, y, sign, ha="center", va="center", fontsize=10, bbox=dict(boxstyle="round", fc="white", ec="0.3"))
axis.text(13.9, 3.3, "+", ha="center", va="center", fontsize=13, bbox=dict(boxstyle="circle", fc="white", ec="0.3"))
box(9.7, 2.65, 2.4, "$g = \\sigma(O_{i+1})$", "#f6dfe6")
box(15.4, 2.65, 2.6, "$\\mathrm{out}_{i+1}$", "#e8eef7")
arrow((2, 5.25), (4.7, 5.25), text="128 × 16 × 16")
arrow((2, 1.35), (4.7, 1.35), text="128 × 8 × 8")
arrow((7.9, 5.25), (10.2, 5.25), text="fetched")
arrow((7.9, 1.35), (9.9, 1.35), text="painted")
arrow((10.9, 3.95), (10.9, 4.85))
arrow((10.9, 2.65), (10.9, 1.75))
arrow((11.6, 5.25), (13.9, 5.25), (13.9, 3.75))
arrow((12, 1.35), (13.9, 1.35), (13.9, 2.85))
arrow((14.3, 3.3), (15.4, 3.3))
axis.set_title("One scale of Eq. 10: the gate divides each pixel between fetching and painting", fontsize=10)
show.crisp(figure)


# %%
def gate_naive(fetched, painted, g):
    """Eq. 10's choice, pixel by pixel: (c, h, w), (c, h, w) and (h, w) with values in [0, 1]."""
    out = torch.zeros_like(fetched)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = fetched[:, i, j] * g[i, j] + painted[:, i, j] * (1 - g[i, j])
    return out


def gate(fetched, painted, g):  # (B, c, h, w), (B, c, h, w), (B, 1, h, w)
    return fetched * g + painted * (1 - g)


a, b, g = torch.rand(1, 3, 5, 6), torch.rand(1, 3, 5, 6), torch.rand(1, 1, 5, 6)
torch.testing.assert_close(gate(a, b, g)[0], gate_naive(a[0], b[0], g[0, 0]))


# %% [markdown]
# ## Without any weights
#
# Does this formula know anything about faces? Replace every network by the plainest thing that fits: features are the picture
# averaged down, and UpBlock and ResBlock only enlarge. Flow and gates are the truth. A fourth channel of ones goes along with the
# colours. What is left of it at the end says how much weight arrived, and we divide by it.


# %%
def plain_unet(image, flow, visible):
    """Eq. 9 and 10 with pictures for features. Returns what every scale makes."""
    image = torch.cat([image, torch.ones_like(image[:, :1])], 1)
    outs, below = [], torch.zeros(len(image), 4, 8, 8)  # nothing rises from below the first scale: Eq. 9
    for size in SCALES:
        fetched = warp(resize_flow(image, size), resize_flow(flow, size))
        below = gate(fetched, resize_flow(below, size), resize_flow(visible, size))
        outs.append(below[:, :3] / below[:, 3:].clamp_min(1e-3))
    return outs


outs = plain_unet(few.S, few.flow, few.visible)
true_warp = warp(few.S, few.flow)

# %% jupyter={"source_hidden": true}
figure, axes = plt.subplots(2, 6, figsize=(9.6, 3.6))
titles = [
    "warped by the true flow",
    "hidden: black",
    *(f"out$_{i + 1}$, {n}" for i, (n, _) in enumerate(SCALES) if i > 0),
]
for n, line in enumerate(axes):
    pictures = [true_warp[n], true_warp[n] * few.visible[n], *(out[n] for out in outs[1:]), few.D[n]]
    row_of(line, pictures, [*titles, "driving"] if n == 0 else None)
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

# %% [markdown]
# Visible pixels are exactly the warped ones. Hidden pixels get a blurred guess from their surroundings. Over 32 pairs that is
# already nearer to the driving frame than what the true flow fetches there:


# %%
def squares(picture, where):
    """The mean squared error of the colours where ``where`` is 1, over all pairs of ``many``."""
    return (((picture - many.D).square().mean(1, keepdim=True) * where).sum() / where.sum()).item()


hidden = 1 - many.visible
many_warp = warp(many.S, many.flow)
plain = plain_unet(many.S, many.flow, many.visible)[-1]
share = squares(plain, hidden) / squares(many_warp, hidden)
print(f"{100 * hidden.mean():.0f} % of the pixels are hidden; squared error there: {share:.2f} of the true warp's")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: visible pixels are the warped ones, hidden ones are better.
torch.testing.assert_close(plain * many.visible, many_warp * many.visible, atol=1e-4, rtol=1e-4)
assert share < 0.9

# %% [markdown]
# ## The network
#
# That is the skeleton. Features instead of colours, and blocks that can paint teeth rather than a blur, make the network. The
# residual block is new here: batch normalisation, ReLU and a 3 × 3 convolution, twice, whose result is added to the input. Blocks
# going down and up are notebook 1's, with its doubling (nearest). A last 3 × 3 convolution and a sigmoid make the colours.
# `encode` gives the features of all scales, coarsest first.


# %%
class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x):  # (B, c, h, w)
        return x + self.body(x)  # (B, c, h, w)


class GatedUNet(nn.Module):
    def __init__(self, widths=(32, 64, 128, 128)):
        super().__init__()
        self.first = ConvBlock(3, widths[0], norm="batch")
        self.down = nn.ModuleList(DownBlock(a, b, norm="batch") for a, b in pairwise(widths))
        self.residual = nn.ModuleList(ResidualBlock(width) for width in widths[:0:-1])
        self.up = nn.ModuleList(UpBlock(a, b, norm="batch") for a, b in pairwise(widths[::-1]))
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    def encode(self, image):  # (B, 3, 64, 64)
        features = [self.first(image)]  # (B, 32, 64, 64)
        for block in self.down:
            features.append(block(features[-1]))  # (B, 64, 32, 32), (B, 128, 16, 16), (B, 128, 8, 8)
        return features[::-1]  # coarsest first

    def forward(self, features, flows, logits):  # four of each, coarsest first
        g = [torch.sigmoid(O_i) for O_i in logits]  # (B, 1, h, w)
        x = warp(features[0], flows[0]) * g[0]  # Eq. 9: (B, 128, 8, 8)
        for i, (residual, up) in enumerate(zip(self.residual, self.up), start=1):
            painted = up(residual(x))  # (B, c, 2h, 2w)
            x = gate(warp(features[i], flows[i]), painted, g[i])  # Eq. 10
        return torch.sigmoid(self.last(x))  # (B, 3, 64, 64)


# %%
def part_of(model, prefix):
    weights = model.state_dict().items()
    return {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}


unet = GatedUNet()
unet.load_state_dict(part_of(model, "generator."))
unet.eval().requires_grad_(False)  # batch norm uses its stored means
for ours, package in zip(unet.encode(few.S), features, strict=True):
    torch.testing.assert_close(ours, package, atol=1e-4, rtol=1e-4)
painted = unet(unet.encode(few.S), flows, logits)
torch.testing.assert_close(painted, output.painted, atol=1e-4, rtol=1e-4)
picture = gate(warp(few.S, flows[-1]), painted, torch.sigmoid(logits[-1]))
torch.testing.assert_close(picture, output.image, atol=1e-4, rtol=1e-4)
print("features, painted picture and blended picture equal the package's")

# %% [markdown]
# The last line but two is a step that the paper doesn't mention (**published code**): Eq. 10 once more, on *pictures*. The
# warped source is shown where the finest gate is open, what the U-Net painted elsewhere.
#
# ## Set the gates by hand
#
# The cleanest way to see what a gate does is to hold it. A logit of 30 is a gate of 1 in all digits, −30 one of 0.

# %%
OPEN, SHUT = 30.0, -30.0


def draw(unet, features, S, flows, logits):
    """The U-Net's picture, blended with the warped source."""
    painted = unet(features, flows, logits)
    return gate(warp(S, flows[-1]), painted, torch.sigmoid(logits[-1]))


def all_gates(value):
    return [torch.full_like(O_i, value) for O_i in logits]


stranger = synthetic.render(synthetic.Faces.sample(2, seed=5), SIZE)
nonsense = [torch.randn_like(F_i) for F_i in flows[:-1]] + [flows[-1]]
all_shut = draw(unet, features, few.S, flows, all_gates(SHUT))
of_stranger = draw(unet, unet.encode(stranger), stranger, flows, all_gates(SHUT))
all_open = draw(unet, features, few.S, flows, all_gates(OPEN))
of_nonsense = draw(unet, features, few.S, nonsense, all_gates(OPEN))
same = [torch.allclose(a, b, atol=1e-4) for a, b in ((all_shut, of_stranger), (all_open, of_nonsense))]
print("all shut: a stranger's photo gives the same picture:", same[0])
print("all open: nonsense for the coarser flows gives the same picture:", same[1])

# %% jupyter={"source_hidden": true}
# Gates moved as a whole.
shifts = {"all shut": SHUT, "logits − 6": -6.0, "as they are": 0.0, "logits + 6": 6.0, "all open": OPEN}
figure, axes = plt.subplots(1, 6, figsize=(9.6, 2))
shown = [draw(unet, features, few.S, flows, [O_i + shift for O_i in logits])[0] for shift in shifts.values()]
row_of(axes, [*shown, few.D[0]], [*shifts, "driving"])
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

# %% [markdown]
# With all gates shut nothing of the source passes at any scale, so the picture can't depend on it. With all gates open the
# finest scale fetches everything, and nothing of the coarser ones survives.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: both statements, and that open gates show the warped source.
assert all(same)
torch.testing.assert_close(all_open, output.warped_source, atol=1e-4, rtol=1e-4)

# %% [markdown]
# ## Do the gates know what is hidden?
#
# In the paper nobody tells them. A gate learns from the picture's loss alone. So we ask two models: `tiny`, which was told,
# and `tiny-affine`, which wasn't. Call a pixel *open* where its finest logit is positive. The **balanced accuracy** is the mean
# of two shares: of visible pixels that are open, and of hidden pixels that are shut. Any constant gets 0.5.


# %%
def shares(logits, visible):
    opened = (logits > 0).float()
    of_visible, of_hidden = ((opened * where).sum() / where.sum() for where in (visible, 1 - visible))
    return [of_visible.item(), of_hidden.item(), (of_visible + 1 - of_hidden).item() / 2]


gates = {"tiny": many_output.occlusions[-1], "tiny-affine": other_output.occlusions[-1]}
known = {name: shares(finest, many.visible) for name, finest in gates.items()}
show.table(known, ["open of visible", "open of hidden", "balanced accuracy"], best={"balanced accuracy": "high"})

# %% jupyter={"source_hidden": true}
other_few_features, few_others = few.through(contrast)
figure, axes = plt.subplots(2, 4, figsize=(7.2, 3.9))
for n, line in enumerate(axes):
    shown = [few.D[n], few.visible[n], torch.sigmoid(logits[-1][n]), torch.sigmoid(few_others.occlusions[-1][n])]
    row_of(line, shown, ["driving", "visible, truth", "gate, tiny", "gate, tiny-affine"] if n == 0 else None)
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.2))
for axis, (name, finest) in zip(axes, gates.items()):
    for label, where in (("visible", many.visible > 0.5), ("hidden", many.visible < 0.5)):
        of_gate = torch.sigmoid(finest[where])
        axis.hist(of_gate, bins=torch.linspace(0, 1, 21), density=True, histtype="step", label=f"{label} pixels")
    axis.set(yticks=[], xlabel="gate: 0 paints, 1 fetches")
    axis.set_title(f"{name}, 32 pairs", fontsize=9)
axes[0].legend(fontsize=8, loc="upper center")
figure.tight_layout(pad=0.4)
show.crisp(figure)

# %% [markdown]
# **Verdict.** The gates of `tiny` know what is hidden, not perfectly: they also shut along outlines. Those of `tiny-affine`
# call every pixel visible. They are right on all visible pixels and on no hidden one, which is a constant's balanced accuracy.
# They have not learnt occlusion, only how much to mix.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the verdict.
assert known["tiny"][2] > 0.72 and 0.48 < known["tiny-affine"][2] < 0.55

# %% [markdown]
# ### The loss that teaches gates (**ours**)
#
# `visibility_loss` compares every stage's logits with the true visibility. At full and half size it is balanced, half for the
# visible pixels and half for the hidden ones:
#
# $$\mathcal{L}_{vis} = \tfrac12\, \mathrm{mean}_{visible} \log\big(1 + e^{-O/s}\big)
# + \tfrac12\, \mathrm{mean}_{hidden} \log\big(1 + e^{O/s}\big), \qquad s = 3.$$
#
# Without the balance "all is visible" would be right in nineteen of twenty pixels. A balanced gate shuts too much, so the coarser
# gates must let pass what is to be painted there. Hence coarser stages learn the plain share of visible pixels, with ordinary
# cross entropy and $s = 1$. Dividing by $s$ makes trained logits three times as large, so gates are hardly ever half open: a
# gate of 0.7 would mix, and blur.


# %%
def visibility(stages, visible):  # logits of all stages, the coarse one first; (B, 1, 64, 64)
    terms = []
    for O_i in stages:
        seen, unseen = (resize_flow(share, O_i.shape[-2:]) for share in (visible, 1 - visible))  # (B, 1, h, w)
        if O_i.shape[-1] < SIZE / 2:
            terms.append((seen * F.softplus(-O_i) + unseen * F.softplus(O_i)).mean())
        else:
            shut_wrongly = (seen * F.softplus(-O_i / 3)).sum() / seen.sum()
            open_wrongly = (unseen * F.softplus(O_i / 3)).sum() / unseen.sum()
            terms.append((shut_wrongly + open_wrongly) / 2)
    return torch.stack(terms).mean()


torch.testing.assert_close(
    visibility(many_output.occlusions, many.visible), losses.visibility_loss(many_output.occlusions, many.visible)
)

# %% [markdown]
# ## Can the painter paint?
#
# We know where gates should be shut, so we can shut them there, at every scale, and look at what is painted. Numbers are squared
# errors on hidden pixels, as shares of what the *true* flow would fetch there.


# %%
def true_logits(visible):
    return [torch.logit(resize_flow(visible, size), eps=1e-3) for size in SCALES]


def painter_of(model, features, pairs, found, logits):
    """A model's picture by its own flows, with any gates."""
    return draw(model.generator, features, pairs.S, found.flows[1:], logits)


pictures = {
    name: {
        "warped by its own flow": found.warped_source,
        "its own gates": found.image,
        "true gates": painter_of(model_of, these, many, found, true_logits(many.visible)),
    }
    for name, model_of, these, found in (
        ("tiny", model, many_features, many_output),
        ("tiny-affine", contrast, other_features, other_output),
    )
}
base = squares(many_warp, hidden)
rows = {way: [squares(pictures[name][way], hidden) / base for name in pictures] for way in pictures["tiny"]}
show.table(rows, list(pictures), best={name: "low" for name in pictures})

# %% jupyter={"source_hidden": true}
# The contrast's painter under true gates.
failed = painter_of(contrast, other_few_features, few, few_others, true_logits(few.visible))
figure, axes = plt.subplots(2, 5, figsize=(9.2, 4))
for n, line in enumerate(axes):
    line_of = [few.D[n] * few.visible[n], failed[n], output.warped_source[n], output.image[n], few.D[n]]
    titles = ["hidden: black", "tiny-affine, true gates", "tiny, warped", "tiny, generated", "driving"]
    row_of(line, line_of, titles if n == 0 else None)
figure.tight_layout(pad=0.4)
show.crisp(figure, photographs=True)

# %% [markdown]
# **Verdict.** `tiny-affine` has no painter: behind true gates it fills hidden places with colours that are more wrong than what
# the true flow fetches there. `tiny` has one, and its own gates suit it better than true ones, probably because the last
# part of its training had its own. But compare the best numbers of both columns, 0.27 and 0.34: a model without any painter is
# only a quarter worse, because its flow has learned to fetch something of a similar colour into hidden places. What painting
# gains at this size is less a smaller error than a flow that needn't bend to fetch colours.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the verdict.
assert (
    rows["true gates"][1] > 1.7 * rows["true gates"][0] and rows["its own gates"][0] < rows["warped by its own flow"][0]
)
assert rows["true gates"][0] < 0.5

# %% [markdown]
# ### How a painter is taught (**ours**)
#
# Why does it not come by itself? A gate that is open to 0.9 lets a tenth of what rises from below pass, and a tenth of its
# gradient, times a tenth at the next scale. For a long while the warped source beats anything painted, so gates open; once they
# are open, what lies below hardly learns, and they have no reason to shut. `tiny` was kept from this in four ways:
#
# - **A perceptual loss on the picture before the blend**, $P$. Without it, a pixel whose gate is open sends almost no gradient
#   to the U-Net.
# - **Lent gates.** In the first part of the training the generator used the true visibility as its gates, then more and more
#   its own.
# - **Holes.** Random ellipses were shut as well: places to paint whose colours are known.
# - **A loss on hidden pixels** of $P$:
#
# $$\mathcal{L}_{hidden} = \frac{\sum_z \big(1 - v(z)\big)\, \lvert P(z) - D(z) \rvert}{\sum_z \big(1 - v(z)\big)},$$
#
# where $v$ is the true visibility, here and nowhere else. `minimodel/training/teaching.py` has gates and holes.

# %%
ours = ((many_output.painted - many.D).abs().mean(1, keepdim=True) * hidden).sum() / hidden.sum()
torch.testing.assert_close(ours, losses.hidden_loss(many_output.painted, many.D, many.visible))
print(f"hidden pixels are off by {ours:.2f} of the colour range, on average")

# %% [markdown]
# ## What would better flows or better gates be worth?
#
# Give the generator of `tiny` the true flow, the true gates, or both. Higher is closer to the driving frame.

# %%
flows_of = {"its own flow": many_output.flows[1:], "true flow": [resize_flow(many.flow, size) for size in SCALES]}
gates_of = {"its own gates": many_output.occlusions[1:], "true gates": true_logits(many.visible)}


def psnr(picture):
    return (-10 * (picture - many.D).square().mean((1, 2, 3)).log10()).mean().item()


rows = {
    name: [psnr(draw(unet, many_features, many.S, these, those)) for those in gates_of.values()]
    for name, these in flows_of.items()
}
show.table(rows, [f"{name} (dB)" for name in gates_of], digits=1)

# %% [markdown]
# **Verdict.** Neither helps alone. Gates and flow have to agree: behind the model's own gates a true flow fetches what covers
# hidden places, and behind its own flow true gates can't hide the flow's mistakes. Only both together gain.

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: only both together help much.
assert rows["true flow"][1] > max(*rows["its own flow"], rows["true flow"][0]) + 0.1

# %% [markdown]
# Move gates and flow yourself. Doubling the flow makes it wrong; watch what shutting the gates can hide.


# %%
def by_mouse(logits_plus=0.0, flow_times=1.0):
    wrong = [F_i[:1] * flow_times for F_i in flows]
    shifted = [O_i[:1] + logits_plus for O_i in logits]
    drawn = draw(unet, [f[:1] for f in features], few.S[:1], wrong, shifted)
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.2))
    row_of(axes, [torch.sigmoid(shifted[-1][0]), warp(few.S[:1], wrong[-1])[0], drawn[0], few.D[0]])
    for axis, title in zip(axes, ("gate", "warped", "generated", "driving")):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


show.playground(
    by_mouse,
    logits_plus=FloatSlider(0.0, min=-15, max=15, step=1),
    flow_times=FloatSlider(1.0, min=-1, max=2, step=0.25),
)

# %% [markdown]
# ## The other two generators
#
# TPSM's inpainting network (its section 3.2) doesn't choose: what the gate leaves of the warped features is laid *beside* what
# rises from below, and two residual blocks make up what is missing. *Sparse to Dense Motion Transfer for Face Image Animation*
# ([arXiv 2109.00471](https://arxiv.org/abs/2109.00471), Eq. 2) gates once, and pictures: $T = E\,(1 - M) + R\,M$ with the warped
# source $E$, the painted $R$ and a mask $M$ of its own, which is our blend with $g = 1 - M$. All three are in
# [`minimodel/generator.py`](../minimodel/generator.py), and train with `--generator unet`, `inpainting` or `residual`.

# %%
same_sizes = dict(base=32, levels=3, maximum=128, outer_kernel=3, norm="batch")
inpainting = InpaintingNetwork(**same_sizes).eval().requires_grad_(False)
residual = ResidualGenerator(base=32, levels=2, maximum=128, outer_kernel=3, norm="batch", blocks=3, scales=4).eval()
assert isinstance(inpainting, SourceEncoder) and isinstance(model.generator, SourceEncoder)  # what these two share
reads = {"gated U-Net": "chooses at four scales", "inpainting": "masks at four scales", "residual": "masks the picture"}
networks = {"gated U-Net": unet, "inpainting": inpainting, "residual": residual}
sizes = {name: sum(x.numel() for x in network.parameters()) / 1e6 for name, network in networks.items()}
show.table({name: [reads[name], sizes[name]] for name in networks}, ["the gate", "million parameters"], digits=1)

# %% [markdown]
# ## Five lines
#
# - **You can now** write the gated U-Net, load trained weights, and measure gates and painter each by itself.
# - **The paper says** that multiplying by the gate and its reverse at every scale combines warping and painting.
# - **Its code does** one blend more, of pictures, by the finest gate.
# - **We chose** to teach gates and painter by the truth of rendered faces: a balanced loss, lent gates, holes, a loss on hidden
#   pixels.
# - **We measured** that without truth gates know nothing and nobody paints, and that with it both work; in squared error the gain
#   is small.
#
# | equation | cell above | module |
# |---|---|---|
# | 9, 10 | The network | `generator.GatedUNet`, `SourceEncoder` |
# | the blend (published code) | The network | `model.AnimationModel.paint` |
# | visibility loss (ours) | The loss that teaches gates | `losses.visibility_loss` |
# | hidden loss (ours) | How a painter is taught | `losses.hidden_loss`, `training.teaching` |
# | TPSM's network, S2D Eq. 2 | The other two generators | `generator.InpaintingNetwork`, `ResidualGenerator` |
# | 11 to 13 | [notebook 9a](09a_what_a_loss_sees.ipynb) | `losses` |
#
# **Open.** Pictures of `tiny` are softer around outlines than those of untaught models, since its gates shut there and
# paint. A painter that is trained against a discriminator isn't tried here.
#
# ## Exercises
#
# 1. *(easy)* If blocks only enlarged, how much would scale $i$ contribute to a pixel? Write the weights of all four scales and of
#    "nothing" from the gates; they sum to one.
# 2. *(medium)* Which threshold on the finest *gate* of `tiny` gives the best balanced accuracy? Guess first.
# 3. *(builds)* Write TPSM's decoder from the layers of `inpainting`: `inpainting.residual[i]` is applied to what rose,
#    `inpainting.up[i]` enlarges it, and the masked warped features are laid beside it, second.


# %%
def contributions(gates):  # four of (B, 1, 64, 64), coarsest first
    return [torch.zeros_like(gates[0])] * 5  # your lines: four scales, then nothing


def best_threshold(gate, visible):
    return None  # your lines


def inpaint(network, features, flows, logits):
    return torch.zeros_like(few.S)  # your lines


# %% jupyter={"source_hidden": true} tags=["check"]
# Check: your answers.
four = [torch.sigmoid(resize_flow(O_i, (SIZE, SIZE))) for O_i in logits]
found = contributions(four)
right = [torch.allclose(sum(found), torch.ones_like(found[0])) and torch.allclose(found[3], four[3])]
threshold = best_threshold(torch.sigmoid(gates["tiny"]), many.visible)
best = max(shares(torch.sigmoid(gates["tiny"]) - k / 50, many.visible)[2] for k in range(1, 50))
right += [threshold is not None and shares(torch.sigmoid(gates["tiny"]) - threshold, many.visible)[2] > best - 0.005]
theirs = inpainting(inpainting.encode(few.S), flows, logits)
right += [torch.allclose(inpaint(inpainting, inpainting.encode(few.S), flows, logits), theirs, atol=1e-4)]
print("exercises solved:", *(f"{number}: {'yes' if done else 'not yet'}" for number, done in enumerate(right, 1)))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. ```python
#    weights, rest = [], torch.ones_like(gates[0])
#    for g in reversed(gates):
#        weights.insert(0, g * rest)
#        rest = rest * (1 - g)
#    return [*weights, rest]
#    ```
#    The rest is why the plain version needed a fourth channel.
# 2. ```python
#    return max((k / 50 for k in range(1, 50)), key=lambda k: shares(gate - k, visible)[2])
#    ```
#    Somewhere in the middle: the balanced loss puts it there.
# 3. ```python
#    seen = [warp(f, F_i) * torch.sigmoid(O_i) for f, F_i, O_i in zip(features, flows, logits)]
#    x = seen[0]
#    for beside, residual, up in zip(seen[1:], network.residual, network.up):
#        x = torch.cat([up(residual(x)), beside], 1)
#    return torch.sigmoid(network.last(x))
#    ```
#
# </details>
#
# **Next:** [9a · What a loss sees](09a_what_a_loss_sees.ipynb), what all of this is trained by. The code of this notebook:
# [`minimodel/generator.py`](../minimodel/generator.py), [`minimodel/training/teaching.py`](../minimodel/training/teaching.py).
