"""Weight files of other frameworks to checkpoints of this project, and what proves that they are the same network."""
