# %% [markdown]
# # 05 Analysis: the paper's tables and figures
#
# Everything here is computed from what the runs of a study left in their folders: Tables 2 and
# 3, Figures 2, 4, 5 and 6, what the defences gain, what federation costs, and who is left
# behind. No model is loaded. The paper's numbers stand beside ours; they were measured on DEMoS
# after 300 rounds. Runs with several seeds are averaged.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
import sys
from functools import partial

import pandas as pd

from fedser_utils.analysis import comparisons, figures, tables
from fedser_utils.analysis.heterogeneity.client_differences import results
from fedser_utils.core import runs
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import notebook_settings
from fedser_utils.workbook import clip_media, confusion_explorer, display

settings = notebook_settings(globals())
with refusals():
    found = runs.study_runs(settings)
made = [run.config["settings"] for run in found]
predictions = pd.concat(
    [run.table("predictions").assign(seed=own["seed"]) for run, own in zip(found, made)],
    ignore_index=True,
)
rounds = pd.concat([run.table("rounds") for run in found], ignore_index=True)
clips = found[0].table("clips")
folder, origin, on = settings.folder, runs.origin(found), runs.hardware(found)
told = {"study": settings.study, "corpus": made[0]["corpus"], "made_on": on}
caption = tables.caption(predictions, clips, **told)
label, client = tables.terms(clips["emotion"])
caption

# %% [markdown]
# ## Table 2: the clips

# %%
table2 = tables.table2(clips)
runs.write_table(folder / "table2.csv", table2)
title = f"Clips per {label}, seed {made[0]['seed']}. {caption}"
runs.write_text(folder / "table2.tex", tables.latex(table2, caption=title, label="clips"))
table2

# %% [markdown]
# ## Table 3: UAR after the last round
#
# In percent; `deviation` over seeds, 95 % intervals from a bootstrap over speakers (or machines),
# `difference` to the paper's.

# %%
table3 = tables.table3(predictions)
runs.write_table(folder / "table3.csv", table3.assign(**on))
title = f"UAR [%] with 95 % interval (bootstrap over {client}s), and the paper's. {caption}"
runs.write_text(folder / "table3.tex", tables.table3_latex(table3, caption=title))
table3.round(2)

# %% [markdown]
# ## What the defences gain
#
# Before and after are compared on the same clips; on original clips (`attack` none) the gain is
# adversarial training's price, whatever its sign. The interval of the gain draws whole speakers
# (or machines); `p_z` is the paper's one-tailed z-test, which takes UAR as a share of independent
# clips; `p_mcnemar` is McNemar's exact test, two-sided, of the right and wrong decisions, clips
# again taken as independent. Both are also corrected over this table by Holm. The p of several
# seeds is twice their median (at most 1), which holds however the seeds depend on each other.

# %%
gains = comparisons.gains(predictions)
runs.write_table(folder / "gains.csv", gains.assign(**on))
title = (
    f"What the defences gain: UAR [%] with 95 % interval (bootstrap over {client}s); p of the "
    f"one-tailed z-test and of McNemar's, each corrected over the table by Holm. {caption}"
)
runs.write_text(folder / "gains.tex", tables.latex(gains, caption=title, label="gains"))
gains.round(4)

# %% [markdown]
# ## What federation costs
#
# The paper wants |V_federated - V_central| < delta: the same model on pooled clips, each seen as
# often (`02` with `clients` pooled). Its second form sets the federated model on adversarial clips
# against the central one on the original ones. `delta` is the smallest that the whole 95 %
# interval of the difference allows.
#
# Both take about as many gradient steps in a round, but the pooled ones follow one after the other,
# while those of the clients are averaged: the centralised model's weights jump about where the
# federated one's do not. So a centralised model that seems worse may have had a bad last round:
# compare `central_low` and `central_high`, its range over the second half of the rounds, before the
# difference is read as the price, or the gain, of federation.

# %%
central = comparisons.centralised(predictions)
if len(central):
    runs.write_table(folder / "centralised.csv", central.assign(**on))
    title = f"Federated and centralised training, UAR [%]. {caption}"
    text = tables.latex(central, caption=title, label="centralised")
    runs.write_text(folder / "centralised.tex", text)
else:
    central = "no centralised run in this study: 02 with clients pooled makes one"
central

# %% [markdown]
# ## Is everyone protected?
#
# UAR of the test clips of each speaker (or machine). They are few, so the worst of many is low
# by chance too.

# %%
each = comparisons.by_speaker(predictions)
speakers = comparisons.speakers(each)
runs.write_table(folder / "speakers.csv", speakers.assign(**on))
title = f"UAR [%] over {client}s. {caption}"
runs.write_text(folder / "speakers.tex", tables.latex(speakers, caption=title, label="speakers"))
speakers.round(2)

# %%
picture = figures.speakers(each, client=client, caption=caption)
figures.save(picture, folder, "speakers", origin=origin)

# %% [markdown]
# ## Is every corpus served, every language?
#
# Where several corpora are joined. (`07` says what stands in the way, and what helps.)

# %%
parts = "one corpus"
if len(set(clips.get("corpus", ()))) > 1:
    models = predictions.groupby("model", sort=False)
    options = {"scopes": ["corpus", "language"]}
    rows = [results(own, clips, **options).assign(model=name) for name, own in models]
    parts = pd.concat(rows, ignore_index=True)
    runs.write_table(folder / "corpora.csv", parts.assign(**on))
parts

# %% [markdown]
# ## Figure 2: one clip, attacked

# %%
example = folder / "examples.safetensors"
if example.exists():
    fig2 = figures.examples(runs.load_arrays(example), caption=caption)
    figures.save(fig2, folder, "fig2", origin=origin)
else:
    fig2 = "03_attacks stores the example"
fig2

# %% [markdown]
# ## Figure 4: learning

# %%
fig4 = figures.uar_by_round(rounds, caption=caption)
figures.save(fig4, folder, "fig4", origin=origin)

# %% [markdown]
# ## Figure 5: four conditions

# %%
fig5 = figures.four_conditions(rounds, caption=caption)
figures.save(fig5, folder, "fig5", origin=origin)

# %% [markdown]
# ## Figure 6: confusions of randomised adversarial clips
#
# Shares of each true class in percent, and counts (of all seeds together).

# %%
fig6 = figures.confusions(predictions, caption=f"{caption}; counts of all seeds")
figures.save(fig6, folder, "fig6", origin=origin)

# %% [markdown]
# ## Who is taken for whom?
#
# Every model, attack, condition and evaluated round; what differs between two of them; the clips
# behind a number: press a cell (Tab and Enter do it too). Without a kernel the page shows the model
# without adversarial training under PGD, beside the model trained against PGD.

# %%
heard = clip_media.of(found[0], corpus=settings.corpus)
find = {"sound": heard.sound, "picture": heard.picture}
explorer = partial(confusion_explorer.ConfusionExplorer, predictions, **find)
display.show(explorer, partial(confusion_explorer.twin, predictions, **find))
assert "torch" not in sys.modules
