"""Captions to context vectors, and caption dropout."""
