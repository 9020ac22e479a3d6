"""Simulated hardware: bit-exact evidence under roots made for this installation."""
