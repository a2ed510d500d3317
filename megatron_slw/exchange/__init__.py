"""Models from and for other programs: Hugging Face's GPT-2, DeepSpeed's universal checkpoint."""
