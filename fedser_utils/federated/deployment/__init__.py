"""Flower's processes on one machine or several: commands, certificates, gate, compose file."""
