"""From the rows that runs leave behind to metrics, tables and figures. Never imports torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["scores", "uar", "uar_by"],
        "tables": ["table2", "table3"],
        "comparisons": ["by_speaker", "centralised", "gains"],
    },
)
