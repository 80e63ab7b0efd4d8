"""Given an image with missing pixels and a network, wanted the missing pixels."""
