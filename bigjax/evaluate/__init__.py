"""What a trained model is worth: scores on held-out text, and text it writes."""
