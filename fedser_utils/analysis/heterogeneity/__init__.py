"""Heterogeneous clients: how they differ, which interventions there are, and what these change."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["client_differences", "conclusions", "interventions", "outcomes", "plots"],
    submod_attrs={
        "client_differences": [
            "corpus_sizes", "input_shift", "label_skew", "shift_by_group", "spread", "uar_by_alpha",
            "uar_by_scope",
        ],
        "conclusions": ["conclude"],
        "outcomes": [
            "intervention_table", "measure_outcomes", "rounds_by_intervention", "uar_under_skew"
        ],
    },
)  # fmt: skip
