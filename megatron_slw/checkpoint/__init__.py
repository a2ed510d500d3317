"""The one checkpoint format: named logical tensors in safetensors, JSON beside them, a manifest written last."""
