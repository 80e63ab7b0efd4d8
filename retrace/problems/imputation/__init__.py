"""Missing pixels of an image."""
