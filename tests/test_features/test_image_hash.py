"""The hashes of images that are made on the device of the images."""
import hashlib

import pytest
import torch

from etta_mm.checkpoints.fingerprint import fold
from etta_mm.features.image_hash import image_hashes

#: 105 elements an image: no whole number of words of 32 bits below float32.
SHAPE = (2, 3, 5, 7)
DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.float64
]
EACH_DTYPE = pytest.mark.parametrize('dtype', DTYPES, ids=str)


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(255, SHAPE, generator=generator).to(dtype)


def weight(j: int, p: int) -> int:
    """The (4 p + j)-th number of splitmix64, made odd; j and p from 0."""
    x = (4 * p + j + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) | 1


def test_a_hash_is_that_of_the_sums_in_whole_numbers():
    batch = images() - 100
    for image, found in zip(batch, image_hashes('name', batch)):
        words = image.flatten().view(torch.int32).tolist()
        sums = [sum(w * weight(j, p) for p, w in enumerate(words)) % 2**64
                for j in range(4)]
        sums = [s - 2**64 if s >= 2**63 else s for s in sums]
        text = f'torch.float32(3, 5, 7) {sums}'
        assert found == fold(
            {'name': hashlib.sha256(text.encode()).hexdigest()})


@EACH_DTYPE
def test_equal_images_have_equal_hashes_wherever_they_stand(dtype):
    batch = images(dtype)
    expected = image_hashes('name', batch)
    assert len(set(expected)) == len(batch)
    assert image_hashes('name', batch.clone()) == expected
    assert image_hashes('name', batch.flip(0)) == expected[::-1]
    assert image_hashes('name', batch[1:]) == expected[1:]
    last = batch.to(memory_format=torch.channels_last)
    assert image_hashes('name', last) == expected


@pytest.mark.parametrize('bit', range(8))
@EACH_DTYPE
def test_one_other_bit_makes_another_hash_of_that_image_alone(dtype, bit):
    before = image_hashes('name', images(dtype))
    size = images(dtype)[0].nbytes
    for byte in (0, 1, 3, size // 2, size - 2, size - 1):
        batch = images(dtype)
        batch[1].flatten().view(torch.uint8)[byte] ^= 1 << bit
        after = image_hashes('name', batch)
        assert after[0] == before[0] and after[1] != before[1]


@EACH_DTYPE
def test_two_swapped_pixels_make_another_hash(dtype):
    batch = images(dtype)
    seen = set(image_hashes('name', batch))
    for other in range(1, 35):
        swapped = batch.clone().flatten(2)
        swapped[..., [0, other]] = swapped[..., [other, 0]]
        seen |= set(image_hashes('name', swapped.view(SHAPE)))
    assert len(seen) == 2 * 35


def test_shape_type_and_name_are_part_of_the_hash():
    batch = torch.zeros(SHAPE)
    others = [
        batch, batch.view(2, 3, 7, 5), batch.view(2, 5, 3, 7),
        batch.view(2, 105), batch.view(torch.int32), batch[..., 1:],
        batch.byte(), batch.half()
    ]
    hashes = [image_hashes('name', other)[0] for other in others]
    hashes.append(image_hashes('other', batch)[0])
    assert len(set(hashes)) == len(hashes)
