"""The procedural world: captioned clips of moving textured shapes, with ground truth."""
