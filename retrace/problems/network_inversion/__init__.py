"""Inputs for wanted outputs."""
