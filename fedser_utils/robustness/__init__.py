"""What of a model survives an attack: randomisation, evaluation, attackers who know the defence."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["evaluation", "smoothing"],
    submod_attrs={
        "adaptive_study": [
            "adaptive_evidence",
            "certify_models",
            "check_model",
            "defence_cost",
            "open_adaptive_study",
        ],
        "evidence": ["claim_table", "eot_curve", "security_curve"],
        "loaded_model": ["LoadedModel", "load_model", "load_study"],
        "randomisation": ["Randomise"],
        "randomised_inference": [
            "draw_example",
            "predictions_over_draws",
            "randomisation_cost",
            "tune_randomisation",
        ],
    },
)
