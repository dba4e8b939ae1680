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
# # 9 · Losses and metrics: what each number sees, and what it is blind to
#
# All parts are built, and two questions are left before they can be trained as one: what number should go down while
# training, and what number says afterwards that the result is good? Each such number looks at one thing and is blind to
# others. A network finds every blind spot, since nothing else holds it back, and so does anyone who wants a good table.
#
# Some losses you know already: equivariance (notebook 3), registration and SMS (4), parsing maps (5). Here are the rest.

# %%
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown, FloatSlider
from skimage.filters import gaussian

from minimodel import losses, show, tps
from minimodel.data import synthetic
from minimodel.evaluation import benchmark, metrics
from minimodel.evaluation.assessors import (
    UNITS,
    Assessment,
    Assessors,
    FaceReader,
    ReaderConfig,
    active_units,
    load_assessors,
)
from minimodel.evaluation.inception import Inception, load_inception
from minimodel.evaluation.lpips import VGG16, AlexNet, load_lpips
from minimodel.features import VGG19, FaceFeatures, FaceTasks, load_features
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.warping import warp

torch.manual_seed(0)
SIZE = 128
features, detector = load_features("faces"), LandmarkDetector.load("landmarks")

# %% [markdown]
# ## The answer first: six pictures that are equally wrong
#
# One face, spoilt in six ways. Three of them no one would mind in a film, or would call a matter of quality: darker,
# grainy, blurred. In the other three the face *does something else*: it sits elsewhere, looks elsewhere, opens its mouth.

# %%
person = synthetic.sample_identities(1, seed=7)
rest = synthetic.neutral_states(1)
grain = torch.randn(1, 3, SIZE, SIZE)


def face(**changes):
    state = replace(rest, **{name: torch.tensor([value]) for name, value in changes.items()})
    return synthetic.render(synthetic.Faces(person, state), SIZE)


D = face()
spoil = {
    "darker": lambda s: D * (1 - s),
    "grainy": lambda s: (D + s * grain).clamp(0, 1),
    "blurred": lambda s: torch.from_numpy(gaussian(D[0].numpy(), 20 * s, channel_axis=0))[None].float(),
    "shifted": lambda s: warp(D, torch.tensor([s, 0.0]).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE)),
    "turned": lambda s: face(yaw=s),
    "mouth open": lambda s: face(jaw=s),
}

# %% [markdown]
# How much of each? As much as makes the **PSNR** the same: that of the open mouth. PSNR is the mean squared error on a
# scale of decibels, with colours between 0 and 1:
#
# $$\text{PSNR} = -10 \log_{10} \frac{1}{3HW} \sum_{z} \big|\hat D(z) - D(z)\big|^2 .$$


# %%
def psnr_naive(made, wanted):
    squares = [(a - b) ** 2 for a, b in zip(made.flatten().tolist(), wanted.flatten().tolist(), strict=True)]
    return -10 * torch.tensor(sum(squares) / len(squares)).log10()


def strength_for(psnr, way):
    low, high = 0.0, 1.0
    for _ in range(14):  # halving the interval: PSNR falls as the strength grows
        middle = (low + high) / 2
        low, high = (middle, high) if metrics.psnr(way(middle), D) > psnr else (low, middle)
    return low


target = metrics.psnr(spoil["mouth open"](1.0), D).item()
pictures = {name: way(strength_for(target, way)) for name, way in spoil.items()}
assert torch.allclose(metrics.psnr(pictures["grainy"], D)[0], psnr_naive(pictures["grainy"], D), atol=1e-3)
assert all(abs(metrics.psnr(picture, D).item() - target) < 0.1 for picture in pictures.values())
show.pictures({"": torch.cat([D, *pictures.values()])}, columns=["right", *pictures], side=1.7)

# %% [markdown]
# To PSNR these six are one and the same. Other numbers disagree, with PSNR and with each other:

# %%
with torch.no_grad():
    points = {name: detector(picture)[0] for name, picture in pictures.items()}
    right_points = detector(D)[0]
    rows = {
        "PSNR (dB)": {name: metrics.psnr(picture, D).item() for name, picture in pictures.items()},
        "L1 × 100": {name: 100 * metrics.l1(picture, D).item() for name, picture in pictures.items()},
        "1 − SSIM": {name: 1 - metrics.ssim(picture, D).item() for name, picture in pictures.items()},
        "1 − MS-SSIM": {name: 1 - metrics.ms_ssim(picture, D).item() for name, picture in pictures.items()},
        "perceptual": {n: metrics.perceptual_distance(features, p, D).item() for n, p in pictures.items()},
        "landmarks (px)": {n: (p - right_points).norm(dim=-1).mean().item() * SIZE / 2 for n, p in points.items()},
    }


# %% [markdown]
# A table that draws such rows. A cell is the darker the larger its number is in its row, but only as far as the row's
# numbers differ at all: a row whose spread is under a fifth of its largest number, or under 0.1, stays pale.


# %%
def shades(values):
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / torch.maximum(high - low, (0.2 * high).clamp_min(0.1))


def table(rows):
    """Numbers in a grid: a row's largest has three digits, but none has more than two decimals."""
    values, names = torch.tensor([list(row.values()) for row in rows.values()]), list(next(iter(rows.values())))
    figure, axis = plt.subplots(figsize=(1.05 * len(names) + 1.4, 0.38 * len(rows) + 0.4))
    axis.imshow(shades(values), cmap="Oranges", vmin=0, vmax=1.4, aspect="auto")
    for i, j in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        digits = sum(values[i].max().item() < limit for limit in (100, 10))
        axis.text(j, i, f"{values[i, j]:.{digits}f}", ha="center", va="center", fontsize=9)
    axis.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(rows)), yticklabels=rows)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    figure.tight_layout(pad=0.3)


table(rows)
plt.show()

# %% [markdown]
# Read it row by row:
#
# * **L1** and **PSNR** see all pixels alike. A mouth is a few of them, so it may open for the price of a slightly darker
#   picture.
# * **SSIM** compares brightness, contrast and structure in small windows. A little less light hardly matters, grain is a
#   disaster. **MS-SSIM** does it on several scales, and on the coarse ones grain averages out.
# * **Perceptual** distances compare features of a network. Ours was trained to find the parts of faces. It minds grain and
#   blur most, and a darker picture more than an open mouth.
# * **Landmarks** see only where things are. Darker and grainy cost nothing.

# %%
where = rows["landmarks (px)"]
assert max(where["darker"], where["grainy"]) < 0.3 < 0.6 < min(where["shifted"], where["turned"], where["mouth open"])
assert rows["1 − SSIM"]["grainy"] > 20 * rows["1 − SSIM"]["darker"]
assert rows["L1 × 100"]["mouth open"] < rows["L1 × 100"]["darker"] / 3

# %% [markdown]
# One more thing about MS-SSIM. It looks at five sizes of the picture, each half of the one before, and small pictures run
# out of pixels. So its number means something only with the number of scales, which the package writes beside it:

# %%
print("side of a picture: scales that fit", {side: metrics.ms_ssim_scales(side, side) for side in (32, 64, 128, 256)})

# %% [markdown]
# So no table in this project has one column only. In a running notebook, the same with the mouse: choose what goes wrong,
# and how much of it.


# %%
def by_mouse(way, strength):
    with torch.no_grad():
        made = spoil[way](strength)
        off = (detector(made)[0] - right_points).norm(dim=-1).mean().item() * SIZE / 2
        numbers = [
            f"PSNR {metrics.psnr(made, D).item():.1f} dB",
            f"SSIM {metrics.ssim(made, D).item():.2f}",
            f"perceptual {metrics.perceptual_distance(features, made, D).item():.2f}",
            f"landmarks {off:.1f} px",
        ]
    figure = show.draw_pictures({"": torch.cat([D, made])}, columns=["right", "spoilt"], side=2.2)
    figure.text(0.5, -0.02, ", ".join(numbers), ha="center", va="top", fontsize=9)
    return figure


show.playground(by_mouse, way=Dropdown(options=list(spoil)), strength=FloatSlider(0.2, min=0, max=1, step=0.02))

# %% [markdown]
# ## The loss that trains everything: perceptual, at several scales
#
# All systems of this course learn from one sentence: the picture they make should look like the driving frame. MRFA
# compares features $\phi_l$ of a frozen network, layer by layer, of both pictures reduced to $1, \frac12, \frac14,
# \frac18$ of their side (we drop those under 16 pixels):
#
# $$\mathcal L_{per} = \sum_{i} \sum_{l} \left\| \phi_l(D_i) - \phi_l(\hat D_i) \right\|_1 . \tag{11}$$
#
# $\hat D$ is the generated picture, as in TPSM (Equation 9, the same loss; MRFA writes $\tilde D$, which is our warped
# source). S2D's Equation 4 has the full size alone. For the norm we take the mean, not the sum, so that neither wide
# layers nor large pictures weigh more:


# %%
def perceptual_naive(made, wanted):
    total = 0.0
    for scale in (1, 2, 4, 8):
        a, b = (features(F.avg_pool2d(picture, scale)) for picture in (made, wanted))
        for layer in range(len(a)):
            total += (a[layer] - b[layer]).abs().mean()
    return total


with torch.no_grad():
    made = pictures["turned"]
    assert torch.allclose(losses.perceptual_loss(features, made, D), perceptual_naive(made, D), atol=1e-4)
    assert torch.equal(features(D)[0], FaceFeatures.picture * D)  # ten times the picture itself

# %% [markdown]
# Their first layer is the picture, as the last line says, which makes that part an L1 loss. What do the others add? Take the six pictures
# again. For each, how much perceptual loss does one unit of L1 cost? (In units of the darker picture.)

# %%
with torch.no_grad():
    price = {n: (losses.perceptual_loss(features, p, D) / metrics.l1(p, D)).item() for n, p in pictures.items()}
price = {name: value / price["darker"] for name, value in price.items()}
plt.figure(figsize=(6.5, 2.2))
plt.bar(list(price), list(price.values()))
plt.ylabel("perceptual / L1")
plt.show()
assert min(price["mouth open"], price["blurred"]) > 1.5 > 1.3 > max(price["grainy"], price["shifted"])

# %% [markdown]
# Unit for unit of L1, an open mouth and lost edges cost about twice as much as a darker picture does, so that is where
# gradients pull harder. Such a loss also forgives what its features don't know, which for ours is colour, and this is why
# the picture itself stays among the layers.

# %% [markdown]
# ## Does the loss want the true flow?
#
# The model is never told the true flow. It bends the source until the *loss* is small, and hopes that this is the same.
# Here we can look. For six people that no model has seen: the loss of each layer when the source is warped by the true
# flow, and by the flow of the trained `tiny`, as a share of the loss of leaving the source as it is.

# %%
model = AnimationModel.load("tiny")
people = synthetic.sample_identities(6, benchmark.BENCHMARK_SEED)
clips = []
for number in range(6):
    speaking = synthetic.animate_states(125, benchmark.BENCHMARK_SEED + number)[::20]
    clips.append(benchmark.synthetic_clip(str(number), synthetic.Faces(people[number], speaking), 64))
wanted = torch.cat([clip.frames[1:] for clip in clips])
still = torch.cat([clip.frames[:1].expand_as(clip.frames[1:]) for clip in clips])
true_flow, visible = (torch.cat([getattr(clip.truth, name) for clip in clips]) for name in ("flow", "visible"))
with torch.no_grad():
    outs = [model.render(model.encode_source(c.frames[:1]), model.encode_driving(c.frames[1:])) for c in clips]
flow = torch.cat([out.flows[-1] for out in outs])


# %%
@torch.no_grad()
def by_layer(made, wanted):
    layers = zip(features(made), features(wanted), strict=True)
    return torch.stack([(a - b).abs().mean() for a, b in layers])


ratios = {name: by_layer(warp(still, f), wanted) / by_layer(still, wanted) for name, f in
          (("true flow", true_flow), ("the model's", flow))}  # fmt: skip
plt.figure(figsize=(5, 2.4))
for k, (name, ratio) in enumerate(ratios.items()):
    plt.bar(torch.arange(5) + 0.4 * k, ratio, 0.4, label=name)
plt.xticks([x + 0.2 for x in range(5)], ["the picture", *(f"block {n}" for n in (1, 2, 3, 4))])
plt.ylabel("loss / loss of copying")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# Where the model's bar is the lower one, a flow that is *not* the true one pleases the loss better than the truth:

# %%
lead = ratios["true flow"] - ratios["the model's"]
print("lead of the model's flow over the truth, layer by layer:", [round(x, 2) for x in lead.tolist()])
assert lead.min() > 0 and lead[3:].mean() > 1.5 * lead[:2].mean()

# %% [markdown]
# Is there a mistake? No: on the pixels that the source shows, the truth is the better one.

# %%
L1 = {name: (((warp(still, f) - wanted).abs() * visible).sum() / (3 * visible.sum())).item() for name, f in
      (("true flow", true_flow), ("the model's", flow))}  # fmt: skip
print("L1 × 100 on visible pixels:", {name: round(100 * value, 1) for name, value in L1.items()})
assert L1["true flow"] < L1["the model's"]

# %% [markdown]
# The rest is hidden in the source. There the true flow fetches something wrong: it points to the right place, behind what
# covers it. Something that merely looks right would be cheaper. And a feature of a deep layer looks at a wide surrounding,
# of which nearly always a part is hidden: there it pays to bend even visible skin a little wrongly.
#
# No trained model is needed to see it. Begin *at* the true flow of six frames, and follow the gradient of the loss:

# %%
bent = true_flow[3::6].clone().requires_grad_()
begin, aim, plain_to_see = still[3::6], wanted[3::6], visible[3::6]
optimizer = torch.optim.Adam([bent], lr=0.003)
course = []
for _ in range(25):
    loss = losses.perceptual_loss(features, warp(begin, bent), aim)
    course.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
off = metrics.flow_error(bent.detach(), true_flow[3::6], plain_to_see).nanmean().item()
print(f"the loss falls to {course[-1] / course[0]:.2f} of the truth's; visible places are off by {off:.1f} px")
assert course[-1] < 0.95 * course[0] and off > 0.1

# %% [markdown]
# So the loss, followed to its end, doesn't lead to the truth, and a flow may get worse while the loss gets better. What
# can be done? A generator that paints what is hidden takes the reason away. And most steps of our training leave the generator out and judge the
# warped source alone (notebook 11). They compare the first three layers only, which look at small surroundings (`train.py`,
# `MOTION_LAYERS`).

# %% [markdown]
# ## A loss that is learnt: the discriminator
#
# Averages look blurred: where a network isn't sure, the safest picture is the mean of all that might be. A
# **discriminator** $\mathcal D$ is trained to tell real pictures ($D$) from made ones ($\hat D$), and the generator to pass
# for real. In S2D both follow least squares:
#
# $$\mathcal L^{\mathcal D} = \big(1 - \mathcal D(D)\big)^2 + \mathcal D(\hat D)^2, \qquad
# \mathcal L^{G} = \big(1 - \mathcal D(\hat D)\big)^2 . \tag{S2D 5, 6}$$
#
# (The paper calls the made picture $T$, writes bars for the squares, and in Equation 6 a $G$ for the discriminator.)

# %%
real_scores, made_scores = torch.tensor([0.9, 1.2]), torch.tensor([0.1, -0.3])
by_hand = sum((1 - r) ** 2 for r in (0.9, 1.2)) / 2 + sum(m**2 for m in (0.1, -0.3)) / 2
assert torch.isclose(losses.discriminator_loss(real_scores, made_scores), torch.tensor(by_hand))
by_hand = sum((1 - m) ** 2 for m in (0.1, -0.3)) / 2
assert torch.isclose(losses.adversarial_loss(made_scores), torch.tensor(by_hand))

# %% [markdown]
# Eighty steps: real faces against the same faces blurred. Pairs never meet in one comparison, so this loss can't say
# *which* face is right. It only says what faces look like.

# %%
faces = synthetic.render(synthetic.Faces.sample(96, seed=1), 64)
soft = torch.from_numpy(gaussian(faces.numpy(), (0, 0, 1.0, 1.0))).float()
discriminator = losses.Discriminator()
optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
for _ in range(80):
    real, made = faces[:80][torch.randperm(80)[:8]], soft[:80][torch.randperm(80)[:8]]
    loss = losses.discriminator_loss(discriminator(real), discriminator(made))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    scores = [discriminator(x[80:]).mean((1, 2, 3)) for x in (faces, soft)]
assert (scores[0] > scores[1]).float().mean() > 0.9  # faces that it hasn't seen, each against itself blurred

# %% [markdown]
# What does the generator hear from it? We follow the gradient of $\mathcal L^G$ with respect to a blurred picture for a few
# steps. L1 would go straight to the first picture, the right answer. The discriminator knows no answer; it invents edges
# and grain, because real pictures have some.

# %%
start, truth = soft[90:91], faces[90:91]
sharpened = start.clone().requires_grad_()
for _ in range(15):
    (gradient,) = torch.autograd.grad(losses.adversarial_loss(discriminator(sharpened)), sharpened)
    sharpened = (sharpened - 0.003 * gradient / gradient.abs().mean()).clamp(0, 1).detach().requires_grad_()
with torch.no_grad():
    score = [round(discriminator(x).mean().item(), 1) for x in (truth, start, sharpened)]
assert score[2] > score[1] and metrics.psnr(sharpened, truth) < metrics.psnr(start, truth)
show.pictures({"": torch.cat([truth, start, sharpened])}, columns=["real", "blurred", "pleases it"], side=1.7)

# %% [markdown]
# It pleases the discriminator and is further from the truth than before (PSNR fell). Therefore a GAN loss never stands
# alone, and its gains don't show in L1 or PSNR.
#
# ## Losses that vanish: two traps
#
# TPSM has two losses that could be pleased by doing nothing. Its **background** loss (Equation 12) asks that the way from
# driving frame to source and the way back cancel out, $A_{bg}' A_{bg} = I$ (each with a third row, 0 0 1). That holds for
# every pan of the camera, and just as well for a predictor that always says "no motion":

# %%
pan = torch.tensor([[[1.0, 0.0, 0.3], [0.0, 1.0, -0.1]]])
back = torch.tensor([[[1.0, 0.0, -0.3], [0.0, 1.0, 0.1]]])
nothing = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
assert losses.background_loss(pan, back) < 1e-6 and losses.background_loss(pan, pan) > 0.05
assert losses.background_loss(nothing, nothing) == 0
assert tps.background_flow(nothing, (8, 8)).abs().max() < 1e-6

# %% [markdown]
# So it can only *keep in line* a predictor that something else teaches to move: the perceptual loss. (Ours needs neither:
# it looks the shift up, and learns only which pixels are background, [notebook 2](02_thin_plate_splines.ipynb).)
#
# The **warp** loss (Equation 13) asks that the source's features, moved, equal the driving frame's. If both may change,
# the quickest way to equality is to have no features at all. We let a small encoder minimise it, with a flow that is wrong:

# %%
encoder = torch.nn.Conv2d(3, 8, 3, padding=1)
wrong = 0.3 * torch.randn(len(still), 2, 1, 1).expand(-1, -1, 64, 64)
optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
variety = encoder(wanted).std((2, 3)).mean().item()
for _ in range(60):
    difference = F.l1_loss(warp(encoder(still), wrong), encoder(wanted))
    optimizer.zero_grad()
    difference.backward()
    optimizer.step()
assert encoder(wanted).std((2, 3)).mean() < 0.2 * variety  # nearly the same number everywhere, whatever the picture

# %% [markdown]
# The loss is nearly gone, the flow as wrong as before, and the features say nothing any more. `warp_loss` therefore cuts
# the gradient to all features; only the flow can answer:

# %%
f_S, f_D = (encoder(x).detach().requires_grad_() for x in (still, wanted))
asked = wrong.clone().requires_grad_()
losses.warp_loss([f_S], [f_D], [asked]).backward()
assert f_S.grad is None and f_D.grad is None and asked.grad.abs().sum() > 0

# %% [markdown]
# ## What the field reports, and four ways to cheat
#
# Beside colours, papers ask networks. Where there is a right picture, because one person drives herself: *where* are the
# landmarks (**AKD**; **MKR** is the share not found any more), and is it the right *person* (**AED**, distance of identity
# embeddings)? Between two people there is none. What remains is to ask whether the *pose* is the film's (**ARD**, difference
# of yaw, pitch and roll), and the *expression* (**AUH**, share of action units that differ), and whether the pictures look
# like faces at all (**FID**, distance between two clouds of features). MRFA doesn't say how ARD takes three angles together,
# nor what its AUH counts (0.6 to 0.85 can't be such shares, as guessing has a half); the mean and the share are ours. We can
# render the right answer, so we can ask all of them. As loops:


# %%
def aed_naive(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) ** 0.5


def ard_naive(a, b):
    return sum(abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 3


def auh_naive(a, b):
    return sum(x != y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / len(a)


assessors = load_assessors()
told, asked = assessors(wanted[:1]), assessors(wanted[9:10])
for metric, naive, name in ((metrics.aed, aed_naive, "embedding"), (metrics.ard, ard_naive, "rotation"),
                            (metrics.auh, auh_naive, "units")):  # fmt: skip
    both = getattr(told, name), getattr(asked, name)
    assert abs(metric(*both).item() - naive(*(x[0] for x in both))) < 1e-4

# %% [markdown]
# The judges here are this project's own small networks, trained on the rendered faces (the papers use OpenFace, py-feat and
# Inception). A number means nothing without the name of the network that made it.
#
# FID takes all features of one side as one Gaussian, with mean $m$ and covariance $\Sigma$, and compares it with the other
# side's:
#
# $$\text{FID} = |m - m'|^2 + \operatorname{tr}\big(\Sigma + \Sigma' - 2\,(\Sigma \Sigma')^{1/2}\big).$$
#
# In one dimension that is the squared distance of the means plus that of the deviations:

# %%
x, y = torch.randn(4000, 1) * 2 + 1, torch.randn(4000, 1) * 0.5
by_hand = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
assert torch.isclose(metrics.fid(x, y), by_hand, rtol=1e-4)

# %% [markdown]
# Now the cheats. Six films of one person each are to drive the photo of another. Our renderer knows the right answer, so
# we can write down L1 as well. Who hands in what?
#
# * **the model**: `tiny`, standard transfer;
# * **the photo**, unmoved;
# * **the film** itself, as if nobody would notice whose face it is;
# * **shuffled**: the frames of all six right answers, in random order;
# * **blurred**: the right answer, too soft.

# %%
crossed = benchmark.cross_clips("cross-plain", 64, count=6)
answers = torch.cat([clip.truth.frames[1:] for clip in crossed])
films = torch.cat([clip.driving[1:] for clip in crossed])
with torch.no_grad():
    photos = [model.encode_source(clip.truth.frames[:1]) for clip in crossed]
    by_model = [model.render(p, model.encode_driving(c.driving[1:])).image for p, c in zip(photos, crossed)]
handed_in = {
    "the model": torch.cat(by_model),
    "the photo": torch.cat([clip.truth.frames[:1].expand_as(clip.truth.frames[1:]) for clip in crossed]),
    "the film": films,
    "shuffled": answers[torch.randperm(len(answers))],
    "blurred": torch.from_numpy(gaussian(answers.numpy(), (0, 0, 1.2, 1.2))).float(),
}
shown = [len(answers) // 6 * n + 4 for n in range(6)]
rows = {"photo": handed_in["the photo"], "film": films, "right": answers, **handed_in}
show.pictures({name: rows[name][shown] for name in ("photo", "film", "right", "the model", "shuffled", "blurred")})

# %%
right, driven = assessors(answers), assessors(films)
assessed = {name: assessors(pictures) for name, pictures in handed_in.items()}


def akd_px(verdict):
    return metrics.akd(verdict.points, right.points, verdict.found & right.found) * 64 / 2


rows = {
    "L1 × 100, to the right answer": {n: 100 * metrics.l1(p, answers).mean().item() for n, p in handed_in.items()},
    "AKD, to the right answer (px)": {n: akd_px(v).nanmean().item() for n, v in assessed.items()},
    "MKR": {n: metrics.mkr(v.found, right.found).nanmean().item() for n, v in assessed.items()},
    "AED, to the right person": {
        n: metrics.aed(v.embedding, right.embedding).mean().item() for n, v in assessed.items()
    },
    "ARD, to the film (degrees)": {
        n: metrics.ard(v.rotation, driven.rotation).mean().item() for n, v in assessed.items()
    },
    "AUH, to the film": {n: metrics.auh(v.units, driven.units).mean().item() for n, v in assessed.items()},
    "FID, to all right answers": {n: metrics.fid(v.features, right.features).item() for n, v in assessed.items()},
}
table(rows)
plt.show()

# %% [markdown]
# Every column but the first is a cheat. Three of the four win a row, and the fourth beats the model in one:
#
# * The **photo** keeps the person. AED can't see that nothing moves, and likes it better than the model's film.
# * The **film** has all poses and expressions. ARD and AUH can't see that it's somebody else.
# * **Shuffled** frames are perfect pictures of the right people. FID compares sets, and a set has no order.
# * **Blurred** frames have by far the smallest L1, the right person, and landmarks where they should be. FID minds.

# %%
best = {measure: min(row, key=row.get) for measure, row in rows.items()}
assert best["ARD, to the film (degrees)"] == best["AUH, to the film"] == "the film"
assert best["FID, to all right answers"] == "shuffled" and best["L1 × 100, to the right answer"] == "blurred"
aed = rows["AED, to the right person"]
assert aed["the photo"] < aed["the model"] < aed["the film"]

# %% [markdown]
# ### What a judge says
#
# A judge is a detector, a reader and features, and what it says of a picture is a `Assessment`:

# %%
print({part.name: list(getattr(told, part.name).shape[1:]) for part in fields(Assessment)})

# %% [markdown]
# `found` says how sure the detector is (its heatmap is sharp), and MKR counts those. Action units are yes or no: the
# reader guesses how far the jaw has dropped, and `active_units` compares with a threshold. So AUH sees that a mouth opens
# somewhere between 0.3 and 0.5, and is blind to all that happens on either side:

# %%
reader = FaceReader.load()


@torch.no_grad()
def seen_in(picture):
    _, rotation, expression = reader(picture, detector(picture)[0])
    return active_units(expression), rotation[0]


for change in ({}, {"jaw": 0.3}, {"jaw": 0.5}, {"jaw": 1.0}, {"smile": 1.0}):
    units, _ = seen_in(face(**change))
    print(change or "at rest", [name for name, active in zip(UNITS, units[0]) if active])
yaw = seen_in(face(yaw=0.3))[1][0].item()
assert metrics.auh(seen_in(face(jaw=0.5))[0], seen_in(face(jaw=1.0))[0]) == 0
assert abs(yaw - 0.3 * 180 / torch.pi) < 5  # in degrees

# %% [markdown]
# **Break it.** The same formulas, read by another network: one that was never trained. It gives AEDs as well, as positive
# as any, and one could put them in a table. Nothing in the formula says that the network knows people. To ours the photo is
# less than a third as far from the right person as the film of somebody else, to this one more than two fifths:

# %%
ignorant = Assessors(detector, FaceReader(ReaderConfig(embedding=64)).eval(), features)
embeddings = {n: ignorant(handed_in[n][::6]).embedding for n in ("the photo", "the film")}
person_known = ignorant(answers[::6]).embedding
by_ignorant = {n: metrics.aed(embedding, person_known).mean().item() for n, embedding in embeddings.items()}
share = {"ours": aed["the photo"] / aed["the film"], "untrained": by_ignorant["the photo"] / by_ignorant["the film"]}
assert share["ours"] < 1 / 3 < 2 / 5 < share["untrained"]

# %% [markdown]
# And the same-identity protocol, in which a film's first frame is driven by the rest of the same film? There *copying the
# driving frame* would be perfect in all measures at once. Nothing but the architecture forbids it: what passes from the
# driving frame to the picture is ten points and their matrices, too narrow for a face. Keep that door small, and the
# protocol is sound.
#
# ## Whose features?
#
# Perceptual losses and distances are no better than the network whose features they compare. The papers take **VGG-19**,
# which learnt to name a thousand things on photographs; ours learnt to find landmarks and the parts of faces (`FaceTasks`).
# What is that worth? We put fresh heads on the frozen features, and give them thirty steps on forty small faces. Beside
# them, features that have never learnt anything:

# %%
whose = synthetic.Faces.sample(96, seed=1)[:48]
small, parts, marks = F.avg_pool2d(faces[:48], 2), synthetic.parsing(whose, 16), synthetic.landmarks(whose)


def heads_on(frozen, steps=30):
    tasks = FaceTasks(frozen.requires_grad_(False), len(synthetic.PARTS))
    optimizer = torch.optim.Adam([x for x in tasks.parameters() if x.requires_grad], lr=0.01)
    for _ in range(steps):
        some = torch.randint(40, (8,))
        logits, places = tasks(small[some])
        loss = F.cross_entropy(logits, parts[some]) + (places - marks[some]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tasks


# %%
known = {}
for name, frozen in (("ours", features), ("untrained", FaceFeatures())):
    tasks = heads_on(frozen)
    with torch.no_grad():
        logits, places = tasks(small[40:])  # faces that the heads haven't seen
    known[name] = (logits.argmax(1) == parts[40:]).float().mean().item()
assert known["ours"] > 0.7 > known["untrained"]  # of all pixels, the share that gets the right part

# %% [markdown]
# `load_features("vgg19")` downloads VGG-19's weights, once. Here are both networks' layers, and those of VGG-16 and AlexNet,
# which the next metric looks at (with fresh weights: it's the sizes that we compare):

# %%
for name, network in {"ours": features, "VGG-19": VGG19(), "VGG-16": VGG16(), "AlexNet": AlexNet()}.items():
    with torch.no_grad():
        sides = [layer.shape[-1] for layer in network(D)]
    millions = sum(x.numel() for x in network.parameters()) / 1e6
    print(f"{name:8} {millions:4.1f} million weights, layers of {sides} pixels")

# %% [markdown]
# **LPIPS** (Zhang et al., CVPR 2018), which MRFA and others report, doesn't weigh all features alike. Each place's feature
# vector is scaled to length 1, and every channel $c$ of layer $l$ has a weight $w_{lc}$, learnt from what people called
# more alike:
#
# $$\text{LPIPS} = \sum_l \frac{1}{H_l W_l} \sum_z \sum_c w_{lc} \left( \frac{\phi_{lc}(z)}{|\phi_l(z)|}
# - \frac{\phi'_{lc}(z)}{|\phi'_l(z)|} \right)^{\!2} .$$


# %%
def lpips_naive(layers, weights, made, wanted):
    total = 0.0
    for a, b, w in zip(layers(made), layers(wanted), weights):
        height, width = a.shape[-2:]
        for i in range(height):
            for j in range(width):
                one, other = (x[0, :, i, j] / x[0, :, i, j].norm() for x in (a, b))
                total += (w * (one - other) ** 2).sum() / (height * width)
    return total


# %% [markdown]
# There is an LPIPS of AlexNet and one of VGG-16, and their numbers aren't comparable. `load_lpips("alex")` and
# `load_lpips("vgg")` download the network; a file does as well. The weights $w$ come with this package, so
# these are the published ones, while our AlexNet is a fresh one, and its number no LPIPS that could be reported:

# %%
with tempfile.TemporaryDirectory() as folder:
    torch.save(AlexNet().state_dict(), Path(folder) / "alexnet.pth")
    kind, alexnet, w = load_lpips(str(Path(folder) / "alexnet.pth"))
assert kind == "alex"  # a file says itself of which network it is
with torch.no_grad():
    ours = metrics.lpips(alexnet, w, pictures["turned"], D)[0]
    assert torch.allclose(ours, lpips_naive(alexnet, w, pictures["turned"], D), atol=1e-4)
assert all(channel.min() >= 0 for channel in w)  # or a difference could be a gain

# %%
for number, channels in enumerate(w, 1):
    shares = channels.sort(descending=True).values.cumsum(0) / channels.sum()
    print(f"layer {number}: 9/10 of the weight on {int((shares < 0.9).sum()) + 1} of {len(channels)} channels")

# %% [markdown]
# Of the first layer one channel in seven, of the last one half: a distance that was learnt is choosy. What it chose are
# features of *photographs in general*. Whether lips close counts as much with it as with you is one more thing to measure.
#
# **Inception** is whose features FID has in papers, with weights of 2015, which `load_inception()` downloads, and
# `minimodel evaluate --data cross-aligned --inception inception` with it. Again with fresh weights:

# %%
with tempfile.TemporaryDirectory() as folder:
    torch.save(Inception().state_dict(), Path(folder) / "inception.pth")
    inception = load_inception(str(Path(folder) / "inception.pth"))
millions = sum(x.numel() for x in inception.parameters()) / 1e6
print(f"{millions:.1f} million weights; features of two pictures: {list(inception(torch.cat([D, D])).shape)}")

# %% [markdown]
# A covariance of 2048 features needs thousands of pictures. Of fewer it has directions without any spread, and FID finds
# a distance where there is none. Here both sides are drawn from one Gaussian, of 64 features:

# %%
few, many = (metrics.fid(*torch.randn(2, count, 64)).item() for count in (100, 10_000))
print(f"FID of 100 against 100: {few:.0f}, of 10 000 against 10 000: {many:.1f}")
assert few > 30 * many

# %% [markdown]
# ## What only ground truth can measure
#
# * **Flow error** (`metrics.flow_error`): mean length of $F - F^{true}$ in pixels, where the source shows the place.
# * **Occlusion** (`metrics.balanced_accuracy`): mean of two shares, visible pixels that are said to be visible, and hidden
#   ones said to be hidden. One share alone could be won by always giving the same answer:

# %%
always = torch.ones_like(visible)
share = (always == visible).float().mean().item()
assert share > 0.8 and metrics.balanced_accuracy(always, visible).nanmean().item() == 0.5
at_mouth = torch.cat([clip.truth.regions["mouth"] for clip in clips]) & visible
print(f"tiny: {metrics.flow_error(flow, true_flow, at_mouth).nanmean().item():.1f} px off at mouths")

# %% [markdown]
# * **Shape** (`metrics.shape_error`, used in notebook 10): how far landmarks are from where they should be after the best
#   shift, turn and zoom. What is left says: another face, or another expression. Its blind spot is what it takes out, and
#   a head that looks to the side isn't among that, as turning it bends the picture of it:

# %%
here = synthetic.landmarks(synthetic.Faces(person, rest))
turn = torch.tensor([[0.9, -0.3], [0.3, 0.9]])  # and a little smaller
all_of_them = torch.ones(1, 74, dtype=torch.bool)
posed = {name: replace(rest, **{name: torch.tensor([1.0 if name == "jaw" else 0.5])}) for name in ("jaw", "yaw")}
there = {"moved, turned, smaller": here @ turn.T + 0.1}
there |= {name: synthetic.landmarks(synthetic.Faces(person, state)) for name, state in posed.items()}
left = {name: metrics.shape_error(points, here, all_of_them).item() * SIZE / 2 for name, points in there.items()}
print("shape error in pixels:", {name: round(value, 1) for name, value in left.items()})
assert left["moved, turned, smaller"] < 0.01 < 1 < min(left["jaw"], left["yaw"])

# %% [markdown]
# ## Exercises
#
# 1. `metrics.psnr` of a half-and-half mixture of two wrong pictures: is it worse than the worse, better than the better,
#    or between? Try `blurred` and `grainy`, and explain with a sum of squares.
# 2. Find a cheat for AKD. (Hint: the detector looks for landmarks; who says it must be a face?)
# 3. `metrics.ms_ssim` says on how many scales it was measured. Why would a 64-pixel picture's number not compare with
#    that of a 256-pixel one?
#
# <details><summary>Solutions</summary>
#
# 1. `metrics.psnr((pictures["blurred"] + pictures["grainy"]) / 2, D)`: better than both. Errors that have nothing to do
#    with each other cancel in part: $|a/2 + b/2|^2$ is a quarter of $|a|^2 + |b|^2$, if $a \cdot b$ is about 0. This is why an
#    average of many guesses wins every table of PSNR, and looks soft.
# 2. Anything on which the detector says the same: the wanted picture's landmarks drawn as a face of another person, a
#    drawing of lines, or noise found by following the detector's gradient. AKD sees only what its detector sees.
# 3. Three scales of five fit 64 pixels (`metrics.ms_ssim_scales(64, 64)` counts them): the coarser ones, on which
#    large structures count, are left out. Fewer scales are another metric.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/losses.py`](../minimodel/losses.py), [`minimodel/evaluation/metrics.py`](../minimodel/evaluation/metrics.py),
# [`minimodel/features.py`](../minimodel/features.py), [`minimodel/evaluation/assessors.py`](../minimodel/evaluation/assessors.py). Next:
# [10 · Motion transfer](10_motion_transfer.ipynb), where the right person in the right pose is the whole question.
