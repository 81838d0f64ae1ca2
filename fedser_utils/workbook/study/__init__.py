"""A study as a whole: its notebooks and runs, what is missing, one page over all."""
