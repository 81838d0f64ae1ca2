"""The paper's names for models, attacks and conditions, the order they are listed in, and the words
for a label and for whom a clip is from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import pandas as pd

MODELS = ("nature", "fgsm", "pgd", "deepfool")  # the paper's
ATTACK_NAMES = {"none": "None", "fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool"}
MODEL_NAMES = {"nature": "Nature"} | {m: f"AdvTrain {ATTACK_NAMES[m]}" for m in MODELS[1:]}
MODEL_NAMES |= {"centralised": "Centralised"} | {
    f"centralised-{m}": f"Centralised {MODEL_NAMES[m]}" for m in MODELS[1:]
}
CONDITIONS = {
    "original": "Original",
    "randomised": "Randomised",
    "adversarial": "Adversarial",
    "randomised_adversarial": "Randomised adversarial",
}
KEY = ["model", "attack", "condition"]
NAMES = dict(zip(KEY, (MODEL_NAMES, ATTACK_NAMES, CONDITIONS), strict=True))
_FIG_6 = ("guilt", "disgust", "happiness", "fear", "anger", "surprise", "sadness")
_EMOTIONS = {*_FIG_6, "boredom", "calm", "neutral"}


class Terms(NamedTuple):
    """The words for a label and for whom a clip is from."""

    label: str = "emotion"
    client: str = "speaker"


def terms(classes: Iterable[str]) -> Terms:
    """Return emotion and speaker, or class and client if a class is not a known emotion."""
    return Terms() if set(classes) <= _EMOTIONS else Terms("class", "client")


def label(model: str, attack: str = "none") -> str:
    """Return a curve's name in the paper's words, e.g. ``Nature, PGD attk.``"""
    name = MODEL_NAMES.get(model, model)
    return name if attack == "none" else f"{name}, {ATTACK_NAMES.get(attack, attack)} attk."


def paper_order(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return each of ``names`` once: those in ``known`` in its order, then the rest by name."""
    names = set(names)
    return [name for name in known if name in names] + sorted(names - set(known))


def class_order(classes: Iterable[str]) -> list[str]:
    """Return the classes in the paper's order (Fig. 6); classes that it lacks come last."""
    return paper_order(classes, _FIG_6)


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows sorted by model, attack and condition, in the paper's order."""
    return table.sort_values(
        KEY,
        key=lambda column: column.map(paper_order(column, NAMES[column.name]).index),
        ignore_index=True,
    )
