"""`python -m megatron_slw.ops`: which implementation serves each operator here."""

from __future__ import annotations

from megatron_slw.ops.table import table

if __name__ == "__main__":
    print(table())
