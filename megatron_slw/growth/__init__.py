"""Growing a trained model in depth and width with its whole training state."""
