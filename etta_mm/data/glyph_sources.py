"""What Glyphs are drawn from: fonts of matplotlib and digits of scikit-learn."""
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Dict, List

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = tuple('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ')
SPLITS = ('train', 'val', 'test')

#: Fonts of matplotlib that draw all 36 characters as letters and digits; before
#: 3.11 it has no cmti10.
FONTS = ('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique',
         'DejaVuSans-BoldOblique', 'DejaVuSansMono', 'DejaVuSansMono-Bold',
         'DejaVuSansMono-Oblique', 'DejaVuSansMono-BoldOblique', 'DejaVuSerif',
         'DejaVuSerif-Bold', 'DejaVuSerif-Italic', 'DejaVuSerif-BoldItalic',
         'STIXGeneral', 'STIXGeneralBol', 'STIXGeneralItalic',
         'STIXGeneralBolIta', 'cmb10', 'cmr10', 'cmss10', 'cmti10', 'cmtt10')

MASTER_HEIGHT = 72  # pixels at which the glyphs are held before scaling
# Shares of the handwritten source digits, in the order of SPLITS.
_SOURCE_SHARES = (0.55, 0.15, 0.30)


def digit_indices(split: str, seed: int = 0) -> np.ndarray:
    """Indices into ``sklearn.datasets.load_digits()`` that ``split`` may use.

    The three splits are disjoint and together hold all 1,797 digits.
    """
    order = np.random.default_rng([seed, 1797]).permutation(1797)
    ends = np.rint(np.cumsum(_SOURCE_SHARES) * len(order)).astype(int)
    return np.split(order, ends[:-1])[SPLITS.index(split)]


@lru_cache(maxsize=None)
def printed_glyphs() -> Dict[str, List[Image.Image]]:
    """Masks of each character, one for each font that is there."""
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    glyphs = {name: [] for name in CLASSES}
    paths = {name: folder / f'{name}.ttf' for name in FONTS}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        warnings.warn(f'matplotlib {matplotlib.__version__} lacks '
                      f'{", ".join(missing)}, so that printed images are '
                      'others than those of the shipped bases')
    for font_name in FONTS:
        if font_name in missing:
            continue
        font = ImageFont.truetype(str(paths[font_name]), MASTER_HEIGHT)
        for name in CLASSES:
            left, top, right, bottom = font.getbbox(name)
            mask = Image.new('L', (right - left, bottom - top))
            ImageDraw.Draw(mask).text((-left, -top), name, 255, font)
            glyphs[name].append(mask)
    return glyphs


@lru_cache(maxsize=None)
def handwritten_glyphs(split: str, seed: int) -> Dict[str, List[Image.Image]]:
    """Masks of each digit, one for each that ``split`` may use."""
    from sklearn.datasets import load_digits  # not for those who only train
    digits = load_digits()
    glyphs = {name: [] for name in CLASSES}
    for index in digit_indices(split, seed):
        pixels = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
        mask = Image.fromarray(pixels).resize(
            (MASTER_HEIGHT, MASTER_HEIGHT), Image.BICUBIC)
        glyphs[CLASSES[digits.target[index]]].append(mask)
    return glyphs
