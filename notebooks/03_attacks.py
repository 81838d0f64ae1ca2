# %% [markdown]
# # 03 Attacks: what do they do to a clip, and to a model?
#
# FGSM, PGD and DeepFool against one model of a study: a clip before and after (the paper's
# Fig. 2), to be seen and heard; how the recognition falls with epsilon and with steps; whose
# adversarial clips fool whom; the worst case per clip over all attacks.
#
# **Threat model.** The attacker wants any wrong emotion, knows the model (white box), and may
# change each pixel of the standardised log-Mel image by epsilon, or the sound itself by a
# perturbation of a given signal-to-noise ratio. It does not know of the randomisation.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the attacked model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the attacked model's run
full: bool = True  # False: the clip, the sizes and the curve over epsilon alone
epsilons: list = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5]  # standardised log-Mel units
iterations: list = [1, 2, 5, 10, 20]  # steps of PGD and of DeepFool
step_sizes: list = [0.0025, 0.005, 0.01, 0.025]  # PGD's, with 10 steps
restarts: int = 5  # PGD's random ones
snr_db: float = 30.0  # signal-to-noise ratio of the attack on the sound
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from functools import partial

import pandas as pd
from IPython.display import display

from fedser_utils import (
    attacks,
    audio,
    clients,
    cohort,
    config,
    evaluation,
    features,
    figures,
    metrics,
    models,
    partition,
    seeding,
    widgets,
)
from fedser_utils import runs as stored

OWN = ["full", "epsilons", "iterations", "step_sizes", "restarts", "snr_db"]
settings = config.notebook_settings(globals(), own=OWN)
with config.refusals():
    config.choose("full", full, (True, False))
    epsilons = config.numbers("epsilons", epsilons, type=float, low=0, above=True)
    iterations = config.numbers("iterations", iterations)
    step_sizes = config.numbers("step_sizes", step_sizes, type=float, low=0, above=True)
    restarts = config.number("restarts", restarts)
    snr_db = config.number("snr_db", snr_db, type=float, low=-100)
    run = stored.find_run(settings)
    data = partition.load_federation(run.settings)
    device = clients.device_of(settings)
model, test = models.load(run).to(device), data.table("test")
x, y = data.tensors(test, device=device)
run.id

# %% [markdown]
# ## One clip, three attacks (Fig. 2)
#
# The clip is the first of the test clips that the model recognises.

# %%
first = int((attacks.predictions(model, x) == y).int().argmax())
clip, truth, name_of_clip = x[first : first + 1], y[first : first + 1], test["clip"].iloc[first]
attack_at = {name: clients.attack_of(run.settings, name) for name in attacks.ATTACKS}
seen = {"original": clip} | {name: make(model, clip, truth) for name, make in attack_at.items()}
arrays = {name: value[0, 0].cpu().numpy() for name, value in seen.items()}
for name in ("fgsm", "pgd"):
    assert abs(arrays[name] - arrays["original"]).max() <= run.settings.epsilon + 1e-6
said = {name: data.classes[int(attacks.predictions(model, v))] for name, v in seen.items()}
stored.save_arrays(settings.folder / "examples.safetensors", arrays, clip=name_of_clip)
picture = figures.examples(arrays, caption=f"{run.id}, {name_of_clip}: {said}")
figures.save(picture, settings.folder, "fig2", origin=run.id)
picture

# %% [markdown]
# ## The same, to be heard
#
# A log-Mel image holds no phase and little detail: what an attack on it sounds like can only be
# guessed (inverted Mel filters, Griffin-Lim), so compare these with the original's guess. The
# attack on the sound itself is exact: the WAV is what the model hears, in 16 bits.

# %%
listen = features.StandardisedLogMel(data.mean, data.std).to(device)
sound = features.sound(data.corpus.root / test["path"].iloc[first], device=device)
moved = attacks.waveform_pgd(model, sound, truth, features=listen, snr_db=snr_db, steps=10)
assert attacks.snr_db(sound, moved) > snr_db - 1e-3
sounds = {"original": sound, f"PGD on the sound, {snr_db:g} dB": moved}
sounds |= {f"{name}, approximate": listen.approximate_sound(v) for name, v in seen.items()}
waves = {name: wave[0].cpu().numpy() for name, wave in sounds.items()}
files = audio.write_all(settings.folder / "audio", waves)
images = {name: listen(features.sound(path, device=device)) for name, path in files.items()}
heard = {n: data.classes[int(attacks.predictions(model, v))] for n, v in images.items()}
widgets.players(files, heard, truth=data.classes[int(truth)])

# %% [markdown]
# ## How large is a perturbation?
#
# Medians over the first 32 test clips; L2 and L-inf in standardised units, the largest change and
# the signal-to-noise ratio in dB of Mel magnitudes.

# %%
few, scale = (x[:32], y[:32]), {"mean": listen.mean, "std": listen.std}
sizes = {n: attacks.perceptibility(x[:32], at(model, *few), **scale) for n, at in attack_at.items()}
sizes = pd.DataFrame(
    {n: {k: v.median().item() for k, v in own.items()} for n, own in sizes.items()}
)
stored.write_table(settings.folder / "perceptibility.csv", sizes.T.reset_index(names="attack"))
sizes.T.round(3)

# %% [markdown]
# ## UAR against epsilon
#
# A sound attack gets stronger with epsilon, and at a large one the model knows nothing any more.

# %%
at = partial(clients.attack_of, run.settings)
strengths = {(n, e): at(n, epsilon=e, step_size=e / 4) for n in ("fgsm", "pgd") for e in epsilons}
bf16 = clients.uses_bf16(settings, device)
with cohort.worker_pool(device) as pool:
    rows = evaluation.under_attacks(model, x, y, strengths, bf16=bf16, pool=pool)
by_epsilon = metrics.uar_by(rows, ["attack", "value"]).assign(run=run.id)
show = partial(figures.uar_against, x="value", chance=100 / len(data.classes), caption=run.id)
picture = show(by_epsilon, xlabel="epsilon [standardised log-Mel]")
figures.save(picture, settings.folder, "uar_by_epsilon", origin=run.id, rows=by_epsilon)
picture

# %% [markdown]
# ## Has the attack converged?
#
# More steps should change little in the end; where they do, the figures above flatter the model.
# (This and what follows only in full.)

# %%
if full:
    sweeps = {(n, k): at(n, steps=k) for n in ("pgd", "deepfool") for k in iterations}
    others = {("pgd, 10 steps of", s): at("pgd", steps=10, step_size=s) for s in step_sizes}
    again = {"random_start": True, "generator": seeding.generator(0, "restarts")}
    others |= {("pgd, starts", k): at("pgd", restarts=k, **again) for k in (1, restarts)}
    with cohort.worker_pool(device) as pool:
        rows = evaluation.under_attacks(model, x, y, sweeps | others, bf16=bf16, pool=pool)
    found = metrics.uar_by(rows, ["attack", "value"]).assign(run=run.id)
    by_steps = found[found["attack"].isin(attacks.ATTACKS)]
    picture = show(by_steps, xlabel="steps")
    figures.save(picture, settings.folder, "uar_by_steps", origin=run.id, rows=found)
    display(picture, found[~found["attack"].isin(attacks.ATTACKS)].round(1))

# %% [markdown]
# ## Whose adversarial clips fool whom?
#
# PGD against each model of the study, shown to every other.

# %%
if full:
    study = {r.config["model"]: models.load(r).to(device) for r in stored.study_runs(settings)}
    with cohort.worker_pool(device) as pool:
        rows = evaluation.transfer(study, x, y, attack_at["pgd"], bf16=bf16, pool=pool)
    transfer = metrics.uar_by(rows, ["source", "target"])
    picture = figures.transfer(transfer, caption=f"PGD, {run.settings.epsilon:g}; n = {len(x)}")
    figures.save(picture, settings.folder, "transfer", origin=run.id, rows=transfer)
    display(picture)

# %% [markdown]
# ## The worst case per clip
#
# A clip counts as recognised only if it is under every attack: an ensemble of attacks, the
# paper's second question for the future. DeepFool, which has no budget, stands apart.

# %%
if full:
    ours = {("none", None): None, ("fgsm", None): at("fgsm"), ("pgd", None): at("pgd")}
    ours |= {(f"pgd {loss}", None): at("pgd", loss=loss, steps=20) for loss in ("ce", "cw", "dlr")}
    ours |= {("auto_pgd_dlr", None): partial(attacks.art_attack, "auto_pgd_dlr", max_iter=10)}
    with cohort.worker_pool(device) as pool:
        rows = evaluation.under_attacks(model, x, y, ours, bf16=bf16, pool=pool)
    worst = metrics.worst_case(rows).assign(attack="worst case")
    table = metrics.uar_by(pd.concat([rows, worst]), ["attack"]).assign(run=run.id)
    assert table["uar"].iloc[-1] <= table["uar"].min()
    stored.write_table(settings.folder / "worst_case.csv", table)
    display(table.round(1), worst["y_pred"].ne(worst["y_true"]).groupby(worst["attack"]).sum())

# %% [markdown]
# ## Do the attacks themselves work?
#
# On a model planted weak, each must fool every clip; an attack that does not is broken, and its
# figures above mean nothing.

# %%
if full:
    planted = seeding.generator(0, "planted")
    weak = models.Planted(len(data.classes), generator=planted).to(device)
    tried = attack_at | {n: partial(attacks.art_attack, n) for n in attacks.TOOLBOX}
    fooled = evaluation.fooled(weak, x[:5], tried)
    assert fooled.drop("universal").eq(100).all(), fooled
    display(fooled)
