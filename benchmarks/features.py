"""Claim: on two CPU cores the embedded corpus is written at 100 clips/s or more, log-Mels are
extracted at 200 clips/s or more from 16 kHz files, and at DEMoS's size (9,365 clips) the whole way
from files to pooled statistics stays below 1.5 GB of memory.

    python benchmarks/features.py [--quick] [--clips 9365]
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from report import figure, options, save

from fedser_utils.core.presets import load_settings
from fedser_utils.data import corpora, federation, log_mel, synthetic_speech


def timed(function, *arguments, **options):
    """Return the function's result and its seconds."""
    start = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - start


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clips", type=int)
    given = parser.parse_args()
    clips = given.clips or (560 if given.quick else 9365)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        speakers = min(68, clips // 14)
        root, writing = timed(synthetic_speech.write_corpus, folder, speakers=speakers, clips=clips)
        corpus, checking = timed(corpora.load_corpus, root)
        arguments = corpus.root, list(corpus.clips["path"]), list(corpus.clips["digest"])
        _, extracting = timed(log_mel.cached_log_mels, *arguments, cache=folder / "cache")
        size = {"speakers": speakers, "clips": clips, "outputs": str(folder)}
        settings = load_settings("paper", **size)
        _, pooling = timed(federation.federate, corpus, settings)
    steps = {"synthesis": writing, "check": checking, "log_mel": extracting, "statistics": pooling}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [{"step": step, "clips_per_s": clips / seconds} for step, seconds in steps.items()]
    what = "Log-Mels from 16 kHz files"
    figures = [figure("log_mel_clips_per_s", clips / extracting, what)]
    figures.append(figure("features_memory_gb", memory, f"Memory from {clips:,} files to features"))
    save("features", "cpu", __doc__.split("\n\n")[0], rows, figures, given=given, clips=clips)


if __name__ == "__main__":
    main()
