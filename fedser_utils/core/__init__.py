"""What every other room stands on: settings, errors, runs, checkpoints, random generators.

Imports nothing else of the package, and torch only for devices and generators.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["checkpoints", "devices", "runs"],
    submod_attrs={
        "errors": ["InputError", "choose", "number", "refusals"],
        "settings": ["Settings"],
        "presets": ["load_settings"],
        "notebook": ["notebook_settings"],
        "runs": ["Run", "commit", "find_run", "find_runs", "origin", "read_run", "study_runs"],
        "devices": ["worker_pool"],
        "seeding": ["generator", "rng"],
        "front_end": ["FrontEnd"],
    },
)
