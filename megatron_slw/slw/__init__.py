"""Sequence-length warmup: the length of every step, decided before the first one."""
