# %% [markdown]
# # 05 Analysis: the paper's tables and figures
#
# Everything here is computed from what the runs of a study left in their folders: Tables 2 and
# 3, Figures 2, 4, 5 and 6. No model is loaded. The paper's numbers stand beside ours; they were
# measured on DEMoS after 300 rounds.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
import sys

import pandas as pd

from fedser_utils import config, figures, runs, tables

settings = config.notebook_settings(globals())
with config.refusals():
    found = runs.study_runs(settings)
predictions = pd.concat([run.table("predictions") for run in found], ignore_index=True)
rounds = pd.concat([run.table("rounds") for run in found], ignore_index=True)
clips = found[0].table("clips")
caption = tables.caption(predictions, clips, study=settings.study)
origin = f"runs {', '.join(run.id for run in found)}; commit {found[-1].config['commit']}"
assert "torch" not in sys.modules
caption

# %% [markdown]
# ## Table 2: the clips

# %%
table2 = tables.table2(clips)
runs.write_table(settings.folder / "table2.csv", table2)
table2

# %% [markdown]
# ## Table 3: UAR after the last round
#
# In percent, with 95 % intervals from a bootstrap over speakers.

# %%
table3 = tables.table3(predictions)
runs.write_table(settings.folder / "table3.csv", table3)
title = f"UAR [%] with 95 % intervals (bootstrap over speakers). {caption}"
latex = tables.table3_latex(table3, caption=title)
runs.write_text(settings.folder / "table3.tex", latex)
table3.round(2)

# %% [markdown]
# What the defences gain, with the paper's one-tailed z-test.

# %%
gains = tables.gains(table3)
runs.write_table(settings.folder / "gains.csv", gains)
gains.round(4)

# %% [markdown]
# ## Figure 2: one clip, attacked

# %%
picture = settings.folder / "examples.safetensors"
if picture.exists():
    fig2 = figures.examples(runs.load_arrays(picture), caption=caption)
    figures.save(fig2, settings.folder, "fig2", origin=origin)
else:
    fig2 = "03_attacks stores the example"
fig2

# %% [markdown]
# ## Figure 4: learning

# %%
fig4 = figures.uar_by_round(rounds, caption=caption)
figures.save(fig4, settings.folder, "fig4", origin=origin)
fig4

# %% [markdown]
# ## Figure 5: four conditions

# %%
fig5 = figures.four_conditions(rounds, caption=caption)
figures.save(fig5, settings.folder, "fig5", origin=origin)
fig5

# %% [markdown]
# ## Figure 6: confusions of randomised adversarial clips

# %%
fig6 = figures.confusions(predictions, caption=caption)
figures.save(fig6, settings.folder, "fig6", origin=origin)
fig6
