"""Machines, scenarios and fixtures that run all the parts."""
