# %% [markdown]
# # 08 Dashboard: what is done, and what is missing?
#
# One page over all runs of all studies in a folder: how far each is, what the paper's tables still
# need and the commands that make it, and the figures. Runs are only looked at, never changed, so
# this may stay open beside a training. `make dashboard` serves it as a page of its own.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
outputs: str = None  # folder of the runs; otherwise FEDSER_OUTPUTS's, or the repository's outputs/

# %%
import os
import sys

from fedser_utils.core.settings import notebook_settings
from fedser_utils.workbook.study import dashboard

settings = notebook_settings(globals())
folder = outputs or os.environ.get("FEDSER_OUTPUTS", settings.outputs)
assert "torch" not in sys.modules

# %% [markdown]
# ## The page
#
# In JupyterLab and Voila it looks again every ten seconds; elsewhere it shows how things stood.

# %%
dashboard.show(folder)
