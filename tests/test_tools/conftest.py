"""Glyphs on disk and a detector trained on them, once a session."""
import pytest
from runs import detection_config, fork_tool, save_base

from etta_mm.data import make_glyphs

NUM_IMAGES = dict(train=12, val=4, test=4)


@pytest.fixture(scope='session')
def glyphs(tmp_path_factory):
    """The root of a small printed Glyphs, for both tasks."""
    root = tmp_path_factory.mktemp('glyphs')
    for task in ('detection', 'classification'):
        for split, num_images in NUM_IMAGES.items():
            make_glyphs(
                root, task, 'printed', split, num_images, num_workers=1)
    return root


@pytest.fixture(scope='session')
def trained(glyphs, tmp_path_factory):
    """A detector trained by tools/train.py: (config, work dir, output).

    Its base is ``base.pth`` beside the config.
    """
    folder = tmp_path_factory.mktemp('trained')
    config = detection_config(folder / 'tiny_detector.py', glyphs)
    base = save_base(config, folder / 'base.pth')
    printed = fork_tool(
        'train', config, '--cfg-options', f'load_from={base}', cwd=folder)
    return config, folder / 'work_dirs/tiny_detector', printed
