"""What notebook 01_data shows of a federation's recordings."""

from __future__ import annotations

from html import escape

import pandas as pd
from IPython.display import HTML

from fedser_utils.data import audio
from fedser_utils.data.federation import Federation
from fedser_utils.workbook.clip_media import player


def clip_players(federation: Federation, clips: pd.DataFrame) -> HTML:
    """Return a table of players, a row for each clip with its label and name.

    clips: rows of ``federation.clips``. The sounds are stored in the notebook.
    """
    rows = []
    for label, name, path in clips[["emotion", "clip", "path"]].itertuples(index=False):
        wav = audio.playable(audio.read(federation.corpus.root / path).waveform)
        rows.append(f"<td>{escape(label)}</td><td>{escape(name)}</td><td>{player(wav)}</td>")
    return HTML(f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
