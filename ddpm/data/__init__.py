"""Data: sources, packing into shards, index, order, batches."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
