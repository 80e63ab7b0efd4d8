"""Training images from the weights of a classifier."""
