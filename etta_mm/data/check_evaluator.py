"""The metrics of a config, checked against the data before a run starts."""
import os.path as osp
from typing import Optional

from mmdet.datasets import CocoDataset
from mmengine.registry import METRICS

from ..listing import listing
from .annotations import check_annotated, check_keys, read_coco
from .classes import classes_of
from .config_type import found_type, unscoped_name
from .file import check_file
from .unread import is_remote, leaves, unread

#: What mmdet's ``CocoMetric`` gives of boxes and of masks.
COCO_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def check_evaluator(evaluator,
                    name: str = 'evaluator',
                    dataset: Optional[dict] = None,
                    content: Optional[dict] = None) -> None:
    """Check that the metrics are for the data.

    With annotations of other images than those that are predicted, the AP is
    0 or the run ends after its first epoch, as it does where the five best of
    three classes are asked for (``topk``). A ``CocoMetric`` is compared with
    a data set that reads as ``CocoDataset``: by the file, or if that is
    another, by images, classes and boxes.

    Args:
        evaluator (dict | list[dict]): Config of one or several metrics.
        name (str): Where it stands in the config, for the message.
        dataset (dict, optional): Config of the data set that is evaluated.
        content (dict, optional): What its annotation file holds, as
            :func:`~etta_mm.data.check.check_dataset` returns it. Defaults to
            None, to be read if it is needed.

    Raises:
        FileNotFoundError: If a metric's ``ann_file`` is missing.
        ValueError: If it annotates other data, or a ``topk`` is larger than the
            number of classes.
    """
    inside = [unread(leaf) for leaf, _ in leaves(dataset)]
    for metric in _metrics(evaluator):
        if len(inside) == 1:
            _check_topk(metric, classes_of(inside[0]), name)
        if not (isinstance(metric, dict)
                and isinstance(metric.get('ann_file'), str)
                and not is_remote(metric)):
            continue
        check_file(
            metric['ann_file'], f'The annotation file of {name}',
            f'Set {name}.ann_file, usually to that of the data set that '
            'is evaluated.')
        # Of several data sets, each may have a metric of its own.
        if (len(inside) == 1 and isinstance(inside[0], CocoDataset)
                and _is_a(metric, 'mmdet.CocoMetric')
                and not metric.get('format_only')):
            if content is None:
                content = read_coco(inside[0].ann_file, name)
            _check_annotations(metric['ann_file'], inside[0], content, name)


def check_save_best(hooks: Optional[dict], evaluator,
                    loop: Optional[dict] = None) -> None:
    """Check the names of the metrics by which the best checkpoint is kept.

    A run would end at its first validation where none is called so.

    Args:
        hooks (dict, optional): ``default_hooks`` of a config.
        evaluator (dict | list[dict]): ``val_evaluator`` of the config.
        loop (dict, optional): ``val_cfg`` of the config.

    Raises:
        ValueError: If no metric has the name: by what it begins with or, of a
            ``CocoMetric`` and ``Accuracy``, as a whole.
    """
    has_type = isinstance(evaluator, dict) and 'metrics' in evaluator
    if not _is_plain(loop, 'ValLoop') or (
            has_type and not _is_plain(evaluator, 'Evaluator')):
        return  # others may put names of their own before those of the metrics
    names = ((hooks or {}).get('checkpoint') or {}).get('save_best') or ()
    there = []
    for metric in _metrics(evaluator):
        host = found_type(metric, METRICS) if isinstance(metric, dict) else None
        if host is None:  # what is not known may have any names
            return
        prefix = metric.get('prefix') or getattr(host, 'default_prefix', None)
        if prefix is None:
            return
        there += [f'{prefix}/{name}' for name in _names(metric)]
    for best in [names] if isinstance(names, str) else names:
        if there and best != 'auto' and not any(
                best == name or name.endswith('/') and best.startswith(name)
                for name in there):
            raise ValueError(
                f'default_hooks.checkpoint.save_best={best!r}: what '
                'val_evaluator measures is called '
                f'{_joined(there)}. Write one of these, or '
                "'auto' for the first that there is.")


def _names(metric: dict) -> list:
    """What a metric measures, behind its prefix; [''] if it may be anything."""
    if _is_exactly(metric, 'mmpretrain.Accuracy'):
        thresholds = _listed(metric.get('thrs', 0.))
        several = len(thresholds) > 1
        return [
            f'top{k}' + (('_no-thr' if threshold is None else
                          f'_thr-{threshold:.2f}') if several else '')
            for k in _listed(metric.get('topk', 1))
            for threshold in thresholds
        ]
    if _is_exactly(metric, 'mmdet.CocoMetric') and not metric.get('classwise'):
        kinds = _listed(metric.get('metric', 'bbox'))
        items = metric.get('metric_items') or COCO_ITEMS
        if {'bbox', 'segm'}.issuperset(kinds):
            return [f'{kind}_{item}' for kind in kinds for item in items]
    return ['']


def _joined(names: list) -> str:
    return ', '.join(
        f'{name}...' if name.endswith('/') else name for name in names)


def _listed(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_plain(cfg: Optional[dict], default: str) -> bool:
    """Whether a config has no type or mmengine's ``default``."""
    return unscoped_name(cfg) in ('', default)


def _metrics(evaluator) -> list:
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', evaluator)
    if evaluator is None:
        return []
    return list(evaluator) if isinstance(evaluator,
                                         (list, tuple)) else [evaluator]


def _is_exactly(metric: dict, name: str) -> bool:
    return found_type(metric, METRICS) is found_type(dict(type=name), METRICS)


def _is_a(metric: dict, name: str) -> bool:
    # By name: importing mmdet's metrics warns of a package that is optional.
    host = found_type(metric, METRICS)
    return isinstance(host, type) and issubclass(
        host, found_type(dict(type=name), METRICS))


def _check_topk(metric, classes, name: str) -> None:
    if not (isinstance(metric, dict) and classes and metric.get('topk')
            and _is_a(metric, 'mmpretrain.Accuracy')):
        return
    topk = metric['topk']
    most = max(topk) if isinstance(topk, (list, tuple)) else topk
    if most > len(classes):
        raise ValueError(
            f'{name}.topk={topk} asks for the {most} best of {len(classes)} '
            f'classes ({listing(classes)}). Set it to at most {len(classes)}, '
            'such as (1, ).')


def _check_annotations(path: str, dataset: CocoDataset, content: dict,
                       name: str) -> None:
    classes = dataset.metainfo['classes']
    if not osp.samefile(path, dataset.ann_file):
        ours, content = content, read_coco(path, name)
        difference = _difference(content, ours, classes)
        if difference is not None:
            raise ValueError(
                f'{name}.ann_file={path!r} annotates other data than what is '
                f'evaluated, {dataset.ann_file!r}: {difference}. Set {name}.'
                'ann_file to the latter, or the data set to the former.')
    check_annotated(content, classes, path, name)
    # pycocotools asks for it where it compares boxes.
    check_keys(content, 'annotations', ('iscrowd', ), path, name)


def _difference(theirs: dict, ours: dict, classes) -> Optional[str]:
    """What says that two files annotate different data; None if nothing."""
    images = [{(item['id'], osp.basename(item['file_name']))
               for item in content['images']} for content in (theirs, ours)]
    for here, there, side in ((*images, 'former'), (*images[::-1], 'latter')):
        if here - there:
            names = [f'{file} (id {id})'
                     for id, file in sorted(here - there, key=str)]
            return (f'{len(names)} of {len(here)} images are in the {side} '
                    f'only: {listing(names)}')
    names = [[item['name'] for item in content['categories']
              if item['name'] in classes] for content in (theirs, ours)]
    if names[0] != names[1]:
        return (f'the former has the classes {listing(names[0])}, the latter '
                f'{listing(names[1])}')
    # Files of a split are often numbered from 0, so names say little.
    boxes = [{(item['image_id'], *item.get('bbox', ()))
              for item in content.get('annotations', ())}
             for content in (theirs, ours)]
    if all(boxes) and not boxes[0] & boxes[1]:
        return 'they have no box in common'
    return None
