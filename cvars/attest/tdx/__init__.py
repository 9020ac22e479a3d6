"""TDX quotes."""
