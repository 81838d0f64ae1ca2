"""The federated loop, on Flower: client app, server app, strategies, and where they run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"runtimes": ["train"]},
)
