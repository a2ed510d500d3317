"""gzip's figure is what the command gives; the unigram figure is an entropy."""

from __future__ import annotations

import gzip

import pytest

from megatron_slw.evaluation.baselines import gzip_bits_per_byte, unigram_bits_per_byte


def test_gzip_is_what_the_gzip_format_takes() -> None:
    text = b"def spam(eggs):\n    return eggs\n" * 40
    assert gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, 9)) / len(text)


def test_unigram_is_the_entropy_of_the_bytes() -> None:
    assert unigram_bits_per_byte(bytes(range(256)) * 3) == pytest.approx(8.0)
    assert unigram_bits_per_byte(b"aabb") == pytest.approx(1.0)
    assert unigram_bits_per_byte(b"aaaa") == 0.0


def test_no_text_has_no_figure() -> None:
    for figure in (gzip_bits_per_byte, unigram_bits_per_byte):
        with pytest.raises(ValueError, match="no text"):
            figure(b"")
