# %% [markdown]
# # 03 Attacks: what do they do to a clip, and to a model?
#
# FGSM, PGD and DeepFool against one model of a study: a clip before and after (the paper's
# Fig. 2), to be seen and heard; how the recognition falls with epsilon and with steps; whose
# adversarial clips fool whom; the worst case per clip over all attacks.
#
# **Threat model.** The attacker wants any wrong class, knows the model (white box), and may
# change each pixel of the standardised log-Mel image by epsilon, or the sound itself by a
# perturbation of a given signal-to-noise ratio. It does not know of the randomisation.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the attacked model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the attacked model's run
full: bool = None  # False: the clip, the sizes and the curve over epsilon alone
epsilons: list = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5]  # standardised log-Mel units
iterations: list = [1, 2, 5, 10]  # steps of PGD and of DeepFool
step_sizes: list = [0.005, 0.01, 0.025]  # PGD's, with 10 steps
restarts: int = 5  # PGD's random ones
snr_db: float = 30.0  # signal-to-noise ratio of the attack on the sound
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from fedser_utils.core import devices
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import notebook_settings, own_parameters

OWN = {"full": bool, "epsilons": [float], "iterations": [int], "step_sizes": [float]}
OWN |= {"restarts": int, "snr_db": float}
settings = notebook_settings(globals(), own=OWN)
own = own_parameters(globals(), OWN, settings)

from functools import partial

import pandas as pd
from IPython.display import display

from fedser_utils import attacks
from fedser_utils.analysis import figures, metrics
from fedser_utils.core import runs as stored
from fedser_utils.core.seeding import generator
from fedser_utils.data.federation import federation_of
from fedser_utils.learning import vgg
from fedser_utils.robustness import evaluation
from fedser_utils.workbook import perturbation_explorer
from fedser_utils.workbook.training_monitor import players

with refusals():
    run = stored.find_run(settings)
    data, device = federation_of(run), devices.resolve_device(settings)
    model = vgg.load(run).to(device)
test, bf16 = data.table("test"), devices.uses_bf16(run.settings, device)
(x, y), aim = data.tensors(test, device=device), vgg.attack_target(model, bf16=bf16)
under = partial(evaluation.under_attacks, model, x, y, bf16=bf16)
at, origin = partial(attacks.make_attack, run.settings), stored.origin([run])
front = run.settings.front_end
on = {"run": run.id} | devices.hardware(device, bf16=bf16)
caption = ", ".join([f"n = {len(test)} test clips, {run.settings.rounds} rounds", *on.values()])
caption

# %% [markdown]
# ## One clip, three attacks (Fig. 2)
#
# The clip is the first of the test clips that the model recognises.

# %%
first = int((attacks.predictions(model, x) == y).int().argmax())
clip, truth, name_of_clip = x[first : first + 1], y[first : first + 1], test["clip"].iloc[first]
seen = {"original": clip} | {name: at(name)(aim, clip, truth) for name in attacks.ATTACKS}
arrays = {name: value[0, 0].cpu().numpy() for name, value in seen.items()}
for name in ("fgsm", "pgd"):
    assert abs(arrays[name] - arrays["original"]).max() <= run.settings.epsilon + 1e-6
said = {name: data.classes[int(attacks.predictions(model, v))] for name, v in seen.items()}
stored.save_arrays(settings.folder / "examples.safetensors", arrays, clip=name_of_clip)
picture = figures.examples(arrays, front=front, caption=f"{run.id}, {name_of_clip}: {said}")
figures.save(picture, settings.folder, "fig2", origin=origin)

# %% [markdown]
# ## Look and listen for yourself
#
# Another model of the study, clip, attack or strength; with the randomisation before the model, and
# with a new draw of it. (Where a notebook is only read, this shows PGD on one clip.)

# %%
same = [r for r in stored.study_runs(settings) if r.settings.seed == settings.seed]
shown = [run, *(other for other in same if other.id != run.id)]
perturbation_explorer.show(shown, device=device)

# %% [markdown]
# ## The same, to be heard
#
# A log-Mel image holds no phase and little detail: what an attack on it sounds like can only be
# guessed (inverted Mel filters, Griffin-Lim), so compare these with the guess of the original. The
# attack on the sound itself is exact: its WAV is what the model hears, in 16 bits.

# %%
row = test.index[first]
listen, sound = data.input_transform(row, device=device), data.waveform(row, device=device)
moved = attacks.waveform_pgd(aim, sound, truth, features=listen, snr_db=own.snr_db, steps=10)
assert attacks.snr_db(sound, moved) > own.snr_db - 1e-3
sounds = {"original": sound, f"PGD on the sound, {own.snr_db:g} dB": moved}
sounds |= {f"{name}, approximate": listen.approximate_sound(v) for name, v in seen.items()}
written = {"folder": settings.folder / "audio", "rate": front.sample_rate}
heard = evaluation.predict_sounds(model, listen, sounds, **written)
players(heard, data.classes, truth=data.classes[int(truth)])

# %% [markdown]
# ## How large is a perturbation?
#
# Medians over the first 24 test clips: L2 and L-inf in standardised units; the largest change and
# the signal-to-noise ratio in dB of Mel magnitudes.

# %%
three = {name: at(name) for name in attacks.ATTACKS}
mean, std = data.standardisation_of(test[:24], device=device)
sizes = evaluation.perturbation_sizes(model, x[:24], y[:24], three, mean=mean, std=std, bf16=bf16)
stored.write_table(settings.folder / "perceptibility.csv", sizes.assign(**on))
sizes.round(3)

# %% [markdown]
# ## UAR against epsilon
#
# A sound attack gets stronger with epsilon, and at a large one nothing is recognised any more.

# %%
strengths = {
    (n, e): at(n, epsilon=e, step_size=e / 4) for n in ("fgsm", "pgd") for e in own.epsilons
}
by_epsilon = metrics.uar_by(under(strengths), ["attack", "value"]).assign(**on)
show = partial(figures.uar_against, x="value", chance=100 / len(data.classes), caption=caption)
picture = show(by_epsilon, xlabel="epsilon [standardised log-Mel]")
figures.save(picture, settings.folder, "uar_by_epsilon", origin=origin, rows=by_epsilon)

# %% [markdown]
# ## Has the attack converged?
#
# More steps should change little in the end; where they do, the figures above flatter the model.
# (This and what follows only in full.)

# %%
if own.full:
    sweeps = {(n, k): at(n, steps=k) for n in ("pgd", "deepfool") for k in own.iterations}
    sweeps |= {("pgd, 10 steps of", s): at("pgd", steps=10, step_size=s) for s in own.step_sizes}
    several = {k: at("pgd", random_start=True, restarts=k) for k in (1, own.restarts)}
    sweeps |= {("pgd, random starts", k): attack for k, attack in several.items()}
    found = metrics.uar_by(under(sweeps), ["attack", "value"]).assign(**on)
    by_steps = found["attack"].isin(attacks.ATTACKS)
    picture = show(found[by_steps], xlabel="steps")
    figures.save(picture, settings.folder, "uar_by_steps", origin=origin, rows=found)
    display(picture, found[~by_steps].round({"uar": 1}))

# %% [markdown]
# ## Whose adversarial clips fool whom?
#
# PGD against each model of the study, shown to every other.

# %%
if own.full:
    study = {r.config["model"]: vgg.load(r).to(device) for r in same}
    rows = evaluation.transfer(study, x, y, three["pgd"], bf16=bf16)
    transfer = metrics.uar_by(rows, ["source", "target"]).assign(**on).drop(columns="run")
    picture = figures.transfer(transfer, caption=f"PGD, {run.settings.epsilon:g}; {caption}")
    display(figures.save(picture, settings.folder, "transfer", origin=origin, rows=transfer))

# %% [markdown]
# ## The worst case per clip
#
# A clip counts as recognised only if it is under every attack: an ensemble of attacks, the
# paper's second question for the future. All keep to epsilon; DeepFool has no budget, and is not
# among them.

# %%
if own.full:
    ensemble = {("none", None): None, ("fgsm", None): at("fgsm"), ("pgd", None): at("pgd")}
    more = {f"pgd {loss}, 20 steps": at("pgd", loss=loss, steps=20) for loss in ("ce", "cw", "dlr")}
    auto = {"eps": run.settings.epsilon, "max_iter": 10}
    more["auto_pgd_dlr"] = partial(attacks.art_attack, "auto_pgd_dlr", **auto)
    rows = under(ensemble | {(name, None): attack for name, attack in more.items()})
    worst = metrics.worst_case(rows)
    every = pd.concat([rows, worst.assign(attack="worst case")])
    table = metrics.uar_by(every, ["attack"]).assign(**on)
    assert table["uar"].iloc[-1] <= table["uar"].min()
    stored.write_table(settings.folder / "worst_case.csv", table)
    lost = worst.loc[worst["y_true"] != worst["y_pred"], "attack"].value_counts(sort=False)
    display(table.round({"uar": 1}), lost.rename("clips it was the first to fool"))

# %% [markdown]
# ## Do the attacks themselves work?
#
# On a model that is planted weak each must fool every clip; one that does not is broken, and its
# figures above mean nothing. (ART's universal perturbation stops at 80 %.)

# %%
if own.full:
    options = {"size": x[0].numel(), "generator": generator(0, "planted")}
    weak = vgg.WeakModel(len(data.classes), **options).to(device)
    arts = {name: partial(attacks.art_attack, name) for name in attacks.ART_ATTACKS}
    fooled = evaluation.fooling_rate(weak, x[:5], three | arts)
    assert fooled.drop("universal").eq(100).all(), fooled
    display(fooled)
