"""How a stage runs: start, steps, schedule, optimiser, checkpoints, log; and many stages side by side."""
