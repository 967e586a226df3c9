"""Glyphs: what is written, and that a seed fixes it."""
import hashlib
import json
import shutil
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from etta_mm.data import CLASSES, make_glyphs
from etta_mm.data.glyph_sources import (FONTS, SPLITS, digit_indices,
                                        printed_glyphs)
from etta_mm.data.glyphs import BOX_ALPHA, DOMAINS, MAX_GLYPHS, _draw_mask

NUM_IMAGES = 24


def _digest(root) -> dict:
    return {
        str(path.relative_to(root)):
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*')) if path.is_file()
    }


def _annotations(root, domain: str, split: str) -> dict:
    home = root / 'detection' / domain / 'annotations'
    return json.loads((home / f'{split}.json').read_text())


@pytest.mark.parametrize('task', ['detection', 'classification'])
def test_a_seed_fixes_every_byte_however_many_processes_write(tmp_path, task):
    for folder, num_workers in (('one', 1), ('two', 2)):
        make_glyphs(
            tmp_path / folder,
            task,
            'handwritten',
            'val',
            NUM_IMAGES,
            seed=3,
            num_workers=num_workers)
    assert _digest(tmp_path / 'one') == _digest(tmp_path / 'two')


def test_another_seed_draws_other_images(tmp_path):
    for seed in (0, 1):
        make_glyphs(
            tmp_path / str(seed),
            'detection',
            'printed',
            'val',
            4,
            seed=seed,
            num_workers=1)
    first, second = (_digest(tmp_path / seed) for seed in '01')
    assert not set(first.values()) & set(second.values())


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path):
    for num in (3, 6):
        make_glyphs(
            tmp_path / str(num),
            'detection',
            'printed',
            'train',
            num,
            num_workers=1)
    small, large = (_digest(tmp_path / num) for num in '36')
    images = [name for name in small if name.endswith('.jpg')]
    assert len(images) == 3
    assert all(small[name] == large[name] for name in images)


def test_no_source_digit_is_in_two_splits():
    splits = [set(digit_indices(split)) for split in SPLITS]
    assert not any(a & b for a, b in combinations(splits, 2))
    assert set.union(*splits) == set(range(len(load_digits().target)))


def test_every_split_has_every_digit():
    target = load_digits().target
    for split in SPLITS:
        assert set(target[digit_indices(split)]) == set(range(10))


@pytest.mark.parametrize('domain', DOMAINS)
def test_boxes_lie_in_the_image_and_do_not_overlap(tmp_path, domain):
    make_glyphs(
        tmp_path, 'detection', domain, 'train', NUM_IMAGES, num_workers=1)
    coco = _annotations(tmp_path, domain, 'train')
    assert [c['name'] for c in coco['categories']] == list(CLASSES)
    by_image = {image['id']: [] for image in coco['images']}
    for annotation in coco['annotations']:
        by_image[annotation['image_id']].append(annotation['bbox'])
    assert len(by_image) == NUM_IMAGES
    for boxes in by_image.values():
        assert 1 <= len(boxes) <= MAX_GLYPHS
        for x, y, w, h in boxes:
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= 112 and y + h <= 112
        for (x, y, w, h), (X, Y, W, H) in combinations(boxes, 2):
            assert x >= X + W or X >= x + w or y >= Y + H or Y >= y + h


def test_handwritten_has_only_digits(tmp_path):
    make_glyphs(
        tmp_path,
        'detection',
        'handwritten',
        'train',
        NUM_IMAGES,
        num_workers=1)
    coco = _annotations(tmp_path, 'handwritten', 'train')
    assert {a['category_id'] for a in coco['annotations']} <= set(range(10))


def test_classification_images_lie_in_the_folder_of_their_class(tmp_path):
    folder = make_glyphs(
        tmp_path,
        'classification',
        'printed',
        'val',
        NUM_IMAGES,
        num_workers=1)
    assert sorted(p.name for p in folder.iterdir()) == list(CLASSES)
    images = list(folder.glob('*/*.jpg'))
    assert len(images) == NUM_IMAGES
    assert {Image.open(image).size for image in images} == {(32, 32)}


def test_a_smaller_set_written_over_a_larger_one_leaves_nothing(tmp_path):
    for num in (8, 3):
        folder = make_glyphs(
            tmp_path, 'classification', 'printed', 'val', num, num_workers=1)
    assert len(list(folder.glob('*/*.jpg'))) == 3


def test_the_box_is_tight_around_the_glyph():
    masters = printed_glyphs()
    rng = np.random.default_rng(0)
    for name in '1IWQ7':
        mask = _draw_mask(rng, masters[name][0], 48)
        visible = mask >= BOX_ALPHA / 255 / 2
        # No border row or column without the glyph.
        for edge in (visible[0], visible[-1], visible[:, 0], visible[:, -1]):
            assert edge.any()
        assert max(mask.shape) == 48


def test_every_font_draws_36_different_characters():
    glyphs = printed_glyphs()
    for index in range(len(glyphs['0'])):
        drawn = {glyphs[name][index].tobytes() for name in CLASSES}
        assert len(drawn) == len(CLASSES)


def test_a_font_that_matplotlib_lacks_is_left_out_and_said(
        tmp_path, monkeypatch):
    fonts = Path(matplotlib.get_data_path()) / 'fonts/ttf'
    there = [name for name in FONTS if (fonts / f'{name}.ttf').exists()]
    (tmp_path / 'fonts/ttf').mkdir(parents=True)
    for name in there[1:]:
        shutil.copy(fonts / f'{name}.ttf', tmp_path / 'fonts/ttf')
    monkeypatch.setattr(matplotlib, 'get_data_path', lambda: str(tmp_path))
    with pytest.warns(UserWarning, match=f'lacks {there[0]}'):
        glyphs = printed_glyphs.__wrapped__()  # whatever is cached
    assert {len(masks) for masks in glyphs.values()} == {len(there) - 1}


@pytest.mark.parametrize('wrong', [
    dict(task='segmentation'),
    dict(domain='engraved'),
    dict(split='training'),
    dict(num_images=0),
    dict(image_size=8),
])
def test_a_wrong_argument_is_named_before_anything_is_written(tmp_path, wrong):
    given = dict(
        root=tmp_path / 'glyphs',
        task='detection',
        domain='printed',
        split='val',
        num_images=1)
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        make_glyphs(**{**given, **wrong})
    assert not (tmp_path / 'glyphs').exists()


def test_what_is_read_meanwhile_is_never_missing(tmp_path, monkeypatch):
    """A file makes way for the new one alone, and a failure for none."""
    folder = make_glyphs(tmp_path, 'detection', 'printed', 'val', 3,
                         num_workers=1)
    before = _digest(tmp_path)
    monkeypatch.setattr(Image.Image, 'save', _fail)
    with pytest.raises(OSError, match='full'):
        make_glyphs(tmp_path, 'detection', 'printed', 'val', 2, num_workers=1)
    assert _digest(tmp_path) == before
    monkeypatch.undo()
    make_glyphs(tmp_path, 'detection', 'printed', 'val', 2, num_workers=1)
    assert sorted(p.name for p in folder.iterdir()) == [
        '000000.jpg', '000001.jpg'
    ]


def _fail(self, path, **kwargs):
    path.touch()
    raise OSError('the disk is full')
