"""Adapters into a base and out of one: streamed weights, receipts, extraction."""
