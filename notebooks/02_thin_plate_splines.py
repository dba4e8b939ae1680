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
# # 2 · Thin-plate splines: parts that bend
#
# An affine part shifts, turns and stretches. Is a part that also *bends* better, and what does it cost?
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. In colour: coarse flow.](maps/02.svg)
#
# **You need** [notebook 1](01_affine_flows.ipynb): part flows, masks, the hourglass. **Time:** 40 minutes to read, one to
# run.
#
# **Afterwards you can**
# - fit a thin-plate spline by solving one block matrix (Equations 1 to 3), and use it as a part flow;
# - write the coarse motion of TPSM, with $K = 10$ splines of $N = 5$ points, and load shipped weights into it;
# - say why softmax leaves splines without work, and what dropout (Equations 7 and 8) does about it.
#
# **Paper.** *Thin-Plate Spline Motion Model for Image Animation* (**TPSM**, sections 3.1 and 3.2,
# [arXiv 2203.14367](https://arxiv.org/abs/2203.14367)). Its $p$ is our $z$; its $P_i^S, P_i^D$ are points as our $p_k^S,
# p_k^D$, but five a part; its $\tilde{\mathcal{T}}$ is our $F_0(z) + z$.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatLogSlider, FloatSlider, IntSlider
from scipy.interpolate import RBFInterpolator
from torch import nn

# The package's versions of what this notebook builds: first to compare with, then to use.
from minimodel import show, tps
from minimodel.affine import combine, with_background  # these two and the next two lines: built in notebook 1
from minimodel.blocks import Hourglass
from minimodel.data import synthetic
from minimodel.dense_motion import contribution_masks, dropout_scales
from minimodel.model import AnimationModel  # where shipped weights come from
from minimodel.warping import flow_to_pixels, identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE = 128

# %% [markdown]
# ## Five points on a mouth
#
# One person, twice, in light from all sides: at rest, and smiling with a turned head. The renderer knows the true flow.
# Five points are given: the corners of the mouth, the middle of each lip, and the chin. One part follows them affinely,
# by least squares. The other bends, by the formula that follows.

# %%
who = synthetic.sample_identities(1, seed=7)
rest = replace(synthetic.neutral_states(1), ambient=torch.ones(1))
one = torch.ones(1)
smiling = replace(rest, smile=1.5 * one, wide=0.8 * one, jaw=0.35 * one, roll=0.15 * one, yaw=0.15 * one)
source, driving = synthetic.Faces(who, rest), synthetic.Faces(who, smiling)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)

MOUTH = [48, 51, 54, 57, 8]
five_S, five_D = (
    synthetic.landmarks(faces)[:, None, MOUTH] for faces in (source, driving)
)  # (b, k, n, 2) = (1, 1, 5, 2)
flat_D = torch.cat([five_D, torch.ones(1, 1, 5, 1)], dim=-1)
best_affine = torch.linalg.lstsq(flat_D, five_S).solution[0, 0].T  # (2, 3)
affine_flow = tps.background_flow(best_affine[None], (SIZE, SIZE))  # A [z, 1] - z
bending_flow = tps.part_flows(five_S, five_D, (SIZE, SIZE), regularisation=0.0)[:, 0]


# %%
def region(*names):
    """Where the driving frame shows these parts of the face, and the source does too."""
    wanted = torch.tensor([synthetic.PARTS.index(name) for name in names])
    return torch.isin(synthetic.parsing(driving, SIZE), wanted)[:, None] & visible.bool()


def errors_of(flow, truth=true_flow):
    """The distance of two flows at each pixel, in pixels."""
    return flow_to_pixels(flow - truth).norm(dim=1, keepdim=True)


def mouth_of(picture):
    """The lower half of the face, enlarged."""
    return picture[..., 59:115, 33:89]


lips = region("upper lip", "lower lip", "mouth")
skin = region("upper lip", "lower lip", "mouth", "skin")
made = {"affine part": affine_flow, "bending part": bending_flow}
maps = [show.heat(errors_of(flow) * skin, largest=6) for flow in made.values()]
rows = {"": [S, D, warp(S, affine_flow), warp(S, bending_flow)], "pixels off": [0 * S + 1, 0 * S + 1, *maps]}
rows = {name: torch.cat([mouth_of(picture) for picture in row]) for name, row in rows.items()}
figure = show.draw_pictures(rows, columns=["source", "driving", *made], side=2)
corner = torch.tensor([33.0, 59.0])  # of the enlarged piece
at_S, at_D = (to_pixels(five[0, 0], (SIZE, SIZE)) - corner for five in (five_S, five_D))
figure.axes[0].scatter(*at_S.T, color="tab:red", edgecolor="white", s=25)
for start, end in zip(at_D, at_S, strict=True):
    arrow = dict(arrowstyle="-|>", color="yellow", linewidth=2, shrinkA=0, shrinkB=0, mutation_scale=14)
    figure.axes[1].annotate("", end.tolist(), start.tolist(), arrowprops=arrow)
for axis in figure.axes[1:4]:
    axis.scatter(*at_D.T, color="tab:red", edgecolor="white", s=25)
figure.axes[4].set_visible(False)
figure.axes[5].clear()
figure.axes[5].set_axis_off()
bar = plt.cm.ScalarMappable(plt.Normalize(0, 6), "viridis")
cax = figure.axes[5].inset_axes([0.85, 0, 0.08, 1])
figure.colorbar(bar, cax=cax, label="pixels off, of 128", ticklocation="left")
show.crisp(figure, photographs=True)
off = {name: errors_of(flow)[lips].mean().item() for name, flow in made.items()}
less = 1 - off["bending part"] / off["affine part"]
print(
    f"On the lips the bending part is off by {less:.0%} less:", {name: round(value, 1) for name, value in off.items()}
)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: bending is better on the lips.
assert off["bending part"] < 0.75 * off["affine part"]

# %% [markdown]
# *Both parts know the same five pairs of points (arrows: from the driving frame back to the source). The bending part
# curves the mouth, the affine part leaves it nearly straight.* Far from the points both are wrong. As in notebook 1,
# masks will see to that.
#
# ## Equations 1 to 3: a plate on pins
#
# Of all maps that take each $P_i^D$ to $P_i^S$, which bends least?
#
# $$\min \iint \left(\frac{\partial^2 T}{\partial x^2}\right)^2 + 2\left(\frac{\partial^2 T}{\partial x
# \partial y}\right)^2 + \left(\frac{\partial^2 T}{\partial y^2}\right)^2 dx\,dy
# \quad\text{with}\quad T(P_i^D) = P_i^S. \tag{1}$$
#
# For thin metal plates this integral is the energy of bending, hence the name. The answer is known: an affine map, plus
# a multiple of one fixed function $U$ around each point,
#
# $$T(z) = A \begin{bmatrix} z \\ 1 \end{bmatrix} + \sum_{i=1}^{N} w_i\, U(\|P_i^D - z\|), \tag{2}$$
#
# $$U(r) = r^2 \log r^2. \tag{3}$$
#
# (The paper prints Equation 1 from $S$ to $D$, but centres Equation 2 on $P^D$. A backward flow starts in the driving
# frame. So must the spline; "Break it" below shows the other way.)
#
# Unknown are $N$ vectors $w_i$ and the 2 × 3 matrix $A$. The $N$ points give $N$ equations. Three more forbid the $w_i$ to
# do what $A$ can do: $\sum_i w_i = 0$ and $\sum_i w_i P_i^{D\top} = 0$. All are linear, so they form **one block matrix**:
#
# $$L \begin{bmatrix} w \\ A^\top \end{bmatrix} = \begin{bmatrix} P^S \\ 0 \end{bmatrix}
# \quad\text{with}\quad
# L = \begin{bmatrix} \mathbf{U} + \lambda I & \mathbf{P} \\ \mathbf{P}^\top & 0 \end{bmatrix}.$$
#
# $L$ has $N + 3$ rows and columns. $\mathbf{U}_{ij} = U(\|P_i^D - P_j^D\|)$, row $i$ of $\mathbf{P}$ is $[P_i^{D\top}, 1]$,
# and $\lambda$ is 0 for now.


# %%
def U(squared):
    """The kernel, as a function of r²; 0 at 0."""
    return squared * torch.log(squared.clamp_min(1e-30))


def squared_distances(a, b):
    """(..., n, 2) and (..., m, 2) -> (..., n, m)."""
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)


def block_matrix(control, regularisation=0.0):
    """L for control points (..., n, 2): (..., n + 3, n + 3)."""
    bend = U(squared_distances(control, control)) + regularisation * torch.eye(control.shape[-2]).to(
        control
    )  # (..., n, n)
    flat = torch.cat([control, torch.ones_like(control[..., :1])], dim=-1)  # (..., n, 3)
    zeros = torch.zeros_like(flat[..., :3, :])  # (..., 3, 3)
    return torch.cat([torch.cat([bend, flat], dim=-1), torch.cat([flat.mT, zeros], dim=-1)], dim=-2)


def fit_by_hand(control, values, regularisation=0.0):
    """Points (..., n, 2) and where they go -> (..., n + 3, 2): the n weights w_i, then the three columns of A."""
    L = block_matrix(control.double(), regularisation)
    right = torch.cat([values, torch.zeros_like(values[..., :3, :])], dim=-2).double()  # (..., n + 3, 2)
    return torch.linalg.solve(L, right).to(control)


def spline_by_hand(control, solution, places):
    """Equation 2 at places (..., m, 2)."""
    weights, A = solution[..., :-3, :], solution[..., -3:, :]  # (..., n, 2), (..., 3, 2)
    flat = torch.cat([places, torch.ones_like(places[..., :1])], dim=-1)  # (..., m, 3)
    return flat @ A + U(squared_distances(places, control)) @ weights  # (..., m, 2)


# %%
solution = fit_by_hand(five_D, five_S)
anywhere = torch.rand(1, 1, 200, 2) * 2 - 1
by_hand = spline_by_hand(five_D, solution, anywhere)
package = tps.fit_spline(five_D, five_S)(anywhere)
scipy = RBFInterpolator(five_D[0, 0].double(), five_S[0, 0].double(), kernel="thin_plate_spline", degree=1)
scipy = torch.from_numpy(scipy(anywhere[0, 0].double())).float()
print("equal to the package's:", torch.allclose(by_hand, package, atol=1e-5))
print("equal to scipy's:      ", torch.allclose(by_hand[0, 0], scipy, atol=1e-5))
print("goes through its points:", torch.allclose(spline_by_hand(five_D, solution, five_D), five_S, atol=1e-5))

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the same with a lambda, and U's shape.
# scipy's kernel is U / 2, so its smoothing is lambda / 2.
straighter = spline_by_hand(five_D, fit_by_hand(five_D, five_S, 0.1), anywhere)
assert torch.allclose(straighter, tps.fit_spline(five_D, five_S, regularisation=0.1)(anywhere), atol=1e-5)
smooth = dict(kernel="thin_plate_spline", degree=1, smoothing=0.05)
smoothed = RBFInterpolator(five_D[0, 0].double(), five_S[0, 0].double(), **smooth)(anywhere[0, 0].double())
assert torch.allclose(straighter[0, 0], torch.from_numpy(smoothed).float(), atol=1e-5)
assert torch.equal(U(anywhere.abs()), tps.kernel(anywhere.abs())) and U(torch.zeros(1)) == 0
assert torch.allclose(by_hand, package, atol=1e-5) and torch.allclose(by_hand[0, 0], scipy, atol=1e-5)

# %% jupyter={"source_hidden": true}
figure = plt.figure(figsize=(8.6, 3.7))
axis = figure.add_axes([0.0, 0.08, 0.4, 0.8])
L = block_matrix(five_D)[0, 0]
axis.imshow(L, cmap="RdBu_r", vmin=-1, vmax=1)
axis.axhline(4.5, color="black")
axis.axvline(4.5, color="black")
for i in range(8):
    for j in range(8):
        color = "white" if L[i, j] > 0.8 else "black"
        axis.text(j, i, f"{round(L[i, j].item(), 1) + 0.0:.1f}", ha="center", va="center", fontsize=8, color=color)
axis.set(xticks=[2, 6], yticks=[2, 6], xticklabels=[r"$\mathbf{U}$", r"$\mathbf{P}$"])
axis.set_yticklabels([r"$\mathbf{U}$", r"$\mathbf{P}^\top$"])
axis.xaxis.tick_top()
axis = figure.add_axes([0.42, -0.08, 0.56, 1.1], projection="3d", computed_zorder=False)
xs, ys = torch.meshgrid(torch.linspace(-0.55, 0.55, 40), torch.linspace(-0.05, 0.85, 40), indexing="xy")
there = torch.stack([xs, ys], -1).view(1, 1, -1, 2)
height = (spline_by_hand(five_D, solution, there) - there)[0, 0, :, 1].view(40, 40)
axis.plot_surface(xs.numpy(), ys.numpy(), height.numpy(), cmap="viridis", alpha=0.7, linewidth=0, zorder=1)
for (x, y), pin in zip(five_D[0, 0].tolist(), (five_S - five_D)[0, 0, :, 1].tolist(), strict=True):
    axis.plot([x, x], [y, y], [height.min().item() - 0.05, pin], color="black", linewidth=1.2, zorder=2)
    axis.plot([x], [y], [pin], "o", color="tab:red", markeredgecolor="white", markersize=7, zorder=3)
axis.set(xlabel="x", ylabel="y", zlabel="$T(z) - z$ along y", xticks=[-0.5, 0, 0.5], yticks=[0, 0.4, 0.8])
axis.tick_params(labelsize=7, pad=-2)
axis.view_init(24, -66)
axis.invert_yaxis()
show.crisp(figure, photographs=True)

# %% [markdown]
# *Left: the matrix $L$ of the five points. Right: the plate of the motion along $y$; the motion along $x$ has another.*
# Each point is a pin whose head (red) is as high as the point moves. The plate goes through all heads and bends as little
# as it can. Note that $U$ is no local bump: $U(r)$ dips to a minimum at $r \approx 0.6$, then grows without end. The three
# extra equations tame it far from the points.
#
# Does it bend least? The bending energy is $w^\top \mathbf{U} w$ up to a constant. Twenty rivals go through the same five
# points, and are led astray at three more places:


# %%
def bending(control, solution):
    w = solution[..., :-3, :]
    return (w.mT @ U(squared_distances(control, control)) @ w).diagonal(dim1=-2, dim2=-1).sum(-1)


astray = torch.rand(20, 1, 3, 2) * 2 - 1
there = spline_by_hand(five_D.expand(20, -1, -1, -1), solution, astray) + 0.05 * torch.randn(20, 1, 3, 2)
eight_D, eight_S = (
    torch.cat([five.expand(20, -1, -1, -1), more], dim=2) for five, more in ((five_D, astray), (five_S, there))
)
rivals = bending(eight_D, fit_by_hand(eight_D, eight_S))
print(f"{(rivals > bending(five_D, solution)).sum().item()} of 20 rivals bend more")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: all of them.
assert (rivals > bending(five_D, solution)).all()

# %% [markdown]
# ## Drag the points
#
# Five points like those of a die, on a picture with a grid. In each picture some of the points were dragged; the rest
# follows as smoothly as it can.

# %%
DIE = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.0, 0.0], [-0.5, 0.5], [0.5, 0.5]])
lined = S.clone()
lined[..., 5::10, :] = lined[..., :, 5::10] = 1  # no line at the edge, which a warp would repeat


def drag(axis, moves, regularisation=0.0):
    """Draw the picture after the points ``moves`` = {which: (right, down)} were dragged."""
    dragged = DIE.clone()
    for which, move in moves.items():
        dragged[which] += torch.tensor(move)
    flow = tps.part_flows(DIE[None, None], dragged[None, None], (SIZE, SIZE), regularisation=regularisation)
    axis.imshow(warp(lined, flow[:, 0])[0].permute(1, 2, 0))
    for which, (old, new) in enumerate(zip(to_pixels(DIE, (SIZE, SIZE)), to_pixels(dragged, (SIZE, SIZE)))):
        axis.annotate("", new.tolist(), old.tolist(), arrowprops=dict(arrowstyle="->", color="tab:red", linewidth=1.5))
        axis.plot(*new, "o", color="tab:red", markeredgecolor="white")
        axis.annotate(which, new.tolist(), xytext=(4, 4), textcoords="offset points", color="yellow", fontsize=10)
    axis.set_axis_off()


figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.3), layout="constrained")
cases = {
    "nothing": {},
    "2 up": {2: (0.0, -0.3)},
    "0 outwards": {0: (-0.2, -0.2)},
    "all alike": dict.fromkeys(range(5), (0.2, 0.1)),
}
for axis, (name, moves) in zip(axes, cases.items()):
    drag(axis, moves)
    axis.set_title(name, fontsize=9)
show.crisp(figure, photographs=True)

# %% [markdown]
# *Dragging one corner (third picture) moves the opposite corner of the picture, too.* A spline moves the whole picture,
# as an affine part does. The slider `stiffness` is $\lambda$, **regularisation**: a stiffer plate needn't reach its pins.


# %%
def playground(which, right, down, stiffness):
    figure, axis = plt.subplots(figsize=(3, 3), dpi=120)
    drag(axis, {which: (right, down)}, stiffness)
    return figure


moves = {name: FloatSlider(value, min=-0.6, max=0.6, step=0.05) for name, value in (("right", 0.0), ("down", -0.3))}
stiffness = FloatLogSlider(1e-3, base=10, min=-3, max=2, step=0.25)
show.playground(playground, which=IntSlider(2, min=0, max=4), **moves, stiffness=stiffness)

# %%
stiffer = {}
for strength in (0.0, 0.01, 0.1, 1.0, 100.0):
    fitted = fit_by_hand(five_D, five_S, strength)
    missed = (spline_by_hand(five_D, fitted, five_D) - five_S).norm(dim=-1).mean().item() * SIZE / 2
    stiffer[f"λ = {strength:g}"] = [missed, 100 * bending(five_D, fitted).item()]
print("The stiffer, the less it bends and the further it stays from its points:")
show.table(stiffer, ["points missed by, pixels", "bending × 100"], digits=1)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: a very stiff plate is the best affine map of five points.
flat_plate = spline_by_hand(five_D, fit_by_hand(five_D, five_S, 1e6), anywhere)
best = torch.cat([anywhere, torch.ones(1, 1, 200, 1)], -1) @ best_affine.T
assert torch.allclose(flat_plate, best, atol=1e-4)

# %% [markdown]
# At $\lambda \to \infty$ the spline is the affine part of the first figure: $\lambda$ stands before the $w_i$ alone and
# leaves $A$ free. **Published code** adds 0.01 to *all* of the diagonal; then not even a plain shift of all points is met
# exactly. **Ours** adds it to $\mathbf{U}$ only, the same 0.01.
#
# ### Break it: the wrong way round
#
# Take Equation 1 as printed, from the source to the driving frame, and use the result as a backward flow.

# %%
wrong = tps.part_flows(five_D, five_S, (SIZE, SIZE), regularisation=0.0)[:, 0]
made = {"nothing moves": 0 * wrong, "from D to S": bending_flow, "from S to D": wrong}
pictures = torch.cat([mouth_of(picture) for picture in (D, *(warp(S, flow) for flow in made.values()))])
show.crisp(show.draw_pictures({"": pictures}, columns=["driving", *made], side=2), photographs=True)
off = {name: [errors_of(flow)[lips].mean().item()] for name, flow in made.items()}
print("Fitted the wrong way round, the spline is worse than no motion:")
show.table(off, ["lips: pixels off"], digits=0, best={"lips: pixels off": "low"})

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: right way < nothing < wrong way.
assert off["from D to S"] < off["nothing moves"] < off["from S to D"]

# %% [markdown]
# ## Equations 5 and 6: ten splines of five points
#
# **Paper**: $K = 10$ splines, each of its own $N = 5$ points; no point is shared. A face is then $10 \cdot 5 \cdot 2 =
# 100$ numbers a frame, where ten affine parts are $10 \cdot (2 + 4) = 60$. A network gives one map of logits
# $\tilde{M}_k$ for each spline and one for the background (the paper's *contribution maps*). A softmax makes masks, and
# the masks mix, as in notebook 1:
#
# $$M_k(z) = \frac{\exp(\tilde{M}_k(z))}{\sum_{i=0}^{K} \exp(\tilde{M}_i(z))}, \tag{5}$$
#
# $$F_0(z) + z = M_0(z)\,T_{bg}(z) + \sum_{k=1}^{K} M_k(z)\,T_k(z). \tag{6}$$
#
# $T_{bg}$ is an affine map that follows the camera (Equation 4). How it is found leaves the main line, see
# [A2](A2_numerics.ipynb). Here the background stands still.


# %%
def spline_flows_by_hand(source_points, driving_points, size, regularisation=0.01):
    """Points (b, k, n, 2) -> part flows (b, k, 2, h, w). Fitted is how far a point moves: z itself drops out."""
    solution = fit_by_hand(driving_points, source_points - driving_points, regularisation)  # (b, k, n + 3, 2)
    places = identity_grid(*size).flatten(1).T.expand(*driving_points.shape[:2], -1, -1)  # (b, k, h w, 2)
    flow = spline_by_hand(driving_points, solution, places)  # (b, k, h w, 2)
    return flow.mT.unflatten(-1, size)  # (b, k, 2, h, w)


GROUPS = [[17, 19, 21, 36, 39], [22, 24, 26, 42, 45], [27, 30, 31, 35, 33], MOUTH, [2, 5, 8, 11, 14]]
many_S, many_D = (synthetic.landmarks(faces)[:, torch.tensor(GROUPS)] for faces in (source, driving))  # (1, 5, 5, 2)
face = region("skin", "nose", "brows", "eyes", "upper lip", "lower lip", "mouth")
near = squared_distances(identity_grid(SIZE, SIZE).flatten(1).T, many_D[0].flatten(0, 1))  # (h w, 25)
near = near.view(SIZE, SIZE, 5, 5).amin(-1).permute(2, 0, 1)[None]  # to the nearest point of each group
M = torch.softmax(-near / (2 * 0.1**2), dim=1) * face
M = torch.cat([1 - M.sum(1, keepdim=True), M], 1)
kinds = {"affine parts": 1e6, "splines": 0.01}  # a very stiff spline is an affine part
flows = {
    name: combine(with_background(spline_flows_by_hand(many_S, many_D, (SIZE, SIZE), r)), M)
    for name, r in kinds.items()
}

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the package's part flows are ours.
package = tps.part_flows(many_S, many_D, (SIZE, SIZE), regularisation=0.01)
assert torch.allclose(spline_flows_by_hand(many_S, many_D, (SIZE, SIZE)), package, atol=1e-5)

# %%
palette = torch.cat([torch.ones(1, 3), torch.tensor(plt.colormaps["tab10"].colors)])  # white is the background
owners = palette[M.argmax(1)].permute(0, 3, 1, 2)
maps = [show.heat(errors_of(flow) * face, largest=4) for flow in flows.values()]
gain = errors_of(flows["affine parts"]) - errors_of(flows["splines"])
colours = torch.from_numpy(plt.colormaps["RdBu"]((gain[0, 0] * face[0, 0] / 4 + 0.5).clamp(0, 1).numpy())[..., :3])
pictures = torch.cat([0.5 * owners + 0.5 * D, *maps, colours.permute(2, 0, 1)[None].float()])
titles = ["strongest mask", *(f"{name}: pixels off" for name in flows), "splines better (blue)"]
figure = show.draw_pictures({"": pictures}, columns=titles, side=2)
for k, points in enumerate(to_pixels(many_D[0], (SIZE, SIZE))):
    figure.axes[0].plot(*points.T, "o-", color=palette[k + 1].tolist(), markeredgecolor="white", markersize=5)
for axis, scale, label in (
    (figure.axes[2], plt.Normalize(0, 4), "viridis"),
    (figure.axes[3], plt.Normalize(-2, 2), "RdBu"),
):
    figure.colorbar(
        plt.cm.ScalarMappable(scale, label), cax=axis.inset_axes([0.05, -0.1, 0.9, 0.05]), orientation="horizontal"
    )
show.crisp(figure, photographs=True)
off = {"nothing moves": 0 * true_flow, **flows}
off = {name: [errors_of(flow)[where].mean().item() for where in (face, lips)] for name, flow in off.items()}
less = 1 - off["splines"][1] / off["affine parts"][1]
print(f"Splines are off by {less:.0%} less on the lips; on the whole face they are alike:")
show.table(off, ["whole face", "lips"], digits=1)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: alike on the face, better on the lips.
assert off["splines"][0] < 1.1 * off["affine parts"][0] < 0.2 * off["nothing moves"][0]
assert off["splines"][1] < 0.75 * off["affine parts"][1]

# %% [markdown]
# *Bending pays on the lips. On a cheek it costs (red), where no point says how the skin moves.* Both sides know the same 25 true landmarks in five groups, and use the
# same masks. The price is the number of points that a detector must find.
#
# ## The network in the open
#
# TPSM's coarse motion is notebook 1's `DenseMotion` with splines. Each of 11 parts now brings $5 + 3$ channels, five
# heatmaps of variance 0.01 and then one warped source, together 88. Five points that follow each other form a spline. `points` come from a detector, which [notebook
# 3](03_unsupervised_keypoints.ipynb) builds.


# %%
class SplineMotion(nn.Module):
    def __init__(self, splines, points, *, base, levels, maximum):
        super().__init__()
        self.points = points
        inputs = (points + 3) * (splines + 1)  # 88
        self.hourglass = Hourglass(inputs, base=base, levels=levels, maximum=maximum, norm="batch")
        self.mask_head = nn.Conv2d(self.hourglass.channels, splines + 1, 3, padding=1)
        self.occlusion_head = nn.Conv2d(self.hourglass.channels, 1, 3, padding=1)

    def heatmaps(self, points, size):  # (b, k, n, 2)
        squared = (identity_grid(*size) - points[..., None, None]).square().sum(3)  # (b, k, n, h, w)
        return torch.exp(-squared / (2 * 0.01))

    def forward(self, source, source_points, driving_points, scales=None):
        source_points, driving_points = (p.unflatten(1, (-1, self.points)) for p in (source_points, driving_points))
        size = source.shape[-2:]  # source (b, 3, 32, 32), points (b, 10, 5, 2)
        flows = with_background(spline_flows_by_hand(source_points, driving_points, size))  # (b, 11, 2, 32, 32)
        H = self.heatmaps(driving_points, size) - self.heatmaps(source_points, size)  # (b, 10, 5, 32, 32)
        H = torch.cat([torch.zeros_like(H[:, :1]), H], dim=1)  # (b, 11, 5, 32, 32): the background has no points
        warped = torch.stack([warp(source, flow) for flow in flows.unbind(1)], dim=1)  # (b, 11, 3, 32, 32)
        evidence = torch.cat([H, warped], dim=2).flatten(1, 2)  # (b, 88, 32, 32)
        features = self.hourglass(evidence)  # (b, 112, 32, 32)
        masks = contribution_masks(self.mask_head(features), scales)  # (b, 11, 32, 32): Eq. 5, with scales Eq. 7
        return combine(flows, masks), masks, self.occlusion_head(features)  # Eq. 6


# %%
model = AnimationModel.load("tiny-tps")
ours = SplineMotion(10, 5, base=24, levels=3, maximum=96)
prefix = "prior.dense_motion."
weights = {name.removeprefix(prefix): w for name, w in model.state_dict().items() if name.startswith(prefix)}
ours.load_state_dict(weights)  # every name and shape must fit
ours.eval()
S64, D64 = (synthetic.render(faces, 64) for faces in (source, driving))
with torch.no_grad():
    a, b = model.encode_source(S64).motion, model.encode_driving(D64)  # 50 points each, (1, 50, 2)
    flow, masks, occlusion = ours(nn.functional.avg_pool2d(S64, 2), a.points, b.points)
    package = model.prior(S64, a, b, None)
for name, mine in dict(flow=flow, masks=masks, occlusion=occlusion).items():
    print(
        f"{name:10} {tuple(mine.shape)!s:18} equals the package's:",
        torch.allclose(mine, getattr(package, name), atol=1e-4),
    )

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: flow, masks and occlusion are the package's.
assert torch.allclose(flow, package.flow, atol=1e-4) and torch.allclose(masks, package.masks, atol=1e-4)
assert torch.allclose(occlusion, package.occlusion, atol=1e-3)

# %%
truth, seen = synthetic.flow_between(source, driving, 64)
person = (synthetic.parsing(driving, 64) != synthetic.PARTS.index("background"))[:, None] & seen.bool()
found = resize_flow(flow, (64, 64))
owners = nn.functional.interpolate(palette[masks.argmax(1)].permute(0, 3, 1, 2), scale_factor=2)
pictures = torch.cat([S64, D64, owners, warp(S64, found), show.heat(errors_of(found, truth) * person, largest=3)])
titles = ["source, its points", "driving, its points", "strongest mask", "source, warped", "pixels off (0 to 3, of 64)"]
figure = show.draw_pictures({"": pictures}, columns=titles, side=1.75)
for axis, motion in zip(figure.axes, (a, b)):
    for k in (2, 3, 7):
        points = to_pixels(motion.points.unflatten(1, (10, 5))[0, k], (64, 64))
        axis.plot(*points.T, "o-", color=palette[k + 1].tolist(), markersize=5, linewidth=1.5, markeredgecolor="white")
show.crisp(figure, photographs=True)

# %% [markdown]
# *The head follows, the smile is missing: the error sits at the corners of the mouth.* A line joins the five points of a
# spline; three of ten are drawn. The points of one spline lie far apart, because nobody told the detector to keep them
# together. White is the background.
#
# ## Equations 7 and 8: dropout
#
# Softmax is a contest. The derivative of $M_k$ by its own logit is $M_k (1 - M_k)$. So a spline that owns nothing learns
# nothing, and will never own anything. **Paper**: early in training each spline is dropped at random with probability
# $P$, and the others must do without it:
#
# $$M_k = \frac{b_k \exp(\tilde{M}_k) / (1 - P)}{M_T},\quad M_0 = \frac{\exp(\tilde{M}_0)}{M_T}, \tag{7}$$
#
# $$M_T = \exp(\tilde{M}_0) + \sum_{i=1}^{K} b_i \exp(\tilde{M}_i) / (1 - P), \tag{8}$$
#
# where $b_k$ is 0 with probability $P$, else 1. The background is never dropped. At one pixel:


# %%
def masks_naive(logits, kept, P):
    """Equations 7 and 8 at one pixel: K + 1 logits and K times 0 or 1."""
    terms = [torch.exp(logits[0])]
    for k in range(len(kept)):
        terms.append(kept[k] * torch.exp(logits[k + 1]) / (1 - P))
    return torch.stack([term / sum(terms) for term in terms])


logits, chances, P = torch.randn(1, 6, 1, 1), torch.rand(1, 5), 0.3
package = contribution_masks(logits, dropout_scales(chances, P))  # the scales are b_k / (1 - P)
print("equal:", torch.allclose(package.flatten(), masks_naive(logits.flatten(), chances[0] >= P, P), atol=1e-6))
sums = dropout_scales(torch.rand(50_000, 5), P) * logits.flatten()[1:].exp()
kept = sums.sum(1).mean() / logits.flatten()[1:].exp().sum()
print(f"of the sum of exponentials, on average: {kept:.1f} with the factor, {kept * (1 - P):.1f} without")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the factor keeps the expected sum of exponentials.
assert abs(kept - 1) < 0.02

# %% [markdown]
# Why $1 / (1 - P)$? It keeps the expected *sum of exponentials*, so that the background isn't favoured. **Published code**
# divides the logits instead, after it has taken their exponentials: nothing is rescaled, and a share $P$ is lost.
#
# Does dropout help? Eight splines begin at random places with random logits, so that some are ahead. Everything is free,
# and the loss is the distance from the true flow, summed over 32 × 32 pixels. Dropout is on for 70 % of the steps, or
# off.

# %%
goal = synthetic.flow_between(source, driving, 32)[0]


def contest(seed, P, steps=300):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 8, 5, 2, generator=generator) * 1.6 - 0.8
    moves, logits = torch.zeros(1, 8, 5, 2), 2 * torch.randn(1, 9, 1, 1, generator=generator).expand(-1, -1, 32, 32)
    moves, logits = moves.requires_grad_(), logits.clone().requires_grad_()
    # Plain gradient steps for the logits: Adam would enlarge the small gradients that this is about.
    optimizers = torch.optim.Adam([moves], lr=0.02), torch.optim.SGD([logits], lr=0.3)
    for step in range(steps):
        scales = dropout_scales(torch.rand(1, 8, generator=generator), P if step < 0.7 * steps else 0.0)
        flows = with_background(tps.part_flows(points + moves, points, (32, 32)))
        loss = errors_of(combine(flows, contribution_masks(logits, scales)), goal).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return torch.softmax(logits, 1).detach(), loss.item() / 32**2


def working(masks):
    """How many splines do the work: exp(entropy) of their shares of the picture. 8 if all own alike, 1 if one owns all."""
    shares = masks[0, 1:].mean((1, 2)) / masks[0, 1:].sum(0).mean()
    return (-(shares * shares.log()).sum()).exp().item()


finished = {P: [contest(seed, P) for seed in range(3)] for P in (0.0, 0.3)}

# %%
# NBVAL_IGNORE_OUTPUT
rows = {
    f"P = {P}": torch.cat([palette[m.argmax(1)].permute(0, 3, 1, 2) for m, _ in runs]) for P, runs in finished.items()
}
figure = show.draw_pictures(rows, columns=[f"seed {seed}" for seed in range(3)], side=1.8)
for axis, (m, error) in zip(figure.axes, (run for runs in finished.values() for run in runs), strict=True):
    axis.set_xlabel(f"{working(m):.1f} at work, {error:.2f} px off", fontsize=8)
figure.subplots_adjust(hspace=0.2)
show.crisp(figure)
counts = {P: torch.tensor([working(m) for m, _ in runs]) for P, runs in finished.items()}
off = {P: torch.tensor([error for _, error in runs]) for P, runs in finished.items()}
wins = (off[0.3] < off[0.0]).sum().item()
print(f"With dropout the flow ends nearer to the truth for {wins} of 3 seeds.")

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: more splines at work, smaller errors.
assert counts[0.3].mean() > counts[0.0].mean() + 0.3 and off[0.3].mean() < 0.8 * off[0.0].mean()

# %% [markdown]
# *Dropout keeps more splines at work (colours; white is the background), and the flow ends closer to the true one.* It
# isn't a cure: a spline that begins far behind gets its chance only when all that are ahead of it are dropped. **Published
# code** raises $P$ from 0.1 to 0.3 and stops at epoch 35 of 100; the package does the same in shares of the run.
#
# ## In five lines
#
# - **You can now** fit a spline with one block matrix, and write TPSM's coarse motion around notebook 1's hourglass.
# - **The paper says** that ten splines of five points each, mixed by masks, follow curved motion better than affine parts.
# - **Its code does** regularise all of the diagonal, and doesn't rescale after dropout.
# - **We chose** to fit backward, from driving to source points, to fit distances, and to regularise $\mathbf{U}$ only.
# - **We measured** that bending helps on the lips and hardly elsewhere, and that dropout puts more splines to work.
#
# | equation (TPSM) | where | module |
# |---|---|---|
# | 1 to 3 | here, A plate on pins | `tps.fit_spline`, `tps.kernel` |
# | 4, background | [A2, The wall moves](A2_numerics.ipynb) | `tps.background_flow`, `background` |
# | 5, 6 | here, Ten splines of five points; The network in the open | `dense_motion.DenseMotion` |
# | 7, 8 | here, Dropout | `dense_motion.dropout_scales`, `contribution_masks` |
# | 9, $\mathcal{L}_{rec}$ | notebook 9a | `losses.perceptual_loss` |
# | 10, $\mathcal{L}_{eq}$ | [notebook 3](03_unsupervised_keypoints.ipynb) | `losses.equivariance_points` |
# | 11, 12, $\mathcal{L}_{bg}$, and why not 11 | [A2, The wall moves](A2_numerics.ipynb) | `losses.background_loss` |
# | 13, $\mathcal{L}_{warp}$ | notebook 9a | `losses.warp_loss` |
# | 14, their sum | [notebook 11](11_train_a_full_model.ipynb) | `training.objective` |
# | section 3.2, occlusions at several sizes | [notebook 8](08_occlusion_gated_unet.ipynb) | `dense_motion`, `generator` |
#
# **Open.** The spline fit needs points that aren't on one line; [A2](A2_numerics.ipynb) shows what the package does
# then. Whether $N = 5$ is best is unknown: the paper varies $K$ only.
#
# ## Exercises
#
# **1 (easy).** Five points of a die move. In which cases must the plate bend? Answer with the letters, such as `"ab"`.
# (a) All shift by the same vector. (b) All turn by 30 degrees about the middle. (c) Point 0 alone moves. (d) All are
# mirrored at the vertical axis. (e) The two upper points move apart, the other three stay.

# %%
my_letters = None


# %% jupyter={"source_hidden": true}
def check_1(letters):
    if letters is None:
        return "not yet"
    turn = torch.tensor([[0.866, 0.5], [-0.5, 0.866]])
    cases = {"a": DIE + 0.2, "b": DIE @ turn, "c": DIE.clone(), "d": DIE * torch.tensor([-1.0, 1.0]), "e": DIE.clone()}
    cases["c"][0] += 0.2
    cases["e"][0, 0] -= 0.2
    cases["e"][1, 0] += 0.2
    bent = {name for name, to in cases.items() if fit_by_hand(DIE, to)[:5].abs().max() > 1e-4}
    return "right" if set(letters) == bent else "not these"


print("Exercise 1:", check_1(my_letters))

# %% [markdown]
# **2 (builds; medium).** Notebook 3 needs the derivative of Equation 2 at points. With $s = r^2$ it is $\partial U /
# \partial z = 2 (\log s + 1)(z - P_i)$. Write it, and mind $z = P_i$.


# %%
def my_jacobian(control, solution, places):
    """Control points (n, 2), a solution (n + 3, 2), places (m, 2) -> (m, 2, 2): dT_i / dz_j."""
    return None  # your turn


# %% jupyter={"source_hidden": true}
def check_2(function):
    control, to = five_D[0, 0].double(), five_S[0, 0].double()
    places = torch.cat([torch.rand(6, 2).double(), control[:1]])
    fitted = fit_by_hand(control, to)
    answer = function(control, fitted, places)
    if answer is None:
        return "not yet"
    if not answer.isfinite().all():
        return "NaN at a control point"
    nudge, columns = 1e-6, []
    for step in nudge * torch.eye(2).double():
        there, back = (spline_by_hand(control, fitted, places + sign * step) for sign in (1, -1))
        columns.append((there - back) / (2 * nudge))
    return "right" if torch.allclose(answer, torch.stack(columns, -1), atol=1e-4) else "not the derivative"


print("Exercise 2:", check_2(my_jacobian))

# %% [markdown]
# **3 (builds; medium).** `masks_naive` overflows at logits of 100. Write Equations 7 and 8 for maps, with `torch.softmax`
# alone. A factor in front of an exponential is a summand within.


# %%
def my_masks(logits, kept, P):
    """Logits (b, K + 1, h, w), kept (b, K) of 0 and 1 -> masks (b, K + 1, h, w)."""
    return None  # your turn


# %% jupyter={"source_hidden": true}
def check_3(function):
    logits, kept = torch.randn(2, 6, 4, 4), torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    answer = function(logits, kept, 0.3)
    if answer is None:
        return "not yet"
    expected = contribution_masks(logits, kept / 0.7)
    large = function(1000 * logits, kept, 0.3)
    return "right" if torch.allclose(answer, expected, atol=1e-6) and large.isfinite().all() else "not equal"


print("Exercise 3:", check_3(my_masks))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. `"ce"`: shifts, turns and mirrorings are affine, $A$ does them alone. In (e) the upper two ask for a stretch along $x$
#    that the lower two and the middle contradict.
# 2. ```python
#    offset = places[:, None] - control  # (m, n, 2)
#    slope = 2 * (torch.log(offset.square().sum(-1).clamp_min(1e-30)) + 1)
#    bend = torch.einsum("ni,mnj->mij", solution[:-3], slope[..., None] * offset)
#    return solution[-3:-1].T + bend
#    ```
# 3. ```python
#    summands = torch.cat([torch.zeros_like(kept[:, :1]), (kept / (1 - P)).log()], dim=1)
#    return torch.softmax(logits + summands[..., None, None], dim=1)
#    ```
#    The logarithm of 0 is minus infinity, which softmax accepts, because the background always stays.
#
# </details>
#
# **Next:** [3 · Unsupervised keypoints](03_unsupervised_keypoints.ipynb), where points come from; the detours are in
# [A2 · Numerics](A2_numerics.ipynb).
