"""What a text costs without any model: the figures that a model's bits per byte are compared with."""

from __future__ import annotations

import math
import zlib
from collections import Counter


def gzip_bits_per_byte(text: bytes) -> float:
    """8 x the bytes that `gzip -9` makes of `text` / bytes of `text`; its 18 of header and checksum count.

    Raises:
        ValueError: there is no text.
    """
    if not text:
        raise ValueError("gzip of no text has no bits per byte")
    # 16 asks for gzip's header, here without a file name.
    compressor = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return 8 * (len(compressor.compress(text)) + len(compressor.flush())) / len(text)


def unigram_bits_per_byte(text: bytes) -> float:
    """Entropy of the bytes' own frequencies: the best any code does that looks at one byte at a time.

    Raises:
        ValueError: there is no text.
    """
    if not text:
        raise ValueError("the entropy of no text has no bits per byte")
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)
