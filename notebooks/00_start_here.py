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
# # 0 · Start here: one photo, someone else's motion
#
# How can one still photo be made to move like the person in a film? This course builds the whole answer: every network
# in plain PyTorch, every equation from its paper, every claim checked against faces whose motion is known exactly.
#
# ![The map of the system: source and driving picture on the left, twelve parts with the tensors between them, the rendered picture and its losses on the right. All parts are in colour.](maps/00.svg)
#
# *The map of the whole system. The source $S$ and the driving frame $D$ come in on the left, the rendered picture
# $\hat D$ goes out on the right. Every later notebook opens with this map, its own part in colour.*
#
# **What you need:** PyTorch. Nothing about faces or flow. **Minutes:** 25.
#
# **Afterwards you can**
#
# * say what each box of the map does, and which loss trains it;
# * read a flow: its direction, its unit and its colours, and compare it with the truth;
# * say in numbers what the model of this course does and what it doesn't.
#
# The papers: *Learning Motion Refinement for Unsupervised Face Animation* (NeurIPS 2023,
# [arXiv 2310.13912](https://arxiv.org/abs/2310.13912)), called **MRFA** here; *Thin-Plate Spline Motion Model for Image Animation*
# ([arXiv 2203.14367](https://arxiv.org/abs/2203.14367)), **TPSM**; *Sparse to Dense Motion Transfer for Face Image
# Animation* ([arXiv 2109.00471](https://arxiv.org/abs/2109.00471)), **S2D**. All three grew out of the *First Order
# Motion Model for Image Animation* ([arXiv 2003.00196](https://arxiv.org/abs/2003.00196)), **FOMM**.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatSlider

# This notebook is a tour and uses the finished package. Every later notebook builds what it uses.
from minimodel import show, transfer
from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.model import AnimationModel
from minimodel.warping import flow_to_pixels, resize_flow, warp

# %% [markdown]
# ## A photo that moves
#
# The source is a photo of one person, at rest. The driving film shows another person, who speaks. A renderer in this
# package drew both people. The model was trained on neither.

# %%
people = synthetic.sample_identities(12, seed=100)
at_rest = synthetic.Faces(people[10], synthetic.neutral_states(1))
speaking = synthetic.Faces(people[6], synthetic.animate_states(120, seed=5)[::5])  # 5 seconds, every fifth frame
photo, film = synthetic.render(at_rest, 64), synthetic.render(speaking, 64)  # (1, 3, 64, 64), (24, 3, 64, 64)
model = AnimationModel.load("tiny")

with torch.inference_mode():
    source = model.encode_source(photo)  # once a photo
    seen = model.encode_film(film)  # 20 points and 20 matrices of each frame; no pixel is kept
    motion = transfer.transfer("relative", source.motion, seen)
    large = synthetic.render(at_rest, 256)  # the same photo at a resolution of its own
    made = torch.stack(list(model.render_film(source, motion, photo=large)))  # (24, 3, 256, 256)

# %%
driving = synthetic.render(speaking, 256)
strip = torch.cat([large.expand_as(driving), driving, made], dim=3)
show.film(resize_flow(strip[::2], (96, 288)), fps=3, side=200)

# %% [markdown]
# *Source, driving film, rendered film. (A page that doesn't play films shows the first frame.)*

# %%
start = transfer.best_start(source.motion, seen)
frames = [start, 3, 20, 23]
rows = {"driving": driving[frames], "source,\nthen\nrendered": torch.cat([large, made[frames[1:]]])}
titles = [f"frame {start}: posed like the source", *(f"frame {i}" for i in frames[1:])]
show.crisp(show.draw_pictures(rows, columns=titles, side=2.1), photographs=True)

# %% [markdown]
# *What to see. **The head follows:** it turns and nods like the driving head. **The mouth follows in part:** it opens,
# and stays dark where the driving mouth shows teeth, because the photo shows no teeth. **The eyes don't follow:** they
# don't look aside, and they are blurred. **Identity stays:** skin, hair, freckles and shirt are the photo's. **The
# shoulders and the wall stand still**, and both are blurred in a band beside the moving head.*
#
# The mode `relative` adds the film's movement to the photo's pose. The movement is counted from the frame whose pose is
# most like the photo's, the left column (notebook 10). The model sees 64 × 64 pixels. Its flow moves the photo at 256
# pixels; what it paints has 64.
#
# ## Three steps: move, fetch, paint
#
# 1. **Move.** A flow $F$ says for each place $z$ of the new picture where in the photo to look: at $z + F(z)$.
# 2. **Fetch.** Warping reads the photo's colours there.
# 3. **Paint.** A gate $g$ is near 1 where the photo shows what is needed, and near 0 where it doesn't. A generator
#    paints where the gate is shut.
#
# To see all three, the person in the photo drives herself. So the right answer $D$ is known.

# %%
moved = replace(at_rest.state, yaw=torch.tensor([-0.4]), jaw=torch.tensor([0.6]))
turned = synthetic.Faces(people[10], moved)
S, D = photo, synthetic.render(turned, 64)
with torch.no_grad():
    output = model(S, D)
F, gate = output.flows[-1], torch.sigmoid(output.occlusions[-1])  # (1, 2, 64, 64), (1, 1, 64, 64)
longest = flow_to_pixels(F).norm(dim=1).max().item()


def panel(axis, picture, title, **style):
    """One picture or map on an axis, with a colour bar if it is a map."""
    image = axis.imshow(picture.detach().squeeze().permute(1, 2, 0) if len(picture) == 3 else picture, **style)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    if "vmax" in style:
        plt.colorbar(image, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)


figure, axes = plt.subplots(2, 4, figsize=(9.4, 4.6))
panel(axes[0, 0], S[0], "source S")
panel(axes[0, 1], D[0], "driving D")
panel(axes[0, 2], show.flow_colors(F)[0], "1  flow F")
show.flow_wheel(axes[0, 3], largest=round(longest))
panel(axes[1, 0], output.warped_source[0], "2  S warped by F")
panel(axes[1, 1], gate[0, 0], "3  gate g (1 = take the warped source)", cmap="viridis", vmin=0, vmax=1)
panel(axes[1, 2], output.image[0], "rendered D̂")
panel(axes[1, 3], (output.image - D).abs().mean(1)[0], "|D̂ - D|", cmap="magma", vmin=0, vmax=0.4)
figure.tight_layout(pad=0.6)
show.crisp(figure, photographs=True)

# %% [markdown]
# *The flow is red on the whole head: all of the head comes from further right, because it moved to the left. The wall is
# white and stands still. Warping alone drags the hair and the closed lips along. The gate shuts on the right, where the
# head uncovers hair and wall, and in the mouth. It also shuts on the eyes, which the photo does show. What is painted is
# soft. The largest errors lie on the outline of the face and in the eyes.*
#
# ## Faces that know the answer
#
# Was that flow the right one? With filmed faces nobody can say, and none of the papers could. Our faces are rendered
# from a 3-D head. So the computer knows where each point of the skin went. A face is an **identity**, who it is, and a
# **state**, what it does.

# %%
everyone = synthetic.Faces(people[[0, 1, 2, 4, 5]], synthetic.neutral_states(1))
calm = synthetic.neutral_states(1)


def in_state(yaw=0.0, jaw=0.0, smile=0.0, lids=1.0, gaze=0.0):
    """The person of the photo: turned, jaw opened, smiling, lids lowered, looking aside (angles in radians)."""
    both = dict(lids=torch.full((1, 2), lids), gaze=torch.tensor([[gaze, 0.0]]))
    one = dict(yaw=torch.tensor([yaw]), jaw=torch.tensor([jaw]), smile=torch.tensor([smile]))
    return synthetic.Faces(people[10], replace(calm, **one, **both))


names = dict(yaw=0.5, jaw=0.8, smile=1.0, lids=0.0, gaze=0.5)
states = torch.cat([synthetic.render(in_state(**{name: value}), 160) for name, value in names.items()])
rows = {"states": states, "identities": synthetic.render(everyone, 160)}
show.crisp(show.draw_pictures(rows, columns=list(names), side=1.7), photographs=True)

# %% [markdown]
# *Upper row: the person of our photo in five states; each title names the one number that was changed. Lower row: five
# other identities, all at rest.*
#
# Move her yourself. The sliders need a running notebook.

# %%
ranges = dict(yaw=(0.3, -0.6, 0.6), jaw=(0.3, 0, 1), smile=(0.0, -1, 1), lids=(1.0, 0, 1.4), gaze=(0.0, -0.5, 0.5))
sliders = {name: FloatSlider(value, min=low, max=high, step=0.05) for name, (value, low, high) in ranges.items()}
show.playground(lambda **state: show.draw_pictures({"": synthetic.render(in_state(**state), 160)}, side=3.0), **sliders)

# %% [markdown]
# ## The true flow
#
# One equation fixes the convention of the whole course. A flow $F$ lives on the driving grid and points *back* into the
# source. Wherever the source shows the point that $D$ shows at $z$,
#
# $$D(z) \approx S\big(z + F(z)\big).$$
#
# Places are normalised: both coordinates of $z$ run from $-1$ to $1$, edge to edge, $x$ first, $y$ downwards. So a flow
# of $0.25$ in a picture of 64 pixels means 8 pixels. The renderer gives the true flow and a map that is 1 where the
# source shows the point, both without error. The light is ambient here, so that skin keeps its colour when it turns.

# %%
ambient = [synthetic.Faces(f.identity, replace(f.state, ambient=torch.ones(1))) for f in (in_state(), turned)]
S128, D128 = (synthetic.render(face, 128) for face in ambient)
true_flow, visible = synthetic.flow_between(*ambient, 128)  # (1, 2, 128, 128), (1, 1, 128, 128)
forward, _ = synthetic.flow_between(*ambient[::-1], 128)  # from the source to the driving frame: the wrong way round
fetched, wrong = warp(S128, true_flow), warp(S128, forward)

figure, axes = plt.subplots(2, 4, figsize=(9.4, 4.6))
panel(axes[0, 0], S128[0], "source S")
panel(axes[0, 1], D128[0], "driving D")
panel(axes[0, 2], show.flow_colors(true_flow)[0], "true flow")
show.flow_wheel(axes[0, 3], largest=round(flow_to_pixels(true_flow).norm(dim=1).max().item()))
panel(axes[1, 0], fetched[0], "S warped by the true flow")
panel(axes[1, 1], visible[0, 0], "visible (1 = S shows it)", cmap="viridis", vmin=0, vmax=1)
panel(axes[1, 2], (fetched - D128).abs().mean(1)[0], "|warped - D|", cmap="magma", vmin=0, vmax=0.4)
panel(axes[1, 3], wrong[0], "break it: the flow reversed")
figure.tight_layout(pad=0.6)
show.crisp(figure, photographs=True)

# %%
error = {name: 255 * metrics.l1(x * visible, D128 * visible).item()
         for name, x in (("S itself", S128), ("true flow", fetched), ("flow reversed", wrong))}  # fmt: skip
show.table({name: [value] for name, value in error.items()}, ["mean error of visible pixels, of 255"], digits=0)

# %% [markdown]
# *The true flow brings back all that is visible. Where the map is dark, the wall and the side of the hair come out as
# copies of something else: no flow can fetch what the source doesn't show. A flow from source to driving frame is worse
# than no flow at all.*

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the true flow is far better than the source as it is, the reversed flow is worse.
assert 3 * error["true flow"] < error["S itself"] < error["flow reversed"]

# %% [markdown]
# The renderer knows two more things: 74 **landmarks**, and which part of the face each pixel shows.

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.2))
panel(axes[0], D128[0], "74 landmarks")
show.dots(axes[0], synthetic.landmarks(turned)[0], (128, 128), s=12, color="tab:red", linewidths=0)
panel(axes[1], synthetic.parsing(turned, 128)[0], "13 kinds of pixels", cmap="tab20")
show.crisp(figure, photographs=True)

# %% [markdown]
# ## What the model can and can't do
#
# Now the model's flow can be judged. We take 12 pairs of frames of people whom training never drew. *Nothing moves*
# leaves the source as it is. *True flow* warps by the truth and paints nothing. Flow errors are in pixels, on visible
# pixels of the head. PSNR compares pictures; one decibel more means a fifth less squared error (notebook 9b).

# %%
first, second = synthetic.sample_pairs(12, seed=300)
A, B = synthetic.render(first, 64), synthetic.render(second, 64)
truth, shown = synthetic.flow_between(first, second, 64)
head = torch.isin(synthetic.parsing(second, 64), torch.tensor([0, synthetic.PARTS.index("clothes")]), invert=True)
with torch.no_grad():
    result = model(A, B)
ways = {
    "nothing moves": (0 * truth, A),
    "model": (result.flows[-1], result.image),
    "true flow": (truth, warp(A, truth)),
}
scores = {name: [metrics.flow_error(flow, truth, head[:, None] & shown.bool()).mean().item(),
                 metrics.psnr(picture, B).mean().item()] for name, (flow, picture) in ways.items()}  # fmt: skip
show.table(scores, ["flow error (pixels)", "PSNR (dB)"], digits=1)

# %% [markdown]
# The model finds most of the motion, and its pictures are far closer to the answer than the source is. In PSNR a model
# can even beat the true flow, because the model paints what the true flow can't fetch.
#
# Which motions does it find? Eight people at rest, each changed in one thing alone. The *share* is the regression of
# the model's flow on the true flow over all visible pixels that move: 1 means all of the motion, 0 means none.

# %%
COUNT = 8
them, rest = synthetic.sample_identities(COUNT, seed=200), synthetic.neutral_states(COUNT)
one, both = torch.ones(COUNT), torch.ones(COUNT, 2)
aside = torch.tensor([1.0, 0.0])
changes = {
    "head turns": dict(yaw=0.4 * one),
    "head nods": dict(pitch=0.25 * one),
    "jaw opens": dict(jaw=0.7 * one),
    "smile": dict(smile=one),
    "brows rise": dict(brows=both),
    "lids close": dict(lids=0.2 * both),
    "eyes look aside": dict(gaze=0.4 * both * aside),
    "camera pans": dict(pan=0.15 * both * aside),
}
shares = {}
before = synthetic.Faces(them, rest)
for name, change in changes.items():
    after = synthetic.Faces(them, replace(rest, **change))
    target, shown = synthetic.flow_between(before, after, 64)
    with torch.no_grad():
        found = model(synthetic.render(before, 64), synthetic.render(after, 64)).flows[-1]
    moves = shown * (flow_to_pixels(target).norm(dim=1, keepdim=True) > 0.25)
    shares[name] = ((moves * found * target).sum() / (moves * target * target).sum()).item()

figure, axis = plt.subplots(figsize=(7, 3))
bars = axis.barh(
    list(shares), list(shares.values()), color=["tab:blue" if v > 0.5 else "tab:orange" for v in shares.values()]
)
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.axvline(1, color="grey", linewidth=1)
axis.invert_yaxis()
axis.set(xlim=(-0.02, 1.15), xlabel="share of the true motion in the model's flow (1 = all)")
axis.set_title("Heads and jaws follow. Lids, gaze and camera don't.", fontsize=10)
show.crisp(figure)

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: the model beats copying, heads and jaws follow, gaze and camera don't.
assert scores["model"][0] < 0.5 * scores["nothing moves"][0] and scores["model"][1] > scores["nothing moves"][1] + 2
assert min(shares["head turns"], shares["head nods"]) > 0.8 and shares["jaw opens"] > 0.5
assert max(shares["eyes look aside"], shares["camera pans"]) < 0.5

# %% [markdown]
# Three limits follow. The model works at 64 pixels. It has seen rendered faces alone, no photograph. What moves by two
# or three pixels, such as lids and pupils, is mostly lost; notebook 5 builds a model that gets it from landmarks.
#
# ## Which networks there are, and what trains them
#
# **Paper:** the networks of MRFA and TPSM are trained together, by two frames of one film and two losses. The
# *perceptual loss* compares $\hat D$ with $D$. The *equivariance loss* asks that points move with the picture.
#
# **Ours:** `tiny`, the model of this course, is also taught by the truth of rendered faces. Trained for an hour
# by the papers' two losses alone, the networks of `tiny-affine` found points and flow. Their gates learnt nothing: they
# call every pixel visible, as notebook 8 measures.

# %%
parts = {
    "detector (points)": [model.prior.detector],
    "DenseMotion (coarse flow)": [model.prior.dense_motion],
    "structure encoders": [model.structure],
    "updater (update)": [model.refiner],
    "encoder": [model.generator.first, model.generator.down],
    "decoder": [model.generator.residual, model.generator.up, model.generator.last],
}
paper = ["perceptual, equivariance"] + 5 * ["perceptual"]
ours = ["flow", "flow, visibility", "matches, flow", "flow, visibility", "hidden colours", "hidden colours"]
counts = [sum(p.numel() for module in modules for p in module.parameters()) for modules in parts.values()]
rows = {n: [f"{c / 1e6:.2f} M", p, o] for n, c, p, o in zip(parts, counts, paper, ours)}
show.table(rows, ["parameters", "trained by (paper)", "tiny also by truth (ours)"])

# %% jupyter={"source_hidden": true} tags=["check"]
# Check: these six are the whole model.
assert sum(counts) == sum(p.numel() for p in model.parameters())

# %% [markdown]
# ## What "without labels" means, and what it doesn't
#
# * **The papers' recipe uses no flow, landmark or part label.** Two frames of one film are enough. The shipped weights
#   `tiny-affine` and `tiny-tps` were trained so, and every comparison of this course trains so.
# * **One indirect source remains.** The perceptual loss compares pictures through the features of a network. Ours was
#   trained on labelled rendered faces, the papers' VGG-19 on labelled photographs.
# * **S2D does use labels.** Its motion comes from facial landmarks, and a landmark detector learns from labelled faces.
#   That is notebooks 4 and 5.
# * **`tiny` is supervised.** Its truth comes free with rendered faces, and from no film. So its flow is good
#   evidence of what the networks can express, and no evidence that films alone would teach it.
#
# ## Notation
#
# One letter has one meaning in all notebooks. The papers' letters are translated here, once.
#
# | letter | meaning | shape in code | in the papers |
# |---|---|---|---|
# | $S$, $D$, $\hat D$ | source, driving, rendered picture | `(B, 3, H, W')`, in [0, 1] | MRFA $\tilde D$; S2D $S_I$, $D_I^k$, $T_I^k$ |
# | $z$ | a place on the driving grid, $x$ then $y$ | `(B, 2, h, w)` | TPSM, S2D $p$ |
# | $K$, $k$ | parts and one of them; $k = 0$ is the background | | S2D: $k$ counts frames |
# | $p_k^S$, $p_k^D$ | point of part $k$ in source and driving frame | `(B, K, 2)` | MRFA $p_s^k$, $p_d^k$; TPSM $P_{ki}$ |
# | $A_k$ | 2 × 2 matrix of part $k$ | `(B, K, 2, 2)` | FOMM $J_k$ |
# | $T_k(z)$ | where part $k$ says that $z$ came from | | MRFA $\mathcal{T}^k_{S \leftarrow D}(z)$; TPSM $\mathcal{T}_k(p)$ |
# | $f_k(z)$ | $T_k(z) - z$, the part flow | `(B, K + 1, 2, h, w)` | MRFA: $f_i$ are the source's features |
# | $M_k(z)$ | mask of part $k$; all masks sum to 1 | `(B, K + 1, h, w)` | MRFA $M^k$; S2D: $M$ is a generator's mask |
# | $F_0$, $F_i$ | coarse flow, flow after $i$ updates; added to $z$ | `(B, 2, h, w)` | MRFA $\mathcal{F}_i$, absolute: $z + F_i(z)$ |
# | $O$, $g$ | occlusion logit, gate $\mathrm{sigmoid}(O)$, 1 = visible in $S$ | `(B, 1, h, w)` | MRFA $\mathcal{O}_i$ in the role of $g$ |
# | $H_k$, $v$ | Gaussian at a point, and its variance | `(B, K, h, w)` | |
# | $U(r)$ | $r^2 \log r^2$, the spline's kernel | | TPSM the same |
# | $W$ | a random transform of the plane | | MRFA $\mathbf{T}$; TPSM $\mathcal{T}_{ran}$ |
# | $C(z, y)$ | correlation of driving place $z$ and source place $y$ | `(B, h, w, h, w)` | MRFA $C$ |
# | $r$, $L$ | radius of the lookup; levels, $L = P + 1$ | | MRFA $r$, $P$ |
# | $\phi_l$ | layer $l$ of the loss's features | | TPSM $V_i$; S2D $N_j$ |
# | $l_j$ | landmark $j$ | `(B, 74, 2)` | |
#
# $B$, $H$, $W'$ are batch and sizes and appear in code only.
#
# ## The course
#
# The core path in bold takes a little over four hours. Difficulty: ★ to ★★★.
#
# | | question | minutes | |
# |---|---|---|---|
# | **0** | this one | 25 | ★ |
# | [**1 · Affine flows**](01_affine_flows.ipynb) | How do a few moving parts make one flow? | 40 | ★★ |
# | [2 · Thin-plate splines](02_thin_plate_splines.ipynb) | How do parts bend? | 40 | ★★★ |
# | [**3 · Unsupervised keypoints**](03_unsupervised_keypoints.ipynb) | How does a network find points that nobody labelled? | 40 | ★★ |
# | [4 · Landmarks on video](04_landmarks_on_video.ipynb) | How do labelled points hold still on video? | 40 | ★★ |
# | [5 · Landmark motion](05_landmark_motion.ipynb) | How does a face move by landmarks alone, gaze included? | 35 | ★★ |
# | [**6 · Structure correlation**](06_structure_correlation.ipynb) | Which source place is most like a driving place? | 30 | ★★ |
# | [**7 · Lookup and refinement**](07_lookup_and_refinement.ipynb) | How is a coarse flow corrected, scale by scale? | 45 | ★★★ |
# | [**8 · Occlusion-gated U-Net**](08_occlusion_gated_unet.ipynb) | Who paints what can't be fetched? | 40 | ★★ |
# | [9a · What a loss sees](09a_what_a_loss_sees.ipynb) | Which mistakes does each loss feel? | 30 | ★ |
# | [9b · What a table hides](09b_what_a_table_hides.ipynb) | Which mistakes does each metric count? | 30 | ★ |
# | [10 · Motion transfer](10_motion_transfer.ipynb) | Whose face is it, when one person drives another? | 30 | ★★ |
# | [**11 · Train a full model**](11_train_a_full_model.ipynb) | How is the whole trained, measured and used, and what did we find? | 30 | ★★ |
# | [A1 · Published code](A1_published_code.ipynb) | What do the papers' programs do otherwise? | 40 | ★★★ |
# | [A2 · Numerics](A2_numerics.ipynb) | What do roundings and gradients spoil, and how does the wall move? | 30 | ★★★ |
# | [A3 · Motion tokens](A3_motion_tokens.ipynb) | How does a transformer find points? | 30 | ★★ |
# | [A4 · Live, on your own photo](A4_live_on_your_own_photo.ipynb) | What does it do with your own photo, live? | 5 | ★ |
#
# ## Exercises
#
# **1 (★).** A head moves to the right by 8 of 64 pixels, without turning. What is the $x$ of $F$ on the head,
# normalised? Put the number in place of `None`.

# %%
flow_x = None  # your answer

# %% jupyter={"source_hidden": true} tags=["check"]
# Check of exercise 1.
print("no answer yet" if flow_x is None else "right" if abs(flow_x + 0.25) < 1e-6 else "not yet: sign, or unit?")

# %% [markdown]
# **2 (★★).** A film has three frames, 1, 2 and 3. `flow_21` says where frame 2 comes from in frame 1, `flow_32` where
# frame 3 comes from in frame 2. Write the flow that says where frame 3 comes from in frame 1. You need `warp` and one
# sum. The checker compares it with the renderer's true flow.


# %%
def chain(flow_32, flow_21):
    return None  # your answer


# %% jupyter={"source_hidden": true} tags=["check"]
# Check of exercise 2.
three = [in_state(yaw=angle) for angle in (-0.15, 0.0, 0.15)]
(flow_21, seen_21), (flow_32, seen_32), (flow_31, seen_31) = (
    synthetic.flow_between(three[a], three[b], 64) for a, b in ((0, 1), (1, 2), (0, 2))
)
answer = chain(flow_32, flow_21)
if answer is None:
    print("no answer yet")
else:
    where = (seen_31 * seen_32 * warp(seen_21, flow_32)) > 0.99
    print("right" if metrics.flow_error(answer, flow_31, where) < 0.2 else "not yet: where must flow_21 be read?")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. `-0.25`. The flow points back: what is now on the right was 8 pixels further left. The picture is 2 wide, so 8 of 64
#    pixels are $2 \cdot 8 / 64$.
# 2. `return flow_32 + warp(flow_21, flow_32)`. A place $z$ of frame 3 was at $z + F_{32}(z)$ in frame 2, so $F_{21}$
#    must be read there, and not at $z$.
#
# </details>
#
# ## Five lines
#
# * **You can now** read the map and a flow, and say what the model does in numbers.
# * **The papers say:** predict a flow from a few points, fetch from the source, paint the rest, learn from films alone.
# * **Their code does** the same with a dozen conventions of its own (A1 lists and measures them).
# * **We chose** rendered faces with exact truth, 64 pixels, one convention for all places, and one taught model.
# * **We measured:** heads and jaws follow; lids, gaze and a moving camera don't.
#
# **Where each equation is built.**
#
# | equations | notebook, section | module |
# |---|---|---|
# | $D(z) \approx S(z + F(z))$ | this one, *The true flow* | [`warping.py`](../minimodel/warping.py) |
# | MRFA 1 to 3 | [1](01_affine_flows.ipynb) | [`affine.py`](../minimodel/affine.py), [`dense_motion.py`](../minimodel/dense_motion.py) |
# | MRFA 4 to 7 | [7](07_lookup_and_refinement.ipynb) | [`refinement.py`](../minimodel/refinement.py) |
# | MRFA 8, the volume $C$ | [6](06_structure_correlation.ipynb) | [`correlation.py`](../minimodel/correlation.py) |
# | MRFA 9, 10 | [8](08_occlusion_gated_unet.ipynb) | [`generator.py`](../minimodel/generator.py) |
# | MRFA 11; TPSM 9, 13, 14; S2D 4 to 6, 8 | [9a](09a_what_a_loss_sees.ipynb) | [`losses.py`](../minimodel/losses.py) |
# | MRFA 12; TPSM 10 | [3](03_unsupervised_keypoints.ipynb) | [`losses.py`](../minimodel/losses.py), [`keypoints.py`](../minimodel/keypoints.py) |
# | MRFA 13 | [11](11_train_a_full_model.ipynb) | [`objective.py`](../minimodel/training/objective.py) |
# | TPSM 1 to 3, 5 to 8 | [2](02_thin_plate_splines.ipynb) | [`tps.py`](../minimodel/tps.py), [`dense_motion.py`](../minimodel/dense_motion.py) |
# | TPSM 4, 11, 12 | [A2](A2_numerics.ipynb) | [`background.py`](../minimodel/background.py) |
# | S2D 1, 2 | [8](08_occlusion_gated_unet.ipynb) | [`generator.py`](../minimodel/generator.py) |
# | S2D 3, 7 | [5](05_landmark_motion.ipynb) | [`landmark_motion.py`](../minimodel/landmark_motion.py) |
# | S2D 9 | [4](04_landmarks_on_video.ipynb) | [`landmarks.py`](../minimodel/landmarks.py) |
#
# **Open:** whether films alone can teach gates and refinement, given enough of them; eyes in a model that finds its own
# points; anything above 64 pixels.
#
# **Next:** [1 · Affine flows](01_affine_flows.ipynb).
