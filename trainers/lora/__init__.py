"""The shared core: an adapter as data, its file formats, and the way into and out of a model."""
