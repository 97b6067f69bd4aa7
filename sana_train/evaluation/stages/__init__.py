"""Both stages on held-out clips: what each makes, how it is judged, and what is written of it."""
