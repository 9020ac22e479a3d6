"""What an observer on the host can see."""
