"""Tables of clips and of predictions from counts, for a server that has no recordings.

What reads such tables works as always. Their clips have invented names with a "#", and one name is
not the same clip in two conditions: comparisons that pair clips must not use them (``is_counted``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MARK = "#"


def clips_from_counts(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> pd.DataFrame:
    """Return rows of a run's ``clips.parquet``; counts: client -> emotion -> [training, test]."""
    rows = [
        (f"{client}{MARK}{emotion}-{part}-{i:03d}", client, None, emotion, np.nan, part, client)
        for client, by_emotion in counts.items()
        for emotion, pair in sorted(by_emotion.items())
        for part, count in zip(("train", "test"), pair, strict=True)
        for i in range(count)
    ]
    columns = ["clip", "speaker", "gender", "emotion", "seconds", "split", "client"]
    return pd.DataFrame(rows, columns=columns)


def predictions_from_counts(
    confusions: Mapping[str, Mapping[str, Sequence[int]]], classes: Sequence[str]
) -> pd.DataFrame:
    """Return a table as a run's ``predictions.parquet``: attack, condition, draw, clip, speaker,
    y_true, y_pred. confusions: client -> "attack/condition" -> (classes x classes,) counts."""
    parts, names = [], np.asarray(classes, dtype=object)
    for client, tables in confusions.items():
        for key, flat in tables.items():
            attack, condition = key.split("/")
            cells = np.repeat(np.arange(len(flat)), flat)
            facts = {"attack": attack, "condition": condition, "draw": 0, "speaker": client}
            y_true, y_pred = names[cells // len(classes)], names[cells % len(classes)]
            rows = pd.DataFrame({"y_true": y_true, "y_pred": y_pred} | facts)
            place = rows.groupby("y_true").cumcount().astype(str).str.zfill(3)
            rows["clip"] = client + MARK + rows["y_true"] + "-test-" + place
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def is_counted(clips: pd.Series) -> bool:
    """Return whether these clips were counted, so that comparisons cannot pair them."""
    return bool(clips.str.contains(MARK, regex=False).any())
