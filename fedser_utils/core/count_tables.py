"""What a server without recordings knows of them: counts.

Tables of clips and of decisions are written out from counts, so that everything that reads them
works as always. The clips in them have no names of their own: a "#" in its name says that a clip
was counted, and that it is not the same clip in two conditions. What pairs clips must not use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MARK = "#"


def clips_from_counts(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> pd.DataFrame:
    """Rows as of a run's ``clips.parquet``. counts: client -> emotion -> [training, test]."""
    rows = [
        (f"{client}{MARK}{emotion}-{part}-{i:03d}", client, None, emotion, np.nan, part, client)
        for client, own in counts.items()
        for emotion, pair in sorted(own.items())
        for part, count in zip(("train", "test"), pair, strict=True)
        for i in range(count)
    ]
    columns = ["clip", "speaker", "gender", "emotion", "seconds", "split", "client"]
    return pd.DataFrame(rows, columns=columns)


def predictions_from_counts(
    confusions: Mapping[str, Mapping[str, Sequence[int]]], classes: Sequence[str]
) -> pd.DataFrame:
    """Rows as of a run's ``predictions.parquet``: attack, condition, draw, clip, speaker, y_true,
    y_pred. confusions: client -> "attack/condition" -> (classes x classes,) counts."""
    parts, names = [], np.asarray(classes, dtype=object)
    for client, tables in confusions.items():
        for key, flat in tables.items():
            attack, condition = key.split("/")
            cells = np.repeat(np.arange(len(flat)), flat)
            facts = {"attack": attack, "condition": condition, "draw": 0, "speaker": client}
            truth, said = names[cells // len(classes)], names[cells % len(classes)]
            own = pd.DataFrame({"y_true": truth, "y_pred": said} | facts)
            place = own.groupby("y_true").cumcount().astype(str).str.zfill(3)
            own["clip"] = client + MARK + own["y_true"] + "-test-" + place
            parts.append(own)
    return pd.concat(parts, ignore_index=True)


def is_counted(clips: pd.Series) -> bool:
    """Whether these clips were counted, and so cannot be paired."""
    return bool(clips.str.contains(MARK, regex=False).any())
