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
# # 0 · Start here: one photo, someone else's motion
#
# Given one photo and a video, make the person in the photo move like the person in the video. Nobody marks eyes or
# mouths for the program, and it never saw either person: it learns what moving means from videos alone. That is
# **unsupervised face animation**, and this course builds it from three papers, piece by piece.
#
# First the answer; the questions come after. This runs on a laptop's CPU.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from ipywidgets import FloatSlider

from minimodel import show
from minimodel.data import synthetic
from minimodel.data.video import read_image
from minimodel.evaluation import metrics
from minimodel.model import AnimationModel
from minimodel.warping import identity_grid, to_pixels, warp

model = AnimationModel.load("tiny")

# %% [markdown]
# The **source** is a photo of one person. The **driving** video shows another one. Both are drawn by a renderer that is
# part of this package, and the model has seen neither of them.

# %%
people = synthetic.sample_identities(2, seed=100)
speech = synthetic.animate_states(120, seed=5)[::5]  # what a person does in five seconds, every fifth frame
source = synthetic.render(synthetic.Faces(people[0], speech[0]), 64)
video = synthetic.render(synthetic.Faces(people[1], speech), 64)
made = torch.stack(list(model.animate(source[0], video, mode="standard")))

# %%
show.film(torch.cat([source.expand_as(video), video, made], dim=3), fps=6)

# %% [markdown]
# From left to right: photo, video, and the photo moving like the video. (A static page may show the first frame only;
# here are four of them.)

# %%
show.pictures({"driving": video[4::6], "made": made[4::6]}, side=1.3)

# %% [markdown]
# From files it is one command, `minimodel animate --source photo.png --driving video.mp4`. What does a file lose? It knows
# 256 shades of a colour, where we compute with fractions, so a photo comes back with an error of half a shade at most:

# %%
with tempfile.TemporaryDirectory() as folder:
    show.save_picture(source[0], Path(folder) / "photo.png")
    again = read_image(Path(folder) / "photo.png")
assert 0 < (255 * (again - source[0]).abs()).max() <= 0.51

# %% [markdown]
# ## How good is that?
#
# With two different people there is nothing to compare with. So the field does this: take the first frame of a video as
# the photo, and rebuild the *rest of the same video*. Now the right answer is known. Every score of an animation
# in this course stands beside that of the simplest thing one could do, *copying*: leave the photo as it is. (PSNR is
# explained in a later notebook; one decibel more means a fifth less squared error.)

# %%
clip = synthetic.render(synthetic.Faces(people[0], speech), 64)
rebuilt = torch.stack(list(model.animate(source[0], clip, mode="standard")))
copying = metrics.psnr(source.expand_as(clip)[1:], clip[1:]).mean()
ours = metrics.psnr(rebuilt[1:], clip[1:]).mean()
print(f"PSNR: copying {copying:.1f} dB, ours {ours:.1f} dB")
assert ours > copying + 2
show.pictures({"wanted": clip[4::6], "rebuilt": rebuilt[4::6]}, side=1.3)

# %% [markdown]
# ## How does it work?
#
# In three steps, which the model hands out as it goes:
#
# 1. **Where does each pixel come from?** A *flow* says for every pixel of the new frame where in the photo to look.
#    (Colours: the hue is the direction, the strength the distance, white stands still.)
# 2. **Fetch it.** *Warping* the photo by the flow.
# 3. **What can't be fetched is painted.** A mouth that opens shows teeth that the photo never had. An *occlusion map*
#    says where to trust the warped photo (dark: not at all, yellow: fully; how far one can trust the map is measured in
#    notebook 8), and a generator paints the rest.

# %%
with torch.no_grad():
    output = model(source, clip[12:13])
steps = [source, clip[12:13], show.flow_colors(output.flows[-1]), output.warped_source]
steps += [show.heat(torch.sigmoid(output.occlusions[-1])), output.image]
show.pictures({"": torch.cat(steps)}, columns=["photo", "driving", "1 flow", "2 warped", "3 trust", "result"])

# %% [markdown]
# ## Faces that know the answer
#
# Did the model find the *right* flow? With filmed faces nobody can say, and so none of the papers could. Our faces are
# rendered from a small 3-D head, so the computer knows where each point of skin went. A face is an **identity** (who it
# is) and a **state** (what it is doing):

# %%
everyone = synthetic.Faces(synthetic.sample_identities(8, seed=3), synthetic.neutral_states(1))
show.pictures({"": synthetic.render(everyone, 96)}, side=1.2)

# %% [markdown]
# Move somebody's head, jaw, lids and gaze. (Sliders need a running notebook; the row of pictures after them shows one
# move each.)

# %%
calm = synthetic.neutral_states(1)


def in_state(yaw=0.0, jaw=0.0, smile=0.0, lids=1.0, look=0.0):
    both = dict(lids=torch.full((1, 2), lids), gaze=torch.tensor([[look, 0.0]]))
    one = dict(yaw=torch.tensor([yaw]), jaw=torch.tensor([jaw]), smile=torch.tensor([smile]))
    return synthetic.Faces(people[0], replace(calm, **one, **both))


def draw(**state):
    return show.draw_pictures({"": synthetic.render(in_state(**state), 128)}, side=2.5)


ranges = dict(yaw=(0.3, -0.6, 0.6), jaw=(0.3, 0, 1), smile=(0.0, -1, 1), lids=(1.0, 0, 1.4), look=(0.0, -0.5, 0.5))
sliders = {k: FloatSlider(v, min=a, max=b, step=0.05) for k, (v, a, b) in ranges.items()}
show.playground(draw, **sliders)
# %%
names = dict(yaw=0.5, jaw=0.8, smile=1.0, lids=0.0, look=0.5)
poses = [in_state()] + [in_state(**{name: value}) for name, value in names.items()]
show.pictures({"": torch.cat([synthetic.render(pose, 96) for pose in poses])}, columns=["at rest", *names], side=1.4)

# %% [markdown]
# ## The true flow
#
# One sentence fixes the notation of the whole course. A flow $F$ lives on the driving frame $D$ and points *back* into
# the source $S$, so that where the source shows the point at all,
#
# $$D(z) \approx S\big(z + F(z)\big).$$
#
# Here $z$ is a place, two numbers from $-1$ to $1$ across the picture. (Notebook 1 says exactly which; `to_pixels`
# makes columns and rows of them.) In a loop, taking the nearest pixel:

# %%
SIZE = 128
one, other = in_state(yaw=-0.2), in_state(yaw=0.35, jaw=0.6, smile=0.5)
ambient = [synthetic.Faces(face.identity, replace(face.state, ambient=torch.ones(1))) for face in (one, other)]
S, D = (synthetic.render(face, SIZE) for face in ambient)
F, visible = synthetic.flow_between(*ambient, SIZE)


def warp_nearest(image, flow):
    made = torch.zeros_like(image)
    positions = to_pixels((identity_grid(SIZE, SIZE) + flow).permute(1, 2, 0), (SIZE, SIZE)).round().long()
    for i in range(SIZE):
        for j in range(SIZE):
            x, y = positions[i, j].clamp(0, SIZE - 1)
            made[:, i, j] = image[:, y, x]
    return made


# %% [markdown]
# The package's `warp` does the same, but mixes the four nearest pixels. The assertion below says what each is worth:
# the loop's picture is at least twice as close to $D$ as the source was, and the package's is closer still.

# %%
by_loop, by_package = warp_nearest(S[0], F[0])[None], warp(S, F)
show.pictures(
    {"": torch.cat([S, D, show.flow_colors(F), by_loop, by_package, visible.expand(-1, 3, -1, -1)])},
    columns=["source", "driving", "true flow", "loop", "package", "visible"],
)
errors = [(255 * metrics.l1(picture * visible, D * visible)).item() for picture in (S, by_loop, by_package)]
assert errors[0] > 2 * errors[1] > 2 * errors[2]

# %% [markdown]
# Where `visible` is black, the source doesn't show the point: the side of the head had been turned away, the teeth were
# behind the lips. There the true flow fetches something wrong (see the stripes in the hair), and no flow can fetch what
# isn't in the picture.
#
# Beside the flow, the renderer knows 74 landmarks and which part of the face each pixel belongs to. This model is never
# given any of it. (Indirectly it profits: the features by which its training compares pictures, notebook 9, once learnt to
# tell parts and landmarks of such faces, as the papers' VGG-19 learnt from labelled photographs.) Here we use it to *check*
# the model.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(6, 3))
axes[0].imshow(D[0].permute(1, 2, 0))
show.dots(axes[0], synthetic.landmarks(other)[0], (SIZE, SIZE), s=9, color="tab:red", linewidths=0)
axes[1].imshow(synthetic.parsing(other, SIZE)[0], cmap="tab20")
for axis, title in zip(axes, ("landmarks", "parts"), strict=True):
    axis.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Does the model find it?
#
# We compare the model's flow with the true one wherever skin is seen that the source shows as well. The error is the
# mean length of the difference, in pixels of this picture of 64. "Nothing moves" has an error, too, which is simply how
# far things moved; the assertion holds that the model's is smaller by at least 30 %.

# %%
first, later = (synthetic.Faces(people[0], speech[i]) for i in (0, 12))
truth, seen = synthetic.flow_between(first, later, 64)
skin = synthetic.parsing(later, 64) == synthetic.PARTS.index("skin")
where = skin[:, None] & seen.bool()
found = metrics.flow_error(output.flows[-1], truth, where).item()
nothing = metrics.flow_error(0 * truth, truth, where).item()
print(f"error of the flow: nothing moves {nothing:.1f} pixels, found {found:.1f} pixels")
assert found < 0.7 * nothing
largest = truth.norm(dim=1).max().item()
flows = [show.flow_colors(flow, largest=largest) for flow in (truth, output.flows[-1])]
show.pictures({"": torch.cat(flows)}, columns=["true", "found"], side=2)

# %% [markdown]
# It does, roughly, though nobody ever showed it a flow. How that is possible is what the next notebooks are about.
#
# ## Break it
#
# What if the flow pointed the other way, from the source to the driving frame? Then $z + F(z)$ asks the wrong question,
# and the result is worse than doing nothing:

# %%
forward, _ = synthetic.flow_between(ambient[1], ambient[0], SIZE)
wrong = warp(S, forward)
show.pictures({"": torch.cat([S, D, by_package, wrong])}, columns=["source", "driving", "backward", "forward"])
assert metrics.l1(wrong, D) > metrics.l1(S, D) > metrics.l1(by_package, D)

# %% [markdown]
# ## The map
#
# | | you build | in the package |
# |---|---|---|
# | **0** | (this) the task, the faces, the true flow | [`data/synthetic.py`](../minimodel/data/synthetic.py) |
# | [**1**](01_affine_flows.ipynb) | coordinates, warping, ten moving parts | [`warping.py`](../minimodel/warping.py), [`affine.py`](../minimodel/affine.py), [`dense_motion.py`](../minimodel/dense_motion.py) |
# | [**2**](02_thin_plate_splines.ipynb) | parts that bend, a background that moves | [`tps.py`](../minimodel/tps.py), [`dense_motion.py`](../minimodel/dense_motion.py), [`background.py`](../minimodel/background.py) |
# | [**3**](03_unsupervised_keypoints.ipynb) | points that nobody labelled | [`keypoints.py`](../minimodel/keypoints.py), [`tokens.py`](../minimodel/tokens.py), [`losses.py`](../minimodel/losses.py) |
# | [**4**](04_landmarks_on_video.ipynb) | 74 points with names that hold still on video | [`landmarks.py`](../minimodel/landmarks.py) |
# | [**5**](05_landmark_motion.ipynb) | a face that moves by 74 points alone, gaze and all | [`landmark_motion.py`](../minimodel/landmark_motion.py) |
# | [**6**](06_structure_correlation.ipynb) | who in the source looks like whom in the driving frame | [`correlation.py`](../minimodel/correlation.py) |
# | [**7**](07_lookup_and_refinement.ipynb) | refining the flow from 8 pixels to the whole picture | [`refinement.py`](../minimodel/refinement.py) |
# | [**8**](08_occlusion_gated_unet.ipynb) | painting what can't be fetched | [`generator.py`](../minimodel/generator.py) |
# | [**9**](09_losses_and_metrics.ipynb) | what each loss and metric sees, and is blind to | [`losses.py`](../minimodel/losses.py), [`metrics.py`](../minimodel/evaluation/metrics.py) |
# | [**10**](10_motion_transfer.ipynb) | whose face is it, when one person drives another | [`transfer.py`](../minimodel/transfer.py) |
# | [**11**](11_train_a_full_model.ipynb) | training, measuring and using the whole | [`train.py`](../minimodel/training/loop.py), [`evaluate.py`](../minimodel/evaluation/protocols.py), [`animate.py`](../minimodel/commands/animate.py) |
# | [**A1**](A1_published_code.ipynb) | (appendix) what published code does otherwise | [`published/`](../minimodel/published/conventions.py) |
#
# The papers behind it: *Learning Motion Refinement for Unsupervised Face Animation* (here and everywhere: **MRFA**) in
# notebooks 1, 3 and 6 to 8; *Thin-Plate Spline Motion Model for Image Animation* (**TPSM**) in 2, 8 and 10; *Sparse to
# Dense Motion Transfer for Face Image Animation* (**S2D**) in 4 and 5. All three grew out of the *First Order Motion
# Model for Image Animation* (**FOMM**), which is what notebook 1 builds.
#
# ## Exercises
#
# 1. Drive the photo with the *mirrored* video (`video.flip(3)`). What do you expect of the head's direction, and what
#    do you see?
# 2. In `errors` above, even the true flow leaves something. Is it more at 64 or at 256 pixels? Why?
#
# <details><summary>Solutions</summary>
#
# 1. `model.animate(source[0], video.flip(3), mode="standard")`: the face turns the other way. The photo isn't mirrored, only the
#    motion is: motion and looks have been separated.
# 2. More at 64 (set `SIZE`): every warp mixes neighbouring pixels, and at 64 pixels an eyelash or a lip is only one
#    pixel wide. The blur is a matter of pixels, not of millimetres.
#
# </details>
#
# **Read next:** [1 · Affine flows](01_affine_flows.ipynb).
