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
# # 3 · Unsupervised keypoints: points that nobody labelled
#
# Notebook 1 moved a face with ten points and ten 2 × 2 matrices, and took both from the renderer. A photo has no
# renderer behind it. A network must find the points, and nobody has marked "point 7" in a million pictures. How can it
# learn what nobody can tell it?
#
# The trick: **bend a picture in a way that you know, and ask the network to find its points in the bent picture where
# the bending took them.** This notebook builds that loss (section 3.4 of *Learning Motion Refinement for Unsupervised
# Face Animation*, **MRFA**), trains a detector with nothing else for some twenty seconds, and finds out what is
# missing.

# %%
import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatLogSlider, FloatSlider

from minimodel import affine, losses, show
from minimodel.config import PRESETS
from minimodel.data import synthetic
from minimodel.keypoints import KeypointDetector, gaussian_heatmaps, soft_argmax
from minimodel.model import AnimationModel
from minimodel.tokens import TokenDetector, sine_positions, spread_points
from minimodel.tps import Spline, random_transforms
from minimodel.warping import identity_grid

SIZE = 64
shipped = AnimationModel.load("tiny-affine").prior.detector

# %% [markdown]
# `tiny-affine` are weights with the prior of MRFA's main text, whose detector is an hourglass; `tiny` itself finds its
# points by the transformer of the last section. Three people, two states of each, and the hourglass's ten points. The
# same colour is the same point:

# %%
COUNT = 24
source, driving = synthetic.sample_pairs(COUNT, seed=5)
S, D = synthetic.render(source, SIZE), synthetic.render(driving, SIZE)


def draw_points(frames, points):
    """Pictures in a row, each with its points."""
    figure, axes = plt.subplots(1, len(frames), figsize=(1.5 * len(frames), 1.6))
    for axis, frame, some in zip(axes, frames, points):
        axis.imshow(frame.permute(1, 2, 0))
        # Coloured by their numbers, so that a point can be followed from picture to picture.
        show.dots(axis, some, (SIZE, SIZE), c=range(len(some)), cmap="tab10")
        axis.set_axis_off()
    figure.tight_layout(pad=0.3)
    plt.show()


in_turn = torch.stack([S[:3], D[:3]], 1).flatten(0, 1)  # source and driving frame of each person
with torch.no_grad():
    draw_points(in_turn, shipped(in_turn)[0])

# %% [markdown]
# ## From a heatmap to a point: soft-argmax
#
# A convolutional network is good at saying *how much does this place look like point $k$*: a map of logits $h^k(z)$. Its
# maximum would be the point, but the maximum has no gradient and always sits on a pixel's centre. So we take the
# **mean** position, weighted by a softmax with temperature $\tau$:
#
# $$H^k(z) = \frac{\exp(h^k(z) / \tau)}{\sum_{z'} \exp(h^k(z') / \tau)}, \qquad p^k = \sum_z H^k(z)\, z .$$


# %%
def soft_argmax_naive(logits, temperature):
    """One heatmap (h, w) -> its point, pixel by pixel."""
    height, width = logits.shape
    grid = identity_grid(height, width)
    total, point = 0.0, torch.zeros(2)
    for i in range(height):
        for j in range(width):
            weight = torch.exp(logits[i, j] / temperature)
            total += weight
            point += weight * grid[:, i, j]
    return point / total


logits = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
points, heatmaps = soft_argmax(logits, temperature=0.5)
for k in range(3):
    assert torch.allclose(points[0, k], soft_argmax_naive(logits[0, k], 0.5), atol=1e-5)

# %% [markdown]
# The temperature says how much the lower logits count. Here a high hill (left) competes with a lower one (right). The
# soft-argmax is in the middle of the red ring:


# %%
def hills(right=0.7, at=(-0.5, -0.2)):
    """Logits with a hill of height 1 on the left and one of height ``right`` on the right."""
    both = gaussian_heatmaps(torch.tensor([[at, (0.6, 0.4)]]), (32, 32), 0.02)
    return both[:, :1] + right * both[:, 1:]


def draw_hills(axis, temperature, right):
    point, heatmap = soft_argmax(hills(right), temperature=temperature)
    axis.imshow(heatmap[0, 0])
    show.dots(axis, point[0], (32, 32), s=70, facecolors="none", edgecolors="tab:red", linewidths=1.5)
    axis.set_title(rf"$\tau$ = {temperature:.3g}", fontsize=9)
    axis.set_axis_off()


figure, axes = plt.subplots(1, 5, figsize=(8, 1.9))
for axis, temperature in zip(axes, (0.01, 0.05, 0.1, 0.2, 1.0)):
    draw_hills(axis, temperature, 0.7)
plt.show()

# %% [markdown]
# Hot: every pixel has a vote, and the point is dragged to the middle of the picture. Cold: the highest pixel takes all,
# and the others get no gradient. In between, two hills put the point *between* them, where there may be nothing. So a
# useful heatmap has one hill, and the model uses $\tau = 0.1$, as the published code does. In a running notebook, try
# where the point leaves the left hill:


# %%
def two_hills(temperature, right):
    figure = plt.figure(figsize=(2.5, 2.5))
    draw_hills(figure.gca(), temperature, right)
    return figure


cold_to_hot = FloatLogSlider(0.1, base=10, min=-2, max=1, step=0.1)
show.playground(two_hills, temperature=cold_to_hot, right=FloatSlider(0.7, min=0, max=1, step=0.05))

# %%
left = torch.tensor([-0.5, -0.2])
assert (soft_argmax(hills(), temperature=0.01)[0] - left).abs().max() < 1 / 32  # cold: within half a pixel
assert soft_argmax(hills(), temperature=100.0)[0].abs().max() < 0.01  # hot: the middle of the picture
assert soft_argmax(hills(right=1.0), temperature=0.1)[0][0, 0, 0] > -0.2  # equal hills: between them

# %% [markdown]
# And it measures less than a pixel. Move a single hill by a third of a pixel away from a pixel's centre: the highest
# pixel stays, the soft-argmax follows.

# %%
step = 2 / 32 / 3
centre = 2 * (7 + 0.5) / 32 - 1
before, after = hills(right=0.0, at=(centre, -0.2)), hills(right=0.0, at=(centre + step, -0.2))
assert before.argmax() == after.argmax()
(moved, _), (unmoved, _) = soft_argmax(after, temperature=0.05), soft_argmax(before, temperature=0.05)
assert torch.allclose(moved - unmoved, torch.tensor([step, 0.0]), atol=0.1 * step)

# %% [markdown]
# ## The matrix: an average of maps
#
# The same network puts four more maps beside each heatmap, a 2 × 2 matrix $a^k(z)$ at every place. The matrix of a
# point is their average under its heatmap, so only what the maps say *around the point* counts:
#
# $$A^k = \sum_z H^k(z)\, a^k(z) .$$
#
# In loops, from the maps that the shipped detector makes for one face:

# %%
with torch.no_grad():
    p, A = shipped(D[:1])
    features = shipped.hourglass(shipped.reduce(D[:1]))
    H = soft_argmax(shipped.heatmap_head(features), temperature=shipped.temperature)[1]
    maps = shipped.affine_head(features).unflatten(1, (-1, 2, 2))

matrix = torch.zeros(2, 2)
for i in range(H.shape[2]):
    for j in range(H.shape[3]):
        matrix += H[0, 4, i, j] * maps[0, 4, :, :, i, j]
assert torch.allclose(matrix, A[0, 4], atol=1e-4)

# %% [markdown]
# ## Pictures that are bent in a known way
#
# $\mathbf{T}$ is a random smooth map of the plane: a small affine map plus a thin-plate spline (notebook 2) with random
# weights at 5 × 5 control points; $\sigma$ is how far the affine map's six numbers stray from the identity.
# `transformed_frame` shows at $z$ what the frame has at $\mathbf{T}(z)$. Upper row: the published strength. Lower row:
# three times the affine part, which we will use, since a short training sees few pictures and each should tell a lot.

# %%
lines = D[:1].clone()
lines[..., ::8, :] = lines[..., :, ::8] = 1
rows = {}
for name, sigma in (("σ = 0.05", 0.05), ("σ = 0.15", 0.15)):
    random = random_transforms(5, torch.Generator().manual_seed(2), affine_sigma=sigma)
    rows[name] = torch.cat([lines, losses.transformed_frame(lines.expand(5, -1, -1, -1), random)])
show.pictures(rows, columns=["frame", *["bent"] * 5], side=1.3)

# %% [markdown]
# ## The equivariance loss
#
# MRFA writes it so:
#
# $$\mathcal{L}_{equi} = \sum_k \left\| \mathbf{T}(p_D^k) - p_{\mathbf{T}(D)}^k \right\|_1. \tag{12}$$
#
# Which way does $\mathbf{T}$ go? Our bent picture shows at $q$ what the frame has at $\mathbf{T}(q)$. So a point found
# at $q$ in the bent picture lies at $p = \mathbf{T}(q)$ in the frame:
#
# $$p_D^k = \mathbf{T}\big(p_{\mathbf{T}(D)}^k\big).$$
#
# Warping is backward, so points travel opposite to pixels. Equation 12 holds as printed if $\mathbf{T}(D)$ is the frame
# whose points were *moved* by $\mathbf{T}$. For a frame that is *sampled* at $\mathbf{T}(z)$, as ours, it holds with
# the two points swapped. The true landmarks can show it. We solve $\mathbf{T}(q) = p$ for $q$, and draw both candidates
# into the bent picture:

# %%
T = random_transforms(1, torch.Generator().manual_seed(11), affine_sigma=0.15)
bent = losses.transformed_frame(D[:1], T)
p = synthetic.landmarks(driving[:1])[:, [30, 36, 45, 48, 54, 8]]  # nose, eyes, corners of the mouth, chin

q = p.clone()
for _ in range(30):
    q = q - (T(q[:, None])[:, 0] - p)
assert torch.allclose(T(q[:, None])[:, 0], p, atol=1e-4)

figure, axes = plt.subplots(1, 3, figsize=(7, 2.5))
titles = ("frame, $p$", "bent, $q$ with $\\mathbf{T}(q) = p$", "bent, $\\mathbf{T}(p)$")
for axis, picture, some, title in zip(axes, (D, bent, bent), (p, q, T(p[:, None])[:, 0]), titles):
    axis.imshow(picture[0].permute(1, 2, 0))
    show.dots(axis, some[0], (SIZE, SIZE), c=range(6), cmap="tab10")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# $q$ sits on the same nose, eyes and mouth; $\mathbf{T}(p)$ went the wrong way. In loops, and asserted equal to the
# package (which takes the mean instead of the sum, so that the weight of the loss doesn't depend on $K$):


# %%
def equivariance_naive(p, q, transform):
    """Mean over points and coordinates of |T(q) - p|."""
    total = 0.0
    for k in range(p.shape[1]):
        back = transform(q[:, k].view(1, 1, 1, 2)).flatten()
        total += sum(abs(back[c] - p[0, k, c]) for c in range(2))
    return total / (2 * p.shape[1])


guess = q + 0.1 * torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
assert torch.allclose(losses.equivariance_points(p, guess, T), equivariance_naive(p, guess, T), atol=1e-6)
assert losses.equivariance_points(p, q, T) < 1e-4 < 0.05 < losses.equivariance_points(p, T(p[:, None])[:, 0], T)

# %% [markdown]
# ## The same for matrices
#
# Near its point a matrix takes steps $r$ of an abstract reference picture to steps in a frame: $p + A r$ in the frame
# and $q + A' r$ in the bent one. $\mathbf{T}$ takes the second to the first, for small steps through its Jacobian $J$
# at $q$:
#
# $$\mathbf{T}(q + A' r) \approx p + J A' r \quad\Rightarrow\quad A = J A' \quad\Rightarrow\quad A^{-1} J A' = I .$$
#
# The loss is how far that product is from the identity, entry by entry. (Why not compare $A$ with $J A'$? Then matrices
# of zeros would be perfect.) The paper leaves this loss out of its text; it comes from the affine motion model that it
# builds on, FOMM. We need $J$. A spline's derivative is a formula, and a finite difference checks it:

# %%
exact = Spline(T.control.double(), T.weights.double(), T.affine.double())
J = exact.jacobian(q[:, None].double())[0, 0]

step = 1e-4
for j in range(2):
    nudge = step * torch.eye(2, dtype=torch.float64)[j]
    slope = (exact(q[:, None] + nudge) - exact(q[:, None] - nudge))[0, 0] / (2 * step)
    assert torch.allclose(J[:, :, j], slope, atol=1e-5)

# %% [markdown]
# Now choose matrices $A'$ at random and set $A = J A'$. A detector that did this would be perfect, and the loss says
# so. One that found the same matrix in both pictures, as if nothing were bent, would not be:

# %%
A_bent = torch.eye(2) + 0.2 * torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(4))
A_frame = J.float() @ A_bent
assert losses.equivariance_affine(A_frame, A_bent, q, T) < 1e-4
assert losses.equivariance_affine(A_bent, A_bent, q, T) > 0.02

# %% [markdown]
# ## Train a detector with nothing else
#
# 256 faces, none of which we will test on. A small `KeypointDetector`: an hourglass on 32 × 32 places, a heatmap and
# four maps for each of ten points. Each step bends eight faces and applies the two losses. No label, no second frame,
# no generator.

# %%
faces = synthetic.render(synthetic.Faces.sample(256, seed=1), SIZE)
torch.manual_seed(0)
sizes = dict(scale=2, folded=True, base=8, levels=3, maximum=64, head_kernel=3, norm="group")
detector = KeypointDetector(10, **sizes)


def training_loss(detector, generator):
    frames = faces[torch.randint(len(faces), (8,), generator=generator)]
    transform = random_transforms(len(frames), generator, affine_sigma=0.15)
    p, A = detector(frames)
    q, A_bent = detector(losses.transformed_frame(frames, transform))
    return losses.equivariance_points(p, q, transform), losses.equivariance_affine(A, A_bent, q, transform)


# %% [markdown]
# Before it learns, we decide how to judge. The test pairs $S$, $D$ are other people, and the renderer knows the true
# flow. A point that sticks to the face, found at $p_D$, belongs at $p_D + F(p_D)$ in the source. **Slip** is how far it
# is found from there, as a share of how far the face moved: 0 sticks perfectly, 1 is no better than standing still.

# %%
true_flow, visible = synthetic.flow_between(source, driving, SIZE)


def read(picture, points):
    """What the picture (B, C, H, W) shows at points (B, K, 2): (B, K, C)."""
    return torch.nn.functional.grid_sample(picture, points[:, :, None], align_corners=False)[..., 0].transpose(1, 2)


def slip(p_S, p_D):
    carried = p_D + read(true_flow, p_D)
    seen = read(visible, p_D)[..., 0] > 0.99
    return ((carried - p_S).norm(dim=-1)[seen].mean() / (carried - p_D).norm(dim=-1)[seen].mean()).item()


inner = [30, 36, 39, 42, 45, 21, 22, 33, 48, 54]  # landmarks well inside the face, to test the test
true_points = [synthetic.landmarks(people)[:, inner] for people in (source, driving)]
assert slip(*true_points) < 0.15

# %%
with torch.no_grad():
    untrained = detector(S), detector(D)

generator, optimizer, curve = torch.Generator().manual_seed(0), torch.optim.Adam(detector.parameters(), lr=2e-3), []
for _ in range(240):
    on_points, on_matrices = training_loss(detector, generator)
    optimizer.zero_grad()
    (on_points + on_matrices).backward()
    optimizer.step()
    curve.append(on_points.item() * SIZE / 2)

with torch.no_grad():
    trained, known = (detector(S), detector(D)), (shipped(S), shipped(D))

# %% [markdown]
# ## It works
#
# The loss falls, here in pixels. The grey line is a point that ignores the picture and stays in the middle of the
# frame: it doesn't follow $\mathbf{T}$ at all. Points that stick to the *frame* are what this loss rules out. (The
# curve jumps because some bends are stronger than others.)

# %%
many = random_transforms(500, torch.Generator().manual_seed(3), affine_sigma=0.15)
middle = torch.zeros(500, 1, 2)
stuck = losses.equivariance_points(middle, middle, many).item() * SIZE / 2
figure, axis = plt.subplots(figsize=(5, 2))
axis.plot(curve)
axis.axhline(stuck, color="grey")
axis.set(xlabel="step", ylabel="error in pixels", ylim=(0, None))
plt.show()
assert sum(curve[-50:]) / 50 < 0.7 * stuck

# %% [markdown]
# It also slips less on people it has never seen, between states that differ by real head motion rather than by a
# spline:

# %%
slips = [slip(start[0], end[0]) for start, end in (untrained, trained, known)]
assert 0.15 < slips[2] < slips[1] < 0.85 < slips[0]

# %% [markdown]
# ## It doesn't work
#
# A falling loss and a good score. Now look at the points, in the same three people as above. There are ten in each
# picture; one sees fewer because they lie on top of each other:


# %%
def spread(points):
    """Mean distance of the points from their own centre, in pixels."""
    return ((points - points.mean(1, keepdim=True)).norm(dim=-1).mean() * SIZE / 2).item()


draw_points(in_turn, torch.stack([trained[0][0][:3], trained[1][0][:3]], 1).flatten(0, 1))
assert spread(trained[1][0]) < 3 and spread(known[1][0]) > 9

# %% [markdown]
# All ten have gone to nearly the same place: less than three pixels from their centre on average, where the shipped ones
# are more than nine from theirs. Which was allowed! Equation 12 sums over the points and never compares two
# of them. Whatever a detector has learned, take the point $k$ that does best and use it ten times: the loss can't be
# larger than before, because the smallest of ten numbers is at most their mean.

# %%
transform = random_transforms(COUNT, torch.Generator().manual_seed(5), affine_sigma=0.15)
with torch.no_grad():
    q = shipped(losses.transformed_frame(D, transform))[0]
p = known[1][0]
alone = [losses.equivariance_points(p[:, k : k + 1], q[:, k : k + 1], transform) for k in range(p.shape[1])]
best = int(torch.stack(alone).argmin())
copies = [x[:, best : best + 1].expand_as(x) for x in (p, q)]
assert losses.equivariance_points(*copies, transform) < 0.8 * losses.equivariance_points(p, q, transform)


# %% [markdown]
# So the collapse is a solution, not an accident of a short training. What are such points worth for the task? Take the
# part flows of notebook 1 and the best masks that give each pixel to one part: at each pixel the part, or the still
# background, that is closest to the true flow.


# %%
names = ("skin", "nose", "brows", "eyes", "upper lip", "lower lip")
wanted = torch.tensor([synthetic.PARTS.index(name) for name in names])
face = torch.isin(synthetic.parsing(driving, SIZE), wanted)[:, None] & visible.bool()


def best_error(start, end):
    """Mean error in pixels on the face if every pixel chose its best part."""
    flows = affine.with_background(affine.part_flows(start[0], end[0], start[1], end[1], (SIZE, SIZE)))
    error = (flows - true_flow[:, None]).norm(dim=2).amin(1, keepdim=True) * SIZE / 2
    return error[face].mean().item()


# %%
detectors = {"untrained": untrained, "equivariance\nalone": trained, "shipped": known}
spreads = [spread(end[0]) for _, end in detectors.values()]
errors = [best_error(*both) for both in detectors.values()]
figure, axes = plt.subplots(1, 3, figsize=(9, 2.2))
titles = ("slip\n(low is good)", "spread in pixels\n(near 0 is bad)", "error of the best masks, pixels\n(low is good)")
for axis, values, title in zip(axes, (slips, spreads, errors), titles):
    axis.bar(list(detectors), values, color=["lightgrey", "tab:orange", "tab:blue"])
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
plt.show()

# %%
assert spreads[1] < 0.6 * spreads[0] and spreads[1] < 0.7 * spreads[2]
assert errors[2] < 0.8 * errors[1]

# %% [markdown]
# The shipped detector was trained with the same loss **plus reconstruction**: the whole model had to turn $S$ into $D$,
# with these points as the only message about $D$. Ten equal points carry one point's worth of message, and the picture
# comes out wrong. So the two losses share the work:
#
# * *Reconstruction* asks for points that are worth something: different ones, where things move.
# * *Equivariance* asks for points that mean the same place in every picture. Reconstruction alone could use them as a
#   secret code that works for the one training pair.
#
# Note what neither asks for. No term says "stick to the skin", and even the shipped points slip. A model can live with
# that as long as the part flow fits where the mask uses it.

# %% [markdown]
# ## A detector that asks the whole picture
#
# An hourglass decides about each place by what lies around it, and none of its ten points knows where the others are.
# The numbers that the main paper compares with others (its Table 1) come from another kind of detector, the **motion
# tokens** of MTIA (*Motion Transformer for Unsupervised Image Animation*, cited there): a transformer.
#
# Cut the picture into patches, each described by a vector. Put ten more vectors in front that belong to no place, one
# for each point, and ten for the matrices. In every layer each vector $i$ asks all vectors $j$ a question $q_i$, they
# answer by how well their key $k_j$ fits, and it adds to itself the mean of their values $v_j$. Questions, keys and
# values are learnt linear functions of the vectors, and $d$ is their length (in this section $q$ and $k$ are neither
# points nor their numbers):
#
# $$x_i \leftarrow x_i + \sum_j \frac{e^{q_i \cdot k_j / \sqrt{d}}}{\sum_l e^{q_i \cdot k_l / \sqrt{d}}} \, v_j .$$


# %%
def attention_naive(q, k, v):
    out = torch.zeros_like(q)
    for i in range(len(q)):
        weights = [torch.exp(q[i] @ k[j] / q.shape[1] ** 0.5) for j in range(len(k))]
        out[i] = sum(w * v[j] for j, w in enumerate(weights)) / sum(weights)
    return out


some_q, some_k, some_v = torch.rand(3, 9, 8)
by_torch = torch.nn.functional.scaled_dot_product_attention(some_q[None], some_k[None], some_v[None])[0]
assert torch.allclose(attention_naive(some_q, some_k, some_v), by_torch, atol=1e-5)

# %% [markdown]
# Such a mean doesn't know where anything is: swap two patches, and the sum is the same. So each patch gets a
# **position** added, sines and cosines of $x$ and $y$ in several frequencies, so that places close to each other get
# vectors close to each other. Here is how alike the position in the middle is to all others (yellow: most; the cross is
# there because places in one row or column share half of their numbers):

# %%
positions = sine_positions((33, 33), 192)
alike = (positions @ positions[33 * 16 + 16]).unflatten(0, (33, 33))[None, None]
assert alike.flatten().argmax() == 33 * 16 + 16
show.pictures({"": show.heat(alike, largest=alike.max().item())}, side=1.8)

# %% [markdown]
# `TokenDetector` is that (with several such questions at a time, and a small network after each layer), on features of
# a few convolutions. At the end a point's vector is compared with every place of these features, and the soft-argmax of
# that is the point. (MTIA reads the point from its vector by a linear layer, which takes far longer to learn; the
# comparison is ours, and so is what follows.) Before any training the points lie spread over the picture, because a Gaussian
# pulls each of them towards a place of its own. Random weights still move them, by six pixels on average, so that two may
# meet. That is where they set out from:

# %%
torch.manual_seed(0)
tokens = TokenDetector(10, **vars(PRESETS["tiny"].tokens), norm="batch").eval()
with torch.no_grad():
    fresh, _ = tokens(in_turn)
assert (fresh - spread_points(10)).norm(dim=-1).mean() < 0.35
draw_points(in_turn, fresh)

# %% [markdown]
# **Break it.** We shuffle the patches of a picture. If each takes its position along, nothing changes: to a transformer
# a picture is a bag of patches that know their places. If the positions stay behind, it is another picture.

# %%
with torch.no_grad():
    patches = tokens.embed(tokens.trunk(S[:1])).flatten(2).transpose(1, 2)
    side = SIZE // tokens.step
    positions = sine_positions((side, side), patches.shape[2])
    shuffled = torch.randperm(side**2)
    whole, _, _ = tokens.attend(patches, positions)
    along, _, _ = tokens.attend(patches[:, shuffled], positions[shuffled])
    behind, _, _ = tokens.attend(patches[:, shuffled], positions)
assert torch.allclose(whole, along, atol=1e-4)
assert (whole - behind).abs().max() > 100 * (whole - along).abs().max()

# %% [markdown]
# Trained within the whole model, on faces like the hourglass's (a seventh fewer pairs), it finds these points (`minimodel train
# --prior tokens`; the README has the scores of both):

# %%
with torch.no_grad():
    draw_points(in_turn, AnimationModel.load("tiny").prior.detector(in_turn)[0])

# %% [markdown]
# ## Exercises
#
# 1. Swap `p` and `q` in `training_loss` and train again. The loss falls, too. Why, and what do you look at to notice?
# 2. The collapse can be forbidden: add `(0.3 - distances).relu().mean()` for all pairs of points. Train. Are the points
#    better?
# 3. Where would a point sit that is stuck to the frame, if the detector must be blind? Draw the mean of
#    $|\mathbf{T}(z) - z|$ over many $\mathbf{T}$.
#
# <details><summary>Solutions</summary>
#
# 1. The loss now asks for $\mathbf{T}(p) = q$, a motion opposite to the picture's. No place on a face moves so, but a
#    network can come part of the way, with points that move *against* the head. The loss falls, though less far, and
#    the slip rises above 1. A falling loss says that something was learned, not what.
# 2. `distances = (p[:, :, None] - p[:, None]).norm(dim=-1) + torch.eye(10)` and add the term to the loss. The points
#    spread over the head, evenly, like a net that is glued to it. The picture looks convincing. But they follow the head
#    as one stiff thing, and `best_error` hardly improves: being different is not being useful.
# 3. `far = random_transforms(500, generator, affine_sigma=0.15).flow((64, 64)).norm(dim=2).mean(0, keepdim=True)`, then
#    `show.pictures({"": show.heat(far, largest=far.max().item())})`. It is lowest near the middle, but not zero, because
#    $\mathbf{T}$ also shifts. What a point in the middle still pays is the grey line (the mean of $x$ and $y$ there, a
#    length here).
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/keypoints.py`](../minimodel/keypoints.py),
# [`minimodel/tps.py`](../minimodel/tps.py), [`minimodel/losses.py`](../minimodel/losses.py),
# [`minimodel/tokens.py`](../minimodel/tokens.py).
# Next: [6 · Structure correlation](06_structure_correlation.ipynb), what else the points are used for; or
# [4 · Landmarks on video](04_landmarks_on_video.ipynb), points *with* labels, kept steady by video.
