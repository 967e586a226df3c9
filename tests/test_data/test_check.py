"""Bad data gets one message that says what was given and what to do."""
import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.registry import METRICS

from etta_mm.data import CLASSES, annotations, make_glyphs
from etta_mm.data.check import check_dataset
from etta_mm.data.check_evaluator import check_evaluator, check_save_best
from etta_mm.data.check_num_classes import (check_num_classes, check_one_hot,
                                            check_same_classes)
from etta_mm.data.file import check_config, check_file, check_folder_writable

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


def test_of_data_to_validate_on_the_file_is_what_has_to_change(coco):
    coco['test_mode'] = True
    coco['metainfo'] = dict(classes=('1', '0', '2'))
    with pytest.raises(
            ValueError, match='training: .*reorder `categories`.*ids may stay'):
        check_dataset(coco)
    coco['metainfo'] = dict(classes=('0', 'cat'))
    with pytest.raises(ValueError, match='lacks 1 .*add to `categories`'):
        check_dataset(coco)


def wrapped(dataset: dict) -> dict:
    return dict(type='RepeatDataset', times=2,
                dataset=dict(type='ConcatDataset', datasets=[dataset] * 2))


@pytest.mark.parametrize('change, said', [
    (lambda names: names[::-1], 'the order differs'),
    (lambda names: [*names[1:], 'cow'], 'other classes: 0, cow'),
])
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, wrapped],
                         ids=['plain', 'wrapped'])
def test_boxes_to_validate_on_have_the_classes_of_the_training(
        coco, tmp_path, change, said, wrap):
    content = annotations_of(coco)
    categories = content['categories']
    for item, name in zip(categories, change([c['name'] for c in categories])):
        item['name'] = name
    names = [item['name'] for item in categories]
    val = with_annotations(coco, tmp_path / 'val.json', content)
    val.update(test_mode=True, metainfo=dict(classes=names))
    check_dataset(wrap(val))  # which the file says, so it is of one piece
    with pytest.raises(ValueError, match=f'val_dataloader.dataset.*{said}.*'
                       r'order.*`categories` of .*val\.json.*ids may stay'):
        check_same_classes(wrap(coco), wrap(val))
    # The remedy: every id keeps its name, in the order of the training.
    ids = {item['name']: item['id'] for item in categories}
    content['categories'] = [
        dict(id=ids.get(name, 99), name=name) for name in CLASSES]
    val = with_annotations(coco, tmp_path / 'val.json', content)
    val['test_mode'] = True
    check_dataset(wrap(val))
    check_same_classes(wrap(coco), wrap(val))


def test_classes_that_the_model_reads_as_texts_may_be_others(coco):
    val = dict(coco, metainfo=dict(classes=CLASSES[::-1]), return_classes=True)
    check_same_classes(dict(coco, return_classes=True), val)


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


@pytest.mark.parametrize('given', [
    dict(classes=('red box')), dict(classes='classes.txt'),
    dict(metainfo=dict(classes=('red box')))])
def test_class_folders_take_a_string_for_a_file_as_well(folders, given):
    del folders['metainfo']
    with pytest.raises(
            ValueError, match=r"x: classes is '.*write \('.*', \)\).*text file"):
        check_dataset(dict(folders, **given), 'x')


def test_a_file_may_name_the_classes(folders, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES))
    check_dataset(dict(folders, metainfo=None,
                       classes=str(tmp_path / 'classes.txt')))


def test_a_remedy_names_the_classes_where_the_config_has_them(folders):
    del folders['metainfo']
    named = dict(folders, classes=CLASSES[::-1])
    with pytest.raises(ValueError, match=r'set x\.classes to the same'):
        check_dataset(named, 'x')
    with pytest.raises(ValueError, match=r'or x\.classes to the 3 names'):
        check_num_classes(dict(head=dict(num_classes=3)), named, 'x')


@pytest.mark.parametrize('given, said', [
    (dict(classes=CLASSES), r'classes= is now metainfo=dict\(classes=...\)'),
    (dict(img_prefix='train/'), r'img_prefix= is now data_prefix=dict\(img='),
    (dict(metainfos={}), "argument 'metainfos'. Take it out"),
])
def test_what_a_data_set_does_not_take_is_named_with_the_data_set(
        coco, given, said):
    with pytest.raises(
            TypeError, match=rf'x\.dataset, a CocoDataset, is given .*{said}'):
        check_dataset(dict(dataset=dict(coco, **given)), 'x')


def test_classes_in_capitals_are_read_by_nothing(coco, folders):
    for dataset in (coco, folders):
        dataset['metainfo'] = dict(CLASSES=CLASSES)
        with pytest.raises(ValueError, match='x.metainfo.*CLASSES.*lower case'):
            check_dataset(dataset, 'x')


def test_missing_images_are_counted_and_the_first_three_named(coco, tmp_path):
    content = annotations_of(coco)
    for item in content['images'][1:6]:
        item['file_name'] = 'gone_' + item['file_name']
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    with pytest.raises(
            FileNotFoundError,
            match=r'5 of the 6 images.*gone_000001\.jpg, gone_000002\.jpg, '
            r'gone_000003\.jpg and 2 more\. Set'):
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


@pytest.mark.parametrize('changes, filter_cfg', [
    (dict(images=[]), None),
    (dict(annotations=[]), dict(filter_empty_gt=True)),
    (dict(), dict(min_size=10**4)),
])
def test_a_data_set_without_any_image_to_train_on_is_an_error(
        coco, tmp_path, changes, filter_cfg):
    path = tmp_path / 'empty.json'
    bad = with_annotations(coco, path, annotations_of(coco, **changes))
    bad['filter_cfg'] = filter_cfg
    with pytest.raises(ValueError, match=r'none of the \d images.*empty.json'):
        check_dataset(bad)


def test_boxes_of_other_classes_are_none_to_train_on(coco, tmp_path):
    content = annotations_of(coco)
    for item in content['annotations']:
        item['category_id'] = 0
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    bad.update(
        metainfo=dict(classes=CLASSES[1:]),
        filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(ValueError, match='none of the 6 images'):
        check_dataset(bad)


def test_what_is_just_large_enough_is_read(coco, tmp_path):
    """Boxes of one pixel, and images of min_size."""
    content = annotations_of(coco)
    for item in content['annotations']:
        item.update(bbox=[3., 4., 1., 1.], area=1.)
    small = with_annotations(coco, tmp_path / 'small.json', content)
    size = content['images'][0]['width']
    small['filter_cfg'] = dict(filter_empty_gt=True, min_size=size)
    assert len(boxes_of_the_host(small)) == len(content['annotations'])
    check_dataset(small)
    small['filter_cfg']['min_size'] = size + 1
    with pytest.raises(ValueError, match='none of the'):
        check_dataset(small)


def boxes_of_the_host(dataset: dict) -> list:
    """What mmdet itself trains on."""
    from mmdet.datasets import CocoDataset
    kwargs = {k: v for k, v in dataset.items() if k != 'type'}
    found = CocoDataset(**dict(kwargs, pipeline=[])).load_data_list()
    return [box for info in found for box in info['instances']
            if not box['ignore_flag']]


@pytest.mark.parametrize('change', [
    lambda a: a.update(area=0),
    lambda a: a.update(bbox=[v / 112 for v in a['bbox']]),
    lambda a: a.update(bbox=[a['bbox'][0], 0, 0.9, 9]),
    lambda a: a.update(bbox=[112, 0, 9, 9]),
    lambda a: a.update(bbox=[0, -9, 9, 9]),
    lambda a: a.update(ignore=True),
    lambda a: a.update(iscrowd=1),
], ids=['area', 'normalised', 'thin', 'right', 'above', 'ignore', 'crowd'])
def test_annotations_that_mmdet_trains_on_no_box_of_are_an_error(
        coco, tmp_path, change):
    content = annotations_of(coco)
    number = len(content['annotations'])
    for item in content['annotations']:
        change(item)
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    bad['filter_cfg'] = dict(filter_empty_gt=True)
    assert not boxes_of_the_host(bad)
    with pytest.raises(ValueError, match=f'x: none of the {number} annotations'
                       r' of .*bad.json has a box.*normalised to \[0, 1\]'):
        check_dataset(bad, 'x')
    check_dataset(dict(bad, test_mode=True))


def test_it_is_warned_of_more_boxes_dropped_than_kept(
        coco, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(annotations, 'print_log',
                        lambda text, *args: said.append(text))
    content = annotations_of(coco)
    number = len(content['annotations'])
    dropped = number // 2
    for count in (dropped, dropped + 1):
        for item in content['annotations'][:count]:
            item['area'] = 0
        data = with_annotations(coco, tmp_path / 'some.json', content)
        assert len(boxes_of_the_host(data)) == number - count
        check_dataset(data, 'x')
        assert bool(said) == (count > number / 2)
    assert f'only {number - count} of the {number} annotations' in said[0]


@pytest.mark.parametrize('box', [[], [1, 2, None, 3], [1, 2, '3', 4]])
def test_a_box_of_other_than_four_numbers_is_an_error(coco, tmp_path, box):
    content = annotations_of(coco)
    content['annotations'][1]['bbox'] = box
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    with pytest.raises(ValueError, match=r'x: .*bad.json has the bbox \[.*\] in '
                       r'annotations\[1\]'):
        check_dataset(bad, 'x')
    content['annotations'][1]['ignore'] = True  # then mmdet does not read it
    good = with_annotations(coco, tmp_path / 'good.json', content)
    assert boxes_of_the_host(good)
    check_dataset(good)


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
    check_dataset(dict(coco, data_prefix=dict(img='s3://bucket/')))
    check_dataset(dict(coco, backend_args=dict(backend='petrel')))
    with pytest.raises(FileNotFoundError):
        check_dataset(dict(coco, backend_args=dict(backend='local')))


@pytest.mark.parametrize('loader', [
    dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb')),
    dict(type='mmdet.LoadImageFromFile', ignore_empty=True),
    dict(type='LoadImageFromZip'),
])
def test_images_that_are_loaded_otherwise_may_be_elsewhere(
        coco, folders, tmp_path, loader):
    (tmp_path / 'list.txt').write_text('1.jpg 0\n')
    listed = dict(folders, ann_file=str(tmp_path / 'list.txt'),
                  data_prefix='gone')
    coco['data_prefix'] = dict(img='gone/')
    for dataset in (coco, listed):
        check_dataset(dict(dataset, pipeline=[loader]))
        with pytest.raises(FileNotFoundError):
            check_dataset(dict(dataset, pipeline=[
                dict(type='LoadAnnotations'), dict(type='LoadImageFromFile')]))


def test_images_without_annotations_may_stand_beside_others(coco, tmp_path):
    content = annotations_of(coco, annotations=[])
    none = with_annotations(coco, tmp_path / 'none.json', content)
    check_dataset(dict(type='ConcatDataset', datasets=[coco, none]))
    with pytest.raises(ValueError, match='none.json has no annotations'):
        check_dataset(dict(type='RepeatDataset', times=2, dataset=none))


class OwnCoco(CocoDataset):
    """Knows its images only when the data have been read."""

    def __init__(self, ann_file, data_root, data_prefix):
        super().__init__(ann_file=ann_file, data_root=data_root,
                         data_prefix=data_prefix)


class Filtering(CocoDataset):

    def filter_data(self):
        return []


def test_classes_of_the_users_that_read_otherwise_are_left_alone(coco):
    coco['data_prefix'] = dict(img='gone/')
    for kind in (OwnCoco, Filtering):
        given = {key: coco[key]
                 for key in ('ann_file', 'data_root', 'data_prefix')}
        check_dataset(dict(given, type=kind))
    with pytest.raises(FileNotFoundError):
        check_dataset(dict(coco, type=type('Heir', (CocoDataset, ), {})))


def test_other_names_for_all_class_folders_pass(folders):
    folders['metainfo'] = dict(classes=[f'the letter {c}' for c in CLASSES])
    check_dataset(folders)
    folders['metainfo'] = dict(classes=[*folders['metainfo']['classes'], 'cat'])
    with pytest.raises(ValueError, match='lacks 37 of the 37 classes'):
        check_dataset(folders)


@pytest.mark.parametrize('key', ['classes', 'metainfo'])
def test_numbers_may_name_the_classes(tmp_path, key):
    for name in '012':
        (tmp_path / name).mkdir()
        (tmp_path / name / '1.jpg').touch()
    dataset = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path))

    def given(*classes):
        return {key: classes if key == 'classes' else dict(classes=classes)}

    check_dataset({**dataset, **given(0, 1, 2)})
    with pytest.raises(ValueError, match='another order'):
        check_dataset({**dataset, **given(0, 2, 1)})


def test_a_folder_may_be_a_path_of_pathlib(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/1.jpg').touch()
    check_dataset(dict(type='mmpretrain.CustomDataset', data_root=tmp_path))


@pytest.mark.parametrize('names, classes', [
    (['train', 'val'], ['cat', 'dog']), (['cat', 'dog'], ['Dog', 'Cat'])])
def test_what_may_be_a_mistake_is_no_other_name(tmp_path, names, classes):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / '1.jpg').touch()
    with pytest.raises(ValueError, match='lacks 2 of the 2 classes'):
        check_dataset(dict(type='mmpretrain.CustomDataset', classes=classes,
                           data_root=str(tmp_path)))


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
    (tmp_path / 'train/n00000001/1.JPEG').touch()
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


@pytest.mark.parametrize('line', [
    'a/0.jpg 36', 'a/0.jpg -1', 'a/0.jpg', 'a/0.jpg cat', ''])
def test_a_list_with_a_label_that_no_class_has_is_an_error(
        folders, tmp_path, line):
    listed = sorted(
        file for file in Path(folders['data_root'], 'train').rglob('*.jpg'))
    lines = [f'{file} 35' for file in listed]
    bad = dict(folders, data_prefix='', ann_file=str(tmp_path / 'list.txt'))
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    check_dataset(bad)
    (tmp_path / 'list.txt').write_text('\n'.join([*lines, line, *lines]))
    with pytest.raises(ValueError, match=f'x: line {len(lines) + 1} of .*list.'
                       'txt.* a number from 0 to 35'):
        check_dataset(bad, 'x')


def test_folders_of_other_names_to_validate_on_are_an_error(folders, tmp_path):
    def data(name, *classes):
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
        return dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path),
                    data_prefix=name)

    train = data('train', 'cat', 'dog')
    check_same_classes(train, data('same', 'cat', 'dog'))
    check_same_classes(train, None)
    with pytest.raises(ValueError, match='other classes: dog, mouse'):
        check_same_classes(train, data('val', 'cat', 'mouse'))
    named = dict(folders, metainfo=dict(classes=CLASSES[::-1]))
    with pytest.raises(ValueError, match='the order differs'):
        check_same_classes(folders, named)
    names = dict(metainfo=dict(classes=('a', 'b')))
    other = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path))
    check_same_classes(train, dict(other, data_prefix='same', **names))
    with pytest.raises(ValueError, match='other classes: dog, mouse'):
        check_same_classes(dict(train, **names),
                           dict(other, data_prefix='val', **names))


@pytest.mark.parametrize('kind, key', [
    ('images', 'width'), ('images', 'file_name'), ('annotations', 'bbox'),
    ('annotations', 'area'), ('annotations', 'id')
])
def test_what_coco_asks_for_is_missed_by_its_name(coco, tmp_path, kind, key):
    content = annotations_of(coco)
    del content[kind][1][key]
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    said = rf'x: .*bad.json lacks {key} of {kind}\[1\]'
    for is_tested in (False, True):
        with pytest.raises(ValueError, match=said):
            check_dataset(dict(bad, test_mode=is_tested), 'x')


def test_cocos_metric_asks_for_iscrowd(coco, tmp_path):
    content = annotations_of(coco)
    del content['annotations'][1]['iscrowd']
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    tested = dict(bad, test_mode=True)
    check_dataset(tested)  # another metric may do without
    with pytest.raises(ValueError, match=r'lacks iscrowd of annotations\[1\]'):
        check_evaluator(dict(type='mmdet.CocoMetric',
                             ann_file=bad['ann_file']), dataset=tested)


@pytest.mark.parametrize('change', ['category_id', 'image_id', None, ''])
def test_annotations_that_fit_nothing_are_an_error(coco, tmp_path, change):
    content = annotations_of(coco)
    if change:
        for item in content['annotations']:
            item[change] = str(item[change])
    elif change is None:
        content['annotations'] = []
    else:
        del content['annotations']
    bad = with_annotations(coco, tmp_path / 'bad.json', content)
    words = 'none of the .*bad.json has an image' if change else (
        'bad.json has no annotations')
    with pytest.raises(ValueError, match=f'x: .*{words}'):
        check_dataset(bad, 'x')
    tested = dict(bad, test_mode=True)
    check_dataset(tested)  # to be predicted, it may be without
    metric = dict(type='mmdet.CocoMetric', ann_file=bad['ann_file'])
    with pytest.raises(ValueError, match=words):
        check_evaluator(metric, dataset=tested)
    check_evaluator(dict(metric, format_only=True), dataset=tested)


@pytest.fixture
def mixed(tmp_path):
    """Two classes, of which one has a picture that mmpretrain passes over."""
    for file in ('cat/1.jpg', 'cat/2.JPG', 'cat/notes.txt', 'dog/deep/1.WebP'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path),
                classes=['cat', 'dog'])


def test_pictures_that_would_be_passed_over_are_an_error(mixed):
    for dataset in (mixed, dict(mixed, classes=None, with_label=False)):
        with pytest.raises(ValueError, match=r'x: 1 of the 4 files .*dog/deep/'
                           r'1\.WebP.*\.jpg, .*x\.extensions'):
            check_dataset(dataset, 'x')
        check_dataset(dict(dataset, extensions=['.jpg', '.webp']), 'x')


def test_a_folder_without_a_picture_is_an_error(mixed, tmp_path):
    for file in tmp_path.glob('*/**/*.*'):
        file.rename(file.with_suffix('.txt'))
    with pytest.raises(FileNotFoundError, match='none of the 4 files.*data_root'):
        check_dataset(mixed, 'x')


@pytest.mark.parametrize('topk', [37, (1, 37)])
def test_more_best_classes_than_there_are_is_an_error(folders, topk):
    metric = dict(type='mmpretrain.Accuracy', topk=topk)
    for evaluator in (metric, [dict(type='mmpretrain.SingleLabelMetric'),
                               metric]):
        with pytest.raises(ValueError, match=r'x\.topk.* 37 best of 36 classes'):
            check_evaluator(evaluator, 'x', folders)
    check_evaluator(dict(metric, topk=(1, 36)), 'x', folders)
    check_evaluator(metric, 'x')


COCO = dict(type='mmdet.CocoMetric')
TOP = dict(type='mmpretrain.Accuracy')


@pytest.mark.parametrize('best, evaluator, called', [
    ('bbox_mAP', COCO, 'coco/bbox_mAP, .*, coco/bbox_mAP_l'),
    ('coco/bbox_mAP_70', COCO, 'coco/bbox_mAP, coco/bbox_mAP_50, .*'),
    ('coco/segm_mAP', COCO, 'coco/bbox_mAP, .*'),
    ('coco/bbox_mAP_50', dict(COCO, metric_items=['mAP']), 'coco/bbox_mAP'),
    ('accuracy/top5', dict(TOP, topk=(1, )), 'accuracy/top1'),
    ('accuracy/top1', dict(TOP, topk=5), 'accuracy/top5'),
    (['coco/bbox_mAP', 'mAP'], [COCO, TOP], '.*, accuracy/top1'),
    ('coco/cat', [dict(COCO, classwise=True, prefix='own'), TOP],
     'own/\\.\\.\\., accuracy/top1'),
    ('accuracy_top-1', dict(type='Evaluator', metrics=TOP), 'accuracy/top1'),
    ('coco/bbox_mAP', dict(COCO, prefix='own'), 'own/bbox_mAP, .*'),
    ('accuracy/top1', dict(TOP, thrs=(0., None)),
     'accuracy/top1_thr-0.00, accuracy/top1_no-thr'),
])
def test_a_best_checkpoint_by_what_nothing_measures_is_an_error(
        best, evaluator, called):
    hooks = dict(checkpoint=dict(save_best=best))
    with pytest.raises(ValueError, match=f'save_best=.* is called {called}[.]'):
        check_save_best(hooks, evaluator)


def test_the_names_of_a_metric_are_those_that_it_gives(coco):
    """By mmdet's and mmpretrain's metrics themselves."""
    given = dict(COCO, ann_file=f'{coco["data_root"]}/{coco["ann_file"]}')
    boxes = METRICS.build(given)
    boxes.dataset_meta = dict(classes=CLASSES)
    image = annotations_of(coco)['images'][0]
    boxes.process(None, [dict(
        img_id=image['id'], ori_shape=(112, 112), pred_instances=dict(
            bboxes=torch.tensor([[0., 0., 9., 9.]]), scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long)))])
    evaluated = [(given, boxes.evaluate(NUM_IMAGES), 6)]
    for thresholds, number in ((0., 2), ((0.5, ), 2), ((0., 0.125, None), 6)):
        tops = dict(TOP, topk=(1, 2), thrs=thresholds)
        accuracy = METRICS.build(tops)
        accuracy.process(None, [dict(
            pred_score=torch.tensor([0.1, 0.9]), gt_label=torch.tensor([1]))])
        evaluated.append((tops, accuracy.evaluate(1), number))
    for evaluator, found, number in evaluated:
        assert len(found) == number
        check_save_best(dict(checkpoint=dict(save_best=[*found])), evaluator)


@pytest.mark.parametrize('best, evaluator', [
    ('coco/bbox_mAP', COCO), ('auto', COCO), (None, COCO), (None, None),
    ('coco/bbox_mAP', None), ('any', [COCO, dict(type='NotYetImported')]),
    ('own/bbox_mAP', dict(COCO, prefix='own')),
    ('coco/cat_precision', dict(COCO, classwise=True)),
    ('coco/segm_mAP_s', dict(COCO, metric=['bbox', 'segm'])),
    ('coco/AR@100', dict(COCO, metric='proposal')),
    ('accuracy/top1_thr-0.10', dict(TOP, thrs=(0., 0.1))),
    (['accuracy/top1', 'coco/bbox_mAP_50'], [COCO, TOP]),
])
def test_a_best_checkpoint_by_what_may_be_measured_passes(best, evaluator):
    check_save_best(dict(checkpoint=dict(save_best=best)), evaluator)
    check_save_best(None, evaluator)
    check_save_best(dict(checkpoint=None), evaluator)


@pytest.mark.parametrize('evaluator, loop', [
    (dict(type='MultiDatasetsEvaluator', metrics=[COCO],
          dataset_prefixes=['A']), None),
    (COCO, dict(type='TeacherStudentValLoop')),
])
def test_what_renames_metrics_is_left_alone(evaluator, loop):
    hooks = dict(checkpoint=dict(save_best='A/coco/bbox_mAP'))
    check_save_best(hooks, evaluator, loop)
    with pytest.raises(ValueError, match='save_best'):
        check_save_best(hooks, COCO, dict(type='mmengine.ValLoop'))


def test_a_metric_without_its_annotation_file_is_an_error(tmp_path):
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'gone.json'))
    for evaluator in (metric, [dict(type='Accuracy'), metric],
                      dict(type='Evaluator', metrics=[metric])):
        with pytest.raises(FileNotFoundError, match=r'x.*gone\.json'):
            check_evaluator(evaluator, 'x')
    check_evaluator(dict(type='Accuracy', topk=(1, )))
    check_evaluator(None)


def metric(path) -> dict:
    return dict(type='mmdet.CocoMetric', ann_file=str(path))


def test_annotations_of_the_data_pass_under_any_name(coco, tmp_path):
    own = Path(coco['data_root']) / coco['ann_file']
    link, changed = tmp_path / 'link.json', tmp_path / 'changed.json'
    link.symlink_to(own)
    content = annotations_of(coco)
    content['annotations'] = content['annotations'][1:]
    for item in content['images']:
        item['file_name'] = 'train/' + item['file_name']
    changed.write_text(json.dumps(content))
    for path in (own, link, changed):
        check_evaluator(metric(path), 'x', coco)
        check_evaluator(metric(path), 'x', dict(dataset=coco))


def test_annotations_to_compare_are_read_once(coco, tmp_path, monkeypatch):
    other = with_annotations(coco, tmp_path / 'other.json',
                             annotations_of(coco))['ann_file']
    load, read = json.load, []
    monkeypatch.setattr(
        json, 'load', lambda file: read.append(file.name) or load(file))
    check_evaluator(metric(other), 'x', coco)
    own = str(Path(coco['data_root']) / coco['ann_file'])
    assert sorted(read) == sorted([other, own])


@pytest.mark.parametrize('change, words', [
    (lambda c: c.update(images=c['images'][1:]),
     r'1 of 6 images are in the latter only: 000000\.jpg \(id 0\)'),
    (lambda c: c['images'].append(dict(id=9, file_name='9.jpg')),
     r'1 of 7 images are in the former only: 9\.jpg \(id 9\)'),
    (lambda c: c['images'][0].update(file_name='new.jpg'), r'new\.jpg'),
    (lambda c: c['categories'].pop(0), 'the former has the classes 1, 2, 3'),
    (lambda c: [a.update(bbox=[0, 0, 1, 1]) for a in c['annotations']],
     'no box in common'),
])
def test_annotations_of_other_data_are_an_error(
        coco, tmp_path, change, words):
    path = tmp_path / 'other.json'
    content = annotations_of(coco)
    change(content)
    path.write_text(json.dumps(content))
    for evaluator in (metric(path), [metric(path)]):
        with pytest.raises(
                ValueError,
                match=r'x\.ann_file=.*other\.json.*train\.json.*'
                f'{words}.*Set'):
            check_evaluator(evaluator, 'x', coco)
    # Of these, nobody can say: other data sets, or nothing to be compared.
    for other in (dict(datasets=[coco, coco]), dict(type='LVISV1Dataset')):
        check_evaluator(metric(path), 'x', other)
    check_evaluator(dict(metric(path), format_only=True), 'x', coco)
    check_evaluator(dict(metric(path), type='NoSuchMetric'), 'x', coco)


DETECTOR = dict(
    type='DETR',
    rpn_head=dict(num_classes=1),
    bbox_head=dict(num_classes=len(CLASSES)))
CLASSIFIER = dict(
    type='ImageClassifier', head=dict(num_classes=len(CLASSES)))


def test_as_many_classes_in_the_model_as_in_the_data_pass(coco, folders):
    check_num_classes(DETECTOR, coco)
    check_num_classes(CLASSIFIER, folders)
    del folders['metainfo']  # then the folders are the classes
    check_num_classes(CLASSIFIER, folders)
    # What is not said, or is the length of a text, is not compared.
    check_num_classes(dict(bbox_head=dict(type='A')), coco)
    check_num_classes(
        dict(DETECTOR, semantic_head=dict(num_classes=183)), coco)
    check_num_classes(
        dict(language_model=dict(), bbox_head=dict(num_classes=256)), coco)
    check_num_classes(None, coco)


@pytest.mark.parametrize('number', [1, 35, 37])
def test_another_number_of_classes_in_the_model_is_an_error(
        coco, folders, number):
    wrong = dict(num_classes=number)
    for model, where in (
        (dict(bbox_head=wrong), 'bbox_head'),
        (dict(roi_head=dict(bbox_head=[wrong] * 3)), 'roi_head.bbox_head.0'),
        (dict(detector=dict(bbox_head=wrong)), 'detector.bbox_head')):
        with pytest.raises(
                ValueError,
                match=rf'x\.dataset has 36 classes.* model\.{where}\.'
                rf'num_classes is {number}\. Set model\.{where}\.'
                'num_classes=36'):
            check_num_classes(model, dict(dataset=coco), 'x')
    for named in (folders, {**folders, 'metainfo': None}):
        with pytest.raises(ValueError, match=r'model\.head\.num_classes is'):
            check_num_classes(dict(head=wrong), named)


def test_a_label_beyond_the_classes_of_the_model_is_an_error(tmp_path):
    """Of a list whose classes have no names; on a GPU it would be an assertion
    in a kernel."""
    listed = tmp_path / 'list.txt'
    dataset = dict(type='mmpretrain.CustomDataset', ann_file=str(listed))
    listed.write_text('a b.jpg 0\nc.jpg 35\nd.jpg 2\n')
    check_num_classes(CLASSIFIER, dataset)
    check_num_classes(dict(head=dict(num_classes=100)), dataset)
    with pytest.raises(ValueError, match='list.txt, of x, has the label 35, and'
                       r' model.head.num_classes is 35.* from 0 to 34.*=36'):
        check_num_classes(dict(head=dict(num_classes=35)), dataset, 'x')
    listed.write_text('')
    check_num_classes(CLASSIFIER, dataset)


@pytest.mark.parametrize('model, preprocessor', [
    (dict(train_cfg=dict(augments=dict(type='Mixup'))), {}),
    ({}, dict(to_onehot=True)),
    ({}, dict(batch_augments=dict(augments='CutMix'))),
])
def test_mixed_labels_of_another_number_of_classes_are_an_error(
        folders, model, preprocessor):
    wrong = dict(preprocessor, num_classes=1000)
    for key, cfg in (('', dict(model=model, data_preprocessor=wrong)),
                     ('model.',
                      dict(model=dict(model, data_preprocessor=wrong)))):
        with pytest.raises(
                ValueError,
                match=rf'x has 36 classes.*, and {key}data_preprocessor\.'
                rf'num_classes is 1000\. Set {key}data_preprocessor\.'):
            check_one_hot(cfg, folders, 'x')
    check_one_hot(
        dict(model=model, data_preprocessor=dict(wrong, num_classes=36)),
        folders)


def test_labels_that_nothing_mixes_may_be_of_any_number(folders):
    for model in (dict(train_cfg=None), dict(train_cfg=dict(augments=None))):
        check_one_hot(
            dict(model=model, data_preprocessor=dict(num_classes=1000)),
            folders)
    check_one_hot({}, folders)
    check_one_hot(dict(model=dict(train_cfg=[dict(augments=1)])), folders)


@pytest.mark.parametrize('inside', ['a_file', '/proc'])
def test_a_folder_that_even_root_cannot_write_is_an_error(inside, tmp_path):
    (tmp_path / 'a_file').write_text('here')
    folder = tmp_path / inside / 'work_dir'  # '/proc' replaces tmp_path
    with pytest.raises(ValueError, match=f'work_dir .*{inside}.*give another'):
        check_folder_writable(str(folder), 'work_dir')


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_folder_writable(str(tmp_path / 'new/folder'), 'work_dir')
    assert list((tmp_path / 'new/folder').iterdir()) == []


def test_a_checkpoint_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'base.pth').touch()
    check_file('~/base.pth', 'The base', '')
    with pytest.raises(FileNotFoundError, match='no.pth'):
        check_file('~/no.pth', 'The base', '')


@pytest.mark.parametrize('name, said', [
    ('gone.py', "config '.*gone.py' does not exist"),
    ('folder', "config '.*folder' is a folder"),
    ('image.jpg', r"image.jpg' is no config.*\.py")])
def test_a_config_in_the_place_of_another_argument_is_told_its_own(
        tmp_path, name, said):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'image.jpg').touch()
    (tmp_path / 'config.py').touch()
    check_config(str(tmp_path / 'config.py'), 'SOURCE CONFIG')
    with pytest.raises((ValueError, FileNotFoundError),
                       match=f'{said}.*order.* is SOURCE CONFIG'):
        check_config(str(tmp_path / name), 'SOURCE CONFIG')


def test_checkpoints_on_other_machines_are_left_alone():
    for path in ('https://host/a.pth', 'torchvision://resnet50'):
        check_file(path, 'The checkpoint', '')


def test_a_list_without_folders_is_seen_from_the_working_folder(
        folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.jpg').touch(), Path('list.txt').write_text('a.jpg 0\n')
    dataset = dict(
        type='mmpretrain.CustomDataset', ann_file='list.txt',
        metainfo=folders['metainfo'])
    check_dataset(dataset)
    Path('a.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of the 1 images'):
        check_dataset(dataset)
