"""What a person sees and starts: explorers, the training monitor, studies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"display": ["is_live", "show"], "training_monitor": ["TrainingMonitor"]},
)
