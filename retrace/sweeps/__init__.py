"""Sweeps: params.yaml with some keys changed, computed by the functions that the stages call."""
