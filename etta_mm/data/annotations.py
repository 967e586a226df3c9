"""Annotations in COCO's format: read, and checked for what mmdet asks of them.
"""
import json
import logging
from typing import List, Sequence

from mmengine.logging import print_log

from ..listing import listing

#: Why mmdet drops an annotation.
DROPPED = ('area 0, smaller than a pixel, such as coordinates normalised to '
           '[0, 1], outside of the image, or `ignore`')


def read_coco(path: str, name: str) -> dict:
    """The content of an annotation file in COCO's format.

    Args:
        path (str): The file, which exists.
        name (str): Where what reads it stands in the config.

    Raises:
        ValueError: If it is in another format.
    """
    with open(path, encoding='utf-8') as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(
                f'{name}: {path} is not a JSON file: {error}. '
                'Give one in COCO\'s format.') from error
    if not isinstance(content, dict) or not {'images', 'categories'
                                             } <= content.keys():
        raise ValueError(
            f'{name}: {path} is not in COCO\'s format, which has '
            'the lists "images", "annotations" and "categories". Convert it, '
            'or name the type of data set that reads it.')
    return content


def check_annotated(content: dict, classes: Sequence[str], path: str,
                    name: str) -> None:
    """Raise ``ValueError`` unless there is something to find in the images.

    Args:
        content (dict): What :func:`read_coco` returns.
        classes (Sequence[str]): Names.
        path (str): The annotation file.
        name (str): Where what reads it stands in the config.
    """
    if annotated(content, classes):
        return
    number = len(content.get('annotations', ()))
    if not number:
        raise ValueError(
            f'{name}: {path} has no annotations, so that there is nothing to '
            'learn or to compare with. Give a file that has some.')
    raise ValueError(
        f'{name}: none of the {number} annotations of {path} has an image_id '
        f'of its images and a category_id of {listing(classes)}. Ids that are '
        'texts on one side and numbers on the other differ.')


def check_keys(content: dict, kind: str, keys: Sequence[str], path: str,
               name: str) -> None:
    """Raise ``ValueError`` unless each image or annotation has what is read.

    Args:
        content (dict): What :func:`read_coco` returns.
        kind (str): ``images`` or ``annotations``.
        keys (Sequence[str]): What each of them must have.
        path (str): The annotation file.
        name (str): Where what reads it stands in the config.
    """
    for number, item in enumerate(content.get(kind, ())):
        absent = [key for key in keys if key not in item]
        if absent:
            raise ValueError(
                f'{name}: {path} lacks {listing(absent)} of {kind}[{number}]. '
                f"COCO's format asks for {', '.join(keys)} of each.")


def annotated(content: dict, classes: Sequence[str]) -> set:
    """The ids of the images that have annotations of these classes.

    Args:
        content (dict): What :func:`read_coco` returns.
        classes (Sequence[str]): Names.
    """
    used = {c['id'] for c in content['categories'] if c['name'] in classes}
    images = {item['id'] for item in content['images']}
    return images & {
        item['image_id']
        for item in content.get('annotations', ())
        if item['category_id'] in used
    }


def check_boxes(content: dict, classes: Sequence[str], images: List[dict],
                path: str, name: str) -> None:
    """Raise ``ValueError`` unless there are boxes to train on.

    mmdet passes over the others in silence, and their images are background.
    Where these are most, it is warned of.

    Source: mmdet 3.5.1 (OneDL) `datasets/coco.py:CocoDataset.parse_data_info`.

    Args:
        content (dict): What :func:`read_coco` returns, with all keys.
        classes (Sequence[str]): Names.
        images (list[dict]): Those of its images that are trained on.
        path (str): The annotation file.
        name (str): Where what reads it stands in the config.
    """
    sizes = {item['id']: (item['width'], item['height']) for item in images}
    used = {c['id'] for c in content['categories'] if c['name'] in classes}
    total = kept = crowds = 0
    for number, item in enumerate(content.get('annotations', ())):
        if item['image_id'] not in sizes:
            continue
        if not (item.get('ignore') or isinstance(item['bbox'], list)
                and len(item['bbox']) == 4
                and all(isinstance(n, (int, float)) for n in item['bbox'])):
            raise ValueError(
                f'{name}: {path} has the bbox {item["bbox"]!r:.60} in '
                f'annotations[{number}], but must have four numbers there: x '
                'and y of the upper left corner, width and height, in pixels.')
        if item['category_id'] in used:
            total += 1
            if _is_kept(item, *sizes[item['image_id']]):
                kept += 1
                crowds += bool(item.get('iscrowd'))
    if total and kept == crowds:
        raise ValueError(
            f'{name}: none of the {total} annotations of {path} has a box to '
            f'train on: mmdet drops {total - kept} ({DROPPED}), and {crowds} '
            'are crowds, which train nothing. Give boxes as [x, y, width, '
            'height] in pixels, and their area.')
    if kept < total / 2:
        print_log(
            f'{name}: mmdet keeps the boxes of only {kept} of the {total} '
            f'annotations of {path} and drops the others ({DROPPED}): what '
            'they show counts as background.', 'current', logging.WARNING)


def _is_kept(annotation: dict, width: float, height: float) -> bool:
    if annotation.get('ignore'):
        return False
    x, y, w, h = annotation['bbox']
    return (min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
            and w >= 1 and h >= 1 and annotation['area'] > 0)
