"""Triton kernels of the DiT's hot path, each as a registered operator with its own backward pass.

Nothing here is imported unless ``model.kernels=fused`` meets a GPU: Triton comes with GPU builds of torch.
"""
