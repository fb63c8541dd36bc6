"""Beside the Hub: its configuration, the workbench service, and the whole stack on one machine."""
