"""Autoencoders side by side: latent size, latency, memory, reconstruction, and the paper's table of them."""
