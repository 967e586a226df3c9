"""Pictures and videos on disk: found, read and written."""
import json
from pathlib import Path
from typing import Iterable, Iterator, List, Optional

import cv2
import mmcv
import numpy as np

#: What OpenCV reads and, in colours, writes (so no ``.pgm``).
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff',
                  '.webp')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg',
                  '.mpeg')
#: The folders below the one of the results.
DRAWN, PREDICTED = 'vis', 'preds'
#: Frames per second of a video that does not say.
DEFAULT_FPS = 25


def find_images(source: Path, out_dir: Path) -> List[Path]:
    """The images of a folder, or the one image that ``source`` is.

    Args:
        source (Path): An image, or a folder that is searched with all that
            lies below it.
        out_dir (Path): The folder of the results. Where its ``vis/`` and
            ``preds/`` lie below ``source``, they are left out.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is no image, or a folder without any.
    """
    if not source.exists():
        raise FileNotFoundError(f'there is no image, folder or video {source}; '
                                'give one that exists')
    kinds = ', '.join(IMAGE_SUFFIXES)
    if source.is_dir():
        here = source.resolve()
        results = {(out_dir / name).resolve() for name in (DRAWN, PREDICTED)}
        results = {path for path in results if here in path.parents}
        found = sorted(
            path for path in source.rglob('*')
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            and results.isdisjoint(path.resolve().parents))
        if not found:
            raise ValueError(f'the folder {source} holds no image ({kinds}); '
                             'give one that does')
        return found
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f'{source} is neither a folder, nor an image ({kinds}), nor a '
            f'video ({", ".join(VIDEO_SUFFIXES)}), by its name')
    return [source]


def check_targets(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raise ``ValueError`` if a result would be written over a source.

    Args:
        sources (Iterable[Path]): What is read.
        targets (Iterable[Path]): What is to be written.
    """
    read = {path.resolve() for path in sources}
    for target in targets:
        if target.resolve() in read:
            raise ValueError(f'{target} is read, and what is drawn would be '
                             'written over it; give another --out-dir')


def is_video(source: Path) -> bool:
    """Whether the name of ``source`` is that of a video."""
    return source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES


def read_image(path: Path) -> Optional[np.ndarray]:
    """The image (h, w, 3) as BGR, turned as its camera says; None if there is
    none in the file."""
    try:
        return mmcv.imread(str(path))
    except (cv2.error, OSError):  # such as an empty file
        return None


def open_video(path: Path) -> mmcv.VideoReader:
    """Open a video to be read frame by frame.

    Raises:
        ValueError: If it cannot be decoded.
    """
    video = mmcv.VideoReader(str(path))
    if not video.opened or video.width <= 0 or video.height <= 0:
        raise ValueError(f'{path} cannot be read as a video: it is damaged, or '
                         'this OpenCV lacks its codec')
    return video


class VideoWriter:
    """Writes frames of one size as MPEG-4; a context manager.

    Args:
        path (Path): The file, ``*.mp4``.
        fps (float): Frames per second.

    Raises:
        ValueError: If this OpenCV cannot write such a video.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps if fps > 0 else DEFAULT_FPS
        self._writer = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (h, w, 3), BGR."""
        if self._writer is None:
            height, width = frame.shape[:2]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(
                str(self.path), cv2.VideoWriter_fourcc(*'mp4v'), self.fps,
                (width, height))
            if not self._writer.isOpened():
                raise ValueError(f'{self.path} cannot be written: this OpenCV '
                                 'lacks the codec mp4v')
        self._writer.write(frame)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self._writer is not None:
            self._writer.release()


def write_json_list(path: Path, items: Iterator[dict]) -> int:
    """Write a JSON list, an item at a time.

    Args:
        path (Path): The file; its folder is made.
        items (Iterator[dict]): What JSON can hold.

    Returns:
        int: The number of items.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with open(path, 'w') as file:
        file.write('[')
        for number, item in enumerate(items, 1):
            file.write(',\n' if number > 1 else '\n')
            json.dump(item, file)
        file.write('\n]\n')
    return number
