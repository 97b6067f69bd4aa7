"""Layers of the DiT, each a plain PyTorch module on tokens of shape (B, N, D)."""
