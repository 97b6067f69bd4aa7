"""How far a move into a new latent space has come: loss bands, clean estimates, samples, S90."""
