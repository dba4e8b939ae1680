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
# # 10 · Motion transfer: whose face is it?
#
# So far a film drove a photo of the *same* person. Then the points of the driving frame are where the photo's own points
# should go. With two people they aren't: where a point lies depends on the face it was found in, so driving points carry
# the driving person's **shape** as well as the **movement**, and the photo gets both.
#
# Section 3.4 of *Thin-Plate Spline Motion Model for Image Animation* (below: **TPSM**) names three ways out: *standard*
# (do nothing), *relative* (transfer only how far points have moved) and *avd* (let a small network tell shape from
# pose). Without a right answer the papers had to ask people which film they like better (TPSM), or other networks
# (*Learning Motion Refinement for Unsupervised Face Animation*, notebook 9). Our faces are rendered, so the right answer
# can be drawn: the photo's person, doing what the other one does.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatSlider, IntSlider

from minimodel import show, transfer
from minimodel.data import synthetic
from minimodel.evaluation import benchmark, metrics, protocols
from minimodel.evaluation.assessors import load_assessors
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.transfer import AvdNetwork
from minimodel.warping import invert_flow_at

torch.manual_seed(0)
SIZE = 64
model = AnimationModel.load("tiny")
network = AvdNetwork.load("tiny", model)

# %% [markdown]
# Two people whom the model has never seen. The film shows one of them; the photo shows the other one, in the pose of the
# film's first frame. `truth` is the film that nobody could shoot: the photo's person, moving like the film's.

# %%
people = synthetic.sample_identities(6, seed=100)
speech = synthetic.animate_states(120, seed=5)[::5]  # five seconds, every fifth frame
pair = benchmark.cross_clip("pair", people[1], people[0], speech, speech[:1], SIZE)
photo, film, truth = pair.truth.frames[:1], pair.driving, pair.truth.frames

with torch.no_grad():
    source = model.encode_source(photo)
    driving = model.encode_driving(film)


# %%
@torch.no_grad()
def animate(motion):
    """The photo, moved by this motion: one picture a frame."""
    return model.render(source, motion).image


first = driving[:1]
made = {
    "standard": animate(transfer.standard(source.motion, driving)),
    "relative": animate(transfer.relative(source.motion, driving, first)),
    "avd": animate(transfer.avd(source.motion, driving, network)),
}

# %% [markdown]
# ## The answer first
#
# From left to right: the film; the photo under *standard*, *relative* and *avd*; and the truth. (A static page may show the
# first frame only. Below are five of them.)

# %%
show.film(torch.cat([film, *made.values(), truth], dim=3), fps=6, side=128)

# %%
rows = {"driving": film, **made, "truth": truth}
show.pictures({name: frames[[2, 7, 12, 17, 22]] for name, frames in rows.items()}, side=1.3)

# %% [markdown]
# ## One person: nothing to decide
#
# If the photo is the first frame of the film itself, *standard* and *relative* are the same thing: points that start at
# $p_S$ (the photo's) and move by $p_D - p_S$ arrive at $p_D$ (the driving frame's).

# %%
with torch.no_grad():
    own = model.encode_driving(truth)
own_start = own[:1]
own_relative = transfer.relative(source.motion, own, own_start)
assert torch.allclose(own_relative.points, own.points, atol=1e-5)
assert torch.allclose(own_relative.affine, own.affine, atol=1e-3)

# %% [markdown]
# The rebuilt film, beside the truth. This is the best that the model can do for our photo, whatever the mode.

# %%
rebuilt = animate(own)
assert metrics.l1(rebuilt, truth)[1:].mean() < metrics.l1(photo.expand_as(truth), truth)[1:].mean()

# %%
show.pictures({"truth": truth[2::5], "rebuilt": rebuilt[2::5]}, side=1.3)

# %% [markdown]
# ## Two people: points carry shape
#
# Both people in one and the same state, each with the model's ten points. One colour is one point.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
truth_points, film_points = own.points[12], driving.points[12]
for axis, image, points in zip(axes, (truth[12], film[12]), (truth_points, film_points)):
    axis.imshow(image.permute(1, 2, 0))
    show.dots(axis, points, (SIZE, SIZE), c=range(10), cmap="tab10")
axes[2].scatter(*truth_points.T, c=range(10), cmap="tab10", marker="o", label="photo's person")
axes[2].scatter(*film_points.T, c=range(10), cmap="tab10", marker="x", label="film's person")
axes[2].set(xlim=(-1, 1), ylim=(1, -1), aspect="equal")
for axis, title in zip(axes, ("photo's person", "film's person", "circles: photo's; crosses: film's")):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
plt.show()

# %% [markdown]
# The distance between circle and cross is what *standard* does wrong: it sends the photo's points to the crosses. How far
# is that, on average over the film, and how far do the points move at all?

# %%
pixels = SIZE / 2
apart = (driving.points - own.points).norm(dim=-1).mean() * pixels
moving = (own.points - own.points[:1]).norm(dim=-1).mean() * pixels
figure, axis = plt.subplots(figsize=(5, 1.3))
axis.barh(["between the two people", "of the movement"], [float(apart), float(moving)])
axis.set_xlabel("mean distance of points (pixels)")
axis.invert_yaxis()
plt.show()

# %% [markdown]
# ## Relative: only what has moved
#
# The remedy of the *First Order Motion Model for Image Animation* (**FOMM**), which TPSM describes in a sentence. Take a
# starting frame $D_1$ of the film, and apply to the photo's points what happened *since then* ($s$ is explained below; for
# now it is 1):
#
# $$p^k = p^k_S + s\,\big(p^k_D - p^k_{D_1}\big), \qquad A^k = A^k_D\,(A^k_{D_1})^{-1} A^k_S .$$
#
# Where $D = D_1$ this is the photo itself. The matrices of one frame mean nothing alone (notebook 1): they map from a
# reference that nobody ever sees, and it needn't be the same for two people. $A_D A_{D_1}^{-1}$ is free of it: how the
# part was turned and stretched since the start.


# %%
def relative_naive(source, driving, start, scale):
    points, matrices = torch.zeros_like(driving.points), torch.zeros_like(driving.affine)
    for t in range(len(points)):
        for k in range(10):
            points[t, k] = source.points[0, k] + scale * (driving.points[t, k] - start.points[0, k])
            since = driving.affine[t, k] @ torch.linalg.inv(start.affine[0, k])
            matrices[t, k] = since @ source.affine[0, k]
    return Motion(points, matrices)


by_hand = relative_naive(source.motion, driving, first, scale=0.8)
packaged = transfer.relative(source.motion, driving, first, scale=0.8)
assert torch.allclose(by_hand.points, packaged.points, atol=1e-5)
assert torch.allclose(by_hand.affine, packaged.affine, atol=1e-3)

# %% [markdown]
# ### How long is a step?
#
# A large face that turns moves its points further than a small one. The factor $s$ compares the two people by the area
# that their points span, the convex hull, in the photo and in the starting frame: $s = \sqrt{a_S / a_{D_1}}$. By hand: walk
# around the points like a string pulled tight, always taking the next point that has none to its left.


# %%
def hull_naive(points):
    """Corners of the convex hull, in turn."""
    points = [tuple(p) for p in points.tolist()]
    corners = [min(points)]
    while len(corners) < 2 or corners[-1] != corners[0]:
        (x, y), best = corners[-1], None
        for p in points:
            if p == corners[-1]:
                continue
            left = best and (best[0] - x) * (p[1] - y) - (best[1] - y) * (p[0] - x) > 0
            best = p if best is None or left else best
        corners.append(best)
    return corners


def area_naive(corners):
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in pairwise(corners))) / 2


# %%
hulls = [hull_naive(motion.points[0]) for motion in (source.motion, first)]
s = (area_naive(hulls[0]) / area_naive(hulls[1])) ** 0.5
assert abs(s - transfer.movement_scale(source.motion, first).item()) < 1e-4

# %%
figure, axes = plt.subplots(1, 2, figsize=(5, 2.6))
for axis, image, hull, title in zip(axes, (photo[0], film[0]), hulls, ("photo", "film's first frame")):
    axis.imshow(image.permute(1, 2, 0), extent=(-1, 1, 1, -1))
    axis.plot(*zip(*hull), color="white")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
plt.show()

# %% [markdown]
# It follows that *relative* doesn't care where in its picture, and how large, the driving person is:

# %%
smaller = Motion(0.6 * driving.points + torch.tensor([0.3, -0.1]), 0.6 * driving.affine)
one, other = (transfer.relative(source.motion, m, m[:1]) for m in (driving, smaller))
assert torch.allclose(one.points, other.points, atol=1e-5)
assert torch.allclose(one.affine, other.affine, atol=1e-3)

# %% [markdown]
# ### Where to start?
#
# All of this hangs on one assumption: in the starting frame the two people share a pose. A photo doesn't wait for
# that, so search the film for the frame whose points lie most like the photo's, once place (the mean) and size (the root
# of the hull's area) are taken out. FOMM does this with a landmark detector; we use the model's own points.


# %%
def distance_naive(one, other):
    one, other = ((p - p.mean(0)) / area_naive(hull_naive(p)) ** 0.5 for p in (one, other))
    return sum((a - b).square().sum() for a, b in zip(one, other)) / len(one)


distances = transfer.shape_distance(source.motion, driving)
naive = torch.stack([distance_naive(source.motion.points[0], p) for p in driving.points])
assert torch.allclose(distances, naive, atol=1e-4)

# %% [markdown]
# Now a photo in a pose of its own, as photos are. Which frame is most like it, and which least?

# %%
turned = synthetic.animate_states(1, seed=23)
plain = benchmark.cross_clip("plain", people[1], people[0], speech, turned, SIZE)
with torch.no_grad():
    other_source = model.encode_source(plain.truth.frames[:1])
distances = transfer.shape_distance(other_source.motion, driving)
best, worst = int(distances.argmin()), int(distances.argmax())
assert best == transfer.best_start(other_source.motion, driving)

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.1), width_ratios=[2, 1, 1, 1])
axes[0].plot(distances, marker=".")
axes[0].scatter([best, worst], distances[[best, worst]], color="tab:red", zorder=3)
axes[0].set(xlabel="frame of the film", ylabel="distance")
for axis, image, title in zip(axes[1:], (plain.truth.frames[0], film[best], film[worst]), ("photo", "best", "worst")):
    axis.imshow(image.permute(1, 2, 0))
    axis.set(xticks=[], yticks=[], title=title)
plt.show()

# %% [markdown]
# ## avd: learn what shape is
#
# *Animation via disentanglement*, from *Motion Representations for Articulated Animation* (**MRAA**), as TPSM uses it. A
# **shape encoder** looks at the photo's points and matrices, a **pose encoder** at the driving frame's, and a **decoder**
# makes of both codes the points that the photo's person would have in that pose:
#
# $$\hat p = \mathrm{Dec}\big(E_\text{shape}(p_S),\, E_\text{pose}(p_D)\big).$$
#
# Nobody has films of two people moving alike, so how is it trained? With two frames of *one* person, one of which is
# **deformed** as if it were someone else's. Asked for the frame as it was, the network can only take the pose from the
# deformed frame, and has to take the shape from the other:
#
# $$\mathcal L = \lVert \mathrm{Dec}\big(E_\text{shape}(p_1),\, E_\text{pose}(\mathrm{deform}(p_2))\big) - p_2\rVert_1 .$$
#
# ($p$ stands for all points and matrices of a frame.) Our decoder doesn't say where they are but how they differ from the
# photo's, which comes a little nearer: $\hat p = p_S + \sigma\,\mathrm{Dec}(\dots)$. All numbers go into the encoders less
# their mean $\mu$ over the training set and divided by their standard deviation $\sigma$. One frame by hand:


# %%
@torch.no_grad()
def avd_naive(p_S, p_D):
    """Two lists of numbers, points first and then matrices, to the list of the photo's person in the pose of D."""
    inputs = [torch.stack([(x - m) / d for x, m, d in zip(p, network.mean, network.std)]) for p in (p_S, p_D)]
    shape, pose = network.shape_encoder(inputs[0]), network.pose_encoder(inputs[1])
    moved = network.decoder(torch.cat([shape, pose]))
    return torch.stack([x + d * m for x, d, m in zip(p_S, network.std, moved)])


numbers = [torch.cat([m.points[t].flatten(), m.affine[t].flatten()]) for m, t in ((source.motion, 0), (driving, 12))]
by_hand, count = avd_naive(*numbers), driving.points[0].numel()
with torch.no_grad():
    packaged = transfer.avd(source.motion, driving, network)
assert torch.allclose(by_hand[:count].view(-1, 2), packaged.points[12], atol=1e-5)
assert torch.allclose(by_hand[count:].view(-1, 2, 2), packaged.affine[12], atol=1e-4)

# %% [markdown]
# For training, the paper says "randomly deformed" and no more. Ours stretches along $x$ and $y$, shifts, and moves each
# point a little:

# %%
generator = torch.Generator().manual_seed(3)
strangers = [transfer.deformed(own[12:13], generator) for _ in range(4)]
figure, axes = plt.subplots(1, 5, figsize=(9, 2))
for axis, points in zip(axes, [own.points[12], *(stranger.points[0] for stranger in strangers)]):
    axis.scatter(*own.points[12].T, facecolors="none", edgecolors="lightgray", s=30)
    axis.scatter(*points.T, c=range(10), cmap="tab10", s=12)
    axis.set(xlim=(-0.8, 0.8), ylim=(0.8, -0.8), aspect="equal", xticks=[], yticks=[])
axes[0].set_title("as it was", fontsize=9)
axes[1].set_title("deformed", fontsize=9)
plt.show()

# %% [markdown]
# The loss as code. How much of the deformation does the trained network leave, on average?


# %%
@torch.no_grad()
def loss_of(network, count=64):
    p_1 = own[torch.randint(len(own.points), (count,))]
    p_2 = own[torch.randint(len(own.points), (count,))]
    strange = transfer.deformed(p_2, generator)
    made = transfer.avd(p_1, strange, network)
    return (made.points - p_2.points).abs().mean(), (strange.points - p_2.points).abs().mean()


after, before = loss_of(network)
print(f"{after / before:.1f} of the deformation is left")
assert after < 0.7 * before

# %% [markdown]
# `minimodel train-avd --weights tiny` trains it in a few minutes, nearly all of them spent on finding points in 2000 pairs of
# frames. It lies beside the model's weights, and belongs to the points of this one model. Another model's point 7 sits
# elsewhere on the face, and no error would tell: the pictures would only be worse. So the file keeps a `fingerprint` of the
# model whose points it was trained on, and refuses all others:

# %%
other_model = AnimationModel.load("tiny-affine")
print(transfer.avd_path("tiny").name, "lies beside tiny;", transfer.avd_path("tiny-affine").name, "nobody has trained")
assert protocols.find_avd("tiny-affine", other_model) is None
assert transfer.fingerprint(model) != transfer.fingerprint(other_model)
try:
    AvdNetwork.load("tiny", other_model)
except ValueError as refusal:
    print("refused:", str(refusal).split(": ")[1].split(";")[0])

# %% [markdown]
# ## What a detector says
#
# With one person the papers ask a landmark detector where the landmarks are: the AKD (average keypoint distance) of notebook
# 9. Between two people they can't, for want of a right answer. We have one, so here it is, in pixels, five frames of each
# film.

# %%
assessors = load_assessors()
right = assessors(truth[2::5])
akd = {}
for mode, frames in {**made, "the photo": photo.expand_as(truth)}.items():
    akd[mode] = protocols.keypoint_distance(assessors(frames[2::5]), right, SIZE).nanmean().item()
print("AKD in pixels:", {mode: round(distance, 1) for mode, distance in akd.items()})
assert akd["relative"] < akd["standard"] < akd["the photo"] < akd["avd"]

# %% [markdown]
# *avd* comes out worse than the photo that doesn't move at all: AKD doesn't forgive a head that does the right thing in the
# wrong place. And the detector reads a *generated* picture: if it stumbles over blurred lips, the way of transfer is blamed.
# The next measures need no detector, and take place and shape apart.
#
# ## Who is right?
#
# Three pairs of people, ten driving frames each: enough to see the large differences, not to rank close ones. They are
# from the **frozen benchmark**, twenty people drawn once with a fixed seed, each of them here driven by the one before
# (`minimodel evaluate --data cross-aligned cross-plain` takes all twenty pairs). In *aligned* the photo shares the film's
# first pose; in *plain* it has a pose of its own. Measured against the true answer, in pixels:
#
# - *landmarks*: how far 74 landmarks are from where they should be. A landmark network would add errors of its own, so the
#   photo's true landmarks are carried along by the model's flow instead (it points backwards, so we look for the $z$ whose
#   arrow ends at the landmark). Those count that the photo and the frame both show.
# - *shape*: the same after the best shift, turn and zoom. What is left is shape and expression: is it still this face?

# %% [markdown]
# A measure needs a test of its own. A `CrossClip` is a film of one person and the true answer of another. Here is one whose
# film *is* the true answer. Then *standard* has to be the same as "same person", number by number:

# %%
short = benchmark.cross_clip("short", people[1], people[0], speech[::6], speech[:1], SIZE)
nobody_else = benchmark.CrossClip(driving=short.truth.frames, truth=short.truth, landmarks=short.landmarks)
tested = protocols.evaluate_transfer(model, [nobody_else]).rows
assert all(abs(value - tested["same person"][name]) < 1e-4 for name, value in tested["standard"].items())
assert tested["standard"]["landmarks (px)"] < tested["copy"]["landmarks (px)"]

# %% [markdown]
# Now the pairs:

# %%
scores = {}
for name in ("aligned", "plain"):
    clips = benchmark.cross_clips(f"cross-{name}", SIZE, count=3)
    scores[name] = protocols.evaluate_transfer(model, clips, network).rows

# %%
modes = ["copy", "standard", "relative", "relative, from the first frame", "avd", "same person"]
figure, axes = plt.subplots(1, 4, figsize=(10, 2), sharey=True)
cases = [(name, measure) for measure in ("landmarks (px)", "shape (px)") for name in scores]
for axis, (name, measure) in zip(axes, cases):
    axis.barh(modes, [scores[name][mode][measure] for mode in modes])
    axis.set_title(f"{name}: {measure}", fontsize=9)
axes[0].invert_yaxis()
figure.suptitle("Means of three pairs only", y=1.12, fontsize=10)
plt.show()

# %% [markdown]
# How to read it. Shorter is better. "copy" leaves the photo as it is; "same person" is the model driven by the true answer,
# about the best that a mode can hope for. "relative" searches for its start, as `animate` does.
#
# *Aligned*: where the poses match and the start is given, *relative* is as good as the best, in place and in shape. A start
# that it has to find costs all of that in these three pairs: it ends as far off as *copy*. (Over all twenty it is 2.04
# pixels off, where *copy* is 3.71 and *standard* 2.42.) *Plain*: where the photo has a pose of its own, *relative* moves the photo by the right amount from the
# wrong place, and the landmarks are off. *avd* needs no start. In place it is far ahead of *copy*, though not near *same
# person*: from one frame nobody can tell a head that has moved to the left from a person who sits there. In shape three
# pairs settle nothing; over all twenty aligned ones *relative* has 0.69 pixels, *avd* 0.76, *copy*, which keeps the photo's
# face and only lacks the expression, 0.80, and *standard* 0.98.

# %%
aligned, plain_scores = scores["aligned"], scores["plain"]
given = "relative, from the first frame"
for mode in (given, "avd"):
    assert aligned[mode]["shape (px)"] < aligned["standard"]["shape (px)"]
assert aligned[given]["landmarks (px)"] < aligned["standard"]["landmarks (px)"] < aligned["copy"]["landmarks (px)"]
assert plain_scores[given]["landmarks (px)"] > 2 * aligned[given]["landmarks (px)"]
assert abs(aligned["relative"]["landmarks (px)"] / aligned["copy"]["landmarks (px)"] - 1) < 0.1
assert plain_scores["avd"]["shape (px)"] > plain_scores["standard"]["shape (px)"]
assert aligned["copy"]["shape (px)"] < min(aligned[mode]["shape (px)"] for mode in ("standard", "avd"))
for rows in (aligned, plain_scores):
    assert rows["same person"]["landmarks (px)"] < rows["avd"]["landmarks (px)"] < 0.6 * rows["copy"]["landmarks (px)"]
print(f"{'shape (px)':30}", *(f"{name:>8}" for name in scores))
for mode in ("copy", "standard", given, "avd", "same person"):
    print(f"{mode:30}", *(f"{rows[mode]['shape (px)']:8.2f}" for rows in scores.values()))

# %% [markdown]
# ## Play with it
#
# The photo with a pose of its own, any starting frame, any movement scale. In a running notebook: what does a scale of 0 do,
# and 2? (0 leaves the points where they are; 2 doubles every movement.)


# %%
def draw(start=best, scale=1.0, frame=20):
    begin = driving[start : start + 1]
    now = driving[frame : frame + 1]
    motion = transfer.relative(other_source.motion, now, begin, scale=scale)
    with torch.no_grad():
        image = model.render(other_source, motion).image
    drawn = torch.cat([plain.truth.frames[:1], film[[start, frame]], image, plain.truth.frames[frame : frame + 1]])
    return show.draw_pictures({"": drawn}, columns=["photo", "start", "driving", "relative", "truth"], side=1.8)


count = len(film) - 1
sliders = {"start": IntSlider(best, min=0, max=count), "frame": IntSlider(20, min=1, max=count)}
show.playground(draw, **sliders, scale=FloatSlider(1.0, min=0, max=2.0, step=0.1))

# %% [markdown]
# ## Break it: a bad starting frame
#
# The photo that shares the film's first pose, and each frame of the film in turn as the start. Nothing else changes.


# %%
def landmark_error(start):
    """Mean error of the aligned pair's landmarks in pixels (every second frame), when movement is counted from here."""
    begin, some = (driving[rows] for rows in (slice(start, start + 1), slice(2, None, 2)))
    with torch.no_grad():
        flow = model.move(source, transfer.relative(source.motion, some, begin)).flows[-1]
    carried = invert_flow_at(flow, pair.landmarks[:1].expand(len(flow), -1, -1))
    return (carried - pair.landmarks[2::2]).norm(dim=-1).mean().item() * pixels


errors = [landmark_error(start) for start in range(len(film))]
assert max(errors) > 2 * errors[0] and errors[0] < sum(errors) / len(errors)

# %%
distances = transfer.shape_distance(source.motion, driving)
searched = transfer.best_start(source.motion, driving)
plt.figure(figsize=(4.6, 2.6))
plt.scatter(distances, errors, s=14, color="gray")
plt.scatter(distances[0], errors[0], color="tab:green", label="frame 0, the photo's pose")
plt.scatter(
    distances[searched], errors[searched], s=70, facecolors="none", edgecolors="tab:red", label="what a search takes"
)
plt.gca().set(xlabel="distance of the starting frame's points", ylabel="landmark error (pixels)")
plt.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
rank = sorted(errors).index(errors[searched]) + 1
print(f"the start that the search takes is number {rank} of {len(errors)}, counted from the best")

# %% [markdown]
# Every dot is a start, all of them of one pair. The right one is frame 0, whose pose the photo shares; from a bad one the
# whole film is shifted by the difference of the two poses. The distance of points, which a program can know, is a hint and
# no more: two people in *one* pose are apart as well, and it can't see where in the picture the head should be. In pictures:

# %%
bad = max(range(len(errors)), key=errors.__getitem__)
started_badly = animate(transfer.relative(source.motion, driving, driving[bad : bad + 1]))
rows = {"good start": made["relative"], "bad start": started_badly, "truth": truth}
show.pictures({name: frames[[2, 7, 12, 17, 22]] for name, frames in rows.items()}, side=1.3)

# %% [markdown]
# ## Exercises
#
# 1. Drive the photo by the film played from its *end*. Which modes change, and how?
# 2. In `relative`, leave the matrices as they are in the driving frame (`affine=driving.affine`). What do you see at the
#    starting frame, where nothing should move?
# 3. Give avd the photo's motion as both inputs, and the driving frame's as both. What do you expect, and how far from it is
#    the answer?
#
# <details><summary>Solutions</summary>
#
# 1. `driving[torch.arange(len(film) - 1, -1, -1)]`. Standard and avd look at one frame at a time: the same
#    pictures, in the other order. Relative too, as long as the starting frame stays the same one; with "the first frame"
#    as the start it changes altogether.
# 2. `import dataclasses`, then
#    `animate(dataclasses.replace(transfer.relative(source.motion, driving, first), affine=driving.affine))`. The parts of
#    the photo get stretched at once by $A_S A_{D_1}^{-1}$, which is two people's references compared: a face that is
#    distorted before anything has moved.
# 3. What came in should come back. It comes near:
#    `(transfer.avd(m, m, network).points - m.points).norm(dim=-1).mean() * pixels`, with `m` one and the other motion, says
#    how near. The rest is what the two codes lose: the price of avd. *Relative* gives its start back exactly.
#
# </details>
#
# ## Read next
#
# The code of this notebook: [`minimodel/transfer.py`](../minimodel/transfer.py),
# `evaluate_transfer` in [`minimodel/evaluation/protocols.py`](../minimodel/evaluation/protocols.py), `train_avd` in
# [`minimodel/training/avd.py`](../minimodel/training/avd.py). On your own photo:
# `minimodel animate --mode relative --source me.jpg --driving somebody.mp4`. Next:
# [11 · Train a full model](11_train_a_full_model.ipynb).
