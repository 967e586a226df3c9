"""Glyphs: the embedded benchmark, made from what the installed packages carry.

Two domains share one label set, the 36 characters ``0-9A-Z``:

- *printed*: the characters drawn in the fonts that matplotlib ships;
- *handwritten*: the 1,797 handwritten digits that scikit-learn ships (so only
  the first ten classes occur).

Glyphs of both are scaled, rotated by up to 25 degrees, coloured against their
ground and laid on crops of scikit-learn's two photographs. A detection image
holds one to five of them and is written as JPEG plus one COCO JSON a split; a
classification image holds one and is written into a folder named by its class.

The handwritten digits are split by source image before anything is drawn: a
digit that occurs in ``test`` occurs in no other split. Every image is drawn
from its own generator, seeded by (seed, task, domain, split, index), so the
files do not depend on how many processes wrote them, and a smaller set is the
beginning of a larger one.
"""
import json
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

import numpy as np
from PIL import Image

from .glyph_sources import (CLASSES, SPLITS, handwritten_glyphs,
                            printed_glyphs)

TASKS = ('detection', 'classification')
DOMAINS = ('printed', 'handwritten')

#: Images of the default set, by (task, domain) and in the order of ``SPLITS``.
DEFAULT_SIZES = {
    ('detection', 'printed'): (16000, 500, 500),
    ('detection', 'handwritten'): (600, 300, 500),
    ('classification', 'printed'): (40000, 1000, 2000),
    ('classification', 'handwritten'): (4000, 500, 2000),
}
#: Side of the square images in pixels, by task.
IMAGE_SIZES = {'detection': 112, 'classification': 32}

MAX_ANGLE = 25.  # degrees
MAX_GLYPHS = 5
# The alpha at which a pixel counts as part of the glyph, for its box.
BOX_ALPHA = 64
MIN_CONTRAST = 60.  # of 255, luma of the glyph against its ground
JPEG_QUALITY = 92

_LUMA = np.array([0.299, 0.587, 0.114])


@lru_cache(maxsize=None)
def _photographs() -> List[Image.Image]:
    from sklearn.datasets import load_sample_images
    return [Image.fromarray(image) for image in load_sample_images().images]


def _draw_ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """A random square crop of a photograph, (side, side, 3), RGB, float."""
    photograph = _photographs()[rng.integers(2)]
    crop = int(rng.integers(64, 321))
    left = int(rng.integers(photograph.width - crop + 1))
    top = int(rng.integers(photograph.height - crop + 1))
    ground = photograph.resize(
        (side, side), Image.BILINEAR, (left, top, left + crop, top + crop))
    if rng.random() < 0.5:
        ground = ground.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(ground, dtype=np.float64)


def _draw_mask(rng: np.random.Generator, master: Image.Image,
               longer_side: int) -> np.ndarray:
    """Rotate, crop and scale a glyph; its alpha has shape (h, w), 0 to 1."""
    mask = master.rotate(
        rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.BICUBIC, expand=True)
    mask = mask.crop(mask.point(lambda v: 255 * (v >= BOX_ALPHA)).getbbox())
    scale = longer_side / max(mask.size)
    size = [max(4, round(s * scale)) for s in mask.size]
    return np.asarray(mask.resize(size, Image.BOX), dtype=np.float64) / 255


def _lay(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray,
         left: int, top: int) -> None:
    """Paint ``mask`` into ``image`` in a colour that its ground contrasts."""
    height, width = mask.shape
    patch = image[top:top + height, left:left + width]
    ground = patch.mean((0, 1)) @ _LUMA
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour @ _LUMA - ground) >= MIN_CONTRAST:
            break
    patch += mask[..., None] * (colour - patch)


def _draw_detection(rng: np.random.Generator, glyphs, names: Sequence[str],
                    side: int) -> Tuple[np.ndarray, List[dict]]:
    """An image and its objects: ``name`` and ``bbox`` (x, y, w, h) in pixels,
    x and y of the upper left corner."""
    image = _draw_ground(rng, side)
    objects = []
    for _ in range(int(rng.integers(1, MAX_GLYPHS + 1))):
        name = names[rng.integers(len(names))]
        master = glyphs[name][rng.integers(len(glyphs[name]))]
        for _ in range(20):  # a full image holds what fits
            mask = _draw_mask(rng, master,
                              int(rng.integers(side // 5, side // 2)))
            height, width = mask.shape
            left = int(rng.integers(side - width + 1))
            top = int(rng.integers(side - height + 1))
            if all(left >= x + w or x >= left + width or top >= y + h
                   or y >= top + height
                   for x, y, w, h in (o['bbox'] for o in objects)):
                _lay(rng, image, mask, left, top)
                objects.append(
                    dict(name=name, bbox=[left, top, width, height]))
                break
    return image, objects


def _draw_classification(rng: np.random.Generator, glyphs,
                         names: Sequence[str],
                         side: int) -> Tuple[np.ndarray, str]:
    image = _draw_ground(rng, side)
    name = names[rng.integers(len(names))]
    master = glyphs[name][rng.integers(len(glyphs[name]))]
    mask = _draw_mask(rng, master, int(rng.integers(side * 5 // 8, side - 1)))
    height, width = mask.shape
    _lay(rng, image, mask, int(rng.integers(side - width + 1)),
         int(rng.integers(side - height + 1)))
    return image, name


def _write_image(folder: Path, task: str, domain: str, split: str, side: int,
                 seed: int, index: int):
    """Draw and write image ``index``; what its annotation needs."""
    rng = np.random.default_rng([
        seed,
        TASKS.index(task),
        DOMAINS.index(domain),
        SPLITS.index(split), index
    ])
    if domain == 'printed':
        glyphs = printed_glyphs()
    else:
        glyphs = handwritten_glyphs(split, seed)
    names = [name for name in CLASSES if glyphs[name]]
    draw = _draw_detection if task == 'detection' else _draw_classification
    image, truth = draw(rng, glyphs, names, side)
    if task == 'classification':
        folder = folder / truth
    drawn = Image.fromarray(np.rint(image).clip(0, 255).astype(np.uint8))
    with _replaced(folder / f'{index:06d}.jpg') as part:
        drawn.save(part, format='JPEG', quality=JPEG_QUALITY)
    return truth


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path``, all at once: a training
    may be reading it. Not synced, unlike a checkpoint: it can be made again."""
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _coco(truths: Sequence[List[dict]], side: int) -> dict:
    """The objects of a split in COCO's annotation format."""
    annotations = []
    for image_id, objects in enumerate(truths):
        for item in objects:
            width, height = item['bbox'][2:]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=CLASSES.index(item['name']),
                    bbox=item['bbox'],
                    area=width * height,
                    iscrowd=0))
    return dict(
        images=[
            dict(id=i, file_name=f'{i:06d}.jpg', width=side, height=side)
            for i in range(len(truths))
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)])


def make_glyphs(root,
                task: str,
                domain: str,
                split: str,
                num_images: int,
                seed: int = 0,
                image_size: int = None,
                num_workers: int = None) -> Path:
    """Write one split of Glyphs below ``root`` and return its image folder.

    Images are ``root/task/domain/split/000000.jpg`` (classification: one more
    folder, the class); detection adds
    ``root/task/domain/annotations/split.json``.

    Args:
        root (str | Path): Folder of the data set; made if absent.
        task (str): 'detection' or 'classification'.
        domain (str): 'printed' or 'handwritten'.
        split (str): 'train', 'val' or 'test'.
        num_images (int): Number of images.
        seed (int): Fixes every byte that is written.
        image_size (int, optional): Side of the images in pixels. Defaults to
            112 for detection and 32 for classification.
        num_workers (int, optional): Processes. Defaults to the cores.

    Raises:
        ValueError: If an argument is none of the values allowed.
    """
    for name, value, allowed in (('task', task, TASKS),
                                 ('domain', domain, DOMAINS),
                                 ('split', split, SPLITS)):
        if value not in allowed:
            raise ValueError(
                f'{name}={value!r} is none of {", ".join(allowed)}')
    side = IMAGE_SIZES[task] if image_size is None else image_size
    if num_images < 1 or side < 16:
        raise ValueError(f'num_images={num_images} must be at least 1 and '
                         f'image_size={side} at least 16')
    home = Path(root) / task / domain
    folder = home / split
    classes = CLASSES if task == 'classification' else ('', )
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    write = partial(_write_image, folder, task, domain, split, side, seed)
    num_workers = num_workers or os.cpu_count()
    if num_workers == 1:
        truths = [write(i) for i in range(num_images)]
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            truths = list(pool.map(write, range(num_images), chunksize=64))
    if task == 'detection':
        (home / 'annotations').mkdir(exist_ok=True)
        with _replaced(home / 'annotations' / f'{split}.json') as part:
            part.write_text(json.dumps(_coco(truths, side)))
        truths = [''] * num_images
    # What an earlier, larger set left there would be read as well.
    made = {folder / name / f'{i:06d}.jpg' for i, name in enumerate(truths)}
    for stale in {*folder.rglob('*.jpg')} - made:
        stale.unlink()
    return folder
