"""Uses adapters: looks at what they do, and later blends, merges and exports them."""
