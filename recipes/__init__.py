"""How what ships in `drolab/assets` was made. Nothing in drolab imports this."""
