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
# # 11 · Train a full model
#
# All the parts are built. Now: do they *learn*, together, from nothing but pairs of frames? This notebook trains the
# whole system from random weights, measures it on people it has never seen, and animates with the weights that an hour
# more gives. Five minutes on a laptop's CPU are enough to see a face follow; one number below makes it longer.

# %%
import json
import os
import tempfile
from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from ipywidgets import IntSlider

from minimodel import losses, show
from minimodel.config import PRESETS, PRIORS, SYSTEMS, HourglassSizes, ModelConfig, ResNetSizes, TokenSizes
from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.evaluation.benchmark import EvaluationClip, Truth, load_evaluation
from minimodel.evaluation.protocols import evaluate, strip
from minimodel.features import load_features
from minimodel.model import AnimationModel
from minimodel.motion import Motion, Output, SourceState, Stages
from minimodel.priors import AffinePrior, LandmarkPrior, NoPrior, SplinePrior, build_prior
from minimodel.tps import random_transforms
from minimodel.training.loop import TrainConfig, train

MINUTES = float(os.environ.get("MINIMODEL_MINUTES", 5))  # of training; more is better, 60 is good
SIZE = PRESETS["tiny"].image_size

# %% [markdown]
# ## The answer first
#
# What this notebook's loop makes of random weights when it is given more than five minutes: the shipped `tiny`, on five
# people that it was never trained on. The two top rows are what it is given, the third is what it makes of them. Below,
# what it made that from: the source warped by the model's flow, that flow (colour is direction), and where the model
# takes the warped source as it is (bright).

# %%
ROWS = ("source", "driving", "result", "warped source", "flow", "gate: bright = kept")


def draw_strip(model, clips):
    picture = strip(model, clips, rows=5).permute(1, 2, 0)
    axis = plt.figure(figsize=(6, 6)).add_subplot()
    axis.imshow(picture)
    side = picture.shape[0] / len(ROWS)
    axis.set(xticks=[], yticks=[side * (row + 0.5) for row in range(len(ROWS))], yticklabels=ROWS)
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    plt.show()


# %%
tiny = AnimationModel.load("tiny")
clips = load_evaluation("synthetic", SIZE)[::4]
draw_strip(tiny, clips)

# %% [markdown]
# ## The whole and its parts
#
# A *system* of the papers is a choice of parts: a **prior** (what moves, coarsely), **refinement** or not, and a
# **generator**. `fomm` is the baseline of MRFA's tables (*First Order Motion Model*), `npmr` refines without any prior
# (notebook 6). The shipped `tiny` is `mrfa` with another prior, `tokens`: a transformer finds its points (notebook 3).

# %%
for name, parts in SYSTEMS.items():
    print(f"{name:5} prior {parts.prior}, {'refined' if parts.refine else 'not refined'}, generator {parts.generator}")

# %%
torch.manual_seed(0)
model = AnimationModel.from_preset("tiny", system="mrfa")
for name, part in model.named_children():
    print(f"{name:10} {sum(p.numel() for p in part.parameters()) / 1e6:5.2f} M parameters")

# %% [markdown]
# Priors under their names, the class of each, and where it comes from:

# %%
built = {name: type(build_prior(ModelConfig.from_preset("tiny", prior=name))) for name in PRIORS}
for prior in (AffinePrior, SplinePrior, LandmarkPrior, NoPrior):
    names = [name for name, kind in built.items() if kind is prior]
    print(f"{', '.join(names):14} {prior.__name__:13} {prior.__doc__.splitlines()[0]}")

# %% [markdown]
# All sizes are in one `ModelConfig`, which is saved with the weights. A preset is a `ModelConfig`; its defaults are the papers', where
# papers give them (`background`, the branches that move by landmarks and the convolutions before the tokens are ours). Any
# of them can be changed by name, here the U-Net's channels:

# %%
for kind in (HourglassSizes, ResNetSizes, TokenSizes):
    print(kind.__name__, [name for name, value in vars(PRESETS["tiny"]).items() if isinstance(value, kind)])
print("U-Net of tiny:", PRESETS["tiny"].unet, " of the paper:", ModelConfig().unet)
slim = AnimationModel.from_preset("tiny", unet=HourglassSizes(base=16, levels=3, maximum=64))
assert slim.config.unet.base == 16 and slim.config.detector == PRESETS["tiny"].detector

# %% [markdown]
# The model's `forward` asks what the source says and what the driving frame says, and makes a picture from both. The split is
# what makes animation quick: the source is encoded once, then each driving frame costs only its own part.
#
# $$\hat D = \text{render}\big(\text{encode}_S(S),\ \text{encode}_D(D)\big)$$
#
# `move` is `render` without its last part, the picture; an `Output` is what `move` gives, and the picture:

# %%
with torch.no_grad():
    S, D = clips[0].frames[:1], clips[0].frames[8:9]
    state, motion = tiny.encode_source(S), tiny.encode_driving(D)
    moved, output = tiny.move(state, motion), tiny.render(state, motion)
assert [type(made) for made in (state, motion, moved, output)] == [SourceState, Motion, Stages, Output]
for kind in (SourceState, Motion, Stages):
    print(f"{kind.__name__:12}", ", ".join(field.name for field in fields(kind)))
print("Output adds ", ", ".join(sorted({f.name for f in fields(Output)} - {f.name for f in fields(Stages)})))

# %% [markdown]
# ## A training loop, by hand
#
# A pair is two frames of one video, one person in two states. The model gets $S$ and $D$ and must give back $D$. That
# sounds like cheating, since $D$ is an input. But $D$ enters through ten points and matrices only, too narrow for a
# picture to slip through, so the *looks* must come from $S$. The losses are those of MRFA section 3.4, and a third that
# comes from FOMM:
#
# $$\mathcal L = 10\,\underbrace{\sum_{i,l} \big|\phi_l(\hat D_i) - \phi_l(D_i)\big|}_{\text{perceptual, Eq. 11}}
# + 100\,\underbrace{\big|p_D - \mathbf{T}(p_{\mathbf{T}(D)})\big|}_{\text{equivariance, Eq. 12}}
# + 10\,(\text{the same for the matrices})$$
#
# ($|\cdot|$ is a mean, $\phi_l$ the layer $l$ of a frozen network of features, $i$ counts resolutions, and $\mathbf T$ is a
# random bend of the picture: notebooks 9 and 3. The paper weighs its losses alike. It trains for a day on four large GPUs,
# we for an hour on a laptop, and points that hold still are what everything else waits for.)
#
# Before training on thousands of pairs, always overfit **one**. If that fails, nothing else can work.

# %%
person = synthetic.sample_identities(1, seed=3)
pair = [synthetic.render(synthetic.Faces(person, synthetic.sample_states(1, seed)), SIZE) for seed in (4, 9)]
S, D = torch.cat(pair), torch.cat(pair[::-1])  # both directions
features = load_features("faces")
optimizer = torch.optim.Adam(model.parameters(), lr=4e-4, betas=(0.5, 0.999))
generator = torch.Generator().manual_seed(0)


def step():
    T = random_transforms(len(D), generator)
    motion, moved = model.encode_driving(D), model.encode_driving(losses.transformed_frame(D, T))
    image = model.render(model.encode_source(S), motion).image
    loss = losses.perceptual_loss(features, image, D)
    loss = loss + 10 * losses.equivariance_points(motion.points, moved.points, T)
    loss = loss + losses.equivariance_affine(motion.affine, moved.affine, moved.points, T)
    optimizer.zero_grad()
    (10 * loss).backward()
    optimizer.step()
    return image.detach()


# %%
images = [step() for _ in range(81)]
shown = {number: images[number] for number in (0, 10, 40, 80)}
before, after = (metrics.psnr(shown[number], D).mean() for number in (0, 80))
assert after > before + 3
show.pictures({"": torch.cat([S[:1], *(i[:1] for i in shown.values()), D[:1]])}, columns=["S", *map(str, shown), "D"])

# %% [markdown]
# (The numbers are steps.) The loop works. `minimodel.training.loop.train` is the same loop, plus what a real run needs:
# thousands of pairs, a moving average of the weights, checkpoints that a power cut can't damage, several GPUs. It also asks
# the picture as the generator made it, before the last gate mixed the warped source in (`Output.painted`, notebook 8), to
# look like $D$, or the generator would hardly learn where that gate is open. And one thing to save time: two steps of three
# train *motion alone*. They compare $D$ with the source as the coarse flow and the refined one move it, and spare themselves
# the generator, which can't be better than the flows that it is given.
#
# ## Train
#
# New faces are rendered as fast as the network eats them, so no two steps see the same person. One of the sample clips
# that come with the project is what the run is evaluated on. The bar shows steps, time, the loss, pairs a second, and the
# minutes that are left.

# %%
output = Path(tempfile.mkdtemp())
config = TrainConfig(
    output=output,
    preset="tiny",
    system="mrfa",
    data=("synthetic",),
    evaluate=("../data_samples/ada.mp4",),
    minutes=MINUTES,
    evaluate_minutes=1000,
)

# %%
# NBVAL_IGNORE_OUTPUT
if torch.cuda.device_count() > 1:
    from accelerate import notebook_launcher

    notebook_launcher(train, (config,), num_processes=torch.cuda.device_count())
else:
    train(config)
model = AnimationModel.load(output / "model.safetensors")

# %% [markdown]
# What it wrote is all in one folder: the weights, the state to go on from, the numbers of every step, and a picture at
# every evaluation. Do the losses fall? The perceptual one, and equivariance for points and for matrices, of the steps that
# train everything (pale: single batches, which jump; dark: a running mean over a tenth of them):

# %%
print(sorted(path.name for path in output.iterdir() if not path.name.startswith("events")))
lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
steps = [line for line in lines if line["kind"] == "train" and "perceptual" in line]  # the rest train motion alone
window = max(1, len(steps) // 10)
first, last = (sum(line["perceptual"] for line in part) / window for part in (steps[:window], steps[-window:]))
assert last < first

# %%
numbers = torch.tensor([line["step"] for line in steps])
figure, axes = plt.subplots(1, 3, figsize=(10, 2.3), layout="constrained")
for axis, name in zip(axes, ("perceptual", "points", "affine")):
    values = torch.tensor([line[name] for line in steps])
    smooth = values.unfold(0, window, 1).mean(1)
    axis.plot(numbers, values, linewidth=0.5, color="lightsteelblue")
    axis.plot(numbers[window - 1 :], smooth, color="tab:blue")
    axis.set(title=f"{name}: {smooth[0]:.2g} → {smooth[-1]:.2g}", xlabel="step", ylim=(0, values.quantile(0.98).item()))
    axis.locator_params(nbins=5)
plt.show()

# %% [markdown]
# The numbers above the curves are the running mean's first and last. The affine loss hardly moves in minutes: matrices
# begin as the identity, and as long as they hardly depend on the picture, each random turn and stretch costs what it costs
# at the start. To turn with the picture is learnt late.

# %% [markdown]
# ## Look
#
# Before any number. The rows are those of the first picture:

# %%
draw_strip(model, clips)

# %% [markdown]
# The weights that are shipped as `tiny`, at the top of this page, come from the same loop with more minutes, and with this
# prior:

# %%
print(tiny.config.prior)


# %% [markdown]
# ## Measure
#
# Same-identity reconstruction on people that were never trained on: the first frame is the source, all others drive.
# Two lines frame the result. **copy** leaves the source as it is; whoever can't beat that has learnt nothing.
# **oracle** warps the source by the *true* flow: right wherever the source shows the pixel. (Where it doesn't, a model can
# do better, by painting, or by fetching something likelier: notebook 8.)

# %%
for kind in (EvaluationClip, Truth):
    print(kind.__name__, "holds", ", ".join(field.name for field in fields(kind)))
known = clips[0].truth
print(f"{known.visible.float().mean():.0%} of the first clip's pixels are visible in its source")

# %%
ours, shipped = (evaluate(m, clips, features) for m in (model, tiny))
rows = {"copy": shipped.rows["copy"], "this run": ours.rows["model"], "tiny": shipped.rows["model"]}
rows["oracle"] = shipped.rows["oracle"]
figure, axes = plt.subplots(1, 4, figsize=(11, 2.2))
for axis, measure in zip(axes, ("PSNR", "L1", "flow, face (px)", "flow, mouth (px)")):
    axis.barh(list(rows), [row[measure] for row in rows.values()], color=["gray", "tab:orange", "tab:blue", "gray"])
    axis.set(title=measure, xlim=(15, None) if measure == "PSNR" else None)
    axis.invert_yaxis()
figure.tight_layout()
plt.show()

# %%
half_way = (rows["copy"]["PSNR"] + rows["oracle"]["PSNR"]) / 2
assert rows["tiny"]["PSNR"] > half_way
assert all(rows["tiny"][m] < rows["copy"][m] for m in ("L1", "flow, face (px)", "flow, mouth (px)", "flow, eyes (px)"))
if MINUTES >= 5 or torch.cuda.is_available():
    assert rows["this run"]["PSNR"] > rows["copy"]["PSNR"] + 1

# %% [markdown]
# `minimodel evaluate` prints the same over all twenty people, as a table with every measure.
#
# ## Break it: take the points away
#
# Is it really the ten points that carry the motion? Render with the *source's* own motion in place of the driving
# frame's. Everything else stays.

# %%
with torch.no_grad():
    frames = clips[0].frames
    state = tiny.encode_source(frames[:1])
    told = tiny.render(state, tiny.encode_driving(frames)).image
    untold = tiny.render(state, state.motion).image.expand_as(frames)
quality = [metrics.psnr(image, frames)[1:].mean() for image in (untold, told)]
assert quality[0] < quality[1] - 1
show.pictures({"wanted": frames[1::4], "told": told[1::4], "not told": untold[1::4]}, side=1.2)

# %% [markdown]
# Without the points the model can do no better than to stand still.
#
# ## Animate
#
# Another person's motion, which is what it was all for. In a running notebook, choose who is moved, by whom, and the
# moment. Below are three people moved by one film:

# %%
everybody = synthetic.sample_identities(8, seed=500)
photos = synthetic.render(synthetic.Faces(everybody, synthetic.neutral_states(1)), SIZE)


@torch.no_grad()
def puppet(who=0, by=3, moment=6):
    states = synthetic.animate_states(125, seed=by)[5 * moment : 5 * moment + 1]
    driving = synthetic.render(synthetic.Faces(everybody[by], states), SIZE)
    made = tiny(photos[who : who + 1], driving).image
    return show.draw_pictures(
        {"": torch.cat([photos[who : who + 1], driving, made])}, columns=["who", "by", "made"], side=2
    )


show.playground(puppet, who=IntSlider(0, 0, 7), by=IntSlider(3, 0, 7), moment=IntSlider(6, 0, 24))
# %%
video = synthetic.render(synthetic.Faces(everybody[3], synthetic.animate_states(125, seed=3)[::6]), SIZE)
made = [torch.stack(list(tiny.animate(photos[who], video, mode="standard"))) for who in (0, 4, 6)]
show.film(torch.cat([video, *made], dim=3), fps=5, side=128)

# %%
show.pictures({"driving": video[::3], **{f"person {n}": m[::3] for n, m in zip((0, 4, 6), made)}}, side=1.0)

# %% [markdown]
# Head and jaw follow. Lids and gaze don't: no point of an hour's training sits on an eyelid (notebook 3 shows where they
# are), and what the points don't say, nobody can know. The dark inside of an opening mouth is missing too, since the
# lips are stretched where it should be painted. And the proportions of the driving face come along, because the points of
# one face are put onto another as they are.
#
# ## The papers' tables, on the rendered faces
#
# `minimodel ablate TABLE` trains the rows of a paper's table one after the other, each on the same pairs, and measures them on
# the benchmark: twenty people of whom no model has seen anything, drawn once with a fixed seed. The paper's numbers stand
# beside ours. They are from films, at 256 pixels, after a day or more on several GPUs: what can be compared is which row is better.
#
# **MRFA's Table 3: priors, with and without refinement.**
# (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate mrfa-3`, and with `--rows affine affine-refined --seeds 3 4`; 6000 pairs,
# one CPU core each.) The paper's PSNR: 24.62 and 25.15 dB for affine parts (without and with refinement), 25.09 and 25.51
# for splines, 25.09 and 25.57 for tokens.
#
# | prior | refined | seed | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes |
# |---|---|---|---|---|---|---|---|---|---|
# | affine | no | 0 | 0.0314 | 24.20 | 0.823 | 0.171 | 1.29 | 1.79 | 1.09 |
# | |  | 1 | 0.0307 | 24.34 | 0.830 | 0.167 | 1.22 | 1.64 | 1.03 |
# | |  | 2 | 0.0302 | 24.38 | 0.832 | 0.166 | 1.20 | 1.66 | 1.03 |
# | |  | 3 | 0.0321 | 24.11 | 0.819 | 0.174 | 1.24 | 1.67 | 1.01 |
# | |  | 4 | 0.0318 | 24.04 | 0.820 | 0.173 | 1.26 | 1.66 | 1.09 |
# | | yes | 0 | 0.0305 | 24.29 | 0.829 | 0.165 | 1.15 | 1.63 | 0.95 |
# | |  | 1 | 0.0314 | 24.10 | 0.822 | 0.170 | 1.23 | 1.70 | 1.08 |
# | |  | 2 | 0.0301 | 24.40 | 0.833 | 0.162 | 1.13 | 1.52 | 0.99 |
# | |  | 3 | 0.0311 | 24.23 | 0.825 | 0.169 | 1.18 | 1.59 | 1.02 |
# | |  | 4 | 0.0307 | 24.22 | 0.825 | 0.168 | 1.25 | 1.68 | 1.06 |
# | splines | no | 0 | 0.0264 | 25.15 | 0.859 | 0.151 | 1.07 | 1.51 | 0.86 |
# | |  | 1 | 0.0267 | 25.10 | 0.858 | 0.151 | 1.19 | 1.71 | 0.93 |
# | |  | 2 | 0.0264 | 25.10 | 0.861 | 0.151 | 1.17 | 1.82 | 0.85 |
# | | yes | 0 | 0.0253 | 25.21 | 0.866 | 0.143 | 1.06 | 1.44 | 0.90 |
# | |  | 1 | 0.0259 | 25.08 | 0.862 | 0.145 | 1.10 | 1.58 | 0.93 |
# | |  | 2 | 0.0262 | 24.95 | 0.860 | 0.147 | 1.07 | 1.49 | 0.91 |
# | tokens | no | 0 | 0.0309 | 24.30 | 0.829 | 0.166 | 1.21 | 1.67 | 1.02 |
# | |  | 1 | 0.0305 | 24.47 | 0.836 | 0.163 | 1.03 | 1.39 | 0.84 |
# | |  | 2 | 0.0290 | 24.75 | 0.844 | 0.156 | 1.04 | 1.40 | 0.87 |
# | | yes | 0 | 0.0294 | 24.60 | 0.840 | 0.159 | 1.12 | 1.61 | 0.91 |
# | |  | 1 | 0.0298 | 24.44 | 0.838 | 0.159 | 1.00 | 1.38 | 0.84 |
# | |  | 2 | 0.0284 | 24.82 | 0.847 | 0.153 | 0.97 | 1.35 | 0.83 |
# | none (NPMR) | yes | 0 | 0.0491 | 20.41 | 0.688 | 0.264 | 3.23 | 3.36 | 3.29 |
# | |  | 1 | 0.0528 | 19.94 | 0.662 | 0.281 | 3.46 | 3.51 | 3.54 |
# | |  | 2 | 0.0522 | 20.01 | 0.668 | 0.277 | 3.52 | 3.62 | 3.57 |
#
# Pictures of splines are ahead of those of affine parts, as in the paper, by far more than seeds differ by (partly because
# only they see where the wall went). Between the flows of splines and tokens seeds don't decide. Without any prior 6000 pairs
# are not enough: NPMR is hardly better than copying (19.54 dB, 3.53 pixels), where the paper, which trains for a
# day on four GPUs, has it just behind the affine prior.
#
# Does refinement help, beyond what seeds do? Compare each of the eleven runs that have it and a prior with the run of the
# same prior and seed that has none:

# %%
# L1, PSNR and the flow's error on the face, from the table: affine (five seeds), splines and tokens (three each).
coarse_only = torch.tensor(
    [[0.0314, 0.0307, 0.0302, 0.0321, 0.0318, 0.0264, 0.0267, 0.0264, 0.0309, 0.0305, 0.0290],
     [24.20, 24.34, 24.38, 24.11, 24.04, 25.15, 25.10, 25.10, 24.30, 24.47, 24.75],
     [1.29, 1.22, 1.20, 1.24, 1.26, 1.07, 1.19, 1.17, 1.21, 1.03, 1.04]]
)  # fmt: skip
with_refinement = torch.tensor(
    [[0.0305, 0.0314, 0.0301, 0.0311, 0.0307, 0.0253, 0.0259, 0.0262, 0.0294, 0.0298, 0.0284],
     [24.29, 24.10, 24.40, 24.23, 24.22, 25.21, 25.08, 24.95, 24.60, 24.44, 24.82],
     [1.15, 1.23, 1.13, 1.18, 1.25, 1.06, 1.10, 1.07, 1.12, 1.00, 0.97]]
)  # fmt: skip
gains = with_refinement - coarse_only
for name, row, before in zip(("L1", "PSNR", "flow, face"), gains, coarse_only.mean(1)):
    t = row.mean() / row.std() * len(row) ** 0.5
    better = (row * row.mean() > 0).sum()
    print(f"{name:>10}: {row.mean() / before:+.1%}, t = {t:.1f}; better in {better} of {len(row)} runs")

# %% [markdown]
# (With eleven runs, a $|t|$ above 2.2 comes by chance once in twenty times.) Refinement makes the flow truer and L1
# smaller, by more than chance. With affine parts alone that isn't sure: four of five seeds gain in both, and one loses in
# everything ($t$ is -2.1 for the flow and -1.4 for L1, where five runs ask for 2.8). In PSNR next to nothing is gained,
# where the paper gains about 0.5 dB with every prior. By region: the mouth gains 4, 10 and 3 % with affine parts, splines
# and tokens; the eyes gain 3 and 6 % with affine parts and tokens and lose 4 % with splines. Notebook 7 says why so little
# is left to gain.
#
# **MRFA's Table 4: what does refinement need?** Tokens, three seeds
# (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate mrfa-4`; "full" are the refined tokens of Table 3).
#
# | | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes | paper: L1 | PSNR |
# |---|---|---|---|---|---|---|---|---|---|
# | full | 0.0292 ± 0.0007 | 24.62 ± 0.19 | 0.842 ± 0.005 | 0.157 ± 0.003 | 1.03 ± 0.08 | 1.45 ± 0.14 | 0.86 ± 0.04 | 0.0354 | 25.57 |
# | no update of the flow | 0.0296 ± 0.0004 | 24.57 ± 0.09 | 0.840 ± 0.004 | 0.159 ± 0.002 | 1.11 ± 0.08 | 1.54 ± 0.12 | 0.91 ± 0.06 | 0.0362 | 25.48 |
# | no update of the occlusion | 0.0296 ± 0.0006 | 24.54 ± 0.11 | 0.838 ± 0.005 | 0.159 ± 0.004 | 1.06 ± 0.07 | 1.46 ± 0.13 | 0.89 ± 0.05 | 0.0356 | 25.48 |
# | no warped source feature | 0.0296 ± 0.0010 | 24.52 ± 0.28 | 0.840 ± 0.011 | 0.160 ± 0.007 | 1.08 ± 0.16 | 1.49 ± 0.24 | 0.89 ± 0.12 | 0.0357 | 25.52 |
# | no source image | 0.0294 ± 0.0007 | 24.57 ± 0.17 | 0.840 ± 0.004 | 0.158 ± 0.004 | 1.02 ± 0.08 | 1.42 ± 0.14 | 0.85 ± 0.07 | 0.0354 | 25.45 |
#
# Each seed: L1, PSNR and the flow's error on the face.
#
# | | seed 0 | seed 1 | seed 2 |
# |---|---|---|---|
# | full | 0.0294, 24.60, 1.12 | 0.0298, 24.44, 1.00 | 0.0284, 24.82, 0.97 |
# | no update of the flow | 0.0298, 24.49, 1.18 | 0.0298, 24.53, 1.12 | 0.0291, 24.67, 1.03 |
# | no update of the occlusion | 0.0302, 24.45, 1.14 | 0.0297, 24.53, 1.00 | 0.0290, 24.66, 1.05 |
# | no warped source feature | 0.0308, 24.21, 1.26 | 0.0292, 24.63, 1.00 | 0.0289, 24.74, 0.98 |
# | no source image | 0.0300, 24.40, 1.07 | 0.0296, 24.55, 0.93 | 0.0286, 24.74, 1.06 |
#
# The full model is ahead in all four measures of the picture, by less than seeds differ by. One difference holds in every
# seed: without the update of the flow the flow is 0.08 ± 0.03 pixels worse on the face, hence no truer than without refinement
# (1.09). In the paper this update matters most for L1 and LPIPS (for PSNR and AED it's the source's image, which does nothing
# for our flow).
#
# **MRFA's Table 6: how far up?** Tokens, seed 0 (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate mrfa-6`; the last row is
# that of Table 3).
#
# | refined up to | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes | paper: L1 | PSNR |
# |---|---|---|---|---|---|---|---|---|---|
# | 1/8 of the side | 0.0292 | 24.62 | 0.840 | 0.159 | 1.17 | 1.71 | 0.93 | 0.0355 | 25.52 |
# | 1/4 | 0.0294 | 24.56 | 0.839 | 0.159 | 1.13 | 1.54 | 0.96 | 0.0353 | 25.57 |
# | 1/2 | 0.0306 | 24.25 | 0.830 | 0.166 | 1.17 | 1.68 | 0.96 | 0.0354 | 25.57 |
# | the whole | 0.0294 | 24.60 | 0.840 | 0.159 | 1.12 | 1.61 | 0.91 | 0.0354 | 25.57 |
#
# There is no order that one seed could show (three seeds of the last row differ by 0.4 dB), and in the paper hardly any.
# Here the coarsest scale alone brings all that the pictures gain (without refinement: 0.0309, 24.30 dB, 1.21 pixels).
#
# **MRFA's Table 5: how many points?** Affine parts, seed 0 (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate mrfa-5`; ten
# points are Table 3's first seed).
#
# | points | refined | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes | paper: L1 | PSNR |
# |---|---|---|---|---|---|---|---|---|---|---|
# | 10 | no | 0.0314 | 24.20 | 0.823 | 0.171 | 1.29 | 1.79 | 1.09 | 0.0386 | 24.62 |
# | | yes | 0.0305 | 24.29 | 0.829 | 0.165 | 1.15 | 1.63 | 0.95 | 0.0367 | 25.15 |
# | 15 | no | 0.0313 | 24.17 | 0.823 | 0.169 | 1.23 | 1.66 | 1.05 | 0.0376 | 24.91 |
# | | yes | 0.0310 | 24.16 | 0.825 | 0.167 | 1.18 | 1.65 | 0.98 | 0.0360 | 25.34 |
# | 20 | no | 0.0314 | 24.21 | 0.822 | 0.171 | 1.30 | 1.81 | 1.10 | 0.0376 | 24.97 |
# | | yes | 0.0305 | 24.29 | 0.829 | 0.164 | 1.15 | 1.59 | 0.94 | 0.0356 | 25.49 |
#
# More points bring nothing here in 6000 pairs, where the paper gains 0.3 dB. Refinement takes 4 to 12 % off the flow's error
# with each number of them. How much one seed says: ten points, refined, trained once more on another processor, had 0.0311,
# 24.09 dB and 1.18 pixels.
#
# **MRFA's Table A3: how large a patch, how many levels?** Splines, seed 0
# (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate mrfa-a3`). $P$ is how often the volume is averaged, $r$ the patch's radius.
#
# | $P$ | $r$ | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes | paper: L1 | PSNR |
# |---|---|---|---|---|---|---|---|---|---|---|
# | 0 | 2 | 0.0254 | 25.25 | 0.865 | 0.145 | 1.05 | 1.54 | 0.85 | 0.0355 | 25.48 |
# | | 3 | 0.0254 | 25.17 | 0.866 | 0.143 | 1.02 | 1.42 | 0.87 | 0.0354 | 25.52 |
# | | 4 | 0.0257 | 25.10 | 0.862 | 0.146 | 1.12 | 1.57 | 0.94 | 0.0351 | 25.54 |
# | 1 | 2 | 0.0248 | 25.34 | 0.869 | 0.141 | 1.01 | 1.46 | 0.83 | 0.0354 | 25.51 |
# | | 3 | 0.0255 | 25.16 | 0.864 | 0.144 | 1.10 | 1.56 | 0.92 | 0.0353 | 25.51 |
# | | 4 | 0.0250 | 25.30 | 0.868 | 0.142 | 1.02 | 1.42 | 0.86 | 0.0353 | 25.51 |
# | 2 | 2 | 0.0250 | 25.30 | 0.867 | 0.142 | 1.03 | 1.49 | 0.85 | 0.0355 | 25.52 |
# | | 3 | 0.0249 | 25.30 | 0.868 | 0.141 | 1.01 | 1.43 | 0.87 | 0.0355 | 25.49 |
# | | 4 | 0.0249 | 25.37 | 0.870 | 0.141 | 0.98 | 1.37 | 0.83 | 0.0355 | 25.43 |
#
# The largest reach, $P = 2$ and $r = 4$, is first in all but L1; in the paper it is last in PSNR. Otherwise there is no order
# that one seed could show: $P = 1$ and $r = 3$, which the paper takes, is near the end, and Table 3's run of the same row and
# seed, on another processor, had 25.21 dB and 1.06 pixels. In the paper, too, all nine lie within 0.11 dB.
#
# **TPSM's Table 4, its last two steps.** Splines with TPSM's own inpainting network, without refinement, seed 0
# (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate tpsm-4`). The rows before are other models than ours.
#
# | | L1 | PSNR | SSIM | perceptual | flow, face | flow, mouth | flow, eyes | paper: L1 | AKD |
# |---|---|---|---|---|---|---|---|---|---|
# | masks at several resolutions | 0.0259 | 25.24 | 0.863 | 0.152 | 0.99 | 1.37 | 0.83 | 0.046 | 4.73 |
# | + $\mathcal{L}_{warp}$ | 0.0264 | 25.11 | 0.859 | 0.154 | 1.07 | 1.48 | 0.88 | 0.045 | 4.57 |
#
# In the paper, on whole bodies, the warp loss gains a little in L1 and AKD; here it costs a little in everything, by about as
# much as seeds of splines differ. The same splines with the gated U-Net (Table 3, unrefined, seed 0) have 0.0264, 25.15 dB and
# 1.07 pixels: the inpainting network is no worse.
#
# **How far is the flow off if the loop stops after each scale?** Pixels; the last one is what the model uses. Longer runs, one
# each.
#
# | prior | pairs | | coarse | 8 | 16 | 32 | 64 |
# |---|---|---|---|---|---|---|---|
# | affine | 6 000 | face | 1.27 | 1.24 | 1.20 | 1.17 | 1.16 |
# | | | mouth | 1.73 | 1.72 | 1.70 | 1.69 | 1.68 |
# | affine | 27 000 | face | 0.85 | 0.85 | 0.83 | 0.82 | 0.83 |
# | | | mouth | 1.25 | 1.23 | 1.20 | 1.18 | 1.18 |
# | tokens (`tiny`) | 34 500 | face | 0.65 | 0.65 | 0.64 | 0.64 | 0.68 |
# | | | mouth | 0.92 | 0.92 | 0.90 | 0.86 | 0.89 |
# | splines | 10 400 | face | 0.97 | 0.97 | 0.94 | 0.89 | 0.87 |
# | | | mouth | 1.37 | 1.37 | 1.33 | 1.25 | 1.21 |
# | splines | 21 500 | face | 0.76 | 0.76 | 0.76 | 0.74 | 0.74 |
# | | | mouth | 0.96 | 0.96 | 0.96 | 0.92 | 0.92 |
# | splines | 33 400 | face | 0.68 | 0.68 | 0.68 | 0.67 | 0.69 |
# | | | mouth | 0.85 | 0.85 | 0.86 | 0.85 | 0.87 |
#
# The better the points, the less is left, and late in training the last scale takes it back: there the loss is paid for the
# looks of the picture, and gets them, at the cost of the flow's truth. What was tried without changing this: other learning
# rates, batches of 2 and 4 on the same pairs, finer heatmaps, fewer layers in the loss, hiding from the loss what the source
# can't show, a volume whose own flow (Eq. 8) is judged too, no gradient from refinement into the prior, a driving encoder
# that sees the driving picture, a loss for the flow of every scale (6000 pairs: 24.05 dB, 1.33 pixels), and one for the
# flow from a source to its own bent picture, which is known (two seeds: 1.31 and 1.13 pixels). What did change it is a
# residual that has to be smooth, late in training: eight minutes with `--loss.smoothness 6` brought a fiftieth of the
# flow's error back, and 0.1 dB; 24 more with 12 made `tiny-tps`, whose error on the face is 0.67 before refinement and 0.66
# after it. Asked from the start, it only slows refinement down.
#
# **Landmarks as a prior, and films.** One seed each, 6000 pairs in bfloat16, the same U-Net, the true landmarks:
#
# | prior | refined | L1 | PSNR | flow, face | flow, mouth | flow, eyes |
# |---|---|---|---|---|---|---|
# | affine | no | 0.0314 | 24.20 | 1.29 | 1.79 | 1.09 |
# | | yes | 0.0305 | 24.29 | 1.15 | 1.63 | 0.95 |
# | landmarks | no | 0.0270 | 25.60 | 0.62 | 0.64 | 0.47 |
# | | yes | 0.0267 | 25.59 | 0.62 | 0.63 | 0.47 |
# | landmarks, residual generator (`s2d`) | no | 0.0265 | 25.62 | 0.62 | 0.63 | 0.46 |
#
# The same with half of the pairs from films (`minimodel train --data synthetic CLIPS --steps 750`), in which landmarks are
# found, not known; *clips* are the six held-out ones:
#
# | prior | refined | PSNR | flow, face | flow, mouth | flow, eyes | clips: L1 | clips: PSNR | clips: SSIM |
# |---|---|---|---|---|---|---|---|---|
# | affine | no | 23.99 | 1.32 | 1.78 | 1.16 | 0.0452 | 23.98 | 0.740 |
# | | yes | 24.07 | 1.25 | 1.69 | 1.07 | 0.0493 | 23.58 | 0.719 |
# | landmarks | no | 25.27 | 0.61 | 0.59 | 0.46 | 0.0455 | 23.99 | 0.764 |
# | | yes | 25.19 | 0.62 | 0.58 | 0.45 | 0.0459 | 23.87 | 0.761 |
#
# Told where 74 landmarks are, a model's flow is truer after seven minutes than that of ten discovered points after eighty, and
# refinement finds nothing left to add. MRFA proposes landmarks as the cure for what its points miss; this is the cure, but
# the prior takes it all. On films, where nobody tells it, the lead is in SSIM and in perceptual distance (0.212 against
# 0.223), not in PSNR. And on the clips the refined models are the worse ones, with affine parts by 0.4 dB and a tenth of L1:
# one seed, but no sign of the paper's gain.
#
# **S2D's Table 4: what makes gaze follow?** One seed, 6000 pairs (`ACCELERATE_MIXED_PRECISION=bf16 minimodel ablate s2d-4`). *Gaze*
# is notebook 5's measure on 512 people: the pupil's error where nothing but the gaze differs, as a share of copying's.
#
# | | PSNR | flow, face | flow, mouth | flow, eyes | gaze | the paper's SSIM |
# |---|---|---|---|---|---|---|
# | full model | 25.62 | 0.62 | 0.63 | 0.46 | 0.36 | 0.7733 |
# | no Add_Motion layer | 22.99 | 1.16 | 0.90 | 0.64 | 0.82 | 0.7728 |
# | no AdaIN layer | 25.52 | 0.65 | 0.62 | 0.47 | 0.36 | 0.7725 |
# | no local motion | 24.94 | 0.76 | 1.13 | 0.62 | 0.96 | 0.7729 |
#
# Local motion is what moves pupils, as the paper says, and Add_Motion is worth more here than there. The parsing loss, in the
# form that has a gradient, brings the share of pixels with a wrong label from 5.30 % (without it) to 5.27 % with its usual
# weight of 10, and to 5.02 % with 100, which is better in PSNR (25.70 dB) and flow (0.60, 0.57, 0.47), too.
#
# ## From here
#
# Everything above is also a command, and a command goes on where it was stopped:
#
# ```
# minimodel train --preset tiny --data synthetic --output runs/mine --minutes 60
# # with faces of your own:
# minimodel train --preset tiny --data synthetic my_clips --output runs/both --minutes 60
# # one GPU, several GPUs:
# minimodel train --preset paper --data voxceleb --output runs/paper --steps 200000
# accelerate launch -m minimodel train --preset paper --data voxceleb --output runs/paper --steps 200000
# minimodel evaluate --weights runs/mine/model.safetensors --data synthetic
# minimodel animate --weights runs/mine/model.safetensors --source me.jpg --driving somebody.mp4
# ```
#
# ## Exercises
#
# 1. Train without refinement (`system="fomm"`) for as many *pairs*. Do the bars change by more than they would with
#    another seed?
# 2. In the loop by hand, leave out the equivariance losses. One pair is still learnt. What would go wrong with many?
# 3. Give the driving *picture* to the generator instead of ten points. What will the losses say, and what will an
#    animation of another person look like?
#
# <details><summary>Solutions</summary>
#
# 1. Coarse-only runs do more pairs a second, so compare at equal `steps=`, not minutes. After 6000 pairs the flow
#    of the refined model is a little truer and its L1 smaller, by less than single seeds differ by, so one run each proves
#    nothing (eleven pairs of runs do, above). What is still missing in a face of thirty pixels, the lids, the points must
#    know about first (notebook 7).
# 2. Points may then mean one thing in one frame and another in the next, so a point's displacement says little about
#    motion. See notebook 3, where this is shown.
# 3. The losses fall to almost nothing: the generator copies the driving picture. And an animation shows the driving
#    person, not the one in the photo. The narrow path of ten points is the whole trick.
#
# </details>
#
# **Read next:** [`minimodel/training/loop.py`](../minimodel/training/loop.py) and [`minimodel/evaluation/protocols.py`](../minimodel/evaluation/protocols.py),
# then the papers.
