"""What several tests share: a tiny federation, real speech where it is at hand."""

import os
from pathlib import Path

import pytest
import torch

from fedser_utils import config, partition

SHARED = Path(os.environ.get("FEDSER_SHARED", config.ROOT.parent / "shared")) / "data"


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def speech():
    """The folder of real corpora beside the project: ``emovo``, ``ravdess``, DEMoS's names."""
    if not SHARED.is_dir():
        pytest.skip(f"real speech is not at hand: no {SHARED.name} folder; set FEDSER_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def tiny(outputs):
    """Settings of seconds: 3 speakers, 63 clips, a VGG-15 of 1 to 16 channels."""
    return config.load_settings(
        "smoke", outputs=str(outputs), width=1 / 32, rounds=2, eval_every=1, precision="fp32"
    )


@pytest.fixture(scope="session")
def federation(tiny):
    return partition.load_federation(tiny)
