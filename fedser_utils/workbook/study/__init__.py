"""A study: its steps and runs, the command that runs what is left, and the page that shows it."""
