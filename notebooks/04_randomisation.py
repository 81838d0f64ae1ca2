# %% [markdown]
# # 04 Randomisation: the defence at inference
#
# Each clip is enlarged and padded at random before the model sees it. What does one draw look
# like, and how much does the recognition of clean and of attacked clips vary over draws? The
# attacker here does not know of the randomisation (the paper's protocol, non-adaptive).

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
attack: str = None  # the defended model, by what it was trained with: none, fgsm, pgd, deepfool
seed: int = None  # of the defended model's run
draws: int = 10
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
from fedser_utils import config

settings = config.notebook_settings(globals(), own={"draws": int})

from functools import partial

import pandas as pd

from fedser_utils import (
    attacks,
    clients,
    cohort,
    evaluation,
    figures,
    metrics,
    models,
    partition,
)
from fedser_utils import runs as stored
from fedser_utils.randomisation import RESIZE_MODES, Randomise
from fedser_utils.seeding import generator

with config.refusals():
    run = stored.find_run(settings)
    data = partition.load_federation(run.settings)
    device = clients.device_of(settings)
model = models.load(run).to(device)
x, y = data.tensors(data.table("test"), device=device)
run.id

# %% [markdown]
# ## What a draw does to a clip

# %%
randomise = Randomise(mode=run.settings.resize)
two = x[:1].repeat(2, 1, 1, 1)
draw = randomise.draw(2, generator(run.settings.seed, "picture"))
drawn = randomise(two, draw)
assert drawn.shape[2:] == (380, 66)
titles = [f"resized to {tuple(s.tolist())}, offset {tuple(o.tolist())}" for s, o in zip(*draw)]
figures.log_mels(
    [x[0, 0].cpu().numpy(), *drawn[:, 0].cpu().numpy()], ["original, 373 x 64", *titles]
)

# %% [markdown]
# ## UAR over draws
#
# Attacked with PGD against the plain model; bilinear and nearest resizing.

# %%
plain, pgd = models.folded(model), clients.attack_of(run.settings, "pgd")
rows = []
with cohort.worker_pool(device) as pool:
    attacked = evaluation.in_batches(partial(pgd, plain), x, y, pool=pool)
    for clips, seen in {"original": x, "pgd": attacked}.items():
        said = evaluation.in_batches(partial(attacks.predictions, plain), seen, pool=pool)
        undefended = metrics.uar(y.cpu(), said.cpu())
        for mode in RESIZE_MODES:
            options = {"randomise": Randomise(mode=mode), "draws": draws, "seed": run.settings.seed}
            found = evaluation.uar_over_draws(model, seen, y, pool=pool, **options)
            rows.append((clips, mode, undefended, found.mean(), found.std(ddof=0), draws, len(x)))
columns = ["clips", "resize", "uar_plain", "uar_mean", "uar_deviation", "draws", "n"]
table = pd.DataFrame(rows, columns=columns)
assert table["uar_mean"].between(0, 100).all()
stored.write_table(settings.folder / "randomisation.csv", table.assign(run=run.id))
table.round(2)
