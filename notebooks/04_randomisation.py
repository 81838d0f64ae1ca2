# %% [markdown]
# # 04 Randomisation: the defence at inference
#
# Each clip is enlarged and padded at random before the model sees it. What does one draw look
# like, how were its ranges chosen, how much does the recognition of clean and of attacked clips
# vary over draws, does averaging help, and what does it cost?
#
# The attacker here does not know of the randomisation (the paper's protocol, non-adaptive): what
# follows is the best that can be said of the defence. `06_adaptive` has the attacker who knows.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the defended model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the defended model's run
draws: int = 20  # of each clip's randomisation
averages: list = [5, 10, 20]  # draws whose logits are averaged for one decision
share: float = 0.2  # of the training clips, to tune on
margins: list = [3, 7, 15, 31]  # of frames, tuned over; of Mel bands a quarter, and one more
values: list = [-1.0, 0.0, 0.5, 1.0]  # of the padding, tuned over; standardised log-Mel
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from fedser_utils import attacks
from fedser_utils.core import devices
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import notebook_settings, own_parameters

OWN = {"draws": int, "averages": [int], "share": float, "margins": [int], "values": ["real"]}
settings = notebook_settings(globals(), own=OWN)
own = own_parameters(globals(), OWN, settings)

from functools import partial

import pandas as pd

from fedser_utils.analysis import figures, metrics
from fedser_utils.core import runs as stored
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.seeding import generator
from fedser_utils.data.federation import federation_of
from fedser_utils.learning import vgg
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.randomisation import RESIZE_MODES, Randomise
from fedser_utils.robustness.randomised_inference import (
    averaged_decisions,
    grid_search,
    logits_over_draws,
    milliseconds_per_clip,
)

with refusals():
    run = stored.find_run(settings)
    data, device = federation_of(run), devices.resolve_device(settings)
    model = vgg.load(run).to(device)
made, test, bf16 = run.settings, data.table("test"), devices.uses_bf16(run.settings, device)
plain, aim = vgg.fold_batch_norm(model), vgg.attack_target(model, bf16=bf16)
pgd = partial(attacks.make_attack(made, "pgd"), aim)
(x, y), shape = data.tensors(test, device=device), made.front_end.shape
on, origin = {"run": run.id} | devices.hardware(device, bf16=bf16), stored.origin([run])
run.id

# %% [markdown]
# ## What a draw does to a clip

# %%
randomise = Randomise.on(shape, mode=made.resize)
draw = randomise.draw(2, generator(made.seed, "picture"))
drawn = randomise(x[:1].repeat(2, 1, 1, 1), draw)
assert drawn.shape[2:] == randomise.padded
titles = [f"resized to {tuple(s.tolist())}, offset {tuple(o.tolist())}" for s, o in zip(*draw)]
titles = [f"original, {shape[0]} x {shape[1]}", *titles]
images = [x[0, 0].cpu().numpy(), *drawn[:, 0].cpu().numpy()]
picture = figures.log_mels(images, titles, front=made.front_end, caption=test["clip"].iloc[0])
figures.save(picture, settings.folder, "draw", origin=origin)

# %% [markdown]
# ## Which ranges, which padding?
#
# Tuned on a share of the training clips, never on test clips: the setting with the best mean of
# the UAR on original and on PGD's clips. The model has been trained on these clips, so only the
# order of the settings counts, not their level. The paper's setting is outlined, the best starred.

# %%
chosen = data.validation_clips(share=own.share, seed=made.seed)
x_val, y_val = data.tensors(chosen, device=device)
with worker_pool(device) as pool:
    clips = {"original": x_val, "pgd": evaluation.in_batches(pgd, x_val, y_val, pool=pool)}
    margins = [(frames, frames // 4 + 1) for frames in own.margins]
    options = {"margins": margins, "values": own.values, "draws": 2, "seed": made.seed}
    grid = grid_search(plain, clips, y_val, mode=made.resize, pool=pool, **options)
assert not set(chosen["clip"]) & set(test["clip"])
best = grid.loc[grid["score"].idxmax()]
trained = f"n = {len(x_val)} training clips, {made.rounds} rounds"
picture = figures.tuning(grid, caption=", ".join([trained, *on.values()]))
figures.save(picture, settings.folder, "tuning", origin=origin, rows=grid.assign(**on))

# %% [markdown]
# ## UAR over draws, and of averaged draws
#
# On test clips, original and attacked with PGD against the plain model.

# %%
tuned = {n: int(best[n]) for n in ("frames", "mels")} | {"value": best["value"], "shape": shape}
averages = [k for k in own.averages if 1 < k <= own.draws]
variants = {mode: Randomise.on(shape, mode=mode) for mode in RESIZE_MODES}
variants["tuned"] = Randomise.with_margins(**tuned, mode=made.resize)
found = []
with worker_pool(device) as pool:
    attacked = evaluation.in_batches(pgd, x, y, pool=pool)
    for name, seen in {"original": x, "pgd": attacked}.items():
        said = evaluation.in_batches(plain, seen, pool=pool).argmax(1)
        found.append(evaluation.draw_rows(said, attack=name, variant="none", averaged=1))
        for variant, each in variants.items():
            options = {"randomise": each, "draws": own.draws, "seed": made.seed, "pool": pool}
            logits = logits_over_draws(plain, seen, **options)
            for k in [1, *(averages if variant == made.resize else [])]:
                facts = {"attack": name, "variant": variant, "averaged": k}
                found.append(evaluation.draw_rows(averaged_decisions(logits, k), **facts))
facts = {"run": run.id, "model": made.model, "round": made.rounds}
rows = evaluation.with_clips(pd.concat(found), test, data.classes, **facts)
stored.write_table(run.folder / "randomisation.parquet", rows)
table = metrics.uar_over_draws(rows, ["attack", "variant", "averaged"])
assert table["uar"].between(0, 100).all()
stored.write_table(settings.folder / "randomisation.csv", table.assign(**on))
table.round(2)

# %% [markdown]
# ## What it costs
#
# Milliseconds per clip on this device, decisions included.

# %%
eight = x[: evaluation.BATCH[x.device.type]]
defended = {"none": partial(evaluation.in_batches, plain, eight)}
for k in (1, *averages):
    options = {"randomise": randomise, "draws": k, "seed": 0}
    defended[f"randomised, {k} draws"] = partial(logits_over_draws, plain, eight, **options)
cost = {n: milliseconds_per_clip(f, clips=len(eight)) for n, f in defended.items()}
cost = pd.DataFrame(cost.items(), columns=["defence", "ms per clip"]).assign(device=device)
stored.write_table(settings.folder / "cost.csv", cost.assign(**on))
cost.round(2)
