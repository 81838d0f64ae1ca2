"""Federated training on Flower: client app, server app, strategies, grids and runtimes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "client_drift": ["batch_norm_shift", "drift", "saved_states"],
        "heterogeneity_study": [
            "compare_inputs", "measure_batch_norm", "measure_drift", "open_heterogeneity_study",
            "train_interventions", "train_label_skew",
        ],
        "runtimes": ["train"],
        "server_app": ["Monitor"],
        "strategies": ["RoundError", "make_strategy"],
    },
)  # fmt: skip
