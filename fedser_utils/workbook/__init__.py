"""Widgets and their static twins: explorers, the training monitor, and studies (``study``)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clip_media": ["players"],
        "confusion_explorer": ["explore_confusions"],
        "data_page": ["clip_players"],
        "display": ["is_live", "show"],
        "perturbation_explorer": ["explore_perturbations"],
        "training_monitor": ["TrainingMonitor"],
    },
)
