"""Foreign frameworks, each in one file: Ray, Weights & Biases."""
