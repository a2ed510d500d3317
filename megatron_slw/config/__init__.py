"""The run's configuration: read from one JSON file, typed, checked once, frozen."""

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, to_json, with_vocab_size
from megatron_slw.config.schema import RunConfig

__all__ = ["ConfigError", "RunConfig", "load_config", "to_json", "with_vocab_size"]
