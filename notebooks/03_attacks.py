# %% [markdown]
# # 03 Attacks: what do they do to a clip, and to a model?
#
# **Question.** How small a change of a clip makes the model fail, and can it be seen or heard?
# Have the attacks converged, and do clips that fool one model of the study fool the others?
#
# **Method.** The attacker wants any wrong class and knows the model $f$ (white box), but not the
# randomisation. With a clip $x$ (standardised log-Mel), its label $y$, the loss $L$, the budget
# $\epsilon$ and PGD's step size $\alpha$:
#
# $$\text{FGSM (Eq. 1):}\quad x_{adv} = x + \epsilon\,\mathrm{sign}\big(\nabla_x L(f(x), y)\big)$$
#
# $$\text{PGD (Eq. 2):}\quad x_{t+1} = \Pi_{\|x' - x\|_\infty \le \epsilon}\Big(x_t +
# \alpha\,\mathrm{sign}\big(\nabla_x L(f(x_t), y)\big)\Big)$$
#
# DeepFool (Eq. 3) has no budget $\epsilon$ and does not use $y$: it steps to the nearest
# linearised boundary between the predicted class $c$ and another class $k$, and in the end passes
# it by the factor $1 + \zeta$; a clip that was wrong before may become right. With $g_k = \nabla_x
# f_k - \nabla_x f_c$:
#
# $$\delta_t = \frac{|f_k(x_t) - f_c(x_t)|}{\|g_k\|_2^2}\,g_k
# \quad\text{for the}\quad k = \arg\min_{j \ne c}
# \frac{|f_j(x_t) - f_c(x_t)|}{\|g_j\|_2},\qquad x_{adv} = x + (1 + \zeta)\sum_t \delta_t$$
#
# The attack on the sound itself is PGD in L2 on the waveform $s$, with a budget in dB:
#
# $$\mathrm{SNR} = 10 \log_{10} \frac{\|s\|_2^2}{\|s_{adv} - s\|_2^2}$$

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the attacked model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the attacked model's run
full: bool = None  # False: the clip, the sizes and the curve over epsilon alone
epsilons: list[float] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5]  # standardised log-Mel units
iterations: list[int] = [1, 2, 5, 10]  # steps of PGD and of DeepFool
step_sizes: list[float] = [0.005, 0.01, 0.025]  # PGD's, with 10 steps
restarts: int = 5  # PGD's random ones
snr_db: float = 30.0  # signal-to-noise ratio of the attack on the sound
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from IPython.display import display

from fedser_utils import attacks, core, robustness
from fedser_utils.analysis import figures
from fedser_utils.core.runs import save_arrays, write_table
from fedser_utils.robustness import attack_study
from fedser_utils.workbook import clip_media, perturbation_explorer

settings, page = core.notebook_settings(globals())
loaded = robustness.load_model(settings)
runs, folder, origin = attack_study.comparable_runs(loaded), settings.folder, loaded.origin
loaded.caption

# %% [markdown]
# ## One clip, three attacks (Fig. 2)
#
# The first of the test clips that the model recognises, at the strength that the run trained and
# was tested with.

# %%
clip = attack_study.attack_one_clip(loaded)
save_arrays(folder / "examples.safetensors", clip.arrays, clip=clip.name)
front = loaded.settings.front_end
picture = figures.examples(clip.arrays, front=front, caption=f"{clip.caption} Run {loaded.run.id}.")
figures.save(picture, folder, "fig2", origin=origin)

# %% [markdown]
# **Read it so.** The perturbations are drawn 100 times larger than they are; beside the original
# nothing is to be seen. FGSM's and PGD's are nowhere larger than epsilon; DeepFool's has no bound,
# and is large on few values. If attacks fooled only by visible changes, the images on the left
# would differ, or the caption would name the right class throughout.

# %% [markdown]
# ## Look and listen for yourself
#
# Another model of the study, clip, attack or strength; with the randomisation before the model, and
# with a new draw of it. (Where a notebook is only read, this shows PGD on one clip.)

# %%
perturbation_explorer.explore_perturbations(runs, device=loaded.device)

# %% [markdown]
# **Read it so.** With rising strength the probability moves from the true class to another one. If
# it moved already for random noise of this size, the model would be weak and not the attack strong.

# %% [markdown]
# ## The same, to be heard
#
# A log-Mel image holds no phase and little detail: what an attack on it sounds like can only be
# guessed (inverted Mel filters, Griffin-Lim), so compare these with the guess of the original. The
# attack on the sound itself is exact: its WAV is what the model gets, in 16 bits.

# %%
options = {"snr_db": page.snr_db, "folder": folder / "audio"}
sounds = attack_study.audible_examples(loaded, clip, **options)
clip_media.players(sounds, loaded.data.classes, truth=clip.truth)

# %% [markdown]
# **Read it so.** Wrong decisions are bold. Where the attacked sound has a bold decision and sounds
# like the original, a listener has no chance; if the claim were false, it would be right, or noisy.

# %% [markdown]
# ## How large is a perturbation?
#
# Medians over the first 24 test clips: L2 and L-inf in standardised units; the largest change and
# the signal-to-noise ratio in dB of Mel magnitudes.

# %%
sizes = attack_study.perturbation_table(loaded)
write_table(folder / "perceptibility.csv", sizes)
sizes.round(3)

# %% [markdown]
# **Read it so.** FGSM and PGD must have epsilon as their L-inf; PGD's L2 is at most FGSM's, since
# its steps may return. A change below about 1 dB is hard to hear. A much larger value for DeepFool
# would say that the model is far from its boundaries, and the budget of the others too small.

# %% [markdown]
# ## UAR against epsilon

# %%
by_epsilon = attack_study.uar_by_epsilon(loaded, page.epsilons)
shown = {"chance": 100 / len(loaded.data.classes), "caption": f"UAR of {loaded.caption}."}
axis = "epsilon [standardised log-Mel]"
picture = figures.uar_against(by_epsilon, "value", xlabel=axis, **shown)
figures.save(picture, folder, "uar_by_epsilon", origin=origin, rows=by_epsilon)

# %% [markdown]
# **Read it so.** A sound attack gets stronger with epsilon, and at a large one nothing is
# recognised any more. A curve that stops falling above zero belongs to an attack that fails, not to
# a model that withstands: there the gradients mislead.

# %% [markdown]
# ## Has the attack converged?
#
# More steps, smaller steps and random starts. (This and what follows only in full.)

# %%
if page.full:
    sweeps = (page.iterations, page.step_sizes)
    steps = attack_study.convergence(loaded, *sweeps, restarts=page.restarts)
    by_steps = steps["attack"].isin(attacks.ATTACKS)
    picture = figures.uar_against(steps[by_steps], "value", xlabel="steps", **shown)
    figures.save(picture, folder, "uar_by_steps", origin=origin, rows=steps)
    display(picture, steps[~by_steps].round({"uar": 1}))

# %% [markdown]
# **Read it so.** In the end more steps should change little, and neither step size nor random
# starts: a few points at most. Where the curves still fall at the right, the attack has not
# converged, and the figures above flatter the model.

# %% [markdown]
# ## Whose adversarial clips fool whom?
#
# PGD against each model of the study (rows), its clips given to every model (columns).

# %%
if page.full:
    transfer = attack_study.transfer_matrix(loaded, runs)
    strength = f"PGD with epsilon {loaded.settings.epsilon:g}; strength and clips of"
    picture = figures.transfer(transfer, caption=f"{strength} {loaded.caption}.")
    display(figures.save(picture, folder, "transfer", origin=origin, rows=transfer))

# %% [markdown]
# **Read it so.** The diagonal is the white-box attack and should be the lowest of its column. A
# column that is lower elsewhere would show that the model's own gradients mislead: it looks more
# robust than it is.

# %% [markdown]
# ## The worst case per clip
#
# A clip counts as recognised only if it is under every attack: an ensemble of attacks, the
# paper's second question for the future. All keep to epsilon; DeepFool has no budget, and is not
# among them.

# %%
if page.full:
    table, first_fooled = attack_study.worst_case(loaded)
    write_table(folder / "worst_case.csv", table)
    display(table.round({"uar": 1}), first_fooled)

# %% [markdown]
# **Read it so.** If one attack were enough, the worst case would equal it. The larger the distance,
# the more a single attack overestimates the model.

# %% [markdown]
# ## Do the attacks themselves work?
#
# On a model that is made weak on purpose each attack must fool every clip. (ART's universal
# perturbation stops at 80 %.)

# %%
if page.full:
    display(attack_study.check_on_weak_model(loaded))

# %% [markdown]
# **Read it so.** All is 100. An attack below that is broken: its figures above mean nothing, and
# this cell ends with an error.
#
# **Next.** [04](04_randomisation.ipynb): what resizing and padding at random do against these
# clips. [06](06_adaptive.ipynb): attackers who know of it.
