"""What a trained model is worth: scores on text it has not seen, and text it writes."""
