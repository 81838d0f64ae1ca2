"""What every other room stands on: settings, errors, runs, checkpoints, seeded random generators.

Imports nothing else of the package, and torch only where a device is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["InputError", "choose", "number", "refusals"],
        "settings": ["Settings", "load_settings", "notebook_settings", "own_parameters"],
        "runs": ["Run", "find_run", "find_runs", "read_run", "study_runs"],
        "devices": ["worker_pool"],
        "seeding": ["generator", "rng"],
        "front_end": ["FrontEnd"],
    },
)
