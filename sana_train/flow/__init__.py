"""Rectified flow as pure maths: no network is known here, samplers and guidance take callables."""
