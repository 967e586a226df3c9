"""What a training on several devices comes to."""
import pytest

from etta_mm.benchmark.scale import scale, scale_page

FULL = dict(step_s=2., gradient_bytes=400, peak_bytes=10**9)
ETTA = dict(step_s=1., gradient_bytes=40, peak_bytes=10**8)
SETTINGS = dict(batch=2, device='cpu')


def test_one_device_communicates_nothing():
    one = scale(FULL, batch=2, devices=1, bytes_per_s=10, num_images=9)
    assert (one.sent_bytes, one.communication_s) == (0, 0)
    assert one.epoch_s == 5 * 2.  # the last step has one image


@pytest.mark.parametrize('found', [FULL, ETTA])
def test_each_device_sends_nearly_twice_its_gradients(found):
    eight = scale(found, batch=2, devices=8, bytes_per_s=100, num_images=160)
    assert eight.sent_bytes == 1.75 * found['gradient_bytes']
    assert eight.epoch_s == pytest.approx(
        10 * (found['step_s'] + 1.75 * found['gradient_bytes'] / 100))


def test_the_page_has_both_methods_of_every_case_that_was_measured():
    summary = dict(
        detr_r50=dict(full=FULL, etta=ETTA),
        vit_b16=dict(full=dict(error='out of memory'), etta=ETTA))
    page = scale_page(summary, SETTINGS, [1, 8], [25., 400.], 'make it')
    assert '## detr_r50' in page and '## vit_b16' not in page
    rows = [line for line in page.splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 2 * (1 + 2)
    assert len({row.count('|') for row in rows}) == 1
    assert ' 0.50 ' in rows[3]  # half the time on one device
