"""Bad data gets one message that says what was given and what to do."""
import copy
import json
from pathlib import Path

import pytest

from etta_mm.data import CLASSES, make_glyphs
from etta_mm.data.check import check_dataset, check_evaluator
from etta_mm.data.file import check_file, check_folder_writable

NUM_IMAGES = 6
SPLIT = 'train'


@pytest.fixture(scope='module')
def glyphs(tmp_path_factory):
    root = tmp_path_factory.mktemp('glyphs')
    for task in ('detection', 'classification'):
        make_glyphs(root, task, 'printed', SPLIT, NUM_IMAGES, num_workers=1)
    return root


@pytest.fixture
def coco(glyphs):
    """Config of a data set in COCO's format that is in order."""
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(glyphs / 'detection/printed'),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type='NotBuiltByTheCheck')])


@pytest.fixture
def folders(glyphs):
    """Config of a data set of class folders that is in order."""
    return dict(
        type='mmpretrain.CustomDataset',
        data_root=str(glyphs / 'classification/printed'),
        data_prefix='train',
        metainfo=dict(classes=CLASSES))


def annotations_of(dataset: dict, **changes) -> dict:
    content = json.loads(
        (Path(dataset['data_root']) / dataset['ann_file']).read_text())
    return {**content, **changes}


def with_annotations(dataset: dict, path: Path, content) -> dict:
    path.write_text(
        content if isinstance(content, str) else json.dumps(content))
    return dict(dataset, ann_file=str(path))


def test_data_sets_in_order_pass_and_their_configs_stay(coco, folders):
    for dataset in (coco, folders):
        before = copy.deepcopy(dataset)
        check_dataset(dataset)
        assert dataset == before


def test_a_missing_annotation_file_names_the_nearest(coco):
    coco['ann_file'] = 'annotations/trian.json'
    with pytest.raises(
            FileNotFoundError,
            match=r'trian\.json.* holds train\.json.*Set x\.data_'):
        check_dataset(coco, 'x')


def test_an_annotation_file_in_another_format_is_an_error(coco, tmp_path):
    for content in ('0001.jpg 3', '[]', '{"images": []}'):
        bad = with_annotations(coco, tmp_path / 'bad.json', content)
        with pytest.raises(ValueError, match='bad.json is not.*COCO'):
            check_dataset(bad)


def test_annotations_without_a_class_name_it(coco):
    coco['metainfo'] = dict(classes=('0', 'cat', '1', 'dog'))
    with pytest.raises(
            ValueError,
            match=r'train\.json lacks 2 of the 4 classes: cat, dog\. It has 36'
    ):
        check_dataset(coco)


def test_the_hosts_own_classes_count_where_none_are_named(coco):
    del coco['metainfo']  # then they are COCO's 80
    with pytest.raises(ValueError, match='lacks 80 of the 80.*person'):
        check_dataset(coco)


def test_classes_in_another_order_than_the_annotations_are_an_error(coco):
    coco['metainfo'] = dict(classes=('1', '0', '2'))
    with pytest.raises(ValueError, match='order.*: 0, 1, 2; given: 1, 0, 2'):
        check_dataset(coco)


def test_the_order_that_the_check_asks_for_is_the_hosts(coco):
    from mmdet.datasets import CocoDataset
    kwargs = {k: v for k, v in coco.items() if k != 'type'}
    kwargs.update(metainfo=dict(classes=('1', '0', '2')), pipeline=[])
    labels = {
        item['bbox_label']
        for info in CocoDataset(**kwargs).load_data_list()
        for item in info['instances']
    }
    dataset = CocoDataset(**kwargs)
    dataset.load_data_list()
    assert labels <= {0, 1, 2}
    # Label 0 is the class that comes first in the file, not in the config.
    assert dataset.cat_ids == [0, 1, 2]


def test_a_single_class_without_its_comma_is_an_error(coco):
    coco['metainfo'] = dict(classes=('cat'))
    with pytest.raises(ValueError, match=r"'cat'.*write \('cat', \)"):
        check_dataset(coco)


def test_missing_images_are_counted_and_the_first_three_named(coco, tmp_path):
    content = annotations_of(coco)
    for item in content['images'][1:6]:
        item['file_name'] = 'gone_' + item['file_name']
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    with pytest.raises(
            FileNotFoundError,
            match=r'5 of the 6 images.*gone_000001\.jpg, gone_000002\.jpg, '
            r'gone_000003\.jpg, \.\.\.\. Set'):
        check_dataset(bad)


def test_a_missing_image_folder_is_an_error(coco):
    coco['data_prefix'] = dict(img='trian/')
    with pytest.raises(FileNotFoundError, match="6 of the 6.*trian/'"):
        check_dataset(coco)


def test_images_in_subfolders_are_found(coco, tmp_path):
    content = annotations_of(coco)
    for item in content['images']:
        item['file_name'] = 'train/' + item['file_name']
    nested = with_annotations(coco, tmp_path / 'nested.json', content)
    check_dataset(dict(nested, data_prefix=dict(img='')))


def test_images_that_training_drops_may_be_missing(coco, tmp_path):
    content = annotations_of(coco)
    empty = content['images'][0]
    empty['file_name'] = 'gone.jpg'
    content['annotations'] = [
        item for item in content['annotations']
        if item['image_id'] != empty['id']
    ]
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    check_dataset(dict(bad, filter_cfg=dict(filter_empty_gt=True)))
    for kept in (dict(), dict(filter_cfg=dict(filter_empty_gt=False)),
                 dict(filter_cfg=dict(filter_empty_gt=True), test_mode=True)):
        with pytest.raises(FileNotFoundError, match='1 of the 6 images'):
            check_dataset(dict(bad, **kept))


def test_wrappers_are_descended_into(coco):
    good = copy.deepcopy(coco)
    coco['ann_file'] = 'gone.json'
    nested = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[good, coco]))
    with pytest.raises(
            FileNotFoundError, match=r'x\.dataset\.datasets\.1.*gone\.json'):
        check_dataset(nested, 'x')


def test_other_types_and_other_machines_are_left_alone(coco):
    coco.update(ann_file='gone.json')
    check_dataset(dict(coco, type='mmdet.LVISV1Dataset'))
    check_dataset(dict(coco, type='NoSuchDataset'))
    check_dataset(dict(coco, data_root='s3://bucket/coco'))
    check_dataset(dict(coco, backend_args=dict(backend='petrel')))
    with pytest.raises(FileNotFoundError):
        check_dataset(dict(coco, backend_args=dict(backend='local')))


def test_a_class_without_a_folder_is_an_error(folders):
    folders['metainfo'] = dict(classes=(*CLASSES, 'cat'))
    with pytest.raises(ValueError, match='lacks 1 of the 37 classes: cat'):
        check_dataset(folders)


def test_a_folder_without_a_class_is_an_error(folders):
    folders['metainfo'] = dict(classes=CLASSES[:-1])
    with pytest.raises(ValueError, match='36 folders.*35 classes'):
        check_dataset(folders)


def test_a_missing_folder_of_class_folders_is_an_error(folders):
    folders['data_prefix'] = 'trian'
    with pytest.raises(FileNotFoundError, match="trian'.*holds train"):
        check_dataset(folders)


def test_the_readable_names_of_imagenet_need_no_folders_of_that_name(
        glyphs, tmp_path):
    for index in range(1000):
        (tmp_path / 'train' / f'n{index:08d}').mkdir(parents=True)
    imagenet = dict(
        type='mmpretrain.ImageNet', data_root=str(tmp_path), split='train')
    check_dataset(imagenet)
    (tmp_path / 'train' / 'n00000000').rmdir()
    with pytest.raises(ValueError, match='999 folders.*1000 classes'):
        check_dataset(imagenet)


def test_images_that_a_list_names_must_exist(folders, tmp_path):
    listed = tmp_path / 'train.txt'
    listed.write_text('gone a.jpg 0\n')
    with pytest.raises(
            FileNotFoundError, match=r'1 of the 1 images.*gone a\.jpg'):
        check_dataset(dict(folders, ann_file=str(listed)))
    with pytest.raises(FileNotFoundError, match='trian.txt'):
        check_dataset(dict(folders, ann_file=str(tmp_path / 'trian.txt')))


def test_a_metric_without_its_annotation_file_is_an_error(tmp_path):
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'gone.json'))
    for evaluator in (metric, [dict(type='Accuracy'), metric],
                      dict(type='Evaluator', metrics=[metric])):
        with pytest.raises(FileNotFoundError, match=r'x.*gone\.json'):
            check_evaluator(evaluator, 'x')
    check_evaluator(dict(type='Accuracy', topk=(1, )))
    check_evaluator(None)


@pytest.mark.parametrize('inside', ['a_file', '/proc'])
def test_a_folder_that_even_root_cannot_write_is_an_error(inside, tmp_path):
    (tmp_path / 'a_file').write_text('here')
    folder = tmp_path / inside / 'work_dir'  # '/proc' replaces tmp_path
    with pytest.raises(ValueError, match=f'work_dir .*{inside}.*give another'):
        check_folder_writable(str(folder), 'work_dir')


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_folder_writable(str(tmp_path / 'new/folder'), 'work_dir')
    assert list((tmp_path / 'new/folder').iterdir()) == []


def test_checkpoints_on_other_machines_are_left_alone():
    for path in ('https://host/a.pth', 'torchvision://resnet50'):
        check_file(path, 'The checkpoint', '')
