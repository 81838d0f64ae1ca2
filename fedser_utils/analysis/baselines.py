"""Simple baselines: how far a linear model gets, without looking at what happens when.

Whatever a network learns should be judged against them. ``mean level`` and ``linear on bands``
see a clip's log-Mel image only through its mean, or through each band's mean and standard
deviation over time: they do not change when the frames are shuffled. ``linear on eGeMAPS`` is the
field's yardstick: a linear support vector machine on the 88 functionals of the extended Geneva
Minimalistic Acoustic Parameter Set (Eyben et al., 2016), slopes of pitch and loudness among them,
which openSMILE computes; it needs the optional package opensmile, whose licence forbids what is
commercial. All weigh the classes equally, as the UAR does. Takes arrays only, loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from fedser_utils.analysis import metrics
from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import rng

COLUMNS = ["baseline", "features", "uar", "low", "high", "n", "n_train", "classes", "chance"]


def mean_level(log_mels: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of every log-Mel image: (clips, 1). log_mels: (clips, frames, bands)."""
    return np.array([[np.mean(image, dtype=float)] for image in log_mels])


def band_statistics(log_mels: Iterable[np.ndarray]) -> np.ndarray:
    """The mean and the standard deviation of every band over time: (clips, 2 * bands).

    log_mels: (clips, frames, bands); read clip by clip, so they need not fit in memory.
    """
    images = (np.asarray(image, dtype=float) for image in log_mels)
    return np.array([np.concatenate([image.mean(0), image.std(0)]) for image in images])


def functionals(waveforms: Iterable[np.ndarray], *, rate: int = 16_000) -> np.ndarray:
    """openSMILE's eGeMAPSv02 functionals of every waveform: (clips, 88).

    waveforms: (samples,) each, at ``rate`` Hz. Raises InputError where opensmile is not installed.
    """
    try:
        import opensmile
    except ImportError:
        raise InputError(
            "eGeMAPS functionals need the package opensmile: pip install opensmile"
        ) from None
    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )
    return np.concatenate([smile.process_signal(one, rate).to_numpy() for one in waveforms])


def _logistic(y: np.ndarray) -> ClassifierMixin:
    return LogisticRegression(max_iter=2000, class_weight="balanced")


def _svm(y: np.ndarray) -> ClassifierMixin:
    """A linear SVM whose C is chosen by cross-validation on the training clips, where every class
    has two of them or more."""
    folds = min(5, np.unique(y, return_counts=True)[1].min())
    machine = LinearSVC(class_weight="balanced", random_state=0, max_iter=20_000)
    if folds < 2:
        return machine.set_params(C=0.01)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    return GridSearchCV(
        machine, {"C": [1e-4, 1e-3, 1e-2, 1e-1]}, scoring="balanced_accuracy", cv=parts
    )


@dataclass(frozen=True)
class Baseline:
    """takes: log_mels or waveforms; features: of those, (clips, features); model: for the training
    clips' labels, a classifier that has not been fitted."""

    takes: str
    features: Callable[..., np.ndarray]
    model: Callable[[np.ndarray], ClassifierMixin]


BASELINES = {
    "mean level": Baseline("log_mels", mean_level, _logistic),
    "linear on bands": Baseline("log_mels", band_statistics, _logistic),
    "linear on eGeMAPS": Baseline("waveforms", functionals, _svm),
}


def decisions(
    features: np.ndarray,
    labels: Sequence,
    train: Sequence[bool],
    *,
    model: Callable[[np.ndarray], ClassifierMixin] = _logistic,
) -> np.ndarray:
    """What a linear model says about the clips that it was not trained on, in their order.

    features: (clips, features); labels: (clips,); train: (clips,), which clips it is trained on;
    each feature is standardised by its training clips. Raises InputError if the features are not
    finite, if no clip is left to test, or if those for training are of fewer than two classes.
    """
    labels, train = np.asarray(labels), np.asarray(train, dtype=bool)
    if not np.isfinite(features).all():
        clip = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise InputError(f"the features of clip {clip} are not finite")
    if train.all() or len(np.unique(labels[train])) < 2:
        raise InputError(
            f"{train.sum()} training clips of {len(np.unique(labels[train]))} classes and "
            f"{(~train).sum()} test clips are too few for a baseline"
        )
    fitted = make_pipeline(StandardScaler(), model(labels[train]))
    return fitted.fit(features[train], labels[train]).predict(features[~train])


def table(
    labels: Sequence,
    speakers: Sequence,
    train: Sequence[bool],
    *,
    log_mels: Sequence[np.ndarray] | np.ndarray | None = None,
    waveforms: Sequence[np.ndarray] | None = None,
    rate: int = 16_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The UAR of every baseline that has its input, a row each.

    labels, speakers, train: (clips,), the last true for training clips and false for test clips;
    log_mels: (clips, frames, bands), not standardised; waveforms: (samples,) each, at ``rate`` Hz;
    seed: of the bootstrap.

    Returns baseline, features (how many), uar, low, high (95 % bootstrap over speakers; percent),
    n (test clips), n_train, classes (among the test clips), chance (percent). Raises InputError as
    ``decisions`` and ``functionals`` do, and without any input.
    """
    given = {"log_mels": log_mels, "waveforms": waveforms}
    if log_mels is None and waveforms is None:
        raise InputError(f"baselines need one of {', '.join(given)}")
    train = np.asarray(train, dtype=bool)
    y_true, who = np.asarray(labels)[~train], np.asarray(speakers)[~train]
    classes, rows = len(np.unique(y_true)), []
    for name, one in BASELINES.items():
        if given[one.takes] is None:
            continue
        knobs = {"rate": rate} if one.takes == "waveforms" else {}
        features = one.features(given[one.takes], **knobs)
        said = decisions(features, labels, train, model=one.model)
        low, high = metrics.uar_interval(y_true, said, who, generator=rng(seed, "baseline", name))
        scores = metrics.uar(y_true, said), low, high
        sizes = len(y_true), int(train.sum()), classes
        rows.append((name, features.shape[1], *scores, *sizes, 100 / classes))
    return pd.DataFrame(rows, columns=COLUMNS)
