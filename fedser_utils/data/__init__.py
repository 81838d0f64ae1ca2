"""From recordings to clients: readers name clips, audio is checked, log-Mel images are drawn, and
clips are dealt to clients.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "federation": ["Federation", "federation_of", "load_federation"],
        "corpora": ["Corpus"],
    },
)
