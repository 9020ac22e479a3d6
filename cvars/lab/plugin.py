"""pytest plugin: the fixture ``lab``."""
