"""GPT pretraining on DeepSpeed with sequence-length warmup: train on short sequences first, then lengthen them."""

__version__ = "0.1.0"
