"""This machine: its processes, what of it is free and who holds it, supervisors, homes."""
