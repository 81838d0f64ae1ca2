"""Linear baselines without the order of the frames; a network should be better than these.

``mean level`` and ``linear on bands`` take of a log-Mel image only its mean, or each band's mean
and standard deviation over time: shuffled frames change nothing. ``linear on eGeMAPS`` is the
field's reference: a linear support vector machine on the 88 functionals of the extended Geneva
Minimalistic Acoustic Parameter Set (Eyben et al., 2016), computed by the optional package
opensmile, whose licence forbids commercial use. All weigh the classes equally, as the UAR does.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

COLUMNS = ["baseline", "features", "uar", "low", "high", "n", "n_train", "classes", "chance"]


def mean_level(log_mels: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean of every log-Mel image, (clips, 1). log_mels: (clips, frames, bands)."""
    return np.array([[np.mean(image, dtype=float)] for image in log_mels])


def band_statistics(log_mels: Iterable[np.ndarray]) -> np.ndarray:
    """Return mean and standard deviation of every band over time, (clips, 2 * bands).

    log_mels: (clips, frames, bands); read clip by clip, so they need not fit in memory.
    """
    images = (np.asarray(image, dtype=float) for image in log_mels)
    return np.array([np.concatenate([image.mean(0), image.std(0)]) for image in images])


def functionals(waveforms: Iterable[np.ndarray], *, rate: int = 16_000) -> np.ndarray:
    """Return openSMILE's eGeMAPSv02 functionals of every waveform, (clips, 88).

    waveforms: (samples,) each, at ``rate`` Hz. Raises InputError if opensmile is not installed.
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
    return np.concatenate([smile.process_signal(wave, rate).to_numpy() for wave in waveforms])


def _logistic(y: np.ndarray) -> ClassifierMixin:
    return LogisticRegression(max_iter=2000, class_weight="balanced")


def _svm(y: np.ndarray) -> ClassifierMixin:
    """Return a linear SVM whose C is chosen by cross-validation on the training clips, if every
    class has two of them or more."""
    folds = min(5, np.unique(y, return_counts=True)[1].min())
    svm = LinearSVC(class_weight="balanced", random_state=0, max_iter=20_000)
    if folds < 2:
        return svm.set_params(C=0.01)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    return GridSearchCV(svm, {"C": [1e-4, 1e-3, 1e-2, 1e-1]}, scoring="balanced_accuracy", cv=parts)


@dataclass(frozen=True)
class Baseline:
    """A baseline's input (takes: log_mels or waveforms), its features (of the input, (clips,
    features)) and its model (of the training clips' labels, a classifier to be fitted)."""

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
    """Return a linear model's predictions for the test clips, in their order: (test clips,).

    features: (clips, features), each standardised by its training clips; labels: (clips,); train:
    (clips,), true for training clips. Raises InputError if the features are not finite, if there is
    no test clip, or if the training clips are of fewer than two classes.
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
    """Return the UAR of every baseline that has its input, a row each.

    labels, speakers, train: (clips,), the last true for training clips and false for test clips;
    log_mels: (clips, frames, bands), not standardised; waveforms: (samples,) each, at ``rate`` Hz;
    seed: of the bootstrap.

    Returns baseline, features (how many), uar, low, high (95 % bootstrap over speakers; percent),
    n (test clips), n_train, classes (among the test clips), chance (percent). Raises InputError as
    ``decisions`` and ``functionals`` do, and without any input.
    """
    inputs = {"log_mels": log_mels, "waveforms": waveforms}
    if log_mels is None and waveforms is None:
        raise InputError(f"baselines need one of {', '.join(inputs)}")
    train = np.asarray(train, dtype=bool)
    y_true, test_speakers = np.asarray(labels)[~train], np.asarray(speakers)[~train]
    classes, rows = len(np.unique(y_true)), []
    for name, baseline in BASELINES.items():
        if inputs[baseline.takes] is None:
            continue
        options = {"rate": rate} if baseline.takes == "waveforms" else {}
        features = baseline.features(inputs[baseline.takes], **options)
        y_pred = decisions(features, labels, train, model=baseline.model)
        interval = metrics.uar_interval(
            y_true, y_pred, test_speakers, generator=rng(seed, "baseline", name)
        )
        scores = metrics.uar(y_true, y_pred), *interval
        sizes = len(y_true), int(train.sum()), classes
        rows.append((name, features.shape[1], *scores, *sizes, 100 / classes))
    return pd.DataFrame(rows, columns=COLUMNS)


def compare(
    clips: pd.DataFrame, *, log_mels: np.ndarray, waveforms: Iterable[np.ndarray]
) -> pd.DataFrame:
    """Return the UAR of every baseline on a corpus's test clips, a row each, as ``table``.

    clips: with emotion, speaker and split; log_mels: (clips, frames, bands), not standardised;
    waveforms: (samples,) each, at 16 kHz, read only if the package opensmile is there. Where it is
    not, its baseline is left out, which is logged.
    """
    columns = clips["emotion"], clips["speaker"], clips["split"] == "train"
    linear = table(*columns, log_mels=log_mels)
    try:
        reference = table(*columns, waveforms=waveforms)
    except InputError as absent:
        log.warning("%s", absent)
        return linear
    return pd.concat([linear, reference], ignore_index=True)
