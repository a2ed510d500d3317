"""The training loop and what it reads and writes: engine, learning rate, metrics, progress display."""
