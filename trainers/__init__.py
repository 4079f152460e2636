"""Makes adapters: from a folder of pictures and a frozen base to one small file."""
