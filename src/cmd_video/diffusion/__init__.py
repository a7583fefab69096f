"""The mathematics of diffusion, free of networks: processes, conditions, guidance, solvers, the loop, objectives."""
