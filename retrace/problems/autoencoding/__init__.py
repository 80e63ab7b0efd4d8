"""Images behind a bottleneck."""
