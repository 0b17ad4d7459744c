"""Sparse linear layers and likelihoods of counts as fused kernels: arrays in, arrays out.

``math`` has the functions that compiled loops are made of; ``count_loss`` and ``sparse_linear``
are what networks call. Nothing is compiled, and numba is not even loaded, before the first use.
"""
