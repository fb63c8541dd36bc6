"""Measurements beside their alternatives."""
