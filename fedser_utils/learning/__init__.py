"""The model and one client's training of it. Knows no Flower, and no attack by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["vgg"],
    submod_attrs={
        "vgg": ["VGG15", "WeakModel", "attack_target", "build", "load"],
        "local_training": ["Update", "client_update"],
    },
)
