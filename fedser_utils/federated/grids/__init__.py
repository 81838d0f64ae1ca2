"""Flower grids: how messages reach the clients, in this process or in others."""
