"""The folder that a run leaves: its files, their schema, and how they are read again."""
