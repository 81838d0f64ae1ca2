"""Flower's processes on one machine or many: keys, certificates, the gate before them."""
