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
# # 8 · The occlusion-gated U-Net: fetch what the source shows, paint what it doesn't
#
# Notebook 7 ended with a flow at every scale, and beside each flow an **occlusion** map: can the source show this place
# at all? A flow can only *fetch*. If the source's mouth was shut, there are no teeth to fetch; if the head was turned
# away, there is no ear. Those places have to be painted by a network.
#
# The generator of *Learning Motion Refinement for Unsupervised Face Animation* (below: **MRFA**, section 3.3, Equations 9
# and 10) does both, and decides pixel by pixel and scale by scale which of the two to believe. The decision is one
# multiplication. We build it first without any weights, then with the trained ones, and then set the gates by hand.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import FloatSlider

from minimodel import show
from minimodel.data import synthetic
from minimodel.evaluation import benchmark, metrics
from minimodel.generator import GatedUNet, InpaintingNetwork, ResidualGenerator, SourceEncoder
from minimodel.model import AnimationModel
from minimodel.warping import resize_flow, warp

torch.manual_seed(0)
SIZE = 64

# %% [markdown]
# ## The answer first
#
# A pair with a strong turn of the head. The renderer knows the true flow and which pixels the source doesn't show (dark in
# the fourth picture): hidden behind the head, or, as the bar at the right, outside the photo, since the camera panned.
# Warping alone, even by the true flow, fills these with whatever happens to lie there.

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
moved = replace(states[27], light=states[8].light, ambient=states[8].ambient)
source, driving = synthetic.Faces(identity, states[8]), synthetic.Faces(identity, moved)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)
hidden = visible < 0.5

# %%
model = AnimationModel.load("tiny")
with torch.no_grad():
    state, motion = model.encode_source(S), model.encode_driving(D)
    output = model.render(state, motion)
pictures = [S, D, warp(S, true_flow), warp(S, true_flow) * visible, output.warped_source, output.image]
columns = ["source", "driving", "true flow alone", "hidden: dark", "model's flow alone", "generated"]
show.pictures({"": torch.cat(pictures)}, columns=columns, side=1.7)

# %% [markdown]
# ## Equations 9 and 10
#
# The source image runs down an encoder, which leaves features $f_i$ at every scale; $f_1$ is the coarsest. Each is
# warped by the flow of its own scale, and multiplied by the occlusion of its own scale (1 = visible):
#
# $$\text{out}_1 = \mathcal{F}_1(f_1) \cdot \mathcal{O}_1 \tag{9}$$
#
# $$\text{out}_{i+1} = \underbrace{\mathcal{F}_{i+1}(f_{i+1}) \cdot \mathcal{O}_{i+1}}_{\text{fetched}}
# + \underbrace{\text{UpBlock}(\text{ResBlock}(\text{out}_i)) \cdot (1 - \mathcal{O}_{i+1})}_{\text{painted, from below}} \tag{10}$$
#
# Where $\mathcal{O} = 1$ the warped feature goes through and what rises from below is thrown away; where
# $\mathcal{O} = 0$ it is the other way round. One pixel at a time:


# %%
def gate_naive(fetched, painted, occlusion):
    """Eq. 10's choice. (C, h, w), (C, h, w) and (h, w) with values in [0, 1]."""
    out = torch.zeros_like(fetched)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            o = occlusion[i, j]
            out[:, i, j] = fetched[:, i, j] * o + painted[:, i, j] * (1 - o)
    return out


# %%
def gate(fetched, painted, occlusion):
    """The same for a batch, in one line."""
    return fetched * occlusion + painted * (1 - occlusion)


a, b, o = torch.rand(1, 3, 5, 6), torch.rand(1, 3, 5, 6), torch.rand(1, 1, 5, 6)
assert torch.allclose(gate(a, b, o)[0], gate_naive(a[0], b[0], o[0, 0]))


# %% [markdown]
# ## Without any weights
#
# Does this formula know anything about faces? Replace every network by the plainest thing that fits: features = the
# picture itself, averaged down; UpBlock and ResBlock = enlarging. Flow and occlusion are the truth. A fourth channel of
# ones goes along with the three colours; what is left of it at the end says how much weight arrived, and we divide by it.

# %%
sizes = [(8, 8), (16, 16), (32, 32), (64, 64)]


def plain_unet(image, flow, occlusion):
    """Eq. 9-10 with pictures for features; ``occlusion`` in [0, 1]. Returns what every scale makes."""
    image = torch.cat([image, torch.ones_like(image[:, :1])], 1)
    outs, below = [], torch.zeros(len(image), 4, 8, 8)  # nothing rises from below the first scale: Eq. 9
    for size in sizes:
        fetched = warp(resize_flow(image, size), resize_flow(flow, size))
        below = gate(fetched, resize_flow(below, size), resize_flow(occlusion, size))
        outs.append(below[:, :3] / below[:, 3:].clamp_min(1e-3))
    return outs


# %%
filled = plain_unet(S, true_flow, visible)
pictures = [F.interpolate(out, (SIZE, SIZE)) for out in filled] + [warp(S, true_flow), D]
columns = [*(f"out$_{i + 1}$, {size[0]}" for i, size in enumerate(sizes)), "warped only", "driving"]
show.pictures({"": torch.cat(pictures)}, columns=columns, side=1.7)

# %% [markdown]
# The visible pixels are exactly the warped ones: at the last scale the gate is open there. The hidden ones come from
# below, where a pixel is larger and part of it was visible: a blurred guess from the surroundings (black where nothing of
# the large pixel was visible either). Crude, yet closer to the driving frame than what the warp puts there, on average
# over forty pairs:

# %%
several = synthetic.Faces.sample(40, seed=11)
others = synthetic.Faces(several.identity, synthetic.sample_states(40, seed=12))
flows, seen = synthetic.flow_between(several, others, SIZE)
images, wanted = synthetic.render(several, SIZE), synthetic.render(others, SIZE)
made = plain_unet(images, flows, seen)[-1]


def l1_where(made, wanted, where):
    return float(((made - wanted).abs().mean(1, keepdim=True) * where).sum() / where.sum())


by_warp, by_gates = (l1_where(x, wanted, seen < 0.5) for x in (warp(images, flows), made))
assert torch.allclose(made * seen, warp(images, flows) * seen, atol=1e-4)
assert by_gates < 0.95 * by_warp

# %% [markdown]
# That is the whole skeleton. What training adds: features instead of colours, and blocks that can paint teeth rather
# than a blur.
#
# ## With weights
#
# `GatedUNet` has two public calls: `encode(image)` gives the features, once per source, and `forward` makes the picture
# from features, flows and occlusions. Occlusions travel as **logits** (any number; the sigmoid makes
# them 0 to 1), so that the refinement of notebook 7 can add to them. What goes into it, scale by scale:

# %%
assert type(model.generator) is GatedUNet
print("channels and side of features, flow, occlusion:")
for f_i, F_i, O_i in zip(state.features, output.flows[1:], output.occlusions[1:]):
    print(", ".join(f"{x.shape[1]:3} x {x.shape[-1]:2}" for x in (f_i, F_i, O_i)))

# %% [markdown]
# Here is Eq. 9-10 again, slowly, with the trained blocks, and with the sigmoid that makes colours of the last layer's
# numbers:


# %%
@torch.no_grad()
def generate_naive(generator, features, flows, occlusions):
    out = torch.zeros_like(features[0][0])
    for i, (f_i, F_i, logits) in enumerate(zip(features, flows, occlusions)):
        if i > 0:
            out = generator.up[i - 1](generator.residual[i - 1](out[None]))[0]
        O_i = torch.sigmoid(logits)[0, 0]
        out = gate_naive(warp(f_i, F_i)[0], out, O_i)
    return torch.sigmoid(generator.last(out[None]))[0]


flows_i, occlusions_i = output.flows[1:], output.occlusions[1:]  # entry 0 is the coarse stage
by_hand = generate_naive(model.generator, state.features, flows_i, occlusions_i)
with torch.no_grad():
    painted = model.generator(state.features, flows_i, occlusions_i)
assert torch.allclose(by_hand, painted[0], atol=1e-4)

# %% [markdown]
# One step follows that the paper doesn't mention and its published code has: Eq. 10 once more, on the *pictures*. The
# warped source where the finest gate is open, what the U-Net painted elsewhere. `ModelConfig.blend` switches it. `draw` does
# both steps with flows and occlusions of our choice:


# %%
@torch.no_grad()
def draw(flows=flows_i, occlusions=occlusions_i, features=state.features, image=S):
    painted = model.generator(features, flows, occlusions)
    if not model.config.blend:
        return painted
    return gate(warp(image, flows[-1]), painted, torch.sigmoid(occlusions[-1]))


assert torch.allclose(draw(), output.image, atol=1e-5)

# %% [markdown]
# What flows through it? Features have too many channels to draw; the three directions in which they vary most are shown
# as red, green and blue (the same directions before and after warping).


# %%
def as_colours(features, like):
    """Features -> three colours: the main directions of ``like``."""
    flat = like[0].flatten(1).T
    middle = flat.mean(0)
    directions = torch.linalg.svd(flat - middle, full_matrices=False).Vh[:3]
    values = torch.einsum("bchw, kc -> bkhw", features - middle.view(-1, 1, 1), directions)
    spread = torch.einsum("nc, kc -> nk", flat - middle, directions).std(0).view(3, 1, 1)
    return (values / (4 * spread) + 0.5).clamp(0, 1)


# %%
scales = list(zip(state.features, flows_i, occlusions_i))
rows = {
    "$f_i$": [as_colours(f_i, f_i) for f_i, _, _ in scales],
    "$F_i$": [show.flow_colors(F_i, largest=true_flow.norm(dim=1).max().item()) for _, F_i, _ in scales],
    "$F_i(f_i)$": [as_colours(warp(f_i, F_i), f_i) for f_i, F_i, _ in scales],
    "$O_i$": [show.heat(torch.sigmoid(O_i)) for _, _, O_i in scales],
}
rows = {name: torch.cat([F.interpolate(x, (SIZE, SIZE)) for x in row]) for name, row in rows.items()}

# %%
figure = show.draw_pictures(rows, columns=[f"{F_i.shape[-1]} pixels" for F_i in flows_i])
for axis, (_, _, O_i) in zip(figure.axes[-len(scales) :], scales):
    axis.set_xlabel(f"mean {torch.sigmoid(O_i).mean().item():.2f}")
figure.tight_layout(pad=0.3)
beside = figure.add_axes((1.01, 0.06, 0.015, 0.17))
bar = figure.colorbar(plt.cm.ScalarMappable(cmap="viridis"), cax=beside, ticks=[0, 0.5, 1])
bar.ax.set_yticklabels(["0: paints", "0.5: half of each", "1: fetches"])
plt.show()

# %% [markdown]
# The colour bar is for the last line. A gate that stands ajar makes a mixture: part fetched, part painted.
#
# ## Set the gates by hand
#
# The cleanest way to see what a gate does is to hold it.


# %%
def all_gates(logit):
    return [torch.full_like(O_i, logit) for O_i in occlusions_i]


# %% [markdown]
# **All shut.** No feature passes anywhere: Eq. 9 gives zeros, and all that follows is painted from zeros. The picture
# cannot depend on the source. We try it with another person, and get the same:

# %%
stranger = synthetic.render(synthetic.Faces.sample(1, seed=5), SIZE)
with torch.no_grad():
    strange = model.encode_source(stranger)
shut = draw(occlusions=all_gates(-30.0))
shut_stranger = draw(occlusions=all_gates(-30.0), features=strange.features, image=stranger)
assert torch.allclose(shut, shut_stranger, atol=1e-4)

# %% [markdown]
# **All open.** At the last scale everything is fetched, so nothing of the coarser scales survives, however wrong their
# flows are. With `blend`, the result is the warped source itself:

# %%
opened = draw(occlusions=all_gates(30.0))
nonsense = [torch.randn_like(F_i) for F_i in flows_i[:-1]] + [flows_i[-1]]
assert torch.allclose(opened, draw(flows=nonsense, occlusions=all_gates(30.0)), atol=1e-4)
if model.config.blend:
    assert torch.allclose(opened, output.warped_source, atol=1e-4)

# %% [markdown]
# **In between.** We add a number to all of the model's own logits. Under each picture its PSNR against the driving
# frame: higher is closer.


# %%
def pictures_with_psnr(pictures, titles, side=1.7):
    figure, axes = plt.subplots(1, len(pictures), figsize=(side * len(pictures), side + 0.4))
    for axis, picture, title in zip(axes, pictures, titles):
        axis.imshow(picture[0].clamp(0, 1).permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
        if title not in ("gates", "driving"):
            axis.set_xlabel(f"{metrics.psnr(picture, D).item():.1f} dB")
    figure.tight_layout(pad=0.4)
    return figure


shifts = [-30.0, -3.0, -1.0, 0.0, 1.0, 3.0, 30.0]
shifted = [draw(occlusions=[O_i + shift for O_i in occlusions_i]) for shift in shifts]
names = ["all shut", "logits − 3", "logits − 1", "as they are", "logits + 1", "logits + 3", "all open"]
pictures_with_psnr(shifted, names)
plt.show()

# %% [markdown]
# In a running notebook, the same with the mouse, together with a factor on the flow. Watch what happens to a *wrong* flow
# while you shut the gates:


# %%
def by_mouse(logits=0.0, flow=1.0):
    flows = [F_i * flow for F_i in flows_i]
    occlusions = [O_i + logits for O_i in occlusions_i]
    gates = show.heat(torch.sigmoid(occlusions[-1]))
    pictures = [gates, warp(S, flows[-1]), draw(flows, occlusions), D]
    return pictures_with_psnr(pictures, ["gates", "warped", "generated", "driving"])


show.playground(
    by_mouse,
    logits=FloatSlider(0.0, min=-6, max=6, step=0.5),
    flow=FloatSlider(1.0, min=-1, max=2, step=0.25),
)

# %% [markdown]
# ## Does the model know what is hidden?
#
# Nobody told it. Occlusion is not a label here; it is a gate that learned from the picture's loss alone. It may paint
# where painting is easier than fetching (a plain backdrop, an edge that the flow gets slightly wrong), and fetch a hidden
# pixel whose wrong colour happens to fit. So compare, but don't expect a copy:

# %%
gates = [torch.sigmoid(resize_flow(O_i, (SIZE, SIZE))) for O_i in output.occlusions]
columns = ["driving", "visible, truth", "coarse", *(f"$O_{i + 1}$" for i in range(len(occlusions_i)))]
show.pictures({"": torch.cat([D, show.heat(visible), *map(show.heat, gates)])}, columns=columns)

# %% [markdown]
# For ten people the model has never seen (six frames each, the first frame as source): how open is the finest gate on
# pixels that the source truly shows, and on those that it doesn't? The further apart the two curves lie, the better it
# knows; where they lie on each other, it doesn't. (The ten are from the **frozen benchmark**: the twenty people of
# `minimodel evaluate`, drawn once with a fixed seed, so that numbers of today and of next year can be compared.)

# %%
people = synthetic.sample_identities(benchmark.BENCHMARK_CLIPS, benchmark.BENCHMARK_SEED)
clips = []
for number in range(10):
    speaking = synthetic.animate_states(125, benchmark.BENCHMARK_SEED + number)[::20]
    clips.append(benchmark.synthetic_clip(str(number), synthetic.Faces(people[number], speaking), SIZE))
wanted = torch.cat([clip.frames[1:] for clip in clips])
shown = torch.cat([clip.truth.visible for clip in clips])

# %%
with torch.no_grad():
    outs = [model.render(model.encode_source(c.frames[:1]), model.encode_driving(c.frames[1:])) for c in clips]
openness = torch.cat([torch.sigmoid(out.occlusions[-1]) for out in outs])
warped, generated = (torch.cat([getattr(out, name) for out in outs]) for name in ("warped_source", "image"))

# %%
bins = torch.linspace(0, 1, 41)
plt.figure(figsize=(5, 2.4))
for name, where in (("truly visible", shown), ("truly hidden", ~shown)):
    plt.hist(openness[where], bins=bins, density=True, histtype="step", label=name)
plt.gca().set(xlabel="finest gate (0 paints, 1 fetches)", yticks=[])
plt.legend()
plt.show()

# %% [markdown]
# As numbers: let the gate say "visible" where it is more open than some threshold. The **balanced accuracy** is the mean of
# two shares, of the visible pixels that it calls visible and of the hidden ones that it calls hidden. 0.5 is guessing, 1 is
# knowing. We take the obvious threshold, one half, and then whichever of ninety-nine does best:


# %%
def shares(threshold):
    return [((openness > threshold) == shown)[where].float().mean().item() for where in (shown, ~shown)]


best = max((k / 100 for k in range(1, 100)), key=lambda threshold: sum(shares(threshold)))
for threshold in (0.5, best):
    # All frames as one tall picture: each pixel counts alike, whatever its frame hides.
    found = metrics.balanced_accuracy(*(x.view(1, 1, -1, SIZE) for x in (openness > threshold, shown))).item()
    assert abs(found - sum(shares(threshold)) / 2) < 1e-5
    right = " and ".join(f"{share:.2f}" for share in shares(threshold))
    print(
        f"threshold {threshold:.2f}: right on {right} of the visible and hidden pixels; balanced accuracy {found:.2f}"
    )

# %% [markdown]
# Read the shares first. Near 1 and near 0 means that the gate says "visible" of nearly everything (0 and 1: of nearly
# nothing), and then the half at the end of the line is the half that any constant gets. What the best threshold adds to
# 0.5 is all that the gate knows about hiding, here with the answers in hand. So do not read such a map as a map of
# what is hidden: it says how the generator divides its work, and the loss never asked for more.
#
# ## Painted against fetched
#
# What does the generator add to warping the image alone, by the *same* flow? Error of the colours, where the source shows
# the pixel and where it doesn't. Squared this time: a cheek in the place of an ear should count more than a shade that is
# slightly off.

# %%
areas = {"visible": shown, "hidden": ~shown}
squares = [(made - wanted).square().mean(1, keepdim=True) for made in (warped, generated)]
errors = {name: [square[where].mean().item() for square in squares] for name, where in areas.items()}
for name, (before, after) in errors.items():
    share = shown.float().mean().item() if name == "visible" else 1 - shown.float().mean().item()
    print(
        f"{name:8} {100 * share:3.0f}% of the pixels, squared error × 1000: {1000 * before:.2f} -> {1000 * after:.2f}"
    )

# %%
ratios = {name: after / before for name, (before, after) in errors.items()}
assert ratios["hidden"] < 1 and min(ratios.values()) > 0.9
plt.figure(figsize=(4, 1.4))
plt.barh(list(ratios), list(ratios.values()))
plt.axvline(1, color="gray", linestyle=":")
plt.xlabel("squared error of generated / of warped only")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# Left of the dotted line the generator gains, and both bars nearly reach it: this small model hardly paints, not even
# where the source hides the pixel. Its picture is nearly the warped source, and as good as its flow. Do its gates keep a
# painter from its work? We know where they should be shut, so let us shut them there, at every scale:

# %%
with torch.no_grad():
    repainted = []
    for clip, out in zip(clips, outs, strict=True):
        features = [f.expand(len(out.image), -1, -1, -1) for f in model.generator.encode(clip.frames[:1])]
        hidden = 1 - clip.truth.visible.float()
        closed = [O_i - 30 * resize_flow(hidden, tuple(O_i.shape[-2:])) for O_i in out.occlusions[1:]]
        repainted.append(model.generator(features, out.flows[1:], closed))
repainted = (torch.cat(repainted) - wanted).square().mean(1, keepdim=True)[~shown].mean().item()
print(f"hidden, squared error × 1000: {1000 * errors['hidden'][0]:.0f} warped, {1000 * repainted:.0f} painted")
assert repainted > 2 * errors["hidden"][0]

# %% [markdown]
# There is no painter. Equation 10 says why: a gate that is open to 0.9 lets a tenth of what rises from below pass, and a
# tenth of its gradient, times a tenth at the next scale. For a long while the warped source is better than anything
# painted, so gates open; once they are open, what lies below them hardly learns to paint, and they have no reason to
# shut. It isn't that the network couldn't: for a try (it isn't in the package) we trained `tiny-tps` for 300 more steps
# with gates that the true visibility shut. The error of hidden places, painted so, fell from 0.25 to 0.13 (the root of
# the mean squared error; 0.11 as warped), outlines of hair became clean, and opened mouths dark inside. Gates shut in random
# places, or where the warped source was seen to be wrong, taught the painter less in that time (0.14 and 0.15), and the
# gates not at all where to shut.

# %% [markdown]
# ## Break it: wrong flows
#
# A generator that can paint could repair a wrong flow, or ignore it. We give it flows that are wrong on purpose and
# leave the gates as they are. Above the warped source, below what the generator makes of the same flow:

# %%
mistakes = {
    "its own": flows_i,
    "the true flow": [resize_flow(true_flow, F_i.shape[-2:]) for F_i in flows_i],
    "no motion": [0 * F_i for F_i in flows_i],
    "doubled": [2 * F_i for F_i in flows_i],
    "opposite": [-F_i for F_i in flows_i],
    "noise added": [F_i + 0.15 * torch.randn_like(F_i) for F_i in flows_i],
}
pictures_with_psnr([warp(S, flows[-1]) for flows in mistakes.values()], list(mistakes))
pictures_with_psnr([draw(flows) for flows in mistakes.values()], [""] * len(mistakes))
plt.show()

# %% [markdown]
# The true flow needn't score best: in hidden places it points at whatever covers them, while a learned flow may point at
# something that merely looks right. And the generator follows the flow it is given. The gates were made together with the
# model's own flow, and know nothing of our mistakes: **at best a gate can say where not to trust the flow, never what
# would have been right.** So better flows, not a better painter, are what moves lips and lids, and this is why the paper
# refines flows. Over all ten people, what does the generator gain by its own flows over the same generator with none?

# %%
still = []
with torch.no_grad():
    for clip, out in zip(clips, outs):
        features = [f.expand(len(out.image), -1, -1, -1) for f in model.generator.encode(clip.frames[:1])]
        image = clip.frames[:1].expand_as(out.image)
        still.append(draw([0 * F_i for F_i in out.flows[1:]], out.occlusions[1:], features, image))
gain = (metrics.psnr(generated, wanted) - metrics.psnr(torch.cat(still), wanted)).mean()
print(f"{gain.item():.1f} dB more with its own flows than with none")
assert gain > 0.3

# %% [markdown]
# ### Which scale does what?
#
# Break the flow of one scale only (set it to zero), the others stay. Coarse scales carry what is painted, the finest what
# is fetched, so the more open its gates are, the less the others count:

# %%
one_wrong = [[0 * F_i if i == k else F_i for i, F_i in enumerate(flows_i)] for k in range(len(flows_i))]
differences = [(draw(flows) - output.image).abs().mean(1, keepdim=True) * 5 for flows in one_wrong]
columns = [f"no flow at {F_i.shape[-1]} pixels" for F_i in flows_i]
rows = {"result": torch.cat([draw(flows) for flows in one_wrong])}
rows["change × 5"] = torch.cat([show.heat(difference) for difference in differences])
show.pictures(rows, columns=columns, side=1.8)

# %% [markdown]
# ## The other two generators
#
# Gates at several scales were the idea of *Thin-Plate Spline Motion Model for Image Animation* (below: **TPSM**, section
# 3.2): one mask cut to all scales would be a compromise, since coarse features are about patterns and fine ones about
# texture. Its inpainting network uses them in another way. What the mask leaves of the warped features is laid *beside*
# what rises from below, and two residual blocks make up what is missing:
#
# $$\text{out}_{i+1} = \big[\,\mathcal{F}_{i+1}(f_{i+1}) \cdot \mathcal{O}_{i+1},\;
# \text{UpBlock}\big(\text{ResBlock}(\text{ResBlock}(\text{out}_i))\big)\big] .$$
#
# So there a mask only takes away, and later layers decide what comes in its place; in Eq. 10 it chooses between two.
# *Sparse to Dense Motion Transfer for Face Image Animation* (below: **S2D**) gates once, and pictures instead of features:
# $T = E\,(1 - M) + R\,M$, with $E$ the warped source and $R$ painted. That is the formula of `blend` above with
# $\mathcal{O} = 1 - M$:

# %%
E, R, M = torch.rand(3, 5, 6), torch.rand(3, 5, 6), torch.rand(5, 6)
assert torch.allclose(E * (1 - M) + R * M, gate_naive(E, R, 1 - M))

# %% [markdown]
# And TPSM's network slowly, with fresh weights. Its gate is ours with nothing to paint on the other side:


# %%
@torch.no_grad()
def inpaint_naive(network, features, flows, occlusions):
    for i, (f_i, F_i, logits) in enumerate(zip(features, flows, occlusions)):
        left = gate_naive(warp(f_i, F_i)[0], torch.zeros_like(f_i[0]), torch.sigmoid(logits)[0, 0])
        if i == 0:
            out = left
        else:
            first, second = network.residual[i - 1]
            risen = network.up[i - 1](second(first(out[None])))[0]
            out = torch.cat([risen, left])  # beside each other: twice the channels
    return torch.sigmoid(network.last(out[None]))[0]


inpainter = InpaintingNetwork(base=16, levels=3, maximum=64, outer_kernel=3, norm="group")
with torch.no_grad():
    features = inpainter.encode(S)
    at_once = inpainter(features, flows_i, occlusions_i)[0]
assert torch.allclose(inpaint_naive(inpainter, features, flows_i, occlusions_i), at_once, atol=1e-4)

# %% [markdown]
# A short lesson, so that it has something to show: the flows and gates of the ten people above, as `tiny` made them, and
# seventy steps in which only this generator learns.

# %%
sources = torch.cat([clip.frames[:1].expand_as(clip.frames[1:]) for clip in clips])
all_flows, all_occlusions = (
    [torch.cat(x) for x in zip(*(getattr(out, n)[1:] for out in outs))] for n in ("flows", "occlusions")
)
optimizer = torch.optim.Adam(inpainter.parameters(), lr=2e-3)
for _ in range(70):
    some = torch.randint(len(sources), (4,))
    made = inpainter(
        inpainter.encode(sources[some]), [F_i[some] for F_i in all_flows], [O_i[some] for O_i in all_occlusions]
    )
    loss = (made - wanted[some]).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# Now the gates by hand, for both. *All shut*: nothing of the source reaches either of them. *All open, coarse flows
# nonsense*: the U-Net throws away what rises from below and doesn't notice; the inpainting network looks at it.


# %%
def inpaint(flows=flows_i, occlusions=occlusions_i, image=S):
    with torch.no_grad():
        return inpainter(inpainter.encode(image), flows, occlusions)


no_gate, every_gate = all_gates(-30.0), all_gates(30.0)
assert torch.allclose(inpaint(occlusions=no_gate), inpaint(occlusions=no_gate, image=stranger), atol=1e-4)
assert not torch.allclose(inpaint(occlusions=every_gate), inpaint(nonsense, every_gate), atol=1e-2)
rows = {
    name: torch.cat([way(), way(occlusions=no_gate), way(occlusions=every_gate), way(nonsense, every_gate)])
    for name, way in (("gated U-Net", draw), ("inpainting", inpaint))
}
show.pictures(rows, columns=["its own gates", "all shut", "all open", "open, coarse nonsense"], side=1.8)

# %% [markdown]
# (Seventy steps against an hour: compare the columns of a row, not the rows.)
#
# S2D's generator has one gate, and it stands at the very end. The painter sees $E$ itself and the flow $F$ that made it,
# five channels. So with the gate shut, so that everything is painted, the picture *does* depend on the source: the gate
# keeps a wrong $E$ out of the result, but not out of the painter's sight. Fresh weights will do to see it:

# %%
painter = ResidualGenerator(base=16, levels=3, maximum=64, blocks=3, outer_kernel=3, norm="group", scales=4)
with torch.no_grad():
    (R, M), (R_stranger, _) = (painter(warp(image, flows_i[-1]), flows_i[-1]) for image in (S, stranger))
assert list(R.shape) == [1, 3, SIZE, SIZE] and list(M.shape) == [1, 1, SIZE, SIZE]
assert not torch.allclose(R, R_stranger, atol=1e-2)

# %% [markdown]
# The first two share their `SourceEncoder`, which runs once a photo: hand its weights to a `GatedUNet`, and what is
# missing are the layers that paint.

# %%
sizes = dict(base=16, levels=3, maximum=64, outer_kernel=3, norm="group")
encoder, unet = SourceEncoder(**sizes), GatedUNet(**sizes)
left_out = unet.load_state_dict(encoder.state_dict(), strict=False).missing_keys
assert {name.split(".")[0] for name in left_out} == {"residual", "up", "last"}
with torch.no_grad():
    assert all(torch.equal(a, b) for a, b in zip(unet.encode(S), encoder.encode(S)))
networks = {"encoder alone": encoder, "gated U-Net": unet, "inpainting": inpainter, "residual": painter}
print(
    {name: sum(x.numel() for x in part.parameters()) // 1000 for name, part in networks.items()}, "thousand parameters"
)

# %% [markdown]
# To lay features beside each other is dear: twice the channels at every scale, and a convolution between them has four times
# the weights. All three generators are in
# [`minimodel/generator.py`](../minimodel/generator.py); they train with `--generator unet`, `inpainting` or `residual`.
#
# ## Exercises
#
# 1. How much does each scale contribute to a pixel? If blocks only enlarged, the weight of scale $i$ would be
#    $\mathcal{O}_i \prod_{j>i} (1 - \mathcal{O}_j)$. Draw these maps. What do they sum to?
# 2. Give the generator the *true* visibility as occlusion (as logits: +4 and −4) with the true flow. Is its PSNR higher
#    than with its own? Explain either result.
# 3. First-order motion models gate once, at the coarsest scale, and decode everything from there. What is lost?
#
# <details><summary>Solutions</summary>
#
# 1. ```python
#    O = [torch.sigmoid(resize_flow(O_i, (SIZE, SIZE))) for O_i in occlusions_i]
#    weights, rest = [], torch.ones_like(O[-1])
#    for O_i in reversed(O):
#        weights.insert(0, O_i * rest)
#        rest = rest * (1 - O_i)
#    show.pictures({"": torch.cat([show.heat(w) for w in [*weights, rest]])})
#    ```
#    They sum to one together with `rest`, the weight of "nothing" (the zeros below Eq. 9). `rest` is why the plain
#    version needed a fourth channel.
# 2. `draw(mistakes["the true flow"], [resize_flow(visible, O_i.shape[-2:]) * 8 - 4 for O_i in occlusions_i])`. It is lower.
#    Where the source shows the pixel the true flow halves the squared error. All that is lost is lost in the hidden fifth of
#    the picture: there the true flow fetches whatever covers the place (a second fringe of hair), and true gates ask a
#    painter that doesn't exist. The last cell has the numbers.
# 3. Every visible detail has to be squeezed through the coarsest features and painted again. Gates at all scales let
#    fine features (the texture of skin, hair, a backdrop) pass unpainted. That is the "multi-scale feature fusion" to
#    which the paper's Table 3 treats all of its baselines.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/generator.py`](../minimodel/generator.py), and how the parts come together in
# [`minimodel/model.py`](../minimodel/model.py). Next:
# [9 · Losses and metrics](09_losses_and_metrics.ipynb), what all of this is trained by, and judged by.

# %%
# Exercise 2 in numbers.
true_gates = [resize_flow(visible, O_i.shape[-2:]) * 8 - 4 for O_i in occlusions_i]
tries = {
    "its own flow and gates": draw(),
    "true flow, its own gates": draw(mistakes["the true flow"]),
    "true flow and gates": draw(mistakes["the true flow"], true_gates),
}
for name, picture in tries.items():
    print(f"{name:25} {metrics.psnr(picture, D).item():.1f} dB")
