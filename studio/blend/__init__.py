"""Several adapters into one file: methods, factored sums, certificates."""
