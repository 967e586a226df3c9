"""Which pictures a folder holds, and which files a result may not be."""
from pathlib import Path

import mmcv
import numpy as np
import pytest

from etta_mm.inference.media import (IMAGE_SUFFIXES, check_targets,
                                     find_images, read_image)


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found(source, out_dir):
    return [str(path) for path in find_images(Path(source), Path(out_dir))]


@pytest.mark.parametrize('out_dir', ['outputs', 'outputs/frames', '.', '..'])
def test_a_source_below_the_folder_of_results_is_found(out_dir):
    touch('outputs/frames/a.png')
    assert found('outputs/frames', out_dir) == ['outputs/frames/a.png']


def test_results_below_the_source_are_left_out_and_nothing_else():
    touch('in/a.png', 'in/out/b.png', 'in/out/vis/a.png', 'in/out/vis/out/b.png',
          'in/out/preds/c.png', 'in/vis/d.png')
    assert found('in', 'in/out') == ['in/a.png', 'in/out/b.png',
                                     'in/vis/d.png']


def test_results_can_be_read_where_they_are_named():
    touch('outputs/vis/a.png', 'outputs/vis/deeper/b.png')
    assert found('outputs/vis', 'outputs') == [
        'outputs/vis/a.png', 'outputs/vis/deeper/b.png']
    assert found('outputs/vis/deeper', 'outputs') == [
        'outputs/vis/deeper/b.png']


def test_a_target_that_is_a_source_is_refused_however_it_is_called():
    touch('a/x.png')
    Path('b').symlink_to('a')
    check_targets([Path('a/x.png')], [Path('a/y.png')])
    for target in ('a/x.png', 'b/x.png', 'a/../a/x.png'):
        with pytest.raises(ValueError, match='--out-dir'):
            check_targets([Path('a/x.png')], [Path(target)])


@pytest.mark.parametrize('suffix', IMAGE_SUFFIXES)
def test_a_picture_that_can_be_read_can_be_drawn(suffix):
    path = Path(f'picture{suffix}')
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    mmcv.imwrite(image, str(path))
    assert read_image(path).shape == image.shape
