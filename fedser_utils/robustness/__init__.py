"""What of a model survives an attack: randomisation, evaluation, attackers who know the defence."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"randomisation": ["Randomise"]},
)
