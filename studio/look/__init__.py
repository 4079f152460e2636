"""What is in an adapter and what it does: cards, spectra, comparisons, measurements, their plots."""
