"""A GPT that computes each token of a text once: keys and values of the tokens before are kept.

The model's own layers do everything but attention, so a checkpoint, a kernel or a new activation needs nothing here.
The caches are made once, at the full length; a step writes one column and attends to what is there, without a copy.

Rows of different lengths stand right-aligned, so that a step writes the same column in every row. A row's first real
column is its `pad`; the columns before are seen by nobody but themselves.

Legend: B rows, T tokens now, S columns so far, N full length, C hidden size, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.model.gpt import GPT, TransformerLayer


class CachedDecoder:
    """Gives the logits of the next token of several texts at once. One process, in the model's type and device."""

    def __init__(self, model: GPT) -> None:
        """Take a model in `eval` mode; nothing of it is changed."""
        self._model = model
        self._keys: list[Tensor] = []
        """Per layer (B, H, N, D)."""
        self._values: list[Tensor] = []
        self._seen_BN: Tensor | None = None
        """Which columns a row may see, bool; None where all rows began at column 0."""
        self._pads_B = torch.zeros(0, dtype=torch.int64)
        self._columns = 0

    @torch.inference_mode()
    def prefill(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Begin anew with these texts: logits (B, V) of the token after each.

        Args:
            texts: token ids, each 1 to N of them.
        """
        device = self._model.word_embeddings.weight.device
        columns = max(map(len, texts))
        self._pads_B = torch.tensor([columns - len(text) for text in texts])
        tokens_BT = torch.tensor([[0] * (columns - len(text)) + list(text) for text in texts], device=device)
        self._allocate(len(texts))
        at_T = torch.arange(columns)
        positions_BT = (at_T - self._pads_B[:, None]).clamp(min=0).to(device)
        mask_B1TS = None
        self._seen_BN = None
        if int(self._pads_B.max()):
            self._seen_BN = (torch.arange(self._keys[0].size(2)) >= self._pads_B[:, None]).to(device)
            causal_TS = at_T[:, None] >= at_T
            itself_TS = at_T[:, None] == at_T  # a padding column must see something, else it is NaN
            mask_B1TS = ((causal_TS.to(device) & self._seen_BN[:, None, :columns]) | itself_TS.to(device))[:, None]
        self._columns = 0
        return self._forward(tokens_BT, positions_BT, mask_B1TS)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each text: logits (B, V) of the token after it. N tokens at most."""
        device = self._model.word_embeddings.weight.device
        tokens_B1 = torch.tensor(tokens, device=device)[:, None]
        if self._seen_BN is None:
            positions = torch.tensor([[self._columns]], device=device)
            return self._forward(tokens_B1, positions, None)
        positions_B1 = (self._columns - self._pads_B)[:, None].to(device)
        return self._forward(tokens_B1, positions_B1, self._seen_BN[:, None, None, : self._columns + 1])

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        self._pads_B = self._pads_B[index]
        index = index.to(self._model.word_embeddings.weight.device)
        self._keys = [keys[index] for keys in self._keys]
        self._values = [values[index] for values in self._values]
        if self._seen_BN is not None:
            self._seen_BN = self._seen_BN[index]

    def _allocate(self, rows: int) -> None:
        """Caches of this many rows; those that are there already serve again."""
        if self._keys and self._keys[0].size(0) == rows:
            return
        weight, positions = self._model.word_embeddings.weight, self._model.position_embeddings.weight
        size = positions.size(1)
        attention = self._layers()[0].self_attention
        shape = (rows, size // attention.head_dim, positions.size(0), attention.head_dim)
        self._keys = [torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in self._layers()]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    def _layers(self) -> list[TransformerLayer]:
        return list(self._model.layers)  # type: ignore[arg-type]

    def _forward(self, tokens_BT: Tensor, positions_BT: Tensor, mask_B1TS: Tensor | None) -> Tensor:
        """Write T columns and give the logits (B, V) after the last."""
        model = self._model
        x_BTC = F.embedding(tokens_BT, model.word_embeddings.weight)
        x_BTC = x_BTC + F.embedding(positions_BT, model.position_embeddings.weight)
        for layer, keys_BHND, values_BHND in zip(self._layers(), self._keys, self._values, strict=True):
            context_BTC = self._attend(layer, x_BTC, keys_BHND, values_BHND, mask_B1TS)
            attended_BTC = layer.self_attention.dense(context_BTC)
            normal_BTC, x_BTC = layer.post_attention_layernorm(attended_BTC, x_BTC, layer.dropout)
            x_BTC = layer.dropout.add(layer.mlp(normal_BTC), x_BTC)
        self._columns += tokens_BT.size(1)
        logits_B1V: Tensor = model.output_head(model.final_layernorm(x_BTC[:, -1:]))
        return logits_B1V[:, 0]

    def _attend(
        self, layer: TransformerLayer, x_BTC: Tensor, keys_BHND: Tensor, values_BHND: Tensor, mask_B1TS: Tensor | None
    ) -> Tensor:
        """Attention of the new columns to all so far, (B, T, C), before its output matrix."""
        mixed = layer.self_attention.query_key_value(layer.input_layernorm(x_BTC))
        rows, now, heads, stop = *x_BTC.shape[:2], keys_BHND.size(1), self._columns + x_BTC.size(1)
        q_BHTD, k_BHTD, v_BHTD = mixed.view(rows, now, heads, 3, -1).permute(3, 0, 2, 1, 4)
        keys_BHND[:, :, self._columns : stop] = k_BHTD
        values_BHND[:, :, self._columns : stop] = v_BHTD
        causal = mask_B1TS is None and now > 1
        context_BHTD = F.scaled_dot_product_attention(
            q_BHTD, keys_BHND[:, :, :stop], values_BHND[:, :, :stop], mask_B1TS, is_causal=causal
        )
        return context_BHTD.transpose(1, 2).reshape(rows, now, -1)
