"""Given an image and an autoencoder, wanted the image after the bottleneck."""
