"""From the rows that runs leave behind to metrics, tables and figures. Never imports torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["baselines", "diagrams", "figures", "heterogeneity", "labels", "metrics", "tables"],
    submod_attrs={
        "comparisons": ["by_speaker", "centralised", "gains", "speakers"],
        "labels": ["terms"],
        "metrics": ["scores", "uar", "uar_by", "uar_interval", "uar_over_draws"],
        "study_results": [
            "read_examples", "read_study", "save_figure", "save_table", "uar_by_corpus"
        ],
        "tables": ["table2", "table3"],
    },
)  # fmt: skip
