"""A contact sheet: predictions and ground truth, image beside image."""
from pathlib import Path
from typing import Sequence

from PIL import Image, ImageDraw, ImageFont
from pycocotools.coco import COCO

TRUTH_COLOUR = (40, 200, 60)
PREDICTION_COLOUR = (255, 70, 40)
MARGIN = 6  # pixels
CAPTION = 16  # pixels


def contact_sheet(path,
                  annotation_file,
                  image_folder,
                  predictions: Sequence[dict],
                  num_images: int = 12,
                  score_threshold: float = 0.4,
                  zoom: int = 2,
                  columns: int = 4) -> Path:
    """Draw ground truth (left) and predictions (right) of some images.

    Args:
        path (str | Path): The PNG to write.
        annotation_file (str | Path): COCO JSON with the ground truth.
        image_folder (str | Path): Folder of the images.
        predictions (sequence[dict]): What ``tools/test.py --out`` writes: an
            ``img_id`` each, and ``pred_instances`` with ``bboxes``
            (x1, y1, x2, y2, in pixels of the image), ``scores`` and
            ``labels``.
        num_images (int): Images on the sheet, spread over the data set.
        score_threshold (float): Least score of a box that is drawn.
        zoom (int): Factor by which the images are enlarged.
        columns (int): Pairs in a row.

    Returns:
        Path: ``path``.
    """
    coco = COCO(str(annotation_file))
    names = [c['name'] for c in coco.loadCats(sorted(coco.getCatIds()))]
    step = max(1, len(predictions) // num_images)
    pairs = []
    for prediction in list(predictions)[::step][:num_images]:
        info = coco.loadImgs(int(prediction['img_id']))[0]
        image = Image.open(Path(image_folder) / info['file_name'])
        image = image.convert('RGB').resize(
            (image.width * zoom, image.height * zoom), Image.BICUBIC)
        truth = [((x, y, x + w, y + h), coco.cats[a['category_id']]['name'])
                 for a in coco.loadAnns(coco.getAnnIds(info['id']))
                 for x, y, w, h in [a['bbox']]]
        found = prediction['pred_instances']
        guessed = [(box.tolist(), f'{names[label]} {score:.2f}')
                   for box, score, label in zip(
                       found['bboxes'], found['scores'], found['labels'])
                   if score >= score_threshold]
        pairs.append((_draw(image, truth, zoom, TRUTH_COLOUR),
                      _draw(image, guessed, zoom, PREDICTION_COLOUR)))
    width = max(a.width + b.width for a, b in pairs) + 2 * MARGIN
    height = max(a.height for a, _ in pairs) + MARGIN
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    sheet = Image.new('RGB', (columns * width, rows * height + CAPTION),
                      'white')
    ImageDraw.Draw(sheet).text(
        (MARGIN, 2), 'left: ground truth; right: predictions with a score of '
        f'at least {score_threshold}', 'black', ImageFont.load_default())
    for i, (left, right) in enumerate(pairs):
        x, y = i % columns * width, i // columns * height + CAPTION
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + left.width + MARGIN // 2, y))
    sheet.save(path)
    return Path(path)


def _draw(image: Image.Image, boxes, zoom: int, colour) -> Image.Image:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    for box, text in boxes:
        x1, y1, x2, y2 = (v * zoom for v in box)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        extent = draw.textbbox((0, 0), text, font)
        x = min(max(x1, 0), image.width - extent[2] - 2)
        y = y1 - extent[3] - 2 if y1 > extent[3] + 2 else y1
        draw.rectangle((x, y, x + extent[2] + 2, y + extent[3] + 2), colour)
        draw.text((x + 1, y), text, 'white', font)
    return image
