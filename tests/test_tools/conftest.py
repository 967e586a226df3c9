"""Glyphs on disk, once a session."""
import pytest

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
