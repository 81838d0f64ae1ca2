# %% [markdown]
# # 04 Randomisation: the defence at inference
#
# **Question.** How much recognition does random resizing and padding cost on clean clips, and how
# much does it give back on attacked ones? What do its ranges, and averaging over draws, change?
#
# **Method.** Before the model $f$ sees a clip $x$ of $W \times H$ (frames, Mel bands), the clip is
# enlarged to a random size and placed at a random offset in a larger image of padding:
#
# $$ t(x) = \mathrm{pad}_{(a, b)}\big(\mathrm{resize}_{W' \times H'}(x)\big), \qquad
# W' \sim \mathcal{U}[W, W''), \; H' \sim \mathcal{U}[H, H''), $$
#
# with $a$ uniform on $0..W'' - W'$ and $b$ on $0..H'' - H'$ (the paper's section 5.3; Xie et al.,
# 2018). One decision is $\arg\max f(t(x))$; averaged over $k$ draws it is
# $\arg\max \frac{1}{k} \sum_{i=1}^{k} f(t_i(x))$.
#
# The attacker here does not know of the randomisation (the paper's protocol, non-adaptive): its
# clips are $x + \delta$ with $\|\delta\|_\infty \le \epsilon$, crafted on $f$ alone. So these are
# the best numbers that the defence can have; `06_adaptive` has the attacker who knows of it.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the defended model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the defended model's run
draws: int = 20  # of each clip's randomisation
averages: list[int] = [5, 10, 20]  # draws whose logits are averaged for one decision
share: float = 0.2  # of the training clips, to tune on
margins: list[int] = [3, 7, 15, 31]  # of frames, tuned over; of Mel bands a quarter, and one more
values: list[float] = [-1.0, 0.0, 0.5, 1.0]  # of the padding, tuned over; standardised log-Mel
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from fedser_utils import core, robustness
from fedser_utils.analysis import figures, metrics
from fedser_utils.core.runs import write_table

settings, page = core.notebook_settings(globals())
folder = settings.folder

# %% [markdown]
# ## Run

# %%
loaded = robustness.load_model(settings)
validation = loaded.data.validation_clips(share=page.share, seed=loaded.settings.seed)
grid = robustness.tune_randomisation(loaded, validation, margins=page.margins, values=page.values)
rows = robustness.predictions_over_draws(loaded, grid, draws=page.draws, averages=page.averages)
loaded.run.write("randomisation.parquet", rows)
loaded.caption

# %% [markdown]
# ## What a draw does to a clip

# %%
images, titles = robustness.draw_example(loaded)
assert images[1].shape == loaded.randomise.padded
first_clip = loaded.test["clip"].iloc[0]
picture = figures.log_mels(images, titles, front=loaded.settings.front_end, caption=first_clip)
figures.save(picture, folder, "draw", origin=loaded.origin)

# %% [markdown]
# **Read it so.** Both draws hold the whole clip, a little stretched and shifted, in a frame of the
# padding's value. A draw that cut the clip, or two draws that look alike, would be a broken
# defence.

# %% [markdown]
# ## Which ranges, which padding?
#
# Tuned on a share of the training clips, never on test clips: the setting with the best mean of
# the UAR on original and on PGD's clips. The paper's setting is outlined, the best starred.

# %%
assert not set(validation["clip"]) & set(loaded.test["clip"])
caption = f"Tuned on n = {len(validation)} training clips. {loaded.caption}."
picture = figures.tuning(grid, caption=caption)
figures.save(picture, folder, "tuning", origin=loaded.origin, rows=grid.assign(**loaded.columns))

# %% [markdown]
# **Read it so.** The model was trained on these clips, so only the order of the settings counts,
# not their level. If the ranges did not matter, all cells of a panel would have one colour; if
# larger ranges did not help against PGD, its panel would be no brighter at large margins than at
# small ones.

# %% [markdown]
# ## UAR over draws, and of averaged draws
#
# On test clips, original and attacked with PGD against the plain model; with the mean and the
# standard deviation over draws.

# %%
table = metrics.uar_over_draws(rows, ["attack", "variant", "averaged"])
assert table["uar"].between(0, 100).all()
write_table(folder / "randomisation.csv", table.assign(**loaded.columns))
table.round(2)

# %% [markdown]
# **Read it so.** Compare each variant with `none`. If the defence did nothing, `pgd` would be as
# low behind it as without it; if it were free, `original` would be as high. A gain smaller than
# the deviation over draws is luck of the draw. Averaging may help `original` and hurt `pgd`: it
# takes away chance, which is what the attacker did not reckon with.

# %% [markdown]
# ## What it costs
#
# Milliseconds per clip on this device, decisions included.

# %%
cost = robustness.randomisation_cost(loaded, draws=page.draws, averages=page.averages)
write_table(folder / "cost.csv", cost.assign(**loaded.columns))
cost.round(2)

# %% [markdown]
# **Read it so.** One draw costs one pass of a slightly larger image; $k$ draws cost $k$ passes. If
# the defence were expensive, one draw would take far longer than none. Times are of this machine.
#
# **Next.** `05_analysis` puts the four conditions of all models into one table; `06_adaptive` asks
# what is left of the gain if the attacker knows of the randomisation.
