"""From recordings to clients: readers name clips, audio is checked, log-Mel images are computed,
and clips are assigned to clients.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["audio"],
    submod_attrs={
        "federation": ["Federation", "federation_of", "load_federation"],
        "corpora": ["Corpus"],
    },
)
