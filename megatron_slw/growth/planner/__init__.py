"""When to grow and when to stop, from loss curves. No torch."""
