# %% [markdown]
# # 08 Dashboard: what is done, and what is missing?
#
# **Question.** Which trainings in this folder are done, running or stopped? What do the paper's
# tables still miss, and which command makes it?
#
# **Method.** Every run is a folder, and its files tell how far it is: `rounds.csv` has the UAR of
# each evaluated round, a lock says who writes, `model.safetensors` ends it. The paper's tables need
# five models of each study, setting and seed: natural training, adversarial training against FGSM,
# PGD and DeepFool, and the centralised model:
#
# $$ \mathrm{missing} = \{\mathrm{nature}, \mathrm{fgsm}, \mathrm{pgd}, \mathrm{deepfool},
# \mathrm{centralised}\} \setminus \{ m : \text{a run of } m \text{ is complete} \}. $$
#
# Nothing is written and no model is loaded, so this
# page may stay open beside a training. `make dashboard` serves it alone.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
outputs: str = None  # folder of the runs; otherwise FEDSER_OUTPUTS's, or the repository's outputs/

# %%
import sys

from fedser_utils import core
from fedser_utils.workbook.study import dashboard

core.notebook_settings(globals())
dashboard.show(outputs)
assert "torch" not in sys.modules

# %% [markdown]
# **Read it so.** UAR is in percent, of the original test clips and under attack, after the last
# evaluated round; chance is 100 divided by the number of classes. A study can be quoted when all
# five models and the tables are done: a stopped run's UAR is of fewer rounds than the others', and
# outdated tables lack a model that is newer than they are. In JupyterLab and Voila the page is
# read anew every ten seconds; elsewhere it shows how things were when the notebook ran.
#
# **Next.** `02_fl_advtrain` trains a missing model, `05_analysis` makes the tables.
