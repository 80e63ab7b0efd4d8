"""Codes of a decoder's outputs."""
