"""A shuffled order that is computed, not stored: a keyed permutation of [0, size) for any size.

A Feistel network permutes the next power of two whatever its round function is, and walking the cycle
until it is back inside [0, size) permutes just that (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). Asking for one position or for a million costs no set-up, no memory and no index file.
"""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 6  # even: the halves may differ by a bit, and trade sizes each round
_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's: neighbors are mixed badly otherwise
_SORTED = 256  # up to here a sort is cheaper, and a network of so few bits would favor some orders


def permutation_key(seed: int, epoch: int, salt: str) -> np.ndarray:
    """Return the key of one epoch's order, uint64 of shape (ROUNDS,); other arguments give other keys."""
    text = f"{seed}/{epoch}/{salt}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8 * ROUNDS).digest(), "<u8").astype(np.uint64)


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Return the images of `index` under the permutation of [0, size) that `key` chooses.

    Args:
        index: integers in [0, size), any shape.
        size: at least 1 and below 2**62.
        key: from `permutation_key`.

    Returns:
        int64 array of the shape of `index`. Over all of [0, size) each number appears exactly once.

    Raises:
        ValueError: the size or an index is out of range.
    """
    if not 1 <= size < 2**62:
        raise ValueError(f"a permutation needs a size in [1, 2**62), not {size}")
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise ValueError(f"index {int(index.min())} to {int(index.max())} is not inside [0, {size})")
    values = index.astype(np.uint64).reshape(-1)
    if size <= _SORTED:
        order = np.argsort(_mix(np.arange(size, dtype=np.uint64) * _STEP + key[0]), kind="stable")
        return order[values].reshape(index.shape)
    bits = (size - 1).bit_length()
    image = _feistel(values, bits, key)
    limit = np.uint64(size)
    outside = np.flatnonzero(image >= limit)
    while len(outside):
        moved = _feistel(image[outside], bits, key)
        image[outside] = moved
        outside = outside[moved >= limit]
    return image.astype(np.int64).reshape(index.shape)


def _feistel(values: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
    """The network on [0, 2**bits)."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    for round_key in key:
        mixed = _mix(right + round_key)
        mixed >>= np.uint64(64 - left_bits)
        mixed ^= left
        left, right = right, mixed
        left_bits, right_bits = right_bits, left_bits
    return left << np.uint64(right_bits) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble a fresh uint64 array in place, as splitmix64 does; the high bits are the best mixed."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values
