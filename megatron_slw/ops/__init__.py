"""Fused operators: each is declared once in Python, with a plain PyTorch implementation, and sped up by `csrc/`.

`python -m megatron_slw.ops` prints which implementation serves each of them here.
"""
