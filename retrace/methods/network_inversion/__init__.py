"""Inputs that give a wanted output: one file for each task."""
