"""How fast steps are: contestants in turns, a device's ceilings, rows kept one by one, tables and a figure."""
