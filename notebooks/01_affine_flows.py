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
# # 1 · Affine flows: ten points move a whole face
#
# We want to move a photo as a person in a video moves. The idea that all papers of this course share: say *where each
# pixel of the new picture comes from in the photo*, and fetch it there. That "where" is a **flow**, two numbers a
# pixel. A picture of 256 × 256 has 131,072 of them, too many to guess one by one. So we start with ten moving points,
# let each carry its surroundings along, and mix the ten motions.
#
# This notebook builds that mixture, Equations 1 to 3 of *Learning Motion Refinement for Unsupervised Face Animation*
# (below: **MRFA**, section 3.1), and measures it against something no paper could: faces whose true flow is known.

# %%
from dataclasses import fields, replace

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatSlider

from minimodel import affine, show
from minimodel.data import synthetic
from minimodel.dense_motion import DenseMotion
from minimodel.evaluation import metrics
from minimodel.model import AnimationModel
from minimodel.motion import CoarseMotion
from minimodel.warping import from_pixels, full_precision, identity_grid, resize_flow, to_pixels, warp

torch.manual_seed(0)
SIZE = 128

# %% [markdown]
# One person, drawn twice: the **source** $S$ (the photo) and the **driving** frame $D$ (a frame of the video). The
# renderer also tells us the true flow from $D$ back to $S$, and which pixels of $D$ the source shows at all. ([Notebook
# 0](00_start_here.ipynb) introduces these faces.)

# %%
identity = synthetic.sample_identities(1, seed=7)
states = synthetic.sample_states(40, seed=3)
source = synthetic.Faces(identity, states[8])
moved = replace(states[11], light=states[8].light, ambient=states[8].ambient)  # in one light, as in one film
driving = synthetic.Faces(identity, moved)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)
true_flow, visible = synthetic.flow_between(source, driving, SIZE)
drawn = torch.cat([S, D, show.flow_colors(true_flow), visible.expand(-1, 3, -1, -1)])
show.pictures({"": drawn}, columns=["source", "driving", "true flow", "visible"])

# %% [markdown]
# Colours of a flow: the hue is its direction, the strength its length; white stands still. In the fourth picture black
# is what the source doesn't show. The third is what this notebook tries to build out of ten points.
#
# ## Where is a pixel?
#
# Many a bug in this field is a matter of coordinates. We use one convention everywhere: a position $z$ is normalised,
# $x$ before $y$, and the picture spans $[-1, 1]$ **from edge to edge**. A pixel is a little square, so the *centre* of
# pixel $j$ of $W$ lies at
#
# $$x_j = \frac{2j + 1}{W} - 1 .$$

# %%
grid = identity_grid(2, 4)  # a picture of 2 x 4 pixels
print("x of the columns:", grid[0, 0].tolist())
print("y of the rows:   ", grid[1, :, 0].tolist())
assert grid[0, 0, 0] == (2 * 0 + 1) / 4 - 1

# %% [markdown]
# Two things follow, which we will use everywhere. The same number means the same place at every resolution, so a flow
# can be resized without being rescaled. And averaging 2 × 2 pixels leaves things where they were: the average of two
# neighbouring centres is the centre of the larger pixel.

# %%
coarse = identity_grid(4, 4)
averaged = torch.nn.functional.avg_pool2d(identity_grid(8, 8), 2)
assert torch.allclose(averaged, coarse)

# %% [markdown]
# `from_pixels` and `to_pixels` go between a place and a pixel of a picture of a given size, so a pixel of one size can
# be found in another. Mind the half: pixel 1 of 4 is not pixel 2 of 8, but lies between 2 and 3.

# %%
pixel = torch.tensor([[1.0, 1.0]])
place = from_pixels(pixel, (4, 4))
assert torch.equal(place[0], coarse[:, 1, 1]) and torch.equal(to_pixels(place, (4, 4)), pixel)
assert torch.equal(to_pixels(place, (8, 8)), torch.tensor([[2.5, 2.5]]))

# %% [markdown]
# A third thing is easy to overlook. A place needs more digits than a colour. Training often computes in bfloat16, which
# has eight bits for a number's digits: enough for features, but neighbouring pixels of a large picture become one and
# the same place. So what computes with places is marked in the package with `full_precision`, which keeps it out of
# such *autocasts*:


# %%
@full_precision
def turned(places, matrix):
    return places @ matrix.T


places, nothing = identity_grid(1, 1024)[:, 0].T, torch.eye(2)
with torch.autocast("cpu", dtype=torch.bfloat16):
    rounded, exact = places @ nothing.T, turned(places, nothing)
print(f"1024 places in a row, {len(rounded.unique(dim=0))} of them different in bfloat16")
assert torch.equal(exact, places)

# %% [markdown]
# ## Warping
#
# A flow $F$ belongs to the *driving* grid and points *back* to the source:
#
# $$\tilde D(z) = S\big(z + F(z)\big).$$
#
# Why backwards? Then every pixel of the result gets exactly one value. Pushing source pixels forwards would leave holes
# and make collisions. The price is that $z + F(z)$ falls between pixels, so we mix the four around it:


# %%
def warp_naive(image, flow):
    """One pixel at a time; pixels beyond the edge repeat it."""
    channels, height, width = image.shape
    made = torch.zeros(channels, *flow.shape[1:])
    positions = to_pixels((identity_grid(*flow.shape[1:]) + flow).permute(1, 2, 0), (height, width))
    for i, row in enumerate(positions.tolist()):
        for j, (x, y) in enumerate(row):
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            a, b = x - left, y - top
            corner = image[:, top : top + 2, left : left + 2]
            weights = torch.tensor([[(1 - a) * (1 - b), a * (1 - b)], [(1 - a) * b, a * b]])
            made[:, i, j] = (corner * weights).sum((1, 2))
    return made


by_hand = warp_naive(S[0], true_flow[0])
by_torch = warp(S, true_flow)
assert torch.allclose(by_hand, by_torch[0], atol=1e-4)

# %% [markdown]
# `minimodel.warping.warp` is the same in one call of `grid_sample`, and the assertion says that they agree. Here is the
# source, warped by the true flow, beside the frame that it should become. The outlines, red and white, are around what
# the source doesn't show:

# %%
difference = show.heat(4 * (by_torch - D).abs().mean(1, keepdim=True))
columns = ["source", "warped source", "driving", "difference × 4"]
figure = show.draw_pictures({"": torch.cat([S, by_torch, D, difference])}, columns=columns, side=2)
for axis, color in ((figure.axes[1], "tab:red"), (figure.axes[3], "white")):
    axis.contour(visible[0, 0], [0.5], colors=color, linewidths=0.8)
plt.show()

# %% [markdown]
# What remains? Above all what is inside the outlines, such as the wall above the head. It was behind the head, so
# fetching it fetches hair. No flow can invent a wall, or the inside of a shut mouth. And light: the head has turned
# under the lamp, and moving a pixel doesn't relight it. The renderer can switch the lamp off (only *ambient* light, the
# same from all sides). Then, where the source shows the pixel, a flow is enough:

# %%
lit = [replace(faces, state=replace(faces.state, ambient=torch.ones(1))) for faces in (source, driving)]
S_flat, D_flat = (synthetic.render(faces, SIZE) for faces in lit)
error = (warp(S_flat, true_flow) - D_flat).abs().mean(1, keepdim=True)
assert error[visible > 0.5].mean() < 0.01 and error[visible < 0.5].mean() > 0.1

# %% [markdown]
# ### Break it: mix two conventions
#
# Many programs put the centres of the outermost pixels at $-1$ and $1$ (`align_corners=True`) in one place, and half a
# pixel further in, as we do, in another. The error is half a pixel at most. Does that matter?


# %%
def warp_mixed(image, flow):
    """Our grid, read by the other convention."""
    positions = (identity_grid(*flow.shape[-2:]) + flow).permute(0, 2, 3, 1)
    return torch.nn.functional.grid_sample(image, positions, padding_mode="border", align_corners=True)


still = torch.zeros_like(true_flow)
assert metrics.l1(warp(S, still), S) < 1e-6  # a picture that doesn't move at all stays what it is
assert metrics.l1(warp_mixed(S, still), S) > 0.002  # read by the other convention, it changes

# %% [markdown]
# Half a pixel looks harmless in one picture. But networks warp what was already warped, so let us repeat it:

# %%
right, mixed = [S], [S]
for _ in range(15):
    right.append(warp(right[-1], still))
    mixed.append(warp_mixed(mixed[-1], still))
rows = {name: torch.cat(made[::5]) for name, made in (("ours", right), ("mixed", mixed))}
show.pictures(rows, columns=["the source", "5 times", "10 times", "15 times"])
assert torch.allclose(right[-1], S, atol=1e-3)

# %% [markdown]
# Each mixed warp enlarges the picture by one pixel in 128 and blurs it. A network can learn to work against that, but
# its flow is then no longer the motion.
#
# ## Equation 1: what one point knows
#
# A detector finds a point $p^k_S$ in the source and the same point $p^k_D$ in the driving frame, and for each a 2 × 2
# matrix $A^k$ that says how its surroundings are stretched and turned. Around the point the motion is then
#
# $$\mathcal{T}^k_{S \leftarrow D}(z) = p^k_S + A^k_S\,(A^k_D)^{-1}\,(z - p^k_D). \tag{1}$$
#
# It maps a place $z$ of the driving frame to a place in the source; the part's *flow* is the way there,
# $\mathcal{T}^k_{S \leftarrow D}(z) - z$. Read it from the right: how far is $z$ from the driving point; undo the
# driving frame's stretch; apply the source's; start from the source's point. Neither matrix means anything alone. Each
# maps from an abstract reference picture that nobody ever sees, and in the product the reference cancels. (The paper's
# text says *to* the reference; its equation needs *from*.)


# %%
def part_flow_naive(source_point, driving_point, source_affine, driving_affine, size):
    """Equation 1, pixel by pixel, as a displacement: T(z) - z."""
    flow = torch.zeros(2, size, size)
    grid = identity_grid(size, size)
    jacobian = source_affine @ torch.linalg.inv(driving_affine)
    for i in range(size):
        for j in range(size):
            z = grid[:, i, j]
            flow[:, i, j] = source_point + jacobian @ (z - driving_point) - z
    return flow


points = torch.rand(2, 1, 1, 2) - 0.5
matrices = torch.eye(2) + 0.3 * torch.randn(2, 1, 1, 2, 2)
ours = affine.part_flows(points[0], points[1], matrices[0], matrices[1], (16, 16))
naive = part_flow_naive(points[0, 0, 0], points[1, 0, 0], matrices[0, 0, 0], matrices[1, 0, 0], 16)
assert torch.allclose(ours[0, 0], naive, atol=1e-5)

# %% [markdown]
# One point sits on the tip of the nose, and its part flow moves the *whole* picture. That is Equation 1 by itself, and
# why masks will be needed. First at four settings, then with sliders (in a running notebook).

# %%
nose = synthetic.landmarks(source)[:, 30:31]


def one_part(right, down, turn, stretch):
    """The source, moved as one part: the driving point is beside the source's, turned and stretched."""
    angle = torch.tensor(turn * torch.pi / 180)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 1, 2, 2) * stretch
    moved = nose + torch.tensor([right, down])
    flow = affine.part_flows(nose, moved, torch.eye(2).view(1, 1, 2, 2), matrix, (SIZE, SIZE))[:, 0]
    return warp(S, flow)


settings = {
    "shift right": (0.3, 0, 0, 1),
    "turn": (0, 0, 30, 1),
    "stretch": (0, 0, 0, 1.5),
    "all": (0.3, -0.2, 30, 0.7),
}
show.pictures({"": torch.cat([one_part(*values) for values in settings.values()])}, columns=list(settings))


# %%
def draw_part(**setting):
    return show.draw_pictures({"": torch.cat([S, one_part(**setting)])}, side=2.5)


ranges = dict(right=(0.15, -0.4, 0.4), down=(0.0, -0.4, 0.4), turn=(20.0, -60, 60), stretch=(1.2, 0.5, 2))
sliders = {name: FloatSlider(value, min=low, max=high) for name, (value, low, high) in ranges.items()}
show.playground(draw_part, **sliders)

# %% [markdown]
# ## Equation 2: the background
#
# Part 0 is everything that isn't the person. It is assumed to stand still:
#
# $$\mathcal{T}^0_{S \leftarrow D}(z) = z. \tag{2}$$
#
# As a displacement, that is a flow of zeros, and `affine.with_background` puts it in front. It is a simplification: in
# our pair the camera moved a little, which is why the wall has a colour in the true flow. Notebook 2 lets the
# background move.
#
# ## Equation 3: who owns which pixel?
#
# A mask $M^k(z)$ says how much pixel $z$ belongs to part $k$ of $K = 10$; the masks sum to one. The coarse flow is the mixture
#
# $$\mathcal{F}_0(z) = \mathcal{T}_{S \leftarrow D}(z) = \sum_{k=0}^{K} M^k(z)\,\mathcal{T}^k_{S \leftarrow D}(z). \tag{3}$$
#
# The paper mixes *places*; we mix *displacements*, and call the result $\mathcal{F}_0$ as well.
# Because the masks sum to one, that is the same: $\sum_k M^k \mathcal{T}^k - z = \sum_k M^k (\mathcal{T}^k - z)$.
#
# In the real model a network finds points, matrices and masks. Here we cheat, because we can: ten of the renderer's
# landmarks are the points, the matrices are measured from the true flow around them, and the masks say "the nearest
# point wins". What error is left then belongs to the *assumption* that a face is ten stiff pieces, and to such simple
# masks, not to any network.

# %%
TEN = [2, 8, 14, 19, 24, 30, 37, 44, 48, 54]  # jaw, brows, nose, eyes, corners of the mouth
p_S, p_D = (synthetic.landmarks(faces)[:, TEN] for faces in (source, driving))
parsing = synthetic.parsing(driving, SIZE)


def region(*names):
    """Where the driving frame shows these parts of the face, and the source does too."""
    wanted = torch.tensor([synthetic.PARTS.index(name) for name in names])
    return torch.isin(parsing, wanted)[:, None] & visible.bool()


face = region("skin", "nose", "brows", "eyes", "upper lip", "lower lip")


# %%
def measured_matrix(point, radius=0.25):
    """The matrix that fits the true flow best around a point: least squares over the pixels of the face near it."""
    grid = identity_grid(SIZE, SIZE).flatten(1).T
    near = ((grid - point).norm(dim=1) < radius) & face.flatten()
    here = grid[near]
    there = here + true_flow[0].flatten(1).T[near]
    ones = torch.ones(len(here), 1)
    return torch.linalg.lstsq(torch.cat([here, ones], 1), there).solution[:2].T


A_D = torch.eye(2).expand(1, len(TEN), 2, 2)
A_S = torch.stack([measured_matrix(point) for point in p_D[0]])[None]

# %% [markdown]
# The background and the ten part flows, each used alone on the whole picture. Each is right around its own point (red)
# and wrong far away:

# %%
part_flows = affine.part_flows(p_S, p_D, A_S, A_D, (SIZE, SIZE))
alone = warp(S.expand(len(TEN) + 1, -1, -1, -1), affine.with_background(part_flows)[0])
figure, axes = plt.subplots(2, 6, figsize=(9, 3.2))
for number, (axis, picture) in enumerate(zip(axes.flat, [*alone, D[0]])):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(["background", *(f"part {k}" for k in range(1, len(TEN) + 1)), "driving"][number], fontsize=9)
    axis.set_axis_off()
    if 1 <= number <= len(TEN):
        show.dots(axis, p_D[0, number - 1 : number], (SIZE, SIZE), color="tab:red")
plt.show()

# %% [markdown]
# Now the masks: $M^k(z)$ falls off with the distance from the point as a Gaussian, and a softmax makes them sum to one.
# The renderer says where the face ends; there the background takes over. We mix twice: once with the measured matrices,
# once with the identity for all of them, so that a part can shift but not turn or stretch.

# %%
WIDTH = 0.1
distance = (identity_grid(SIZE, SIZE)[None, None] - p_D[..., None, None]).square().sum(2)
M = torch.softmax(-distance / (2 * WIDTH**2), dim=1) * face
M = torch.cat([1 - M.sum(1, keepdim=True), M], 1)
assert torch.allclose(M.sum(1), torch.ones(1, SIZE, SIZE))

shifts = affine.part_flows(p_S, p_D, A_D, A_D, (SIZE, SIZE))
F_shift, F_affine = (affine.combine(affine.with_background(flows), M) for flows in (shifts, part_flows))

# %% [markdown]
# Equation 3 itself, pixel by pixel, once:

# %%
i, j, naive = 70, 64, torch.zeros(2)
for k, flow in enumerate(affine.with_background(part_flows)[0]):
    naive += M[0, k, i, j] * flow[:, i, j]
assert torch.allclose(F_affine[0, :, i, j], naive, atol=1e-5)

# %%
palette = torch.tensor(plt.colormaps["tab20"].colors)
owners = palette[M.argmax(1)].permute(0, 3, 1, 2)  # the strongest mask at each pixel, as a colour
scale = (true_flow * face).norm(dim=1).max().item()
flows = [show.flow_colors(F * face, largest=scale) for F in (true_flow, F_shift, F_affine)]
columns = ["strongest mask", "true flow", "shifts", "affine"]
show.pictures({"": torch.cat([owners, *flows])}, columns=columns)

# %% [markdown]
# The flow of shifts is made of plateaus, one a point; with matrices each patch has a slope of its own. How far off are
# they, on average over the visible face, in pixels of this picture of 128?

# %%
regions = {"whole face": face, "lips": region("upper lip", "lower lip"), "eyes": region("eyes")}
where = list(regions.values())
figure, axis = plt.subplots(figsize=(6, 2.5))
for number, (name, F) in enumerate({"nothing moves": 0 * true_flow, "shifts": F_shift, "affine": F_affine}.items()):
    errors = [metrics.flow_error(F, true_flow, region).item() for region in where]
    axis.bar([x + 0.28 * number for x in range(len(where))], errors, 0.25, label=name)
axis.set_xticks([x + 0.28 for x in range(len(where))], list(regions))
axis.set(ylabel="error in pixels", frame_on=False)
axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %%
still, shifted, turned = (metrics.flow_error(F, true_flow, face) for F in (0 * true_flow, F_shift, F_affine))
assert shifted < 0.3 * still and turned < 0.7 * shifted
still, turned = (metrics.flow_error(F, true_flow, regions["eyes"]) for F in (0 * true_flow, F_affine))
assert turned > 0.3 * still

# %% [markdown]
# Ten points explain most of the motion, and their matrices remove a good part of what is left: they earn their place.
# The eyes are the exception. Their points sit on the lids, and the eyeballs turn by themselves. No mixture of pieces of
# skin says where somebody looks.
#
# ## A network finds the masks
#
# Without a renderer, somebody else must draw the masks. `DenseMotion` sees, for each part, (a) the difference of two
# soft dots, where its point came to minus where it left from, and (b) the source warped by that part's flow alone, like
# the pictures above. So all the pictures that it compares are already in the driving frame's pose. It never sees the
# driving frame itself: points and matrices are all that travels from one face to the other. An *hourglass*
# network (convolutions that halve the picture several times, then as many that double it again, each of which also sees what
# the way down had at its size) turns this stack into eleven masks and an *occlusion* map: can the source show this pixel at
# all? (Notebook 8 uses that.)
#
# First a small one with fresh weights, on our points and matrices. It answers with a `CoarseMotion`, which keeps the
# flow together with all that it was mixed of:

# %%
small_S = torch.nn.functional.avg_pool2d(S, 2)
flows = affine.with_background(affine.part_flows(p_S, p_D, A_S, A_D, (64, 64)))
untrained = DenseMotion(len(TEN), base=8, levels=3, maximum=32, head_kernel=3, norm="group")
with torch.no_grad():
    said = untrained(small_S, p_S, p_D, flows)
for name in [field.name for field in fields(CoarseMotion)][:4]:
    print(f"{name:10}", list(getattr(said, name).shape))

# %% [markdown]
# Whatever the weights, masks sum to one, and the flow is Equation 3. But nothing has told this network who owns what:
# all parts have about the same say everywhere. Training is what makes the masks decide.

# %%
assert torch.allclose(said.masks.sum(1), torch.ones(1, 64, 64))
assert torch.allclose(said.flow, affine.combine(flows, said.masks))
small_face = face[..., ::2, ::2]  # the network works at half the resolution
decided = {"by hand": M.amax(1, keepdim=True)[face], "untrained": said.masks.amax(1, keepdim=True)[small_face]}
decided = {name: strongest.mean().item() for name, strongest in decided.items()}
print("strongest mask of a pixel on the face, on average:", {name: round(value, 1) for name, value in decided.items()})
assert decided["untrained"] < 0.3 < 0.6 < decided["by hand"]

# %% [markdown]
# Here is the shipped `tiny` model, which works at 64 pixels, on the same pair:

# %%
model = AnimationModel.load("tiny")
S64, D64 = synthetic.render(source, 64), synthetic.render(driving, 64)
with torch.no_grad():
    state = model.encode_source(S64)
    motion = model.encode_driving(D64)
    coarse = model.render(state, motion).coarse

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for axis, image, points in zip(axes, (S64, D64), (state.motion.points, motion.points)):
    axis.imshow(image[0].permute(1, 2, 0))
    show.dots(axis, points[0], (64, 64), c=range(points.shape[1]), cmap="tab10")
of_points = torch.cat([torch.ones(1, 3), torch.tensor(plt.colormaps["tab10"].colors)])  # the background is white
axes[2].imshow(of_points[coarse.masks.argmax(1)[0]])
axes[3].imshow(show.flow_colors(coarse.flow, largest=scale)[0].permute(1, 2, 0))
for axis, title in zip(axes, ("source, its points", "driving, its points", "strongest mask", "coarse flow $F_0$")):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
plt.show()

# %%
found = resize_flow(coarse.flow, (SIZE, SIZE))  # no rescaling: the numbers mean the same at every resolution
assert metrics.flow_error(found, true_flow, face) < 0.7 * metrics.flow_error(0 * found, true_flow, face)

# %% [markdown]
# A mask has its point's colour; white is the background. The points sit where the network found them useful, not where an
# anatomist would put them: nobody told it what a face is. [Notebook 3](03_unsupervised_keypoints.ipynb) shows how it
# learns them.
#
# The coarse flow knows where the head went. What ten parts can't say well is *small and soft*: lips, lids, the gaze.
# That is what motion refinement is for (notebooks 6 and 7), and what splines approach from another side (notebook 2).
#
# ## Exercises
#
# 1. Swap $x$ and $y$ of `true_flow` and warp. Then negate it. Learn to recognise both pictures: you will meet them again
#    in your own code.
# 2. `part_flows` never computes an inverse. What does it do instead, and why?
# 3. Make the masks sharper (`WIDTH = 0.03`), then much softer (`WIDTH = 0.4`). Which mixture minds which, and why?
#
# <details><summary>Solutions</summary>
#
# 1. `warp(S, true_flow.flip(1))` mirrors the direction of the motion at the diagonal; `warp(S, -true_flow)` moves the
#    face the wrong way, away from where it should go.
# 2. It solves $X A_D = A_S$ with `torch.linalg.solve(..., left=False)`: one factorisation, no explicit inverse, smaller
#    rounding errors should $A_D$ come close to singular (it begins as the identity, but nothing forbids it later).
# 3. Sharp masks hurt the shifts: plateaus with cliffs between them, where a blend of neighbours had made a slope. The
#    affine parts have slopes of their own and hardly notice. Very soft masks hurt both, because parts then speak about
#    places far from their points.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/warping.py`](../minimodel/warping.py),
# [`minimodel/affine.py`](../minimodel/affine.py), [`minimodel/dense_motion.py`](../minimodel/dense_motion.py).
# Next: [2 · Thin-plate splines](02_thin_plate_splines.ipynb), parts that bend; or
# [3 · Unsupervised keypoints](03_unsupervised_keypoints.ipynb), where the points come from.
