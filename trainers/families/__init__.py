"""What differs between kinds of models, and only that."""
