"""Text to token datasets, and token datasets to batches. Nothing here imports torch."""
