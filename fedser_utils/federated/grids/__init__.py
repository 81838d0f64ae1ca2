"""Where a round's messages go: one grid for each place that clients run in."""
