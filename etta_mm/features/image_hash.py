"""Hashes of images that are made where the images are."""
import hashlib
from typing import List

import torch
from torch import Tensor

from ..checkpoints.fingerprint import fold

NUM_SUMS = 4  # of 64 bits each
#: Of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
#: generators", 2014), as signed numbers: its step and its two factors.
STEP = 0x9E3779B97F4A7C15 - 2**64
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@torch.no_grad()
def image_hashes(name: str, images: Tensor) -> List[str]:
    """Hash of each image of a batch: name, type, shape and bits.

    The bits are words of 32, and the hash is that of the sums

        s_j = sum_p w_p c_j(p)  mod 2^64,  j = 1, ..., 4

    with odd, pseudo-random c_j of the position p in the image. So one other word
    always makes other sums, and several do but for a chance of about 2^-128.
    All is whole-number arithmetic: every device, every order of summation and
    every size of the batch give the same. Only the sums are read from the
    device, once for the batch.

    Args:
        name (str): What else the hashes stand for.
        images (Tensor): Images of shape (bs, ...), of any type; none is empty.

    Returns:
        list[str]: Hexadecimal digits.
    """
    words = _words(images)
    sums = []
    for j in range(NUM_SUMS):
        weights = _weights(j, words.shape[1], images.device)
        # One after the other: a batch of products would take twice the
        # memory of the batch.
        sums.append(torch.stack([(row * weights).sum() for row in words]))
    kind = f'{images.dtype}{tuple(images.shape[1:])}'
    return [
        fold({name: hashlib.sha256(f'{kind} {row}'.encode()).hexdigest()})
        for row in torch.stack(sums, 1).tolist()
    ]


def _words(images: Tensor) -> Tensor:
    """The memory of images of shape (bs, ...) as int32 of shape (bs, words);
    zeros fill up the last word."""
    flat = images.contiguous().flatten(1)
    if images.element_size() < 4:
        given = flat.view(torch.uint8)
        num = given.shape[1]
        flat = given.new_zeros(len(given), num + -num % 4)
        flat[:, :num] = given
    return flat.view(torch.int32)


def _weights(j: int, num: int, device: torch.device) -> Tensor:
    """Odd int64 of shape (num, ), those of the j-th sum: every fourth number of
    splitmix64."""
    x = torch.arange(j + 1, NUM_SUMS * num + 1, NUM_SUMS, device=device) * STEP
    x = _fold_down(x, 30) * FACTORS[0]
    x = _fold_down(x, 27) * FACTORS[1]
    return _fold_down(x, 31) | 1


def _fold_down(x: Tensor, bits: int) -> Tensor:
    """x xor (x >> bits) of int64, whose own shift would repeat the sign."""
    return x ^ ((x >> bits) & (2**(64 - bits) - 1))
