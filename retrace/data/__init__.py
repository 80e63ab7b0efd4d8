"""Datasets, images of one's own, and which pixels are missing."""
