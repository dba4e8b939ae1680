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
# # 2 · Thin-plate splines: parts that bend
#
# In notebook 1 each part was stiff, as we shall call it: it could shift, turn and stretch as an affine map does, and
# that was all. A mouth that smiles does more: its corners rise and its middle doesn't. We could give the mouth more
# parts. Or one part that **bends**.
#
# Pin a thin metal plate to five places and it settles into the smoothest shape that passes through all of them. That is
# a thin-plate spline, and it moves parts in *Thin-Plate Spline Motion Model for Image Animation* (below: **TPSM**,
# section 3.1). This notebook builds Equations 1 to 8 of it, and Equation 12 for the background.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatLogSlider, FloatSlider, IntSlider

from minimodel import affine, losses, show, tps
from minimodel.background import PACE, BackgroundPredictor, gauss_newton, shift
from minimodel.data import synthetic
from minimodel.dense_motion import contribution_masks, dropout_scales
from minimodel.evaluation import metrics
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.model import AnimationModel
from minimodel.warping import identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE = 96

# %% [markdown]
# One person, twice, in light from all sides: at rest and smiling with a turned head. The renderer knows the true flow.

# %%
who = synthetic.sample_identities(1, seed=7)
rest = replace(synthetic.neutral_states(1), ambient=torch.ones(1))
one = torch.ones(1)
smiling = replace(rest, smile=1.5 * one, wide=0.8 * one, jaw=0.35 * one, roll=0.15 * one, yaw=0.15 * one)
source, driving = synthetic.Faces(who, rest), synthetic.Faces(who, smiling)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)
show.pictures({"": torch.cat([S, D])}, columns=["source", "driving"])

# %% [markdown]
# Five points: the corners of the mouth, the middle of each lip, and the chin. In the third picture a stiff part follows
# them as well as it can; in the fourth, one that bends. We look at the mouth alone: a part speaks for its surroundings
# only, and far from its points both are wrong. (That is what masks are for, as in notebook 1.)

# %%
MOUTH = [48, 51, 54, 57, 8]
five_S, five_D = (synthetic.landmarks(faces)[:, None, MOUTH] for faces in (source, driving))  # (1, 1, 5, 2)
stiff, bent = (tps.part_flows(five_S, five_D, (SIZE, SIZE), regularisation=r)[:, 0] for r in (1e6, 0.0))


def mouth_of(picture):
    """The lower half of the face, enlarged."""
    return picture[..., 44:86, 25:67]


made = torch.cat([S, D, warp(S, stiff), warp(S, bent)])
columns = ["source", "driving", "stiff part", "bending part"]
show.pictures({"mouth": mouth_of(made)}, columns=columns, side=2)

# %%
names = ("upper lip", "lower lip", "mouth")
wanted = torch.tensor([synthetic.PARTS.index(name) for name in names])
lips = torch.isin(synthetic.parsing(driving, SIZE), wanted)[:, None] & visible.bool()
off_stiff, off_bent = (metrics.flow_error(flow, true_flow, lips).item() for flow in (stiff, bent))
assert off_bent < 0.75 * off_stiff

# %% [markdown]
# Both have the same five pairs of points to go by. (The stiff one is a spline, too, of a very thick plate. We will
# see.)
#
# ## Equations 1 to 3: the smoothest map through given points
#
# $P_i^D$ are the points in the driving frame, $P_i^S$ the same points in the source, and $p$ is any place (TPSM's
# letter for what notebook 1 calls $z$, with *Learning Motion Refinement for Unsupervised Face Animation*, below:
# **MRFA**). Of all maps that take the first to the second, which bends least?
#
# $$\min \iint \left(\frac{\partial^2 \mathcal{T}}{\partial x^2}\right)^2 + 2\left(\frac{\partial^2 \mathcal{T}}{\partial x
# \partial y}\right)^2 + \left(\frac{\partial^2 \mathcal{T}}{\partial y^2}\right)^2 dx\,dy
# \quad\text{with}\quad \mathcal{T}(P_i^D) = P_i^S. \tag{1}$$
#
# (The paper writes $P^S$ and $P^D$ the other way round here, and centres the next equation on $P^D$. Our flow is
# backward, it starts in the driving frame: so must the spline.) The answer has been known since the 1970s: an affine
# map, plus a multiple of one fixed function $U$ around each point,
#
# $$\mathcal{T}(p) = A \begin{bmatrix} p \\ 1 \end{bmatrix} + \sum_{i=1}^{N} w_i\, U(\|P_i^D - p\|), \tag{2}$$
#
# $$U(r) = r^2 \log r^2. \tag{3}$$
#
# Distances are normalised, as all places are. $U$ is no local bump: it dips, and from $r \approx 0.6$ on grows without end.

# %%
r = torch.linspace(0, 1.5, 200)
figure, axis = plt.subplots(figsize=(4, 1.8))
axis.plot(r, tps.kernel(r**2))
axis.axhline(0, color="grey", linewidth=0.5)
axis.set(xlabel="distance r", ylabel="U")
plt.show()
assert tps.kernel(torch.zeros(1)) == 0 and tps.kernel(torch.ones(1)) == 0
assert 0.55 < r[tps.kernel(r**2).argmin()] < 0.65

# %% [markdown]
# Unknown are the $N$ vectors $w_i$ and the 2 × 3 matrix $A$. The $N$ points give $N$ equations, each for $x$ and for
# $y$. Three more say that the terms with $U$ may not do what $A$ can do:
#
# $$\sum_i w_i = 0, \qquad \sum_i w_i P_i^{D\top} = 0 .$$
#
# They also tame $U$: far from all points the sum grows far more slowly than each of its terms. All of these equations
# are linear:


# %%
def fit_naive(control, values):
    """(N, 2) points and where they go -> the N weights, then the three columns of A: (N + 3, 2)."""
    count = len(control)
    left, right = torch.zeros(count + 3, count + 3), torch.zeros(count + 3, 2)
    for i in range(count):
        for j in range(count):
            r = (control[i] - control[j]).norm()
            left[i, j] = 0 if i == j else r**2 * torch.log(r**2)
        left[i, count:] = left[count:, i] = torch.cat([control[i], torch.ones(1)])
        right[i] = values[i]
    return torch.linalg.solve(left, right)


# %%
def spline_naive(control, coefficients, p):
    """Equation 2 at one place p."""
    moved = coefficients[-3:].T @ torch.cat([p, torch.ones(1)])
    for point, w in zip(control, coefficients):
        r = (point - p).norm()
        if r > 0:
            moved = moved + w * r**2 * torch.log(r**2)
    return moved


coefficients = fit_naive(five_D[0, 0], five_S[0, 0])
spline = tps.fit_spline(five_D, five_S)
somewhere = torch.rand(1, 1, 20, 2) * 2 - 1
by_hand = torch.stack([spline_naive(five_D[0, 0], coefficients, p) for p in somewhere[0, 0]])
assert torch.allclose(by_hand, spline(somewhere)[0, 0], atol=1e-4)
assert torch.allclose(spline(five_D), five_S, atol=1e-5)  # it passes through its points

# %% [markdown]
# `tps.fit_spline` solves the same equations for all splines of a batch at once, in float64, and says something sensible where
# they have no single solution (below). scipy knows these splines as well; its kernel is half of ours.
#
# Is the spline the smoothest? Its bending, Equation 1's integral, is $w^\top K w$ up to a constant, where $K_{ij} =
# U(\|P_i - P_j\|)$. Any rival passes through the five points too, but takes some other way in between. Here are twenty,
# each led astray at three more places:


# %%
def bending(spline):
    K = tps.kernel((spline.control[..., :, None, :] - spline.control[..., None, :, :]).square().sum(-1))
    return (spline.weights.mT @ K @ spline.weights).diagonal(dim1=-2, dim2=-1).sum(-1)


astray = torch.rand(20, 1, 3, 2) * 2 - 1
there = spline(astray.view(1, 1, 60, 2)).view(20, 1, 3, 2) + 0.05 * torch.randn(20, 1, 3, 2)
five = [points.expand(20, -1, -1, -1) for points in (five_D, five_S)]
rivals = tps.fit_spline(torch.cat([five[0], astray], 2), torch.cat([five[1], there], 2))
assert torch.allclose(rivals(five[0]), five[1], atol=1e-4)
assert (bending(rivals) > bending(spline)).all()

# %% [markdown]
# ## Drag the points
#
# The picture with a grid on it, and five points like those of a die: 0 and 1 at the top, 2 in the middle, 3 and 4 at the
# bottom. In each picture some of them were dragged; the rest of the picture follows as smoothly as it can. (A warp
# repeats the picture's edge where the flow points beyond it.)

# %%
DIE = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.0, 0.0], [-0.5, 0.5], [0.5, 0.5]])
lined = S.clone()
lined[..., 4::8, :] = lined[..., :, 4::8] = 1  # no line at the edge


def drag(axis, moves, regularisation=0.0):
    """Draw the picture after the points ``moves`` = {which: (right, down)} were dragged."""
    dragged = DIE.clone()
    for which, move in moves.items():
        dragged[which] += torch.tensor(move)
    flow = tps.part_flows(DIE[None, None], dragged[None, None], (SIZE, SIZE), regularisation=regularisation)
    axis.imshow(warp(lined, flow[:, 0])[0].permute(1, 2, 0))
    show.dots(axis, dragged, (SIZE, SIZE), color="tab:red")
    for which, (x, y) in enumerate(to_pixels(dragged, (SIZE, SIZE)).tolist()):
        axis.annotate(which, (x, y), xytext=(3, 3), textcoords="offset points", color="yellow", fontsize=9)
    axis.set_axis_off()


# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.4))
cases = {
    "nothing": {},
    "the middle, up": {2: (0.0, -0.3)},
    "one corner": {0: (-0.2, -0.2)},
    "all alike": dict.fromkeys(range(5), (0.2, 0.1)),
}
for axis, (name, moves) in zip(axes, cases.items()):
    drag(axis, moves)
    axis.set_title(name, fontsize=9)
plt.show()


# %%
def playground(which, right, down, stiffness):
    figure, axis = plt.subplots(figsize=(3, 3))
    drag(axis, {which: (right, down)}, stiffness)
    return figure


moves = {name: FloatSlider(value, min=-0.6, max=0.6, step=0.05) for name, value in (("right", 0.0), ("down", -0.3))}
stiffness = FloatLogSlider(1e-3, base=10, min=-3, max=2, step=0.25)
show.playground(playground, which=IntSlider(2, min=0, max=4), **moves, stiffness=stiffness)

# %% [markdown]
# Two things to try in a running notebook. Set `which` to a corner and move it with `right` and `down`: the *opposite*
# corner of the picture moves as well, as it does in the third picture above. Like an affine part, a spline moves the
# whole picture, so masks will be needed again. And raise the stiffness: a thick plate doesn't quite reach its points.
# That is **regularisation**, $\lambda$ on the diagonal of $K$:

# %%
strengths = torch.logspace(-4, 2, 25).tolist()
splines = [tps.fit_spline(five_D, five_S, regularisation=strength) for strength in strengths]
missed = [(spline(five_D) - five_S).norm(dim=-1).mean().item() * SIZE / 2 for spline in splines]
figure, axes = plt.subplots(1, 2, figsize=(7, 2))
axes[0].semilogx(strengths, missed)
axes[0].set(xlabel="λ", ylabel="points missed by (pixels)")
axes[1].semilogx(strengths, [bending(spline).item() for spline in splines])
axes[1].set(xlabel="λ", ylabel="bending")
figure.tight_layout()
plt.show()
assert missed[0] < 0.05 and missed[-1] > 5 * missed[0]

# %% [markdown]
# At the right end is the best affine map, the stiff part of the first picture: $\lambda$ stands before the $w_i$ alone,
# so $A$ is free whatever $\lambda$ is. The published code adds its 0.01 to all of the diagonal, so that not even a
# plain shift of all points is met exactly.
#
# ### Break it: the wrong way round
#
# Take Equation 1 as printed, from source to driving frame, and use the result as a backward flow:

# %%
forward = tps.part_flows(five_D, five_S, (SIZE, SIZE), regularisation=0.0)[:, 0]
off_forward, off_still = (metrics.flow_error(flow, true_flow, lips).item() for flow in (forward, 0 * forward))
show.pictures(
    {"mouth": mouth_of(torch.cat([S, D, warp(S, bent), warp(S, forward)]))}, columns=[*columns[:2], "D to S", "S to D"]
)
assert off_bent < off_still < off_forward

# %% [markdown]
# ### Break it: points on one line
#
# Nothing stops a detector from putting five points on a line, or all in one place. Then no point says what happens
# beside the line, the equations have many solutions, and an ordinary solver finds none of them. If the points lie
# *almost* on a line and were found a little wrongly, it finds a solution, whose $A$ grows without limit as they come
# closer to the line:

# %%
line_D = torch.stack([torch.linspace(-0.6, 0.6, 5), 0.5 * torch.linspace(-0.6, 0.6, 5)], 1)
line_S = line_D + torch.tensor([0.2, 0.1])  # all of them moved alike ...
generator = torch.Generator().manual_seed(0)
found_S, nudges = line_S + 0.02 * torch.randn(5, 2, generator=generator), torch.randn(5, 2, generator=generator)
large = [fit_naive(line_D + off * nudges, found_S)[-3:].abs().max() for off in (0.1, 0.01, 0.001)]
assert large[0] < 2 and large[1] > 3 * large[0] and large[2] > 3 * large[1]

# %% [markdown]
# `tps.fit_spline` takes, of all solutions, the one with the **smallest coefficients**. And `tps.part_flows` fits not where
# points go but *how far*, so that small means "stays where it is". With positions, small would mean "goes to the
# middle": every place beside the line is fetched from the line itself, hence the stripes of the second picture.

# %%
size = (SIZE, SIZE)
positions = tps.fit_spline(line_D[None, None], line_S[None, None]).flow(size)[:, 0]
distances = tps.part_flows(line_S[None, None], line_D[None, None], size, regularisation=0.0)[:, 0]
rows = {"": torch.cat([lined, warp(lined, positions), warp(lined, distances)])}
show.pictures(rows, columns=["source", "smallest positions", "smallest motion"], side=2)
assert (distances.mean((2, 3)) - torch.tensor([0.2, 0.1])).abs().max() < 0.1
fetched = positions + identity_grid(*size)  # where from; the line is y = x / 2
assert (fetched[:, 1] - 0.5 * fetched[:, 0]).abs().max() < 1e-3

# %% [markdown]
# The gradient stays finite as well. Write all $N + 3$ equations as $Lx = b$. Where eigenvalues of $L$ coincide (several
# are zero when points lie in one place) its eigenvectors have no derivative, so `tps.solve_symmetric` solves once without a
# gradient, and lets it through one step of refinement, $x + L^+(b - Lx)$, where $L^+$ is the inverse of what can be
# inverted. That adds nothing to an $x$ that solves the equations. Its derivative is the right one where they have one
# solution (`gradcheck` agrees, in the tests), and finite elsewhere. Three equations of which the first says $x_1 = 2$, and
# the others nothing (two eigenvalues are zero):

# %%
L, b = torch.diag(torch.tensor([1.0, 0.0, 0.0])).requires_grad_(), torch.tensor([[2.0], [0.0], [0.0]])
x = tps.solve_symmetric(L, b, smallest=1e-6)
assert torch.equal(x, b)  # of all (2, y, z) the smallest
(finite,) = torch.autograd.grad(x.sum(), L)
(through_vectors,) = torch.autograd.grad(torch.linalg.eigh(L).eigenvectors.sum(), L)
assert finite.isfinite().all() and through_vectors.isnan().any()

# %% [markdown]
# ## Equations 5 and 6: several splines
#
# As in notebook 1, masks decide which part owns a pixel, and a mask for the background comes first. A network will give
# one map of logits $\tilde{\mathbf{M}}_k$ for each (the paper's *contribution maps*). A softmax makes masks of them, and
# the masks mix the maps of the $K$ splines ($K$ is a number from here on, no longer the matrix):
#
# $$\mathbf{M}_k(p) = \frac{\exp(\tilde{\mathbf{M}}_k(p))}{\sum_{i=0}^{K} \exp(\tilde{\mathbf{M}}_i(p))}, \tag{5}$$
#
# $$\tilde{\mathcal{T}}(p) = \mathbf{M}_0(p)\,\mathcal{T}_{bg}(p) + \sum_{k=1}^{K} \mathbf{M}_k(p)\,\mathcal{T}_k(p). \tag{6}$$
#
# The background $\mathcal{T}_{bg}$ stands still for now. Five groups of five landmarks, logits by the distance to the
# nearest point of a group, and, to compare, the same groups as stiff parts:

# %%
GROUPS = [[17, 19, 21, 36, 39], [22, 24, 26, 42, 45], [27, 30, 31, 35, 33], MOUTH, [2, 5, 8, 11, 14]]
many_S, many_D = (synthetic.landmarks(faces)[:, torch.tensor(GROUPS)] for faces in (source, driving))
parts = ("skin", "nose", "brows", "eyes", *names)
face = torch.isin(synthetic.parsing(driving, SIZE), torch.tensor([synthetic.PARTS.index(part) for part in parts]))[
    :, None
]
apart = (identity_grid(*size)[None, None, None] - many_D[..., None, None]).square().sum(3).amin(2)
M = torch.softmax(-apart / (2 * 0.1**2), dim=1) * face
M = torch.cat([1 - M.sum(1, keepdim=True), M], 1)

# %%
parted = {
    name: tps.part_flows(many_S, many_D, size, regularisation=r) for name, r in (("stiff", 1e6), ("bending", 0.01))
}
mixed = {name: affine.combine(affine.with_background(flows), M) for name, flows in parted.items()}
palette = torch.tensor(plt.colormaps["tab10"].colors)
owners = palette[M.argmax(1)].permute(0, 3, 1, 2)
largest = (true_flow * face).norm(dim=1).max().item()
flows = [show.flow_colors(flow * face, largest=largest) for flow in (true_flow, *mixed.values())]
show.pictures({"": torch.cat([owners, *flows])}, columns=["strongest mask", "true flow", "stiff", "bending"])

# %%
seen = visible.bool() & face
errors = {name: [metrics.flow_error(flow, true_flow, w).item() for w in (seen, lips)] for name, flow in mixed.items()}
still = [metrics.flow_error(0 * true_flow, true_flow, where).item() for where in (seen, lips)]
figure, axis = plt.subplots(figsize=(5, 2))
for number, (name, values) in enumerate({"nothing moves": still, **errors}.items()):
    axis.bar([x + 0.28 * number for x in range(2)], values, 0.25, label=name)
axis.set_xticks([0.28, 1.28], ["whole face", "lips"])
axis.set_ylabel("error in pixels")
axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()
assert errors["bending"][0] < 1.1 * errors["stiff"][0] < 0.2 * still[0]
assert errors["bending"][1] < 0.75 * errors["stiff"][1]

# %% [markdown]
# Over the whole face five stiff parts, which know the same 25 true landmarks, do as well. On the lips parts that bend
# are better by more than a quarter. What it costs: a detector must now find five points a part instead of one and a
# matrix, 10 numbers instead of 6.
#
# ## Equations 7 and 8: dropout
#
# Softmax is a contest. The gradient of $\mathbf{M}_k$ in its logit is $\mathbf{M}_k (1 - \mathbf{M}_k)$: a spline that
# owns nothing learns nothing, so it will never own anything. The paper's remedy is to drop splines at random early in
# the training, each with probability $P$, so that the others must do without it:
#
# $$\mathbf{M}_k = \frac{b_k \exp(\tilde{\mathbf{M}}_k) / (1 - P)}{\mathbf{M}_T},\qquad
# \mathbf{M}_0 = \frac{\exp(\tilde{\mathbf{M}}_0)}{\mathbf{M}_T}, \tag{7}$$
#
# $$\mathbf{M}_T = \exp(\tilde{\mathbf{M}}_0) + \sum_i b_i \exp(\tilde{\mathbf{M}}_i) / (1 - P), \tag{8}$$
#
# where $b_k$ is 0 with probability $P$ and else 1. The background is never dropped. At one pixel:


# %%
def masks_naive(logits, kept, P):
    """Equations 7 and 8 at one pixel: K + 1 logits and K times 0 or 1."""
    terms = [torch.exp(logits[0])]
    for k in range(len(kept)):
        terms.append(kept[k] * torch.exp(logits[k + 1]) / (1 - P))
    return torch.stack([term / sum(terms) for term in terms])


logits, chances, P = torch.randn(1, 6, 1, 1), torch.rand(1, 5), 0.3
dropped = contribution_masks(logits, dropout_scales(chances, P))
assert torch.allclose(dropped.flatten(), masks_naive(logits.flatten(), chances[0] >= P, P), atol=1e-6)

# %% [markdown]
# Why divide by $1 - P$? So that the *sum of exponentials* is expected to stay what it is, and the background isn't
# favoured. The published code divides the logits, but only after it has taken their exponentials: nothing is rescaled, and
# a share $P$ of the parts' sum is lost on average. (The masks themselves change on average either way: a mean of
# quotients isn't the quotient of means.)

# %%
draws = dropout_scales(torch.rand(50_000, 5), P)
part_logits = logits.flatten()[1:]  # without the background's
undropped = part_logits.exp().sum()
as_printed = (draws * part_logits.exp()).sum(1).mean() / undropped  # dropped on average, as a share of the whole sum
as_published = ((draws > 0) * part_logits.exp()).sum(1).mean() / undropped  # what the code does
assert abs(as_printed - 1) < 0.02 and abs(as_published - (1 - P)) < 0.02

# %% [markdown]
# Now a small training. Eight splines at random places, with random logits to begin with, so that some are ahead of the
# others; everything is free, and the loss is the distance from the true flow at 32 × 32 pixels. Dropout is on for the
# first 70 % of the steps, or off.

# %%
goal = synthetic.flow_between(source, driving, 32)[0]


def contest(seed, P, steps=300):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 8, 5, 2, generator=generator) * 1.6 - 0.8
    moves, logits = torch.zeros(1, 8, 5, 2), 2 * torch.randn(1, 9, 1, 1, generator=generator).expand(-1, -1, 32, 32)
    moves, logits = moves.requires_grad_(), logits.clone().requires_grad_()
    # Plain gradient steps for the logits: Adam would enlarge the small gradients that this is about. And 300, because
    # the loss is a mean over 1024 pixels, which leaves each pixel's logits a thousandth of it.
    optimizers = torch.optim.Adam([moves], lr=0.02), torch.optim.SGD([logits], lr=300)
    for step in range(steps):
        scales = dropout_scales(torch.rand(1, 8, generator=generator), P if step < 0.7 * steps else 0.0)
        flows = affine.with_background(tps.part_flows(points + moves, points, (32, 32)))
        loss = (affine.combine(flows, contribution_masks(logits, scales)) - goal).norm(dim=1).mean() * 16
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return torch.softmax(logits, 1).detach(), loss.item()


# %%
finished = {P: [contest(seed, P) for seed in range(4)] for P in (0.0, 0.3)}
shares = {P: torch.stack([masks.mean((2, 3))[0, 1:] for masks, _ in runs]) for P, runs in finished.items()}
rows = {f"P = {P}": runs[0][0][0, 1:, None] for P, runs in finished.items()}
show.pictures(rows, columns=[f"mask {k}" for k in range(1, 9)], side=1.1)


# %% [markdown]
# White is what a spline owns. How many splines do the work? Count each by its share of the picture: the exponential of
# the entropy of the shares is 8 if all own the same, 1 if one owns everything.


# %%
def working(shares):
    shares = shares / shares.sum(1, keepdim=True)
    return (-(shares * shares.log()).sum(1)).exp()


counts = {P: working(share) for P, share in shares.items()}
errors = {P: torch.tensor([error for _, error in runs]) for P, runs in finished.items()}
figure, axes = plt.subplots(1, 2, figsize=(8, 2))
for axis, measured, title in zip(axes, (counts, errors), ("splines at work", "error of the flow, pixels (of 32)")):
    for number, (P, values) in enumerate(measured.items()):
        axis.bar([seed + 0.4 * number for seed in range(4)], values, 0.35, label=f"P = {P}")
    axis.set(xlabel="seed", xticks=[seed + 0.2 for seed in range(4)], xticklabels=range(4))
    axis.set_title(title, fontsize=9)
axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(1.1, -0.2))
plt.show()
assert counts[0.3].mean() > counts[0.0].mean() + 0.3
assert errors[0.3].mean() < 0.8 * errors[0.0].mean()

# %% [markdown]
# Dropout keeps more of them at work, and that pays: from each of these beginnings the flow ends closer to the true one.
# (Both are off by small parts of a pixel: eight splines and free masks are plenty for one pair.) It isn't a cure: a
# spline that begins far behind still gets its chance only when all that are ahead of it are dropped. In the package
# (`train.py`) $P$ rises from 0.1 to 0.3, and dropout stops at 35 % of the run.
#
# ## Who finds the points?
#
# `SplineDetector`, a residual network, looks at one frame and says all positions itself, without the heatmaps of
# notebook 3. It learns by the losses of that notebook; what can be seen here is where it *begins*. Five points in one
# place say nothing about bending, and a mask that owns nothing learns nothing. So the last layer's biases are spread at
# random over the picture, and a fresh detector says nearly the same of every frame (lines join the points of a spline):

# %%
sizes = dict(base=8, levels=3, blocks=1, pool=True, norm="group")
detector = SplineDetector(splines=5, points=5, **sizes)
with torch.no_grad():
    begin_S, begin_D = detector(S), detector(D)
figure, axes = plt.subplots(1, 2, figsize=(5, 2.5))
for axis, picture, splines in zip(axes, (S, D), (begin_S, begin_D)):
    axis.imshow(picture[0].permute(1, 2, 0), extent=(-1, 1, 1, -1))
    for spline in splines[0]:
        axis.plot(*spline.T, marker=".", linewidth=0.8)
    axis.set_axis_off()
plt.show()

# %%
apart = (begin_S - begin_S.mean(2, keepdim=True)).norm(dim=-1).mean()  # a spline's points, from their middle
moving = (begin_S - begin_D).norm(dim=-1).mean()  # from frame to frame
assert begin_S.abs().max() < 1 and apart > 10 * moving

# %% [markdown]
# From heatmaps points learn from far fewer pairs. So the package's small presets (`ModelConfig.spline_heatmaps`) read the
# points of splines from those instead, by `KeypointDetector(..., spread=True)`: each point begins at a random place of
# its own (the crosses) and prefers what is near it, by a Gaussian whose standard deviation the circle shows for one of
# them. After the same 6000 pairs the `tiny` preset with splines then has 25.1 dB instead of 22.9 dB, over the twenty people
# of `minimodel evaluate`.

# %%
hourglass = dict(scale=2, folded=True, base=8, levels=3, maximum=32, head_kernel=3, norm="group")
reader = KeypointDetector(5 * 5, with_affine=False, spread=True, **hourglass)
with torch.no_grad():
    (begin,), _ = reader(S)
figure, axis = plt.subplots(figsize=(2.5, 2.5))
axis.imshow(S[0].permute(1, 2, 0), extent=(-1, 1, 1, -1))
axis.scatter(*reader.places.T, marker="x", color="white", s=20, linewidths=1)
for spline in begin.view(5, 5, 2):
    axis.plot(*spline.T, marker=".", linewidth=0.8)
axis.add_patch(plt.Circle(reader.places[0].tolist(), reader.spread_variance**0.5, fill=False, color="white"))
axis.set_axis_off()
plt.show()
assert (begin - reader.places).norm(dim=-1).mean() < 0.1 and (begin - begin.mean(0)).norm(dim=-1).mean() > 0.3

# %% [markdown]
# ## Equation 4: the background moves, too
#
# Somebody holds the camera. Then the wall moves although nobody asked it to, and points waste their time on it. TPSM
# gives the background one affine map,
#
# $$\mathcal{T}_{bg}(p) = A_{bg} \begin{bmatrix} p \\ 1 \end{bmatrix}. \tag{4}$$
#
# Somebody else, before shelves, and a camera that turns, so that the wall moves by 0.2 to the right (10 pixels) and a
# little up. The head follows the true flow in both results, and the shelves stand still in the first. (The second outline
# at the right of the last head: beside the head is wall that the source hides, and no flow can fetch it. That is for
# notebook 8.)

# %%
other = synthetic.sample_identities(24, seed=7)[10]
before, after = synthetic.Faces(other, rest), synthetic.Faces(other, replace(smiling, pan=torch.tensor([[0.2, -0.05]])))
S, D = synthetic.render(before, SIZE), synthetic.render(after, SIZE)
flow, visible = synthetic.flow_between(before, after, SIZE)
wall = synthetic.parsing(after, SIZE)[:, None] == synthetic.PARTS.index("background")

A_bg = torch.tensor([[[1.0, 0.0, -0.2], [0.0, 1.0, 0.05]]])  # back from the driving frame to the source
behind = tps.background_flow(A_bg, size)
made = [warp(S, torch.where(wall, background, flow)) for background in (0 * behind, behind)]
show.pictures({"": torch.cat([S, D, *made])}, columns=["source", "driving", "still background", "$A_{bg}$"], side=2)

# %%
shelves = wall & visible.bool()  # where the source shows them
assert metrics.flow_error(behind, flow, shelves) < 0.05
still_wall, moved_wall = ((picture - D).abs().mean(1, keepdim=True)[shelves].mean() for picture in made)
assert moved_wall < 0.3 * still_wall

# %% [markdown]
# Where does $A_{bg}$ come from? The paper's network sees both frames at once, six channels, and says six numbers. That
# is hard to learn: in runs of an hour such a network goes on saying that nothing moves, and even from true answers it
# learns next to nothing. So our `BackgroundPredictor` splits the question.
#
# **How far did the wall shift?** needs no learning, if we know what is wall: try every shift $t$ and see how well the
# two walls agree. Squared differences would be the first thought. But where a pixel is compared with a stranger, its
# square is huge, and a few strangers outvote the wall. So we let colours agree by a cosine, which is 1 for equal ones
# and, on average, nothing for strangers:
#
# $$a(t) = \frac{\sum_z w_D(z)\, w_S(z + t) \cos\big(\omega\,(S(z + t) - D(z))\big)}{\sum_z w_D(z)\, w_S(z + t) + 0.01\,HW}.$$
#
# The cosine is averaged over the three colours. $\omega$ is 60, nine and a half turns from black to white, so that colours
# that aren't nearly equal are strangers. The summand $0.01\,HW$, a hundredth of the picture's pixels, keeps down shifts at
# which hardly any wall lies on wall.
#
# Here are both, for all shifts of up to 12 pixels at 64 x 64, with weights $w$ of 1 on the wall and 0 elsewhere, and
# with weights of 1 everywhere. The ring is where the truth lies. On the wall both find it; with all pixels the head, which
# moved otherwise, draws the squares away, but not the cosines.

# %%
small = (64, 64)
s, d = (resize_flow(frame, small) for frame in (S, D))
walls = [(synthetic.parsing(f, 64) == synthetic.PARTS.index("background"))[:, None].float() for f in (before, after)]
everywhere = [torch.ones(1, 1, *small)] * 2


def part_of(frame, down, right):
    """The rows and columns of ``frame`` that are still inside after a shift."""
    return frame[..., max(0, down) : 64 + min(0, down), max(0, right) : 64 + min(0, right)]


def agreement(alike, w_S, w_D, down, right):
    w = part_of(w_S, down, right) * part_of(w_D, -down, -right)
    agree = alike(part_of(s, down, right) - part_of(d, -down, -right)).mean(1, keepdim=True)
    return (w * agree).sum() / (w.sum() + 0.01 * 64 * 64)  # a little overlap is little evidence


kinds = {"squares": lambda x: 1 - x.square(), "cosines": lambda x: (PACE * x).cos()}
steps = range(-12, 13)
true_t = torch.tensor([-0.2, 0.05]) * 32  # pixels of 64: right, down
best, axes = {}, plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")[1]
cases = [(name, kind, w) for w in ("wall", "all pixels") for name, kind in kinds.items()]
for axis, (name, kind, w) in zip(axes, cases, strict=True):
    weights = walls if w == "wall" else everywhere
    scores = torch.tensor([[agreement(kind, *weights, down, right) for right in steps] for down in steps])
    top = divmod(scores.argmax().item(), len(steps))
    best[name, w] = torch.tensor([top[1] - 12.0, top[0] - 12.0])
    axis.imshow(scores, extent=(-12.5, 12.5, 12.5, -12.5))
    axis.plot(*true_t, "o", markersize=12, markerfacecolor="none", markeredgecolor="w")
    axis.set_title(f"{name}, {w}")
    axis.set_xlabel("shift to the right, pixels")
axes[0].set_ylabel("downwards, pixels")
plt.show()
missed = {case: (shift - true_t).norm() for case, shift in best.items()}
assert missed.pop(("squares", "all pixels")) > 1.5  # the head pulls
assert all(distance < 1 for distance in missed.values())

# %% [markdown]
# The package takes all shifts at once (a cosine of a difference is a sum of products, so that both sums of $a$ are
# correlations, which the Fourier transform makes cheap) and averages them by $\mathrm{softmax}(a / 0.01)$. That mostly is
# the best whole pixel. Three steps of least squares (Gauss-Newton: pretend that colours change linearly, solve, repeat)
# add the fraction of a pixel, turn and zoom. Here is a picture that was zoomed and turned, with some steps more:

# %%
t = shift(s, d, *walls)[0]
assert (t * 32 - true_t).norm() < 0.5
zoomed = torch.tensor([[[1.04, -0.03, 0.06], [0.03, 1.04, -0.03]]])
seen = warp(s, tps.background_flow(zoomed, small))
A = torch.cat([torch.eye(2)[None], shift(s, seen, *everywhere)[..., None]], dim=2)
missed = []
for _ in range(13):
    both = (tps.background_flow(matrix, small) for matrix in (A, zoomed))
    missed.append(metrics.flow_error(*both, everywhere[0]).item())
    A = gauss_newton(A, s, seen, *everywhere)
print("pixels off:", ", ".join(f"{missed[n]:.1f} after {n}" for n in (0, 3, 6, 9, 12)), "steps")
assert missed[-1] < 0.2 < missed[0]

# %% [markdown]
# **Which pixels are wall?** is the part that is learnt. A small hourglass looks at one frame and says $w$. Nobody labels
# walls for it; its teacher is the model that it belongs to. After some minutes of training the masks know what moves as
# parts do. What they leave is the background: $\mathbf{M}_0$. So $w_D$ should be $\mathbf{M}_0$ (cross entropy,
# `losses.background_mask_loss`, which the papers don't have). `tiny-tps` learnt it in its last 24 minutes. Here are
# strangers before walls that shift by 5 pixels, with the masks and weights of `tiny-tps`:

# %%
model = AnimationModel.load("tiny-tps")
generator = torch.Generator().manual_seed(0)
sources, drivings = synthetic.sample_pairs(32, generator)
pan = 0.15 * torch.nn.functional.normalize(torch.randn(32, 2, generator=generator), dim=1)
drivings = replace(drivings, state=replace(drivings.state, pan=sources.state.pan + pan))
frames = [synthetic.render(faces, 64) for faces in (sources, drivings)]
pans = torch.cat([torch.eye(2).expand(32, 2, 2), -pan[..., None]], dim=2)  # back from the driving frame to the source

with torch.no_grad():
    masks = model.move(
        model.encode_source(frames[0]), model.encode_driving(frames[1], move_background=True)
    ).coarse.masks
    logits = model.prior.background.logits(frames[1])
    fresh = BackgroundPredictor(base=8, levels=2, maximum=32, norm="group")
    found = {"nothing moves": torch.eye(2, 3).expand(32, 2, 3), "all pixels": fresh(*frames)}
    found["trained"] = model.prior.background(*frames)
grey = [resize_flow(m[:8], small).expand(-1, 3, -1, -1) for m in (masks[:, :1], torch.sigmoid(logits))]
show.pictures({"driving": frames[1][:8], r"$\mathbf{M}_0$": grey[0], "$w_D$": grey[1]})
left = {}
for name, matrices in found.items():
    both = (tps.background_flow(matrix, small) for matrix in (matrices, pans))
    left[name] = metrics.flow_error(*both, torch.ones(32, 1, *small)).mean().item()
print("pixels left:", ", ".join(f"{name} {error:.1f}" for name, error in left.items()))
print(f"the mask loss: {losses.background_mask_loss(logits, masks):.2f}")
assert left["trained"] < left["nothing moves"] / 20 and left["trained"] < left["all pixels"] / 4

# %% [markdown]
# One more loss helps the paper's predictor. Let $A'_{bg}$ be its answer when it sees the two frames in the other order.
# There and back should lead nowhere:
#
# $$\mathcal{L}_{bg} = \left\| \begin{bmatrix} A'_{bg} \\ 0\;0\;1 \end{bmatrix}
# \begin{bmatrix} A_{bg} \\ 0\;0\;1 \end{bmatrix} - I \right\|. \tag{12}$$
#
# (The package takes the mean size of the nine entries.) Note what it is blind to. A predictor that always says "nothing
# moves" has no loss at all; zeros, at least, cost something. And ours has nothing to learn from it: its shifts there and
# back are opposite by construction, trained or not.

# %%
back = torch.tensor([[[1.0, 0.0, 0.2], [0.0, 1.0, -0.05]]])
nothing, zeros = torch.eye(2, 3)[None], torch.zeros(1, 2, 3)
assert losses.background_loss(A_bg, back) < 1e-6 and losses.background_loss(A_bg, A_bg) > 0.05
assert losses.background_loss(nothing, nothing) == 0 and losses.background_loss(zeros, zeros) > 0.2
assert torch.allclose(shift(s, d, *everywhere), -shift(d, s, *everywhere), atol=1e-5)

# %% [markdown]
# And where two films meet, a photo and somebody else's video, the video's camera says nothing about the photo's wall.
# So `animate` leaves the driving image out of the `Motion`, and the background stands still.
#
# ## Exercises
#
# 1. The five points of a die, all turned by 30 degrees about the middle. How large are the $w_i$? Why?
# 2. In `contest`, drop the background as well. What happens in a step in which everything is dropped?
# 3. Fit the mouth with four points, then with three. What becomes of the bending with three, and why?
#
# <details><summary>Solutions</summary>
#
# 1. Zero, up to rounding: a turn is affine, $A$ can do it alone, and bending costs.
#    ```python
#    c, s = 3**0.5 / 2, 0.5
#    turned = DIE @ torch.tensor([[c, s], [-s, c]])
#    print(tps.fit_spline(DIE[None, None], turned[None, None]).weights.abs().max())
#    ```
# 2. All exponentials are 0 at every pixel, and their quotient is 0/0, NaN. Someone must stay, and the paper's someone is
#    the background.
# 3. Three points determine an affine map, so nothing has to bend: `bending(tps.fit_spline(five_D[:, :, :3], five_S[:, :, :3]))`
#    is 0, and the flow is that of a stiff part.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/tps.py`](../minimodel/tps.py),
# [`minimodel/dense_motion.py`](../minimodel/dense_motion.py),
# [`minimodel/background.py`](../minimodel/background.py); the whole is `minimodel train --system tpsm`.
# Next: [3 · Unsupervised keypoints](03_unsupervised_keypoints.ipynb), where points come from; or
# [8 · The occlusion-gated U-Net](08_occlusion_gated_unet.ipynb), which makes a picture of the flow.
