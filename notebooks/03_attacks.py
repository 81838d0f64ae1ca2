# %% [markdown]
# # 03 Attacks: what do they do to a clip, and to a model?
#
# FGSM, PGD and DeepFool against one model of a study: a clip before and after (the paper's
# Fig. 2), how large the perturbations are, and how the recognition falls with epsilon.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the attacked model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the attacked model's run
epsilons: list = [0.005, 0.01, 0.02, 0.05, 0.1]  # standardised log-Mel units
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from dataclasses import replace
from functools import partial

from fedser_utils import attacks, clients, cohort, config, evaluation, figures, models, partition
from fedser_utils import runs as stored

settings = config.notebook_settings(globals(), own=["epsilons"])
with config.refusals():
    epsilons = [config.number("epsilons", e, type=float, low=0, above=True) for e in epsilons]
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
clip, truth = x[first : first + 1], y[first : first + 1]
attack_at = partial(clients.attack_of, run.settings)
seen = {name: attack_at(name)(model, clip, truth) for name in attacks.ATTACKS}
arrays = {name: value[0, 0].cpu().numpy() for name, value in ({"original": clip} | seen).items()}
for name in ("fgsm", "pgd"):
    assert abs(arrays[name] - arrays["original"]).max() <= run.settings.epsilon + 1e-6
said = {n: data.classes[int(attacks.predictions(model, v))] for n, v in seen.items()}
said

# %%
stored.save_arrays(settings.folder / "examples.safetensors", arrays, clip=test["clip"].iloc[first])
picture = figures.examples(arrays, caption=f"{run.id}, {test['clip'].iloc[first]}: {said}")
figures.save(picture, settings.folder, "fig2", origin=run.id)
picture

# %% [markdown]
# ## How large is a perturbation?
#
# Means over the first 32 test clips, in standardised units; the ratio of energies in dB.

# %%
import pandas as pd

sizes = {name: attack_at(name)(model, x[:32], y[:32]) for name in attacks.ATTACKS}
pd.DataFrame({name: attacks.perceptibility(x[:32], adv) for name, adv in sizes.items()}).T

# %% [markdown]
# ## UAR against epsilon
#
# A sound attack gets stronger with epsilon, and PGD is at least as strong as FGSM.

# %%
strengths = {}
for epsilon in epsilons:
    at = replace(run.settings, epsilon=epsilon, step_size=epsilon / 4)
    strengths |= {(name, epsilon): clients.attack_of(at, name) for name in ("fgsm", "pgd")}
with cohort.worker_pool(device) as pool:
    curve = evaluation.uar_under(model, x, y, strengths, pool=pool)
stored.write_table(settings.folder / "uar_by_epsilon.csv", curve.assign(run=run.id, n=len(x)))
by_epsilon = figures.uar_against(
    curve, "value", xlabel="epsilon [standardised log-Mel]", chance=100 / len(data.classes),
    caption=f"{run.id}, n = {len(x)}",
)  # fmt: skip
figures.save(by_epsilon, settings.folder, "uar_by_epsilon", origin=run.id)
by_epsilon
