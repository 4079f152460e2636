"""Texts from language models and adapters: recipes, one batch for many styles, conversations, tables of texts."""
