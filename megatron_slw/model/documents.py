"""Positions and attention that begin anew with each document of a row.

Shapes: B rows, T positions of a row. document_ids_BT numbers the documents of each row, equal exactly where two
positions are in one document; the numbers never fall along a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positions_in_documents(document_ids_BT: Tensor) -> Tensor:
    """Return each position's distance from the first of its document in its row, int64 of shape (B, T).

    A document that began before its row counts from the beginning of the row.
    """
    place_T = torch.arange(document_ids_BT.size(1), device=document_ids_BT.device)
    begins_BT = torch.zeros_like(document_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return place_T - torch.where(begins_BT, place_T, 0).cummax(dim=1).values


def document_attention_bias(document_ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 at or before a position in its own document, -inf elsewhere.

    A boolean mask would do, but every attention call would turn it into this and keep its own copy until the
    backward pass; made once, all layers share it.

    Args:
        document_ids_BT: integers, shape (B, T).
        dtype: of the queries.

    Returns:
        Shape (B, 1, T, T): query position, key position.
    """
    rows, length = document_ids_BT.shape
    hidden_B1TT = (document_ids_BT[:, None, :, None] != document_ids_BT[:, None, None, :]).logical_or_(
        torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).triu_(1)
    )
    bias = torch.zeros(rows, 1, length, length, dtype=dtype, device=document_ids_BT.device)
    return bias.masked_fill_(hidden_B1TT, -math.inf)
