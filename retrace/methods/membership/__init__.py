"""Membership from the weights alone: was an image one of those that a network was trained on?"""
