"""What every test stands on: no network, no account, one torch thread, the same random numbers each time."""

import os

# Read by the libraries when they are imported, hence before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_X_SAVE_REQUIREMENTS"] = "false"  # listing every installed package takes longer than most tests
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Workers of pytest-xdist must not fight over the cores. ATTNGUIDE_TEST_THREADS=2 shows that nothing hangs on the order of sums.
os.environ["OMP_NUM_THREADS"] = os.environ.get("ATTNGUIDE_TEST_THREADS", "1")
os.environ["MKL_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
settings.register_profile("attnguide", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("attnguide")


@pytest.fixture(scope="session", autouse=True)
def _logger_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B and trackio write beside the working directory and under the home folder unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKIO_DIR", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random weights of tiny models do not depend on which tests ran before."""
    torch.manual_seed(0)
