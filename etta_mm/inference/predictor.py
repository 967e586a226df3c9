"""Predictions on pictures and videos, drawn and as JSON.

The models, the preparation of the images and the drawing are those of mmdet's
and mmpretrain's inferencers.
"""
import json
from itertools import groupby, islice
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import mmcv
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.visualization import UniversalVisualizer
from rich.progress import track

from ..engine.task import CLASSIFICATION, DETECTION, colours, task_scope
from .media import (DRAWN, PREDICTED, VideoWriter, check_targets, find_images,
                    is_video, open_video, read_image, write_json_list)

#: Smaller pictures are enlarged before a class is written on them, to this
#: length of the short side in pixels.
MIN_SHORT_SIDE = 240


class DetectionPredictor:
    """Boxes on pictures.

    Args:
        config (str): The config's file.
        weights (str): Any checkpoint, or what ``tuned_weights`` returns.
        device (str): Such as 'cpu' or 'cuda:0'.
    """

    default_threshold = 0.3

    def __init__(self, config: str, weights: str, device: str) -> None:
        self.inferencer = DetInferencer(
            config, weights, device=device, show_progress=False)
        meta = self.inferencer.visualizer.dataset_meta
        meta['palette'] = colours(meta) or meta.get('palette')

    def predict(self, images: List[np.ndarray]) -> list:
        """Predict a batch.

        Args:
            images (list[ndarray]): Pictures (h, w, 3), BGR.

        Returns:
            list[DetDataSample]: A sample for each.
        """
        batch, = self.inferencer.preprocess(images, batch_size=len(images))
        return self.inferencer.forward(batch[1])

    def draw(self, image: np.ndarray, sample, threshold: float) -> np.ndarray:
        """The picture with the boxes of at least ``threshold``, BGR."""
        drawn, = self.inferencer.visualize(
            [np.ascontiguousarray(image[..., ::-1])], [sample],
            return_vis=True,
            pred_score_thr=threshold)
        return drawn[..., ::-1]

    def as_dict(self, sample) -> dict:
        """``labels``, ``scores`` and ``bboxes`` (x1, y1, x2, y2; pixels)."""
        return self.inferencer.pred2dict(sample)


class ClassificationPredictor:
    """Classes of pictures.

    Args:
        config (str): The config's file.
        weights (str): Any checkpoint, or what ``tuned_weights`` returns.
        device (str): Such as 'cpu' or 'cuda:0'.
    """

    default_threshold = 0.

    def __init__(self, config: str, weights: str, device: str) -> None:
        # The inferencer relies on the scope that it happens to find.
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self.inferencer = ImageClassificationInferencer(
                config, weights, device=device)
        self.visualizer = UniversalVisualizer()

    def predict(self, images: List[np.ndarray]) -> list:
        """Predict a batch.

        Args:
            images (list[ndarray]): Pictures (h, w, 3), BGR. Those that the
                config leaves at different sizes go through one by one.

        Returns:
            list[DataSample]: A sample for each.
        """
        samples = []
        prepared = self.inferencer.preprocess(images, batch_size=1)
        for _, group in groupby(prepared, lambda data: data['inputs'].shape):
            group = list(group)
            samples += self.inferencer.forward(
                dict(
                    inputs=torch.cat([data['inputs'] for data in group]),
                    data_samples=[
                        sample for data in group
                        for sample in data['data_samples']
                    ]))
        return samples

    def draw(self, image: np.ndarray, sample, threshold: float) -> np.ndarray:
        """The picture with its class, if that has at least ``threshold``."""
        short = min(image.shape[:2])
        drawn = self.visualizer.visualize_cls(
            np.ascontiguousarray(image[..., ::-1]),
            sample,
            classes=self.inferencer.classes,
            resize=MIN_SHORT_SIDE if short < MIN_SHORT_SIDE else None,
            draw_gt=False,
            draw_pred=sample.pred_score.max().item() >= threshold)
        return drawn[..., ::-1]

    def as_dict(self, sample) -> dict:
        """``pred_label``, ``pred_score``, ``pred_class`` and all
        ``pred_scores``."""
        found, = self.inferencer.postprocess([sample], None)
        return dict(found, pred_scores=found['pred_scores'].tolist())


def build_predictor(config: str, weights: str, device: Optional[str] = None):
    """The predictor of the config's task.

    Args:
        config (str): The config's file.
        weights (str): Any checkpoint, or what ``tuned_weights`` returns.
        device (str, optional): Such as 'cpu' or 'cuda:0'. Defaults to None,
            the best one there is.

    Raises:
        ValueError: If the device is not there, or the config is neither of
            detection nor of classification, or says not how images are
            prepared.
    """
    device = _check_device(get_device() if device is None else device)
    cfg = Config.fromfile(config)
    predictors = {
        DETECTION: DetectionPredictor,
        CLASSIFICATION: ClassificationPredictor
    }
    scope = task_scope(cfg)
    if scope not in predictors:
        raise ValueError(f'default_scope of {config} is {scope!r}; known are '
                         f'{", ".join(predictors)}')
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if not dataset.get('pipeline'):
        raise ValueError(f'{config} has no test_dataloader.dataset.pipeline, '
                         'which says how images are prepared; add it (of a '
                         'wrapped data set, take the one that is wrapped)')
    return predictors[scope](config, weights, device)


def predict_files(predictor,
                  source,
                  out_dir,
                  batch_size: int = 1,
                  threshold: Optional[float] = None) -> Tuple[int, List[Path]]:
    """Predict pictures or a video; draw, and write JSON.

    ``OUT_DIR/vis/NAME`` is the drawing and ``OUT_DIR/preds/NAME.json`` the
    prediction, of a video a list with one per frame; names are those below
    the folder. The JSON holds all predictions, whatever the threshold.

    Args:
        predictor: What :func:`build_predictor` returns.
        source (str | Path): An image, a folder of images, or a video.
        out_dir (str | Path): The folder of the results.
        batch_size (int): Pictures or frames at a time. Defaults to 1.
        threshold (float, optional): Score from which on a prediction is drawn.
            Defaults to None, the predictor's.

    Returns:
        tuple: The number of pictures or frames, and the files that were
        passed over: they hold no picture, or none that the pipeline can
        prepare.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If it holds nothing to predict, what is drawn would be
            written over it, or an argument is out of range.
    """
    source, out_dir = Path(source), Path(out_dir)
    if threshold is None:
        threshold = predictor.default_threshold
    if batch_size < 1:
        raise ValueError(f'batch size {batch_size}: it must be at least 1')
    if not 0 <= threshold <= 1:
        raise ValueError(f'score threshold {threshold}: scores are between 0 '
                         'and 1')
    if is_video(source):
        return _predict_video(predictor, source, out_dir, batch_size,
                              threshold), []
    files, unreadable, number = find_images(source, out_dir), [], 0
    folder = source if source.is_dir() else source.parent
    drawn = {path: out_dir / DRAWN / path.relative_to(folder)
             for path in files}
    check_targets(files, drawn.values())

    def images() -> Iterator[Tuple[Path, np.ndarray]]:
        for path in track(files, 'Images'):
            image = read_image(path)
            if image is None:
                unreadable.append(path)
            else:
                yield path, image

    for batch in _batches(images(), batch_size):
        try:
            samples = predictor.predict([image for _, image in batch])
        except cv2.error:  # the pipeline cannot prepare one of them
            samples = [_predict_odd(predictor, image) for _, image in batch]
        for (path, image), sample in zip(batch, samples):
            if sample is None:
                unreadable.append(path)
                continue
            mmcv.imwrite(
                predictor.draw(image, sample, threshold), str(drawn[path]))
            found = out_dir / PREDICTED / f'{path.relative_to(folder)}.json'
            found.parent.mkdir(parents=True, exist_ok=True)
            found.write_text(json.dumps(predictor.as_dict(sample)))
            number += 1
    if not number:
        raise ValueError(f'{source}: none of its {len(files)} files holds an '
                         'image that can be decoded and prepared')
    return number, unreadable


def _predict_video(predictor, source: Path, out_dir: Path, batch_size: int,
                   threshold: float) -> int:
    drawn = out_dir / DRAWN / f'{source.stem}.mp4'
    check_targets([source], [drawn])
    video = open_video(source)

    def predictions(writer: VideoWriter) -> Iterator[dict]:
        frames = track(video, 'Frames', total=max(len(video), 0) or None)
        for batch in _batches(frames, batch_size):
            for frame, sample in zip(batch, predictor.predict(batch)):
                writer.write(predictor.draw(frame, sample, threshold))
                yield predictor.as_dict(sample)

    with VideoWriter(drawn, video.fps) as writer:
        number = write_json_list(out_dir / PREDICTED / f'{source.name}.json',
                                 predictions(writer))
    if not number:
        raise ValueError(f'{source} holds no frame that can be decoded')
    return number


def _predict_odd(predictor, image: np.ndarray):
    """The prediction, or None of a picture that OpenCV cannot resize as the
    pipeline says, such as one of 8 x 4000 pixels."""
    try:
        return predictor.predict([image])[0]
    except cv2.error:
        return None


def _batches(items, size: int) -> Iterator[list]:
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def _check_device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'{name!r} is no device; give cpu, cuda or '
                         'cuda:NUMBER') from error
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f'the device {name} is not there: {count} GPUs '
                             'are visible; give --device cpu')
    elif device.type != 'cpu':
        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ValueError(f'the device {name} is not there; give cpu, cuda '
                             'or cuda:NUMBER') from error
    return name
