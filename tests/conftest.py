"""What every test starts from: quiet logs, one thread, a fixed seed."""
import gc
import logging
import sys
import warnings
from pathlib import Path

import mmdet.models  # noqa: F401  (fills mmdet's registry)
import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

import etta_mm  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # tests import hosts
# The sizes are so small that a second thread only costs.
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: needs a GPU')


@pytest.fixture(scope='module', autouse=True)
def collections_look_at_this_module():
    """What the imports and other modules left alive is no garbage: millions of
    objects, at which no collection need look again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet_and_seeded():
    """A fixed seed for every test, only errors in mmengine's log, no scope."""
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    logging.disable(logging.NOTSET)
    MMLogger._instance_dict.clear()
    # A Runner leaves these behind, and the next one would take them.
    DefaultScope._instance_dict.clear()
    Visualizer._instance_dict.clear()
