"""How fast steps are: taking turns, a device's ceilings, rows kept one by one, tables and a figure."""
