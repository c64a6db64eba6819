"""What batches add up to."""

from __future__ import annotations

import pytest

from engine.tally import BatchResult, Tally, joined


def tally(*seconds: float, ranks: int = 1) -> Tally:
    """Batches of two images that took so long in each stage."""
    own = Tally(2, "yolov5", ranks)
    own.batches = [BatchResult(2, [], {}, (one, 2 * one, 3 * one), 0, ()) for one in seconds]
    return own


def test_an_image_takes_the_median_over_batches_without_the_first() -> None:
    assert tally(9.0, 0.002, 0.004, 5.0).speed_ms() == pytest.approx((2, 4, 6))
    assert tally(0.002).speed_ms() == pytest.approx((1, 2, 3))
    assert tally().speed_ms() == (0, 0, 0)


def test_every_rank_warms_up_once() -> None:
    whole = joined([tally(9.0, 0.002), tally(9.0, 0.004), tally(9.0)])
    assert whole.speed_ms() == pytest.approx((1.5, 3, 4.5))
    assert [batch.seconds[0] for batch in whole.batches] == [9, 9, 9, 0.002, 0.004]
