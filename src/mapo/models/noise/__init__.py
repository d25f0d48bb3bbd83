"""Noise processes: how noise comes to a latent, how a timestep is drawn, what the denoiser has to predict."""
