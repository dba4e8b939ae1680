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
# # 7 · Lookup and refinement: correct the flow where it is wrong
#
# Notebook 1 ended with a coarse flow: the head is in the right place, lips and lids are not. Notebook 6 made a table of
# evidence: every driving place against every source place. Now a small network uses the one to correct the other
# (**MRFA**, *Learning Motion Refinement for Unsupervised Face Animation*, section 3.2, Equations 4 to 7):
#
# 1. go to where the flow points, and read the scores *around* it (lookup);
# 2. from these scores, the flow and the source's features there, decide how to move on (the updater);
# 3. do this at 1/8 of the picture's size, then at 1/4, 1/2 and in full, always with the same network. (That is for 64
#    pixels. With the paper's 256 it begins at 1/32 and takes six steps.)
#
# We build each step, and then measure, scale by scale, whether it helped.

# %%
import copy
import weakref
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import IntSlider
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimodel import correlation, refinement, show
from minimodel.data import synthetic
from minimodel.evaluation import benchmark, metrics
from minimodel.features import load_features
from minimodel.losses import perceptual_loss, smoothness
from minimodel.model import AnimationModel, StructureCorrelation
from minimodel.warping import identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE = 64

# %% [markdown]
# ## The answer first
#
# One pair, the shipped `tiny-tps` (whose parts are the splines of notebook 2), and the true flow. The last two pictures
# are errors: the distance between the end of the flow's arrow and where it should end, on the visible part of the face.

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)
source, driving = synthetic.Faces(identity, states[8]), synthetic.Faces(identity, moved)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)
FACE = torch.tensor([synthetic.PARTS.index(part) for part in benchmark.FACE])
face = torch.isin(synthetic.parsing(driving, SIZE), FACE)[:, None] & visible.bool()

# %%
model = AnimationModel.load("tiny-tps")
with torch.no_grad():
    state, motion = model.encode_source(S), model.encode_driving(D, move_background=True)
    output = model.render(state, motion)

# %%
scale = true_flow.norm(dim=1).max().item()
full = (SIZE, SIZE)


def colours(flow):
    return show.flow_colors(resize_flow(flow, full), largest=scale)


def error_map(flow, largest=4.0):
    """Pixels of error as brightness; black where it isn't counted."""
    error = ((resize_flow(flow, full) - true_flow) * SIZE / 2).norm(dim=1, keepdim=True)
    return show.heat(error, largest=largest) * face


# %%
first, last = output.flows[0], output.flows[-1]
titles = ["source", "driving", "true flow", "coarse", "refined", "coarse, error", "refined, error"]
pictures = [S, D, colours(true_flow), colours(first), colours(last), error_map(first), error_map(last)]
show.pictures({"": torch.cat(pictures)}, columns=titles)

# %% [markdown]
# ## Lookup
#
# The flow sends driving place $z$ to the source position $z + F(z)$; in pixels of the volume, call it $x$. From each
# level $l$ of the pyramid we read $(2r+1)^2$ scores around it, at offsets $d$ counted in pixels *of that level*:
#
# $$C_i(z)[l, d] = \mathbf{C}^l\Big(z,\; \frac{x + 1/2}{2^l} - \frac12 + d\Big), \qquad d \in \{-r, \dots, r\}^2 .$$
#
# $\mathbf{C}^l$ is the volume at level $l$, and $C_i$ what step $i$ reads from all of them. The halves are there because
# a pixel is a square (notebook 1): the centre of the first pixel is at 0, its edge at $-1/2$, and it is the *edge* that all
# levels share. Positions between pixels are read bilinearly; outside, all is 0.


# %%
def read(row, x, y):
    """The bilinear value at (x, y) of a row of the volume, given as lists."""
    value = 0.0
    for i in (int(y // 1), int(y // 1) + 1):
        for j in (int(x // 1), int(x // 1) + 1):
            if 0 <= i < len(row) and 0 <= j < len(row[0]):
                value += (1 - abs(x - j)) * (1 - abs(y - i)) * row[i][j]
    return value


# %%
def lookup_naive(volume, flow, radius, levels):
    """One driving place, one level and one offset at a time."""
    h, w, height, width = volume.shape
    positions = to_pixels((identity_grid(h, w, dtype=flow.dtype) + flow).permute(1, 2, 0), (height, width)).tolist()
    values = torch.zeros(h, w, levels * (2 * radius + 1) ** 2, dtype=volume.dtype)
    for i in range(h):
        for j in range(w):
            found, (x, y) = [], positions[i][j]
            for level in range(levels):
                row = F.avg_pool2d(volume[i, j][None], 2**level)[0].tolist()
                for dy in range(-radius, radius + 1):
                    for dx in range(-radius, radius + 1):
                        found.append(read(row, (x + 0.5) / 2**level - 0.5 + dx, (y + 0.5) / 2**level - 0.5 + dy))
            values[i, j] = torch.tensor(found, dtype=volume.dtype)
    return values.permute(2, 0, 1)


# %% [markdown]
# The volume has one resolution, flows will have several. A coarser flow: average the volume's driving side down to it. A
# finer one: look up at the volume's resolution, and enlarge what was found.


# %%
def lookup_any_size(volume, flow, radius, levels):
    size, shared = flow.shape[-2:], tuple(map(min, flow.shape[-2:], volume.shape[:2]))
    volume = F.interpolate(volume.permute(2, 3, 0, 1), shared, mode="area").permute(2, 3, 0, 1)
    found = lookup_naive(volume, resize_flow(flow[None], shared)[0], radius, levels)
    return found if shared == tuple(size) else F.interpolate(found[None], tuple(size), mode="bilinear")[0]


# %% [markdown]
# The package has it twice: `lookup_volume` reads the volume, `lookup` never makes one, but goes to the features $g_D$ and
# $g_S$ of driving frame and source (notebook 6) whose products it holds. All three agree in float64, at flows coarser
# than, equal to and finer than the volume, for random flows of which many leave the picture:

# %%
g_D, g_S = torch.randn(2, 1, 5, 8, 8, dtype=torch.float64)
C = correlation.volume(g_D, g_S)
for side in (2, 4, 8, 16):
    flow = 0.8 * torch.randn(1, 2, side, side, dtype=torch.float64)
    assert ((identity_grid(side, side) + flow).abs() > 1).any()  # some arrows end outside
    naive = lookup_any_size(C[0], flow[0], radius=2, levels=3)
    from_volume = correlation.lookup_volume(C, flow, radius=2, levels=3)
    without = correlation.lookup(g_D, g_S, flow, radius=2, levels=3)
    assert torch.allclose(from_volume[0], naive, atol=1e-10)
    assert torch.allclose(without[0], naive, atol=1e-10)
print("shape of the last answer: (batch, levels x patch, h, w) =", list(without.shape))

# %% [markdown]
# ## Why the volume isn't needed
#
# Write down what one score of the answer is. Pooling is a weighted sum over source places, and so is bilinear reading;
# put together, for some weights $w_{z'}$ that depend only on *where* we read,
#
# $$\sum_{z'} w_{z'}\, \mathbf{C}(z, z') = \sum_{z'} w_{z'} \frac{g_D(z) \cdot g_S(z')}{\sqrt C}
# = \frac{g_D(z)}{\sqrt C} \cdot \underbrace{\sum_{z'} w_{z'}\, g_S(z')}_{\text{pool and read the features}} .$$
#
# The sum and the dot product change places because a dot product is linear in its second factor. The same holds for
# averaging the driving side, in its first. So: pool the *features*, read the *features* at the $(2r+1)^2$ positions, and
# multiply last. By hand, for one place:

# %%
flow = 0.3 * torch.randn(1, 2, 8, 8, dtype=torch.float64)
i, j, level = 3, 5, 1
x, y = ((to_pixels((identity_grid(8, 8) + flow[0])[:, i, j], (8, 8)) + 0.5) / 2**level - 0.5).tolist()
features = F.avg_pool2d(g_S, 2**level)[0].tolist()  # five small pictures
read_features = torch.tensor([read(channel, x, y) for channel in features], dtype=torch.float64)
score = g_D[0, :, i, j] @ read_features / 5**0.5

centre = correlation.lookup_volume(C, flow, radius=0, levels=2)[0, level, i, j]
assert torch.allclose(score, centre)

# %% [markdown]
# What would *not* survive: anything non-linear between product and reading. A softmax over the row (Eq. 8) needs the
# whole row. A ReLU or max pooling needs only the scores near the place, but the scores themselves, not products with
# features that were pooled or read before. (`lookup` multiplies at the whole pixels around the patch and interpolates the
# scores: the same numbers, in fewer readings.)
#
# ### What that saves
#
# To count memory exactly and without filling a machine, we trace. `Memory` adds up every tensor that is born and takes
# it off again when it dies; `FakeTensorMode` runs the code on shapes alone, so that 1024 pixels cost nothing.


# %%
class Memory(TorchDispatchMode):
    """Bytes of all tensors made inside and still alive, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.held, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made) if isinstance(x, torch.Tensor)):
            if id(storage) not in self.known:
                self.count(id(storage), storage.nbytes())
                weakref.finalize(storage, self.count, id(storage), -storage.nbytes())
        return made

    def count(self, number, size):
        self.known ^= {number}  # in when born, out when it dies
        self.held += size
        self.peak = max(self.peak, self.held)


# %%
def peak_bytes(side, *, hold_volume):
    """All six lookups of the `paper` preset for one picture; its features have a quarter of the side, 256 channels."""
    g_D, g_S = torch.empty(2, 1, 256, side // 4, side // 4)
    flows = [torch.zeros(1, 2, side // k, side // k) for k in (32, 16, 8, 4, 2, 1)]
    with Memory() as memory:
        read_at = correlation.Correlation(g_D, g_S, radius=3, levels=2, hold_volume=hold_volume)
        for flow in flows:
            read_at(flow)
    return memory.peak


# %% [markdown]
# First a check that shapes alone tell the truth: at 64 pixels, traced with real numbers and without.

# %%
for hold_volume in (True, False):
    with FakeTensorMode():
        on_shapes = peak_bytes(64, hold_volume=hold_volume)
    assert on_shapes == peak_bytes(64, hold_volume=hold_volume)

# %%
# NBVAL_IGNORE_OUTPUT
# Another version of torch may cut its work into other pieces.
sides = [64, 128, 256, 512, 1024]
with FakeTensorMode():
    held, free = ([peak_bytes(side, hold_volume=hold) for side in sides] for hold in (True, False))
print("image   with the volume (MB)   without (MB)")
for side, a, b in zip(sides, held, free):
    print(f"{side:5}   {a / 1e6:20.0f}   {b / 1e6:12.0f}")

# %%
assert held[-1] > 17e9 and free[-1] < 1e9 and free[-2] < 300e6
assert held[0] < free[0] and held[1] < free[1]
plt.figure(figsize=(5, 2.6))
plt.loglog(sides, held, marker="o", label="with the volume")
plt.loglog(sides, free, marker="o", label="without")
plt.gca().set(xlabel="image side (pixels)", ylabel="peak bytes of the lookups", xticks=sides, xticklabels=sides)
plt.minorticks_off()
plt.legend()
plt.show()

# %% [markdown]
# Up to about 256 pixels the volume is the *smaller* of the two: reading features costs $(2r+2)^2 \times 256$ numbers for each
# place, reading scores only $(2r+2)^2$. So the package holds the volume while it is small and does without it from there
# on; `Correlation(hold_volume=...)` chooses the way, never the numbers. `lookup` works on 1024 places at a time, which
# keeps its curve low.
#
# ## A patch is a compass
#
# Why read a *patch*, when the flow already says where to look? Because the hill of scores is off centre when the flow
# is wrong, and *which way* it is off is the correction. With the perfect features of notebook 6 one can see it. The
# flow here is zero, and we look at a driving place's patch:


# %%
def fourier(places, peak=25.0, width=0.2, reach=8):
    """Features that are alike only in nearby places (notebook 6)."""
    steps = torch.arange(-reach, reach + 1) * torch.pi / 2
    waves = torch.cartesian_prod(steps, steps)[(2 * reach + 1) ** 2 // 2 :]
    strength = torch.exp(-(width * waves).square().sum(1) / 2)
    phase = torch.einsum("bchw, kc -> bkhw", places, waves)
    features = torch.cat([phase.cos(), phase.sin()], 1) * (strength / strength.sum()).sqrt().repeat(2)[:, None, None]
    return features * peak**0.5 * features.shape[1] ** 0.25


N = 32
grid, truth = identity_grid(N, N)[None], resize_flow(true_flow, (N, N))
perfect = fourier(grid + truth), fourier(grid)
small_face = resize_flow(face.float(), (N, N)) > 0.99

# %%
place = (16, 13)  # row and column of 32
patches = correlation.lookup(*perfect, torch.zeros_like(truth), radius=3, levels=2)[0, :, place[0], place[1]]
should = truth[0, :, place[0], place[1]] * N / 2  # in pixels: where the hill should be
for level, (axis, patch) in enumerate(zip(plt.subplots(1, 2, figsize=(5, 2.4))[1], patches.view(2, 7, 7))):
    axis.imshow(patch, extent=(-3.5, 3.5, 3.5, -3.5))
    axis.scatter(0, 0, marker="x", color="tab:red")
    axis.scatter(*(should / 2**level), facecolors="none", edgecolors="white", s=80)
    axis.set_title(f"level {level}: 7 × 7", fontsize=9)
plt.show()

# %% [markdown]
# Cross: where the flow points. Circle: where it should. (The axes count pixels of the level.) An updater without any
# weights follows the compass: take the mean offset under a softmax of the patch (Eq. 8, but *inside the patch*), move
# there, and look again.


# %%
def follow(features, flow, *, radius, level, steps):
    """The error on the face before and after each step."""
    offsets = torch.arange(-radius, radius + 1.0)
    dx, dy = offsets.repeat(2 * radius + 1), offsets.repeat_interleave(2 * radius + 1)
    errors = [metrics.flow_error(flow, truth, small_face).item()]
    for _ in range(steps):
        found = correlation.lookup(*features, flow, radius=radius, levels=level + 1).chunk(level + 1, dim=1)[level]
        weights = found.softmax(1)
        move = torch.stack([torch.einsum("bkhw, k -> bhw", weights, d) for d in (dx, dy)], 1)
        flow = flow + move * 2**level * 2 / N
        errors.append(metrics.flow_error(flow, truth, small_face).item())
    return errors, flow


errors, _ = follow(perfect, torch.zeros_like(truth), radius=3, level=0, steps=4)
assert errors[1] < errors[0] and errors[-1] < 0.05

# %% [markdown]
# ### Break it: out of reach
#
# This compass works only within sight of the hill. With a smaller patch it takes more steps; begin farther away than the
# patch reaches (here 12 pixels of 32 to the side), and there is hardly a hill in it to follow. A coarser level sees $2^l$
# times as far, but mostly in steps of its own pixels: start there, and finish on level 0.

# %%
far = truth + torch.tensor([12.0, 0.0]).view(1, 2, 1, 1) * 2 / N
curves = {
    "no motion, r = 3": errors,
    "no motion, r = 1": follow(perfect, torch.zeros_like(truth), radius=1, level=0, steps=4)[0],
    "12 pixels off, level 0": follow(perfect, far, radius=3, level=0, steps=4)[0],
}
coarse_to_fine, better = follow(perfect, far, radius=3, level=2, steps=2)
curves["12 off, level 2 then 0"] = coarse_to_fine + follow(perfect, better, radius=3, level=0, steps=2)[0][1:]
assert curves["no motion, r = 1"][1] > errors[1]
assert curves["12 pixels off, level 0"][-1] > 8 and curves["12 off, level 2 then 0"][-1] < 0.5

# %%
plt.figure(figsize=(5, 2.6))
for name, curve in curves.items():
    plt.plot(curve, marker=".", label=name)
plt.gca().set(xlabel="steps", ylabel="error (pixels of 32)", xticks=range(5))
plt.legend(fontsize=7)
plt.show()

# %% [markdown]
# The paper needs little reach: the prior's flow is roughly right, and one coarser level doubles what a patch spans. But
# real features aren't perfect, so instead of a softmax a small network reads the patch.
#
# ## The updater
#
# One step of refinement (Eq. 4): from the current flow, the patch and the source's features warped by the flow, predict
# a residual flow and a residual of the occlusion,
#
# $$d\mathcal{F}_i,\; d\mathcal{O}_i = \psi\big(\mathcal{F}^{\uparrow}_{i-1},\; C_i,\; \mathcal{F}^{\uparrow}_{i-1}(f_i)\big). \tag{4}$$
#
# $\psi$ is the updater, $f_i$ the source's features of scale $i$, which the flow warps, and $\uparrow$ enlarges the last
# scale's flow to this one. Its parts and what each makes of its input, at the finest scale:

# %%
shapes = []


def note(name):
    return lambda module, inputs, made: shapes.append((name, list(inputs[0].shape[1:]), list(made.shape[1:])))


parts = {name: m for name, m in model.refiner.updater.named_children() if m is not None}
hooks = [module.register_forward_hook(note(name)) for name, module in parts.items()]
with torch.no_grad():
    model.render(state, motion)
for hook in hooks:
    hook.remove()
for name, inputs, made in shapes[-len(parts) :]:
    print(f"{name:>15}: {inputs!s:>14} -> {made}")

# %% [markdown]
# - `correlation_in` and `correlation` digest the two patches, `flow` the flow itself. Together they become the `motion`
#   feature.
# - `context` is the source's own features, seen through the current flow: where lips and lids *are* in the source.
# - `flow_head` and `occlusion_head` read all of it, and the flow once more.
#
# Three decisions are easy to miss. **One:** the same weights serve all scales, so flows inside are in pixels of the
# current scale: its neighbours are one unit apart, and a step of about a pixel is about 1, at every scale. In normalised
# units it would halve from each scale to the next. (The patch alone stays in pixels of the volume.) **Two:** the last
# layers begin as zeros. A fresh refiner changes nothing, and training starts from exactly the coarse flow:

# %%
fresh = refinement.FlowUpdater(98, refinement.UpdaterWidths())
flow_step, occlusion_step = fresh(torch.randn(1, 2, 16, 16), torch.randn(1, 98, 16, 16), torch.randn(1, 192, 16, 16))
assert (flow_step == 0).all() and (occlusion_step == 0).all()

# %% [markdown]
# **Three:** above the volume's resolution the scores must be enlarged (98 channels of them), and `correlation_in`, a
# 1 × 1 convolution, comes next. One mixes channels, the other pixels: they can change places, and the convolution then
# works on a quarter of the pixels or fewer.

# %%
scores, mix = torch.randn(1, 98, 8, 8), fresh.correlation_in
assert torch.allclose(mix(resize_flow(scores, (32, 32))), resize_flow(mix(scores), (32, 32)), atol=1e-5)

# %% [markdown]
# ## From Equation 5 to Equation 7
#
# The obvious loop enlarges the flow and adds to it:
#
# $$\mathcal{F}_i = \mathcal{F}^{\uparrow}_{i-1} + d\mathcal{F}_i, \qquad
# \mathcal{F}^{\uparrow}_0 = \text{Downsample}(\mathcal{F}_0). \tag{5, 6}$$
#
# An arrow up means: enlarged to the next scale. But the first scale is only 8 pixels wide. $\mathcal{F}_0$ has been
# through this bottleneck before anything is added, and whatever it knew in detail is gone. Take the best $\mathcal{F}_0$
# there is, the true flow at 32 pixels, and send it through, adding nothing:

# %%
coarse = resize_flow(true_flow, (32, 32))
equation_5 = resize_flow(coarse, (8, 8))
for side in (16, 32, 64):
    equation_5 = resize_flow(equation_5, (side, side))  # + dF_i, here 0
equation_7 = resize_flow(coarse, (64, 64))  # + the sum of all residuals, here 0
lost, kept = (metrics.flow_error(flow, true_flow, face).item() for flow in (equation_5, equation_7))
print(f"error on the face in pixels: Eq. 5 {lost:.1f}, Eq. 7 {kept:.1f}")
assert lost > 2 * kept

# %%
columns = ["true flow", "through 8 × 8 (Eq. 5)", "resized afresh (Eq. 7)", "Eq. 5, error", "Eq. 7, error"]
pictures = [colours(true_flow), colours(equation_5), colours(equation_7)]
pictures += [error_map(equation_5, 2.0), error_map(equation_7, 2.0)]
show.pictures({"": torch.cat(pictures)}, columns=columns, side=1.8)

# %% [markdown]
# So the paper never lets $\mathcal{F}_0$ pass the bottleneck. At every scale it is resized afresh, and only the
# *residuals* are enlarged and summed:
#
# $$\mathcal{F}_i = \text{Resize}(\mathcal{F}_0) + d\mathcal{F}_i + d\mathcal{F}^{\uparrow}_{i-1}
# + d\mathcal{F}^{\uparrow\uparrow}_{i-2} + \dots \tag{7}$$
#
# The occlusion goes the same way. As a loop that keeps every residual, literally:


# %%
def refine_naive(refiner, coarse, correlation, context, sizes):
    flow_steps, occlusion_steps, flows, entering = [], [], [], []
    for scale, size in enumerate(sizes):
        flow_steps = [resize_flow(step, size) for step in flow_steps]  # one more arrow up for each
        occlusion_steps = [resize_flow(step, size) for step in occlusion_steps]
        flow = resize_flow(coarse.flow, size) + sum(flow_steps)
        entering.append(flow)
        step, occlusion_step = refiner.updater(flow, correlation(flow), warp(context[scale], flow))  # Eq. 4
        flow_steps.append(step)
        occlusion_steps.append(occlusion_step)
        flows.append(flow + step)
    occlusion = resize_flow(coarse.occlusion, sizes[-1]) + sum(occlusion_steps)
    return flows, occlusion, entering


# %% [markdown]
# What it reads from is `output.correlation`: both encoders are in the model's `StructureCorrelation`, which meets the source's
# structure, computed once, with the driving frame's points.

# %%
assert isinstance(model.structure, StructureCorrelation)
with torch.no_grad():
    C = model.structure(state.structure, model.prior.structure_points(motion)).volume()
assert torch.equal(C, output.correlation.volume())

# %%
sizes = [tuple(flow.shape[-2:]) for flow in output.flows[1:]]
with torch.no_grad():
    flows, occlusion, entering = refine_naive(model.refiner, output.coarse, output.correlation, state.context, sizes)
for by_hand, packaged in zip(flows, output.flows[1:]):
    assert torch.allclose(by_hand, packaged, atol=1e-4)
assert torch.allclose(occlusion, output.occlusions[-1], atol=1e-3)
print("scales:", sizes)

# %% [markdown]
# The package's `MotionRefiner` is this loop with one running sum in place of the lists. A fresh one, whose last layers are
# still zeros, gives back $\mathcal{F}_0$, resized afresh to every scale:

# %%
fresh = refinement.MotionRefiner(model.generator.feature_channels, radius=3, levels=2, iterations=len(sizes))
with torch.no_grad():
    unmoved, _ = fresh(output.coarse, output.correlation, fresh.project(state.features), sizes)
assert all(torch.equal(F_i, resize_flow(output.coarse.flow, size)) for F_i, size in zip(unmoved, sizes))

# %% [markdown]
# ## The shipped model, scale by scale
#
# Every flow as it is, enlarged to 64 pixels for the eye, above its error map (bright: 4 pixels or more).

# %%
names = ["true flow", "$F_0$ (coarse)", *(f"$F_{i + 1}$, {size[0]} pixels" for i, size in enumerate(sizes))]
every = [true_flow, *output.flows]
rows = {"flow": torch.cat([colours(F_i) for F_i in every]), "error": torch.cat([error_map(F_i) for F_i in every])}
show.pictures(rows, columns=names)

# %% [markdown]
# One pair proves nothing. So: twenty people that the model has never seen, six frames each, the first frame as source;
# the flow of every stage against the true flow, on the visible face. They are the **frozen benchmark**: drawn once with a
# fixed seed and never trained on, so that today's numbers and next year's can be compared.

# %%
people = synthetic.sample_identities(benchmark.BENCHMARK_CLIPS, benchmark.BENCHMARK_SEED)
clips = []
for number in range(benchmark.BENCHMARK_CLIPS):
    speaking = synthetic.animate_states(125, benchmark.BENCHMARK_SEED + number)[::20]
    clips.append(benchmark.synthetic_clip(str(number), synthetic.Faces(people[number], speaking), SIZE))

# %%
regions = ("face", "mouth", "eyes")


def region_errors(clip, flow):
    """Pixels of error at full size: one number for each region, over its visible part."""
    truth, wheres = clip.truth, [clip.truth.regions[name] & clip.truth.visible for name in regions]
    flow = resize_flow(flow, full)
    return torch.stack([metrics.flow_error(flow, truth.flow, where).nanmean() for where in wheres])


# %%
@torch.no_grad()
def stage_errors(clip, render=model.render):
    """(regions, 3, stages): every stage as it is, stopped after each stage, and the true flow at each stage's size."""
    flows = render(
        model.encode_source(clip.frames[:1]), model.encode_driving(clip.frames[1:], move_background=True)
    ).flows
    rows = [flows, [], []]
    for F_i in flows:
        residual = F_i - resize_flow(flows[0], F_i.shape[-2:])
        rows[1].append(resize_flow(flows[0], full) + resize_flow(residual, full))
        rows[2].append(resize_flow(clip.truth.flow, F_i.shape[-2:]))
    rows = [torch.stack([region_errors(clip, flow) for flow in row], 1) for row in rows]
    return torch.stack(rows, 1)


errors = torch.stack([stage_errors(clip) for clip in clips])  # clips x regions x 3 x stages
of_face = errors[:, 0]
mean = of_face.mean(0)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
axes[0].plot(of_face[:, 0].T, color="tab:blue", alpha=0.4, linewidth=1)
axes[0].plot(mean[0], color="black", marker="o")
axes[0].set(title="each person, and the mean", ylabel="flow error (pixels)", ylim=(0, None))
for name, marker, line in zip(("as it is", "stopped here", "true flow at this size"), "o^s", mean):
    axes[1].plot(line, marker=marker, label=name)
axes[1].set_title("means")
axes[1].legend(fontsize=8)
for axis in axes:
    axis.set_xticks(range(len(mean[0])), ["$F_0$", *(f"$F_{i + 1}$\n{size[0]}" for i, size in enumerate(sizes))])
plt.show()

# %% [markdown]
# How to read the right half, in which all three lines are means. The error of the flow *as it is* (blue) needn't fall at
# every step, and the green line says why. It isn't a model at all: it is the **true** flow, brought to each scale's size and
# back. Eight by eight arrows can't describe a face, however right they are, so $F_1$ as it is may be worse than $F_0$, which
# has 32 × 32.

# %%
limit = mean[2]
assert limit[1] > limit[2] > limit[3] > limit[4]

# %% [markdown]
# The orange line is fair to the early scales. It stops the loop after scale $i$ and does what Eq. 7 would do from there
# on: $\mathcal{F}_0$ resized afresh to the full size, plus the residuals so far, enlarged. (Where a model has fewer
# iterations than scales, `MotionRefiner` does exactly this.) Now each scale's own contribution is the drop from one
# point to the next. Nobody asked for such drops: the loss looks at the generated picture and, in two steps of
# three, at the source as the first and the last flow warp it, never at the scales between; and the generator also uses the
# flows of the coarser scales for its coarser features.
#
# If refinement does what the paper says, the error falls from the first point to the last. On the face and on the mouth, the
# least rigid part, it does, by one or two per cent; on the eyes it rises by two (the bars under *Where does it help?* say
# more).

# %%
assert mean[0, -1] < mean[0, 0]
mouth_errors = errors[:, 1, 0].nanmean(0)
assert mouth_errors[-1] < mouth_errors[0]

# %% [markdown]
# Why by so little? All that either stage knows of the driving frame are points and how the wall moved, and the coarse
# flow, which weighs all parts anew at every pixel, already makes the most of them. Where it is worse, refinement gains
# more: on the mouth, and early in training, when it takes a tenth off the error.
# [Notebook 11](11_train_a_full_model.ipynb) has models that were trained alike with refinement and without.
#
# And it doesn't come by itself. Nobody ever asks for a true flow; what is asked for is a picture that looks like the
# driving frame, before the generator and behind it. `tiny`'s refinement was trained for that alone. That of `tiny-tps` was asked at the end for something more:
# that neighbouring arrows of the residual differ little (`losses.smoothness`). (Before, these splines lost, too: 0.68
# pixels became 0.69, [notebook 11](11_train_a_full_model.ipynb).) So let us stop both loops after each scale, and measure
# the flow, and the picture, with the perceptual loss:


# %%
@torch.no_grad()
def stopped_after(model, scales):
    """Refine only so many scales; -> pixels of the flow's error on the face, and the picture's perceptual loss."""
    stopped, results = copy.deepcopy(model), []
    stopped.refiner.iterations = scales
    for clip in clips:
        made = stopped.render(
            stopped.encode_source(clip.frames[:1]), stopped.encode_driving(clip.frames[1:], move_background=True)
        )
        cost = perceptual_loss(features, made.image, clip.frames[1:])
        results.append(torch.stack([region_errors(clip, made.flows[-1])[0], cost]))
    return torch.stack(results).mean(0)


features = load_features()
curves = {}
for name, trained in {"tiny-tps: smooth": model, "tiny: as it likes": AnimationModel.load("tiny")}.items():
    curves[name] = torch.stack([stopped_after(trained, scales) for scales in range(len(sizes) + 1)]).T
(smooth_error, smooth_cost), (free_error, free_cost) = curves.values()
assert smooth_error[-1] < smooth_error[0] and smooth_cost[-1] == smooth_cost.min()
assert free_error[-1] > free_error[0] and free_cost[-1] == free_cost.min()

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for row, (axis, title) in enumerate(zip(axes, ("flow error on the face (pixels)", "perceptual loss of the picture"))):
    for name, curve in curves.items():
        axis.plot(curve[row], marker="o", label=name)
    axis.set(title=title, xlabel="scales refined", xticks=range(len(sizes) + 1))
axes[1].legend(fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# The last step of `tiny` makes the picture better and the flow worse. Nothing at 64 pixels says anything about the driving
# frame that wasn't known at 32, so what is left to win there isn't motion: the loss is paid for edges and textures in the
# right style, and bending the flow by half a pixel can buy some, true or not ([notebook 9](09_losses_and_metrics.ipynb)
# finds that the true flow itself costs more than the model's). Without ground truth one would see the left curve nowhere,
# and the right one would look like success. Where arrows have to agree with their neighbours, such purchases are too
# dear, and what stays is motion. The paper's Table 6, which refines up to $H/8$, $H/4$, $H/2$ and $H$, gains nothing from
# the finest scales either.
#
# ### What could any refinement reach?
#
# Let us cheat. For one frame of each person we don't ask a network for the residual, but search it, with the driving frame
# before our eyes: one arrow for each pixel, pushed by the loss until the warped source looks like the driving frame. A
# second term, $\lambda$ times the mean difference of neighbouring arrows in pixels, keeps the residual smooth.

# %%
S_all, D_all = (torch.stack([clip.frames[number] for clip in clips]) for number in (0, 3))
true_all = torch.stack([clip.truth.flow[2] for clip in clips])
face_all = torch.stack([(clip.truth.regions["face"] & clip.truth.visible)[2] for clip in clips])
with torch.no_grad():
    F_0 = resize_flow(
        model.move(model.encode_source(S_all), model.encode_driving(D_all, move_background=True)).flows[0], full
    )


# %%
def search(smooth, steps=100):
    """The flow that a residual of its own for each pixel leads to, if the picture is all that counts."""
    residual = torch.zeros_like(F_0).requires_grad_()
    optimizer = torch.optim.Adam([residual], lr=3e-3)
    for _ in range(steps):
        loss = F.l1_loss(warp(S_all, F_0 + residual), D_all) + smooth * smoothness(residual)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (F_0 + residual).detach()


def judge(flow):
    return metrics.flow_error(flow, true_all, face_all).nanmean(), metrics.psnr(warp(S_all, flow), D_all).mean()


found = {"coarse": judge(F_0)} | {f"λ = {smooth:g}": judge(search(smooth)) for smooth in (0.0, 0.03, 0.1, 0.3)}
off, quality = torch.tensor(list(found.values())).T
assert off[1] > 1.2 * off[0] and quality[1] > quality[0] + 8  # without a bridle
assert 0.65 < off.min() / off[0] < 0.9

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2), sharey=True)
titles = ("flow error on the face (pixels)", "warped source (dB)")
for axis, values, title, low in zip(axes, (off, quality), titles, (0, 20)):
    axis.barh(list(found), values, color=["gray", *["tab:blue"] * 4])
    axis.set(title=title, xlim=(low, None))
axes[0].invert_yaxis()
plt.tight_layout()
plt.show()

# %% [markdown]
# Without a bridle the search makes nearly any picture from any source, by arrows that are more wrong than before: on a
# cheek of one colour every arrow to the cheek looks right. That is what the loss asks for, and a network that could answer
# pixel by pixel would be taught the same. Bridled just right, the search gets a fifth closer to the truth than
# $\mathcal{F}_0$, with the driving frame in sight, which a refiner never has. So even this search, whose $\lambda$ we picked by
# looking at the truth, wins a fifth. That is no limit, since a network may know more than colours; but it says how little
# the picture's loss can teach once the prior is this good.
#
# ### Where does it help?
#
# The paper promises most for lips and eyes, without measuring them apart. Here lips gain, and eyes lose. What the error of each region changes by, up to
# the last scale but one, and up to the last:

# %%
bars = errors[:, :, 1].nanmean(0)  # regions x stages, stopped there
plt.figure(figsize=(5, 2.8))
for place, stage, label in ((-0.15, -2, f"up to {sizes[-2][0]} pixels"), (0.15, -1, "up to 64")):
    drawn = plt.bar([k + place for k in range(3)], bars[:, stage] - bars[:, 0], 0.3, label=label)
    plt.bar_label(drawn, fmt="%.3f", fontsize=7)
plt.axhline(0, color="black", linewidth=0.8)
plt.margins(y=0.12)
plt.xticks(range(3), [f"{name}\n{error:.2f} → {last:.2f}" for name, (error, *_, last) in zip(regions, bars.tolist())])
plt.ylabel("change of the error (pixels)")
plt.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# ### Look through the updater's eyes
#
# For one driving place: where the flow points *before* each scale's step, the patch that the updater reads there, and
# where it should point. Dot: the place itself; cross: where the flow sends it; circle: the truth (missing if it lies
# outside the patch). A patch spans 7 pixels of its level. Don't look for a hill under the circle: learned features needn't
# make hills. At this place the scores have a *hollow* near the circle and rise towards the rim. What a pattern means the
# updater has learned, and that is why a network reads the patch.


# %%
def patch_at(scale, row, column):
    """The (levels, 7, 7) scores around one place, and how far off the flow is in pixels of the volume."""
    with torch.no_grad():
        found = output.correlation(entering[scale])
    i, j = (v * found.shape[-1] // SIZE for v in (row, column))
    radius = model.config.radius
    flow = resize_flow(entering[scale], found.shape[-2:])[0, :, i, j]
    volume_size = output.correlation.source_features.shape[-1]
    off = (resize_flow(true_flow, found.shape[-2:])[0, :, i, j] - flow) * volume_size / 2
    return found[0, :, i, j].view(-1, 2 * radius + 1, 2 * radius + 1), off


# %%
def draw_patches(axes, patches, off):
    edge = model.config.radius + 0.5
    for level, (axis, patch) in enumerate(zip(axes, patches)):
        axis.imshow(patch, extent=(-edge, edge, edge, -edge))
        axis.scatter(0, 0, marker="x", color="tab:red")
        axis.scatter(*(off / 2**level), facecolors="none", edgecolors="white", s=60)
        axis.set(xlim=(-edge, edge), ylim=(edge, -edge), xticks=[], yticks=[])


# %%
def draw_arrow(axis, flow, row, column, window=10):
    """The source around a place (dot), where the flow sends it (cross), and where it should (circle)."""
    axis.imshow(S[0].permute(1, 2, 0))
    here = identity_grid(SIZE, SIZE)[:, row, column]
    x, y = to_pixels(here + resize_flow(flow, full)[0, :, row, column], full).tolist()
    axis.plot([column, x], [row, y], color="tab:red", linewidth=1)
    axis.scatter(column, row, color="tab:red", s=8)
    axis.scatter(x, y, marker="x", color="tab:red")
    axis.scatter(*to_pixels(here + true_flow[0, :, row, column], full), facecolors="none", edgecolors="white", s=60)
    axis.set(xlim=(column - window, column + window), ylim=(row + window, row - window), xticks=[], yticks=[])


# %%
mouth = synthetic.landmarks(driving, SIZE)[0, 54].round().long().flip(0).tolist()
figure, axes = plt.subplots(3, len(sizes), figsize=(1.7 * len(sizes), 5))
for number, column in enumerate(axes.T):
    draw_arrow(column[0], entering[number], *mouth)
    draw_patches(column[1:], *patch_at(number, *mouth))
    column[0].set_title(f"before step {number + 1}", fontsize=9)
for axis, name in zip(axes[:, 0], ("source", "level 0", "level 1")):
    axis.set_ylabel(name)
plt.show()

# %% [markdown]
# In a running notebook, the same for any place and any scale:


# %%
def look(step=1, row=mouth[0], column=mouth[1]):
    figure, axes = plt.subplots(1, 6, figsize=(11, 2))
    axes[0].imshow(D[0].permute(1, 2, 0))
    axes[0].scatter(column, row, color="tab:red", s=8)
    draw_arrow(axes[1], entering[step - 1], row, column)
    draw_patches(axes[2:4], *patch_at(step - 1, row, column))
    for axis, flow in zip(axes[4:], (entering[step - 1], output.flows[step])):
        axis.imshow(colours(flow)[0].permute(1, 2, 0))
    for axis, name in zip(axes, ("driving", "source", "level 0", "level 1", "flow before", "flow after")):
        axis.set_title(name, fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


# %%
row, column = (IntSlider(v, min=0, max=SIZE - 1) for v in mouth)
show.playground(look, step=IntSlider(1, min=1, max=len(sizes)), row=row, column=column)

# %% [markdown]
# ## Break it: take the evidence away
#
# How much does the updater lean on each of its inputs? Silence one and measure again: all scores zero, or all warped
# source features zero. The paper's Table 4 *retrains* without an input; we only blindfold a trained network, which is
# harsher.


# %%
def without(part):
    """`render` with one part of the source's state set to zero."""

    def run(source, motion):
        if part == "scores":
            source.structure = torch.zeros_like(source.structure)
        else:
            source.context = [torch.zeros_like(context) for context in source.context]
        return model.render(source, motion)

    return run


blind = {"coarse": of_face[:6, 0, 0].mean(), "refined": of_face[:6, 0, -1].mean()}  # of six people
for part in ("scores", "source features"):
    blind[f"without {part}"] = torch.stack([stage_errors(clip, without(part))[0, 0, -1] for clip in clips[:6]]).mean()

# %%
assert abs(blind["without scores"] - blind["coarse"]) < 0.2 * (blind["coarse"] - blind["refined"])
assert blind["without source features"] < blind["refined"] < blind["coarse"]
plt.figure(figsize=(5, 1.8))
plt.bar_label(plt.barh(list(blind), [float(v) for v in blind.values()]), fmt="%.3f", fontsize=8)
plt.xlim(0, 0.85)
plt.xlabel("flow error (pixels)")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# Without the scores the error is the coarse flow's: whatever refinement gains comes from them. Without the source's features
# it is *smaller* than with them: they bend the flow a little for the picture's sake. (That is a blindfolded network and six
# people. The paper, which retrains, loses a little without them; so do we, by less than
# seeds differ, [notebook 11](11_train_a_full_model.ipynb).)
#
# ## Exercises
#
# 1. Build the lookup's positions without the two halves ($x / 2^l + d$). Which level stays right? How large is the
#    mistake, in pixels of the source, at level $l$?
# 2. `MotionRefiner` has one updater for all scales. How many parameters does it have at 1, 2 and 4 iterations? What
#    grows?
# 3. Follow the compass with $r = 3$ from `far` on levels 0, 1, 2 and 3, four steps each. Which levels arrive, and why
#    not the others?
#
# <details><summary>Solutions</summary>
#
# 1. Level 0 is right. At level $l$ the position is $1/2 - 1/2^{l+1}$ of that level's pixels too large, which are
#    $(2^l - 1)/2$ source pixels: half a pixel at level 1, 3.5 at level 3. A network can learn around a constant shift,
#    which is why such errors survive in published code.
# 2. ```python
#    for n in (1, 2, 4):
#        refiner = AnimationModel.from_preset("tiny", iterations=n).refiner
#        print(n, *(sum(p.numel() for p in part.parameters()) for part in (refiner.updater, refiner.projections)))
#    ```
#    The updater stays the same; only the projections of the source's features grow, one 1 × 1 convolution a scale.
# 3. `[follow(perfect, far, radius=3, level=l, steps=4)[0][-1] for l in range(4)]`. Level 0 sees no hill, level 1 only its
#    foot at first. Levels 2 and 3 see it at once, but their softmax is sharp: nearly all the weight is on one offset, so
#    they go by whole pixels of their level, 4 and 8 of the source. 12 is three of level 2, which lands exactly, by luck, and
#    one and a half of level 3, which stays two pixels off. (Try 10 and 16.) Hence: finish on level 0.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/correlation.py`](../minimodel/correlation.py) (the lookups),
# [`minimodel/refinement.py`](../minimodel/refinement.py) (updater and loop). Next:
# [8 · The occlusion-gated U-Net](08_occlusion_gated_unet.ipynb), which makes a picture of all these flows and
# occlusions.
