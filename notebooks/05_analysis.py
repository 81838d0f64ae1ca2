# %% [markdown]
# # 05 Analysis: the paper's tables and figures
#
# **Question.** What is left of each model's recognition under each attack, what do the defences
# gain, and what does federation cost? Is everyone protected, or only the average speaker?
#
# **Method.** No model is loaded: every number comes from the rows that the runs of a study left in
# their folders. Of $K$ classes with $n_k$ test clips, the unweighted average recall is
#
# $$ \mathcal{V} = \frac{100}{K} \sum_{k=1}^{K} \frac{1}{n_k} \sum_{i:\, y_i = k}
# \mathbb{1}[\hat y_i = k]. $$
#
# A defence gains $\Delta = \mathcal{V}_\mathrm{after} - \mathcal{V}_\mathrm{before}$ on the same
# clips. Clips of one speaker are not independent, so the 95 % interval of $\Delta$ (and of
# $\mathcal{V}$) comes from $B = 2000$ resamples of whole speakers,
# $[\Delta^*_{(0.025)}, \Delta^*_{(0.975)}]$. The paper's one-tailed z-test of $n$ clips has
#
# $$ z = \frac{\mathcal{V}_\mathrm{after} - \mathcal{V}_\mathrm{before}}
# {\sqrt{2\, p\, (100 - p) / n}}, \qquad
# p = \tfrac{1}{2}(\mathcal{V}_\mathrm{after} + \mathcal{V}_\mathrm{before}), $$
#
# and federation should cost less than $\delta$:
# $|\mathcal{V}_\mathrm{federated} - \mathcal{V}_\mathrm{central}| < \delta$.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # as given to 02
outputs: str = None  # folder of the runs; the repository's outputs/ otherwise

# %%
import sys

from fedser_utils import analysis, core, workbook
from fedser_utils.analysis import figures

settings, page = core.notebook_settings(globals())

# %% [markdown]
# ## Run

# %%
results = analysis.read_study(settings)
label, client = results.terms
results.caption

# %% [markdown]
# ## Table 2: the clips

# %%
table2 = analysis.table2(results.clips)
title = f"Clips per {label}, seed {results.predictions['seed'].iloc[0]}."
analysis.save_table(results, table2, "table2", title, label="clips", hardware=False)

# %% [markdown]
# **Read it so.** The test clips of every class are enough to speak of. A class with a handful of
# them would make every UAR below hang on a few clips.

# %% [markdown]
# ## Table 3: UAR after the last round
#
# In percent, the mean over seeds; `deviation` over seeds, 95 % intervals from a bootstrap over
# speakers (or machines), `difference` to the paper's numbers (DEMoS, 300 rounds).

# %%
table3 = analysis.table3(results.predictions)
title = f"UAR [%] with 95 % interval (bootstrap over {client}s), and the paper's."
analysis.save_table(results, table3, "table3", title).round(2)

# %% [markdown]
# **Read it so.** If the defences worked, the rows `adversarial` of the models trained with an
# attack are above nature's, and `randomised_adversarial` above `adversarial`, with intervals that
# do not meet. If they did not, these rows would be near nature's under the same attack.
# DeepFool moves every clip over the nearest boundary, also those that were wrong before: what is
# right after it is mostly these, so its UAR is no measure of robustness (`03` has its distances).

# %% [markdown]
# ## What the defences gain
#
# Paired by clip and seed; on original clips (`attack` none) the gain is adversarial training's
# price, whatever its sign. `p_z` is the z-test above, which takes UAR as a share of independent
# clips; `p_mcnemar` is McNemar's exact test, two-sided, of right and wrong decisions. Both are also
# corrected over this table by Holm. The p of several seeds is twice their median (at most 1), which
# is valid however the seeds depend on each other.

# %%
gains = analysis.gains(results.predictions)
title = f"What the defences gain: UAR [%] with 95 % interval (bootstrap over {client}s); p of the "
title += "one-tailed z-test and of McNemar's, each corrected over the table by Holm."
analysis.save_table(results, gains, "gains", title).round(4)

# %% [markdown]
# **Read it so.** A defence without effect has an interval around 0 and large `p_mcnemar_holm`. A
# small `p_z` beside an interval that holds 0 says only that clips are not independent.

# %% [markdown]
# ## What federation costs
#
# The same model on pooled clips (`02` with `clients` pooled); the second form sets the federated
# model on adversarial clips against the central one on original ones. `delta` is the smallest that
# the whole 95 % interval of the difference allows.

# %%
central = analysis.centralised(results.predictions)
title = "Federated and centralised training, UAR [%]."
analysis.save_table(results, central, "centralised", title)

# %% [markdown]
# **Read it so.** A large `delta` with a difference near 0 means few clips, not a price. Both models
# differ from round to round: where `central_low` and `central_high`, or the federated pair (over
# the second half of the rounds), are further apart than the difference, the last round may have
# been a bad one of either. Without a centralised run the table is empty.

# %% [markdown]
# ## Is everyone protected?
#
# UAR of the test clips of each speaker (or machine), after the last round.

# %%
uars = analysis.by_speaker(results.predictions)
speakers = analysis.speakers(uars)
analysis.save_table(results, speakers, "speakers", f"UAR [%] over {client}s.").round(2)

# %%
picture = figures.speakers(uars, client=client, caption=results.caption)
analysis.save_figure(results, picture, "speakers")

# %% [markdown]
# **Read it so.** If a defence protected only some, its dots would spread out where nature's lie
# together, and the worst speaker would stay where it was. Each has few clips, so the worst of many
# is low by chance too.

# %% [markdown]
# ## Is every corpus served, every language?
#
# Where several corpora are joined; no rows otherwise. (`07` says what stands in the way, and what
# changes it.)

# %%
corpora = analysis.uar_by_corpus(results)
analysis.save_table(results, corpora, "corpora", "UAR [%] of each corpus and language.")

# %% [markdown]
# ## Figure 2: one clip, attacked

# %%
arrays = analysis.read_examples(results)
if arrays:
    picture = figures.examples(arrays, caption=results.caption)
    analysis.save_figure(results, picture, "fig2")
else:
    picture = "03_attacks stores the example"
picture

# %% [markdown]
# **Read it so.** At the left the attacked clips look like the original; only the right side, 100
# times as strong, tells them apart. A perturbation that can be seen at the left would be no
# adversarial one.

# %% [markdown]
# ## Figure 4: learning

# %%
picture = figures.uar_by_round(results.rounds, caption=results.caption)
analysis.save_figure(results, picture, "fig4")

# %% [markdown]
# **Read it so.** Curves that still rise in the last round have not converged, and the tables above
# compare unfinished models. A curve at 100 / classes percent has learnt nothing.

# %% [markdown]
# ## Figure 5: four conditions

# %%
picture = figures.four_conditions(results.rounds, caption=results.caption)
analysis.save_figure(results, picture, "fig5")

# %% [markdown]
# **Read it so.** Under attack (c) all fall; adversarial training helps where a model falls less
# than nature does under the attack that it was trained with (it is not shown another). (d) lies
# above (c) where randomisation helps against an attacker who does not know of it. If (c) looked
# like (a), the attacks would be too weak to test anything.

# %% [markdown]
# ## Figure 6: confusions of randomised adversarial clips

# %%
caption = f"Percent of each true class; in parentheses clips, of all seeds. {results.caption}"
picture = figures.confusions(results.predictions, caption=caption)
analysis.save_figure(results, picture, "fig6")

# %% [markdown]
# **Read it so.** A defended model's strong cells are on the diagonal. One dark column would be a
# model that answers the same class whatever it hears, with a UAR of chance.

# %% [markdown]
# ## Who is taken for whom?
#
# Every model, attack, condition and evaluated round; what differs between two of them; the clips
# behind a number: press a cell (Tab and Enter do it too). Without a kernel the page shows the model
# without adversarial training under PGD, beside the model trained against PGD.

# %%
assert "torch" not in sys.modules  # tables and figures come from rows alone
workbook.explore_confusions(results, corpus=settings.corpus)

# %% [markdown]
# **Read it so.** An attack that only adds noise spreads a class over all others; one class that
# takes most errors is where the model has little margin. If adversarial training had no effect, the
# difference (a) - (b) would be pale everywhere and its interval would hold 0.
#
# **Next.** These attackers do not know of the randomisation; `06_adaptive` has one who does. `07`
# asks what becomes of all this when the clients are not alike.
