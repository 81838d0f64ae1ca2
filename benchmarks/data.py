"""Claim: on two CPU cores the embedded corpus is written at 100 clips/s or more, log-Mels are
extracted at 200 clips/s or more from 16 kHz files, and at DEMoS's size (9,365 clips) the whole way
from files to pooled statistics stays below 1.5 GB of memory.

    python benchmarks/data.py [CLIPS]      # writes benchmarks/results/data.json
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

from fedser_utils import corpora, features, partition, runs, synthetic

RESULTS = Path(__file__).parent / "results"


def timed(function, *arguments, **options):
    """(result, seconds)."""
    start = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - start


def main(clips: int) -> None:
    speakers = min(68, clips // 14)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        root, writing = timed(synthetic.write_corpus, folder, speakers=speakers, clips=clips)
        corpus, checking = timed(corpora.load_corpus, root)
        table = corpus.clips
        arguments = corpus.root, list(table["path"]), list(table["digest"])
        _, extracting = timed(features.cached_log_mels, *arguments, cache=folder / "cache")
        federation, pooling = timed(
            partition.federate,
            corpus,
            split_by="speaker_dependent",
            seed=0,
            cache=folder / "cache",
        )
    result = {
        "clips": len(federation.clips),
        "synthesis_clips_per_s": round(clips / writing, 1),
        "check_clips_per_s": round(clips / checking, 1),
        "log_mel_clips_per_s": round(clips / extracting, 1),
        "statistics_clips_per_s": round(clips / pooling, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "commit": runs.commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9365)
